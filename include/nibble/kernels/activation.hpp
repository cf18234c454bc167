// SPDX-License-Identifier: Apache-2.0
//
// Elementwise activation functions, alone and as the gate of a gated feed-forward layer.
#pragma once

#include "nibble/simd/impl.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace kernels {

// The activation functions. Each is an empty type, so that it can be a template parameter of fused
// kernels, which call `activate(Activation{}, d, x)` of activation-inl.h. At -inf and inf they
// return their limits (0 or -0 at -inf, inf at inf), and NaN gives NaN. With u = 2^-24, errors are
// at most
//   Silu      (6 + 1.5 |x|) u |silu(x)|  or |x| 2^-125, where exp(-|x|) is not a normal number
//   GeluErf   5 u |x|                    relative to x, not to the tail, as with 1 + erf
//   GeluTanh  (6 + 4 |y|) u |gelu(x)|    or |x| 2^-125; y = sqrt(8/pi) (x + 0.044715 x^3)
//   Sigmoid   (5 + 1.5 |x|) u sigmoid(x) or 2^-125
//   Exp       1 ULP of the result; Tanh 3 ULP; Erf 8 ULP
// plus one ULP where the result is subnormal. These bounds hold without FMA; with FMA, Silu and
// Sigmoid have 0.3 instead of 1.5.
struct Identity {};
struct Relu {};      // max(x, 0)
struct Silu {};      // x / (1 + exp(-x))
struct GeluErf {};   // x / 2 * (1 + erf(x / sqrt(2))): x times the normal distribution function
struct GeluTanh {};  // x / 2 * (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), Hendrycks and Gimpel 2016
struct Sigmoid {};   // 1 / (1 + exp(-x))
struct Tanh {};
struct Exp {};
struct Erf {};

// out[i] = Activation(x[i]), i < n. `x` and `out` may be the same; no alignment is needed.
template <class Activation>
struct Activate {
  using Function = void(const float* x, float* out, Index n);
};

// out[i] = Activation(gate[i]) * up[i], i < n. `out` may be `gate` or `up`.
template <class Activation>
struct ActivateGated {
  using Function = void(const float* gate, const float* up, float* out, Index n);
};

}}}  // namespace nibble::NIBBLE_ABI::kernels
