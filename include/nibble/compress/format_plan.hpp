// SPDX-License-Identifier: Apache-2.0
//
// The formats of a model's matrices that lose least within a budget, from measured sensitivities.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/compress/allocation.hpp"
#include "nibble/compress/sensitivity.hpp"
#include "nibble/core/result.hpp"
#include "nibble/quant/format.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

// A format for each matrix; serves as ConvertOptions::choose.
struct FormatPlan {
  struct Entry {
    std::string tensor;
    FormatTrial trial;
  };
  std::vector<Entry> entries;  // in the order of the trials
  double cost = 0;             // in the unit of the budget
  double divergence = 0;       // the sum of what each costs by itself

  // The format for a tensor; nothing for tensors that were not tried.
  std::optional<quant::Format> operator()(std::string_view tensor) const {
    for (const Entry& entry : entries) {
      if (entry.tensor == tensor) return entry.trial.format;
    }
    return std::nullopt;
  }
  std::uint64_t bytes() const noexcept {
    std::uint64_t sum = 0;
    for (const Entry& entry : entries) sum += entry.trial.bytes;
    return sum;
  }
};

class FormatPlanner {
 public:
  // What a matrix in a format costs: its bytes, or its time.
  using CostOf = FunctionRef<double(const TensorTrials&, const FormatTrial&)>;
  static double bytes(const TensorTrials&, const FormatTrial& trial) noexcept {
    return static_cast<double>(trial.bytes);
  }

  // Budgets up to `most_cost` can be asked for. Errors: those of Allocator::create().
  static Result<FormatPlanner> create(std::vector<TensorTrials> trials, CostOf cost,
                                      double most_cost) {
    return catch_out_of_memory([&]() -> Result<FormatPlanner> {
      std::vector<Item> items;
      for (const TensorTrials& tensor : trials) {
        Item& item = items.emplace_back();
        for (const FormatTrial& trial : tensor.trials) {
          item.push_back({cost(tensor, trial), trial.divergence});
        }
      }
      NIBBLE_TRY(allocator, Allocator::create(std::move(items), most_cost));
      return FormatPlanner(std::move(trials), std::move(allocator));
    });
  }

  // The plan that loses least. Error: limit, if the budget is smaller than all can be.
  Result<FormatPlan> best(double budget) const {
    NIBBLE_TRY(allocation, allocator_.best(budget));
    return catch_out_of_memory([&]() -> Result<FormatPlan> {
      FormatPlan plan;
      plan.cost = allocation.cost;
      plan.divergence = allocation.loss;
      for (std::size_t i = 0; i < trials_.size(); ++i) {
        const auto option = static_cast<std::size_t>(allocation.choice[i].value);
        plan.entries.push_back({trials_[i].tensor, trials_[i].trials[option]});
      }
      return plan;
    });
  }

  // The plan with the same format for all, where it was tried; the option that loses least
  // elsewhere.
  FormatPlan uniform(quant::Format format) const {
    FormatPlan plan;
    for (std::size_t i = 0; i < trials_.size(); ++i) {
      const auto& trials = trials_[i].trials;
      auto taken = std::find_if(trials.begin(), trials.end(),
                                [&](const FormatTrial& t) { return t.format == format; });
      if (taken == trials.end()) {
        taken = std::min_element(
            trials.begin(), trials.end(),
            [](const FormatTrial& a, const FormatTrial& b) { return a.divergence < b.divergence; });
      }
      const Option& option =
          allocator_.items()[i][static_cast<std::size_t>(taken - trials.begin())];
      plan.cost += option.cost;
      plan.divergence += option.loss;
      plan.entries.push_back({trials_[i].tensor, *taken});
    }
    return plan;
  }

  // The plan of least cost that loses at most `divergence`. Error: not_found, if the dearest one
  // within the budgets loses more.
  Result<FormatPlan> cheapest(double divergence) const {
    double low = allocator_.cheapest(), high = allocator_.dearest();
    NIBBLE_TRY(plan, best(high));
    if (!(plan.divergence <= divergence)) {
      return Error{Errc::not_found, "no plan loses as little as " + to_text(divergence) +
                                        "; the best loses " + to_text(plan.divergence)};
    }
    for (int step = 0; step < 20; ++step) {
      const double middle = (low + high) / 2;
      NIBBLE_TRY(other, best(middle));
      if (other.divergence <= divergence) {
        high = middle;
        plan = std::move(other);
      } else {
        low = middle;
      }
    }
    return plan;
  }

  double cheapest_cost() const noexcept { return allocator_.cheapest(); }
  double dearest_cost() const noexcept { return allocator_.dearest(); }

 private:
  FormatPlanner(std::vector<TensorTrials> trials, Allocator allocator) noexcept
      : trials_(std::move(trials)), allocator_(std::move(allocator)) {}

  std::vector<TensorTrials> trials_;
  Allocator allocator_;
};

}}}  // namespace nibble::NIBBLE_ABI::compress
