// SPDX-License-Identifier: Apache-2.0
//
// Linear attention with a matrix as state: the gated delta rule (S. Yang et al., "Gated Delta
// Networks", 2024) and the decayed sum (T. Dao and A. Gu, "Transformers are SSMs", 2024: Mamba-2).
#pragma once

#include "nibble/simd/impl.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace kernels {

// The rows of a sequence are in chunks of so many positions, which begin at multiples of it.
inline constexpr Index kDeltaChunk = 16;

// What a head keeps of a sequence, besides kDeltaLeft numbers. The matrix is that after the last
// whole chunk, without what has decayed since; the positions after it are kept one by one until
// their chunk is whole. So the matrix is read once for each row, or once for a chunk of rows, and
// written once in a chunk; and what there is after a position does not depend on how the rows
// before it were cut into calls. A row that does not end its chunk changes nothing here, but adds a
// key and a delta.
struct DeltaState {
  Index key_dim = 0;
  Index value_dim = 0;

  // Parts of the state, in floats.
  constexpr Index keys_at() const noexcept { return key_dim * value_dim; }
  constexpr Index deltas_at() const noexcept { return keys_at() + kDeltaChunk * key_dim; }
  // (key_dim, value_dim): the matrix; (kDeltaChunk, key_dim): keys; (kDeltaChunk, value_dim): what
  // is added at these keys. Then padding.
  constexpr Index n_floats() const noexcept {
    return (deltas_at() + kDeltaChunk * value_dim + 15) / 16 * 16;
  }
};

// (kDeltaChunk): how much of each delta is left; how much of the matrix is. Each row changes them.
inline constexpr Index kDeltaLeft = kDeltaChunk + 1;

// The heads of a layer. Those whose numbers have the same rest modulo n_key_heads have the same
// queries and keys.
struct DeltaHeads {
  Index n_heads = 0;
  Index n_key_heads = 0;
  DeltaState state;  // of a head

  constexpr Index key_width() const noexcept { return n_key_heads * state.key_dim; }
  constexpr Index value_width() const noexcept { return n_heads * state.value_dim; }
  constexpr Index n_left_floats() const noexcept { return n_heads * kDeltaLeft; }
  constexpr Index n_state_floats() const noexcept { return n_heads * state.n_floats(); }
};

// Rows of one head of a sequence. No alignment is needed.
struct DeltaArgs {
  Index n_rows = 0;
  Index first_slot = 0;  // the position of the first row, modulo kDeltaChunk
  DeltaState shape;
  const float* queries = nullptr;  // (n_rows, key_dim), rows query_stride apart
  const float* keys = nullptr;     // the same
  const float* values = nullptr;   // (n_rows, value_dim), rows value_stride apart
  Index query_stride = 0;
  Index value_stride = 0;
  // (n_rows), gate_stride apart: how much of the state is left, from 0 to 1; the factor of what is
  // added.
  const float* decays = nullptr;
  const float* betas = nullptr;
  Index gate_stride = 0;
  float* state = nullptr;  // (shape.n_floats()); its content does not matter before position 0
                           // except for the matrix, which is zeros
  float* left = nullptr;   // (kDeltaLeft); its content does not matter before position 0
  float* out = nullptr;    // (n_rows, value_dim), rows out_stride apart
  Index out_stride = 0;
};

// For each row, with the matrix S:
//   S = decay * S;  delta = beta * (value - keyᵀ S)  or, without kSubtracts, beta * value;
//   S = S + key deltaᵀ;  out = queryᵀ S
// in the form of chunks: delta and out of a row are made of the products of key and query with the
// matrix at the start of the chunk and of those with the keys since. These are products of
// matrices; each sum has an order of its own, whatever rows are computed together, so that all ways
// to cut rows into calls give the same bits.
template <bool kSubtracts>
struct DeltaRule {
  using Function = void(const DeltaArgs& args);
};

}}}  // namespace nibble::NIBBLE_ABI::kernels
