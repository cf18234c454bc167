// SPDX-License-Identifier: Apache-2.0
//
// for_each_target(body): runs a kernel test on every compiled and available target, and fails if
// the target that runs is not the forced one. Restores the default choice afterwards.
#pragma once

#include <string>

#include "doctest/doctest.h"
#include "nibble/kernels/pass.hpp"
#include "nibble/kernels/which.hpp"

namespace nibble_test {

template <class Body>
void for_each_target(Body&& body) {
  int n_run = 0;
  nibble::simd::available_targets().for_each([&](nibble::simd::Target target) {
    CAPTURE(std::string(nibble::simd::to_string(target)));
    REQUIRE(nibble::simd::force_target(target).has_value());
    REQUIRE(nibble::simd::kernel<nibble::kernels::WhichTarget>()() == target);
    body(target);
    ++n_run;
  });
  REQUIRE(n_run >= 1);
  REQUIRE(nibble::simd::choose_target().has_value());
}

}  // namespace nibble_test
