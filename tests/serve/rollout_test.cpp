// SPDX-License-Identifier: Apache-2.0
//
// A year of rollouts. NIBBLE_ROLLOUT_DEVICES=10000 (environment) runs the whole fleet.
#include <cstdint>
#include <cstdlib>

#include "doctest/doctest.h"
#include "rollout.hpp"

namespace rollout_test {

TEST_CASE("a year of rollouts: no device ends on a bad release, or without one") {
  const char* const wanted = std::getenv("NIBBLE_ROLLOUT_DEVICES");
  const std::uint64_t n_devices = wanted == nullptr ? 60 : std::strtoull(wanted, nullptr, 10);
  const test::Rollout rollout(7);
  CHECK(rollout.n_releases() > 12);
  CHECK(rollout.n_bad_releases() > 3);
  test::RolloutCounts counts;
  for (std::uint64_t device = 0; device < n_devices; ++device) rollout.run_device(device, counts);
  MESSAGE(n_devices, " devices, ", rollout.n_releases(), " releases, ", rollout.n_bad_releases(),
          " of them bad: ", counts.n_starts, " starts, ", counts.n_cuts, " power cuts, ",
          counts.n_installs, " installs, ", counts.n_trials, " trials, refused: ",
          counts.n_expired, " expired, ", counts.n_downgrades, " downgrades");
  CHECK_MESSAGE(counts.first_failure.empty(), counts.first_failure);
  CHECK(counts.n_dead == 0);
  CHECK(counts.n_bad == 0);
  CHECK(counts.n_latest == n_devices);
  // All of it happened.
  CHECK(counts.n_cuts > 20 * n_devices);
  CHECK(counts.n_trials > 5 * n_devices);
  CHECK(counts.n_installs > 8 * n_devices);
  CHECK(counts.n_expired > n_devices / 4);
  CHECK(counts.n_downgrades > n_devices / 2);
}

}  // namespace rollout_test
