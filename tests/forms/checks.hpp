// SPDX-License-Identifier: Apache-2.0
//
// What each translation unit of these tests must be able to do, whichever way it gets its kernels.
// Internal linkage: each has its own copy.
#pragma once

#include <array>

#include "doctest/doctest.h"
#include "nibble/kernels/pass.hpp"
#include "nibble/kernels/softmax.hpp"
#include "nibble/kernels/which.hpp"

namespace {

// nibble's kernels run on every target that was compiled, which is more than one.
inline void check_kernels() {
  const std::array<float, 5> logits = {0.5f, 2.0f, -1.0f, 7.25f, 7.0f};
  int n = 0;
  nibble::simd::compiled_targets().for_each([&](nibble::simd::Target) { ++n; });
  CHECK(n >= 3);  // the baseline and those that CMakeLists.txt adds
  nibble::simd::available_targets().for_each([&](nibble::simd::Target target) {
    REQUIRE(nibble::simd::force_target(target));
    CHECK(nibble::simd::kernel<nibble::kernels::WhichTarget>()() == target);
    CHECK(nibble::simd::kernel<nibble::kernels::ArgMax>()(logits.data(), 5) == 3);
  });
  REQUIRE(nibble::simd::choose_target());
}

}  // namespace
