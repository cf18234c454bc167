// SPDX-License-Identifier: Apache-2.0
//
// Matrix product of activations and packed weights: out[m][n] = epilogue(sum_k x[m][k] * w[n][k]).
// Free of Highway; see matmul-inl.h for the code and quant/packed.hpp for the weights' layout.
#pragma once

#include "nibble/kernels/activation.hpp"
#include "nibble/quant/packed.hpp"
#include "nibble/simd/impl.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace kernels {

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

// How many scales quantized activations have: one for each block of the weights' length, or one
// for a row: products with block formats are 5 to 10 % faster then, and less accurate where a few
// of a row's values are much greater than the rest.
enum class ActivationScales : std::uint8_t { per_block, per_row };

// The activations of a product, in the form that the weights' format asks for; the other forms may
// be missing.
struct MatmulInput {
  // Float formats: f32 rows (m, stride).
  const float* x = nullptr;
  Index stride = 0;  // elements

  // bf16 weights: if given, rows rounded to bf16 are multiplied instead of x, with dot products of
  // bf16. Only where TakesRoundedRows says so.
  const bf16* rounded = nullptr;  // (m, rounded_stride), a zero after an odd k
  Index rounded_stride = 0;       // elements

  // Block formats and I8Channel: rows quantized to 8 bits (quantize_rows.hpp). Blocks are as long
  // as the weights'; I8Channel has one for the whole row.
  const std::int8_t* codes = nullptr;       // (m, code_stride), zeros from k to whole blocks or 32
  const float* scales = nullptr;            // (m, n_blocks): ActivationScales::per_block
  const float* row_scales = nullptr;        // (m): ActivationScales::per_row and I8Channel
  const std::int32_t* code_sums = nullptr;  // (m, n_blocks)
  Index code_stride = 0;                    // at least k rounded up to whole blocks or 32
  Index n_blocks = 0;                       // of a row

  // Without the first `row` rows. A form that is missing stays so, whatever its stride.
  MatmulInput rows_from(Index row) const noexcept {
    const auto skip = [row](auto& rows, Index row_elements) {
      if (rows != nullptr) rows += row * row_elements;
    };
    MatmulInput rest = *this;
    skip(rest.x, stride);
    skip(rest.rounded, rounded_stride);
    skip(rest.codes, code_stride);
    skip(rest.scales, n_blocks);
    skip(rest.row_scales, 1);
    skip(rest.code_sums, n_blocks);
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
// 2^16 * 255 * 127 < 2^31) and blocks in f32; I8Channel sums whole rows in 32-bit integers (exact
// up to k = Packed<I8Channel>::kMaxK); float formats sum in f32, along k.
template <class Format, class Epilogue, ActivationScales kScales = ActivationScales::per_block>
struct Matmul {
  using Function = MatmulFunction;
};

// out = Activation(x * gate) * (x * weights): the gated feed-forward's first half as one kernel.
template <class Format, class Activation, ActivationScales kScales = ActivationScales::per_block>
struct MatmulGated {
  using Function = MatmulFunction;
};

// ---- Parts of a kernel -------------------------------------------------------------------------

// A tile of the output: n_rows rows and n_vectors vectors of columns from (row, column) on.
struct TileAt {
  Index row;
  Index column;
  int n_rows;
  int n_vectors;
};

// Finishes and stores the outputs of a tile. sums, gate: (n_rows, n_vectors vectors); gate only
// where args.gate is.
using FinishTile = void(const MatmulArgs& args, const float* sums, const float* gate,
                        const TileAt& tile);

}}}  // namespace nibble::NIBBLE_ABI::kernels
