// SPDX-License-Identifier: Apache-2.0
//
// A kernel that says which target's code it is: for tests and reports.
#pragma once

#include "nibble/simd/impl.hpp"

namespace nibble::inline NIBBLE_ABI::kernels {

struct WhichTarget {
  using Function = simd::Target();
};

}  // namespace nibble::inline NIBBLE_ABI::kernels
