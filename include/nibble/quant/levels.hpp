// SPDX-License-Identifier: Apache-2.0
//
// Formats whose codes are places in a table of 16 levels: weight = scale * level. IQ4_NL, IQ4_XS
// and MXFP4 equal GGUF's, bit for bit.
//
// Rounding follows ggml's quantizers, whose bytes these are for every input that they define:
//   IQ4_NL, IQ4_XS  the scale of 32 weights is the best of some, for an error weighted with the
//                   squares of the weights. (Where the compiler fuses multiplications and
//                   additions, the search may end at another candidate that is as good.)
//   MXFP4           scale = 2^(exponent of the largest magnitude - 3), then the nearest levels.
//                   (ggml takes the exponent from a logarithm in f32, which rounds up for
//                   magnitudes less than 2^-21 below a power of two.)
// What they leave undefined is treated as in quantize.hpp; magnitudes above 2^29 count as 2^29 in
// IQ4_NL and IQ4_XS, which is more than these formats hold. quant/level_search.hpp rounds better.
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>

#include "nibble/core/exact_math.hpp"
#include "nibble/core/float16.hpp"
#include "nibble/core/libm.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/quant/block.hpp"
#include "nibble/quant/quantize.hpp"
#include "nibble/quant/super_block.hpp"

NIBBLE_EXACT_MATH_BEGIN
namespace nibble { inline namespace NIBBLE_ABI { namespace quant {

// Levels as signed integers, one for each code. In products they have kLevelBits bits and are
// unsigned, with an offset of 2^(kLevelBits - 1), as the codes of symmetric formats of so many bits
// are.
template <class F>
concept LevelFormat = BlockFormat<F> && requires {
  { F::kLevels[0] } -> std::convertible_to<int>;
  { F::kLevelBits } -> std::convertible_to<int>;
};

using Levels = std::array<std::int8_t, 16>;
NIBBLE_HIDDEN inline constexpr Levels kIq4Levels = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                    1,    13,   25,  38,  53,  69,  89,  113};
// Twice the values of 4-bit floats (a sign, two bits of exponent, one of mantissa), so that all are
// integers; the scale is HalfE8M0 therefore.
NIBBLE_HIDDEN inline constexpr Levels kFp4Levels = {0, 1,  2,  3,  4,  6,  8,  12,
                                                    0, -1, -2, -3, -4, -6, -8, -12};

// 32 weights, 4.5 bits each: as Q4_0, with other levels.
struct IQ4_NL {
  static constexpr int kBits = 4;
  static constexpr int kLength = 32;
  static constexpr ZeroPoint kZeroPoint = ZeroPoint::symmetric;
  static constexpr int kLevelBits = 8;
  NIBBLE_HIDDEN static constexpr const Levels& kLevels = kIq4Levels;
  using Scale = f16;
  using Block = Q4_0::Block;

  static bool quantize(const float* x, Block& out) noexcept;
  static void dequantize(const Block& block, float* out) noexcept;
};

// Eight groups of 32 weights, 4.25 bits each: weight = scale * s * level, where s is a 6-bit
// integer of the group, from -32 to 31.
struct IQ4_XS {
  static constexpr int kBits = 4;
  static constexpr int kLength = 256;
  static constexpr int kGroupLength = 32;
  static constexpr ZeroPoint kZeroPoint = ZeroPoint::symmetric;
  static constexpr int kLevelBits = 8;
  NIBBLE_HIDDEN static constexpr const Levels& kLevels = kIq4Levels;
  using Scale = f16;
  // The six bits of s + 32: of group g the lower four are bits 4 (g % 2) … of byte g / 2 of
  // `scales`, the upper two are bits 2 g … of upper_scales. codes: 16 bytes for each group, as in a
  // block of 32.
  struct Block {
    f16 scale;
    std::uint16_t upper_scales;
    std::array<std::uint8_t, 4> scales;
    std::array<std::uint8_t, 128> codes;
  };

  static bool quantize(const float* x, Block& out) noexcept;
  static void dequantize(const Block& block, float* out) noexcept;
};

// 32 weights, 4.25 bits each: 4-bit floats times a power of two.
struct MXFP4 {
  static constexpr int kBits = 4;
  static constexpr int kLength = 32;
  static constexpr ZeroPoint kZeroPoint = ZeroPoint::symmetric;
  static constexpr int kLevelBits = 5;
  NIBBLE_HIDDEN static constexpr const Levels& kLevels = kFp4Levels;
  using Scale = HalfE8M0;
  using Block = BlockData<HalfE8M0, 4, 32, ZeroPoint::symmetric>;

  static bool quantize(const float* x, Block& out) noexcept;
  static void dequantize(const Block& block, float* out) noexcept;
};

static_assert(sizeof(IQ4_XS::Block) == 136 && alignof(IQ4_XS::Block) == 2);
static_assert(sizeof(MXFP4::Block) == 17 && alignof(MXFP4::Block) == 1);

// The levels as products read them: see LevelFormat.
template <LevelFormat F>
NIBBLE_HIDDEN alignas(16) inline constexpr std::array<std::uint8_t, 16> kStoredLevels = [] {
  std::array<std::uint8_t, 16> stored{};
  for (std::size_t i = 0; i < 16; ++i) {
    stored[i] = static_cast<std::uint8_t>(F::kLevels[i] + (1 << (F::kLevelBits - 1)));
  }
  return stored;
}();

namespace detail {

// The integer of group g of a block, and how it is stored in a block where it was zero.
inline int group_scale(const IQ4_XS::Block& block, std::size_t g) noexcept {
  return ((block.scales[g / 2] >> g % 2 * 4 & 15) | (block.upper_scales >> 2 * g & 3) << 4) - 32;
}
inline void set_group_scale(IQ4_XS::Block& block, std::size_t g, int s) noexcept {
  const int bits = s + 32;
  std::uint8_t& lower = block.scales[g / 2];
  lower = static_cast<std::uint8_t>(lower | (bits & 15) << g % 2 * 4);
  block.upper_scales = static_cast<std::uint16_t>(block.upper_scales | (bits >> 4) << 2 * g);
}

// 32 codes in 16 bytes, in the order of blocks of 32.
inline void put_levels(const std::uint8_t* codes, std::uint8_t* bytes) noexcept {
  for (std::size_t j = 0; j < 16; ++j) {
    bytes[j] = static_cast<std::uint8_t>(codes[j] | codes[j + 16] << 4);
  }
}
// 2 n weights, of which the codes of two that are n apart share a byte.
inline void read_levels(const std::uint8_t* codes, std::size_t n, const Levels& levels, float scale,
                        float* out) noexcept {
  for (std::size_t j = 0; j < n; ++j) {
    out[j] = scale * static_cast<float>(levels[codes[j] & 15]);
    out[j + n] = scale * static_cast<float>(levels[codes[j] >> 4]);
  }
}

// The code of the level nearest to v. Of two that are as near, the upper one; of MXFP4, the one
// nearer to zero.
template <class F>
std::uint8_t nearest_level(float v) noexcept {
  int code = 0;
  if constexpr (F::kLevelBits == 8) {
    // Halves of integers, so the middle between two levels is exact.
    for (std::size_t i = 0; i + 1 < 16; ++i) {
      code += v >= 0.5f * static_cast<float>(F::kLevels[i] + F::kLevels[i + 1]) ? 1 : 0;
    }
  } else {
    const float magnitude = libm::fabs(v);
    for (std::size_t i = 0; i + 1 < 8; ++i) {
      code += magnitude > 0.5f * static_cast<float>(F::kLevels[i] + F::kLevels[i + 1]) ? 1 : 0;
    }
    if (v < 0.0f && code > 0) code += 8;
  }
  return static_cast<std::uint8_t>(code);
}
template <class F>
void nearest_levels(const float* x, float inverse, std::uint8_t* codes) noexcept {
  for (std::size_t i = 0; i < 32; ++i) codes[i] = nearest_level<F>(inverse * x[i]);
}

// Sums over 32 weights and the levels nearest to them for a scale.
struct LevelSums {
  float xl = 0.0f, ll = 0.0f;  // Σ w x level, Σ w level²
};
template <class F>
LevelSums level_sums(const float* x, const float* w, float inverse) noexcept {
  LevelSums sums;
  for (std::size_t i = 0; i < 32; ++i) {
    const auto level = static_cast<float>(F::kLevels[nearest_level<F>(inverse * x[i])]);
    sums.xl += w[i] * level * x[i];
    sums.ll += w[i] * level * level;
  }
  return sums;
}

// A scale for 32 weights: of those for which the one of largest magnitude would be 127 or -134 …
// -120 levels, each improved by least squares, the one with the least error, weighted with the
// squares of the weights. Tiny weights have none.
inline float fit_iq4(const float* x) noexcept {
  float peak = 0.0f;  // signed
  float w[32];
  for (std::size_t i = 0; i < 32; ++i) {
    if (libm::fabs(x[i]) > libm::fabs(peak)) peak = x[i];
    w[i] = x[i] * x[i];
  }
  if (libm::fabs(peak) < 1e-15f) return 0.0f;
  constexpr int kEnd = kIq4Levels[0], kTries = 7;
  LevelSums sums = level_sums<IQ4_NL>(x, w, 1.0f / (-peak / static_cast<float>(kEnd)));
  float scale = sums.xl / sums.ll;
  float best = scale * sums.xl;  // what the error is less than Σ w x²
  for (int i = -kTries; i <= kTries; ++i) {
    sums = level_sums<IQ4_NL>(x, w, static_cast<float>(i + kEnd) / peak);
    if (sums.ll > 0.0f && sums.xl * sums.xl > best * sums.ll) {
      scale = sums.xl / sums.ll;
      best = scale * sums.xl;
    }
  }
  return scale;
}

// Copies n weights, made safe; returns false if one had to be changed. (With the largest, sums of
// level_sums() are finite; where their squares are not, the first scale stays.)
inline constexpr float kLargestOfIq4 = 0x1p29f;
inline bool tame_iq4(const float* x, std::size_t n, float* out) noexcept {
  bool fits = true;
  for (std::size_t i = 0; i < n; ++i) {
    out[i] = clamped(tamed(x[i]), -kLargestOfIq4, kLargestOfIq4);
    fits = fits && out[i] == x[i];
  }
  return fits;
}

}  // namespace detail

inline bool IQ4_NL::quantize(const float* x, Block& out) noexcept {
  float safe[32];
  bool fits = detail::tame_iq4(x, 32, safe);
  const float fitted = detail::fit_iq4(safe);
  const float scale = saturated<f16>(fitted);
  fits = fits && scale == fitted;
  out.scale = to_f16(scale);
  std::uint8_t codes[32];
  detail::nearest_levels<IQ4_NL>(safe, scale != 0.0f ? 1.0f / scale : 0.0f, codes);
  detail::put_levels(codes, out.codes.data());
  return fits;
}

inline void IQ4_NL::dequantize(const Block& block, float* out) noexcept {
  detail::read_levels(block.codes.data(), 16, kLevels, to_f32(block.scale), out);
}

inline bool IQ4_XS::quantize(const float* x, Block& out) noexcept {
  float safe[256];
  bool fits = detail::tame_iq4(x, 256, safe);
  float scales[8];
  float largest = 0.0f;  // signed
  for (std::size_t g = 0; g < 8; ++g) {
    scales[g] = detail::fit_iq4(safe + 32 * g);
    if (libm::fabs(scales[g]) > libm::fabs(largest)) largest = scales[g];
  }
  out = {};
  const float scale = saturated<f16>(-largest / 32.0f);
  fits = fits && scale == -largest / 32.0f;
  out.scale = to_f16(scale);
  const float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
  for (std::size_t g = 0; g < 8; ++g) {
    const int s = detail::nearest_in(inverse * scales[g], -32, 31);
    detail::set_group_scale(out, g, s);
    const float d = scale * static_cast<float>(s);
    std::uint8_t codes[32];
    detail::nearest_levels<IQ4_XS>(safe + 32 * g, d != 0.0f ? 1.0f / d : 0.0f, codes);
    detail::put_levels(codes, out.codes.data() + 16 * g);
  }
  return fits;
}

inline void IQ4_XS::dequantize(const Block& block, float* out) noexcept {
  for (std::size_t g = 0; g < 8; ++g) {
    const float d = to_f32(block.scale) * static_cast<float>(detail::group_scale(block, g));
    detail::read_levels(block.codes.data() + 16 * g, 16, kLevels, d, out + 32 * g);
  }
}

inline bool MXFP4::quantize(const float* x, Block& out) noexcept {
  bool fits = true;
  float safe[32];
  float peak = 0.0f;
  for (std::size_t i = 0; i < 32; ++i) {
    safe[i] = tamed(x[i]);
    fits = fits && safe[i] == x[i];
    peak = larger(peak, libm::fabs(safe[i]));
  }
  // The exponent of a subnormal number is -127 here: its block has the least scale either way.
  const int exponent = static_cast<int>(__builtin_bit_cast(std::uint32_t, peak) >> 23) - 127;
  out.scale.bits = static_cast<std::uint8_t>((std::max)(exponent + 125, 0));
  // In double, which holds 2^128.
  const double inverse = 1.0 / static_cast<double>(to_f32(out.scale));
  std::uint8_t codes[32];
  for (std::size_t i = 0; i < 32; ++i) {
    const double v = static_cast<double>(safe[i]) * inverse;  // less than 16
    codes[i] = detail::nearest_level<MXFP4>(static_cast<float>(v));
  }
  detail::put_levels(codes, out.codes.data());
  return fits;
}

inline void MXFP4::dequantize(const Block& block, float* out) noexcept {
  detail::read_levels(block.codes.data(), 16, kLevels, to_f32(block.scale), out);
}

}}}  // namespace nibble::NIBBLE_ABI::quant
NIBBLE_EXACT_MATH_END
