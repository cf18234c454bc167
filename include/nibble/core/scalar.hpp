// SPDX-License-Identifier: Apache-2.0
//
// Small functions on floating-point numbers. They replace those of namespace std, of which the
// linker keeps one copy for all translation units of a program. In builds without optimization,
// that may be the copy that was compiled for a better machine than the one it runs on. The
// functions here are in a namespace that names the compiler flags.
#pragma once

#include <limits>

#include "nibble/core/config.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr float kFloatMax = std::numeric_limits<float>::max();

constexpr bool is_nan(double x) noexcept { return x != x; }
constexpr bool is_finite(double x) noexcept {
  constexpr double kMax = std::numeric_limits<double>::max();
  return x >= -kMax && x <= kMax;
}

constexpr float max(float a, float b) noexcept { return a < b ? b : a; }
constexpr double max(double a, double b) noexcept { return a < b ? b : a; }
constexpr float min(float a, float b) noexcept { return b < a ? b : a; }
constexpr float clamp(float x, float low, float high) noexcept {
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
