// SPDX-License-Identifier: Apache-2.0
//
// Storage types for 16-bit floats and for powers of two, and their exact conversions. Arithmetic is
// done in f32. Kernels convert whole vectors; these scalar functions are for files, scales and
// tails. (They use __builtin_bit_cast, which every compiler has. std::bit_cast is a function of
// namespace std, see core/scalar.hpp for why that matters.)
#pragma once

#include <cstdint>

#include "nibble/core/config.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// IEEE 754 binary16, as bits.
struct f16 {
  std::uint16_t bits = 0;
  friend constexpr bool operator==(f16, f16) = default;
};

// bfloat16: the upper half of a binary32, as bits.
struct bf16 {
  std::uint16_t bits = 0;
  friend constexpr bool operator==(bf16, bf16) = default;
};

// A power of two, 2^(bits - 128): half of what the type E8M0 of OCP's MX formats means by the same
// bits.
struct HalfE8M0 {
  std::uint8_t bits = 0;
  friend constexpr bool operator==(HalfE8M0, HalfE8M0) = default;
};

static_assert(sizeof(f16) == 2 && alignof(f16) == 2);
static_assert(sizeof(bf16) == 2 && alignof(bf16) == 2);
static_assert(sizeof(HalfE8M0) == 1);

// Exact; NaN payloads are kept.
constexpr float to_f32(f16 h) noexcept {
  const std::uint32_t sign = std::uint32_t{h.bits & 0x8000u} << 16;
  const std::uint32_t exponent = (h.bits >> 10) & 0x1Fu;
  const std::uint32_t mantissa = h.bits & 0x3FFu;
  if (exponent == 0x1F) return __builtin_bit_cast(float, sign | 0x7F800000u | (mantissa << 13));
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return __builtin_bit_cast(float, sign | __builtin_bit_cast(std::uint32_t, magnitude));
  }
  return __builtin_bit_cast(float, sign | ((exponent + 112) << 23) | (mantissa << 13));
}

constexpr float to_f32(bf16 b) noexcept {
  return __builtin_bit_cast(float, std::uint32_t{b.bits} << 16);
}

constexpr float to_f32(float x) noexcept { return x; }

// The least two are subnormal.
constexpr float to_f32(HalfE8M0 e) noexcept {
  const std::uint32_t bits = e.bits < 2 ? 0x00200000u << e.bits : (e.bits - 1u) << 23;
  return __builtin_bit_cast(float, bits);
}

// Rounds to nearest, ties to even. Overflow gives infinity, NaN stays NaN (quiet).
constexpr f16 to_f16(float x) noexcept {
  const std::uint32_t u = __builtin_bit_cast(std::uint32_t, x);
  const std::uint32_t sign = (u >> 16) & 0x8000u;
  const std::uint32_t magnitude = u & 0x7FFFFFFFu;
  std::uint32_t bits;
  if (magnitude > 0x7F800000u) {
    bits = 0x7E00u | ((magnitude >> 13) & 0x3FFu);
  } else if (magnitude >= 0x477FF000u) {  // rounds to 2^16 or is infinite
    bits = 0x7C00u;
  } else if (magnitude < 0x38800000u) {  // subnormal result: let the f32 adder round at 2^-24
    const float aligned = __builtin_bit_cast(float, magnitude) + 0.5f;
    bits = __builtin_bit_cast(std::uint32_t, aligned) - 0x3F000000u;
  } else {
    bits = (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return f16{static_cast<std::uint16_t>(sign | bits)};
}

// Rounds to nearest, ties to even. NaN stays NaN (quiet). Same as ggml's reference.
constexpr bf16 to_bf16(float x) noexcept {
  const std::uint32_t u = __builtin_bit_cast(std::uint32_t, x);
  if ((u & 0x7FFFFFFFu) > 0x7F800000u) {
    return bf16{static_cast<std::uint16_t>((u >> 16) | 64u)};
  }
  return bf16{static_cast<std::uint16_t>((u + (0x7FFFu + ((u >> 16) & 1u))) >> 16)};
}

}}  // namespace nibble::NIBBLE_ABI
