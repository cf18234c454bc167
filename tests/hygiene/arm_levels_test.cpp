// SPDX-License-Identifier: Apache-2.0
//
// Tests which target is chosen on a 64-bit ARM processor, and the products on each target that it
// can run. arm_levels.cmake compiles this once and runs it on several processors.
#include <cstdlib>
#include <string>

#include "doctest/doctest.h"
#include "kernels/each_target.hpp"
#include "kernels/matmul_reference.hpp"
#include "nibble/kernels/softmax.hpp"

using namespace nibble;
using namespace nibble_test;

template <class Format>
using Product = kernels::Matmul<Format>;

TEST_CASE("the best target of the processor is chosen") {
  const char* const expected = std::getenv("NIBBLE_EXPECTED_TARGET");
  REQUIRE(expected != nullptr);
  CHECK(to_string(simd::active_target()) == std::string(expected));
}

TEST_CASE_TEMPLATE("products are right on each target", Format, quant::Q4_0, quant::Q4_1,
                   quant::Q8_0, quant::F16) {
  constexpr Index kColumns = 51, k = 4 * 32 + 32;
  std::mt19937 random(11);
  const auto w = Weights<Format>::random(kColumns, k, random);
  const AlignedBuffer packed = pack(w, kColumns);
  const auto a = Activations::random<Format>(7, k, random);
  for_each_target([&](simd::Target) {
    for (Index m = 1; m <= a.m; ++m) {
      const Activations rows = a.first_rows(m);
      Output out(m, kColumns);
      simd::kernel<Product<Format>>()(matmul_args(rows, kColumns, packed, out));
      CHECK(count_faults(expected_product(rows, w), m, kColumns, out) == 0);
    }
  });
}

TEST_CASE("a level has its own products of block formats and the kernels of its base") {
  if (!simd::available_targets().contains(simd::Target::NEON_DOT)) {
    MESSAGE("this processor has no dot products: not tested");
    return;
  }
  REQUIRE(simd::force_target(simd::baseline_target()));
  const auto base_product = simd::kernel<Product<quant::Q4_0>>();
  const auto base_f16 = simd::kernel<Product<quant::F16>>();
  const auto base_argmax = simd::kernel<kernels::ArgMax>();
  REQUIRE(simd::force_target(simd::Target::NEON_DOT));
  CHECK((simd::kernel<Product<quant::Q4_0>>() != base_product));
  CHECK((simd::kernel<Product<quant::F16>>() == base_f16));
  CHECK((simd::kernel<kernels::ArgMax>() == base_argmax));
  REQUIRE(simd::choose_target());
}
