// SPDX-License-Identifier: Apache-2.0
//
// Less work where a device is hot, its battery low or its processor busy: fewer threads, a smaller
// variant of the model, fewer layers, longer waits for requests to share a step. The host brings
// sensors (host_readings.hpp) and clock, calls update() every second or so, and does what the level
// says.
//
//   auto governor = serve::Governor::create({.levels = serve::power_levels(4, 2)});
//   const serve::PowerLevel& level = governor->update(now_ms, host.read());
//   pool.set_effort({.depth = level.depth, .max_wait_ms = level.wait_ms});
//   ... and ModelPool::switch_to() for the variant, an executor of level.n_threads ...
//
// It goes down at once and up slowly: when it is cool for some time, one level. A level that turns
// out to be too much after all doubles that time, so that a device whose heat lies between two
// levels settles at the lower one instead of changing for ever.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/core/view.hpp"
#include "nibble/serve/host_readings.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

// How much work a token may be.
struct PowerLevel {
  Index n_threads = 0;      // 0: all
  std::size_t variant = 0;  // of the model, in the host's order, the largest first
  double depth = 1;         // the part of its layers that is computed, the first ones
  Index wait_ms = 0;        // that a request waits for others to share its steps
};

// Five levels from full power down to a quarter of the threads, each with less work than the one
// before: of `n_threads` (at least 1), `n_variants` of the model, and, at the last level, this part
// of its layers. (A model that was not trained for it is worse with fewer: measure before.)
std::vector<PowerLevel> power_levels(Index n_threads, std::size_t n_variants,
                                     double least_depth = 1);

// Which variant can serve, of those that take so many bytes with their working memory, the largest
// first, where a level wants the variant `wanted`: this one, or, if there is no room for it beside
// the one that serves (`current`; none: there is none yet), the next smaller one for which there
// is; the current one needs none. With none at all, the current one, or else the last. free_bytes:
// what the system can give to another variant; nothing: it is not known, so there is room.
// Precondition: there are variants, and both numbers are of them.
std::size_t variant_with_room(std::span<const std::size_t> bytes, std::size_t wanted,
                              std::optional<std::size_t> current,
                              std::optional<std::uint64_t> free_bytes) noexcept;

struct GovernorOptions {
  std::vector<PowerLevel> levels;  // from full power to the least; at least one
  // Degrees Celsius. From `hot` on it goes down level by level, from `critical` on to the last at
  // once; up again only below `cool`.
  double hot = 85, cool = 75, critical = 95;
  // Shares. Below `low_battery` it is at least at the level `battery_level`, until the battery is
  // above `fine_battery` or something charges it.
  double low_battery = 0.2, fine_battery = 0.3;
  std::size_t battery_level = 1;
  // Per processor. From `high_load` on it goes down, since others wait for the processors, or
  // requests for less work per token; up again only below `fine_load`. (A model that runs on all
  // processors, alone, is a load of 1.)
  double high_load = 1.5, fine_load = 0.8;
  // The least time from one step down to the next, and how long everything must be fine before a
  // step up: this doubles with each step up that is taken back, up to the longest.
  std::int64_t down_ms = 5'000, up_ms = 60'000, longest_up_ms = 3'600'000;
};

enum class PowerReason : std::uint8_t { none, temperature, battery, load };

constexpr const char* to_string(PowerReason reason) noexcept {
  switch (reason) {
    case PowerReason::none: return "none";
    case PowerReason::temperature: return "temperature";
    case PowerReason::battery: return "battery";
    case PowerReason::load: return "load";
  }
  return "unknown";
}

// Not thread-safe.
class Governor {
 public:
  // Errors: invalid_argument (no levels, or limits that are not in their order).
  static Result<Governor> create(GovernorOptions options);

  // `now`: milliseconds of a clock that does not stop; one that is set back starts all waits anew.
  // The level from now on. Temperature, battery and load count. Without news of the battery the
  // last news holds; a temperature or a load that was there before and is missing (or NaN) now does
  // not let it go up.
  const PowerLevel& update(std::int64_t now, const HostReadings& readings) noexcept;

  const PowerLevel& level() const noexcept { return options_.levels[level_]; }
  std::size_t level_index() const noexcept { return level_; }
  // Why it last went down; none while it is at full power.
  PowerReason reason() const noexcept { return reason_; }
  std::uint64_t n_changes() const noexcept { return n_changes_; }
  // How long all must be fine before the next step up.
  std::int64_t up_wait_ms() const noexcept { return up_wait_; }

 private:
  explicit Governor(GovernorOptions options) noexcept;
  void go_to(std::size_t level, PowerReason reason, std::int64_t now) noexcept;

  GovernorOptions options_;
  std::size_t level_ = 0;
  PowerReason reason_ = PowerReason::none;
  std::uint64_t n_changes_ = 0;
  std::int64_t up_wait_;
  std::int64_t changed_ = 0, fine_since_ = 0, last_ = 0;  // times
  bool has_started_ = false, is_fine_ = false, was_up_ = false, is_battery_low_ = false;
  bool has_temperature_ = false, has_load_ = false;  // ever said something
};

}}}  // namespace nibble::NIBBLE_ABI::serve

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/serve/governor-inl.hpp"
#endif
