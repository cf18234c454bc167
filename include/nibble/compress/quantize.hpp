// SPDX-License-Identifier: Apache-2.0
//
// Converts a model to other formats with the least error of its products' outputs, as far as one
// knows their inputs: quantize_model() (model/convert.hpp) with the searches of quant/weighted.hpp
// where the importance of columns is known, and with column-by-column rounding
// (compress/column_rounding.hpp) where their second moments are.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/compress/column_factor.hpp"
#include "nibble/compress/column_rounding.hpp"
#include "nibble/compress/statistics.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/model/convert.hpp"
#include "nibble/quant/weighted.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

struct WeightedConvertOptions {
  ConvertOptions convert;  // its `rounder` is not used
  // The importance of the columns of a matrix, by the name of its tensor: Σx² or its mean, (k), or
  // (n_matrices, k) for tensors of several. Empty: not known; errors then weigh the same.
  std::function<std::span<const float>(std::string_view name)> importance = {};
  // What was observed of the inputs of the matrices; must outlive the conversion, unchanged. It
  // gives the importance where `importance` gives none.
  const Statistics* statistics = nullptr;
  // Matrices whose second moments were observed are rounded column by column.
  bool by_columns = false;
  quant::Emphasis emphasis = quant::Emphasis::none;
  quant::Effort effort = quant::Effort::usual;
  ColumnFactorOptions columns = {};
  Index n_sweeps = ColumnRoundingOptions{}.n_sweeps;
};

namespace detail {

// The rounder of a conversion.
class WeightedRounder {
 public:
  explicit WeightedRounder(WeightedConvertOptions options) : options_(std::move(options)) {}

  Result<bool> operator()(const TensorToRound& tensor) {
    const quant::Format to = tensor.tensor().to;
    const bool is_grid = quant::visit_format(
        to, [](auto tag) { return quant::GridFormat<typename decltype(tag)::type>; });
    const bool has_search = quant::visit_format(
        to, [](auto tag) { return quant::SearchedFormat<typename decltype(tag)::type>; });
    if (!has_search) return false;
    const InputStatistics* const input =
        options_.statistics != nullptr ? options_.statistics->find(tensor.tensor().name) : nullptr;
    if (is_grid && options_.by_columns && input != nullptr && input->has_second_moments()) {
      return by_columns(tensor, *input);
    }
    return by_rows(tensor, input);
  }

 private:
  static constexpr Index kRows = 16;  // of a task

  Result<bool> by_columns(const TensorToRound& tensor, const InputStatistics& input) {
    const auto n = static_cast<Index>(tensor.n_rows()), k = static_cast<Index>(tensor.k());
    if (tensor.tensor().n_dims > 2) {
      return Error{Errc::unsupported, "second moments for a tensor of several matrices"};
    }
    if (input.k() != k) {
      return Error{Errc::invalid_argument, "second moments of " + to_text(input.k()) +
                                               " columns for rows of " + to_text(k) + " weights"};
    }
    if (factored_ != &input) {  // queries, keys and values share their input
      factored_ = nullptr;      // until there is a factor of this input
      factor_.reset();
      std::vector<Scalar<double>> moments(static_cast<std::size_t>(k * k));
      input.copy_second_moments({values(moments), moments.size()});
      NIBBLE_TRY(factor, ColumnFactor::create({values(moments), moments.size()}, k,
                                              options_.columns, tensor.executor()));
      factor_.emplace(std::move(factor));
      factored_ = &input;
    }
    std::vector<Scalar<float>> weights(static_cast<std::size_t>(n * k));
    const std::span<float> x(values(weights), weights.size());
    NIBBLE_CHECK(tensor.read(0, x));
    ColumnRoundingOptions options;
    options.format = tensor.tensor().to;
    options.effort = options_.effort;
    options.n_sweeps = options_.n_sweeps;
    NIBBLE_TRY(done, round_columns(*factor_, x, n, options, tensor.executor(), tensor.out()));
    (void)done;
    return true;
  }

  Result<bool> by_rows(const TensorToRound& tensor, const InputStatistics* input) {
    const std::size_t k = tensor.k();
    const auto n_rows = static_cast<Index>(tensor.n_rows());
    const auto rows_of_matrix = static_cast<Index>(tensor.tensor().dims[1]);
    std::span<const float> importance;
    std::vector<Scalar<float>> observed;
    if (options_.importance) importance = options_.importance(tensor.tensor().name);
    if (importance.empty() && input != nullptr) {
      for (Index j = 0; j < input->k(); ++j) {
        const double mean = input->sum_squares(j) / static_cast<double>(input->n_rows());
        observed.push_back({static_cast<float>(mean)});
      }
      importance = {values(observed), observed.size()};
    }
    if (!importance.empty()) {
      const auto n_matrices = static_cast<std::size_t>(n_rows / rows_of_matrix);
      const bool is_shared = importance.size() == k;
      NIBBLE_CHECK(quant::check_importance(importance, is_shared ? k : k * n_matrices));
    }
    NIBBLE_TRY(row_bytes, quant::row_bytes(tensor.tensor().to, k));
    struct Scratch {
      std::vector<Scalar<float>> x, importance;
      std::optional<Error> error;  // the one of the first row
      Index error_row = 0;
    };
    std::vector<Scratch> scratch(static_cast<std::size_t>(tensor.executor().n_workers()));
    for (Scratch& mine : scratch) {
      mine.x.resize(static_cast<std::size_t>(kRows) * k);
      mine.importance.resize(k);
    }
    const auto fail = [](Scratch& mine, Index row, Error error) {
      if (mine.error && mine.error_row < row) return;
      mine.error = std::move(error);
      mine.error_row = row;
    };
    tensor.executor().parallel_for((n_rows + kRows - 1) / kRows, [&](Index task, Index worker) {
      Scratch& mine = scratch[static_cast<std::size_t>(worker)];
      const Index first = task * kRows, last = (std::min)(first + kRows, n_rows);
      const std::span<float> all(values(mine.x), static_cast<std::size_t>(last - first) * k);
      if (auto read = tensor.read(static_cast<std::uint64_t>(first), all); !read) {
        return fail(mine, first, std::move(read).error());
      }
      for (Index row = first; row < last; ++row) {
        const auto x =
            std::span<const float>(all).subspan(static_cast<std::size_t>(row - first) * k, k);
        const std::size_t matrix =
            importance.size() > k ? static_cast<std::size_t>(row / rows_of_matrix) : 0;
        const std::span<float> weights(values(mine.importance), k);
        quant::emphasize(options_.emphasis, x,
                         importance.empty() ? importance : importance.subspan(matrix * k, k),
                         weights);
        const auto out = tensor.out().subspan(static_cast<std::size_t>(row) * row_bytes, row_bytes);
        const std::size_t bad = quant::detail::search_row(tensor.tensor().to, x, weights.data(),
                                                          options_.effort, out.data());
        auto fits = quant::detail::check_fits(x, bad, to_string(tensor.tensor().to));
        if (!fits) fail(mine, row, std::move(fits).error().in("row " + to_text(row)));
      }
    });
    Scratch* first = nullptr;
    for (Scratch& mine : scratch) {
      if (mine.error && (first == nullptr || mine.error_row < first->error_row)) first = &mine;
    }
    if (first != nullptr) return *std::move(first->error);
    return true;
  }

  WeightedConvertOptions options_;
  std::optional<ColumnFactor> factor_;  // of factored_
  const InputStatistics* factored_ = nullptr;
};

}  // namespace detail

// The options of a conversion that rounds in this way, for quantize_model() and quantize_tensor()
// (model/convert.hpp). Copies share what is kept of the moments that came last. Conversions then
// have more errors: those of ColumnFactor::create() and round_columns(), and importance that does
// not fit a tensor (invalid_argument, malformed).
inline ConvertOptions weighted(WeightedConvertOptions options) {
  ConvertOptions convert = options.convert;
  convert.rounder = [rounder = std::make_shared<detail::WeightedRounder>(std::move(options))](
                        const TensorToRound& tensor) { return (*rounder)(tensor); };
  return convert;
}

}}}  // namespace nibble::NIBBLE_ABI::compress
