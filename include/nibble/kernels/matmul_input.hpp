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

// Whether products with bf16 weights may be given rounded rows (MatmulInput::rounded): true if the
// target and this processor multiply pairs of bf16 as one operation, at about twice the rate of
// f32.
struct TakesRoundedRows {
  using Function = bool();
};

}}}  // namespace nibble::NIBBLE_ABI::kernels
