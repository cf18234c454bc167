// SPDX-License-Identifier: Apache-2.0
//
// How a backward kernel writes the gradient of its input.
#pragma once

#include "nibble/core/config.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace kernels {

// set: dx = ..., add: dx += ..., where another branch (the sum of a residual) has written before.
enum class Gradient : unsigned char { set, add };

}}}  // namespace nibble::NIBBLE_ABI::kernels
