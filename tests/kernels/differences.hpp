// SPDX-License-Identifier: Apache-2.0
//
// Central differences: the judge of formulas of gradients. Kernels are then judged by the formula.
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

namespace nibble_test {

using Doubles = std::vector<double>;

// How far `gradient` is from the central differences of `loss` at x, at most, over every value of x
// (or every `step`-th), relative to the largest difference. Below 1e-6 for a right formula: with
// h = 1e-5 the differences have an error of about h^2 = 1e-10 and 1e-16 / h = 1e-11.
template <class Loss>
double worst_difference(const Loss& loss, Doubles x, const Doubles& gradient,
                        std::size_t step = 1) {
  constexpr double kH = 1e-5;
  double worst = 0, largest = 1e-3;
  for (std::size_t i = 0; i < x.size(); i += step) {
    const double at = x[i];
    x[i] = at + kH;
    const double above = loss(x);
    x[i] = at - kH;
    const double below = loss(x);
    x[i] = at;
    const double slope = (above - below) / (2 * kH);
    const double error = std::fabs(slope - gradient[i]);
    if (!(error <= worst)) worst = error;  // a NaN, too
    if (std::isnan(worst)) return worst;
    largest = std::fmax(largest, std::fabs(slope));
  }
  return worst / largest;
}

}  // namespace nibble_test
