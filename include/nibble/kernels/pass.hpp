// SPDX-License-Identifier: Apache-2.0
//
// The one pass over the SIMD targets of this translation unit: compiles kernels-inl.h once for each
// target of NIBBLE_TARGETS. Everything that calls kernels includes this; the second time is free.
#pragma once

#include "nibble/core/config.hpp"

#if defined(HIGHWAY_HWY_FOREACH_TARGET_H_)
#error "nibble: this translation unit already made a Highway pass (hwy/foreach_target.h), and there can be only one. Include nibble in a translation unit of its own; kernels of yours can join its pass with NIBBLE_USER_KERNELS."
#endif

#include "nibble/simd/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "nibble/kernels/kernels-inl.h"
#include "hwy/foreach_target.h"
// The static target comes last, after all others.
#include "nibble/kernels/kernels-inl.h"

// Now that every target's Impl is there, tables can be made of them.
#include "nibble/simd/dispatch.hpp"
