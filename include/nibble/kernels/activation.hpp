// SPDX-License-Identifier: Apache-2.0
//
// Elementwise activation functions.
#pragma once

#include "nibble/kernels/impl.hpp"

namespace nibble::inline NIBBLE_ABI::kernels {

// Which function. An empty type each, so that it can be a template parameter of fused kernels.
struct Identity {};
struct Silu {};  // x / (1 + exp(-x))

// out[i] = Function(x[i]), i < n. `x` and `out` may be the same; no alignment is needed.
template <class Activation>
struct Activate {
  using Function = void(const float* x, float* out, Index n);
};

}  // namespace nibble::inline NIBBLE_ABI::kernels
