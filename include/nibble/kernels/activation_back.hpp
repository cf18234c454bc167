// SPDX-License-Identifier: Apache-2.0
//
// The backward kernels of activation functions. Forward: kernels/activation.hpp.
#pragma once

#include "nibble/kernels/activation.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace kernels {

// Slopes, for Identity, Relu, Silu, GeluErf, GeluTanh, Sigmoid and Tanh. They are the derivatives
// of the exact functions. At -inf and inf they are their limits; NaN gives NaN (Relu: 1). With u =
// 2^-24 and s the logistic function of x or y (kernels/activation.hpp), their errors are at most
//   Relu      0; the slope at 0 is 0
//   Silu      (10 + 2 |x|) u s (1 + |x|)
//   GeluErf   10 u
//   GeluTanh  (16 + 6 |y|) u s (1 + |x y'|) + 2^-119
//   Sigmoid   (12 + 3 |x|) u, Tanh 10 u
// each plus 4 u of the slope.

// dx[i] = dy[i] * Activation'(x[i]), i < n. dx may be x or dy; no alignment is needed.
template <class Activation>
struct ActivateBack {
  using Function = void(const float* x, const float* dy, float* dx, Index n);
};

// Of out = Activation(gate) * up:
//   dgate[i] = dy[i] * up[i] * Activation'(gate[i]),   dup[i] = dy[i] * Activation(gate[i]).
// Each of dgate and dup may be any one of the inputs. With Identity: of a product.
template <class Activation>
struct ActivateGatedBack {
  using Function = void(const float* gate, const float* up, const float* dy, float* dgate,
                        float* dup, Index n);
};

// Of y = cap * tanh(x / cap), from the output: dx[i] = dy[i] * (1 - (y[i] / cap)^2), where inverse
// is 1 / cap. Absolute error 4 u |dy|. dx may be y or dy.
struct SoftCapBack {
  using Function = void(const float* y, const float* dy, float inverse, float* dx, Index n);
};

}}}  // namespace nibble::NIBBLE_ABI::kernels
