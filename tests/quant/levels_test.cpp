// SPDX-License-Identifier: Apache-2.0
//
// Formats of levels: rounding and searches against all levels and scales there are, in double.
// (vectors_test.cpp and read_only_test.cpp compare their bytes and weights with ggml's and gguf's.)
#include "nibble/quant/levels.hpp"

#include <cmath>
#include <cstring>
#include <limits>

#include "doctest/doctest.h"
#include "nibble/quant/format.hpp"
#include "nibble/quant/weighted.hpp"
#include "oracle.hpp"
#include "read_only_goldens.hpp"

namespace levels_test {

using namespace nibble::quant;
using nibble::f16;
using nibble::HalfE8M0;

namespace {

#define LEVEL_FORMATS IQ4_NL, IQ4_XS, MXFP4

// In double, of 32 weights: the least weighted error with a scale.
template <class F>
double error_with(const float* x, const float* w, double scale) {
  double sum = 0;
  for (int i = 0; i < 32; ++i) {
    double least = std::numeric_limits<double>::infinity();
    for (const int level : F::kLevels) least = std::min(least, std::abs(x[i] - scale * level));
    sum += double{w[i]} * least * least;
  }
  return sum;
}

std::vector<float> random_importance(std::size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<float> w(n);
  for (float& v : w) v = std::exp(2.0f * std::normal_distribution<float>()(random));
  return w;
}

template <class F>
std::vector<float> weights_of(const typename F::Block& block) {
  std::vector<float> x(F::kLength);
  dequantize_block<F>(block, x.data());
  return x;
}

}  // namespace

TEST_CASE("a power of two as a scale") {
  for (int bits = 0; bits < 256; ++bits) {
    const float scale = to_f32(HalfE8M0{static_cast<std::uint8_t>(bits)});
    CHECK(double{scale} == std::ldexp(1.0, bits - 128));
  }
}

TEST_CASE_TEMPLATE("a block of levels has the nearest ones", F, LEVEL_FORMATS) {
  for (int round = 0; round < 20; ++round) {
    const auto x =
        test::normal_row(F::kLength, std::ldexp(1.0f, round - 2), static_cast<unsigned>(3 + round));
    typename F::Block block;
    REQUIRE(quantize_block<F>(x.data(), block));
    const auto back = weights_of<F>(block);
    for (int g = 0; g < F::kLength / 32; ++g) {
      double scale = static_cast<double>(to_f32(block.scale));
      if constexpr (F::kLength == 256) {
        scale *= detail::group_scale(block, static_cast<std::size_t>(g));
      }
      for (int i = 32 * g; i < 32 * (g + 1); ++i) {
        const auto at = static_cast<std::size_t>(i);
        double least = std::numeric_limits<double>::infinity();
        for (const int level : F::kLevels) {
          least = std::min(least, std::abs(double{x[at]} - scale * level));
        }
        // The scale was rounded to f16 after the levels were chosen.
        CHECK(std::abs(double{x[at]} - back[at]) <= least + 0x1p-10 * std::abs(double{x[at]}));
      }
    }
  }
}

TEST_CASE("MXFP4 rounds as gguf does, to the byte") {
  std::uint32_t state = 7;
  const auto byte = [&] {
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state >> 8 & 255;
  };
  const auto half = [&] {
    const std::uint32_t low = byte();
    return static_cast<std::int16_t>(low | byte() << 8);
  };
  std::uint64_t hash = 0xCBF29CE484222325u;
  for (int b = 0; b < test::kGoldenBlocks; ++b) {
    float x[32];
    for (float& v : x) {
      const int magnitude = half(), power = half();
      v = std::ldexp(static_cast<float>(magnitude), b - 30 - (power % 8 + 8) % 8);
    }
    MXFP4::Block block;
    REQUIRE(quantize_block<MXFP4>(x, block));
    for (const std::byte at : std::as_bytes(std::span(&block, 1))) {
      hash = (hash ^ std::to_integer<std::uint64_t>(at)) * 0x100000001B3u;
    }
  }
  CHECK(hash == test::kQuantizedMxfp4);
}

TEST_CASE("between two levels, the upper one of IQ4, the smaller one of MXFP4") {
  float x[32] = {};
  x[0] = 8.0f;  // a scale of 1
  x[1] = 5.0f, x[2] = -5.0f, x[3] = 0.5f, x[4] = -0.5f, x[5] = -0.0f;
  MXFP4::Block block;
  quantize_block<MXFP4>(x, block);
  const auto back = weights_of<MXFP4>(block);
  CHECK(back[0] == 8.0f);
  CHECK(back[1] == 4.0f);
  CHECK(back[2] == -4.0f);
  CHECK(back[3] == 0.0f);
  CHECK(back[4] == 0.0f);
  CHECK(block.codes[4] % 16 == 0);  // not -0
  CHECK(detail::nearest_level<IQ4_NL>(7.0f) == 9);
  CHECK(detail::nearest_level<IQ4_NL>(std::nextafter(7.0f, 0.0f)) == 8);
  CHECK(detail::nearest_level<IQ4_NL>(-115.5f) == 1);
  CHECK(detail::nearest_level<IQ4_NL>(-1000.0f) == 0);
  CHECK(detail::nearest_level<IQ4_NL>(1000.0f) == 15);
}

TEST_CASE("a block of MXFP4 has the best of all scales") {
  for (unsigned seed = 1; seed <= 20; ++seed) {
    auto x = test::normal_row(32, 0.05f, seed);
    if (seed % 2 == 0) x[5] *= 20.0f;
    auto w = random_importance(32, seed + 100);
    if (seed % 2 == 0) w[5] = 0.0f;
    MXFP4::Block block;
    REQUIRE(search_block<MXFP4>(x.data(), w.data(), block));
    double least = std::numeric_limits<double>::infinity();
    for (int bits = 0; bits < 256; ++bits) {
      least = std::min(least, error_with<MXFP4>(x.data(), w.data(), std::ldexp(1.0, bits - 128)));
    }
    CHECK(weighted_error<MXFP4>(x.data(), w.data(), block) <= least * (1 + 1e-5));
  }
}

TEST_CASE("a block of IQ4_NL has nearly the best of all scales") {
  double found = 0, least = 0;
  for (unsigned seed = 1; seed <= 4; ++seed) {
    const auto x = test::normal_row(32, 0.05f, seed);
    const auto w = random_importance(32, seed + 100);
    IQ4_NL::Block block;
    REQUIRE(search_block<IQ4_NL>(x.data(), w.data(), block));
    const double error = weighted_error<IQ4_NL>(x.data(), w.data(), block);
    double best = std::numeric_limits<double>::infinity();
    for (std::uint16_t bits = 0x0400; bits < 0x2C00; bits += 2) {  // 2^-14 … 2^-4
      const double scale = test::decode(f16{bits});
      for (const double signed_scale : {scale, -scale}) {
        best = std::min(best, error_with<IQ4_NL>(x.data(), w.data(), signed_scale));
      }
    }
    CHECK(error <= 1.1 * best);
    found += error / best;
    least += 1;
  }
  CHECK(found <= 1.03 * least);
}

TEST_CASE_TEMPLATE("a search is never worse than rounding", F, LEVEL_FORMATS) {
  double plain = 0, searched = 0;
  for (unsigned seed = 1; seed <= 20; ++seed) {
    const auto x = test::normal_row(F::kLength, 0.05f, seed);
    const auto w = random_importance(F::kLength, seed + 100);
    typename F::Block before, after;
    quantize_block<F>(x.data(), before);
    REQUIRE(search_block<F>(x.data(), w.data(), after));
    const double error = weighted_error<F>(x.data(), w.data(), after);
    CHECK(error <= weighted_error<F>(x.data(), w.data(), before) * (1 + 1e-5));
    plain += weighted_error<F>(x.data(), w.data(), before);
    searched += error;
    // A scale 1 % off, or twice as large, would be worse.
    if constexpr (std::is_same_v<F, MXFP4>) {
      ++after.scale.bits;
    } else {
      after.scale = nibble::to_f16(1.01f * to_f32(after.scale));
    }
    CHECK(weighted_error<F>(x.data(), w.data(), after) > error);
  }
  CHECK(searched < (std::is_same_v<F, MXFP4> ? 1.0 : 0.8) * plain);
}

TEST_CASE_TEMPLATE("blocks of levels of zeros, huge weights, and what is no number", F,
                   LEVEL_FORMATS) {
  typename F::Block block;
  std::vector<float> x(F::kLength, 0.0f);
  const std::vector<float> w(F::kLength, 1.0f);
  CHECK(quantize_block<F>(x.data(), block));
  for (const float v : weights_of<F>(block)) CHECK(v == 0.0f);
  CHECK(search_block<F>(x.data(), w.data(), block));
  for (const float v : weights_of<F>(block)) CHECK(v == 0.0f);
  constexpr float kInfinite = std::numeric_limits<float>::infinity();
  for (const float huge : {1e38f, kInfinite, -kInfinite, std::nanf("")}) {
    x = test::normal_row(F::kLength, 0.05f, 9);
    x[7] = huge;
    CHECK(!quantize_block<F>(x.data(), block));
    for (const float v : weights_of<F>(block)) CHECK(std::isfinite(v));
    CHECK(!search_block<F>(x.data(), w.data(), block));
    for (const float v : weights_of<F>(block)) CHECK(std::isfinite(v));
  }
  // The smallest numbers.
  std::fill(x.begin(), x.end(), 1e-45f);
  CHECK(quantize_block<F>(x.data(), block));
  CHECK(search_block<F>(x.data(), w.data(), block));
  for (const float v : weights_of<F>(block)) CHECK(std::abs(v) < 1e-36f);
}

}  // namespace levels_test
