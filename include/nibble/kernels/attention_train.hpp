// SPDX-License-Identifier: Apache-2.0
//
// Attention of training: all rows of a sequence at once, without a cache, and its backward pass.
// The scores of one tile exist at a time, never those of a whole row; the backward pass computes
// them again from the log-sum-exp of each row (T. Dao, "FlashAttention-2", 2023, algorithm 2). All
// in f32, but for sums of exponentials over tiles, which are in double.
#pragma once

#include <algorithm>

#include "nibble/simd/impl.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace kernels {

// Tiles of scores: query rows and keys.
inline constexpr Index kTrainRows = 32;
inline constexpr Index kTrainKeys = 64;

// One sequence and one kv head, with the `group` query heads that read it. Row i of head h of a
// matrix is at its pointer + i * stride + h * head_dim (or value_dim); of k, v, dk and dv there is
// one head. No alignment is needed, except of scratch.
struct TrainAttentionArgs {
  Index n = 0;      // rows of the sequence, at least 1
  Index group = 1;  // query heads
  Index head_dim = 0, value_dim = 0;
  float scale = 1;     // factor of the scores
  Index window = 0;    // a query sees this many positions up to and including its own; 0: all
  Index ahead = 0;     // and this many after its own; 0: causal, n or more: all
  float soft_cap = 0;  // score = soft_cap * tanh(score / soft_cap); 0: none
  const float* alibi_slopes = nullptr;  // (group): score -= slope * distance; or null
  const float* sink_logits = nullptr;   // (group): an extra score of each query; or null

  const float* q = nullptr;  // (n, group, head_dim)
  const float* k = nullptr;  // (n, head_dim)
  const float* v = nullptr;  // (n, value_dim)
  float* out = nullptr;      // (n, group, value_dim): written forward, read backward
  float* lse = nullptr;      // (n, group), heads contiguous: likewise
  Index q_stride = 0, k_stride = 0, v_stride = 0, out_stride = 0, lse_stride = 0;

  // Backward only.
  const float* dout = nullptr;  // (n, group, value_dim)
  float* dq = nullptr;          // (n, group, head_dim)
  float* dk = nullptr;          // (n, head_dim)
  float* dv = nullptr;          // (n, value_dim)
  Index dout_stride = 0, dq_stride = 0, dk_stride = 0, dv_stride = 0;

  float* scratch = nullptr;  // train_attention_floats(), aligned to 64 bytes

  // Row i sees positions [first_seen(i), end_seen(i)).
  constexpr Index first_seen(Index i) const noexcept {
    return window > 0 ? (std::max)(Index{0}, i + 1 - window) : 0;
  }
  constexpr Index end_seen(Index i) const noexcept {
    return ahead >= n ? n : (std::min)(n, i + 1 + ahead);
  }
};

// Floats of scratch for sequences of up to n rows, forward and backward: keys and values
// transposed, and two tiles of scores.
constexpr Index train_attention_floats(Index n, Index head_dim, Index value_dim) noexcept {
  const Index n_tiles = (n + kTrainKeys - 1) / kTrainKeys;
  return n_tiles * kTrainKeys * (head_dim + value_dim) + 2 * kTrainRows * kTrainKeys;
}

// out = softmax(scores) v and lse = log(sum exp(scores)) of each row and head, where scores =
// scale * q k^T (soft-capped, minus slope * distance) over what a row sees. With u = 2^-24: a score
// has an error of at most e = (head_dim + 4) u scale |q| |k| (norms), its exponential a relative
// one of e + (4 |score - max| + 3) u, out about twice the largest of these plus (n / 8 + 80) u,
// times the weighted mean of |v|; lse has that of a score plus 2 u |lse|. NaN and inf in a row of q
// reach that row of out, in k and v all rows that see them (but a score of -inf only has no
// weight); in v also up to three rows next to these, which are computed together with them.
struct TrainAttention {
  using Function = void(const TrainAttentionArgs& args);
};

// dq, dk and dv (all set, not added to) from q, k, v, out, lse and dout. None of them may overlap
// an input. With P = exp(scores - lse), D = rowsum(dout * out) and dS = P * (dout v^T - D) * slope
// of the soft cap:
//   dv = P^T dout,   dq = scale * dS k,   dk = scale * dS^T q,
// summed over the heads of the group in order, and over tiles of rows in order.
struct TrainAttentionBack {
  using Function = void(const TrainAttentionArgs& args);
};

// The gradient of a sink logit: the sum of -exp(sink - lse) * D over the rows of one head, in their
// order, in double. Reads out, lse and dout of `args`, of which n rows and one head are meant.
struct TrainSinkBack {
  using Function = double(const TrainAttentionArgs& args, float sink);
};

}}}  // namespace nibble::NIBBLE_ABI::kernels
