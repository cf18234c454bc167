// SPDX-License-Identifier: Apache-2.0
//
// Blocks of weights of one, two or three bits. Included by super_block.hpp.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "nibble/core/exact_math.hpp"
#include "nibble/core/float16.hpp"
#include "nibble/core/libm.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/quant/quantize.hpp"
#include "nibble/quant/super_block.hpp"

NIBBLE_EXACT_MATH_BEGIN
namespace nibble { inline namespace NIBBLE_ABI { namespace quant {

namespace detail {

// Where the two low bits of weight i are: byte and shift.
constexpr std::size_t byte_of_two_bits(std::size_t i) noexcept { return i / 128 * 32 + i % 32; }
constexpr int shift_of_two_bits(std::size_t i) noexcept { return static_cast<int>(i / 32 % 4 * 2); }

inline void put_two_bits(const std::uint8_t* codes, std::uint8_t* out) noexcept {
  for (std::size_t i = 0; i < 256; ++i) {
    std::uint8_t& byte = out[byte_of_two_bits(i)];
    byte = static_cast<std::uint8_t>(byte | (codes[i] & 3) << shift_of_two_bits(i));
  }
}

NIBBLE_INLINE void pack_codes(const std::array<std::uint8_t, 256>& codes,
                              Q2_K::Block& out) noexcept {
  out.codes = {};
  put_two_bits(codes.data(), out.codes.data());
}
NIBBLE_INLINE void pack_codes(const std::array<std::uint8_t, 256>& codes,
                              TQ2_0::Block& out) noexcept {
  out.codes = {};
  put_two_bits(codes.data(), out.codes.data());
}
NIBBLE_INLINE void pack_codes(const std::array<std::uint8_t, 256>& codes,
                              Q3_K::Block& out) noexcept {
  out.codes = {};
  put_two_bits(codes.data(), out.codes.data() + 32);
  for (std::size_t i = 0; i < 256; ++i) {
    std::uint8_t& byte = out.codes[i % 32];
    byte = static_cast<std::uint8_t>(byte | (codes[i] >> 2) << i / 32);
  }
}

NIBBLE_INLINE void pack_codes(const std::array<std::uint8_t, 64>& codes,
                              Q2_0::Block& out) noexcept {
  for (std::size_t i = 0; i < out.codes.size(); ++i) {
    const std::uint8_t* const four = codes.data() + 4 * i;
    out.codes[i] = static_cast<std::uint8_t>(four[0] | four[1] << 2 | four[2] << 4 | four[3] << 6);
  }
}
NIBBLE_INLINE void pack_codes(const std::array<std::uint8_t, 128>& codes,
                              Q1_0::Block& out) noexcept {
  out.codes = {};
  for (std::size_t i = 0; i < codes.size(); ++i) {
    std::uint8_t& byte = out.codes[i / 8];
    byte = static_cast<std::uint8_t>(byte | codes[i] << i % 8);
  }
}

NIBBLE_INLINE int q3_scale(const Q3_K::Block& block, std::size_t g) noexcept {
  const int low = block.scales[g % 8] >> g / 8 * 4 & 15;
  const int high = block.scales[8 + g % 4] >> g / 4 * 2 & 3;
  return (low | high << 4) - 32;
}
NIBBLE_INLINE void set_q3_scales(const std::array<std::int8_t, 16>& scales,
                                 Q3_K::Block& block) noexcept {
  block.scales = {};
  for (std::size_t g = 0; g < 16; ++g) {
    const int s = scales[g] + 32;
    std::uint8_t& low = block.scales[g % 8];
    std::uint8_t& high = block.scales[8 + g % 4];
    low = static_cast<std::uint8_t>(low | (s & 15) << g / 8 * 4);
    high = static_cast<std::uint8_t>(high | s >> 4 << g / 4 * 2);
  }
}

// The scale for which codes -4 … 3 represent a group of 16 best, with errors weighted with the
// squares of the weights: from the codes for the scale of the peak, one code at a time changes to
// what is best beside the others, as long as that helps. `stored` are the codes with their offset.
inline float fit_symmetric3(const float* x, std::uint8_t* stored) noexcept {
  constexpr int n = 16, kOffset = 4;
  float peak = 0.0f;  // signed
  for (int i = 0; i < n; ++i) {
    if (libm::fabs(x[i]) > libm::fabs(peak)) peak = x[i];
  }
  std::fill_n(stored, n, std::uint8_t{0});
  if (libm::fabs(peak) < 1e-15f) return 0.0f;
  const float inverse = -static_cast<float>(kOffset) / peak;
  float codes[n];
  float xc = 0.0f, cc = 0.0f;
  for (int i = 0; i < n; ++i) {
    codes[i] = static_cast<float>(nearest_in(inverse * x[i], -kOffset, kOffset - 1));
    const float w = x[i] * x[i];
    xc += w * x[i] * codes[i];
    cc += w * codes[i] * codes[i];
  }
  for (int round = 0; round < 5; ++round) {
    bool changed = false;
    for (int i = 0; i < n; ++i) {
      const float w = x[i] * x[i];
      float others_xc = xc - w * x[i] * codes[i];
      if (!(others_xc > 0.0f)) continue;
      float others_cc = cc - w * codes[i] * codes[i];
      const auto code =
          static_cast<float>(nearest_in(x[i] * others_cc / others_xc, -kOffset, kOffset - 1));
      if (code == codes[i]) continue;
      others_xc += w * x[i] * code;
      others_cc += w * code * code;
      if (!(others_cc > 0.0f && others_xc * others_xc * cc > xc * xc * others_cc)) continue;
      codes[i] = code;
      xc = others_xc;
      cc = others_cc;
      changed = true;
    }
    if (!changed) break;
  }
  for (int i = 0; i < n; ++i) stored[i] = static_cast<std::uint8_t>(codes[i] + kOffset);
  return cc > 0.0f ? xc / cc : 0.0f;
}

}  // namespace detail

NIBBLE_INLINE bool Q2_K::quantize(const float* weights, Block& out) noexcept {
  constexpr std::size_t kGroups = 16;
  std::array<float, 256> x;
  bool fits = detail::tame_super_block(weights, x);
  std::array<std::uint8_t, 256> codes;
  detail::FittedGroup groups[kGroups];
  float largest_scale = 0.0f, largest_minimum = 0.0f;
  for (std::size_t g = 0; g < kGroups; ++g) {
    const float* const group = x.data() + 16 * g;
    float importance[16];
    for (int i = 0; i < 16; ++i) importance[i] = libm::fabs(group[i]);
    groups[g] =
        detail::fit_with_minimum<16, true>(group, importance, 3, -0.5f, 15, codes.data() + 16 * g);
    largest_scale = larger(largest_scale, groups[g].scale);
    largest_minimum = larger(largest_minimum, groups[g].minimum);
  }
  const float inverse_scale = largest_scale > 0.0f ? 15.0f / largest_scale : 0.0f;
  const float inverse_minimum = largest_minimum > 0.0f ? 15.0f / largest_minimum : 0.0f;
  const float scale = saturated<f16>(largest_scale / 15.0f);
  const float minimum = saturated<f16>(largest_minimum / 15.0f);
  fits = fits && scale == largest_scale / 15.0f && minimum == largest_minimum / 15.0f;
  out.scale = to_f16(scale);
  out.minimum = to_f16(minimum);
  for (std::size_t g = 0; g < kGroups; ++g) {
    const int s = detail::nearest_in(inverse_scale * groups[g].scale, 0, 15);
    const int m = detail::nearest_in(inverse_minimum * groups[g].minimum, 0, 15);
    out.scales[g] = static_cast<std::uint8_t>(s | m << 4);
    const float d = to_f32(out.scale) * static_cast<float>(s);
    if (d == 0.0f) continue;
    const float offset = to_f32(out.minimum) * static_cast<float>(m);
    for (std::size_t i = 16 * g; i < 16 * (g + 1); ++i) {
      codes[i] = static_cast<std::uint8_t>(detail::nearest_in((x[i] + offset) / d, 0, 3));
    }
  }
  detail::pack_codes(codes, out);
  return fits;
}

NIBBLE_INLINE void Q2_K::dequantize(const Block& block, float* out) noexcept {
  for (std::size_t i = 0; i < 256; ++i) {
    const int code = block.codes[detail::byte_of_two_bits(i)] >> detail::shift_of_two_bits(i) & 3;
    const int scales = block.scales[i / 16];
    const float d = to_f32(block.scale) * static_cast<float>(scales & 15);  // exact
    out[i] = d * static_cast<float>(code) - to_f32(block.minimum) * static_cast<float>(scales >> 4);
  }
}

NIBBLE_INLINE bool Q3_K::quantize(const float* weights, Block& out) noexcept {
  constexpr std::size_t kGroups = 16;
  std::array<float, 256> x;
  bool fits = detail::tame_super_block(weights, x);
  std::array<std::uint8_t, 256> codes;
  float scales[kGroups];
  float largest = 0.0f;  // signed
  for (std::size_t g = 0; g < kGroups; ++g) {
    scales[g] = detail::fit_symmetric3(x.data() + 16 * g, codes.data() + 16 * g);
    if (libm::fabs(scales[g]) > libm::fabs(largest)) largest = scales[g];
  }
  out = {};
  if (largest == 0.0f) return fits;
  std::array<std::int8_t, kGroups> groups;
  const float inverse = -32.0f / largest;
  const float scale = saturated<f16>(1.0f / inverse);
  fits = fits && scale == 1.0f / inverse;
  out.scale = to_f16(scale);
  for (std::size_t g = 0; g < kGroups; ++g) {
    groups[g] = static_cast<std::int8_t>(detail::nearest_in(inverse * scales[g], -32, 31));
    const float d = to_f32(out.scale) * static_cast<float>(groups[g]);
    if (d == 0.0f) continue;
    for (std::size_t i = 16 * g; i < 16 * (g + 1); ++i) {
      codes[i] = static_cast<std::uint8_t>(4 + detail::nearest_in(x[i] / d, -4, 3));
    }
  }
  detail::set_q3_scales(groups, out);
  detail::pack_codes(codes, out);
  return fits;
}

NIBBLE_INLINE void Q3_K::dequantize(const Block& block, float* out) noexcept {
  for (std::size_t i = 0; i < 256; ++i) {
    const int low =
        block.codes[32 + detail::byte_of_two_bits(i)] >> detail::shift_of_two_bits(i) & 3;
    const int code = low | (block.codes[i % 32] >> i / 32 & 1) << 2;
    const float d =
        to_f32(block.scale) * static_cast<float>(detail::q3_scale(block, i / 16));  // exact
    out[i] = d * static_cast<float>(code - 4);
  }
}

NIBBLE_INLINE bool TQ2_0::quantize(const float* weights, Block& out) noexcept {
  std::array<float, 256> x;
  bool fits = detail::tame_super_block(weights, x);
  float peak = 0.0f;
  for (const float v : x) peak = larger(peak, libm::fabs(v));
  const float scale = saturated<f16>(peak);
  fits = fits && scale == peak;
  out.scale = to_f16(scale);
  const float inverse = inverse_scale(scale);
  std::array<std::uint8_t, 256> codes;
  for (std::size_t i = 0; i < 256; ++i) {
    const float quotient = clamped(x[i] * inverse, -1.0f, 1.0f);
    codes[i] = static_cast<std::uint8_t>(1 + static_cast<int>(libm::round_away(quotient)));
  }
  detail::pack_codes(codes, out);
  return fits;
}

NIBBLE_INLINE void TQ2_0::dequantize(const Block& block, float* out) noexcept {
  const float d = to_f32(block.scale);
  for (std::size_t i = 0; i < 256; ++i) {
    const int code = block.codes[detail::byte_of_two_bits(i)] >> detail::shift_of_two_bits(i) & 3;
    out[i] = d * static_cast<float>(code - 1);
  }
}

NIBBLE_INLINE bool Q2_0::quantize(const float* weights, Block& out) noexcept {
  std::array<float, 64> x;
  bool fits = detail::tame_super_block(weights, x);
  float peak = 0.0f;  // signed
  for (const float v : x) {
    if (libm::fabs(v) > libm::fabs(peak)) peak = v;
  }
  // Of the two scales that hold the peak, the one that loses less.
  float least = kInfinity, scale = 0.0f;
  for (const float candidate : {peak / 2.0f, -peak}) {
    const float d = to_f32(to_f16(saturated<f16>(candidate))), inverse = inverse_scale(d);
    float error = 0.0f;
    for (const float v : x) {
      const float off = v - d * static_cast<float>(detail::nearest_in(v * inverse, -1, 2));
      error += off * off;
    }
    if (!(error < least)) continue;
    least = error;
    scale = candidate;
  }
  fits = fits && saturated<f16>(scale) == scale;
  out.scale = to_f16(saturated<f16>(scale));
  const float inverse = inverse_scale(to_f32(out.scale));
  std::array<std::uint8_t, 64> codes;
  for (std::size_t i = 0; i < 64; ++i) {
    codes[i] = static_cast<std::uint8_t>(1 + detail::nearest_in(x[i] * inverse, -1, 2));
  }
  detail::pack_codes(codes, out);
  return fits;
}

NIBBLE_INLINE void Q2_0::dequantize(const Block& block, float* out) noexcept {
  const float d = to_f32(block.scale);
  for (std::size_t i = 0; i < 64; ++i) {
    out[i] = d * static_cast<float>((block.codes[i / 4] >> i % 4 * 2 & 3) - 1);
  }
}

NIBBLE_INLINE bool Q1_0::quantize(const float* weights, Block& out) noexcept {
  std::array<float, 128> x;
  bool fits = detail::tame_super_block(weights, x);
  float sum = 0.0f;
  for (const float v : x) sum += libm::fabs(v);
  const float scale = saturated<f16>(sum / 128.0f);
  fits = fits && scale == sum / 128.0f;
  out.scale = to_f16(scale);
  std::array<std::uint8_t, 128> codes;
  for (std::size_t i = 0; i < 128; ++i) codes[i] = x[i] >= 0.0f ? 1 : 0;
  detail::pack_codes(codes, out);
  return fits;
}

NIBBLE_INLINE void Q1_0::dequantize(const Block& block, float* out) noexcept {
  const float d = to_f32(block.scale);
  for (std::size_t i = 0; i < 128; ++i) {
    out[i] = (block.codes[i / 8] >> i % 8 & 1) != 0 ? d : -d;
  }
}

}}}  // namespace nibble::NIBBLE_ABI::quant
NIBBLE_EXACT_MATH_END
