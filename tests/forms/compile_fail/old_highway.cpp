// SPDX-License-Identifier: Apache-2.0
//
// Must not compile: a Highway that is too old, as its hwy/base.h would say.
#define HIGHWAY_HWY_BASE_H_
#define HWY_MAJOR 1
#define HWY_MINOR 2
#include "nibble/simd/targets.hpp"
