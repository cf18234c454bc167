// SPDX-License-Identifier: Apache-2.0
//
// 8-bit codes of activations whose range is known before they are computed, from calibration: one
// scale, and for unsigned codes one zero point, for a whole tensor.
#pragma once

#include <cstdint>

#include "nibble/core/exact_math.hpp"
#include "nibble/core/scalar.hpp"

NIBBLE_EXACT_MATH_BEGIN
namespace nibble { inline namespace NIBBLE_ABI { namespace quant {

// Symmetric: value = scale * code, codes in [-127, 127]; zero_point is 0.
// Unsigned: value = scale * (code - zero_point), codes and zero_point in [0, 255]: zero is always
// represented exactly. (As ONNX's QuantizeLinear to uint8 has it.)
// What the range does not hold saturates.
struct StaticScale {
  float scale = 0.0f;  // 0: no range is known
  std::int32_t zero_point = 0;
  bool is_unsigned = false;

  constexpr explicit operator bool() const noexcept { return scale > 0.0f; }
  friend constexpr bool operator==(const StaticScale&, const StaticScale&) noexcept = default;

  // Stored codes are signed: those of unsigned ranges minus 128. The stored code of zero, and the
  // smallest and the largest stored code.
  constexpr std::int32_t stored_zero() const noexcept { return is_unsigned ? zero_point - 128 : 0; }
  constexpr std::int32_t stored_low() const noexcept { return is_unsigned ? -128 : -127; }
  static constexpr std::int32_t stored_high() noexcept { return 127; }
};

// Scales outside of these bounds, and their inverses times values, might not be normal numbers.
inline constexpr float kMinStaticScale = 0x1p-100f;
inline constexpr float kMaxStaticScale = 0x1p100f;

// Whether kernels may be given this scale: it is known, in the bounds, and the zero point is a
// code.
constexpr bool is_usable(const StaticScale& s) noexcept {
  return s.scale >= kMinStaticScale && s.scale <= kMaxStaticScale &&
         (s.is_unsigned ? s.zero_point >= 0 && s.zero_point <= 255 : s.zero_point == 0);
}

// The value of a stored code.
constexpr float value_of(const StaticScale& s, std::int8_t stored) noexcept {
  return s.scale * static_cast<float>(stored - s.stored_zero());
}

// The stored code of a value, as kernels compute it (kernels::QuantizeRowStatic): the value times
// the inverse of the scale (two roundings), to the nearest integer, ties to even, plus the code of
// zero. NaN gets the code of zero.
constexpr std::int8_t stored_code_of(const StaticScale& s, float x) noexcept {
  const float zero = static_cast<float>(s.stored_zero());
  const float low = static_cast<float>(s.stored_low()) - zero;
  const float high = static_cast<float>(StaticScale::stored_high()) - zero;
  if (is_nan(static_cast<double>(x))) return static_cast<std::int8_t>(s.stored_zero());
  const float steps = clamped(x * (1.0f / s.scale), low, high);
  // Adding 1.5 * 2^23 leaves no bits below 1: rounds to nearest, ties to even.
  constexpr float kRound = 12582912.0f;
  return static_cast<std::int8_t>(static_cast<std::int32_t>((steps + kRound) - kRound) +
                                  s.stored_zero());
}

}}}  // namespace nibble::NIBBLE_ABI::quant
NIBBLE_EXACT_MATH_END
