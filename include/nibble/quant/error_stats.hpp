// SPDX-License-Identifier: Apache-2.0
//
// Statistics of the error between original and approximated values, e.g. the dequantized weights of
// a tensor. Sums are in double, so that statistics of rows can be merged into those of a tensor or
// model.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "nibble/core/config.hpp"
#include "nibble/core/scalar.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace quant {

// Over pairs (x, y) of an original and its approximation, with e = y - x in double:
struct ErrorStats {
  std::uint64_t count = 0;            // all pairs
  std::uint64_t sign_flips = 0;       // x and y not zero and of opposite sign
  std::uint64_t rounded_to_zero = 0;  // y is zero, x is not
  std::uint64_t not_finite = 0;       // x or y infinite or NaN: counted only here and in count
  double max_abs = 0.0;               // max |e|
  double sum_squared_error = 0.0;     // sum e^2
  double sum_squared_signal = 0.0;    // sum x^2

  // sqrt(sum e^2 / n) over the n finite pairs; 0 if there are none.
  double rmse() const noexcept {
    const std::uint64_t n = count - not_finite;
    return n == 0 ? 0.0 : std::sqrt(sum_squared_error / static_cast<double>(n));
  }

  // 10 log10(sum x^2 / sum e^2): +inf if there is no error (also if there are no pairs), -inf if
  // there is an error but no signal.
  double snr_db() const noexcept {
    if (sum_squared_error == 0.0) return std::numeric_limits<double>::infinity();
    if (sum_squared_signal == 0.0) return -std::numeric_limits<double>::infinity();
    return 10.0 * std::log10(sum_squared_signal / sum_squared_error);
  }

  void add(float original, float approximation) noexcept {
    ++count;
    const auto x = static_cast<double>(original);
    const auto y = static_cast<double>(approximation);
    if (!is_finite(x) || !is_finite(y)) {
      ++not_finite;
      return;
    }
    const double error = y - x;
    max_abs = (std::max)(max_abs, (std::abs)(error));
    sum_squared_error += error * error;
    sum_squared_signal += x * x;
    if ((x < 0.0 && y > 0.0) || (x > 0.0 && y < 0.0)) ++sign_flips;
    if (x != 0.0 && y == 0.0) ++rounded_to_zero;
  }

  // original.size() = approximation.size()
  void add(std::span<const float> original, std::span<const float> approximation) noexcept {
    NIBBLE_ASSERT(original.size() == approximation.size());
    for (std::size_t i = 0; i < original.size(); ++i) add(original[i], approximation[i]);
  }

  void merge(const ErrorStats& other) noexcept {
    count += other.count;
    sign_flips += other.sign_flips;
    rounded_to_zero += other.rounded_to_zero;
    not_finite += other.not_finite;
    max_abs = (std::max)(max_abs, other.max_abs);
    sum_squared_error += other.sum_squared_error;
    sum_squared_signal += other.sum_squared_signal;
  }
};

}}}  // namespace nibble::NIBBLE_ABI::quant
