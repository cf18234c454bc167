// SPDX-License-Identifier: Apache-2.0
//
// Our detection against Highway's own. Needs its library, which nibble itself never links: built
// only where CMake finds it.
#include "nibble/simd/detect.hpp"

#include <boost/preprocessor/cat.hpp>

#include "doctest/doctest.h"
#include "hwy/targets.h"

namespace detect_test {

using namespace nibble;

TEST_CASE("the targets of this machine are those that Highway finds") {
  const auto theirs = hwy::SupportedTargets();
  int n_found = 0;
#define NIBBLE_COMPARE(r, data, name)                                       \
  {                                                                         \
    CAPTURE(std::string(BOOST_PP_STRINGIZE(name)));                         \
    const bool found = (theirs & BOOST_PP_CAT(HWY_, name)) != 0;            \
    /* SVE is left out of nibble's detection, as it is of its targets. */   \
    if ((BOOST_PP_CAT(HWY_, name) & HWY_ALL_SVE) == 0) {                    \
      CHECK(simd::machine_targets().contains(simd::Target::name) == found); \
    }                                                                       \
    n_found += found ? 1 : 0;                                               \
  }
  BOOST_PP_SEQ_FOR_EACH(NIBBLE_COMPARE, _, NIBBLE_ALL_TARGETS)
#undef NIBBLE_COMPARE
  CHECK(n_found >= 1);
}

}  // namespace detect_test
