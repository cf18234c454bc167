// SPDX-License-Identifier: Apache-2.0
//
// Codes with a scale that is known before: against their definition in double, bit for bit; as the
// end of a norm; through a table.
#include "nibble/ops/quantize_static.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "doctest/doctest.h"
#include "kernels/each_target.hpp"

namespace quantize_static_test {

using namespace nibble;
using quant::StaticScale;

namespace {

constexpr StaticScale kScales[] = {{0.013f, 0, false},   {0.013f, 0, true},   {0.013f, 255, true},
                                   {0.0217f, 128, true}, {0.0217f, 77, true}, {1.0f, 1, true},
                                   {3.7e-9f, 0, false},  {2.9e12f, 200, true}};

// One row of output, with guards.
struct Row {
  std::vector<std::int8_t> codes;
  std::vector<float> scales{99.0f, 99.0f};
  std::vector<std::int32_t> code_sums{99, 99};

  explicit Row(std::size_t k) : codes((k + 31) / 32 * 32 + 1, std::int8_t{99}) {}
  kernels::QuantizedRow out() { return {codes.data(), scales.data(), code_sums.data()}; }
  bool operator==(const Row&) const = default;
};

// A heap block that ends with the row and starts at no special address.
std::vector<float> moved(const std::vector<float>& x) {
  std::vector<float> copy(x.size() + 1);
  std::copy(x.begin(), x.end(), copy.begin() + 1);
  return copy;
}

Row quantize(const std::vector<float>& x, const StaticScale& s) {
  const auto copy = moved(x);
  Row row(x.size());
  simd::kernel<kernels::QuantizeRowStatic>()(copy.data() + 1, static_cast<Index>(x.size()), s,
                                             row.out());
  return row;
}

// The code as the contract defines it, in double: products of two floats are exact there.
int expected_code(double x, const StaticScale& s) {
  const float inverse = static_cast<float>(1.0 / double{s.scale});
  const double steps = std::nearbyint(double{static_cast<float>(x * double{inverse})});
  const double low = s.is_unsigned ? -128 : -127;
  const double zero = s.is_unsigned ? s.zero_point - 128.0 : 0.0;
  return static_cast<int>(std::fmin(std::fmax(steps + zero, low), 127));
}

int count_faults(const std::vector<float>& x, const StaticScale& s, const Row& row) {
  int faults = 0;
  faults += row.codes.back() != 99 || row.scales[1] != 99.0f || row.code_sums[1] != 99;
  faults += row.scales[0] != s.scale;
  const double zero = s.is_unsigned ? s.zero_point - 128.0 : 0.0;
  std::int64_t sum = 0;
  for (std::size_t i = 0; i + 1 < row.codes.size(); ++i) {
    const int code = row.codes[i];
    sum += code;
    if (i >= x.size()) {
      faults += code != 0;
      continue;
    }
    faults += code != expected_code(double{x[i]}, s);
    // What the code means, without the definition's inverse.
    const bool is_inside = code > (s.is_unsigned ? -128 : -127) && code < 127;
    const double error = std::fabs(double{x[i]} - double{s.scale} * (code - zero));
    faults += is_inside && error > double{s.scale} * (0.5 + 255 * 0x1p-23);
  }
  return faults + (row.code_sums[0] != -8 * sum);
}

// Values around the range of `s`: most inside, some beyond both ends.
std::vector<float> random_row(std::size_t k, const StaticScale& s, std::mt19937& random) {
  const double zero = s.is_unsigned ? s.zero_point : 127;
  std::uniform_real_distribution<double> codes(-20, 275);
  std::vector<float> x(k);
  for (float& v : x) v = static_cast<float>(double{s.scale} * (codes(random) - zero));
  return x;
}

}  // namespace

TEST_CASE("codes with a known scale are those of their definition, at every length") {
  nibble_test::for_each_target([](simd::Target) {
    std::mt19937 random(1);
    for (const StaticScale& s : kScales) {
      REQUIRE(quant::is_usable(s));
      for (std::size_t k = 1; k <= 700; k += k < 200 ? 1 : 37) {
        const auto x = random_row(k, s, random);
        CAPTURE(k);
        CAPTURE(s.zero_point);
        REQUIRE(count_faults(x, s, quantize(x, s)) == 0);
      }
    }
  });
}

TEST_CASE("known scales: ties go to even multiples, zero to its code, what is beyond saturates") {
  nibble_test::for_each_target([](simd::Target) {
    for (const StaticScale& s : {StaticScale{0.5f, 0, false}, StaticScale{0.5f, 101, true}}) {
      const int zero = s.stored_zero();
      const float max = std::numeric_limits<float>::max();
      const std::vector<float> x = {0.25f, 0.75f, -0.25f, -0.75f, 1.25f,
                                    0.0f,  -0.0f, max,    -max,   1e-45f};
      const Row row = quantize(x, s);
      const int expected[] = {0, 2, 0, -2, 2, 0, 0};
      for (std::size_t i = 0; i < std::size(expected); ++i)
        CHECK(row.codes[i] == zero + expected[i]);
      CHECK(row.codes[7] == 127);
      CHECK(row.codes[8] == (s.is_unsigned ? -128 : -127));
      CHECK(row.codes[9] == zero);
      CHECK(count_faults(x, s, row) == 0);
    }
  });
}

TEST_CASE("known scales: a value that is not finite shows in the scale of its row") {
  nibble_test::for_each_target([](simd::Target) {
    std::mt19937 random(2);
    const StaticScale s = kScales[3];
    for (const float bad : {NAN, -NAN, INFINITY, -INFINITY}) {
      for (const std::size_t k : {1u, 31u, 64u, 65u, 200u}) {
        for (const std::size_t at : {std::size_t{0}, k / 2, k - 1}) {
          auto x = random_row(k, s, random);
          x[at] = bad;
          const Row row = quantize(x, s);
          CHECK(std::isnan(row.scales[0]));
          CHECK(row.code_sums[0] == 0);
          int n_set = 0;
          for (std::size_t i = 0; i + 1 < row.codes.size(); ++i) n_set += row.codes[i] != 0;
          CHECK(n_set == 0);
          CHECK(row.codes.back() == 99);
        }
      }
    }
  });
}

TEST_CASE("one value gets the code that a row gets") {
  std::mt19937 random(3);
  for (const StaticScale& s : kScales) {
    const auto x = random_row(1000, s, random);
    const Row row = quantize(x, s);
    for (std::size_t i = 0; i < x.size(); ++i) {
      REQUIRE(int{quant::stored_code_of(s, x[i])} == int{row.codes[i]});
    }
  }
}

// ---- Norms -------------------------------------------------------------------------------------

namespace {

struct NormRow {
  std::vector<float> x, weight, bias;

  NormRow(std::size_t k, std::mt19937& random) : x(k), weight(k), bias(k) {
    std::normal_distribution<float> normal(0.4f, 1.5f);
    for (std::vector<float>* values : {&x, &weight, &bias}) {
      for (float& v : *values) v = normal(random);
    }
  }
  kernels::NormArgs args(bool has_weight, bool has_bias) const {
    kernels::NormArgs a;
    a.x = x.data();
    a.k = static_cast<Index>(x.size());
    a.eps = 1e-5f;
    if (has_weight) a.weight = weight.data();
    if (has_bias) a.bias = bias.data();
    return a;
  }
};

}  // namespace

TEST_CASE("norms give the codes of their floats, bit for bit") {
  const StaticScale symmetric{0.03f, 0, false}, affine{0.025f, 93, true};
  nibble_test::for_each_target([&](simd::Target) {
    std::mt19937 random(4);
    for (std::size_t k = 1; k <= 500; k += k < 140 ? 1 : 41) {
      const NormRow in(k, random);
      for (const StaticScale& s : {symmetric, affine}) {
        for (const bool has_weight : {true, false}) {
          CAPTURE(k);
          std::vector<float> normed(k);
          Row fused(k);
          const auto args = in.args(has_weight, has_weight);
          simd::kernel<kernels::RmsNorm<>>()(args, normed.data());
          simd::kernel<kernels::RmsNormStatic>()(args, s, fused.out());
          REQUIRE(fused == quantize(normed, s));
          Row layer(k);
          simd::kernel<kernels::LayerNorm<>>()(args, normed.data());
          simd::kernel<kernels::LayerNormStatic>()(args, s, layer.out());
          REQUIRE(layer == quantize(normed, s));
          // Against the norm in double: within rounding, codes are the same or next to it.
          double mean = 0, variance = 0;
          for (const float v : in.x) mean += double{v} / static_cast<double>(k);
          for (const float v : in.x) variance += std::pow(v - mean, 2) / static_cast<double>(k);
          int far = 0;
          for (std::size_t i = 0; i < k; ++i) {
            double y = (in.x[i] - mean) / std::sqrt(variance + 1e-5);
            if (has_weight) y = y * double{in.weight[i]} + double{in.bias[i]};
            far += std::abs(expected_code(y, s) - layer.codes[i]) > 1;
          }
          REQUIRE(far == 0);
        }
      }
    }
  });
}

TEST_CASE("a norm of rows that are not finite shows in the scale") {
  nibble_test::for_each_target([](simd::Target) {
    std::mt19937 random(5);
    NormRow in(77, random);
    in.x[50] = NAN;
    Row rms(77), layer(77);
    simd::kernel<kernels::RmsNormStatic>()(in.args(true, false), kScales[0], rms.out());
    simd::kernel<kernels::LayerNormStatic>()(in.args(true, true), kScales[0], layer.out());
    CHECK(std::isnan(rms.scales[0]));
    CHECK(std::isnan(layer.scales[0]));
  });
}

// ---- Tables ------------------------------------------------------------------------------------

namespace {

double silu(double x) { return x / (1 + std::exp(-x)); }
double gelu(double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))); }

// Each entry, relative to the function in double.
template <class F>
int count_faults(const quant::CodeTable& table, const F& f, const StaticScale& from,
                 const StaticScale& to) {
  const double zero_from = from.is_unsigned ? from.zero_point - 128.0 : 0.0;
  const double zero_to = to.is_unsigned ? to.zero_point - 128.0 : 0.0;
  const double low = to.is_unsigned ? -128 : -127;
  int faults = 0;
  for (int code = -128; code <= 127; ++code) {
    const double exact = f(double{from.scale} * (code - zero_from)) / double{to.scale} + zero_to;
    const double clipped = std::fmin(std::fmax(exact, low), 127.0);
    const double got = table[static_cast<std::int8_t>(code)];
    faults += std::fabs(got - clipped) > 0.5 + 256 * 0x1p-21;
  }
  return faults;
}

}  // namespace

TEST_CASE("a table has the codes nearest to its function in double") {
  for (const StaticScale& from : {StaticScale{0.05f, 0, false}, StaticScale{0.04f, 120, true}}) {
    for (const StaticScale& to : {StaticScale{0.05f, 0, false}, StaticScale{0.021f, 14, true}}) {
      CHECK(count_faults(quant::CodeTable(silu, from, to), silu, from, to) == 0);
      CHECK(count_faults(quant::CodeTable(gelu, from, to), gelu, from, to) == 0);
      // The check sees another scale, another zero point and another function.
      StaticScale other = to;
      other.scale *= 1.01f;
      CHECK(count_faults(quant::CodeTable(silu, from, other), silu, from, to) > 0);
      other = from;
      if (from.is_unsigned) {
        other.zero_point += 1;
        CHECK(count_faults(quant::CodeTable(silu, other, to), silu, from, to) > 0);
      }
      CHECK(count_faults(quant::CodeTable(gelu, from, to), silu, from, to) > 0);
    }
  }
}

TEST_CASE("rows through a table") {
  const StaticScale from{0.04f, 120, true}, to{0.021f, 14, true};
  const quant::CodeTable table(silu, from, to);
  InlineExecutor executor;
  nibble_test::for_each_target([&](simd::Target) {
    std::mt19937 random(6);
    for (const Index k : {1, 31, 32, 33, 100, 511}) {
      constexpr Index m = 3;
      using Rows = ops::QuantizedRows<0>;
      auto memory = AlignedBuffer::allocate(2 * Rows::bytes_needed(m, k));
      REQUIRE(memory);
      const auto half = memory->bytes().size() / 2;
      const ops::StaticRows in{Rows::over(memory->bytes().first(half), m, k), from};
      const ops::StaticRows out{Rows::over(memory->bytes().subspan(half), m, k), to};
      auto x = random_row(static_cast<std::size_t>(m * k), from, random);
      x[static_cast<std::size_t>(k)] = INFINITY;  // in row 1
      ops::quantize_rows(executor, MatrixView<const float>(x.data(), m, k), in);
      ops::map_codes(executor, table, in, out);
      for (Index row = 0; row < m; ++row) {
        const auto got = out.rows[row], had = in.rows[row];
        CHECK(std::isnan(*got.scales) == (row == 1));
        if (row != 1) CHECK(*got.scales == to.scale);
        int faults = 0, sum = 0;
        for (Index i = 0; i < Rows::padded(k); ++i) {
          faults += got.codes[i] != (i < k ? table[had.codes[i]] : 0);
          sum += got.codes[i];
        }
        CHECK(faults == 0);
        CHECK(*got.code_sums == -8 * sum);
      }
      // In place.
      const ops::StaticRows same{in.rows, to};
      ops::map_codes(executor, table, in, same);
      for (Index row = 0; row < m; ++row) {
        CHECK(std::memcmp(same.rows[row].codes, out.rows[row].codes,
                          static_cast<std::size_t>(Rows::padded(k))) == 0);
      }
    }
  });
}

// ---- The check itself --------------------------------------------------------------------------

TEST_CASE("the check of codes with a known scale sees small faults") {
  std::mt19937 random(7);
  const StaticScale s = kScales[3];
  const auto x = random_row(300, s, random);
  const Row good = quantize(x, s);
  REQUIRE(count_faults(x, s, good) == 0);
  StaticScale other = s;
  other.scale *= 1.01f;
  CHECK(count_faults(x, s, quantize(x, other)) > 50);
  other = s;
  other.zero_point -= 1;
  CHECK(count_faults(x, s, quantize(x, other)) > 250);
  Row row = good;
  for (std::size_t i = 288; i < 300; ++i) row.codes[i] = 0;  // a dropped tail
  CHECK(count_faults(x, s, row) > 0);
  row = good;
  row.code_sums[0] += 8;
  CHECK(count_faults(x, s, row) == 1);
  row = good;
  row.codes[301] = 1;
  row.code_sums[0] -= 8;
  CHECK(count_faults(x, s, row) == 1);
}

}  // namespace quantize_static_test
