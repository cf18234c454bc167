// SPDX-License-Identifier: Apache-2.0
//
// Products with the representations of activations of ops/matmul_input.hpp, compared with exact
// ones: within the bounds of their rounding, and as accurate as expected.
#include "nibble/ops/matmul_input.hpp"

#include <cmath>
#include <cstring>

#include "doctest/doctest.h"
#include "kernels/each_target.hpp"
#include "kernels/matmul_reference.hpp"
#include "nibble/ops/matmul.hpp"
#include "nibble/ops/pack.hpp"
#include "nibble/quant/format.hpp"

namespace matmul_input_test {

using namespace nibble;
using namespace nibble_test;
using kernels::ActivationScales;

namespace {

constexpr Index m = 33, n = 128, k = 544;

std::vector<float> normal(Index count, std::mt19937& random) {
  std::normal_distribution<float> distribution;
  std::vector<float> x(size(count));
  for (float& v : x) v = distribution(random);
  return x;
}

// Signal-to-noise ratio in decibels of a product with these weights (n, k), relative to the exact
// one.
double decibels(const std::vector<float>& x, const std::vector<double>& w, const Output& out) {
  double signal = 0, noise = 0;
  for (Index row = 0; row < m; ++row) {
    for (Index column = 0; column < n; ++column) {
      double exact = 0;
      for (Index i = 0; i < k; ++i) exact += double{x[size(row * k + i)]} * w[size(column * k + i)];
      const double error = out(row, column) - exact;
      signal += exact * exact;
      noise += error * error;
    }
  }
  return 10 * std::log10(signal / noise);
}

template <class Rows>
AlignedBuffer memory_for() {
  auto memory = AlignedBuffer::allocate(Rows::bytes_needed(m, k));
  REQUIRE(memory.has_value());
  return std::move(*memory);
}

// The ratio for a product of normally distributed numbers, relative to the weights as stored.
template <class Format, ActivationScales kScales, class Rows, class Fill>
double measure(const Fill& fill) {
  std::mt19937 random(1);
  const std::vector<float> x = normal(m * k, random);
  const std::vector<float> weights = normal(n * k, random);
  const std::size_t row_bytes = *quant::row_bytes<Format>(size(k));
  auto stored = AlignedBuffer::allocate(row_bytes * size(n));
  auto packed = AlignedBuffer::allocate(size(quant::Packed<Format>::bytes(n, k)));
  REQUIRE(stored.has_value());
  REQUIRE(packed.has_value());
  std::vector<double> exact_weights;
  std::vector<float> row(size(k));
  for (Index r = 0; r < n; ++r) {
    const auto to = stored->bytes().subspan(size(r) * row_bytes, row_bytes);
    const std::span<const float> from(weights.data() + r * k, size(k));
    REQUIRE(quant::row_from_f32<Format>(from, to).has_value());
    REQUIRE(quant::row_to_f32<Format>(to, row).has_value());
    exact_weights.insert(exact_weights.end(), row.begin(), row.end());
  }
  InlineExecutor here;
  ops::pack<Format>(here, stored->data(), n, k, packed->data());

  AlignedBuffer memory = memory_for<Rows>();
  const Rows rows = Rows::over(memory.bytes(), m, k);
  const kernels::MatmulInput input = fill(here, MatrixView<const float>(x.data(), m, k), rows);
  Output out(m, n);
  ops::matmul<Format, kernels::Epilogue<>, kScales>(
      here, input, quant::PackedMatrix<Format>{packed->data(), n, k},
      MatrixView<float>(out.data(), {m, n}, {out.stride(), 1}));
  return decibels(x, exact_weights, out);
}

}  // namespace

// The largest magnitude p of a row's 544 normally distributed values has E[p^2] = 10.79; of 32
// values, 5.71. Rounding with steps of p / 127 has a variance of a twelfth of the step's square:
//   per block of 32  10 log10(12 * 127^2 / 5.71 * 32 / 31) = 45.4 dB
//   per row          10 log10(12 * 127^2 / 10.79)          = 42.5 dB
TEST_CASE("one scale per row costs what it should") {
  for_each_target([&](simd::Target) {
    const double per_row = measure<quant::Q4_0, ActivationScales::per_row, ops::RowScaledRows<32>>(
        [](Executor& here, MatrixView<const float> x, const ops::RowScaledRows<32>& rows) {
          ops::quantize_rows(here, x, rows);
          return rows.input();
        });
    const double per_block =
        measure<quant::Q4_0, ActivationScales::per_block, ops::QuantizedRows<32>>(
            [](Executor& here, MatrixView<const float> x, const ops::QuantizedRows<32>& rows) {
              ops::quantize_rows(here, x, rows);
              return ops::matmul_input(rows);
            });
    CHECK(per_row == doctest::Approx(42.5).epsilon(0.01));
    CHECK(per_block == doctest::Approx(45.4).epsilon(0.01));
  });
}

TEST_CASE("rows shorter than a block are a block apart, with zeros after their codes") {
  constexpr Index kLength = 128, kShort = 32, kFew = 5;
  using Rows = ops::RowScaledRows<kLength>;
  std::mt19937 random(2);
  const std::vector<float> x = normal(kFew * kShort, random);
  auto memory = AlignedBuffer::allocate(Rows::bytes_needed(kFew, kShort));
  REQUIRE(memory.has_value());
  const Rows rows = Rows::over(memory->bytes(), kFew, kShort);
  const kernels::MatmulInput input = rows.input();
  REQUIRE(input.code_stride >= kLength);
  REQUIRE(input.n_blocks == 1);
  for_each_target([&](simd::Target) {
    std::memset(memory->data(), 0x55, memory->size());
    InlineExecutor here;
    ops::quantize_rows(here, MatrixView<const float>(x.data(), kFew, kShort), rows);
    for (Index row = 0; row < kFew; ++row) {
      const std::int8_t* const codes = input.codes + row * input.code_stride;
      const float scale = input.row_scales[row];
      CHECK(rows.rows[row].codes == codes);
      CHECK(rows.rows[row].scales == input.row_scales + row);
      int sum = 0;
      for (Index i = 0; i < kLength; ++i) {
        const float exact = i < kShort ? x[size(row * kShort + i)] : 0.0f;
        const float kept = scale * static_cast<float>(codes[i]);
        CHECK(std::abs(exact - kept) <= (i < kShort ? 0.5001f * scale : 0.0f));
        sum += codes[i];
      }
      CHECK(input.code_sums[row] == -8 * sum);
    }
  });
}

TEST_CASE("a form of the activations that is missing stays so in later rows") {
  kernels::MatmulInput input;
  input.stride = input.rounded_stride = input.code_stride = 32;
  input.n_blocks = 1;
  const float x[64] = {};
  input.x = x;
  const kernels::MatmulInput rest = input.rows_from(1);
  CHECK(rest.x == x + 32);
  CHECK(rest.rounded == nullptr);  // otherwise bf16 products would read it
  CHECK(rest.codes == nullptr);
  CHECK(rest.scales == nullptr);
  CHECK(rest.row_scales == nullptr);
  CHECK(rest.code_sums == nullptr);
}

namespace {

// How many outputs of a product with a row of zeros, in exactly the memory it asks for, are not 0.
template <class Format>
int count_nonzero(Index columns, Index length) {
  std::mt19937 random(3);
  const Weights<Format> w = Weights<Format>::random(columns, length, random);
  const AlignedBuffer packed = pack(w, columns);
  auto memory = AlignedBuffer::allocate(ops::ZeroRow::bytes_needed(length) + kAlignment);
  REQUIRE(memory.has_value());
  std::memset(memory->data(), 0x55, memory->size());
  const auto all = memory->bytes();
  const auto input = ops::ZeroRow::over(all.first(all.size() - kAlignment), length);
  CHECK(all[all.size() - kAlignment] == std::byte{0x55});
  Output out(1, columns);
  InlineExecutor here;
  ops::matmul(here, input, quant::PackedMatrix<Format>{packed.data(), columns, length},
              MatrixView<float>(out.data(), {1, columns}, {out.stride(), 1}));
  int count = out.n_guard_faults();
  for (Index i = 0; i < columns; ++i) count += out(0, i) != 0.0f;
  return count;
}

}  // namespace

TEST_CASE("a row of zeros stands for activations of every form") {
  for_each_target([&](simd::Target) {
    for (const Index length : {256, 512, 2304}) {
      CAPTURE(length);
      CHECK(count_nonzero<quant::F32>(33, length) == 0);
      CHECK(count_nonzero<quant::Q4_0>(33, length) == 0);
      CHECK(count_nonzero<quant::Q8_0>(33, length) == 0);
      CHECK(count_nonzero<quant::Q6_K>(33, length) == 0);
    }
    CHECK(count_nonzero<quant::F32>(33, 7) == 0);
    CHECK(count_nonzero<quant::Q4_0>(33, 39) == 0);
  });
}

TEST_CASE("8 bits with one scale per row of weights and of activations") {
  for_each_target([&](simd::Target) {
    const double ratio =
        measure<quant::I8Channel, ActivationScales::per_block, ops::QuantizedRows<0>>(
            [](Executor& here, MatrixView<const float> x, const ops::QuantizedRows<0>& rows) {
              ops::quantize_rows(here, x, rows);
              return ops::matmul_input(rows);
            });
    CHECK(ratio == doctest::Approx(42.5).epsilon(0.01));
  });
}

// Rounding a significand of 8 bits in [1, 2) has a variance of 2^-14 / 12. The mean square of a
// normally distributed number is 1.84 of that of its power of two: 10 log10(12 * 2^14 * 1.84) =
// 55.6 dB.
TEST_CASE("activations rounded to bf16") {
  bool any = false;
  for_each_target([&](simd::Target) {
    if (!ops::takes_rounded_rows()) return;
    any = true;
    const double ratio = measure<quant::BF16, ActivationScales::per_block, ops::RoundedRows>(
        [](Executor& here, MatrixView<const float> x, const ops::RoundedRows& rows) {
          ops::round_rows(here, x, rows);
          return rows.input();
        });
    CHECK(ratio == doctest::Approx(55.6).epsilon(0.01));
  });
  if (!any) MESSAGE("no target here multiplies bf16 as one operation: not tested");
}

}  // namespace matmul_input_test
