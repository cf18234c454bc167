// SPDX-License-Identifier: Apache-2.0
//
// A kernel that says which target's code it is: for tests and reports.
#pragma once

#include "nibble/simd/impl.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace kernels {

struct WhichTarget {
  using Function = simd::Target();
};

}}}  // namespace nibble::NIBBLE_ABI::kernels
