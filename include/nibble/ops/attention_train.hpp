// SPDX-License-Identifier: Apache-2.0
//
// Attention of training: packed sequences, one after the other in the rows of a batch, forward and
// backward, without a cache. No row sees another sequence. Formulas and errors:
// kernels/attention_train.hpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "nibble/core/arena.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/kernels/attention_train.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/ops/rows.hpp"
#include "nibble/ops/unit_rows.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

struct TrainAttentionShape {
  Index n_heads = 0;  // a multiple of n_kv_heads; head h reads kv head h / (n_heads / n_kv_heads)
  Index n_kv_heads = 0;
  Index head_dim = 0;
  Index value_dim = 0;  // of the heads of v and out; mostly head_dim
  float scale = 1;      // factor of the scores
  Index window = 0;     // a query sees this many positions up to and including its own; 0: all
  Index ahead = 0;      // and this many after its own; 0: causal; ops::kAllAhead: all
  float soft_cap = 0;   // score = soft_cap * tanh(score / soft_cap); 0: none
  const float* alibi_slopes = nullptr;  // (n_heads): score -= slope * distance; or null
  const float* sink_logits = nullptr;   // (n_heads): an extra score of each query; or null

  constexpr Index group() const noexcept { return n_heads / n_kv_heads; }
};

// Bytes of scratch, forward and backward, for sequences of up to max_sequence_rows rows, however
// many there are. Aligned to kAlignment.
constexpr std::size_t train_attention_scratch_bytes(const TrainAttentionShape& shape,
                                                    Index max_sequence_rows,
                                                    Index n_workers) noexcept {
  const Index floats =
      kernels::train_attention_floats(max_sequence_rows, shape.head_dim, shape.value_dim);
  return static_cast<std::size_t>(n_workers * ((floats + 15) / 16 * 16)) * sizeof(float);
}

namespace detail {

// A pass, forward or backward.
struct TrainAttentionRun {
  const TrainAttentionShape& shape;
  std::span<const Index> starts;
  kernels::TrainAttentionArgs all;  // of the first row and head
  std::span<std::byte> scratch;
};

// The operands of one sequence and kv head.
NIBBLE_LAZY kernels::TrainAttentionArgs task_args(const TrainAttentionRun& run, Index sequence,
                                                  Index kv_head) noexcept {
  const TrainAttentionShape& shape = run.shape;
  kernels::TrainAttentionArgs a = run.all;
  const Index first = run.starts[static_cast<std::size_t>(sequence)];
  const Index head = kv_head * shape.group();
  const Index d = shape.head_dim, dv = shape.value_dim;
  a.n = run.starts[static_cast<std::size_t>(sequence) + 1] - first;
  a.q += first * a.q_stride + head * d;
  a.k += first * a.k_stride + kv_head * d;
  a.v += first * a.v_stride + kv_head * dv;
  a.out += first * a.out_stride + head * dv;
  a.lse += first * a.lse_stride + head;
  if (a.dout != nullptr) {
    a.dout += first * a.dout_stride + head * dv;
    a.dq += first * a.dq_stride + head * d;
    a.dk += first * a.dk_stride + kv_head * d;
    a.dv += first * a.dv_stride + kv_head * dv;
  }
  if (a.alibi_slopes != nullptr) a.alibi_slopes += head;
  if (a.sink_logits != nullptr) a.sink_logits += head;
  return a;
}

// One task for each sequence and kv head: only it writes their rows.
template <class Kernel>
void run_train_attention(Executor& executor, const TrainAttentionRun& run) noexcept {
  const TrainAttentionShape& shape = run.shape;
  NIBBLE_ASSERT(shape.n_kv_heads >= 1 && shape.n_heads % shape.n_kv_heads == 0);
  NIBBLE_ASSERT(shape.head_dim >= 1 && shape.value_dim >= 1 && shape.window >= 0);
  NIBBLE_ASSERT(shape.ahead >= 0);
  Index longest = 0, work = 0;
  for (std::size_t i = 0; i + 1 < run.starts.size(); ++i) {
    const Index n = run.starts[i + 1] - run.starts[i];
    NIBBLE_ASSERT(n >= 0);
    longest = (std::max)(longest, n);
    work += n * n * shape.n_heads * (shape.head_dim + shape.value_dim);
  }
  const std::size_t bytes = train_attention_scratch_bytes(shape, longest, 1);
  NIBBLE_ASSERT(run.scratch.size() >= bytes * static_cast<std::size_t>(executor.n_workers()));
  NIBBLE_ASSERT(reinterpret_cast<std::uintptr_t>(run.scratch.data()) % kAlignment == 0);
  const auto kernel = simd::kernel<Kernel>();
  const auto run_task = [&](Index task, Index worker) {
    kernels::TrainAttentionArgs args =
        task_args(run, task / shape.n_kv_heads, task % shape.n_kv_heads);
    if (args.n == 0) return;
    args.scratch =
        reinterpret_cast<float*>(run.scratch.data() + bytes * static_cast<std::size_t>(worker));
    kernel(args);
  };
  const Index n_tasks = static_cast<Index>(run.starts.size() - 1) * shape.n_kv_heads;
  constexpr Index kLittleWork = 1 << 18;  // multiplications: some microseconds
  if (work < kLittleWork) {
    for (Index task = 0; task < n_tasks; ++task) run_task(task, 0);
  } else {
    executor.parallel_for(n_tasks, run_task);
  }
}

NIBBLE_LAZY kernels::TrainAttentionArgs train_attention_args(const TrainAttentionShape& shape,
                                                             MatrixView<const float> q,
                                                             MatrixView<const float> k,
                                                             MatrixView<const float> v, float* out,
                                                             Index out_stride, float* lse,
                                                             Index lse_stride) noexcept {
  NIBBLE_ASSERT(has_unit_rows(q) && has_unit_rows(k) && has_unit_rows(v));
  NIBBLE_ASSERT(q.extent(1) == shape.n_heads * shape.head_dim);
  NIBBLE_ASSERT(k.extent(1) == shape.n_kv_heads * shape.head_dim);
  NIBBLE_ASSERT(v.extent(1) == shape.n_kv_heads * shape.value_dim);
  NIBBLE_ASSERT(k.extent(0) == q.extent(0) && v.extent(0) == q.extent(0));
  kernels::TrainAttentionArgs a;
  a.group = shape.group();
  a.head_dim = shape.head_dim;
  a.value_dim = shape.value_dim;
  a.scale = shape.scale;
  a.window = shape.window;
  a.ahead = shape.ahead;
  a.soft_cap = shape.soft_cap;
  a.alibi_slopes = shape.alibi_slopes;
  a.sink_logits = shape.sink_logits;
  a.q = q.data();
  a.k = k.data();
  a.v = v.data();
  a.out = out;
  a.lse = lse;
  a.q_stride = q.stride(0);
  a.k_stride = k.stride(0);
  a.v_stride = v.stride(0);
  a.out_stride = out_stride;
  a.lse_stride = lse_stride;
  return a;
}

// What a forward pass writes and a backward pass reads, for m rows.
inline void check_attention_rows([[maybe_unused]] const TrainAttentionShape& shape,
                                 [[maybe_unused]] std::span<const Index> starts,
                                 [[maybe_unused]] MatrixView<const float> out,
                                 [[maybe_unused]] MatrixView<const float> lse,
                                 [[maybe_unused]] Index m) noexcept {
  NIBBLE_ASSERT(!starts.empty() && starts.front() == 0 && starts.back() == m);
  NIBBLE_ASSERT(has_unit_rows(out) && has_unit_rows(lse));
  NIBBLE_ASSERT(out.extent(0) == m && out.extent(1) == shape.n_heads * shape.value_dim);
  NIBBLE_ASSERT(lse.extent(0) == m && lse.extent(1) == shape.n_heads);
}

}  // namespace detail

// out (m, n_heads * value_dim) and lse (m, n_heads), from
//   q (m, n_heads * head_dim), k (m, n_kv_heads * head_dim) and v (m, n_kv_heads * value_dim).
// starts: the first row of each sequence, ascending from 0, and m at the end. The values of a row
// are contiguous, rows any distance apart; out and lse overlap no input. `scratch`:
// train_attention_scratch_bytes() for the longest sequence and the executor's workers, aligned to
// kAlignment. Tasks are (sequence, kv head); results do not depend on threads.
NIBBLE_LAZY void train_attention(Executor& executor, MatrixView<const float> q,
                                 MatrixView<const float> k, MatrixView<const float> v,
                                 const TrainAttentionShape& shape, std::span<const Index> starts,
                                 MatrixView<float> out, MatrixView<float> lse,
                                 std::span<std::byte> scratch) noexcept {
  detail::check_attention_rows(shape, starts, out, lse, q.extent(0));
  const auto args = detail::train_attention_args(shape, q, k, v, out.data(), out.stride(0),
                                                 lse.data(), lse.stride(0));
  detail::run_train_attention<kernels::TrainAttention>(executor, {shape, starts, args, scratch});
}

// dq, dk and dv, like q, k and v (all set; rows of empty sequences do not exist), from what the
// forward pass read and wrote and dout, like out. They overlap no input.
NIBBLE_LAZY void train_attention_back(Executor& executor, MatrixView<const float> q,
                                      MatrixView<const float> k, MatrixView<const float> v,
                                      MatrixView<const float> out, MatrixView<const float> lse,
                                      MatrixView<const float> dout,
                                      const TrainAttentionShape& shape,
                                      std::span<const Index> starts, MatrixView<float> dq,
                                      MatrixView<float> dk, MatrixView<float> dv,
                                      std::span<std::byte> scratch) noexcept {
  assert_rows_like(dq, q);
  assert_rows_like(dk, k);
  assert_rows_like(dv, v);
  assert_rows_like(dout, out);
  detail::check_attention_rows(shape, starts, out, lse, q.extent(0));
  // The backward pass only reads them.
  auto args =
      detail::train_attention_args(shape, q, k, v, const_cast<float*>(out.data()), out.stride(0),
                                   const_cast<float*>(lse.data()), lse.stride(0));
  args.dout = dout.data();
  args.dq = dq.data();
  args.dk = dk.data();
  args.dv = dv.data();
  args.dout_stride = dout.stride(0);
  args.dq_stride = dq.stride(0);
  args.dk_stride = dk.stride(0);
  args.dv_stride = dv.stride(0);
  detail::run_train_attention<kernels::TrainAttentionBack>(executor,
                                                           {shape, starts, args, scratch});
}

// dsinks (n_heads) += the gradients of sink_logits, which the shape must have. Sums over rows are
// in their order, in double.
NIBBLE_LAZY void attention_sinks_back(Executor& executor, MatrixView<const float> out,
                                      MatrixView<const float> lse, MatrixView<const float> dout,
                                      const TrainAttentionShape& shape,
                                      VectorView<float> dsinks) noexcept {
  assert_rows_like(dout, out);
  const Index m = out.extent(0);
  NIBBLE_ASSERT(shape.sink_logits != nullptr && out.extent(1) == shape.n_heads * shape.value_dim);
  NIBBLE_ASSERT(has_unit_rows(lse) && lse.extent(0) == m && lse.extent(1) == shape.n_heads);
  NIBBLE_ASSERT(dsinks.extent(0) == shape.n_heads && dsinks.is_contiguous());
  const auto kernel = simd::kernel<kernels::TrainSinkBack>();
  for_rows(executor, shape.n_heads, m * shape.value_dim, [&](Index h) {
    kernels::TrainAttentionArgs args;
    args.n = m;
    args.value_dim = shape.value_dim;
    args.out = const_cast<float*>(out.data()) + h * shape.value_dim;  // only read
    args.lse = const_cast<float*>(lse.data()) + h;
    args.dout = dout.data() + h * shape.value_dim;
    args.out_stride = out.stride(0);
    args.lse_stride = lse.stride(0);
    args.dout_stride = dout.stride(0);
    dsinks.data()[h] += static_cast<float>(kernel(args, shape.sink_logits[h]));
  });
}

}}}  // namespace nibble::NIBBLE_ABI::ops
