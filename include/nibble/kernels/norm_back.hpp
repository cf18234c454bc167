// SPDX-License-Identifier: Apache-2.0
//
// The backward kernels of RMSNorm and LayerNorm, for one row. Forward: kernels/norm.hpp.
#pragma once

#include "nibble/kernels/gradient.hpp"
#include "nibble/simd/impl.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace kernels {

// Operands of a row. No alignment is needed. With Gradient::set, dx may be x or dy; dweight and
// dbias overlap nothing else.
struct NormBackArgs {
  const float* x = nullptr;       // (k) input of the forward norm
  const float* dy = nullptr;      // (k) gradient of its output
  const float* weight = nullptr;  // (k), or null for ones
  Index k = 0;                    // at least 1
  float eps = 0.0f;               // that of the forward norm
  float* dx = nullptr;            // (k)
  float* dweight = nullptr;       // (k), added to; null: the weight is frozen or absent
  float* dbias = nullptr;         // (k), added to; null likewise; LayerNorm only
};

// With r = 1 / sqrt(mean(x^2) + eps) and g = dy * weight:
//   dx = r * (g - x * r^2 * mean(g * x)),   dweight += dy * x * r.
// Sums are kept as in kernels::RmsNorm. With n = k / 16 + 8, u = 2^-24 and
// A = mean(|g x|), the error of dx is below (2 n + 16) u r (|g| + |x| r^2 A), that of what is added
// to dweight below (n / 2 + 8) u |dy x r|.
template <Gradient kGradient = Gradient::set>
struct RmsNormBack {
  using Function = void(const NormBackArgs& args);
};

// With z = (x - mean) / sqrt(variance + eps), s the reciprocal of that root, and g = dy * weight:
//   dx = s * (g - mean(g) - z * mean(g * z)),   dweight += dy * z,   dbias += dy.
// Mean and variance are computed as in kernels::LayerNorm, z with its error, below e_z = (3n + 16)
// (|z| + 1) u. The error of dx is below
//   s ((2 n + 16) u (|g| + mean(|g|) + |z| mean(|g z|)) + e_z mean(|g z|) + |z| mean(|g| e_z)).
template <Gradient kGradient = Gradient::set>
struct LayerNormBack {
  using Function = void(const NormBackArgs& args);
};

}}}  // namespace nibble::NIBBLE_ABI::kernels
