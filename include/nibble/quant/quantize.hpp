// SPDX-License-Identifier: Apache-2.0
//
// Conversion of f32 weights to a block format and back, one block or one row at a time: the offline
// reference, in plain C++. Kernels have their own vectorized versions, which are tested against it.
//
// The rules are those of ggml's reference quantizers, for any block length and scale type:
//   4 bits, symmetric  d = (signed weight of largest magnitude) / -8, code = trunc(x/d + 8.5) ≤ 15
//   5 bits, symmetric  likewise with 16 and 31
//   8 bits, symmetric  d = (largest magnitude) / 127, code = x/d rounded half away from zero
//   with a minimum m   d = (largest - m) / (2^bits - 1), code = trunc((x - m)/d + 0.5)
// x/d is x * (1/d), with the f32 scale before it is rounded for storage. The results are GGUF's
// bytes for every input that GGUF's rules define. They do not depend on whether the compiler fuses
// multiplications and additions, nor on -ffast-math.
//
// Inputs that those rules leave undefined (quantize_block() then returns false):
//   NaN counts as zero, and magnitudes above 2^120, infinities too, count as 2^120.
//   A scale or minimum too large for its type becomes the type's largest finite value and the codes
//   follow it, so that every block dequantizes to finite weights (f16: from 65520 up).
//   A scale so small that 1/d overflows (|d| < 2^-128) gives the codes of zeros. (This returns
//   true.)
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "nibble/core/exact_math.hpp"
#include "nibble/core/float16.hpp"
#include "nibble/core/libm.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/quant/block.hpp"

NIBBLE_EXACT_MATH_BEGIN
namespace nibble { inline namespace NIBBLE_ABI { namespace quant {

// A format may have its own rule, as static functions; otherwise the rules of this file apply. Its
// quantize() may return a bool, as quantize_block() does; one that returns nothing fits any
// weights.
template <class F>
concept HasOwnRule = BlockFormat<F> &&
    requires(const float* x, float* out, typename F::Block& b, const typename F::Block& cb) {
  F::quantize(x, b);
  F::dequantize(cb, out);
};

// x rounded to the storage type T, to nearest even.
template <class T>
constexpr T round_to(float x) noexcept {
  static_assert(std::is_same_v<T, f16> || std::is_same_v<T, bf16> || std::is_same_v<T, float>);
  if constexpr (std::is_same_v<T, f16>)
    return to_f16(x);
  else if constexpr (std::is_same_v<T, bf16>)
    return to_bf16(x);
  else
    return x;
}

// A weight made safe for the rules: finite, and small enough that no intermediate result overflows.
constexpr float tamed(float x) noexcept {
  constexpr float kLargest = 0x1p120f;
  return is_nan(static_cast<double>(x)) ? 0.0f : clamped(x, -kLargest, kLargest);
}

// A scale or minimum that stays finite when rounded to T. Only f16 has a smaller range than tamed
// weights.
template <class T>
constexpr float saturated(float x) noexcept {
  if constexpr (std::is_same_v<T, f16>) {
    constexpr float kLargest = 65504.0f;
    constexpr float kRoundsToInfinity = 65520.0f;
    if (x >= kRoundsToInfinity) return kLargest;
    if (x <= -kRoundsToInfinity) return -kLargest;
  }
  return x;
}

// 1/d, or 0 if that is not finite.
constexpr float inverse_scale(float d) noexcept {
  constexpr float kSmallest = 0x1p-128f;  // its inverse overflows
  return d > kSmallest || d < -kSmallest ? 1.0f / d : 0.0f;
}

namespace detail {

// Stores kLength codes in the order that block.hpp defines.
template <class Format>
void pack_codes(const std::uint8_t* codes, typename Format::Block& out) noexcept {
  if constexpr (Format::kBits == 8) {
    std::copy_n(codes, Format::kLength, out.codes.begin());
  } else if constexpr (Format::kBits < 4) {
    constexpr std::size_t kFirst = Format::kBits == 3 ? 4 : 0;  // of the lower two bits
    for (std::size_t i = 0; i < kFirst; ++i) {
      int third_bits = 0;
      for (std::size_t j = 0; j < 8; ++j) third_bits |= (codes[8 * i + j] >> 2) << j;
      out.codes[i] = static_cast<std::uint8_t>(third_bits);
    }
    for (std::size_t i = 0; i < 8; ++i) {
      const std::size_t at = i / 4 * 8 + i % 4;
      out.codes[kFirst + i] =
          static_cast<std::uint8_t>((codes[at] & 3) | (codes[at + 16] & 3) << 2 |
                                    (codes[at + 4] & 3) << 4 | (codes[at + 20] & 3) << 6);
    }
  } else {
    constexpr std::size_t kHalf = Format::kLength / 2;
    constexpr std::size_t kFirst = Format::kBits == 5 ? 4 : 0;  // of the 4-bit codes
    for (std::size_t j = 0; j < kHalf; ++j) {
      out.codes[kFirst + j] = static_cast<std::uint8_t>((codes[j] & 15) | codes[j + kHalf] << 4);
    }
    for (std::size_t i = 0; i < kFirst; ++i) {
      int fifth_bits = 0;
      for (std::size_t j = 0; j < 8; ++j) fifth_bits |= (codes[8 * i + j] >> 4) << j;
      out.codes[i] = static_cast<std::uint8_t>(fifth_bits);
    }
  }
}

template <class Format>
void unpack_codes(const typename Format::Block& block, std::uint8_t* codes) noexcept {
  if constexpr (Format::kBits == 8) {
    std::copy_n(block.codes.begin(), Format::kLength, codes);
  } else if constexpr (Format::kBits < 4) {
    constexpr std::size_t kFirst = Format::kBits == 3 ? 4 : 0;
    for (std::size_t i = 0; i < 8; ++i) {
      const std::size_t at = i / 4 * 8 + i % 4;
      const int byte = block.codes[kFirst + i];
      codes[at] = byte & 3;
      codes[at + 16] = byte >> 2 & 3;
      codes[at + 4] = byte >> 4 & 3;
      codes[at + 20] = static_cast<std::uint8_t>(byte >> 6);
    }
    for (std::size_t j = 0; j < 8 * kFirst; ++j) {
      codes[j] |= static_cast<std::uint8_t>((block.codes[j / 8] >> j % 8 & 1) << 2);
    }
  } else {
    constexpr std::size_t kHalf = Format::kLength / 2;
    constexpr std::size_t kFirst = Format::kBits == 5 ? 4 : 0;
    for (std::size_t j = 0; j < kHalf; ++j) {
      codes[j] = block.codes[kFirst + j] & 0x0F;
      codes[j + kHalf] = static_cast<std::uint8_t>(block.codes[kFirst + j] >> 4);
    }
    for (std::size_t j = 0; j < 8 * kFirst; ++j) {
      codes[j] |= static_cast<std::uint8_t>((block.codes[j / 8] >> j % 8 & 1) << 4);
    }
  }
}

// The encoders clamp the quotient to the range of the codes before they add the rounding constant.
// This makes the conversion to integer defined for any input. It also prevents the compiler from
// fusing the product with the sum, which would round some ties differently on different machines.

// They return false if they had to change a weight, the scale or the minimum first.

// 4 and 5 bits.
template <class Format>
bool quantize_to_peak(const float* x, typename Format::Block& out) noexcept {
  constexpr float kOffset = 1 << (Format::kBits - 1);
  bool fits = true;
  float peak = 0.0f;  // signed
  for (int i = 0; i < Format::kLength; ++i) {
    const float v = tamed(x[i]);
    fits = fits && v == x[i];
    if (libm::fabs(v) > libm::fabs(peak)) peak = v;
  }
  const float d = saturated<typename Format::Scale>(peak / -kOffset);
  fits = fits && d == peak / -kOffset;
  const float inverse = inverse_scale(d);
  std::uint8_t codes[Format::kLength];
  for (int i = 0; i < Format::kLength; ++i) {
    const float quotient = clamped(tamed(x[i]) * inverse, -kOffset, kOffset - 1.0f);
    codes[i] = static_cast<std::uint8_t>(quotient + (kOffset + 0.5f));
  }
  out.scale = round_to<typename Format::Scale>(d);
  pack_codes<Format>(codes, out);
  return fits;
}

// 2 and 3 bits: the scale that represents the block best among some around the one that its peak
// would want; with so few codes, the largest weight is better cut off than all others rounded to
// next to nothing.
template <class Format>
bool quantize_half_steps(const float* x, typename Format::Block& out) noexcept {
  constexpr int kStep = 1 << (4 - Format::kBits);  // of 4-bit codes
  constexpr int kTop = (1 << Format::kBits) - 1;
  constexpr float kPeak = 8 - kStep / 2;  // the largest weight of a block, over its scale
  bool fits = true;
  float safe[Format::kLength];
  float peak = 0.0f;
  for (int i = 0; i < Format::kLength; ++i) {
    safe[i] = tamed(x[i]);
    fits = fits && safe[i] == x[i];
    peak = larger(peak, libm::fabs(safe[i]));
  }
  using Scale = typename Format::Scale;
  const float largest_scale = saturated<Scale>(peak / kPeak);
  fits = fits && largest_scale == peak / kPeak;
  // The weights and the scale divided by the peak: their squares do not overflow.
  const float inverse_peak = inverse_scale(peak);
  const auto code_of = [&](float value, float inverse) {
    const float quotient = clamped(value * inverse, -8.0f, 7.999f);
    return static_cast<int>((quotient + 8.0f) / kStep);
  };
  float best_scale = 1.0f / kPeak, least = kInfinity;
  for (int candidate = 0; candidate < 20; ++candidate) {
    const float scale = (1.0f - 0.035f * static_cast<float>(candidate)) / kPeak;
    float error = 0.0f;
    for (int i = 0; i < Format::kLength; ++i) {
      const float value = safe[i] * inverse_peak;
      const int code = code_of(value, 1.0f / scale);
      const float difference = value - scale * static_cast<float>(code * kStep + kStep / 2 - 8);
      error += difference * difference;
    }
    if (error < least) {
      least = error;
      best_scale = scale;
    }
  }
  const float d = saturated<Scale>(peak * best_scale);
  out.scale = round_to<Scale>(d);
  const float inverse = inverse_scale(to_f32(out.scale));
  std::uint8_t codes[Format::kLength];
  for (int i = 0; i < Format::kLength; ++i) {
    const int code = inverse == 0.0f ? 0 : code_of(safe[i], inverse);
    codes[i] = static_cast<std::uint8_t>(code > kTop ? kTop : code);
  }
  pack_codes<Format>(codes, out);
  return fits;
}

template <class Format>
bool quantize_symmetric8(const float* x, typename Format::Block& out) noexcept {
  bool fits = true;
  float peak = 0.0f;
  for (int i = 0; i < Format::kLength; ++i) {
    const float v = tamed(x[i]);
    fits = fits && v == x[i];
    peak = larger(peak, libm::fabs(v));
  }
  const float d = saturated<typename Format::Scale>(peak / 127.0f);
  fits = fits && d == peak / 127.0f;
  const float inverse = inverse_scale(d);
  std::uint8_t codes[Format::kLength];
  for (int i = 0; i < Format::kLength; ++i) {
    const float quotient = clamped(tamed(x[i]) * inverse, -127.0f, 127.0f);
    codes[i] = static_cast<std::uint8_t>(static_cast<std::int8_t>(libm::round_away(quotient)));
  }
  out.scale = round_to<typename Format::Scale>(d);
  pack_codes<Format>(codes, out);
  return fits;
}

template <class Format>
bool quantize_minimum(const float* x, typename Format::Block& out) noexcept {
  constexpr float kLevels = (1 << Format::kBits) - 1;
  bool fits = true;
  float smallest = tamed(x[0]);
  float largest = smallest;
  for (int i = 0; i < Format::kLength; ++i) {
    const float v = tamed(x[i]);
    fits = fits && v == x[i];
    if (v < smallest) smallest = v;
    if (v > largest) largest = v;
  }
  const float minimum = saturated<typename Format::Scale>(smallest);
  // A saturated minimum may be above all weights.
  const float range = larger(largest - minimum, 0.0f);
  const float d = saturated<typename Format::Scale>(range / kLevels);
  fits = fits && minimum == smallest && d == range / kLevels;
  const float inverse = inverse_scale(d);
  std::uint8_t codes[Format::kLength];
  for (int i = 0; i < Format::kLength; ++i) {
    const float quotient = clamped((tamed(x[i]) - minimum) * inverse, 0.0f, kLevels);
    codes[i] = static_cast<std::uint8_t>(quotient + 0.5f);
  }
  out.scale = round_to<typename Format::Scale>(d);
  out.minimum = round_to<typename Format::Scale>(minimum);
  pack_codes<Format>(codes, out);
  return fits;
}

}  // namespace detail

// Rounds x (kLength weights) to one block. Returns false if a weight is NaN or larger than the
// format can hold: the block is then the nearest that there is, which may be far off.
template <BlockFormat Format>
bool quantize_block(const float* x, typename Format::Block& out) noexcept {
  if constexpr (HasOwnRule<Format>) {
    if constexpr (std::is_same_v<decltype(Format::quantize(x, out)), bool>)
      return Format::quantize(x, out);
    else
      return Format::quantize(x, out), true;
  } else if constexpr (Format::kZeroPoint == ZeroPoint::minimum) {
    return detail::quantize_minimum<Format>(x, out);
  } else if constexpr (Format::kBits == 8) {
    return detail::quantize_symmetric8<Format>(x, out);
  } else if constexpr (Format::kBits < 4) {
    return detail::quantize_half_steps<Format>(x, out);
  } else {
    return detail::quantize_to_peak<Format>(x, out);
  }
}

// The kLength weights that a block represents, computed in f32. With 16-bit scales every product is
// exact, so only the addition of a minimum rounds.
template <BlockFormat Format>
void dequantize_block(const typename Format::Block& block, float* out) noexcept {
  if constexpr (HasOwnRule<Format>) {
    Format::dequantize(block, out);
  } else {
    std::uint8_t codes[Format::kLength];
    detail::unpack_codes<Format>(block, codes);
    const float d = to_f32(block.scale);
    for (int i = 0; i < Format::kLength; ++i) {
      if constexpr (Format::kZeroPoint == ZeroPoint::minimum)
        out[i] = d * static_cast<float>(codes[i]) + to_f32(block.minimum);
      else if constexpr (Format::kBits == 8)
        out[i] = d * static_cast<float>(static_cast<std::int8_t>(codes[i]));
      else if constexpr (Format::kBits < 4)
        out[i] = d * static_cast<float>((2 * codes[i] + 1) * (1 << (3 - Format::kBits)) - 8);
      else
        out[i] = d * static_cast<float>(codes[i] - (1 << (Format::kBits - 1)));
    }
  }
}

// Whole rows: x.size() = out.size() * kLength. Rows of user data go through quant/format.hpp, which
// checks the sizes. Returns false if a block does.
template <BlockFormat Format>
bool quantize_row(std::span<const float> x, std::span<typename Format::Block> out) noexcept {
  constexpr std::size_t kLength = Format::kLength;
  NIBBLE_ASSERT(x.size() == out.size() * kLength);
  bool fits = true;
  for (std::size_t i = 0; i < out.size(); ++i) {
    fits &= quantize_block<Format>(x.data() + i * kLength, out[i]);
  }
  return fits;
}

template <BlockFormat Format>
void dequantize_row(std::span<const typename Format::Block> blocks, std::span<float> out) noexcept {
  constexpr std::size_t kLength = Format::kLength;
  NIBBLE_ASSERT(out.size() == blocks.size() * kLength);
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    dequantize_block<Format>(blocks[i], out.data() + i * kLength);
  }
}

}}}  // namespace nibble::NIBBLE_ABI::quant
NIBBLE_EXACT_MATH_END
