// SPDX-License-Identifier: Apache-2.0
//
// Normalization of one row: RMSNorm and LayerNorm, also fused with what comes before (a residual
// sum) and after (activation, dropout, 8-bit quantization).
#pragma once

#include "nibble/kernels/activation.hpp"
#include "nibble/kernels/dropout.hpp"
#include "nibble/kernels/quantize_rows.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace kernels {

// Operands of a row. No alignment is needed.
struct NormArgs {
  const float* x = nullptr;  // (k)
  Index k = 0;               // at least 1
  float eps = 0.0f;          // > 0, or rows that are all zero (constant, for LayerNorm) give NaN
  const float* weight = nullptr;  // (k), or null for ones
  const float* bias = nullptr;    // (k), or null for zeros; LayerNorm only

  // kAdd only: x + addend is normalized, and stored in `sum`.
  const float* addend = nullptr;  // (k)
  float* sum = nullptr;           // (k), may be x or addend

  // kDropout only: x[0] is element first_index of its tensor.
  Dropout dropout = {};
  Index first_index = 0;
};

// out = x / sqrt(mean(x^2) + eps) * weight  (Zhang and Sennrich 2019). `out` may be x, addend or
// sum.
//
// Sums are kept in at least 16 floats. With n = k / 16 + 8, the number of roundings that any term
// goes through, and u = 2^-24, the relative error of an output is below (n / 2 + 5) u. A sum of
// squares above 3.4e38 overflows: the row is then zeros.
template <bool kAdd = false>
struct RmsNorm {
  using Function = void(const NormArgs& args, float* out);
};

// out = drop(activation((x - mean) / sqrt(variance + eps) * weight + bias)) (Ba et al. 2016), where
// the variance has the divisor k. `out` may be x, addend or sum.
//
// Mean and variance are computed from x - shift, where shift is a guess of the mean from four
// values of the row. If it is further from the mean than a standard deviation, both are computed
// again around the mean. So nothing cancels, however large the mean is: with n and u as above and z
// = (x - mean) / sigma, the error before the activation is below ((3n + 16) (|z| + 1) |weight| + 2
// |bias|) u.
template <class Activation = Identity, bool kDropout = false, bool kAdd = false>
struct LayerNorm {
  using Function = void(const NormArgs& args, float* out);
};

// The same norms, quantized (see kernels/quantize_rows.hpp), without a row of floats in memory. The
// output must not overlap the input.
// RMSNorm reads its row from memory once: codes are those of x * weight, and the factor of the row
// only enters the scales. They are the codes of the norm itself, except next to a tie, where they
// may differ by 1.
template <int kBlock, bool kAdd = false>
struct RmsNormQuantize {
  using Function = void(const NormArgs& args, QuantizedRow out);
};
template <int kBlock, bool kAdd = false>
struct LayerNormQuantize {
  using Function = void(const NormArgs& args, QuantizedRow out);
};

}}}  // namespace nibble::NIBBLE_ABI::kernels
