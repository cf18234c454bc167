// SPDX-License-Identifier: Apache-2.0
//
// Two models on the same questions: the difference of their accuracies, far sharper than the two
// accuracies are.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

namespace example {

// How two models differ on the same n questions.
struct Paired {
  std::int64_t only_first = 0, only_second = 0;  // questions that only this one has right

  // The second's accuracy less the first's, in points (percent), and its standard error: that of a
  // mean of n values of -1, 0 and 1.
  double points(std::size_t n) const { return 100 * mean(n); }
  double error_of_points(std::size_t n) const {
    const double square = static_cast<double>(only_first + only_second) / static_cast<double>(n);
    const double variance = square - mean(n) * mean(n);
    return 100 * std::sqrt(std::max(0.0, variance) / static_cast<double>(n));
  }

 private:
  double mean(std::size_t n) const {
    return static_cast<double>(only_second - only_first) / static_cast<double>(n);
  }
};

// A byte of 1 in `first` and `second` is a right answer to that question, 0 a wrong one.
inline Paired compare_pairs(std::span<const std::byte> first, std::span<const std::byte> second) {
  Paired paired;
  for (std::size_t i = 0; i < first.size(); ++i) {
    paired.only_first += first[i] > second[i] ? 1 : 0;
    paired.only_second += first[i] < second[i] ? 1 : 0;
  }
  return paired;
}

}  // namespace example
