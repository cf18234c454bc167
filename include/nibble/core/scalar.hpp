// SPDX-License-Identifier: Apache-2.0
//
// Small functions on floating-point numbers. They replace those of namespace std, of which the
// linker keeps one copy for all translation units of a program. In builds without optimization,
// that may be the copy that was compiled for a better machine than the one it runs on. The
// functions here are in a namespace that names the compiler flags.
#pragma once

#include <cstdint>
#include <limits>

#include "nibble/core/config.hpp"
#include "nibble/core/exact_math.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr float kFloatMax = (std::numeric_limits<float>::max)();

namespace detail {
// |x| as its bits: ordered like the numbers, then infinity, then NaN. A comparison of numbers would
// be no test for these with -ffast-math, and Clang sees through some tests of bits as well.
constexpr std::uint64_t magnitude_bits(double x) noexcept {
  std::uint64_t bits = __builtin_bit_cast(std::uint64_t, x);
#if NIBBLE_HAVE_FAST_MATH && defined(__GNUC__)
  if (!__builtin_is_constant_evaluated()) __asm__("" : "+m"(bits));
#endif
  return bits & 0x7FFFFFFFFFFFFFFFu;
}
inline constexpr std::uint64_t kInfinityBits = 0x7FF0000000000000u;
}  // namespace detail

constexpr bool is_nan(double x) noexcept {
  return detail::magnitude_bits(x) > detail::kInfinityBits;
}
constexpr bool is_finite(double x) noexcept {
  return detail::magnitude_bits(x) < detail::kInfinityBits;
}

// (The names max, min, abs and round are macros in some programs.)
constexpr float larger(float a, float b) noexcept { return a < b ? b : a; }
constexpr double larger(double a, double b) noexcept { return a < b ? b : a; }
constexpr float smaller(float a, float b) noexcept { return b < a ? b : a; }
constexpr double smaller(double a, double b) noexcept { return b < a ? b : a; }
constexpr float clamped(float x, float low, float high) noexcept {
  return x < low ? low : high < x ? high : x;
}

// Wraps a number for use in containers: the container's code is then nibble's own too.
template <class T>
struct Scalar {
  T value{};
};
// Pointer to the first number of a vector of Scalars, which are contiguous; null if it is empty.
template <class Scalars>
constexpr auto* values(Scalars& scalars) noexcept {
  return scalars.empty() ? nullptr : &scalars.data()->value;
}

}}  // namespace nibble::NIBBLE_ABI
