// SPDX-License-Identifier: Apache-2.0
//
// Formats with blocks of 256 weights, and two with smaller ones. Most have scales of two levels:
// f16 scales, which multiply small integer scales of 32 or 16 weights each. All equal GGUF's of
// these names, bit for bit.
//
// Quantization searches each group's scale, as ggml's reference quantizers do; its bytes are theirs
// for every input that they define. (Where the compiler fuses multiplications and additions, the
// search may end at another candidate that is as good.) What they leave undefined is treated as in
// quantize.hpp; weights above 2^30 count as 2^30 here, which is more than these formats hold.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "nibble/core/exact_math.hpp"
#include "nibble/core/float16.hpp"
#include "nibble/core/libm.hpp"
#include "nibble/quant/block.hpp"
#include "nibble/quant/quantize.hpp"

NIBBLE_EXACT_MATH_BEGIN
namespace nibble { inline namespace NIBBLE_ABI { namespace quant {

// Eight groups of 32 weights: weight = scale * s * code - minimum * m, where s and m are 6-bit
// integers of the group and codes have 4 or 5 bits.
template <int Bits>
struct SuperBlocks {
  static_assert(Bits == 4 || Bits == 5);
  static constexpr int kBits = Bits;
  static constexpr int kLength = 256;
  static constexpr int kGroupLength = 32;
  static constexpr ZeroPoint kZeroPoint = ZeroPoint::minimum;
  using Scale = f16;
  // scales: of groups 0 … 3 in the low six bits of bytes 0 … 3, their minimums in bytes 4 … 7; of
  // groups 4 … 7 the low four bits in the lower halves of bytes 8 … 11, their minimums' in the
  // upper halves, and the top two bits in the top two bits of bytes 0 … 3 and 4 … 7. codes: with 5
  // bits, first 32 bytes, where bit g of byte j is the fifth bit of weight j of group g. Then 32
  // bytes for each two groups: byte j holds weight j of the first in its low half, of the second in
  // its high half.
  struct Block {
    f16 scale;
    f16 minimum;
    std::array<std::uint8_t, 12> scales;
    std::array<std::uint8_t, std::size_t{32} * Bits> codes;
  };

  static bool quantize(const float* x, Block& out) noexcept;
  static void dequantize(const Block& block, float* out) noexcept;
};

using Q4_K = SuperBlocks<4>;
using Q5_K = SuperBlocks<5>;

// Sixteen groups of 16 weights: weight = scale * s * (code - 32), where s is a signed 8-bit integer
// of the group and codes have 6 bits.
struct Q6_K {
  static constexpr int kBits = 6;
  static constexpr int kLength = 256;
  static constexpr int kGroupLength = 16;
  static constexpr ZeroPoint kZeroPoint = ZeroPoint::symmetric;
  using Scale = f16;
  // codes: of each half of 128 weights, of which a, b, c and d are 32 each, first 64 bytes with the
  // low four bits: a (in low halves of bytes) with c (in high halves), then b with d. After both
  // halves', 32 bytes for each with the top two bits of a, b, c and d, from the lowest bits on.
  struct Block {
    std::array<std::uint8_t, 192> codes;
    std::array<std::int8_t, 16> scales;
    f16 scale;
  };

  static bool quantize(const float* x, Block& out) noexcept;
  static void dequantize(const Block& block, float* out) noexcept;
};

// Sixteen groups of 16 weights: weight = scale * s * code - minimum * m, where s and m are 4-bit
// integers of the group and codes have 2 bits.
struct Q2_K {
  static constexpr int kBits = 2;
  static constexpr int kLength = 256;
  static constexpr int kGroupLength = 16;
  static constexpr ZeroPoint kZeroPoint = ZeroPoint::minimum;
  using Scale = f16;
  // scales: of group g byte g, with s in its low half and m in its high half. codes: 32 bytes for
  // each half of 128 weights, of which a, b, c and d are 32 each: byte j holds weight j of each,
  // a's in the lowest bits.
  struct Block {
    std::array<std::uint8_t, 16> scales;
    std::array<std::uint8_t, 64> codes;
    f16 scale;
    f16 minimum;
  };

  static bool quantize(const float* x, Block& out) noexcept;
  static void dequantize(const Block& block, float* out) noexcept;
};

// Sixteen groups of 16 weights: weight = scale * s * (code - 4), where s is an integer of the group
// in [-32, 31] and codes have 3 bits.
struct Q3_K {
  static constexpr int kBits = 3;
  static constexpr int kLength = 256;
  static constexpr int kGroupLength = 16;
  static constexpr ZeroPoint kZeroPoint = ZeroPoint::symmetric;
  using Scale = f16;
  // codes: first 32 bytes, where bit g of byte j is the third bit of weight 32 g + j; then the
  // other two bits as in Q2_K. scales: s + 32, whose low four bits are in the low halves of bytes 0
  // … 7 for groups 0 … 7 and in the high halves for the others, and the top two bits of group g in
  // bits 2 (g / 4) … of byte 8 + g % 4.
  struct Block {
    std::array<std::uint8_t, 96> codes;
    std::array<std::uint8_t, 12> scales;
    f16 scale;
  };

  static bool quantize(const float* x, Block& out) noexcept;
  static void dequantize(const Block& block, float* out) noexcept;
};

// One scale for all, for ternary weights: weight = scale * (code - 1), codes of 2 bits in the order
// of Q2_K's. Code 3 is never written; it is read as 2 * scale, as in GGUF.
struct TQ2_0 {
  static constexpr int kBits = 2;
  static constexpr int kLength = 256;
  static constexpr int kGroupLength = 256;
  static constexpr ZeroPoint kZeroPoint = ZeroPoint::symmetric;
  using Scale = f16;
  struct Block {
    std::array<std::uint8_t, 64> codes;
    f16 scale;
  };

  static bool quantize(const float* x, Block& out) noexcept;
  static void dequantize(const Block& block, float* out) noexcept;
};

// The same, 64 weights, with code 3 for 2 * scale. codes: weight i is in byte i / 4, from bit
// 2 (i % 4) on. (quantize: the scale for which the largest weight is code 3 or 0.)
struct Q2_0 {
  static constexpr int kBits = 2;
  static constexpr int kLength = 64;
  static constexpr int kGroupLength = 64;
  static constexpr ZeroPoint kZeroPoint = ZeroPoint::symmetric;
  using Scale = f16;
  struct Block {
    f16 scale;
    std::array<std::uint8_t, 16> codes;
  };

  static bool quantize(const float* x, Block& out) noexcept;
  static void dequantize(const Block& block, float* out) noexcept;
};

// 128 signs: weight i is the scale if bit i % 8 of byte i / 8 is set, otherwise -scale. (quantize:
// the mean magnitude.)
struct Q1_0 {
  static constexpr int kBits = 1;
  static constexpr int kLength = 128;
  static constexpr int kGroupLength = 128;
  static constexpr ZeroPoint kZeroPoint = ZeroPoint::symmetric;
  using Scale = f16;
  struct Block {
    f16 scale;
    std::array<std::uint8_t, 16> codes;
  };

  static bool quantize(const float* x, Block& out) noexcept;
  static void dequantize(const Block& block, float* out) noexcept;
};

static_assert(sizeof(Q4_K::Block) == 144 && alignof(Q4_K::Block) == 2);
static_assert(sizeof(Q5_K::Block) == 176 && alignof(Q5_K::Block) == 2);
static_assert(sizeof(Q6_K::Block) == 210 && alignof(Q6_K::Block) == 2);
static_assert(sizeof(Q2_K::Block) == 84 && alignof(Q2_K::Block) == 2);
static_assert(sizeof(Q3_K::Block) == 110 && alignof(Q3_K::Block) == 2);
static_assert(sizeof(TQ2_0::Block) == 66 && alignof(TQ2_0::Block) == 2);
static_assert(sizeof(Q2_0::Block) == 18 && alignof(Q2_0::Block) == 2);
static_assert(sizeof(Q1_0::Block) == 18 && alignof(Q1_0::Block) == 2);

struct IQ4_XS;  // levels.hpp

template <class F, class... Fs>
concept OneOf = (std::is_same_v<F, Fs> || ...);

// Only these: their kernels know where the bits of a block are, so that a program's own type
// which has groups as well is not one of them.
template <class F>
concept SuperBlockFormat =
    BlockFormat<F> && OneOf<F, Q4_K, Q5_K, Q6_K, Q2_K, Q3_K, TQ2_0, Q2_0, Q1_0, IQ4_XS>;

namespace detail {

// The scale and minimum of a group of 32.
struct GroupScale {
  int scale;
  int minimum;
};
inline GroupScale group_scale(const std::array<std::uint8_t, 12>& scales, std::size_t g) noexcept {
  if (g < 4) return {scales[g] & 63, scales[g + 4] & 63};
  return {(scales[g + 4] & 15) | (scales[g - 4] >> 6) << 4, (scales[g + 4] >> 4) | (scales[g] >> 6)
                                                                                       << 4};
}
inline void set_group_scale(std::array<std::uint8_t, 12>& scales, std::size_t g,
                            GroupScale s) noexcept {
  const auto put = [&](std::size_t at, int bits) {
    scales[at] = static_cast<std::uint8_t>(scales[at] | bits);
  };
  if (g < 4) {  // these come first: the others add to their bytes
    scales[g] = static_cast<std::uint8_t>(s.scale);
    scales[g + 4] = static_cast<std::uint8_t>(s.minimum);
  } else {
    scales[g + 4] = static_cast<std::uint8_t>((s.scale & 15) | (s.minimum & 15) << 4);
    put(g - 4, s.scale >> 4 << 6);
    put(g, s.minimum >> 4 << 6);
  }
}

// Codes of up to three bits to a block; the small scales of Q3_K.
void pack_codes(const std::array<std::uint8_t, 256>& codes, Q2_K::Block& out) noexcept;
void pack_codes(const std::array<std::uint8_t, 256>& codes, Q3_K::Block& out) noexcept;
void pack_codes(const std::array<std::uint8_t, 256>& codes, TQ2_0::Block& out) noexcept;
void pack_codes(const std::array<std::uint8_t, 64>& codes, Q2_0::Block& out) noexcept;
void pack_codes(const std::array<std::uint8_t, 128>& codes, Q1_0::Block& out) noexcept;
int q3_scale(const Q3_K::Block& block, std::size_t g) noexcept;
void set_q3_scales(const std::array<std::int8_t, 16>& scales, Q3_K::Block& block) noexcept;

// x clamped to [low, high] and rounded to nearest, ties to even; NaN gives low.
inline int nearest_in(float x, int low, int high) noexcept {
  constexpr float kNoFractions = 0x1.8p23f;
  const float clamped =
      x > static_cast<float>(low) ? smaller(x, static_cast<float>(high)) : static_cast<float>(low);
  return static_cast<int>((clamped + kNoFractions) - kNoFractions);
}

// Below, no sum over a block overflows that decides what it becomes.
inline constexpr float kLargestInSuperBlock = 0x1p30f;

// Copies a block's weights, made safe; returns false if one had to be changed.
template <std::size_t n>
bool tame_super_block(const float* x, std::array<float, n>& out) noexcept {
  bool fits = true;
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] = clamped(tamed(x[i]), -kLargestInSuperBlock, kLargestInSuperBlock);
    fits = fits && out[i] == x[i];
  }
  return fits;
}

struct FittedGroup {
  float scale;
  float minimum;  // not negative: weight = scale * code - minimum
};

// The scale and minimum for which codes 0 … n_levels represent a group of n best: the weighted sum
// of squared (or absolute) errors is the least among those of n_steps + 1 candidate scales, around
// the one that spans the group, each improved by least squares.
template <std::size_t n = 32, bool kAbsolute = false>
FittedGroup fit_with_minimum(const float* x, const float* weights, int n_levels, float first,
                             int n_steps, std::uint8_t* codes) noexcept {
  const auto levels = static_cast<float>(n_levels);
  float low = x[0], high = x[0];
  float sum_w = weights[0], sum_x = weights[0] * x[0];
  for (std::size_t i = 1; i < n; ++i) {
    low = smaller(low, x[i]);
    high = larger(high, x[i]);
    sum_w += weights[i];
    sum_x += weights[i] * x[i];
  }
  low = smaller(low, 0.0f);
  std::fill_n(codes, n, std::uint8_t{0});
  const float range = high - low;
  if (range < 0x1p-60f) return {0.0f, -low};

  const auto encode = [&](float inverse, float minimum, std::uint8_t* to) {
    for (std::size_t i = 0; i < n; ++i) {
      to[i] = static_cast<std::uint8_t>(nearest_in(inverse * (x[i] - minimum), 0, n_levels));
    }
  };
  const auto error_of = [&](float scale, float minimum, const std::uint8_t* of) {
    float error = 0.0f;
    for (std::size_t i = 0; i < n; ++i) {
      const float difference = scale * of[i] + minimum - x[i];
      error += weights[i] * (kAbsolute ? libm::fabs(difference) : difference * difference);
    }
    return error;
  };
  float inverse = levels / range;
  float scale = 1.0f / inverse;
  encode(inverse, low, codes);
  float least = error_of(scale, low, codes);
  float minimum = low;
  std::uint8_t candidate[n];
  for (int step = 0; step <= n_steps; ++step) {
    inverse = (first + 0.1f * static_cast<float>(step) + levels) / (high - minimum);
    encode(inverse, minimum, candidate);
    float sum_c = 0.0f, sum_cc = 0.0f, sum_xc = 0.0f;
    for (std::size_t i = 0; i < n; ++i) {
      const float weighted = weights[i] * candidate[i];
      sum_c += weighted;
      sum_cc += weighted * candidate[i];
      sum_xc += weighted * x[i];
    }
    const float determinant = sum_w * sum_cc - sum_c * sum_c;
    if (!(determinant > 0.0f)) continue;
    float new_scale = (sum_w * sum_xc - sum_x * sum_c) / determinant;
    float new_minimum = (sum_cc * sum_x - sum_c * sum_xc) / determinant;
    if (new_minimum > 0.0f) {
      new_minimum = 0.0f;
      new_scale = sum_xc / sum_cc;
    }
    const float error = error_of(new_scale, new_minimum, candidate);
    if (error < least) {
      std::copy_n(candidate, n, codes);
      least = error;
      scale = new_scale;
      minimum = new_minimum;
    }
  }
  return {scale, -minimum};
}

// The scale for which codes -32 … 31 represent a group of 16 best: likewise, errors weighted with
// the squares of the weights. `codes` are the codes with their offset of 32.
inline float fit_symmetric6(const float* x, std::uint8_t* codes) noexcept {
  constexpr int n = 16, kOffset = 32;
  float peak = 0.0f;  // signed
  for (int i = 0; i < n; ++i) {
    if (libm::fabs(x[i]) > libm::fabs(peak)) peak = x[i];
  }
  std::fill_n(codes, n, std::uint8_t{0});
  if (libm::fabs(peak) < 1e-15f) return 0.0f;
  const auto code_of = [&](float inverse, int i) {
    return nearest_in(inverse * x[i], -kOffset, kOffset - 1);
  };
  const auto take = [&](float inverse) {
    for (int i = 0; i < n; ++i) {
      codes[i] = static_cast<std::uint8_t>(kOffset + code_of(inverse, i));
    }
  };
  float scale = 0.0f, best = 0.0f;
  for (int step = 0; step <= 18; ++step) {  // the middle first, then -9 … 9 without it
    const int shift = step == 0 ? 0 : step <= 9 ? step - 10 : step - 9;
    const float inverse = -(kOffset + 0.1f * static_cast<float>(shift)) / peak;
    float sum_xc = 0.0f, sum_cc = 0.0f;
    for (int i = 0; i < n; ++i) {
      const auto code = static_cast<float>(code_of(inverse, i));
      const float weight = x[i] * x[i];
      sum_xc += weight * x[i] * code;
      sum_cc += weight * code * code;
    }
    if (step == 0) {
      take(inverse);
      scale = sum_cc != 0.0f ? sum_xc / sum_cc : 0.0f;
      best = scale * sum_xc;
    } else if (sum_cc > 0.0f && sum_xc * sum_xc > best * sum_cc) {
      take(inverse);
      scale = sum_xc / sum_cc;
      best = scale * sum_xc;
    }
  }
  return scale;
}

// Store codes, 0 … 2^kBits - 1, in the order that the blocks define.
template <int Bits>
void pack_codes(const std::array<std::uint8_t, 256>& codes,
                typename SuperBlocks<Bits>::Block& out) noexcept {
  constexpr std::size_t kFirst = Bits == 5 ? 32 : 0;  // of the 4-bit codes
  for (std::size_t j = 0; j < kFirst; ++j) {
    int fifth_bits = 0;
    for (std::size_t g = 0; g < 8; ++g) fifth_bits |= (codes[32 * g + j] >> 4) << g;
    out.codes[j] = static_cast<std::uint8_t>(fifth_bits);
  }
  for (std::size_t i = 0; i < 128; ++i) {
    const std::size_t at = i / 32 * 64 + i % 32;
    out.codes[kFirst + i] = static_cast<std::uint8_t>((codes[at] & 15) | codes[at + 32] << 4);
  }
}
inline void pack_codes(const std::array<std::uint8_t, 256>& codes, Q6_K::Block& out) noexcept {
  out.codes = {};
  for (std::size_t i = 0; i < 256; ++i) {
    const std::size_t half = i / 128, part = i / 32 % 4, j = i % 32;
    std::uint8_t& low = out.codes[64 * half + part % 2 * 32 + j];
    std::uint8_t& high = out.codes[128 + 32 * half + j];
    low = static_cast<std::uint8_t>(low | (codes[i] & 15) << part / 2 * 4);
    high = static_cast<std::uint8_t>(high | (codes[i] >> 4) << 2 * part);
  }
}

}  // namespace detail

template <int Bits>
bool SuperBlocks<Bits>::quantize(const float* weights, Block& out) noexcept {
  constexpr int kLevels = (1 << Bits) - 1;
  constexpr std::size_t kGroups = 8;
  std::array<float, 256> x;
  bool fits = detail::tame_super_block(weights, x);
  std::array<std::uint8_t, 256> codes;
  detail::FittedGroup groups[kGroups];
  float largest_scale = 0.0f, largest_minimum = 0.0f;
  for (std::size_t g = 0; g < kGroups; ++g) {
    const float* const group = x.data() + 32 * g;
    float squares = 0.0f;
    for (int i = 0; i < 32; ++i) squares += group[i] * group[i];
    const float magnitude = libm::sqrt(squares / 32.0f);
    float importance[32];
    for (int i = 0; i < 32; ++i) importance[i] = magnitude + libm::fabs(group[i]);
    groups[g] = Bits == 4 ? detail::fit_with_minimum(group, importance, kLevels, -1.0f, 20,
                                                     codes.data() + 32 * g)
                          : detail::fit_with_minimum(group, importance, kLevels, -0.5f, 15,
                                                     codes.data() + 32 * g);
    largest_scale = larger(largest_scale, groups[g].scale);
    largest_minimum = larger(largest_minimum, groups[g].minimum);
  }
  const float inverse_scale = largest_scale > 0.0f ? 63.0f / largest_scale : 0.0f;
  const float inverse_minimum = largest_minimum > 0.0f ? 63.0f / largest_minimum : 0.0f;
  for (std::size_t g = 0; g < kGroups; ++g) {
    detail::set_group_scale(out.scales, g,
                            {detail::nearest_in(inverse_scale * groups[g].scale, 0, 63),
                             detail::nearest_in(inverse_minimum * groups[g].minimum, 0, 63)});
  }
  const float scale = saturated<f16>(largest_scale / 63.0f);
  const float minimum = saturated<f16>(largest_minimum / 63.0f);
  fits = fits && scale == largest_scale / 63.0f && minimum == largest_minimum / 63.0f;
  out.scale = to_f16(scale);
  out.minimum = to_f16(minimum);

  // The codes that are best for the scales as they are stored.
  for (std::size_t g = 0; g < kGroups; ++g) {
    const detail::GroupScale s = detail::group_scale(out.scales, g);
    const float d = to_f32(out.scale) * static_cast<float>(s.scale);
    if (d == 0.0f) continue;
    const float m = to_f32(out.minimum) * static_cast<float>(s.minimum);
    for (std::size_t i = 32 * g; i < 32 * (g + 1); ++i) {
      codes[i] = static_cast<std::uint8_t>(detail::nearest_in((x[i] + m) / d, 0, kLevels));
    }
  }
  detail::pack_codes<Bits>(codes, out);
  return fits;
}

template <int Bits>
void SuperBlocks<Bits>::dequantize(const Block& block, float* out) noexcept {
  constexpr std::size_t kFirst = Bits == 5 ? 32 : 0;
  for (std::size_t g = 0; g < 8; ++g) {
    const detail::GroupScale s = detail::group_scale(block.scales, g);
    const float d = to_f32(block.scale) * static_cast<float>(s.scale);  // exact
    const float m = to_f32(block.minimum) * static_cast<float>(s.minimum);
    for (std::size_t j = 0; j < 32; ++j) {
      int code = block.codes[kFirst + g / 2 * 32 + j] >> g % 2 * 4 & 15;
      if constexpr (Bits == 5) code |= (block.codes[j] >> g & 1) << 4;
      out[32 * g + j] = d * static_cast<float>(code) - m;
    }
  }
}

inline bool Q6_K::quantize(const float* weights, Block& out) noexcept {
  constexpr std::size_t kGroups = 16;
  std::array<float, 256> x;
  bool fits = detail::tame_super_block(weights, x);
  std::array<std::uint8_t, 256> codes;
  float scales[kGroups];
  float largest = 0.0f;  // signed
  for (std::size_t g = 0; g < kGroups; ++g) {
    scales[g] = detail::fit_symmetric6(x.data() + 16 * g, codes.data() + 16 * g);
    if (libm::fabs(scales[g]) > libm::fabs(largest)) largest = scales[g];
  }
  out = {};
  if (libm::fabs(largest) < 1e-15f) return fits;
  const float inverse = -128.0f / largest;
  const float scale = saturated<f16>(1.0f / inverse);
  fits = fits && scale == 1.0f / inverse;
  out.scale = to_f16(scale);
  for (std::size_t g = 0; g < kGroups; ++g) {
    const int s = detail::nearest_in(inverse * scales[g], -128, 127);
    out.scales[g] = static_cast<std::int8_t>(s);
    const float d = to_f32(out.scale) * static_cast<float>(s);
    if (d == 0.0f) continue;
    for (std::size_t i = 16 * g; i < 16 * (g + 1); ++i) {
      codes[i] = static_cast<std::uint8_t>(32 + detail::nearest_in(x[i] / d, -32, 31));
    }
  }
  detail::pack_codes(codes, out);
  return fits;
}

inline void Q6_K::dequantize(const Block& block, float* out) noexcept {
  for (std::size_t i = 0; i < 256; ++i) {
    const std::size_t half = i / 128, part = i / 32 % 4, j = i % 32;
    const int low = block.codes[64 * half + part % 2 * 32 + j] >> part / 2 * 4 & 15;
    const int high = block.codes[128 + 32 * half + j] >> 2 * part & 3;
    const float d = to_f32(block.scale) * static_cast<float>(block.scales[i / 16]);  // exact
    out[i] = d * static_cast<float>((low | high << 4) - 32);
  }
}

}}}  // namespace nibble::NIBBLE_ABI::quant
NIBBLE_EXACT_MATH_END

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/quant/few_bits-inl.hpp"
#endif
