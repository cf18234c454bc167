// SPDX-License-Identifier: Apache-2.0
//
// Matrix product of activations and packed weights: out[m][n] = epilogue(sum_k x[m][k] * w[n][k]).
// Free of Highway; see matmul-inl.h for the code and quant/packed.hpp for the weights' layout.
#pragma once

#include "nibble/kernels/activation.hpp"
#include "nibble/quant/packed.hpp"
#include "nibble/simd/impl.hpp"

namespace nibble::inline NIBBLE_ABI::kernels {

// What happens to a finished sum v before it is stored, in this order. All flags are template
// parameters: what is not asked for costs nothing. A program's own epilogue is any other empty type
// for which it defines `finish(type, d, v, args, outputs)` beside those of matmul-inl.h, in its
// NIBBLE_USER_KERNELS file and the target's namespace.
template <class Activation = Identity, bool kBias = false, bool kResidual = false>
struct Epilogue {};

// Operands of the epilogue.
struct EpilogueArgs {
  const float* bias = nullptr;      // (n), added first
  const float* residual = nullptr;  // (m, n), added last; may be the output itself
  Index residual_stride = 0;        // elements
};

// The activations of a product, in the form that the weights' format asks for; the other form may
// be missing.
struct MatmulInput {
  // Plain formats: f32 rows (m, stride).
  const float* x = nullptr;
  Index stride = 0;  // elements

  // Block formats: rows quantized to 8 bits in blocks as long as the weights' (quantize_rows.hpp).
  const std::int8_t* codes = nullptr;      // (m, code_stride), zeros from k to whole blocks
  const float* scales = nullptr;           // (m, n_blocks)
  const std::int32_t* neg8sums = nullptr;  // (m, n_blocks)
  Index code_stride = 0;                   // at least n_blocks * kLength
  Index n_blocks = 0;                      // k / kLength, rounded up

  MatmulInput rows_from(Index row) const noexcept {
    MatmulInput rest = *this;
    rest.x += row * stride;
    rest.codes += row * code_stride;
    rest.scales += row * n_blocks;
    rest.neg8sums += row * n_blocks;
    return rest;
  }
};

// One call computes columns [16 * first_panel, 16 * end_panel), cut off at n, of m rows.
struct MatmulArgs {
  MatmulInput input;
  Index m = 0;                         // rows of the input and of the output
  const std::byte* weights = nullptr;  // packed (n, k)
  const std::byte* gate = nullptr;     // MatmulGated: a second packed (n, k)
  Index n = 0;
  Index k = 0;
  Index first_panel = 0;
  Index end_panel = 0;
  float* out = nullptr;  // (m, out_stride)
  Index out_stride = 0;  // elements
  EpilogueArgs epilogue;
};

using MatmulFunction = void(const MatmulArgs&);

// Accumulators: block formats sum 8-bit products in 32-bit integers within a block (exact: at most
// 256 * 255 * 127 < 2^31) and blocks in f32; plain formats sum in f32, along k.
template <class Format, class Epilogue>
struct Matmul {
  using Function = MatmulFunction;
};

// out = Activation(x * gate) * (x * weights): the gated feed-forward's first half as one kernel.
template <class Format, class Activation>
struct MatmulGated {
  using Function = MatmulFunction;
};

}  // namespace nibble::inline NIBBLE_ABI::kernels
