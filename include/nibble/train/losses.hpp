// SPDX-License-Identifier: Apache-2.0
//
// Losses between the features of a student and those of its teacher, with their gradients. Sums are
// in double, in an order that does not depend on threads; nothing allocates. (Cross-entropy and the
// distillation of whole rows of logits are operations of ops/.)
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>

#include "nibble/core/executor.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/view.hpp"
#include "nibble/ops/unit_rows.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace train {

// ---- Cosine alignment ---------------------------------------------------------------------------

// A matrix (n, k) that takes the student's features to the teacher's, y = P s, and its gradient, to
// which is added. Empty: the widths are equal, y = s.
struct Projection {
  MatrixView<const float> weights = {};
  MatrixView<float> gradient = {};
};

// Doubles of scratch that cosine_alignment needs for m rows and a teacher of width n.
constexpr Index cosine_alignment_scratch(Index m, Index n) noexcept { return m * (n + 1); }

// Returns Σ wᵣ · (1 − cos(yᵣ, tᵣ)) over rows r of y = P s and t, and adds `scale` times its
// gradients. `student` and `gradient` are (m, k), `teacher` is (m, n); `weights` has m values, or
// none: all are 1. A row of zeros, which has no direction, counts with cos = 0 and gets no
// gradient; a value that is not finite makes the loss NaN. The values of a row are contiguous.
//   ∂cos/∂y = (t / |t| − cos · y / |y|) / |y|
inline double cosine_alignment(Executor& executor, MatrixView<const float> student,
                               MatrixView<const float> teacher, std::span<const float> weights,
                               double scale, MatrixView<float> gradient,
                               const Projection& projection, std::span<double> scratch) noexcept {
  const Index m = student.extent(0), k = student.extent(1), n = teacher.extent(1);
  const bool has_projection = projection.weights.extent(0) > 0;
  NIBBLE_ASSERT(teacher.extent(0) == m && gradient.shape() == student.shape());
  NIBBLE_ASSERT(weights.empty() || static_cast<Index>(weights.size()) == m);
  NIBBLE_ASSERT(has_projection || k == n);
  NIBBLE_ASSERT(!has_projection ||
                (projection.weights.extent(0) == n && projection.weights.extent(1) == k &&
                 projection.gradient.shape() == projection.weights.shape()));
  NIBBLE_ASSERT(static_cast<Index>(scratch.size()) >= cosine_alignment_scratch(m, n));
  double* const losses = scratch.data() + m * n;  // (m)
  executor.parallel_for(m, [&](Index r, Index) {
    const float *const s = ops::row_of(student, r), *const t = ops::row_of(teacher, r);
    double* const y = scratch.data() + r * n;  // becomes scale · ∂loss/∂y
    double yy = 0, tt = 0, yt = 0;
    for (Index i = 0; i < n; ++i) {
      y[i] = 0;
      if (has_projection) {
        const float* const p = ops::row_of(projection.weights, i);
        for (Index j = 0; j < k; ++j) y[i] += static_cast<double>(p[j]) * static_cast<double>(s[j]);
      } else {
        y[i] = static_cast<double>(s[i]);
      }
      const auto target = static_cast<double>(t[i]);
      yy += y[i] * y[i];
      tt += target * target;
      yt += y[i] * target;
    }
    const double weight =
        weights.empty() ? 1 : static_cast<double>(weights[static_cast<std::size_t>(r)]);
    const bool has_direction = !(yy == 0 || tt == 0);  // true of NaN, which must come out
    const double below = has_direction ? 1 / (std::sqrt(yy) * std::sqrt(tt)) : 0;
    const double cosine = yt * below;
    losses[r] = weight * (1 - cosine);
    for (Index i = 0; i < n; ++i) {
      const double along = has_direction ? cosine * y[i] / yy : 0;
      y[i] = -scale * weight * (static_cast<double>(t[i]) * below - along);
    }
    float* const out = ops::row_of(gradient, r);
    for (Index j = 0; j < k; ++j) {
      double sum = has_projection ? 0 : y[j];
      for (Index i = 0; has_projection && i < n; ++i) {
        sum += y[i] * static_cast<double>(ops::row_of(projection.weights, i)[j]);
      }
      out[j] = static_cast<float>(static_cast<double>(out[j]) + sum);
    }
  });
  executor.parallel_for(has_projection ? n : 0, [&](Index i, Index) {
    float* const out = ops::row_of(projection.gradient, i);
    for (Index j = 0; j < k; ++j) {
      auto sum = static_cast<double>(out[j]);
      for (Index r = 0; r < m; ++r) {
        sum += scratch[static_cast<std::size_t>(r * n + i)] *
               static_cast<double>(ops::row_of(student, r)[j]);
      }
      out[j] = static_cast<float>(sum);
    }
  });
  double loss = 0;
  for (Index r = 0; r < m; ++r) loss += losses[r];
  return loss;
}

// ---- Relations of queries, keys or values -------------------------------------------------------

struct RelationOptions {
  Index n_heads = 1;       // relation heads: both widths are split into so many
  bool is_causal = false;  // row i is related to rows 0 … i only, as attention of a decoder is
};

namespace detail {

// The longest sequence.
inline Index longest(std::span<const Index> offsets) noexcept {
  Index n = 0;
  for (std::size_t s = 1; s < offsets.size(); ++s) {
    n = (std::max)(n, offsets[s] - offsets[s - 1]);
  }
  return n;
}

// log Σ exp(x).
inline double log_sum_exp(const double* x, Index n) noexcept {
  double most = x[0];
  for (Index i = 1; i < n; ++i) most = larger(most, x[i]);
  double sum = 0;
  for (Index i = 0; i < n; ++i) sum += std::exp(x[i] - most);
  return most + std::log(sum);
}

// The products of row i with rows 0 … n − 1 of a head, divided by √d.
inline void relate(MatrixView<const float> x, Index first, Index i, Index n, Index column, Index d,
                   double* out) noexcept {
  const double below = 1 / std::sqrt(static_cast<double>(d));
  const float* const a = ops::row_of(x, first + i) + column;
  for (Index j = 0; j < n; ++j) {
    const float* const b = ops::row_of(x, first + j) + column;
    double sum = 0;
    for (Index c = 0; c < d; ++c) sum += static_cast<double>(a[c]) * static_cast<double>(b[c]);
    out[j] = sum * below;
  }
}

// One head of one sequence of `size` rows: returns Σᵢ KL, adds scale · gradient. scratch: 2 · size
// + size · d doubles.
inline double relate_head(MatrixView<const float> student, MatrixView<const float> teacher,
                          Index first, Index size, Index head, const RelationOptions& options,
                          double scale, MatrixView<float> gradient, double* scratch) noexcept {
  const Index d = student.extent(1) / options.n_heads, d_t = teacher.extent(1) / options.n_heads;
  double *const q = scratch, *const p = q + size, *const dx = p + size;  // dx (size, d)
  std::fill(dx, dx + size * d, 0.0);
  const double below = 1 / std::sqrt(static_cast<double>(d));
  double loss = 0;
  for (Index i = 0; i < size; ++i) {
    const Index n = options.is_causal ? i + 1 : size;
    relate(teacher, first, i, n, head * d_t, d_t, p);
    relate(student, first, i, n, head * d, d, q);
    const double p_sum = log_sum_exp(p, n), q_sum = log_sum_exp(q, n);
    const float* const xi = ops::row_of(student, first + i) + head * d;
    for (Index j = 0; j < n; ++j) {
      const double log_p = p[j] - p_sum, log_q = q[j] - q_sum;
      loss += std::exp(log_p) * (log_p - log_q);
      // ∂KL/∂(the product of i and j), which is in the gradients of both rows.
      const double slope = scale * below * (std::exp(log_q) - std::exp(log_p));
      const float* const xj = ops::row_of(student, first + j) + head * d;
      for (Index c = 0; c < d; ++c) {
        dx[i * d + c] += slope * static_cast<double>(xj[c]);
        dx[j * d + c] += slope * static_cast<double>(xi[c]);
      }
    }
  }
  for (Index i = 0; i < size; ++i) {
    float* const out = ops::row_of(gradient, first + i) + head * d;
    for (Index c = 0; c < d; ++c) {
      out[c] = static_cast<float>(static_cast<double>(out[c]) + dx[i * d + c]);
    }
  }
  return loss;
}

}  // namespace detail

// Doubles of scratch that relation_loss needs.
inline Index relation_scratch(Index n_workers, std::span<const Index> offsets, Index student_width,
                              const RelationOptions& options) noexcept {
  const auto n_sequences = static_cast<Index>(offsets.size()) - 1;
  return n_sequences * options.n_heads +
         n_workers * detail::longest(offsets) * (2 + student_width / options.n_heads);
}

// The loss of MiniLMv2 (Wang et al., MiniLMv2: Multi-Head Self-Attention Relation Distillation for
// Compressing Pretrained Transformers, 2021) for one kind of features: both queries, keys or
// values. For each sequence, relation head a and row i,
//   KL(softmaxⱼ(tᵢ · tⱼ / √d_t) ‖ softmaxⱼ(sᵢ · sⱼ / √d_s))
// with j over the rows of the same sequence; tᵢ and sᵢ are the d_t and d_s values of head a, so
// that widths and numbers of attention heads may differ. Returns the sum over all, divided by
// n_heads, and adds `scale` times its gradient. `student` and `gradient` are (m, k), `teacher` is
// (m, n); sequence s has rows offsets[s] … offsets[s + 1] − 1. The values of a row are contiguous.
inline double relation_loss(Executor& executor, std::span<const Index> offsets,
                            MatrixView<const float> student, MatrixView<const float> teacher,
                            const RelationOptions& options, double scale,
                            MatrixView<float> gradient, std::span<double> scratch) noexcept {
  NIBBLE_ASSERT(options.n_heads > 0 && student.extent(1) % options.n_heads == 0 &&
                teacher.extent(1) % options.n_heads == 0);
  NIBBLE_ASSERT(gradient.shape() == student.shape() && teacher.extent(0) == student.extent(0));
  NIBBLE_ASSERT(!offsets.empty() && offsets.back() <= student.extent(0));
  NIBBLE_ASSERT(static_cast<Index>(scratch.size()) >=
                relation_scratch(executor.n_workers(), offsets, student.extent(1), options));
  const auto n_sequences = static_cast<Index>(offsets.size()) - 1;
  const Index n_tasks = n_sequences * options.n_heads;
  const Index per_worker = detail::longest(offsets) * (2 + student.extent(1) / options.n_heads);
  const double share = 1 / static_cast<double>(options.n_heads);
  executor.parallel_for(n_tasks, [&](Index task, Index worker) {
    const auto s = static_cast<std::size_t>(task / options.n_heads);
    scratch[static_cast<std::size_t>(task)] = detail::relate_head(
        student, teacher, offsets[s], offsets[s + 1] - offsets[s], task % options.n_heads, options,
        scale * share, gradient, scratch.data() + n_tasks + worker * per_worker);
  });
  double loss = 0;
  for (Index task = 0; task < n_tasks; ++task) loss += scratch[static_cast<std::size_t>(task)];
  return loss * share;
}

}}}  // namespace nibble::NIBBLE_ABI::train
