// SPDX-License-Identifier: Apache-2.0
//
// Mixed precision to a budget: which option (a format) each item (a tensor) takes, so that the sum
// of the losses is least while the sum of the costs (bytes, or time) keeps to a budget. This is the
// multiple-choice knapsack problem, solved by dynamic programming over the costs in small units.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

struct Option {
  double cost = 0;  // not negative
  double loss = 0;  // not negative; losses of items add up
};
using Item = std::vector<Option>;

struct Allocation {
  std::vector<Scalar<std::int32_t>> choice;  // for each item, the index of its option
  double cost = 0, loss = 0;
};

// Solves for all budgets up to a largest one at once.
class Allocator {
 public:
  // Costs are rounded up to units of most_cost / kUnits, so the best allocation of a slightly
  // smaller budget may be found (one smaller by one unit for each item, at most); best() then uses
  // what is left. Errors: invalid_argument (no items, an item without options, a cost or loss that
  // is negative or no number, sums that are no number), limit (even the cheapest options cost more
  // than most_cost, or that is no number; the message says how much they cost).
  static Result<Allocator> create(std::vector<Item> items, double most_cost) {
    return catch_out_of_memory([&]() -> Result<Allocator> {
      Allocator a;
      NIBBLE_CHECK(check_items(items));
      double worst = 0;
      for (const Item& item : items) {
        a.cheapest_ += cheapest(item).cost;
        a.dearest_ += std::max_element(item.begin(), item.end(), by_cost)->cost;
        worst += std::max_element(item.begin(), item.end(), by_loss)->loss;
      }
      if (!is_finite(a.dearest_) || !is_finite(worst)) {
        return Error{Errc::invalid_argument, "allocation: costs or losses whose sum is too large"};
      }
      NIBBLE_CHECK(a.check_budget(most_cost));
      a.items_ = std::move(items);
      a.solve(smaller(most_cost, a.dearest_));
      return a;
    });
  }

  // The allocation of least loss whose cost is at most `budget`. Error: limit, as above.
  Result<Allocation> best(double budget) const {
    NIBBLE_CHECK(check_budget(budget));
    return catch_out_of_memory([&]() -> Result<Allocation> {
      const double spare = smaller(budget, dearest_) - cheapest_;
      const bool is_all = spare >= static_cast<double>(kUnits) * unit_;
      std::size_t units = is_all ? kUnits : static_cast<std::size_t>(spare / unit_);
      Allocation found = within(units);
      // Sums are rounded. With no unit it is the cheapest options, whose sum is cheapest_.
      while (found.cost > budget && units > 0) found = within(--units);
      improve(found, budget);
      for (std::size_t same = 0; same < most_options_; ++same) {  // every item its option `same`
        Allocation uniform;
        for (const Item& item : items_) {
          uniform.choice.push_back({static_cast<std::int32_t>((std::min)(same, item.size() - 1))});
        }
        sum_up(uniform);
        if (uniform.cost > budget) continue;
        improve(uniform, budget);
        if (uniform.loss < found.loss) found = std::move(uniform);
      }
      return found;
    });
  }

  double cheapest() const noexcept { return cheapest_; }
  double dearest() const noexcept { return dearest_; }
  std::span<const Item> items() const noexcept { return items_; }

 private:
  static constexpr std::size_t kUnits = 1 << 14;

  static bool by_cost(const Option& a, const Option& b) noexcept { return a.cost < b.cost; }
  static bool by_loss(const Option& a, const Option& b) noexcept { return a.loss < b.loss; }
  // Of the options of least cost, that of least loss.
  static const Option& cheapest(const Item& item) {
    return *std::min_element(item.begin(), item.end(), [](const Option& a, const Option& b) {
      return a.cost != b.cost ? a.cost < b.cost : a.loss < b.loss;
    });
  }
  static Result<void> check_items(const std::vector<Item>& items) {
    if (items.empty()) {
      return Error{Errc::invalid_argument, "allocation: there is nothing to choose"};
    }
    for (const Item& item : items) {
      bool is_good = !item.empty() && item.size() < 256;
      for (const Option& o : item) {
        is_good = is_good && o.cost >= 0 && o.loss >= 0 && is_finite(o.cost) && is_finite(o.loss);
      }
      if (!is_good) {
        return Error{Errc::invalid_argument,
                     "allocation: item " + to_text(&item - items.data()) +
                         " has no options, too many, or a cost or loss that is negative or no "
                         "number"};
      }
    }
    return ok();
  }

  Result<void> check_budget(double budget) const {
    if (cheapest_ <= budget) return ok();
    return Error{Errc::limit, "a budget of " + to_text(budget) +
                                  ": the smallest that is possible takes " + to_text(cheapest_)};
  }

  // What an option costs above the cheapest one; more than kUnits if no budget allows it.
  std::size_t units_of(std::size_t i, const Option& option) const {
    const double above = option.cost - cheapest(items_[i]).cost;
    if (above == 0) return 0;
    if (above > static_cast<double>(kUnits) * unit_) return kUnits + 1;
    return static_cast<std::size_t>(std::ceil(above / unit_));
  }

  // The best allocation within `units` above the cheapest options.
  Allocation within(std::size_t units) const {
    Allocation found;
    found.choice.resize(items_.size());
    for (std::size_t i = items_.size(); i-- > 0;) {
      const std::uint8_t option = taken_[i * (kUnits + 1) + units];
      found.choice[i].value = option;
      units -= units_of(i, items_[i][option]);
    }
    sum_up(found);
    return found;
  }

  // taken_[i][b]: the option of item i in the best allocation of items 0 … i within b units above
  // their cheapest options.
  void solve(double most_cost) {
    unit_ = (most_cost - cheapest_) / static_cast<double>(kUnits);
    taken_.resize(items_.size() * (kUnits + 1));
    constexpr double kNever = std::numeric_limits<double>::infinity();
    std::vector<Scalar<double>> before(kUnits + 1, {0.0}), after(kUnits + 1);
    for (std::size_t i = 0; i < items_.size(); ++i) {
      most_options_ = (std::max)(most_options_, items_[i].size());
      std::uint8_t* const taken = taken_.data() + i * (kUnits + 1);
      for (Scalar<double>& loss : after) loss.value = kNever;
      for (std::size_t o = 0; o < items_[i].size(); ++o) {
        const std::size_t units = units_of(i, items_[i][o]);
        for (std::size_t b = units; b <= kUnits; ++b) {
          const double loss = before[b - units].value + items_[i][o].loss;
          if (!(loss < after[b].value)) continue;
          after[b].value = loss;
          taken[b] = static_cast<std::uint8_t>(o);
        }
      }
      before.swap(after);
    }
  }

  void sum_up(Allocation& a) const {
    a.cost = a.loss = 0;
    for (std::size_t i = 0; i < items_.size(); ++i) {
      const Option& option = items_[i][static_cast<std::size_t>(a.choice[i].value)];
      a.cost += option.cost;
      a.loss += option.loss;
    }
  }

  // Takes better options as long as the budget allows, each time the one that gains most.
  void improve(Allocation& a, double budget) const {
    for (;;) {
      std::size_t item = items_.size(), option = 0;
      double gain = 0;
      for (std::size_t i = 0; i < items_.size(); ++i) {
        const Option& now = items_[i][static_cast<std::size_t>(a.choice[i].value)];
        for (std::size_t o = 0; o < items_[i].size(); ++o) {
          const Option& other = items_[i][o];
          if (now.loss - other.loss <= gain || a.cost - now.cost + other.cost > budget) continue;
          gain = now.loss - other.loss;
          item = i;
          option = o;
        }
      }
      if (item == items_.size()) return;
      const std::int32_t before = a.choice[item].value;
      a.choice[item].value = static_cast<std::int32_t>(option);
      sum_up(a);
      if (a.cost <= budget) continue;
      a.choice[item].value = before;  // added up anew, the sum is a little above the budget
      sum_up(a);
      return;
    }
  }

  std::vector<Item> items_;
  std::vector<std::uint8_t> taken_;
  std::size_t most_options_ = 0;
  double unit_ = 0, cheapest_ = 0, dearest_ = 0;
};

}}}  // namespace nibble::NIBBLE_ABI::compress
