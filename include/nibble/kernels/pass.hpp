// SPDX-License-Identifier: Apache-2.0
//
// The one pass over the SIMD targets of this translation unit: compiles kernels-inl.h once for each
// target of NIBBLE_TARGETS. Every header that calls kernels includes this one; including it again
// costs nothing.
//
// hwy/highway.h may be included before or after. A translation unit that makes its own Highway pass
// (hwy/foreach_target.h) includes kernels-inl.h in that pass, and this header after it, under
// HWY_ONCE: the kernels are then compiled for the targets of that pass.
#pragma once

#include "nibble/core/config.hpp"

#if NIBBLE_DECLARATIONS_ONLY
// The pass is made in the translation unit that defines NIBBLE_IMPLEMENTATION.
#elif defined(HIGHWAY_HWY_FOREACH_TARGET_H_)

#if !defined(NIBBLE_KERNELS_IN_PASS)
#error \
    "nibble: this translation unit already made a Highway pass (hwy/foreach_target.h), and there can be only one. Two ways out: include nibble/kernels/kernels-inl.h in that pass, beside your own per-target code, and nibble behind it; or define NIBBLE_SPLIT for the whole program, so that nibble makes its pass in another translation unit, the one that defines NIBBLE_IMPLEMENTATION."
#endif

#else

#if defined(NIBBLE_KERNELS_IN_PASS)
#error \
    "nibble: kernels-inl.h is for a pass over the targets (hwy/foreach_target.h) and was included without one"
#endif

#include "nibble/simd/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "nibble/kernels/kernels-inl.h"

#ifdef HWY_HIGHWAY_INCLUDED
// hwy/highway.h came first and has already defined the operations of the static target. So that
// target is also our first one, instead of the last, and the next one finds the toggle on.
#include "nibble/kernels/kernels-inl.h"
#define NIBBLE_TOGGLE_FIRST
#include "hwy/foreach_target.h"
#undef NIBBLE_TOGGLE_FIRST
#include "hwy/ops/set_macros-inl.h"
#else
#include "hwy/foreach_target.h"
// The static target comes last, after all others.
#include "nibble/kernels/kernels-inl.h"
#endif

// From here on, all is as if there had been no pass: more of Highway can be included for the static
// target.
#undef HWY_TARGET_TOGGLE
#undef NIBBLE_TARGET_TOGGLE
#undef NIBBLE_TARGET_NAMESPACE
#undef HWY_HIGHWAY_PER_TARGET
#define HWY_HIGHWAY_PER_TARGET
#undef HWY_SET_MACROS_PER_TARGET
#define HWY_SET_MACROS_PER_TARGET

#endif

#include "nibble/simd/dispatch.hpp"
