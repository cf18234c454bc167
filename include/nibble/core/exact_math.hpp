// SPDX-License-Identifier: Apache-2.0
//
// -ffast-math, and what a file that is compiled with it needs to stay right. The option lets the
// compiler assume that there is no NaN and no infinity, and regroup sums: tests for NaN are then
// always false, and (x + c) - c is x.
//
// Code between NIBBLE_EXACT_MATH_BEGIN and NIBBLE_EXACT_MATH_END (at namespace scope) is compiled
// without the option. What compilers inline there from elsewhere need not be, nor what they inline
// elsewhere from there; so tests for NaN look at the bits (core/scalar.hpp).
#pragma once

#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || \
    defined(_M_FP_FAST)
#define NIBBLE_HAVE_FAST_MATH 1
#elif defined(__FINITE_MATH_ONLY__)
#define NIBBLE_HAVE_FAST_MATH __FINITE_MATH_ONLY__
#else
#define NIBBLE_HAVE_FAST_MATH 0
#endif

#if !NIBBLE_HAVE_FAST_MATH
#define NIBBLE_EXACT_MATH_BEGIN
#define NIBBLE_EXACT_MATH_END
#elif defined(__GNUC__) && !defined(__clang__)
#define NIBBLE_EXACT_MATH_BEGIN \
  _Pragma("GCC push_options") _Pragma("GCC optimize(\"no-fast-math\")")
#define NIBBLE_EXACT_MATH_END _Pragma("GCC pop_options")
#elif defined(__clang__)
#define NIBBLE_EXACT_MATH_BEGIN _Pragma("float_control(precise, on, push)")
#define NIBBLE_EXACT_MATH_END _Pragma("float_control(pop)")
#else
#define NIBBLE_EXACT_MATH_BEGIN __pragma(float_control(precise, on, push))
#define NIBBLE_EXACT_MATH_END __pragma(float_control(pop))
#endif
