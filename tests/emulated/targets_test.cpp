// SPDX-License-Identifier: Apache-2.0
//
// Tests which target is chosen, and the products on each target that the processor can run: little
// enough for emulators. Builds for other machines run it (CMakePresets.json), and
// hygiene/arm_levels.cmake on several processors.
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "kernels/each_target.hpp"
#include "kernels/matmul_reference.hpp"
#include "nibble/kernels/attention.hpp"
#include "nibble/kernels/matmul_input.hpp"
#include "nibble/kernels/softmax.hpp"

using namespace nibble;
using namespace nibble_test;

template <class Format>
using Product = kernels::Matmul<Format>;

TEST_CASE("the best target of the processor is chosen") {
  CHECK(simd::available_targets().best() == simd::active_target());
  MESSAGE("active: ", std::string(to_string(simd::active_target())),
          ", compiled: ", to_string(simd::compiled_targets()));
  if (const char* const expected = std::getenv("NIBBLE_EXPECTED_TARGET")) {
    CHECK(to_string(simd::active_target()) == std::string(expected));
  }
  if (const char* const expected = std::getenv("NIBBLE_EXPECTED_COMPILED")) {
    CHECK(to_string(simd::compiled_targets()) == std::string(expected));
  }
}

TEST_CASE_TEMPLATE("products are right on each target", Format, quant::Q4_0, quant::Q4_1,
                   quant::Q5_0, quant::Q8_0, quant::Q6_K, quant::IQ4_NL, quant::IQ4_XS,
                   quant::MXFP4, Q4Minimum128, quant::F16) {
  constexpr Index kColumns = 51, k = quant::SuperBlockFormat<Format> ? 512 : 5 * 32 - 3;
  std::mt19937 random(11);
  const auto w = Weights<Format>::random(kColumns, k, random);
  const AlignedBuffer packed = pack(w, kColumns);
  const auto a = Activations::random<Format>(21, k, random);
  for_each_target([&](simd::Target) {
    for (const Index m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 21}) {
      const Activations rows = a.first_rows(m);
      Output out(m, kColumns);
      simd::kernel<Product<Format>>()(matmul_args(rows, kColumns, packed, out));
      CHECK(count_faults(expected_product(rows, w), m, kColumns, out) == 0);
    }
  });
}

TEST_CASE_TEMPLATE("attention over a cache of integers is right on each target", T, std::int8_t,
                   kernels::CodePair) {
  constexpr Index kGroup = 3, kHeadDim = 40, kPositions = 150, kTokens = 4;
  constexpr Index kRowSize = kGroup * kHeadDim;
  std::mt19937 random(13);
  std::normal_distribution<float> normal;
  std::vector<float> keys(size(kPositions * kHeadDim)), values(keys.size());
  std::vector<float> q(size(kTokens * kRowSize)), out(q.size());
  for (auto* const numbers : {&keys, &values, &q}) {
    for (float& x : *numbers) x = normal(random);
  }
  constexpr Index kTiles = (kPositions + kernels::kAttentionTile - 1) / kernels::kAttentionTile;
  auto cache = AlignedBuffer::allocate(size(kTiles * kernels::tile_size<T>(kHeadDim)));
  auto scratch = AlignedBuffer::allocate(
      4 * size(kernels::attention_scratch_floats(kTokens * kGroup, kHeadDim)));
  REQUIRE(cache);
  REQUIRE(scratch);
  auto* const codes = reinterpret_cast<T*>(cache->data());

  typename kernels::StoreKeysValues<T>::Args fill;
  fill.key = keys.data();
  fill.value = values.data();
  fill.key_stride = fill.value_stride = fill.head_dim = kHeadDim;
  fill.n_tokens = kPositions;
  fill.cache = codes;
  simd::kernel<kernels::StoreKeysValues<T>>()(fill);

  typename kernels::Attend<T>::Args args;
  args.q = q.data();
  args.q_stride = args.out_stride = kRowSize;
  args.group = kGroup;
  args.head_dim = kHeadDim;
  args.cache = codes;
  args.end_slot = kTiles;
  args.end = kPositions;
  args.scale = 0.3f;
  args.out = out.data();
  args.scratch = reinterpret_cast<float*>(scratch->data());
  for_each_target([&](simd::Target) {
    for (const Index n : {Index{1}, kTokens}) {
      args.n_tokens = n;
      args.is_prompt = n > 1;
      args.first_position = kPositions - n;
      simd::kernel<kernels::Attend<T>>()(args);
      int faults = 0;
      for (Index row = 0; row < n * kGroup; ++row) {
        const Index end = args.first_position + row / kGroup + 1;
        double sum = 0;
        std::vector<double> expected(size(kHeadDim));
        for (Index p = 0; p < end; ++p) {
          double score = 0;
          for (Index d = 0; d < kHeadDim; ++d) {
            score += 0.3 * double{q[size(row * kHeadDim + d)]} *
                     double{kernels::key_at(codes, p, d, kHeadDim)};
          }
          sum += std::exp(score);
          for (Index d = 0; d < kHeadDim; ++d) {
            expected[size(d)] += std::exp(score) * double{kernels::value_at(codes, p, d, kHeadDim)};
          }
        }
        // Queries and weights are rounded to 16 bits; values are about 1.
        for (Index d = 0; d < kHeadDim; ++d) {
          const double error = out[size(row * kHeadDim + d)] - expected[size(d)] / sum;
          if (!(std::abs(error) < 5e-4)) ++faults;
        }
      }
      CHECK(faults == 0);
    }
  });
}

#if HWY_ARCH_ARM_A64
TEST_CASE(
    "a level has its own products and attention of 8-bit integers, and the kernels of its base") {
  REQUIRE(simd::force_target(simd::baseline_target()));
  const auto base_product = simd::kernel<Product<quant::Q4_0>>();
  const auto base_bf16 = simd::kernel<Product<quant::BF16>>();
  const auto base_f16 = simd::kernel<Product<quant::F16>>();
  const auto base_argmax = simd::kernel<kernels::ArgMax>();
  const auto base_int8 = simd::kernel<kernels::Attend<std::int8_t>>();
  const auto base_attend_f16 = simd::kernel<kernels::Attend<f16>>();
  simd::available_targets().for_each([&](simd::Target target) {
    if (target == simd::baseline_target()) return;
    CAPTURE(to_string(target));
    REQUIRE(simd::force_target(target));
    const bool has_bf16 = target == simd::Target::NEON_I8MM;
    CHECK((simd::kernel<Product<quant::Q4_0>>() != base_product));
    CHECK((simd::kernel<Product<quant::BF16>>() != base_bf16) == has_bf16);
    CHECK(simd::kernel<kernels::TakesRoundedRows>()() == has_bf16);
    CHECK((simd::kernel<Product<quant::F16>>() == base_f16));
    CHECK((simd::kernel<kernels::ArgMax>() == base_argmax));
    CHECK((simd::kernel<kernels::Attend<std::int8_t>>() != base_int8));
    CHECK((simd::kernel<kernels::Attend<f16>>() == base_attend_f16));
  });
  REQUIRE(simd::choose_target());
}

#endif

TEST_CASE("products of rounded rows are right where the processor has them") {
  constexpr Index kColumns = 51, k = 67;
  std::mt19937 random(12);
  const auto w = Weights<quant::BF16>::random(kColumns, k, random);
  const AlignedBuffer packed = pack(w, kColumns);
  auto a = Activations::random<quant::BF16>(7, k, random);
  std::vector<std::array<bf16, k + 1>> rounded(7);
  for (Index row = 0; row < a.m; ++row) {
    for (Index i = 0; i < k; ++i) {
      float& x = a.x[size(row * a.stride() + i)];
      const bf16 y = quant::round_to<bf16>(x);
      rounded[size(row)][size(i)] = y;
      x = static_cast<float>(to_double(y));
    }
  }
  for_each_target([&](simd::Target) {
    if (!simd::kernel<kernels::TakesRoundedRows>()()) return;
    for (Index m = 1; m <= a.m; ++m) {
      const Activations rows = a.first_rows(m);
      Output out(m, kColumns);
      auto args = matmul_args(rows, kColumns, packed, out);
      args.input.rounded = rounded[0].data();
      args.input.rounded_stride = k + 1;
      simd::kernel<Product<quant::BF16>>()(args);
      // Rounded to odd, an addition errs by up to a whole unit in the last place.
      auto expected = expected_product(rows, w);
      for (double& tolerance : expected.tolerance) tolerance *= 2;
      CHECK(count_faults(expected, m, kColumns, out) == 0);
    }
  });
}
