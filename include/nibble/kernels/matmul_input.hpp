// SPDX-License-Identifier: Apache-2.0
//
// Kernels that make the representations of activations that only some products read; see
// MatmulInput.
#pragma once

#include <cstdint>

#include "nibble/core/float16.hpp"
#include "nibble/simd/impl.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace kernels {

// out[i] = x[i] rounded to bf16 as to_bf16 does, i < k; a zero follows an odd k. No alignment is
// needed; no overlap.
struct RoundRow {
  using Function = void(const float* x, Index k, bf16* out);
};

// code_sums[b] = -8 * (sum of codes[b * kLength] ... codes[b * kLength + kLength - 1]) for each of
// n_blocks blocks. Products with ActivationScales::per_row need it in addition to QuantizeRow<0>.
template <int kLength>
struct BlockSums {
  static_assert(kLength > 0 && kLength % 32 == 0 && kLength <= 1 << 16);
  using Function = void(const std::int8_t* codes, Index n_blocks, std::int32_t* code_sums);
};

// out[i] = codes[i] * scales[i / kLength] in bf16 (rounded as to_bf16 does), i < k; zeros follow up
// to a multiple of 32. codes: zeros from k to whole blocks. No alignment is needed; no overlap.
template <int kLength>
struct RoundCodes {
  static_assert(kLength > 0 && kLength % 32 == 0);
  using Function = void(const std::int8_t* codes, const float* scales, Index k, bf16* out);
};

// How many rows of row_bytes bytes one task should multiply if the target has tiles: large caches
// are worth it then, and weights are widened once for all of them. 0: it has none.
struct TileTaskRows {
  using Function = Index(Index row_bytes);
};

// Whether products with bf16 weights may be given rounded rows (MatmulInput::rounded): true if the
// target and this processor multiply pairs of bf16 as one operation, at about twice the rate of
// f32.
struct TakesRoundedRows {
  using Function = bool();
};

}}}  // namespace nibble::NIBBLE_ABI::kernels
