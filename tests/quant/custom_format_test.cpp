// SPDX-License-Identifier: Apache-2.0
//
// Formats of a user: one of our family with other parameters, and a new type with its own rule.
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/quant/format.hpp"
#include "oracle.hpp"

namespace custom_format_test {

namespace elsewhere {

using Wide4 = nibble::quant::Blocks<4, 64, nibble::bf16, nibble::quant::ZeroPoint::symmetric>;

// Blocks of 16 with a power of two as scale: quantizing needs no division, dequantizing only a
// shift.
struct PowerOfTwo {
  struct Block {
    std::int8_t exponent;
    std::array<std::uint8_t, 16> codes;
  };
  using Scale = std::int8_t;
  static constexpr int kBits = 8;
  static constexpr int kLength = 16;
  static constexpr auto kZeroPoint = nibble::quant::ZeroPoint::symmetric;

  static void quantize(const float* x, Block& out) noexcept {
    float peak = 0.0f;
    for (int i = 0; i < kLength; ++i) peak = std::max(peak, std::abs(x[i]));
    int exponent = -100;
    while (exponent < 100 && std::ldexp(127.0f, exponent) < peak) ++exponent;
    out.exponent = static_cast<std::int8_t>(exponent);
    for (std::size_t i = 0; i < kLength; ++i) {
      const long code = std::lround(std::ldexp(x[i], -exponent));
      out.codes[i] = static_cast<std::uint8_t>(code);
    }
  }
  static void dequantize(const Block& block, float* out) noexcept {
    for (std::size_t i = 0; i < kLength; ++i) {
      out[i] =
          std::ldexp(static_cast<float>(static_cast<std::int8_t>(block.codes[i])), block.exponent);
    }
  }
};

// The same; its rule says what does not fit.
struct Careful : PowerOfTwo {
  static bool quantize(const float* x, Block& out) noexcept {
    PowerOfTwo::quantize(x, out);
    return out.exponent < 100;
  }
};

}  // namespace elsewhere

namespace {

using namespace nibble::quant;

static_assert(BlockFormat<elsewhere::Wide4> && !HasOwnRule<elsewhere::Wide4>);
static_assert(BlockFormat<elsewhere::PowerOfTwo> && HasOwnRule<elsewhere::PowerOfTwo>);
static_assert(!BlockFormat<F32> && !BlockFormat<int> && !BlockFormat<I8Channel>);
static_assert(sizeof(elsewhere::Wide4::Block) == 34);
static_assert(bits_per_weight<elsewhere::Wide4>() == 4.25);
static_assert(bits_per_weight<elsewhere::PowerOfTwo>() == 8.5);

}  // namespace

TEST_CASE("another member of our family works like ours") {
  using F = elsewhere::Wide4;
  const auto x = test::normal_row(1024, 0.4f, 12);
  std::vector<std::byte> row(*row_bytes<F>(x.size()));
  REQUIRE(row.size() == 16 * 34);
  REQUIRE(row_from_f32<F>(x, row));
  std::vector<F::Block> blocks(16);
  std::memcpy(blocks.data(), row.data(), row.size());
  CHECK(test::within_bounds<F>(x, blocks));
  std::vector<float> y(x.size());
  REQUIRE(row_to_f32<F>(row, y));
  for (std::size_t i = 0; i < y.size(); ++i) {
    REQUIRE(y[i] == static_cast<float>(test::weight<F>(blocks[i / 64], static_cast<int>(i % 64))));
  }
}

TEST_CASE("a user's type brings its own rule") {
  using F = elsewhere::PowerOfTwo;
  const auto x = test::normal_row(160, 3.0f, 13);
  std::vector<F::Block> blocks(10);
  quantize_row<F>(x, blocks);
  std::vector<float> y(x.size());
  dequantize_row<F>(blocks, y);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const float step = std::ldexp(1.0f, blocks[i / 16].exponent);
    REQUIRE(std::abs(x[i] - y[i]) <= 0.5f * step);
  }
  // It is also converted in rows of bytes like any other format.
  std::vector<std::byte> row(*row_bytes<F>(x.size()));
  REQUIRE(row_from_f32<F>(x, row));
  CHECK(std::memcmp(row.data(), blocks.data(), row.size()) == 0);
  CHECK(row_bytes<F>(17).error().code == nibble::Errc::invalid_argument);
  // Its rule may say what does not fit.
  auto large = x;
  large[40] = 1e38f;
  CHECK(row_from_f32<F>(large, row));
  CHECK(row_from_f32<elsewhere::Careful>(x, row));
  CHECK(row_from_f32<elsewhere::Careful>(large, row).error().code == nibble::Errc::limit);
}

}  // namespace custom_format_test
