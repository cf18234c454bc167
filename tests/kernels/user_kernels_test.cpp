// SPDX-License-Identifier: Apache-2.0
//
// A program's own epilogue and weight formats run on every target without a change to nibble: in
// the header form, in a program whose other files use the split form.
#undef NIBBLE_SPLIT
#define NIBBLE_USER_KERNELS "kernels/user_kernels-inl.h"

#include "kernels/user_kernels.hpp"

#include "doctest/doctest.h"
#include "kernels/each_target.hpp"
#include "kernels/matmul_reference.hpp"
#include "nibble/kernels/matmul.hpp"
#include "nibble/kernels/pass.hpp"

namespace user_kernels_test {

using namespace nibble;
using namespace nibble_test;

TEST_CASE_TEMPLATE("a program's own formats and epilogue run on every target", Format, user::Q4In96,
                   user::CodesFirst) {
  constexpr Index kRows = 7, kColumns = 43, k = 3 * Format::kLength;
  std::mt19937 random(7);
  const auto w = Weights<Format>::random(kColumns, k, random);
  const auto a = Activations::random<Format>(kRows, k, random);
  const AlignedBuffer packed = pack(w, kColumns);
  std::vector<float> bias(size(kColumns));
  for (float& b : bias) b = static_cast<float>(random() % 1000) * 1e-3f - 0.4f;

  const Expected sums = expected_product(a, w);
  Expected squares = sums;
  int n_zeros = 0;
  for (std::size_t i = 0; i < sums.value.size(); ++i) {
    const double v = std::max(sums.value[i] + bias[i % size(kColumns)], 0.0);
    const double error = sums.tolerance[i] + 0x1p-24 * v;
    squares.value[i] = v * v;
    squares.tolerance[i] = 2 * v * error + error * error + 0x1p-24 * v * v;
    n_zeros += v == 0;
  }
  REQUIRE(n_zeros > 10);
  REQUIRE(n_zeros < kRows * kColumns - 10);

  for_each_target([&](simd::Target) {
    Output out(kRows, kColumns);
    auto args = matmul_args(a, kColumns, packed, out);
    simd::kernel<kernels::Matmul<Format>>()(args);
    CHECK(count_faults(sums, kRows, kColumns, out) == 0);
    args.epilogue.bias = bias.data();
    args.finish = simd::kernel<kernels::FinishTile<user::SquaredRelu>>();
    simd::kernel<kernels::Matmul<Format>>()(args);
    CHECK(count_faults(squares, kRows, kColumns, out) == 0);
    CHECK(count_faults(sums, kRows, kColumns, out) > kRows * kColumns / 2);
  });
}

}  // namespace user_kernels_test
