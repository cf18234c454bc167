// SPDX-License-Identifier: Apache-2.0
#include "nibble/quant/channel.hpp"

#include <cmath>
#include <cstring>
#include <limits>

#include "doctest/doctest.h"
#include "oracle.hpp"

namespace channel_test {
namespace {

using namespace nibble::quant;

// Both formats round to nearest, over a range that ends at most half a step from the extreme
// weights:
//   |x - weight| <= (1/2 + 2^-13) scale
// where 2^-13 covers x / scale (at most 255) and the product, each rounded to 24 bits.
template <class F>
bool within_bounds(typename F::Header header, std::span<const float> x,
                   std::span<const typename F::Code> codes) {
  for (std::size_t i = 0; i < x.size(); ++i) {
    double level = codes[i];
    if constexpr (std::is_same_v<F, U8Affine>) level -= header.zero_point;
    const double error = std::abs(double{x[i]} - double{header.scale} * level);
    if (!(error <= (0.5 + 0x1p-13) * double{header.scale})) return false;
  }
  return true;
}

template <class F>
std::vector<typename F::Code> codes_of(typename F::Header header, std::span<const float> x) {
  std::vector<typename F::Code> codes(x.size());
  quantize<F>(header, x, codes);
  return codes;
}

bool same_bits(float a, float b) { return std::memcmp(&a, &b, sizeof(float)) == 0; }

}  // namespace

TEST_CASE("symmetric channel by hand") {
  const float x[] = {-127.0f, 63.5f, 0.5f, -0.5f, 0.49f, 0.0f, 127.0f};
  const auto header = fit<I8Channel>(x);
  CHECK(header.scale == 1.0f);
  const auto codes = codes_of<I8Channel>(header, x);
  CHECK(codes == std::vector<std::int8_t>{-127, 64, 1, -1, 0, 0, 127});
}

TEST_CASE("affine channel by hand") {
  const float x[] = {-1.0f, 0.0f, 0.25f, 4.0f, 1.5f, 2.0f};  // scale 5 / 255, zero at 51
  const auto header = fit<U8Affine>(x);
  CHECK(header.scale == 5.0f / 255.0f);
  CHECK(header.zero_point == 51);
  const auto codes = codes_of<U8Affine>(header, x);
  CHECK(codes == std::vector<std::uint8_t>{0, 51, 64, 255, 128, 153});
}

TEST_CASE("the affine range always includes zero") {
  const float positive[] = {3.0f, 4.0f, 5.1f};
  const auto above = fit<U8Affine>(positive);
  CHECK(above.zero_point == 0);
  CHECK(above.scale == 5.1f / 255.0f);
  const float negative[] = {-3.0f, -4.0f, -5.1f};
  CHECK(fit<U8Affine>(negative).zero_point == 255);
  CHECK(weight_of(fit<U8Affine>(negative), 255) == 0.0f);
}

TEST_CASE_TEMPLATE("channel errors stay within half a step", F, I8Channel, U8Affine) {
  for (const float sigma : {1.0f, 0.02f, 1e5f, 1e-12f, 1e-30f, 1e30f}) {
    for (const float shift : {0.0f, 2.0f, -0.7f}) {
      CAPTURE(sigma);
      auto x = test::normal_row(1000, sigma, 77);
      for (float& v : x) v += shift * sigma;
      x[10] = 0.0f;
      const auto header = fit<F>(x);
      auto codes = codes_of<F>(header, x);
      CHECK(within_bounds<F>(header, x, codes));
      CHECK(weight_of(header, codes[10]) == 0.0f);
      std::vector<float> y(x.size());
      dequantize<F>(header, codes, y);
      for (std::size_t i = 0; i < y.size(); i += 37) {
        CHECK(same_bits(y[i], weight_of(header, codes[i])));
      }

      auto tampered = header;
      tampered.scale *= 1.01f;
      CHECK(!within_bounds<F>(tampered, x, codes));
      codes[500] = static_cast<typename F::Code>(codes[500] ^ 2);
      CHECK(!within_bounds<F>(header, x, codes));
    }
  }
}

TEST_CASE("I8 codes never are -128, and the extremes reach 127") {
  const auto x = test::normal_row(4096, 0.3f, 5);
  const auto codes = codes_of<I8Channel>(fit<I8Channel>(x), x);
  const auto [low, high] = std::minmax_element(codes.begin(), codes.end());
  CHECK(*low >= -127);
  CHECK(std::max(-*low, int{*high}) == 127);
  CHECK(code_of(I8Channel::Header{1.0f}, -1e9f) == -127);
  CHECK(code_of(U8Affine::Header{1.0f, 3}, -1e9f) == 0);
  CHECK(code_of(U8Affine::Header{1.0f, 3}, 1e9f) == 255);
}

TEST_CASE("the table equals the formula bit for bit") {
  for (const float scale : {0.0f, 1.0f, 5.0f / 255.0f, 0x1.fffffep-3f, 1e-42f, 1e30f}) {
    for (const int zero_point : {0, 1, 51, 128, 255}) {
      const U8Affine::Header header{scale, static_cast<std::uint8_t>(zero_point)};
      const AffineTable table(header);
      std::vector<std::uint8_t> codes(256);
      int n_different = 0;
      for (int code = 0; code < 256; ++code) {
        const auto c = static_cast<std::uint8_t>(code);
        codes[c] = c;
        n_different += !same_bits(table[c], weight_of(header, c));
        n_different += table[c] != static_cast<float>(double{scale} * (code - zero_point));
      }
      CHECK(table[static_cast<std::uint8_t>(zero_point)] == 0.0f);
      std::vector<float> by_table(256), by_formula(256);
      table.dequantize(codes, by_table);
      dequantize<U8Affine>(header, codes, by_formula);
      CHECK(n_different == 0);
      CHECK(std::memcmp(by_table.data(), by_formula.data(), 256 * sizeof(float)) == 0);
    }
  }
  CHECK(reinterpret_cast<std::uintptr_t>(AffineTable(U8Affine::Header{}).data()) % 64 == 0);
}

TEST_CASE_TEMPLATE("empty, zero, tiny and non-finite channels", F, I8Channel, U8Affine) {
  CHECK(fit<F>({}).scale == 0.0f);
  const float zeros[] = {0.0f, -0.0f, 0.0f};
  const auto none = fit<F>(zeros);
  CHECK(none.scale == 0.0f);
  for (const auto code : codes_of<F>(none, zeros)) CHECK(weight_of(none, code) == 0.0f);

  constexpr float kInf = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  const float odd[] = {kNan, kInf, -kInf, 1.0f, -kNan, std::numeric_limits<float>::max()};
  const auto header = fit<F>(odd);
  const auto codes = codes_of<F>(header, odd);
  CHECK(std::isfinite(header.scale));
  CHECK(weight_of(header, codes[0]) == 0.0f);
  CHECK(weight_of(header, codes[1]) == doctest::Approx(0x1p120f).epsilon(0.01));
  CHECK(weight_of(header, codes[2]) == doctest::Approx(-0x1p120f).epsilon(0.01));
  CHECK(codes[5] == codes[1]);

  const float tiny[] = {0x1p-149f, -0x1p-140f, 0x1p-130f};
  const auto small = fit<F>(tiny);
  for (const auto code : codes_of<F>(small, tiny)) {
    CHECK(std::abs(weight_of(small, code)) <= 0x1p-129f);
  }
  // A header from elsewhere may contain any values.
  for (const float scale : {kNan, kInf, -kInf, -1.0f}) {
    typename F::Header strange{};
    strange.scale = scale;
    for (const float v : odd) CHECK(code_of(strange, v) == 0);
  }
}

}  // namespace channel_test
