// SPDX-License-Identifier: Apache-2.0
//
// Small functions of floating-point numbers. As those of namespace std, which the linker keeps once
// for all translation units of a program, in builds without optimization perhaps as compiled for a
// better machine than it runs on; these are in a namespace that names the compiler flags.
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

// In containers instead of the number itself: their code is then nibble's own as well.
template <class T>
struct Scalar {
  T value{};
};
// The numbers of a vector of Scalars, one after the other; null if there are none.
template <class Scalars>
constexpr auto* values(Scalars& scalars) noexcept {
  return scalars.empty() ? nullptr : &scalars.data()->value;
}

}}  // namespace nibble::NIBBLE_ABI
