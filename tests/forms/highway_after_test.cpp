// SPDX-License-Identifier: Apache-2.0
//
// nibble first, then hwy/highway.h for static dispatch.
#include "forms/checks.hpp"
// Then Highway.
#include "forms/own_sum-inl.h"
#include "hwy/contrib/algo/find-inl.h"

TEST_CASE("hwy/highway.h after nibble: both work") {
  const std::array<float, 19> x = {1,  2,  3,  4,  5,  6,  7,  8,  9, 10,
                                   11, 12, 13, 14, 15, 16, 17, 18, 19};
  CHECK(own::HWY_STATIC_NAMESPACE::sum(x.data(), x.size()) == 190.0f);
  const hwy::HWY_NAMESPACE::ScalableTag<float> d;
  CHECK(hwy::HWY_NAMESPACE::Find(d, 12.0f, x.data(), x.size()) == 11);
  check_kernels();
}
