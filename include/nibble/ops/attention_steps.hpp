// SPDX-License-Identifier: Apache-2.0
//
// Attention in its three textbook steps, with the matrix of scores in memory. It shows what an
// expression means before fusion, and lets a program look at the weights. Plain loops in f32 with
// sums in double; for speed, use ops/attention.hpp.
#pragma once

#include <limits>

#include "nibble/core/libm.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/ops/attention.hpp"
#include "nibble/ops/kv_cache.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

namespace detail {

// Calls f(segment, row, position) for each row of the segments.
template <class F>
void for_each_row(std::span<const Segment> segments, F&& f) {
  for (const Segment& segment : segments) {
    for (Index i = 0; i < segment.n_rows; ++i) {
      f(segment, segment.first_row + i, segment.first_position + i);
    }
  }
}

// The tile that holds `position` in the cache of a kv head.
template <class T>
const T* tile_of(const T* kv_head, const Segment& segment, Index position,
                 Index head_dim) noexcept {
  const std::int32_t* const pages = segment.pages.empty() ? nullptr : segment.pages.data();
  return kv_head +
         kernels::page_of(pages, position / kPagePositions) * kernels::tile_size<T>(head_dim);
}

// Applies ScoreOptions to one score.
inline float changed_score(const kernels::ScoreOptions& options, Index head, Index position,
                           Index key, double score) noexcept {
  if (options.soft_cap != 0) {
    const auto cap = static_cast<double>(options.soft_cap);
    score = cap * libm::tanh(score / cap);
  }
  if (options.alibi_slopes != nullptr) {
    const Index distance = key > position ? key - position : position - key;
    score -= static_cast<double>(options.alibi_slopes[head]) * static_cast<double>(distance);
  }
  auto result = static_cast<float>(score);
  if (options.function != nullptr) {
    options.function(options.data, head, position, key, 1, &result);
  }
  return result;
}

}  // namespace detail

// scores (rows, n_heads * n): for each head, the scores of the first n = scores.extent(1) / n_heads
// cached positions; −∞ for positions that a row does not see.
inline void attention_scores(MatrixView<const float> q, const KvCache& cache, Index layer,
                             const AttentionShape& shape, std::span<const Segment> segments,
                             MatrixView<float> scores) noexcept {
  const Index n = scores.extent(1) / shape.n_heads;
  visit_kv_type(cache.layout().type, [&]<class T>(T) {
    const KvLayer<T> kv = cache.layer<T>(layer);
    detail::for_each_row(segments, [&](const Segment& segment, Index row, Index position) {
      const Index begin = shape.first_seen(position);
      const Index end = shape.end_seen(position, segment.end_position());
      for (Index h = 0; h < shape.n_heads; ++h) {
        for (Index p = 0; p < n; ++p) {
          float& score = scores(row, h * n + p);
          if (p < begin || p >= end) {
            score = -kInfinity;
            continue;
          }
          const T* const tile =
              detail::tile_of<T>(kv.of(h / shape.group()), segment, p, shape.head_dim);
          double sum = 0;
          for (Index d = 0; d < shape.head_dim; ++d) {
            sum +=
                static_cast<double>(q(row, h * shape.head_dim + d)) *
                static_cast<double>(kernels::key_at(tile, p % kPagePositions, d, shape.head_dim));
          }
          score = detail::changed_score(shape.scores, h, position, p,
                                        sum * static_cast<double>(shape.scale));
        }
      }
    });
  });
}

// Softmax of each head's scores, in place, with ScoreOptions::sink_logits if they are given.
inline void attention_softmax(MatrixView<float> scores, const AttentionShape& shape) noexcept {
  const Index n = scores.extent(1) / shape.n_heads;
  for (Index i = 0; i < scores.extent(0); ++i) {
    for (Index h = 0; h < shape.n_heads; ++h) {
      float* const s = scores.data() + i * scores.stride(0) + h * n;
      const float* const sinks = shape.scores.sink_logits;
      float max = sinks == nullptr ? s[0] : sinks[h];
      for (Index p = 0; p < n; ++p) max = larger(max, s[p]);
      double sum = sinks == nullptr ? 0 : libm::exp(static_cast<double>(sinks[h] - max));
      for (Index p = 0; p < n; ++p) sum += libm::exp(static_cast<double>(s[p] - max));
      for (Index p = 0; p < n; ++p) {
        s[p] = static_cast<float>(libm::exp(static_cast<double>(s[p] - max)) / sum);
      }
    }
  }
}

// out (rows, n_heads * head_dim) = the values weighted by each head's `weights`.
inline void attention_values(MatrixView<const float> weights, const KvCache& cache, Index layer,
                             const AttentionShape& shape, std::span<const Segment> segments,
                             MatrixView<float> out) noexcept {
  const Index n = weights.extent(1) / shape.n_heads;
  visit_kv_type(cache.layout().type, [&]<class T>(T) {
    const KvLayer<T> kv = cache.layer<T>(layer);
    detail::for_each_row(segments, [&](const Segment& segment, Index row, Index position) {
      const Index begin = shape.first_seen(position);  // others may never have been written
      const Index end = (std::min)(n, shape.end_seen(position, segment.end_position()));
      for (Index h = 0; h < shape.n_heads; ++h) {
        const T* const kv_head = kv.of(h / shape.group());
        for (Index d = 0; d < shape.head_dim; ++d) {
          double sum = 0;
          for (Index p = begin; p < end; ++p) {
            const T* const tile = detail::tile_of<T>(kv_head, segment, p, shape.head_dim);
            sum +=
                static_cast<double>(weights(row, h * n + p)) *
                static_cast<double>(kernels::value_at(tile, p % kPagePositions, d, shape.head_dim));
          }
          out(row, h * shape.head_dim + d) = static_cast<float>(sum);
        }
      }
    });
  });
}

}}}  // namespace nibble::NIBBLE_ABI::ops
