// SPDX-License-Identifier: Apache-2.0
//
// Accuracies compared question by question.
#include "examples/paired.hpp"

#include <cmath>
#include <cstddef>
#include <vector>

#include "doctest/doctest.h"

namespace paired_test {
namespace {

std::vector<std::byte> bytes(const std::vector<int>& values) {
  std::vector<std::byte> all;
  for (const int value : values) all.push_back(static_cast<std::byte>(value));
  return all;
}

}  // namespace

TEST_CASE("paired: only questions that one of both has right count") {
  const auto first = bytes({1, 1, 0, 0, 1, 0, 1, 1});
  const auto second = bytes({1, 0, 1, 0, 0, 1, 0, 1});
  const example::Paired paired = example::compare_pairs(first, second);
  CHECK(paired.only_first == 3);
  CHECK(paired.only_second == 2);
  CHECK(paired.points(8) == doctest::Approx(-12.5));
  // The eight differences, one by one: their mean and their variance.
  double sum = 0, squares = 0;
  for (std::size_t i = 0; i < first.size(); ++i) {
    const double d = static_cast<double>(second[i]) - static_cast<double>(first[i]);
    sum += d;
    squares += (d + 0.125) * (d + 0.125);
  }
  CHECK(sum == -1);
  CHECK(paired.error_of_points(8) == doctest::Approx(100 * std::sqrt(squares / 8 / 8)));
}

TEST_CASE("paired: no difference has no error") {
  const auto same = bytes({1, 0, 1});
  const example::Paired paired = example::compare_pairs(same, same);
  CHECK(paired.points(3) == 0);
  CHECK(paired.error_of_points(3) == 0);
  const auto none = bytes({0, 0}), all = bytes({1, 1});
  CHECK(example::compare_pairs(none, all).points(2) == 100);
  CHECK(example::compare_pairs(none, all).error_of_points(2) == 0);
}

}  // namespace paired_test
