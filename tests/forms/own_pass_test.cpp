// SPDX-License-Identifier: Apache-2.0
//
// The program's own pass, in a translation unit without nibble. Highway is responsible for the rows
// of its table; their lanes show that they are the code of different targets.
#include "doctest/doctest.h"

#define HWY_HEADER_ONLY
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "forms/own_sum-inl.h"
#include "hwy/foreach_target.h"
// The static target.
#include "forms/own_sum-inl.h"

TEST_CASE("a pass of the program's own in another translation unit") {
  const float x[] = {1, 2, 3, 4, 5};
  CHECK(own::HWY_STATIC_NAMESPACE::sum(x, 5) == 15.0f);
#if HWY_TARGETS & HWY_AVX2
  CHECK(own::N_AVX2::lanes() == 8);
#endif
}
