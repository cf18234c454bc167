// SPDX-License-Identifier: Apache-2.0
//
// A kernel that returns the target for which it was compiled: for tests and reports.
#pragma once

#include "nibble/simd/impl.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace kernels {

struct WhichTarget {
  using Function = simd::Target();
};

}}}  // namespace nibble::NIBBLE_ABI::kernels
