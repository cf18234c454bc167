// SPDX-License-Identifier: Apache-2.0
//
// Sums, products and conversions of arrays, element by element. `out` may be one of the float
// inputs but must not overlap an input in any other way. No alignment is needed.
#pragma once

#include "nibble/core/float16.hpp"
#include "nibble/simd/impl.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace kernels {

// out[i] = a[i] + b[i], i < n: a residual connection.
struct Add {
  using Function = void(const float* a, const float* b, float* out, Index n);
};

// out[i] = a[i] * b[i], i < n.
struct Multiply {
  using Function = void(const float* a, const float* b, float* out, Index n);
};

// out[i] = x[i] * factor, i < n.
struct Scale {
  using Function = void(const float* x, float factor, float* out, Index n);
};

// out[i] += x[i] * factor, i < n.
struct AddScaled {
  using Function = void(const float* x, float factor, float* out, Index n);
};

// out[i] = x[i], i < n, exactly, for T = float, f16 or bf16. A signalling NaN may become quiet. No
// overlap.
template <class T>
struct ToF32 {
  using Function = void(const T* x, float* out, Index n);
};

}}}  // namespace nibble::NIBBLE_ABI::kernels
