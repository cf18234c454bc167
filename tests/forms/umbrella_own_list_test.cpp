// SPDX-License-Identifier: Apache-2.0
//
// Like umbrella_in_own_pass_test.cpp, with targets that the program chose itself and that are not
// in nibble's list.
#ifndef TESTS_FORMS_LIST_ONCE
#define TESTS_FORMS_LIST_ONCE
#define HWY_HEADER_ONLY
#include "hwy/detect_targets.h"
#undef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS (~(HWY_SSSE3 | HWY_NEON | HWY_ENABLED_BASELINE_OF_TEST))
#define HWY_ENABLED_BASELINE_OF_TEST (HWY_BASELINE_TARGETS & -HWY_BASELINE_TARGETS)
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "forms/umbrella_own_list_test.cpp"
#include "hwy/foreach_target.h"
// Per target.
#include "nibble/kernels/kernels-inl.h"
#include "nibble/kernels/softmax-inl.h"

#if HWY_ONCE
#include "forms/checks.hpp"

TEST_CASE("nibble's kernels in the program's own pass over its own targets") {
  using nibble::simd::detail::Table;
#if HWY_TARGETS & HWY_SSSE3
  CHECK(Table<nibble::kernels::WhichTarget, HWY_TARGETS>::kRows[static_cast<std::size_t>(
            nibble::simd::Target::SSSE3)]() == nibble::simd::Target::SSSE3);
#endif
}
#endif  // HWY_ONCE
