// SPDX-License-Identifier: Apache-2.0
//
// Math functions of the C library, for what nibble.hpp includes. It avoids <cmath>, which would be
// 2 % of its compile time. They have their own namespace because a program with `using namespace
// nibble` may include <math.h> as well.
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
inline double floor(double x) noexcept { return NIBBLE_LIBM(floor)(x); }
inline double ceil(double x) noexcept { return NIBBLE_LIBM(ceil)(x); }
inline double sqrt(double x) noexcept { return NIBBLE_LIBM(sqrt)(x); }
inline float sqrt(float x) noexcept { return NIBBLE_LIBM(sqrtf)(x); }
inline float fabs(float x) noexcept { return NIBBLE_LIBM(fabsf)(x); }
// Rounds halves away from zero.
inline float round_away(float x) noexcept { return NIBBLE_LIBM(roundf)(x); }

#undef NIBBLE_LIBM

}}}  // namespace nibble::NIBBLE_ABI::libm
