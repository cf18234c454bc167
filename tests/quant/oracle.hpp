// SPDX-License-Identifier: Apache-2.0
//
// An independent decoder of blocks: gets scales, codes and weights in double from their bits. Also
// the bound on |x - dequantized(x)| that follows from the rules of quant/quantize.hpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <span>
#include <type_traits>
#include <vector>

#include "nibble/quant/quantize.hpp"

namespace test {

using namespace nibble::quant;

inline double decode(nibble::f16 h) {
  const double sign = h.bits >> 15 ? -1.0 : 1.0;
  const int exponent = h.bits >> 10 & 31;
  const int mantissa = h.bits & 1023;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24));
}
inline double decode(nibble::bf16 b) {
  const double sign = b.bits >> 15 ? -1.0 : 1.0;
  const int exponent = b.bits >> 7 & 255;
  const int mantissa = b.bits & 127;
  if (exponent == 255) return mantissa ? NAN : sign * INFINITY;
  return sign *
         (exponent ? std::ldexp(128 + mantissa, exponent - 134) : std::ldexp(mantissa, -133));
}
inline double decode(float x) { return x; }

// Rounding to a scale type: |stored - exact| <= relative * |exact| + absolute.
struct Rounding {
  double relative;
  double absolute;  // half the smallest subnormal
};
template <class T>
Rounding rounding_of() {
  if (std::is_same_v<T, nibble::f16>) return {0x1p-11, 0x1p-25};
  if (std::is_same_v<T, nibble::bf16>) return {0x1p-8, 0x1p-134};
  return {0x1p-24, 0x1p-150};
}

template <class F>
inline constexpr bool kHasMinimum = F::kZeroPoint == ZeroPoint::minimum;

// The factor of the scale: -6, -2, 2, 6, or -7, -5, … 7, or -8 … 7, -16 … 15, -127 … 127 or 0 …
// 2^kBits - 1.
template <class F>
int level(const typename F::Block& block, int i) {
  int code;
  if constexpr (F::kBits == 1) {
    return (block.codes[static_cast<std::size_t>(i / 8)] >> i % 8) % 2 == 1 ? 1 : -1;
  } else if constexpr (F::kBits == 2 && F::kLength == 64) {
    return (block.codes[static_cast<std::size_t>(i / 4)] >> i % 4 * 2) % 4 - 1;
  } else if constexpr (F::kBits < 4 && F::kLength == 256) {
    constexpr int kPowers[] = {1, 4, 16, 64};
    return block.codes[static_cast<std::size_t>(i / 128 * 32 + i % 32)] / kPowers[i / 32 % 4] % 4 -
           1;
  } else if constexpr (F::kBits < 4) {  // as the 4-bit code that it stands for, less 8
    const int first = F::kBits == 3 ? 4 : 0, byte = first + i % 16 / 8 * 4 + i % 4;
    const int shift = (i % 8 < 4 ? 0 : 4) + (i < 16 ? 0 : 2);
    code = block.codes[static_cast<std::size_t>(byte)] >> shift & 3;
    if (first > 0) code += (block.codes[static_cast<std::size_t>(i / 8)] >> i % 8 & 1) * 4;
    return F::kBits == 3 ? 2 * code - 7 : 4 * code - 6;
  } else if constexpr (F::kBits < 8) {
    const int half = F::kLength / 2, first = F::kBits == 5 ? 4 : 0;
    const int byte = block.codes[static_cast<std::size_t>(first + i % half)];
    code = i < half ? byte % 16 : byte / 16;
    if (first > 0) code += block.codes[static_cast<std::size_t>(i / 8)] >> i % 8 << 4 & 16;
    if (!kHasMinimum<F>) code -= 1 << (F::kBits - 1);
  } else {
    code = block.codes[static_cast<std::size_t>(i)];
    if (!kHasMinimum<F> && code > 127) code -= 256;
  }
  return code;
}

template <class F>
double weight(const typename F::Block& block, int i) {
  double w = decode(block.scale) * level<F>(block, i);
  if constexpr (kHasMinimum<F>) w += decode(block.minimum);
  return w;
}

// Scale and minimum of a block by the rules, in double.
struct ExactScale {
  double scale;
  double minimum;
};
template <class F>
ExactScale exact_scale(const float* x) {
  const auto [low, high] = std::minmax_element(x, x + F::kLength);
  if (kHasMinimum<F>) return {(double{*high} - *low) / ((1 << F::kBits) - 1), *low};
  const double peak = *std::max_element(  // the first one, with its sign
      x, x + F::kLength, [](float a, float b) { return std::abs(a) < std::abs(b); });
  return {F::kBits == 8 ? std::abs(peak) / 127 : peak / -(1 << (F::kBits - 1)), 0};
}

// The bound for weight i of a block with level c, exact scale d and minimum m:
//   |x - (c D + M)| <= |x - (c d + m)| + |c| |D - d| + |M - m|
// where D and M are d and m rounded for storage. The first term is d/2 for rounding to nearest. The
// 4- and 5-bit symmetric rules have no level for the far side of their peak, (7.5 d, 8 d] or (15.5
// d, 16 d], and there the term is d. The f32 arithmetic on the codes adds at most a few parts in
// 2^24 of the largest level; the addition of M in f32 adds half an ulp. Scales below 2^-128 are
// zero.
template <class F>
double error_bound(const float* x, int i, int c) {
  const auto [signed_d, m] = exact_scale<F>(x);
  const double d = std::abs(signed_d);
  const auto [relative, absolute] = rounding_of<typename F::Scale>();
  const double top = 1 << F::kBits;
  double steps = 0.5;
  if (!kHasMinimum<F> && F::kBits < 8) {
    if (d > 0) steps = std::max(steps, x[i] / signed_d - ((1 << (F::kBits - 1)) - 1));
  }
  steps += top * 0x1p-21;
  double bound = d * steps + std::abs(c) * (relative * d + absolute);
  if (kHasMinimum<F>) {
    bound += relative * std::abs(m) + absolute;
    bound += 0x1p-23 * (std::abs(m) + top * d);
  }
  return bound + (d < 0x1p-127 ? top * 0x1p-127 : 0.0);
}

// Checks that every weight of the row is within its bound.
template <class F>
bool within_bounds(std::span<const float> x, std::span<const typename F::Block> blocks) {
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    const float* in = x.data() + b * F::kLength;
    for (int i = 0; i < F::kLength; ++i) {
      const double bound = error_bound<F>(in, i, level<F>(blocks[b], i));
      const double error = std::abs(double{in[i]} - weight<F>(blocks[b], i));
      if (!(error <= bound)) return false;
    }
  }
  return true;
}

inline std::vector<float> normal_row(std::size_t n, float sigma, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, sigma);
  std::vector<float> x(n);
  for (float& v : x) v = normal(random);
  return x;
}

}  // namespace test
