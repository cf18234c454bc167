// SPDX-License-Identifier: Apache-2.0
//
// The functions of the governor. Included by governor.hpp.
#pragma once

#include <algorithm>
#include <utility>

#include "nibble/core/scalar.hpp"
#include "nibble/serve/governor.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

NIBBLE_INLINE std::vector<PowerLevel> power_levels(Index n_threads, std::size_t n_variants,
                                                   double least_depth) {
  const Index half = (std::max)(Index{1}, n_threads / 2);
  const Index quarter = (std::max)(Index{1}, n_threads / 4);
  const std::size_t last = n_variants > 0 ? n_variants - 1 : 0;
  const std::size_t next = (std::min)(std::size_t{1}, last);
  return {{n_threads, 0, 1, 0},
          {half, 0, 1, 5},
          {half, next, 1, 10},
          {quarter, last, 1, 20},
          {quarter, last, least_depth, 50}};
}

NIBBLE_INLINE std::size_t variant_with_room(std::span<const std::size_t> bytes, std::size_t wanted,
                                            std::optional<std::size_t> current,
                                            std::optional<std::uint64_t> free_bytes) noexcept {
  NIBBLE_ASSERT(wanted < bytes.size() && (!current || *current < bytes.size()));
  for (std::size_t i = wanted; i < bytes.size(); ++i) {
    if (i == current || !free_bytes || bytes[i] <= *free_bytes) return i;
  }
  return current.value_or(bytes.size() - 1);
}

NIBBLE_INLINE Result<Governor> Governor::create(GovernorOptions options) {
  const GovernorOptions& o = options;
  if (o.levels.empty()) return Error{Errc::invalid_argument, "governor: it needs a level"};
  const bool is_ordered =
      o.cool < o.hot && o.hot <= o.critical && is_finite(o.cool) && is_finite(o.critical) &&
      o.low_battery >= 0 && o.low_battery < o.fine_battery && is_finite(o.fine_battery) &&
      o.fine_load < o.high_load && is_finite(o.fine_load) && is_finite(o.high_load) &&
      o.down_ms >= 0 && o.up_ms >= 1 && o.longest_up_ms >= o.up_ms;
  if (!is_ordered) {
    return Error{
        Errc::invalid_argument,
        "governor: it must be cool < hot <= critical, low_battery < fine_battery, fine_load "
        "< high_load, and 1 <= up_ms <= longest_up_ms"};
  }
  return Governor(std::move(options));
}

NIBBLE_INLINE Governor::Governor(GovernorOptions options) noexcept
    : options_(std::move(options)), up_wait_(options_.up_ms) {}

NIBBLE_INLINE void Governor::go_to(std::size_t level, PowerReason reason,
                                   std::int64_t now) noexcept {
  level_ = level;
  reason_ = level == 0 ? PowerReason::none : reason;
  changed_ = fine_since_ = now;
  ++n_changes_;
}

NIBBLE_INLINE const PowerLevel& Governor::update(std::int64_t now,
                                                 const HostReadings& readings) noexcept {
  const GovernorOptions& o = options_;
  const HostReadings& r = readings;
  const bool knows_temperature = r.temperature && !is_nan(*r.temperature);
  const bool knows_load = r.load && !is_nan(*r.load);
  const bool knows_battery = r.is_charging || (r.battery && !is_nan(*r.battery));
  has_temperature_ |= knows_temperature;
  has_load_ |= knows_load;

  if (!has_started_) changed_ = now - o.down_ms;
  if (has_started_ && now < last_) changed_ = fine_since_ = now;
  has_started_ = true;
  last_ = now;

  if (knows_battery) {
    const double limit = is_battery_low_ ? o.fine_battery : o.low_battery;
    is_battery_low_ = !r.is_charging && *r.battery < limit;
  }
  const bool is_hot = knows_temperature && *r.temperature >= o.hot;
  const bool is_critical = knows_temperature && *r.temperature >= o.critical;
  const bool is_busy = knows_load && *r.load >= o.high_load;
  const bool is_cool = knows_temperature ? *r.temperature < o.cool : !has_temperature_;
  const bool is_idle = knows_load ? *r.load < o.fine_load : !has_load_;
  const bool is_fine = is_cool && is_idle;
  if (!is_fine || !is_fine_) fine_since_ = now;
  is_fine_ = is_fine;

  const std::size_t last = o.levels.size() - 1;
  const std::size_t floor = is_battery_low_ ? (std::min)(o.battery_level, last) : 0;
  if (was_up_ && now - changed_ >= o.longest_up_ms) {  // the step up has held
    was_up_ = false;
    up_wait_ = o.up_ms;
  }

  const bool steps_down = (is_hot || is_busy) && now - changed_ >= o.down_ms;
  if (level_ < last && (is_critical || steps_down)) {
    if (was_up_) up_wait_ = up_wait_ > o.longest_up_ms / 2 ? o.longest_up_ms : up_wait_ * 2;
    was_up_ = false;
    go_to(is_critical ? last : (std::max)(level_ + 1, floor),
          is_hot ? PowerReason::temperature : PowerReason::load, now);
  } else if (level_ < floor) {
    was_up_ = false;
    go_to(floor, PowerReason::battery, now);
  } else if (is_fine && level_ > floor && now - fine_since_ >= up_wait_) {
    was_up_ = true;
    go_to(level_ - 1, reason_, now);
  }
  return level();
}

}}}  // namespace nibble::NIBBLE_ABI::serve
