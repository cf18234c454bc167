// SPDX-License-Identifier: Apache-2.0
//
// Which variant of a model to serve, by what the machine is like just now. The host reads the
// sensors; this is the rule alone.
#pragma once

#include <cstddef>
#include <optional>
#include <span>

#include "nibble/core/config.hpp"
#include "nibble/core/scalar.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

// What the host knows now; what is not there has no say.
struct HostSignals {
  // Bytes that can be had for a model, without those that the serving variant gives back.
  std::optional<std::size_t> free_bytes = {};
  std::optional<double> temperature = {};  // degrees Celsius
  std::optional<double> battery = {};      // charge from 0 to 1, while nothing charges it
  std::optional<double> load = {};         // requests that run or wait, for each place of a batch
};

// A signal asks for less work on one side of `high`, and allows more again only beyond `low`, so
// that it does not change at each reading.
struct SignalLimits {
  double high = 0, low = 0;
};
struct VariantLimits {
  SignalLimits temperature = {85, 75};
  SignalLimits battery = {0.2, 0.3};  // here less is worse
  SignalLimits load = {2, 0.5};
};

// Which of the variants is to serve. `bytes` has what each takes with its working memory, the best
// variant first and each one less work than the one before. `current` is the one that serves; none:
// the first choice.
//
//   - One that does not fit beside the current one in free_bytes is not chosen, but the current one
//     may stay. If none fits and there is no current one: the last.
//   - If a signal is beyond its high mark: the next one of less work than the current one.
//   - If all signals are on the good side of their low marks: the next better one.
//   - Else the current one stays.
// With no current one it is the best that fits; if a signal is beyond its high mark, the last.
//
// Call it now and then; each call moves one step. Precondition: there are variants, and `current`
// is one of them. A signal that is NaN has no say.
inline std::size_t choose_variant(std::span<const std::size_t> bytes,
                                  std::optional<std::size_t> current, const HostSignals& host,
                                  const VariantLimits& limits = {}) noexcept {
  NIBBLE_ASSERT(!bytes.empty() && (!current || *current < bytes.size()));
  bool is_bad = false, is_good = true;
  // `sign` -1: less is worse.
  const auto look = [&](const std::optional<double>& signal, const SignalLimits& limit,
                        double sign) {
    if (!signal || is_nan(*signal)) return;
    is_bad = is_bad || sign * *signal >= sign * limit.high;
    is_good = is_good && sign * *signal < sign * limit.low;
  };
  look(host.temperature, limits.temperature, 1);
  look(host.battery, limits.battery, -1);
  look(host.load, limits.load, 1);
  const auto fits = [&](std::size_t i) { return !host.free_bytes || bytes[i] <= *host.free_bytes; };
  const std::size_t n = bytes.size();
  if (!current) {
    if (is_bad) return n - 1;
    for (std::size_t i = 0; i < n; ++i) {
      if (fits(i)) return i;
    }
    return n - 1;
  }
  if (is_bad) {
    for (std::size_t i = *current + 1; i < n; ++i) {
      if (fits(i)) return i;
    }
  } else if (is_good) {
    for (std::size_t i = *current; i-- > 0;) {
      if (fits(i)) return i;
    }
  }
  return *current;
}

}}}  // namespace nibble::NIBBLE_ABI::serve
