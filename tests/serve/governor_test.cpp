// SPDX-License-Identifier: Apache-2.0
//
// The governor, with sensors and devices that are simulated.
#include "nibble/serve/governor.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "serve/values.hpp"

namespace governor_test {

using namespace nibble;
using namespace nibble::serve;
using test::code_of;
using test::value_of;

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

GovernorOptions five_levels() { return {.levels = power_levels(8, 3, 0.75)}; }

// A device that follows the power it takes slowly: dT/dt = (ambient + rise * power - T) / seconds.
struct Device {
  double ambient = 25, rise = 100, seconds = 200, temperature = 25;
  void run(double power, double dt) {
    temperature += (ambient + rise * power - temperature) * dt / seconds;
  }
};

}  // namespace

TEST_CASE("levels: each is less work than the one before") {
  const auto levels = power_levels(8, 3, 0.75);
  REQUIRE(levels.size() == 5);
  CHECK(levels[0].n_threads == 8);
  CHECK(levels[0].variant == 0);
  CHECK(levels[0].depth == 1);
  CHECK(levels[0].wait_ms == 0);
  CHECK(levels[4].n_threads == 2);
  CHECK(levels[4].variant == 2);
  CHECK(levels[3].depth == 1);
  CHECK(levels[4].depth == 0.75);
  for (std::size_t i = 1; i < levels.size(); ++i) {
    CHECK(levels[i].n_threads <= levels[i - 1].n_threads);
    CHECK(levels[i].variant >= levels[i - 1].variant);
    CHECK(levels[i].wait_ms > levels[i - 1].wait_ms);
  }
  for (const PowerLevel& level : power_levels(1, 1)) {
    CHECK(level.n_threads == 1);
    CHECK(level.variant == 0);
    CHECK(level.depth == 1);
  }
  CHECK(power_levels(1, 0).back().variant == 0);
}

TEST_CASE("a variant without room: the next smaller one, or the one that serves") {
  const std::vector<std::size_t> bytes = {800, 400, 200};
  CHECK(variant_with_room(bytes, 0, {}, {}) == 0);
  CHECK(variant_with_room(bytes, 0, {}, 800) == 0);
  CHECK(variant_with_room(bytes, 0, {}, 799) == 1);
  CHECK(variant_with_room(bytes, 0, {}, 399) == 2);
  CHECK(variant_with_room(bytes, 0, {}, 0) == 2);
  CHECK(variant_with_room(bytes, 2, {}, 1000) == 2);
  CHECK(variant_with_room(bytes, 0, 1, 799) == 1);  // it serves: it needs no more
  CHECK(variant_with_room(bytes, 0, 1, 0) == 1);
  CHECK(variant_with_room(bytes, 0, 2, 400) == 1);
  CHECK(variant_with_room(bytes, 1, 0, 399) == 2);
  CHECK(variant_with_room(bytes, 1, 0, 199) == 0);
  CHECK(variant_with_room(bytes, 0, 0, 0) == 0);
}

TEST_CASE("hot: down at once, then by dwell; cool: up slowly") {
  GovernorOptions options = five_levels();
  options.down_ms = 1000;
  options.up_ms = 5000;
  Governor governor = value_of(Governor::create(options));
  const auto at = [&](std::int64_t now, double temperature) {
    governor.update(now, {.temperature = temperature});
    return governor.level_index();
  };
  CHECK(at(0, 84.9) == 0);
  CHECK(governor.reason() == PowerReason::none);
  CHECK(at(10, 85) == 1);  // the first step need not wait
  CHECK(governor.reason() == PowerReason::temperature);
  CHECK(at(1009, 90) == 1);
  CHECK(at(1010, 90) == 2);
  CHECK(governor.level().n_threads == 4);
  // Neither hot nor cool: it stays.
  CHECK(at(20'000, 80) == 2);
  CHECK(at(40'000, 75) == 2);
  CHECK(at(50'000, 74.9) == 2);
  CHECK(at(54'999, 70) == 2);
  CHECK(at(55'000, 70) == 1);
  CHECK(at(55'001, 70) == 1);
  CHECK(at(59'000, 76) == 1);  // not cool in between: the time starts anew
  CHECK(at(60'000, 70) == 1);
  CHECK(at(64'999, 70) == 1);
  CHECK(at(65'000, 70) == 0);
  CHECK(governor.reason() == PowerReason::none);
  CHECK(governor.n_changes() == 4);
  // Critical: to the last, whatever the dwell.
  CHECK(at(65'001, 95) == 4);
  CHECK(at(65'002, 99) == 4);
  CHECK(governor.n_changes() == 5);
}

TEST_CASE("a step up that is taken back doubles the time before the next") {
  GovernorOptions options = five_levels();
  options.down_ms = 0;
  options.up_ms = 100;
  options.longest_up_ms = 500;
  Governor governor = value_of(Governor::create(options));
  std::int64_t now = 0;
  const auto step = [&](std::int64_t by, double temperature) {
    now += by;
    governor.update(now, {.temperature = temperature});
    return governor.level_index();
  };
  CHECK(step(0, 86) == 1);
  for (const std::int64_t wait : {100, 200, 400, 500, 500}) {
    CHECK(governor.up_wait_ms() == wait);
    CHECK(step(1, 70) == 1);
    CHECK(step(wait - 1, 70) == 1);
    CHECK(step(1, 70) == 0);
    CHECK(step(1, 86) == 1);
  }
  // One that holds for the longest time ends that.
  step(1, 70);
  CHECK(step(500, 70) == 0);
  CHECK(step(499, 80) == 0);
  CHECK(governor.up_wait_ms() == 500);
  CHECK(step(1, 80) == 0);
  CHECK(governor.up_wait_ms() == 100);
  CHECK(step(1, 86) == 1);
  CHECK(governor.up_wait_ms() == 100);
}

TEST_CASE("battery: a level at least, until it is charged or plugged in") {
  GovernorOptions options = five_levels();
  options.battery_level = 3;
  options.up_ms = 100;
  Governor governor = value_of(Governor::create(options));
  const auto at = [&](std::int64_t now, double battery, bool is_charging = false) {
    governor.update(now, {.battery = battery, .is_charging = is_charging});
    return governor.level_index();
  };
  CHECK(at(0, 0.2) == 0);
  CHECK(at(1, 0.19) == 3);
  CHECK(governor.reason() == PowerReason::battery);
  CHECK(at(1000, 0.29) == 3);
  CHECK(at(2000, 0.3) == 2);  // it was fine in all else all the time
  CHECK(at(2001, 0.3) == 2);
  CHECK(at(2100, 0.25) == 1);  // above the lower limit
  CHECK(at(2200, 0.25) == 0);
  CHECK(at(2300, 0.1, true) == 0);
  CHECK(at(2400, 0.1) == 3);
  CHECK(at(2500, 0.1, true) == 2);
  // Plugging in is no step up that failed.
  CHECK(at(2600, 0.1) == 3);
  CHECK(governor.up_wait_ms() == 100);
  options.battery_level = 99;
  Governor last = value_of(Governor::create(options));
  last.update(0, {.battery = 0.1});
  CHECK(last.level_index() == 4);
  // Hot as well: below the battery's level.
  Governor both = value_of(Governor::create(five_levels()));
  both.update(0, {.temperature = 90, .battery = 0.1});
  CHECK(both.level_index() == 1);
  both.update(10'000, {.temperature = 90, .battery = 0.1});
  CHECK(both.level_index() == 2);
}

TEST_CASE("load, and sensors that are silent") {
  GovernorOptions options = five_levels();
  options.high_load = 0.95;
  options.fine_load = 0.6;
  options.down_ms = 10;
  options.up_ms = 100;
  Governor governor = value_of(Governor::create(options));
  const auto at = [&](std::int64_t now, double load, double temperature = kNan) {
    governor.update(now, {.temperature = temperature, .load = load});
    return governor.level_index();
  };
  CHECK(at(0, 0.95) == 1);
  CHECK(governor.reason() == PowerReason::load);
  CHECK(at(5, 3) == 1);
  CHECK(at(10, 3) == 2);
  CHECK(at(500, 0.6) == 2);
  CHECK(at(600, 0.59) == 2);
  CHECK(at(700, 0.59) == 1);
  CHECK(at(710, 0.59, 80) == 1);  // not cool
  CHECK(at(9'000, 0.59) == 1);    // the sensor of heat is gone: who knows
  CHECK(at(10'000, 0.59, 70) == 1);
  CHECK(at(10'100, 0.59, 70) == 0);
  Governor blind = value_of(Governor::create(options));
  for (int i = 0; i < 100; ++i) blind.update(i * 1000, {});
  CHECK(blind.level_index() == 0);
  CHECK(blind.n_changes() == 0);
  blind.update(200'000, {.battery = 0.1});
  blind.update(300'000, {});
  CHECK(blind.level_index() == 1);  // it stays, without news of the battery
  blind.update(900'000, {});
  CHECK(blind.level_index() == 1);
}

TEST_CASE("a clock that is set back starts the waits anew") {
  GovernorOptions options = five_levels();
  options.down_ms = 10;
  options.up_ms = 100;
  Governor governor = value_of(Governor::create(options));
  std::int64_t now = 1'000'000'000;
  const auto at = [&](std::int64_t time, double temperature) {
    governor.update(now = time, {.temperature = temperature});
    return governor.level_index();
  };
  CHECK(at(now, 90) == 1);
  CHECK(at(now + 1, 70) == 1);
  CHECK(at(0, 70) == 1);
  CHECK(at(99, 70) == 1);
  CHECK(at(100, 70) == 0);
  CHECK(at(1'000'000'000, 90) == 1);
  CHECK(at(5, 90) == 1);
  CHECK(at(14, 90) == 1);
  CHECK(at(15, 90) == 2);
}

TEST_CASE("a device whose heat lies between two levels does not go up and down for ever") {
  // Power of the levels, of the first: at equilibrium 125, 93, 81, 57 and 45 degrees. The governor
  // has to be at level 2, where it is neither hot nor cool, or lower.
  const double power[] = {1, 0.68, 0.56, 0.32, 0.2};
  for (const double seconds : {20.0, 200.0, 2000.0}) {
    Governor governor = value_of(Governor::create(five_levels()));
    Device device{.seconds = seconds};
    double hottest = 0;
    for (std::int64_t s = 0; s < 24 * 3600; ++s) {
      governor.update(s * 1000, {.temperature = device.temperature});
      device.run(power[governor.level_index()], 1);
      if (s > 600) hottest = std::max(hottest, device.temperature);
    }
    CHECK(hottest < 95);
    CHECK(governor.n_changes() < 60);
    MESSAGE(seconds, " s: ", governor.n_changes(), " changes in a day, at most ", hottest,
            " degrees after ten minutes");
  }
  // No level is between the limits: 100, 70 and 40 degrees. Each try to go up fails.
  const double steep[] = {0.75, 0.45, 0.15, 0.1, 0.1};
  Governor governor = value_of(Governor::create(five_levels()));
  Device device{.seconds = 60};
  std::uint64_t after_half = 0;
  std::int64_t at_full = 0;
  for (std::int64_t s = 0; s < 24 * 3600; ++s) {
    governor.update(s * 1000, {.temperature = device.temperature});
    device.run(steep[governor.level_index()], 1);
    if (s == 12 * 3600) after_half = governor.n_changes();
    if (s > 3600) at_full += governor.level_index() == 0 ? 1 : 0;
  }
  CHECK(governor.n_changes() - after_half <= 26);  // one try an hour
  CHECK(at_full < 3600);
  CHECK(governor.level_index() <= 1);
  // A cold night: it goes back to full power.
  device.ambient = -20;
  for (std::int64_t s = 24 * 3600; s < 28 * 3600; ++s) {
    governor.update(s * 1000, {.temperature = device.temperature});
    device.run(steep[governor.level_index()], 1);
  }
  CHECK(governor.level_index() == 0);
  CHECK(governor.up_wait_ms() == 60'000);
}

TEST_CASE("governor: options out of range") {
  const auto refused = [](auto change) {
    GovernorOptions options = five_levels();
    change(options);
    return code_of(Governor::create(options)) == Errc::invalid_argument;
  };
  CHECK(!refused([](GovernorOptions&) {}));
  CHECK(refused([](GovernorOptions& o) { o.levels.clear(); }));
  CHECK(refused([](GovernorOptions& o) { o.cool = o.hot; }));
  CHECK(refused([](GovernorOptions& o) { o.critical = o.hot - 1; }));
  CHECK(refused([](GovernorOptions& o) { o.hot = kNan; }));
  CHECK(refused([](GovernorOptions& o) { o.cool = kNan; }));
  CHECK(refused([](GovernorOptions& o) { o.fine_battery = o.low_battery; }));
  CHECK(refused([](GovernorOptions& o) { o.fine_load = o.high_load; }));
  CHECK(refused([](GovernorOptions& o) { o.high_load = kNan; }));
  CHECK(refused([](GovernorOptions& o) { o.up_ms = 0; }));
  CHECK(refused([](GovernorOptions& o) { o.down_ms = -1; }));
  CHECK(refused([](GovernorOptions& o) { o.longest_up_ms = o.up_ms - 1; }));
}

}  // namespace governor_test
