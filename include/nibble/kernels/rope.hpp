// SPDX-License-Identifier: Apache-2.0
//
// Rotary position embedding (Su et al. 2021) of query or key heads, in place.
#pragma once

#include "nibble/simd/impl.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace kernels {

// Which two values of a head rotate together, for pair i of rope_dim / 2.
struct AdjacentPairs {};  // x[2i] and x[2i + 1]: as published, and llama.cpp's "norm"
struct HalfSplit {};      // x[i] and x[i + rope_dim / 2]: Hugging Face's, and "neox"

// (a, b) <- (a cos[i] - b sin[i], a sin[i] + b cos[i]) for each pair of the first rope_dim values
// of each head; the rest of the head is unchanged. `x` is (n_heads, head_dim), contiguous; `cos`
// and `sin` have rope_dim / 2 values. rope_dim is even and at most head_dim. No alignment is
// needed.
// With kBack: by the negative angle, (a, b) <- (a cos[i] + b sin[i], b cos[i] - a sin[i]). This is
// the transposed map, hence the backward pass, also where a magnitude is in cos and sin.
template <class Style, bool kBack = false>
struct Rope {
  using Function = void(float* x, Index n_heads, Index head_dim, Index rope_dim, const float* cos,
                        const float* sin);
};

}}}  // namespace nibble::NIBBLE_ABI::kernels
