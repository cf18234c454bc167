// SPDX-License-Identifier: Apache-2.0
//
// Attention in its three textbook steps, with the matrix of scores in memory: what an expression
// means before fusion, and where a program looks at the weights. Float loops, f32 with sums in
// double; ops/attention.hpp is the one to run.
#pragma once

#include <limits>

#include "nibble/core/libm.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/ops/attention.hpp"
#include "nibble/ops/kv_cache.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

// scores (n_tokens, n_heads * n): for each head the scaled scores of its n = scores.extent(1) /
// n_heads first cached positions, −∞ where token i (at position first_position + i) may not look.
inline void attention_scores(MatrixView<const float> q, const KvCache& cache, Index layer,
                             const AttentionShape& shape, Index first_position,
                             MatrixView<float> scores) noexcept {
  const Index n = scores.extent(1) / shape.n_heads;
  visit_kv_type(cache.layout().type, [&]<class T>(T) {
    const KvLayer<T> kv = cache.layer<T>(layer);
    for (Index i = 0; i < q.extent(0); ++i) {
      const Index position = first_position + i;
      const Index begin = shape.first_seen(position);
      for (Index h = 0; h < shape.n_heads; ++h) {
        const T* const kv_head = kv.of(h / shape.group());
        for (Index p = 0; p < n; ++p) {
          double sum = 0;
          for (Index d = 0; p >= begin && p <= position && d < shape.head_dim; ++d) {
            sum += static_cast<double>(q(i, h * shape.head_dim + d)) *
                   static_cast<double>(kernels::key_at(kv_head, p, d, shape.head_dim));
          }
          const bool visible = p >= begin && p <= position;
          scores(i, h * n + p) = visible ? static_cast<float>(sum) * shape.scale : -kInfinity;
        }
      }
    }
  });
}

// Softmax of each head's scores, in place.
inline void attention_softmax(MatrixView<float> scores, Index n_heads) noexcept {
  const Index n = scores.extent(1) / n_heads;
  for (Index i = 0; i < scores.extent(0); ++i) {
    for (Index h = 0; h < n_heads; ++h) {
      float* const s = scores.data() + i * scores.stride(0) + h * n;
      const float max = *std::max_element(s, s + n);
      double sum = 0;
      for (Index p = 0; p < n; ++p) sum += libm::exp(static_cast<double>(s[p] - max));
      for (Index p = 0; p < n; ++p) {
        s[p] = static_cast<float>(libm::exp(static_cast<double>(s[p] - max)) / sum);
      }
    }
  }
}

// out (n_tokens, n_heads * head_dim) = the values weighted by each head's `weights`.
inline void attention_values(MatrixView<const float> weights, const KvCache& cache, Index layer,
                             const AttentionShape& shape, Index first_position,
                             MatrixView<float> out) noexcept {
  const Index n = weights.extent(1) / shape.n_heads;
  visit_kv_type(cache.layout().type, [&]<class T>(T) {
    const KvLayer<T> kv = cache.layer<T>(layer);
    for (Index i = 0; i < out.extent(0); ++i) {
      for (Index h = 0; h < shape.n_heads; ++h) {
        const T* const kv_head = kv.of(h / shape.group());
        for (Index d = 0; d < shape.head_dim; ++d) {
          double sum = 0;  // positions after the token's own may never have been written
          for (Index p = 0; p <= first_position + i && p < n; ++p) {
            sum += static_cast<double>(weights(i, h * n + p)) *
                   static_cast<double>(kernels::value_at(kv_head, p, d, shape.head_dim));
          }
          out(i, h * shape.head_dim + d) = static_cast<float>(sum);
        }
      }
    }
  });
}

}}}  // namespace nibble::NIBBLE_ABI::ops
