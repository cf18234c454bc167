// SPDX-License-Identifier: Apache-2.0
//
// Tests which target is chosen, and the products on each target that the processor can run: little
// enough for emulators. Builds for other machines run it (CMakePresets.json), and
// hygiene/arm_levels.cmake on several processors.
#include <array>
#include <cstdlib>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "kernels/each_target.hpp"
#include "kernels/matmul_reference.hpp"
#include "nibble/kernels/matmul_input.hpp"
#include "nibble/kernels/softmax.hpp"

using namespace nibble;
using namespace nibble_test;

template <class Format>
using Product = kernels::Matmul<Format>;

TEST_CASE("the best target of the processor is chosen") {
  CHECK(simd::available_targets().best() == simd::active_target());
  MESSAGE("active: ", to_string(simd::active_target()),
          ", compiled: ", to_string(simd::compiled_targets()));
  if (const char* const expected = std::getenv("NIBBLE_EXPECTED_TARGET")) {
    CHECK(to_string(simd::active_target()) == std::string(expected));
  }
  if (const char* const expected = std::getenv("NIBBLE_EXPECTED_COMPILED")) {
    CHECK(to_string(simd::compiled_targets()) == std::string(expected));
  }
}

TEST_CASE_TEMPLATE("products are right on each target", Format, quant::Q4_0, quant::Q4_1,
                   quant::Q5_0, quant::Q8_0, quant::Q6_K, Q4Minimum128, quant::F16) {
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

#if HWY_ARCH_ARM_A64
TEST_CASE("a level has its own products of block formats and the kernels of its base") {
  REQUIRE(simd::force_target(simd::baseline_target()));
  const auto base_product = simd::kernel<Product<quant::Q4_0>>();
  const auto base_bf16 = simd::kernel<Product<quant::BF16>>();
  const auto base_f16 = simd::kernel<Product<quant::F16>>();
  const auto base_argmax = simd::kernel<kernels::ArgMax>();
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
