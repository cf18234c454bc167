// SPDX-License-Identifier: Apache-2.0
#include "nibble/core/float16.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "doctest/doctest.h"

namespace float16_test {

using nibble::bf16;
using nibble::f16;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// A 16-bit format by its definition, in double arithmetic, which is exact here.
struct Format {
  int n_mantissa_bits;
  int min_exponent;  // of the smallest normal number
  int max_exponent;  // of the largest finite number
};
constexpr Format kF16{10, -14, 15};
constexpr Format kBf16{7, -126, 127};

double decode(Format format, std::uint16_t bits) {
  const int n = format.n_mantissa_bits;
  const int mantissa = bits & ((1 << n) - 1);
  const int exponent = (bits & 0x7FFF) >> n;
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == (1 << (15 - n)) - 1) return mantissa == 0 ? sign * kInfinity : std::nan("");
  if (exponent == 0) return sign * std::ldexp(mantissa, format.min_exponent - n);
  return sign * std::ldexp(mantissa + (1 << n), exponent - 1 + format.min_exponent - n);
}

// The nearest number of the format, ties to even, as a double.
double nearest(Format format, double x) {
  if (x == 0 || std::isinf(x)) return x;
  const int exponent = std::max(std::ilogb(x), format.min_exponent);
  const int quantum = exponent - format.n_mantissa_bits;
  const double scaled = std::ldexp(std::fabs(x), -quantum);
  double whole = std::floor(scaled);
  const double rest = scaled - whole;
  if (rest > 0.5 || (rest == 0.5 && std::fmod(whole, 2.0) == 1.0)) whole += 1;
  const double value = std::ldexp(whole, quantum);
  return std::copysign(value >= std::ldexp(1.0, format.max_exponent + 1) ? kInfinity : value, x);
}

// Inputs at which rounding changes: every number of the format, the midpoints between neighbours
// and the floats next to them, of both signs; numbers beyond the range; random bits.
std::vector<float> hard_inputs(Format format) {
  std::vector<float> inputs;
  const auto add = [&](double x) {
    const float f = static_cast<float>(x);
    for (const float y : {f, std::nextafterf(f, -HUGE_VALF), std::nextafterf(f, HUGE_VALF)}) {
      inputs.push_back(y);
      inputs.push_back(-y);
    }
  };
  for (std::uint32_t bits = 0; bits < 0x7FFF; ++bits) {
    const double x = decode(format, static_cast<std::uint16_t>(bits));
    if (!std::isfinite(x)) continue;
    add(x);
    double next = decode(format, static_cast<std::uint16_t>(bits + 1));
    if (!std::isfinite(next)) next = std::ldexp(1.0, format.max_exponent + 1);
    add((x + next) / 2);
  }
  for (const float x :
       {0.0f, std::numeric_limits<float>::denorm_min(), std::numeric_limits<float>::min(),
        std::numeric_limits<float>::max(), std::numeric_limits<float>::infinity(), 65504.0f,
        65519.996f, 65520.0f, 65536.0f, 1e30f}) {
    add(static_cast<double>(x));
  }
  std::mt19937 random(7);
  for (int i = 0; i < 500'000; ++i) {
    const float x = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    if (!std::isnan(x)) inputs.push_back(x);
  }
  for (int i = 0; i < 500'000; ++i) {  // most random bits overflow f16: use exponents in its range
    const std::uint32_t u = static_cast<std::uint32_t>(random());
    inputs.push_back(std::bit_cast<float>((u & 0x807FFFFFu) | ((98 + (u >> 23) % 48) << 23)));
  }
  return inputs;
}

// Counts inputs that `convert` (float to bits) does not round to the nearest number.
template <class Convert>
long count_wrong(Format format, const std::vector<float>& inputs, Convert convert) {
  long n_wrong = 0;
  for (const float x : inputs) {
    const double got = decode(format, convert(x));
    const double expected = nearest(format, static_cast<double>(x));
    n_wrong += got != expected || std::signbit(got) != std::signbit(expected);
  }
  return n_wrong;
}

}  // namespace

TEST_CASE("every f16 pattern decodes as defined and survives a round trip") {
  for (std::uint32_t u = 0; u < 0x10000; ++u) {
    const auto bits = static_cast<std::uint16_t>(u);
    const double expected = decode(kF16, bits);
    const float got = to_f32(f16{bits});
    if (std::isnan(expected)) {
      REQUIRE(std::isnan(got));
      // A signalling NaN becomes quiet; sign and payload are kept.
      REQUIRE(nibble::to_f16(got).bits == (bits | 0x0200));
      REQUIRE(std::signbit(got) == ((bits & 0x8000) != 0));
    } else {
      REQUIRE(static_cast<double>(got) == expected);
      REQUIRE(nibble::to_f16(got).bits == bits);  // also -0
    }
  }
}

TEST_CASE("every bf16 pattern decodes as defined and survives a round trip") {
  for (std::uint32_t u = 0; u < 0x10000; ++u) {
    const auto bits = static_cast<std::uint16_t>(u);
    const double expected = decode(kBf16, bits);
    const float got = to_f32(bf16{bits});
    if (std::isnan(expected)) {
      REQUIRE(std::isnan(got));
      REQUIRE(nibble::to_bf16(got).bits == (bits | 0x0040));
    } else {
      REQUIRE(static_cast<double>(got) == expected);
      REQUIRE(nibble::to_bf16(got).bits == bits);
    }
  }
}

TEST_CASE("to_f16 rounds to the nearest, ties to even, and the check sees other roundings") {
  const auto inputs = hard_inputs(kF16);
  CHECK(count_wrong(kF16, inputs, [](float x) { return nibble::to_f16(x).bits; }) == 0);
  // The check must detect truncation, ties away from zero, and overflow that saturates.
  const auto mutant = [&](auto&& change) {
    return count_wrong(kF16, inputs, [&](float x) { return change(x, nibble::to_f16(x).bits); });
  };
  CHECK(mutant([](float x, std::uint16_t bits) {
          const bool is_up = std::fabs(decode(kF16, bits)) > std::fabs(static_cast<double>(x));
          return static_cast<std::uint16_t>(bits - (is_up ? 1 : 0));
        }) > 0);
  CHECK(mutant([](float x, std::uint16_t bits) {
          const double below = std::fabs(decode(kF16, bits));
          const double above = std::fabs(decode(kF16, static_cast<std::uint16_t>(bits + 1)));
          const bool is_tie = std::fabs(static_cast<double>(x)) == (below + above) / 2;
          return static_cast<std::uint16_t>(bits + (is_tie && std::isfinite(above) ? 1 : 0));
        }) > 0);
  CHECK(mutant([](float x, std::uint16_t bits) {
          const bool is_new = (bits & 0x7FFF) == 0x7C00 && std::isfinite(x);
          return static_cast<std::uint16_t>(is_new ? bits - 1 : bits);
        }) > 0);
}

TEST_CASE("to_bf16 rounds to the nearest, ties to even, and the check sees truncation") {
  const auto inputs = hard_inputs(kBf16);
  CHECK(count_wrong(kBf16, inputs, [](float x) { return nibble::to_bf16(x).bits; }) == 0);
  CHECK(count_wrong(kBf16, inputs, [](float x) {
          return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(x) >> 16);
        }) > 0);
}

TEST_CASE("boundaries of f16 by hand") {
  CHECK(nibble::to_f16(0.0f).bits == 0x0000);
  CHECK(nibble::to_f16(-0.0f).bits == 0x8000);
  CHECK(nibble::to_f16(1.0f).bits == 0x3C00);
  CHECK(nibble::to_f16(65504.0f).bits == 0x7BFF);
  CHECK(nibble::to_f16(65519.996f).bits == 0x7BFF);
  CHECK(nibble::to_f16(65520.0f).bits == 0x7C00);
  CHECK(nibble::to_f16(-1e30f).bits == 0xFC00);
  CHECK(nibble::to_f16(0x1p-14f).bits == 0x0400);
  CHECK(nibble::to_f16(0x1p-24f).bits == 0x0001);
  CHECK(nibble::to_f16(0x1p-25f).bits == 0x0000);  // a tie between 0 and the smallest
  CHECK(nibble::to_f16(0x1.000002p-25f).bits == 0x0001);
  CHECK(nibble::to_f16(0x1.8p-24f).bits == 0x0002);  // a tie between odd and even
  CHECK(nibble::to_f16(1.0f + 0x1p-11f).bits == 0x3C00);
  CHECK(nibble::to_f16(1.0f + 0x1.8p-10f).bits == 0x3C02);
  static_assert(nibble::to_f16(0.5f).bits == 0x3800 && nibble::to_f32(f16{0x3800}) == 0.5f);
}

TEST_CASE("NaN stays NaN with its sign, also where the payload is lost") {
  for (const std::uint32_t u : {0x7F800001u, 0xFF800001u, 0x7FC00000u, 0xFFFFFFFFu, 0x7F801FFFu}) {
    const float x = std::bit_cast<float>(u);
    CHECK((nibble::to_f16(x).bits & 0x7FFF) > 0x7C00);
    CHECK((nibble::to_f16(x).bits >> 15) == (u >> 31));
    CHECK((nibble::to_bf16(x).bits & 0x7FFF) > 0x7F80);
    CHECK((nibble::to_bf16(x).bits >> 15) == (u >> 31));
  }
}

}  // namespace float16_test
