// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/quantize_rows.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "doctest/doctest.h"
#include "kernels/each_target.hpp"
#include "nibble/ops/quantize_rows.hpp"

namespace quantize_rows_test {

using namespace nibble;
using kernels::QuantizeRow;

namespace {

// The output of one row, with guard values after each array.
template <int kBlock>
struct Row {
  std::vector<std::int8_t> codes;
  std::vector<float> scales;
  std::vector<std::int32_t> code_sums;
  std::vector<std::int32_t> half_sums;  // only of blocks of 32

  explicit Row(Index k)
      : codes(static_cast<std::size_t>(QuantizeRow<kBlock>::padded(k)) + 1, std::int8_t{99}),
        scales(static_cast<std::size_t>(QuantizeRow<kBlock>::n_blocks(k)) + 1, 99.0f),
        code_sums(scales.size(), 99),
        half_sums(scales.size(), 99) {}
  kernels::QuantizedRow out() {
    return {codes.data(), scales.data(), code_sums.data(), half_sums.data()};
  }
  bool guards_hold() const {
    return codes.back() == 99 && scales.back() == 99.0f && code_sums.back() == 99 &&
           half_sums.back() == 99;
  }
};

template <int kBlock>
Row<kBlock> quantize(const std::vector<float>& x) {
  // A copy at an address that is a multiple of only 4 bytes, in a heap block that ends with the
  // row.
  std::vector<float> moved(x.size() + 1);
  std::copy(x.begin(), x.end(), moved.begin() + 1);
  Row<kBlock> row(static_cast<Index>(x.size()));
  simd::kernel<QuantizeRow<kBlock>>()(moved.data() + 1, static_cast<Index>(x.size()), row.out());
  return row;
}

// How many rules of the contract the row breaks. Computed independently of the kernel: in double,
// without a reciprocal. With u = 2^-24: scale = A/127 (1 + e1), inverse = 127/A (1 + e2) and p = x
// * inverse * (1 + e3), |e| <= u. The code q is within 1/2 of p, and x = scale * p * (1 + e), |e| <
// 4u, |p| <= 127(1+4u): |x - scale * q| <= scale * (1/2 + 127 * 2^-22).
template <int kBlock>
int count_faults(const std::vector<float>& x, const Row<kBlock>& row) {
  const std::size_t length = kBlock == 0 ? (x.size() + 31) / 32 * 32 : std::size_t{kBlock};
  int faults = row.guards_hold() ? 0 : 1;
  for (std::size_t first = 0, block = 0; first < x.size(); first += length, ++block) {
    double absmax = 0;
    for (std::size_t i = first; i < std::min(first + length, x.size()); ++i) {
      absmax = std::max(absmax, std::fabs(double{x[i]}));
    }
    const double scale = row.scales[block];
    if (scale != static_cast<float>(absmax / 127)) ++faults;
    std::int64_t sum = 0;
    int halves[2] = {};
    for (std::size_t i = first; i < first + length; ++i) {
      const int code = row.codes[i];
      sum += code;
      halves[i / 16 % 2] += code;
      if (i >= x.size()) {
        if (code != 0) ++faults;
        continue;
      }
      if (code < -127) ++faults;
      if (std::fabs(x[i] - scale * code) > scale * (0.5 + 127 * 0x1p-22)) ++faults;
      if (absmax > 0 && std::fabs(double{x[i]}) == absmax && code != (x[i] > 0 ? 127 : -127)) {
        ++faults;
      }
    }
    if (row.code_sums[block] != -8 * sum) ++faults;
    const int both = row.half_sums[block];
    const bool is_right =
        static_cast<std::int16_t>(both & 0xFFFF) == -8 * halves[0] && both >> 16 == -8 * halves[1];
    if (kBlock == 32 ? !is_right : both != 99) ++faults;
  }
  return faults;
}

std::vector<float> random_row(std::size_t k, std::mt19937& random) {
  std::normal_distribution<float> normal(0.3f, 2.0f);
  std::vector<float> x(k);
  for (float& v : x) v = normal(random);
  return x;
}

template <int kBlock>
void check_lengths() {
  std::mt19937 random(7);
  for (std::size_t k = 1; k <= 2 * 4 * 128 + 33; k += k < 300 ? 1 : 29) {
    const auto x = random_row(k, random);
    CAPTURE(k);
    CHECK(count_faults(x, quantize<kBlock>(x)) == 0);
  }
}

template <int kBlock>
void check_special() {
  constexpr std::size_t kLength = kBlock == 0 ? 1000 : kBlock;
  const float tiny = 127.0f * std::numeric_limits<float>::min();
  std::mt19937 random(8);

  // Magnitudes from the smallest that counts to the largest float.
  for (const float factor : {tiny, 1e-30f, 1e-3f, 1e30f, std::numeric_limits<float>::max()}) {
    auto x = random_row(5 * kLength, random);
    for (std::size_t first = 0; first < x.size(); first += kLength) {
      float absmax = 0;
      for (std::size_t i = first; i < first + kLength; ++i) {
        absmax = std::max(absmax, std::fabs(x[i]));
      }
      for (std::size_t i = first; i < first + kLength; ++i) x[i] = x[i] / absmax * factor;
    }
    CAPTURE(factor);
    CHECK(count_faults(x, quantize<kBlock>(x)) == 0);
  }

  // Zeros, and values that are too small to have a scale.
  for (const float value :
       {0.0f, -0.0f, std::nextafter(tiny, 0.0f), std::numeric_limits<float>::denorm_min()}) {
    const std::vector<float> x(3 * kLength + 1, value);
    const auto row = quantize<kBlock>(x);
    CHECK(row.guards_hold());
    for (std::size_t i = 0; i + 1 < row.codes.size(); ++i) REQUIRE(row.codes[i] == 0);
    for (std::size_t i = 0; i + 1 < row.scales.size(); ++i) {
      REQUIRE(row.scales[i] == 0.0f);
      REQUIRE(row.code_sums[i] == 0);
    }
  }

  // All at +-127: the largest sums.
  for (const float value : {3.0f, -3.0f}) {
    const std::vector<float> x(4 * kLength, value);
    const auto row = quantize<kBlock>(x);
    CHECK(count_faults(x, row) == 0);
    const int length = kBlock == 0 ? static_cast<int>(x.size()) : kBlock;
    CHECK(row.code_sums[0] == (value > 0 ? -8 : 8) * 127 * length);
  }

  // NaN and infinity: the fault shows in the scale of the block and nowhere else.
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::quiet_NaN(),
        std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
    for (const std::size_t where : {std::size_t{0}, kLength + 5, 4 * kLength + 3, 5 * kLength}) {
      auto x = random_row(5 * kLength + 2, random);
      x[where] = bad;
      const auto row = quantize<kBlock>(x);
      CHECK(row.guards_hold());
      const std::size_t bad_block = kBlock == 0 ? 0 : where / kLength;
      const std::size_t length = kBlock == 0 ? row.codes.size() - 1 : kLength;
      for (std::size_t block = 0; block + 1 < row.scales.size(); ++block) {
        REQUIRE(std::isfinite(row.scales[block]) == (block != bad_block));
      }
      CHECK(row.code_sums[bad_block] == 0);
      if (kBlock == 32) CHECK(row.half_sums[bad_block] == 0);
      for (std::size_t i = 0; i < length; ++i) REQUIRE(row.codes[bad_block * length + i] == 0);
      if (kBlock == 0) continue;
      x[where] = 0;  // the other blocks are the same without it
      const auto clean = quantize<kBlock>(x);
      for (std::size_t i = 0; i + 1 < clean.codes.size(); ++i) {
        if (i / kLength != bad_block) REQUIRE(row.codes[i] == clean.codes[i]);
      }
    }
  }
}

}  // namespace

TEST_CASE("quantized rows keep their contract at every length") {
  nibble_test::for_each_target([](simd::Target) {
    check_lengths<32>();
    check_lengths<64>();
    check_lengths<128>();
    check_lengths<0>();
  });
}

TEST_CASE("quantized rows of extreme, tiny, zero and non-finite values") {
  nibble_test::for_each_target([](simd::Target) {
    check_special<32>();
    check_special<64>();
    check_special<128>();
    check_special<0>();
  });
}

TEST_CASE("a value halfway between two codes goes to the even one") {
  nibble_test::for_each_target([](simd::Target) {
    std::vector<float> x(32, 0.0f);
    x[0] = 127.0f;  // the scale is 1
    for (int i = 1; i < 32; ++i) x[static_cast<std::size_t>(i)] = static_cast<float>(i - 16) + 0.5f;
    const auto row = quantize<32>(x);
    for (std::size_t i = 1; i < 32; ++i) {
      CHECK(row.codes[i] == static_cast<int>(std::nearbyint(double{x[i]})));
    }
  });
}

TEST_CASE("every target gives the same bytes") {
  std::mt19937 random(9);
  const auto x = random_row(777, random);
  std::vector<Row<64>> rows;
  nibble_test::for_each_target([&](simd::Target) { rows.push_back(quantize<64>(x)); });
  for (const auto& row : rows) {
    CHECK(row.codes == rows[0].codes);
    CHECK(row.scales == rows[0].scales);
    CHECK(row.code_sums == rows[0].code_sums);
  }
}

namespace {

// Claims to have three workers and runs the tasks backwards.
class Backwards final : public Executor {
 public:
  Index n_workers() const noexcept override { return 3; }
  void parallel_for(Index n_tasks, Task task) noexcept override {
    n_calls += 1;
    for (Index i = n_tasks; i-- > 0;) task(i, i);
  }
  int n_calls = 0;
};

template <int kBlock>
void check_matrix(Index m, Index k) {
  using Rows = ops::QuantizedRows<kBlock>;
  std::mt19937 random(11);
  const Index stride = k + 3;
  const auto x = random_row(static_cast<std::size_t>(m * stride), random);
  auto memory = AlignedBuffer::allocate(Rows::bytes_needed(m, k));
  REQUIRE(memory);
  const auto out = Rows::over(memory->bytes(), m, k);
  Backwards executor;
  ops::quantize_rows(executor, MatrixView<const float>(x.data(), {m, k}, {stride, 1}), out);
  CHECK(executor.n_calls == (m * k >= 2 << 14 ? 1 : 0));
  for (Index row = 0; row < m; ++row) {
    const auto first = x.begin() + row * stride;
    const auto expected = quantize<kBlock>(std::vector<float>(first, first + k));
    const auto got = out[row];
    REQUIRE(reinterpret_cast<std::uintptr_t>(got.codes) % kAlignment == 0);
    REQUIRE(std::equal(expected.codes.begin(), expected.codes.end() - 1, got.codes));
    REQUIRE(std::equal(expected.scales.begin(), expected.scales.end() - 1, got.scales));
    REQUIRE(std::equal(expected.code_sums.begin(), expected.code_sums.end() - 1, got.code_sums));
    if constexpr (kBlock == 32) {
      REQUIRE(std::equal(expected.half_sums.begin(), expected.half_sums.end() - 1, got.half_sums));
    } else {
      REQUIRE(got.half_sums == nullptr);
    }
  }
  // The parts end where their memory ends.
  CHECK(static_cast<std::size_t>(reinterpret_cast<std::byte*>(out[m - 1].code_sums) -
                                 memory->data()) < memory->size());
}

}  // namespace

TEST_CASE("a matrix is quantized row by row, whatever the split") {
  check_matrix<32>(1, 1);
  check_matrix<32>(5, 100);
  check_matrix<64>(70, 577);
  check_matrix<128>(7, 8192);
  check_matrix<0>(33, 1025);
  using Rows = ops::QuantizedRows<32>;
  static_assert(Rows::bytes_needed(4, 100) == 4 * 128 + 64 + 2 * 64);  // a constant expression
}

TEST_CASE("the check of quantized rows sees small faults") {
  std::mt19937 random(10);
  const auto x = random_row(300, random);
  const auto good = quantize<32>(x);
  REQUIRE(count_faults(x, good) == 0);
  auto row = good;
  row.scales[3] *= 1.01f;
  CHECK(count_faults(x, row) > 0);
  row = good;
  for (std::size_t i = 296; i < 300; ++i) row.codes[i] = 0;  // a dropped tail
  CHECK(count_faults(x, row) > 0);
  row = good;
  row.code_sums[2] += 8;
  CHECK(count_faults(x, row) > 0);
  row = good;
  row.half_sums[2] += 8 * 0x10000;
  CHECK(count_faults(x, row) > 0);
  row = good;
  row.codes[300] = 1;
  CHECK(count_faults(x, row) > 0);
  for (std::size_t i = 0; i < 300; ++i) {  // any code off by one
    row = good;
    row.codes[i] = static_cast<std::int8_t>(row.codes[i] + (row.codes[i] > 0 ? -1 : 1));
    const int more = -8 * (row.codes[i] - good.codes[i]);
    row.code_sums[i / 32] += more;
    row.half_sums[i / 32] += i / 16 % 2 == 0 ? more : more * 0x10000;
    CHECK(count_faults(x, row) > 0);
  }
}

}  // namespace quantize_rows_test
