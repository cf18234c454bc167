// SPDX-License-Identifier: Apache-2.0
//
// Must not compile: a Highway that is too old, according to its hwy/base.h.
#define HIGHWAY_HWY_BASE_H_
#define HWY_MAJOR 1
#define HWY_MINOR 2
#include "nibble/simd/targets.hpp"
