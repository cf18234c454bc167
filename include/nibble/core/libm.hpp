// SPDX-License-Identifier: Apache-2.0
//
// The C library's mathematics for what nibble.hpp includes: without <cmath>, which would be 2 % of
// the time that it takes to compile. In a namespace of its own, since a program that uses namespace
// nibble may have <math.h> as well.
#pragma once

#include "nibble/core/config.hpp"

#if !defined(__GNUC__) && !defined(__clang__)
#include <cmath>
#endif

namespace nibble { inline namespace NIBBLE_ABI { namespace libm {

#if defined(__GNUC__) || defined(__clang__)
#define NIBBLE_LIBM(name) __builtin_##name
#else
#define NIBBLE_LIBM(name) ::name
#endif

inline double exp(double x) noexcept { return NIBBLE_LIBM(exp)(x); }
inline double log(double x) noexcept { return NIBBLE_LIBM(log)(x); }
inline double pow(double x, double y) noexcept { return NIBBLE_LIBM(pow)(x, y); }
inline double sin(double x) noexcept { return NIBBLE_LIBM(sin)(x); }
inline double cos(double x) noexcept { return NIBBLE_LIBM(cos)(x); }
inline double tanh(double x) noexcept { return NIBBLE_LIBM(tanh)(x); }
inline float sqrt(float x) noexcept { return NIBBLE_LIBM(sqrtf)(x); }
inline float abs(float x) noexcept { return NIBBLE_LIBM(fabsf)(x); }
// Halves away from zero.
inline float round(float x) noexcept { return NIBBLE_LIBM(roundf)(x); }

#undef NIBBLE_LIBM

}}}  // namespace nibble::NIBBLE_ABI::libm
