// SPDX-License-Identifier: Apache-2.0
//
// hwy/highway.h first, for static dispatch, then nibble, then more of Highway.
#include "forms/own_sum-inl.h"
// Then nibble.
#include "forms/checks.hpp"
// Then code that needs Highway's state to be as if there had been no pass.
#include "hwy/contrib/algo/find-inl.h"

TEST_CASE("hwy/highway.h before nibble: both work") {
  const std::array<float, 19> x = {1,  2,  3,  4,  5,  6,  7,  8,  9, 10,
                                   11, 12, 13, 14, 15, 16, 17, 18, 19};
  CHECK(own::HWY_STATIC_NAMESPACE::sum(x.data(), x.size()) == 190.0f);
  CHECK(own::HWY_NAMESPACE::sum(x.data(), x.size()) == 190.0f);  // the static target's again
  const hwy::HWY_NAMESPACE::ScalableTag<float> d;
  CHECK(hwy::HWY_NAMESPACE::Find(d, 12.0f, x.data(), x.size()) == 11);
  check_kernels();
}
