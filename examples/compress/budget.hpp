// SPDX-License-Identifier: Apache-2.0
//
// What a compressed model may cost: bytes of the file, time of a token, bits of a weight, or loss;
// and what each matrix costs in each format.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "../common.hpp"
#include "../format_rules.hpp"
#include "../measure.hpp"
#include "nibble/compress/format_plan.hpp"
#include "nibble/compress/matrices.hpp"
#include "nibble/compress/product_time.hpp"
#include "nibble/compress/sensitivity.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/nibble.hpp"

namespace example {

// One of these is above zero.
struct BudgetOptions {
  std::uint64_t bytes = 0;     // of the file
  double microseconds = 0;     // of a token that is generated
  double bits = 0;             // of a weight of a matrix
  double most_divergence = 0;  // the smallest model that loses no more, in nats
};

class Budget {
 public:
  using Format = nibble::quant::Format;
  using TensorTrials = nibble::compress::TensorTrials;
  using FormatTrial = nibble::compress::FormatTrial;

  // The file must outlive this.
  static nibble::Result<Budget> create(const BudgetOptions& options, const nibble::io::Gguf& file) {
    Budget budget(options, file);
    nibble::io::GgufWriter writer;  // of the same keys and names
    writer.copy_metadata(file);
    writer.set("general.file_type", std::uint32_t{0});
    writer.set("general.quantization_version", std::uint32_t{2});
    for (const auto& tensor : file.tensors()) writer.add_tensor(tensor);
    NIBBLE_TRY(header, writer.header_bytes());
    budget.other_bytes_ = header + kAlignment * file.tensors().size();
    for (const auto& tensor : file.tensors()) {
      if (tensor.n_dims < 2) budget.other_bytes_ += tensor.n_elements() * sizeof(float);
    }
    return budget;
  }

  // Before anything is measured: whether a file can be that small. `formats` says which formats a
  // tensor may have. Error: limit.
  template <class FormatsOf>
  nibble::Result<void> check(const FormatsOf& formats) const {
    if (options_.bytes == 0) return nibble::ok();
    std::uint64_t least = other_bytes_;
    for (const auto& tensor : file_->tensors()) {
      if (tensor.n_dims < 2) continue;
      std::uint64_t smallest = UINT64_MAX;
      for (const Format format : formats(tensor.name)) {
        const auto row = nibble::quant::row_bytes(format, static_cast<std::size_t>(tensor.dims[0]));
        if (row) smallest = std::min(smallest, *row * (tensor.n_elements() / tensor.dims[0]));
      }
      least += smallest < UINT64_MAX ? smallest : 2 * tensor.n_elements();  // f16
    }
    if (least <= options_.bytes) return nibble::ok();
    return too_small("a file of about " + grouped(least) + " bytes");
  }

  // Times the products of all matrices that were tried, and what a token takes beside them.
  nibble::Result<void> time_products(nibble::Session& session,
                                     const std::vector<TensorTrials>& trials,
                                     nibble::Executor& executor) {
    if (options_.microseconds <= 0) return nibble::ok();
    const nibble::Model& model = session.model();
    NIBBLE_TRY(matrices, nibble::compress::matrices_of(model, *file_));
    const auto time_of = [&](const TensorTrials& tensor, Format format) -> nibble::Result<double> {
      const auto key = std::tuple{tensor.n, tensor.k, format};
      if (const auto it = times_.find(key); it != times_.end()) return it->second;
      if (interrupted) return nibble::Error{nibble::Errc::cancelled, "timing products"};
      const auto* const ops = nibble::graph::find(nibble::graph::AllFormats::kOps, format);
      NIBBLE_TRY(time, nibble::compress::product_microseconds(
                           *ops, static_cast<nibble::Index>(tensor.n),
                           static_cast<nibble::Index>(tensor.k), model.weight_bytes(), executor,
                           model.tuning()));
      times_[key] = time;
      return time;
    };
    double products = 0;
    for (const TensorTrials& tensor : trials) {
      const auto matrix = std::find_if(matrices.begin(), matrices.end(), [&](const auto& m) {
        return m.tensor->name == tensor.tensor;
      });
      if (matrix == matrices.end() || !matrix->is_product) continue;
      multiplied_.push_back(tensor.tensor);
      for (const FormatTrial& trial : tensor.trials) NIBBLE_CHECK(time_of(tensor, trial.format));
      const auto own = nibble::quant::format_of(matrix->tensor->type);
      if (!own) continue;  // of a type that loading has converted: not known beside the others
      NIBBLE_TRY(time, time_of(tensor, *own));
      products += time;
    }
    NIBBLE_TRY(speed, measure_speed(session));
    other_us_ = std::max(0.0, 1e6 / speed.generation - products);
    std::printf("a token takes %.1f us now, %.1f of them in products\n", 1e6 / speed.generation,
                products);
    return nibble::ok();
  }

  // In microseconds, or bytes.
  double cost_of(const TensorTrials& tensor, const FormatTrial& trial) const {
    if (options_.microseconds <= 0) return static_cast<double>(trial.bytes);
    const bool is_product =
        std::find(multiplied_.begin(), multiplied_.end(), tensor.tensor) != multiplied_.end();
    return is_product ? times_.at(std::tuple{tensor.n, tensor.k, trial.format}) : 0;
  }

  // The plan that loses least; how much it may cost is most_cost() then. Error: limit.
  nibble::Result<nibble::compress::FormatPlan> plan(const nibble::compress::FormatPlanner& planner,
                                                    const std::vector<TensorTrials>& trials) {
    if (options_.most_divergence > 0) {
      NIBBLE_TRY(smallest, planner.cheapest(allowed_ * options_.most_divergence));
      most_cost_ = smallest.cost;
      return smallest;
    }
    double n_weights = 0;
    for (const auto& tensor : trials) {
      n_weights += static_cast<double>(tensor.n) * static_cast<double>(tensor.k);
    }
    most_cost_ = options_.microseconds > 0 ? options_.microseconds - other_us_
                 : options_.bits > 0
                     ? options_.bits / 8 * n_weights
                     : static_cast<double>(options_.bytes) - static_cast<double>(other_bytes());
    auto best = planner.best(most_cost_);
    if (best) return best;
    const double least = planner.cheapest_cost();
    char text[96];
    if (options_.microseconds > 0) {
      std::snprintf(text, sizeof(text), "%.1f us a token", least + other_us_);
    } else if (options_.bits > 0) {
      std::snprintf(text, sizeof(text), "%.3f bits of a weight", 8 * least / n_weights);
    } else {
      std::snprintf(text, sizeof(text), "a file of about %.0f bytes",
                    least + static_cast<double>(other_bytes()));
    }
    return too_small(text);
  }
  double most_cost() const { return most_cost_; }

  // What was estimated has become a file, which loses so much: whether it keeps to the budget.
  bool keeps(std::uint64_t file_bytes, double divergence) const {
    return !(is_too_large(file_bytes) || loses_too_much(divergence));
  }
  // After a file that does not keep to the budget: the next plan() asks for less.
  void tighten(std::uint64_t file_bytes, double divergence) {
    if (is_too_large(file_bytes)) {
      other_bytes_ += file_bytes - options_.bytes;
    } else if (loses_too_much(divergence)) {
      allowed_ *= 0.9 * options_.most_divergence / divergence;
    }
  }

  // Bytes of the file beside the matrices: keys, names, vectors, and at most as much between.
  std::uint64_t other_bytes() const { return other_bytes_; }

 private:
  static constexpr std::uint64_t kAlignment = 32;  // of tensors in a file

  Budget(const BudgetOptions& options, const nibble::io::Gguf& file)
      : options_(options), file_(&file) {}

  bool is_too_large(std::uint64_t file_bytes) const {
    return options_.bytes > 0 && file_bytes > options_.bytes;
  }
  bool loses_too_much(double divergence) const {
    return options_.most_divergence > 0 && divergence > options_.most_divergence;
  }

  static nibble::Error too_small(const std::string& least) {
    return {nibble::Errc::limit,
            "the budget is too small for the formats that may be used: the least is " + least +
                "; prune or factor first, or choose other --formats"};
  }

  BudgetOptions options_;
  const nibble::io::Gguf* file_;
  std::map<std::tuple<std::uint64_t, std::uint64_t, Format>, double> times_;  // of products
  std::vector<std::string> multiplied_;  // tensors; others are only looked up
  double other_us_ = 0;
  double most_cost_ = 0;
  double allowed_ = 1;  // of most_divergence, by prediction
  std::uint64_t other_bytes_ = 0;
};

}  // namespace example
