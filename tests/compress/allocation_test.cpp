// SPDX-License-Identifier: Apache-2.0
#include "nibble/compress/allocation.hpp"

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "doctest/doctest.h"
#include "why.hpp"

namespace allocation_test {

using namespace nibble;
using namespace nibble::compress;

namespace {

// By trying every combination.
double least_loss(const std::vector<Item>& items, double budget, std::size_t i = 0) {
  if (i == items.size()) return 0;
  double least = INFINITY;
  for (const Option& option : items[i]) {
    if (option.cost > budget) continue;
    const double rest = least_loss(items, budget - option.cost, i + 1);
    if (option.loss + rest < least) least = option.loss + rest;
  }
  return least;
}

std::vector<Item> random_items(std::mt19937& random, std::size_t n, std::size_t n_options) {
  std::uniform_real_distribution<double> size(10, 1000), weight(0, 1);
  std::vector<Item> items(n);
  for (Item& item : items) {
    const double bytes = size(random), sensitivity = weight(random);
    for (std::size_t o = 0; o < n_options; ++o) {
      const double bits = 2.5 + static_cast<double>(o) * (1 + weight(random));
      item.push_back({bytes * bits / 8, sensitivity * bytes / 1000 / (1 << (2 * o))});
    }
  }
  return items;
}

void check_sums(const Allocator& allocator, const Allocation& a) {
  double cost = 0, loss = 0;
  REQUIRE(a.choice.size() == allocator.items().size());
  for (std::size_t i = 0; i < a.choice.size(); ++i) {
    const Option& option = allocator.items()[i].at(static_cast<std::size_t>(a.choice[i].value));
    cost += option.cost;
    loss += option.loss;
  }
  CHECK(a.cost == doctest::Approx(cost));
  CHECK(a.loss == doctest::Approx(loss));
}

}  // namespace

TEST_CASE("An allocation keeps to its budget and loses the least that is possible") {
  std::mt19937 random(1);
  for (int round = 0; round < 20; ++round) {
    const auto items = random_items(random, 6, 4);
    auto made = Allocator::create(items, 1e9);
    REQUIRE_MESSAGE(made, test::why(made));
    for (const double part : {0.0, 0.01, 0.1, 0.3, 0.5, 0.77, 0.99, 1.0, 2.0}) {
      CAPTURE(part);
      const double budget = made->cheapest() + part * (made->dearest() - made->cheapest());
      const auto best = made->best(budget);
      REQUIRE_MESSAGE(best, test::why(best));
      check_sums(*made, *best);
      CHECK(best->cost <= budget);
      // Costs are rounded up to 1/16384 of the largest: it may take what a budget smaller by six
      // of these allows.
      const double slightly_less = budget - 6 * (made->dearest() - made->cheapest()) / 16384;
      CHECK(best->loss >= least_loss(items, budget * (1 + 1e-12)) - 1e-12);
      if (slightly_less > made->cheapest()) {
        CHECK(best->loss <= least_loss(items, slightly_less) + 1e-12);
      }
    }
  }
}

TEST_CASE("An allocation is not worse than the same option for all at the same cost") {
  std::mt19937 random(2);
  const auto items = random_items(random, 150, 6);
  auto made = Allocator::create(items, 1e9);
  REQUIRE_MESSAGE(made, test::why(made));
  for (std::size_t same = 0; same < 6; ++same) {
    CAPTURE(same);
    double cost = 0, loss = 0;
    for (const Item& item : items) {
      cost += item[same].cost;
      loss += item[same].loss;
    }
    const auto best = made->best(cost);
    REQUIRE_MESSAGE(best, test::why(best));
    CHECK(best->cost <= cost);
    CHECK(best->cost >= 0.99 * cost);
    CHECK(best->loss <= loss);
  }
}

TEST_CASE("No allocation costs more than its budget, whatever the largest budget is") {
  std::mt19937 random(3);
  for (int round = 0; round < 40; ++round) {
    const auto items = random_items(random, 1 + random() % 40, 1 + random() % 6);
    auto all = Allocator::create(items, INFINITY);
    REQUIRE_MESSAGE(all, test::why(all));
    const double cheapest = all->cheapest(), dearest = all->dearest();
    const double more = std::nextafter(cheapest, INFINITY);
    for (const double most :
         {cheapest, more, cheapest * (1 + 1e-12), (cheapest + dearest) / 2, dearest, 1e300}) {
      auto made = Allocator::create(items, most);
      REQUIRE_MESSAGE(made, test::why(made));
      for (double budget : {cheapest, more, cheapest * (1 + 1e-12), 0.7 * cheapest + 0.3 * dearest,
                            std::nextafter(dearest, 0.0), dearest, 1e300, double{INFINITY}}) {
        budget = std::max(budget, cheapest);
        CAPTURE(round);
        CAPTURE(most - cheapest);
        CAPTURE(budget - cheapest);
        const auto best = made->best(budget);
        REQUIRE_MESSAGE(best, test::why(best));
        check_sums(*made, *best);
        CHECK(best->cost <= budget);
      }
      // A budget that is just enough for some choice.
      double cost = 0;
      for (const Item& item : items) cost += item[random() % item.size()].cost;
      const auto best = made->best(cost);
      REQUIRE_MESSAGE(best, test::why(best));
      CHECK(best->cost <= cost);
    }
    CHECK(Allocator::create(items, NAN).error().code == Errc::limit);
    CHECK(all->best(NAN).error().code == Errc::limit);
  }
}

TEST_CASE("Budgets that are impossible, and items that make no sense, are errors") {
  const std::vector<Item> items = {{{10, 1}, {20, 0.5}}, {{5, 1}, {7, 0.1}}};
  const auto small = Allocator::create(items, 14);
  REQUIRE(!small);
  CHECK(small.error().code == Errc::limit);
  CHECK(small.error().message.find("15") != std::string::npos);
  auto made = Allocator::create(items, 100);
  REQUIRE_MESSAGE(made, test::why(made));
  CHECK(made->best(14.9).error().code == Errc::limit);
  CHECK(made->best(15)->cost == 15);
  CHECK(made->best(1000)->loss == doctest::Approx(0.6));
  const auto tight = Allocator::create(items, 15);
  REQUIRE_MESSAGE(tight, test::why(tight));
  CHECK(tight->best(15)->cost == 15);
  CHECK(tight->best(1000)->cost <= 1000);

  CHECK(Allocator::create({}, 1).error().code == Errc::invalid_argument);
  CHECK(Allocator::create({{}}, 1).error().code == Errc::invalid_argument);
  CHECK(Allocator::create({{{-1, 0}}}, 1).error().code == Errc::invalid_argument);
  CHECK(Allocator::create({{{1, NAN}}}, 1).error().code == Errc::invalid_argument);
  const Item huge = {{1e308, 1e308}};
  CHECK(Allocator::create({huge, huge}, INFINITY).error().code == Errc::invalid_argument);
  CHECK(Allocator::create({{{1, 1e308}}, {{1, 1e308}}}, 9).error().code == Errc::invalid_argument);
}

}  // namespace allocation_test
