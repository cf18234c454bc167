// SPDX-License-Identifier: Apache-2.0
//
// Must not compile: the program's own pass and then nibble's in one translation unit.
#define HWY_HEADER_ONLY
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "forms/own_sum-inl.h"
#include "hwy/foreach_target.h"
// The static target.
#include "forms/own_sum-inl.h"
// One pass too many.
#include "nibble/nibble.hpp"
