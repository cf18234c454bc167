// SPDX-License-Identifier: Apache-2.0
//
// Grouped-query attention over a key-value cache: causal, with an optional sliding window, online
// softmax (no score matrix), any number of tokens at once.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <type_traits>

#include "nibble/core/arena.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/kernels/attention.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/ops/kv_cache.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

struct AttentionShape {
  Index n_heads = 0;  // a multiple of n_kv_heads; head h reads kv head h / (n_heads / n_kv_heads)
  Index n_kv_heads = 0;
  Index head_dim = 0;  // any, also odd; multiples of 16 are the fast ones
  float scale = 1;     // of the scores, usually 1 / sqrt(head_dim)
  Index window = 0;    // a query sees this many positions, its own included; 0: all

  constexpr Index group() const noexcept { return n_heads / n_kv_heads; }
  // By the query at `position`, which sees everything from there up to itself.
  constexpr Index first_seen(Index position) const noexcept {
    return window > 0 ? std::max<Index>(0, position + 1 - window) : 0;
  }
};

// How the work is cut. A function of the sizes alone, never of the number of workers: the same
// tokens give the same bits on any machine with the same SIMD target.
namespace detail {

// A few tokens against many positions are too few tasks for many workers: the positions are split
// too, each part at least kMinPart positions, and tokens * parts at most kMaxParts.
inline constexpr Index kMaxParts = 16;
inline constexpr Index kMinPart = 512;

constexpr Index attention_parts(Index n_tokens, Index n_positions) noexcept {
  return std::max<Index>(1, std::min(kMaxParts / n_tokens, n_positions / kMinPart));
}

// Bytes of one worker's scratch.
constexpr Index attention_worker_bytes(const AttentionShape& shape, Index max_tokens) noexcept {
  const Index tokens = std::min(max_tokens, kernels::attention_tokens_per_task(shape.group()));
  const Index n = kernels::attention_scratch_floats(tokens * shape.group(), shape.head_dim);
  return kernels::round_up(n * Index{sizeof(float)}, kAlignment);
}

// Floats of all partial results: for each (part, token), each head's sums of values, maximum, sum.
constexpr Index attention_part_floats(const AttentionShape& shape, Index rows) noexcept {
  return rows * shape.n_heads * (shape.head_dim + 2);
}

// The tasks of one call: kv heads times runs of tokens times parts of the positions.
struct AttentionCut {
  Index n_tokens;
  Index tokens_per_task;
  Index n_token_tasks;
  Index begin, end;  // positions [begin, end) are seen by some token
  Index n_parts;

  AttentionCut(const AttentionShape& shape, Index first_position, Index tokens) noexcept
      : n_tokens(tokens),
        tokens_per_task(std::min(tokens, kernels::attention_tokens_per_task(shape.group()))),
        n_token_tasks((tokens + tokens_per_task - 1) / tokens_per_task),
        begin(shape.first_seen(first_position)),
        end(first_position + tokens),
        n_parts(attention_parts(tokens, end - begin)) {}

  // Parts begin at tiles, counted from position 0, as tiles do within a task.
  Index part_begin(Index part) const noexcept {
    const Index first = begin / kernels::kAttentionTile;
    const Index n_tiles = (end + kernels::kAttentionTile - 1) / kernels::kAttentionTile - first;
    return std::max(begin, (first + n_tiles * part / n_parts) * kernels::kAttentionTile);
  }
};

// Partial results: (n_parts, n_kv_heads, n_tokens * group) rows of head_dim, their maxima, sums.
struct AttentionParts {
  Index n_parts;
  Index rows;  // of one part
  float* out;
  float* max;
  float* sum;

  AttentionParts(float* memory, const AttentionShape& shape, const AttentionCut& cut) noexcept
      : n_parts(cut.n_parts),
        rows(cut.n_tokens * shape.n_heads),
        out(memory),
        max(out + n_parts * rows * shape.head_dim),
        sum(max + n_parts * rows) {}
};

NIBBLE_LAZY void merge_attention(Executor& executor, const AttentionParts& parts,
                                 const AttentionShape& shape, MatrixView<float> out) noexcept {
  const Index group = shape.group();
  const Index n_tokens = out.extent(0);
  auto* const merge = simd::kernel<kernels::MergeAttention>();
  executor.parallel_for(shape.n_kv_heads * n_tokens, [&](Index index, Index) {
    const Index kv_head = index / n_tokens;
    const Index token = index % n_tokens;
    const Index row = index * group;  // within a part
    kernels::MergeAttention::Args args;
    args.out = parts.out + row * shape.head_dim;
    args.max = parts.max + row;
    args.sum = parts.sum + row;
    args.n_parts = parts.n_parts;
    args.part_rows = parts.rows;
    args.n_rows = group;
    args.head_dim = shape.head_dim;
    args.merged = out.data() + token * out.stride(0) + kv_head * group * shape.head_dim;
    merge(args);
  });
}

}  // namespace detail

// Bytes of scratch that attention() needs for at most max_tokens tokens at once and a cache of
// `capacity` positions. Where that is more than kMaxBytes: the last multiple of kAlignment up to
// it.
constexpr std::size_t attention_scratch_bytes(Index n_workers, const AttentionShape& shape,
                                              Index max_tokens, Index capacity) noexcept {
  // tokens * parts, at most kMaxParts, is largest for one token or for parts that just fit.
  Index rows = 0;
  for (Index t = 1; t <= std::min(max_tokens, detail::kMaxParts); ++t) {
    const Index parts = detail::attention_parts(t, capacity);
    if (parts > 1) rows = std::max(rows, t * parts);
  }
  const Index bytes = n_workers * detail::attention_worker_bytes(shape, max_tokens) +
                      detail::attention_part_floats(shape, rows) * Index{sizeof(float)};
  return align_up(static_cast<std::size_t>(std::min<Index>(bytes, kMaxBytes - 63)));
}

// out[i] = attention of token i, at position first_position + i, to the positions of the cache up
// to its own; the cache must hold them all, those of these tokens included.
//   q    (n_tokens, n_heads * head_dim)  rows may be strided, elements of a row are consecutive
//   out  the same shape; may be q itself
// Arithmetic is f32, for 8-bit integers also exact sums of integer products. Keys and values must
// be finite where they were written; positions above first_position + n_tokens - 1 are not used.
// Scores of any magnitude are fine as long as they are finite. Scratch: attention_scratch_bytes(),
// aligned to kAlignment.
template <class T>
void attention(Executor& executor, MatrixView<const float> q, KvLayer<T> cache,
               const AttentionShape& shape, Index first_position, MatrixView<float> out,
               std::span<std::byte> scratch) noexcept {
  using Element = std::remove_const_t<T>;
  using Kernel = kernels::Attend<Element>;
  const Index n_tokens = q.extent(0);
  if (n_tokens == 0) return;
  const Index group = shape.group();
  const Index head_dim = shape.head_dim;
  const Index n_kv_heads = shape.n_kv_heads;
  NIBBLE_ASSERT(n_kv_heads >= 1 && group >= 1 && shape.n_heads == group * n_kv_heads);
  NIBBLE_ASSERT(cache.n_kv_heads == n_kv_heads && cache.head_dim == head_dim);
  NIBBLE_ASSERT(q.extent(1) == shape.n_heads * head_dim && q.stride(1) == 1);
  NIBBLE_ASSERT(out.extent(0) == n_tokens && out.extent(1) == q.extent(1) && out.stride(1) == 1);
  NIBBLE_ASSERT(first_position >= 0 && first_position + n_tokens <= cache.capacity);
  NIBBLE_ASSERT(scratch.size() >= attention_scratch_bytes(executor.n_workers(), shape, n_tokens,
                                                          first_position + n_tokens));

  const detail::AttentionCut cut(shape, first_position, n_tokens);
  const auto worker_bytes =
      static_cast<std::size_t>(detail::attention_worker_bytes(shape, n_tokens));
  std::byte* const after_workers =
      scratch.data() + static_cast<std::size_t>(executor.n_workers()) * worker_bytes;
  const detail::AttentionParts parts(reinterpret_cast<float*>(after_workers), shape, cut);

  auto* const attend = simd::kernel<Kernel>();
  const auto task = [&](Index index, Index worker) {
    // Token tasks of one kv head follow each other: its keys and values stay in a shared cache.
    const Index part = index % cut.n_parts;
    const Index first_token = index / cut.n_parts % cut.n_token_tasks * cut.tokens_per_task;
    const Index kv_head = index / cut.n_parts / cut.n_token_tasks;
    typename Kernel::Args args;
    args.n_tokens = std::min(cut.tokens_per_task, n_tokens - first_token);
    args.q = q.data() + first_token * q.stride(0) + kv_head * group * head_dim;
    args.q_stride = q.stride(0);
    args.group = group;
    args.head_dim = head_dim;
    args.cache = cache.of(kv_head);
    args.first_position = first_position + first_token;
    args.window = shape.window;
    args.scale = shape.scale;
    args.scratch =
        reinterpret_cast<float*>(scratch.data() + static_cast<std::size_t>(worker) * worker_bytes);
    const Index last_end = args.first_position + args.n_tokens;
    if (cut.n_parts == 1) {
      args.begin = shape.first_seen(args.first_position);
      args.end = last_end;
      args.out = out.data() + first_token * out.stride(0) + kv_head * group * head_dim;
      args.out_stride = out.stride(0);
    } else {
      args.begin = cut.part_begin(part);
      args.end = std::min(last_end, cut.part_begin(part + 1));
      const Index row = part * parts.rows + (kv_head * n_tokens + first_token) * group;
      args.out = parts.out + row * head_dim;
      args.out_stride = group * head_dim;
      args.max = parts.max + row;
      args.sum = parts.sum + row;
    }
    attend(args);
  };
  executor.parallel_for(n_kv_heads * cut.n_token_tasks * cut.n_parts, task);
  if (cut.n_parts > 1) detail::merge_attention(executor, parts, shape, out);
}

// The same for whatever element type the cache has.
NIBBLE_LAZY void attention(Executor& executor, MatrixView<const float> q, const KvCache& cache,
                           Index layer, const AttentionShape& shape, Index first_position,
                           MatrixView<float> out, std::span<std::byte> scratch) noexcept {
  visit_kv_type(cache.layout().type, [&]<class T>(T) {
    attention(executor, q, cache.layer<T>(layer), shape, first_position, out, scratch);
  });
}

}}}  // namespace nibble::NIBBLE_ABI::ops
