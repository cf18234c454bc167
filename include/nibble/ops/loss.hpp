// SPDX-License-Identifier: Apache-2.0
//
// Losses of rows of logits, with their gradients: cross-entropy and distillation. Formulas:
// kernels/loss.hpp.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>

#include "nibble/kernels/loss.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/kernels/softmax.hpp"
#include "nibble/ops/rows.hpp"
#include "nibble/ops/unit_rows.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

// For all: `logits` is (m, n); the values of a row are contiguous. `targets` (m): the right token
// of each row, or a negative number for a row that has none. `weights` (m): the factor of each row
// in the gradient; empty: 1. `losses` (m): what each row costs, without its weight, in nats. The
// order in which losses are added up is the caller's.

namespace detail {

inline float weight_of_row(std::span<const float> weights, Index row) noexcept {
  return weights.empty() ? 1.0f : weights[static_cast<std::size_t>(row)];
}
inline Index target_of([[maybe_unused]] MatrixView<const float> logits,
                       std::span<const std::int32_t> targets, Index row) noexcept {
  const Index target = targets[static_cast<std::size_t>(row)];
  NIBBLE_ASSERT(target < logits.extent(1));
  return target;
}
inline void check_losses([[maybe_unused]] MatrixView<const float> logits,
                         [[maybe_unused]] std::size_t n_targets,
                         [[maybe_unused]] std::size_t n_weights,
                         [[maybe_unused]] std::size_t n_losses) noexcept {
  [[maybe_unused]] const auto m = static_cast<std::size_t>(logits.extent(0));
  NIBBLE_ASSERT(has_unit_rows(logits) && logits.extent(1) >= 1);
  NIBBLE_ASSERT(n_targets == m && n_losses == m && (n_weights == 0 || n_weights == m));
}

}  // namespace detail

// losses[i] = log(sum exp(logits[i])) - logits[i][targets[i]]; 0 without a target.
NIBBLE_LAZY void cross_entropy(Executor& executor, MatrixView<const float> logits,
                               std::span<const std::int32_t> targets,
                               std::span<double> losses) noexcept {
  detail::check_losses(logits, targets.size(), 0, losses.size());
  const auto run = simd::kernel<kernels::LogSumExp>();
  for_rows(executor, logits.extent(0), logits.extent(1), [&](Index row) {
    const Index target = detail::target_of(logits, targets, row);
    double loss = 0;
    if (target >= 0) {
      const float* const x = row_of(logits, row);
      const kernels::LogSum sum = run(x, logits.extent(1));
      loss = sum.log_sum + (static_cast<double>(sum.max) - static_cast<double>(x[target]));
    }
    losses[static_cast<std::size_t>(row)] = loss;
  });
}

// The same, and the logits become the gradient of the sum of weights[i] * losses[i]. Rows without a
// target become zeros.
NIBBLE_LAZY void cross_entropy_back(Executor& executor, MatrixView<float> logits,
                                    std::span<const std::int32_t> targets,
                                    std::span<const float> weights,
                                    std::span<double> losses) noexcept {
  detail::check_losses(logits, targets.size(), weights.size(), losses.size());
  const Index n = logits.extent(1);
  const auto run = simd::kernel<kernels::CrossEntropyBack>();
  for_rows(executor, logits.extent(0), n, [&](Index row) {
    const Index target = detail::target_of(logits, targets, row);
    float* const x = row_of(logits, row);
    double loss = 0;
    if (target >= 0) {
      loss = run(x, n, target, detail::weight_of_row(weights, row));
    } else {
      std::memset(x, 0, static_cast<std::size_t>(n) * sizeof(float));
    }
    losses[static_cast<std::size_t>(row)] = loss;
  });
}

// How much of the loss is which.
struct Distillation {
  float alpha = 0.5f;  // of the cross-entropy; 1 - alpha of the divergence from the teacher
  float temperature = 1;
};

// losses[i] = alpha * cross_entropy
//             + (1 - alpha) * T^2 * KL(softmax(teacher / T) || softmax(logits / T)),
// and the logits become the gradient of the sum of weights[i] * losses[i]. A row without a target
// has the second part only. `teacher` is (m, n) like the logits. T > 0, 0 <= alpha <= 1.
NIBBLE_LAZY void distill_back(Executor& executor, MatrixView<float> logits,
                              MatrixView<const float> teacher,
                              std::span<const std::int32_t> targets, std::span<const float> weights,
                              const Distillation& how, std::span<double> losses) noexcept {
  detail::check_losses(logits, targets.size(), weights.size(), losses.size());
  assert_rows_like(logits, teacher);
  NIBBLE_ASSERT(how.temperature > 0 && how.alpha >= 0 && how.alpha <= 1);
  const auto run = simd::kernel<kernels::DistillBack>();
  for_rows(executor, logits.extent(0), logits.extent(1), [&](Index row) {
    const float weight = detail::weight_of_row(weights, row);
    kernels::DistillBack::Args args;
    args.teacher = row_of(teacher, row);
    args.n = logits.extent(1);
    args.target = detail::target_of(logits, targets, row);
    args.hard = weight * how.alpha;
    args.soft = weight * (1 - how.alpha);
    args.temperature = how.temperature;
    const kernels::DistillLoss loss = run(args, row_of(logits, row));
    const auto alpha = static_cast<double>(how.alpha);
    const auto square = static_cast<double>(how.temperature) * static_cast<double>(how.temperature);
    losses[static_cast<std::size_t>(row)] =
        alpha * loss.cross_entropy + (1 - alpha) * square * loss.divergence;
  });
}

}}}  // namespace nibble::NIBBLE_ABI::ops
