// SPDX-License-Identifier: Apache-2.0
//
// The learning rate of each step: a linear warm-up, then constant, or a decay to a floor along a
// line or half a cosine.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/text.hpp"
#include "nibble/train/exact_text.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace train {

namespace detail {

// cos(π · x) for x in [0, 1], to within 2⁻⁵⁰: Taylor's series on a quarter of a period. Each C
// library has a cosine of its own; with this one a run continues on any machine.
constexpr double cosine_of_turn(double x) noexcept {
  if (x > 0.5) return -cosine_of_turn(1 - x);
  constexpr double kPi = 3.14159265358979323846;
  const double y = kPi * x, square = y * y;
  double sum = 0, term = 1;
  for (int i = 1; i <= 24; i += 2) {
    sum += term;
    term *= -square / (i * (i + 1));
  }
  return sum;
}

}  // namespace detail

// Steps count from 0, as an optimizer's n_steps() before the step. With n = n_steps, w = warm_up:
//   step < w:   peak · (step + 1) / (w + 1)
//   step ≥ n:   the floor (constant: peak)
//   else, x = (step − w) / (n − w):
//     constant  peak
//     linear    peak + (floor − peak) · x
//     cosine    floor + (peak − floor) · (1 + cos πx) / 2
// So the first step has a rate above zero, step w is the first with the peak, and step n would be
// the first with the floor.
struct Schedule {
  enum class Shape : unsigned char { constant, linear, cosine };

  Shape shape = Shape::cosine;
  double peak = 1e-3;         // largest learning rate
  double floor = 0;           // at the end of the decay
  std::uint64_t warm_up = 0;  // steps
  std::uint64_t n_steps = 1;  // of the whole run

  // invalid_argument: rates that are not finite or negative, a floor above the peak, no steps, a
  // warm-up that is longer than the run.
  Result<void> validate() const {
    const auto is_rate = [](double x) { return x >= 0 && is_finite(x); };
    if (!is_rate(peak)) return wrong("the learning rate is not a number from 0 on");
    if (!is_rate(floor)) return wrong("the floor of the learning rate is not a number from 0 on");
    if (floor > peak) return wrong("the floor of the learning rate is above its peak");
    if (n_steps == 0) return wrong("a run of no steps");
    if (warm_up > n_steps) {
      return wrong("a warm-up of " + to_text(warm_up) + " steps in a run of " + to_text(n_steps));
    }
    return ok();
  }

  // The rate of `step`; needs parameters that validate() accepts.
  constexpr double at(std::uint64_t step) const noexcept {
    NIBBLE_ASSERT(n_steps > 0 && warm_up <= n_steps && floor <= peak);
    if (step < warm_up) {
      return peak * (static_cast<double>(step + 1) / (static_cast<double>(warm_up) + 1));
    }
    if (shape == Shape::constant) return peak;
    if (step >= n_steps) return floor;
    const double x = static_cast<double>(step - warm_up) / static_cast<double>(n_steps - warm_up);
    if (shape == Shape::linear) return peak + (floor - peak) * x;
    return floor + (peak - floor) * 0.5 * (1 + detail::cosine_of_turn(x));
  }

  // Everything that a run must share with the one that it continues, as text.
  std::string fingerprint() const {
    const char* const names[] = {"constant", "linear", "cosine"};
    return std::string(names[static_cast<unsigned>(shape)]) + ' ' + detail::exact_text(peak) + ' ' +
           detail::exact_text(floor) + ' ' + to_text(warm_up) + ' ' + to_text(n_steps);
  }

 private:
  static Error wrong(std::string message) {
    return {Errc::invalid_argument, "schedule: " + std::move(message)};
  }
};

}}}  // namespace nibble::NIBBLE_ABI::train
