// SPDX-License-Identifier: Apache-2.0
//
// Matrix product of activations and packed weights: out[m][n] = epilogue(sum_k x[m][k] * w[n][k]).
// Does not include Highway; see matmul-inl.h for the code and quant/packed.hpp for the weights'
// layout.
#pragma once

#include <type_traits>

#include "nibble/kernels/activation.hpp"
#include "nibble/kernels/tuning.hpp"
#include "nibble/quant/packed.hpp"
#include "nibble/quant/sparse.hpp"
#include "nibble/simd/impl.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace kernels {

// What happens to a finished sum v before it is stored: the bias is added, then the activation is
// applied, then the residual is added. All of these are template parameters: what is not used costs
// nothing. A program's own epilogue is any other empty type for which the program defines
// `finish(type, d, v, args, outputs)`, like those of matmul-inl.h, in its NIBBLE_USER_KERNELS file
// and the target's namespace.
template <class Activation = Identity, bool kBias = false, bool kResidual = false>
struct Epilogue {};

// Operands of the epilogue.
struct EpilogueArgs {
  const float* bias = nullptr;      // (n), added first
  const float* residual = nullptr;  // (m, n), added last; may be the output itself
  Index residual_stride = 0;        // elements
};

// How many scales quantized activations have: one per block (as long as the weights' blocks; with
// super-blocks, as their steps of 32), or one per row.
// With one per row, products with block formats are 5 to 10 % faster, and less accurate where a few
// of a row's values are much larger than the rest. affine: one per row and a zero point for all
// rows (MatmulInput::zero_point); for I8Channel, whose codes must then be in [-127, 127].
enum class ActivationScales : std::uint8_t { per_block, per_row, affine };

// Whether there are products of weights in Format with activations that have such scales. The small
// scales of super-blocks and of sparse blocks multiply those of the activations' blocks, so these
// formats have products per block only.
template <class Format, ActivationScales kScales>
inline constexpr bool kHasProducts = kScales == ActivationScales::per_block ||
                                     (kScales == ActivationScales::affine
                                          ? std::is_same_v<Format, quant::I8Channel>
                                          : !quant::SuperBlockFormat<Format> &&
                                                !quant::SparseFormat<Format>);

// The longest group of the packed layout that tiles multiply, in weights of a row; all of GGUF's
// are shorter.
inline constexpr Index kMaxTileGroup = 512;

// Whether weights in Format are multiplied with rounded rows, where the active target has tiles
// (TileTaskRows): bf16, and block formats.
template <class Format>
inline constexpr bool kHasTileProducts = std::is_same_v<Format, quant::BF16>;
template <quant::BlockFormat Format>
inline constexpr bool kHasTileProducts<Format> =
    quant::Packed<Format>::kGroupLength <= kMaxTileGroup;

// The activations of a product, in the representation that the weights' format needs; the other
// representations may be missing (null).
struct MatmulInput {
  // Float formats: f32 rows (m, stride).
  const float* x = nullptr;
  Index stride = 0;  // elements

  // bf16 weights: if given, rows rounded to bf16 are multiplied instead of x, with bf16 dot
  // products. Only if TakesRoundedRows returns true; a zero after an odd k.
  // Block formats (kHasTileProducts): if given, they are multiplied instead of codes, with the
  // weights rounded to bf16, on targets with tiles (TileTaskRows); zeros from k to a multiple of
  // 32. A row's result then differs in rounding from that of its codes, so who gives them decides
  // by what a row is for, not by how many there are.
  const bf16* rounded = nullptr;  // (m, rounded_stride)
  Index rounded_stride = 0;       // elements

  // Block formats and I8Channel: rows quantized to 8 bits (quantize_rows.hpp). Blocks are as long
  // as the weights' blocks, with super-blocks as their steps of 32; I8Channel has one block for the
  // whole row.
  const std::int8_t* codes = nullptr;       // (m, code_stride), zeros from k to whole blocks or 32
  const float* scales = nullptr;            // (m, n_blocks): ActivationScales::per_block
  const float* row_scales = nullptr;        // (m): ActivationScales::per_row and I8Channel
  const std::int32_t* code_sums = nullptr;  // (m, n_blocks)
  const std::int32_t* half_sums = nullptr;  // (m, n_blocks): formats with two scales in 32 weights
  Index code_stride = 0;                    // at least k rounded up to whole blocks or 32
  Index n_blocks = 0;                       // per row
  // ActivationScales::affine: the stored code of zero (quant/static_scale.hpp).
  std::int32_t zero_point = 0;

  // The input without its first `row` rows. A representation that is missing stays missing,
  // whatever its stride.
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
    skip(rest.half_sums, n_blocks);
    return rest;
  }
};

// A tile of the output: n_rows rows and n_vectors vectors of columns from (row, column) on.
struct TileAt {
  Index row;
  Index column;
  int n_rows;
  int n_vectors;
};

// Finishes and stores the outputs of a tile. `sums`: the sums of products. `gate`: those of the
// gate, if MatmulArgs::gate is given. Both are (n_rows, n_vectors times the lanes of the target).
struct MatmulArgs;
using FinishTileFunction = void(const MatmulArgs& args, const float* sums, const float* gate,
                                const TileAt& tile);

// One call computes columns [16 * first_panel, 16 * end_panel), cut off at n, of m rows.
struct MatmulArgs {
  MatmulInput input;
  Index m = 0;                         // rows of the input and of the output
  const std::byte* weights = nullptr;  // packed (n, k)
  const std::byte* gate = nullptr;     // a second packed (n, k) of the same format, or null
  Index n = 0;
  Index k = 0;
  Index first_panel = 0;
  Index end_panel = 0;
  float* out = nullptr;  // (m, out_stride)
  Index out_stride = 0;  // elements
  FinishTileFunction* finish = nullptr;
  EpilogueArgs epilogue;
  Tuning tuning = {};
};

using MatmulFunction = void(const MatmulArgs&);

// A format's loop over tiles (Matmul) and an epilogue's way to finish a tile (FinishTile) are two
// kernels, both of the same target, connected by the pointer MatmulArgs::finish. There are many
// pairs of them, and compiling each pair would cost more than the call per tile does.
//
// Accumulators: block formats sum 8-bit products in 32-bit integers within a block (exact: at most
// 2^16 * 255 * 127 < 2^31), and blocks in f32. I8Channel sums whole rows in 32-bit integers (exact
// up to k = Packed<I8Channel>::kMaxK; with a zero point, which is taken away from the integers by
// the sums of the weights' codes, up to kMaxAffineK). Float formats sum in f32, along k; so do
// block formats with rounded rows. The sum for a row and a column does not depend on which other
// rows and columns are computed with it.
template <class Format, ActivationScales kScales = ActivationScales::per_block>
struct Matmul {
  using Function = MatmulFunction;
};

template <class Epilogue>
struct FinishTile {
  using Function = FinishTileFunction;
};

// out = Activation(gate's sum) * sum: the first half of a gated feed-forward layer as one kernel.
template <class Activation>
struct FinishGatedTile {
  using Function = FinishTileFunction;
};

// An epilogue: out = (sum + bias) * EpilogueArgs::residual; the bias may be null. A gated product
// ends with it if its two matrices have biases or different formats.
struct TimesResidual {};

}}}  // namespace nibble::NIBBLE_ABI::kernels
