// SPDX-License-Identifier: Apache-2.0
//
// Equalization of columns before rounding (AWQ: Lin et al. 2023): the columns of matrices that meet
// large inputs are multiplied by s, and what makes these inputs is divided by s. In exact
// arithmetic nothing changes; rounded, the errors move to columns where they matter less. It folds
// into weights that are there anyway:
//   a norm and the matrices that read its rows (queries, keys, values; gate and up):
//       divide_vector() of the norm's gain, multiply_columns() of the matrices
//   up and down of a feed-forward layer whose gate does not go through up:
//       divide_rows() of up, multiply_columns() of down
// All functions work on f32 weights in memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nibble/compress/column_factor.hpp"
#include "nibble/compress/column_rounding.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/core/libm.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/quant/format.hpp"
#include "nibble/quant/weighted.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

// A matrix (n, k), row-major.
struct MatrixWeights {
  std::span<const float> weights;
  Index n = 0;
};

// What is known of the inputs of a product, (k) columns.
struct InputMoments {
  std::span<const float> magnitudes = {};  // (k): mean |x|
  std::span<const float> squares = {};     // (k): Σx² or its mean
  // (k, k): Σxxᵀ; empty: errors are measured by squares.
  std::span<const double> second_moments = {};
};

struct EqualizationOptions {
  quant::Format format = quant::Format::q4_0;
  Index n_steps = 20;    // exponents 0, 1/n, … (n-1)/n
  Index max_rows = 256;  // of a matrix that are tried, evenly spaced
};

struct Equalization {
  std::vector<Scalar<float>> scales;  // (k): all 1 if nothing is better than that
  double alpha = 0;                   // the exponent of the inputs' magnitude
  double error = 0;                   // of the rows that were tried, in what the product returns
  double error_before = 0;            // with scales of 1
};

// Multiplies column j of a matrix (n, k) by scales[j].
inline void multiply_columns(std::span<float> weights, std::span<const float> scales) noexcept {
  NIBBLE_ASSERT(!scales.empty() && weights.size() % scales.size() == 0);
  for (std::size_t i = 0; i < weights.size(); ++i) weights[i] *= scales[i % scales.size()];
}
// Divides row i of a matrix (n, k) by scales[i]; n = scales.size().
inline void divide_rows(std::span<float> weights, std::span<const float> scales) noexcept {
  NIBBLE_ASSERT(!scales.empty() && weights.size() % scales.size() == 0);
  const std::size_t k = weights.size() / scales.size();
  for (std::size_t i = 0; i < weights.size(); ++i) weights[i] /= scales[i / k];
}
inline void divide_vector(std::span<float> gain, std::span<const float> scales) noexcept {
  NIBBLE_ASSERT(gain.size() == scales.size());
  for (std::size_t i = 0; i < gain.size(); ++i) gain[i] /= scales[i];
}

namespace detail {

// The mean over rows of |w| relative to the largest of its block of `group` weights.
inline void add_relative_magnitudes(const MatrixWeights& matrix, Index k, Index group,
                                    double* sums) noexcept {
  for (Index row = 0; row < matrix.n; ++row) {
    const float* const w = matrix.weights.data() + row * k;
    for (Index begin = 0; begin < k; begin += group) {
      const Index end = (std::min)(begin + group, k);
      float largest = 0.0f;
      for (Index j = begin; j < end; ++j) largest = larger(largest, libm::fabs(w[j]));
      if (largest == 0.0f) continue;
      for (Index j = begin; j < end; ++j) {
        sums[j] += static_cast<double>(libm::fabs(w[j])) / static_cast<double>(largest);
      }
    }
  }
}

// Scales |x|^alpha / |w|^(1 - alpha), so that the largest times the smallest is 1.
inline void awq_scales(std::span<const float> magnitudes, const double* weights, double alpha,
                       float* scales) noexcept {
  constexpr double kLeast = 1e-4;
  double low = 0, high = 0;
  for (std::size_t j = 0; j < magnitudes.size(); ++j) {
    const double x = larger(static_cast<double>(magnitudes[j]), kLeast);
    const double w = larger(weights[j], kLeast);
    const double s = larger(libm::pow(x, alpha) / libm::pow(w, 1 - alpha), kLeast);
    scales[j] = static_cast<float>(s);
    low = j == 0 ? s : smaller(low, s);
    high = larger(high, s);
  }
  const double middle = libm::sqrt(low * high);
  for (std::size_t j = 0; j < magnitudes.size(); ++j) {
    scales[j] = static_cast<float>(static_cast<double>(scales[j]) / middle);
  }
}

// The error that a row makes of its product when it is rounded with scales.
inline double scaled_row_error(const float* w, Index k, const InputMoments& inputs,
                               const float* scales, quant::Format format, float* scaled,
                               float* importance, double* off, std::byte* row,
                               std::size_t row_bytes) noexcept {
  const auto n = static_cast<std::size_t>(k);
  for (Index j = 0; j < k; ++j) {
    scaled[j] = w[j] * scales[j];
    importance[j] = inputs.squares[static_cast<std::size_t>(j)] / (scales[j] * scales[j]);
  }
  quant::detail::search_row(format, {scaled, n}, importance, quant::Effort::usual, row);
  [[maybe_unused]] const bool ok =
      quant::row_to_f32(format, {row, row_bytes}, {scaled, n}).has_value();
  NIBBLE_ASSERT(ok);
  double sum = 0;
  for (Index j = 0; j < k; ++j) {
    off[j] =
        static_cast<double>(scaled[j]) / static_cast<double>(scales[j]) - static_cast<double>(w[j]);
    if (inputs.second_moments.empty()) {
      sum += static_cast<double>(inputs.squares[static_cast<std::size_t>(j)]) * off[j] * off[j];
    }
  }
  if (inputs.second_moments.empty()) return sum;
  for (Index j = 0; j < k; ++j) {
    sum += off[j] * dot(inputs.second_moments.data() + j * k, off, k);
  }
  return sum;
}

}  // namespace detail

// The scales, of those of AWQ with n_steps exponents and 1 for all, with which the matrices, which
// read the same inputs, lose least by rounding. Errors: invalid_argument (sizes), malformed
// (statistics or weights that are not finite numbers), unsupported (a format without blocks),
// out_of_memory.
NIBBLE_LAZY Result<Equalization> find_equalization(std::span<const MatrixWeights> matrices, Index k,
                                                   const InputMoments& inputs,
                                                   const EqualizationOptions& options,
                                                   Executor& executor) {
  return catch_out_of_memory([&]() -> Result<Equalization> {
    const auto columns = static_cast<std::size_t>(k);
    NIBBLE_TRY(row_bytes, quant::row_bytes(options.format, columns));
    const Index group = quant::visit_format(options.format, [](auto tag) -> Index {
      using F = typename decltype(tag)::type;
      if constexpr (quant::GridFormat<F>) return quant::group_length<F>();
      return 0;
    });
    if (group == 0) return Error{Errc::unsupported, "equalization for a format without blocks"};
    NIBBLE_CHECK(quant::check_importance(inputs.magnitudes, columns));
    NIBBLE_CHECK(quant::check_importance(inputs.squares, columns));
    const auto& h = inputs.second_moments;
    if (matrices.empty() || options.n_steps < 1 || options.max_rows < 1 ||
        (!h.empty() && h.size() != columns * columns)) {
      return Error{
          Errc::invalid_argument,
          "equalization without matrices, steps or rows, or with second moments of another "
          "size than (k, k)"};
    }
    for (std::size_t i = 0; i < h.size(); ++i) {
      if (is_finite(h[i])) continue;
      return Error{Errc::malformed, "equalization: second moment (" + to_text(i / columns) + ", " +
                                        to_text(i % columns) + ") is " + to_text(h[i])};
    }
    std::vector<Scalar<double>> relative(columns);
    struct Row {
      const float* weights;
      double error;
    };
    std::vector<Row> rows;
    Index n_all = 0;
    for (const MatrixWeights& matrix : matrices) {
      NIBBLE_CHECK(detail::check_weights(matrix.weights, matrix.n, k));
      detail::add_relative_magnitudes(matrix, k, group, values(relative));
      n_all += matrix.n;
      const Index n_tried = (std::min)(matrix.n, options.max_rows);
      for (Index i = 0; i < n_tried; ++i) {
        rows.push_back({matrix.weights.data() + i * matrix.n / n_tried * k, 0});
      }
    }
    for (auto& r : relative) r.value /= static_cast<double>(n_all);

    struct Scratch {
      std::vector<Scalar<float>> scaled, importance;
      std::vector<Scalar<double>> off;
      std::vector<std::byte> row;
    };
    std::vector<Scratch> scratch(static_cast<std::size_t>(executor.n_workers()));
    for (Scratch& mine : scratch) {
      mine.scaled.resize(columns);
      mine.importance.resize(columns);
      mine.off.resize(columns);
      mine.row.resize(row_bytes);
    }
    const auto error_with = [&](const float* scales) {
      executor.parallel_for(static_cast<Index>(rows.size()), [&](Index task, Index worker) {
        Scratch& mine = scratch[static_cast<std::size_t>(worker)];
        Row& row = rows[static_cast<std::size_t>(task)];
        row.error = detail::scaled_row_error(row.weights, k, inputs, scales, options.format,
                                             values(mine.scaled), values(mine.importance),
                                             values(mine.off), mine.row.data(), row_bytes);
      });
      double sum = 0;
      for (const Row& row : rows) sum += row.error;
      return sum;
    };
    Equalization best;
    best.scales.assign(columns, Scalar<float>{1.0f});
    best.error_before = best.error = error_with(values(best.scales));
    std::vector<Scalar<float>> scales(columns);
    for (Index step = 0; step < options.n_steps; ++step) {
      const double alpha = static_cast<double>(step) / static_cast<double>(options.n_steps);
      detail::awq_scales(inputs.magnitudes, values(relative), alpha, values(scales));
      const double error = error_with(values(scales));
      if (!(error < best.error)) continue;
      best.error = error;
      best.alpha = alpha;
      best.scales = scales;
    }
    return best;
  });
}

}}}  // namespace nibble::NIBBLE_ABI::compress
