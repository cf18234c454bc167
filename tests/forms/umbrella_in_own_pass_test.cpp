// SPDX-License-Identifier: Apache-2.0
//
// The program's own pass for its code and for nibble's: kernels-inl.h is included in the pass,
// everything else of nibble after it. Here with nibble's list of targets; any other works as well.
#ifndef TESTS_FORMS_LIST_ONCE
#define TESTS_FORMS_LIST_ONCE
#include "nibble/simd/targets.hpp"
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "forms/umbrella_in_own_pass_test.cpp"
#include "hwy/foreach_target.h"
// Per target.
#include "forms/own_sum-inl.h"
#include "nibble/kernels/kernels-inl.h"

#if HWY_ONCE
#include "forms/checks.hpp"
#include "nibble/ops/softmax.hpp"

TEST_CASE("nibble's kernels in the program's own pass") {
  const std::array<float, 5> x = {1, 2, 3, 4, 5};
  CHECK(own::HWY_STATIC_NAMESPACE::sum(x.data(), 5) == 15.0f);
#if HWY_TARGETS & HWY_AVX2
  CHECK(own::N_AVX2::lanes() == 8);
#endif
  check_kernels();
}
#endif  // HWY_ONCE
