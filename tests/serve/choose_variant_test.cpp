// SPDX-License-Identifier: Apache-2.0
//
// Which variant serves: simulated machines.
#include "nibble/serve/choose_variant.hpp"

#include <cmath>
#include <cstddef>
#include <limits>
#include <optional>
#include <vector>

#include "doctest/doctest.h"

namespace choose_variant_test {

using namespace nibble;
using serve::choose_variant;
using serve::HostSignals;

namespace {

constexpr std::size_t kF16 = 0, kInt8 = 1, kInt4 = 2;
const std::vector<std::size_t> kBytes = {800, 400, 200};

}  // namespace

TEST_CASE("the first variant is the best that fits") {
  CHECK(choose_variant(kBytes, {}, {}) == kF16);
  CHECK(choose_variant(kBytes, {}, {.free_bytes = 800}) == kF16);
  CHECK(choose_variant(kBytes, {}, {.free_bytes = 799}) == kInt8);
  CHECK(choose_variant(kBytes, {}, {.free_bytes = 399}) == kInt4);
  CHECK(choose_variant(kBytes, {}, {.free_bytes = 0}) == kInt4);
  CHECK(choose_variant(kBytes, {}, {.temperature = 85}) == kInt4);
  CHECK(choose_variant(kBytes, {}, {.temperature = 84}) == kF16);
}

TEST_CASE("each signal moves it one step, and back only beyond its low mark") {
  const auto moves = [](auto set, double bad, double between, double good) {
    HostSignals signals;
    const auto at = [&](double value) -> const HostSignals& {
      set(signals, value);
      return signals;
    };
    CHECK(choose_variant(kBytes, kF16, at(bad)) == kInt8);
    CHECK(choose_variant(kBytes, kInt8, at(bad)) == kInt4);
    CHECK(choose_variant(kBytes, kInt4, at(bad)) == kInt4);
    CHECK(choose_variant(kBytes, kInt4, at(between)) == kInt4);
    CHECK(choose_variant(kBytes, kF16, at(between)) == kF16);
    CHECK(choose_variant(kBytes, kInt4, at(good)) == kInt8);
    CHECK(choose_variant(kBytes, kInt8, at(good)) == kF16);
    CHECK(choose_variant(kBytes, kF16, at(good)) == kF16);
    CHECK(choose_variant(kBytes, kInt8, at(std::nan(""))) == kF16);  // has no say
  };
  moves([](HostSignals& s, double x) { s.temperature = x; }, 85, 75, 74.9);
  moves([](HostSignals& s, double x) { s.battery = x; }, 0.2, 0.3, 0.31);
  moves([](HostSignals& s, double x) { s.load = x; }, 2, 0.5, 0.4);
}

TEST_CASE("one bad signal decides, and all must be good to go back") {
  CHECK(choose_variant(kBytes, kF16, {.temperature = 90, .battery = 1, .load = 0}) == kInt8);
  CHECK(choose_variant(kBytes, kInt8, {.temperature = 20, .battery = 0.25, .load = 0}) == kInt8);
  CHECK(choose_variant(kBytes, kInt8, {.temperature = 20, .battery = 0.9, .load = 0}) == kF16);
}

TEST_CASE("what does not fit is skipped") {
  CHECK(choose_variant(kBytes, kInt4, {.free_bytes = 500}) == kInt8);
  CHECK(choose_variant(kBytes, kInt4, {.free_bytes = 300}) == kInt4);
  CHECK(choose_variant(kBytes, kF16, {.free_bytes = 300, .load = 3}) == kInt4);
  CHECK(choose_variant(kBytes, kF16, {.free_bytes = 100, .load = 3}) == kF16);
}

TEST_CASE("a machine that heats with the work settles instead of swinging") {
  // Work warms it, air cools it; f16 alone would bring it to 105 degrees, int8 to 80, int4 to 60.
  const double hottest[] = {105, 80, 60};
  double temperature = 40;
  std::size_t current = kF16, n_changes = 0;
  double most = 0;
  for (int second = 0; second < 3600; ++second) {
    temperature += (hottest[current] - temperature) / 60;
    most = temperature > most ? temperature : most;
    if (second % 10 != 0) continue;
    const std::size_t next = choose_variant(kBytes, current, {.temperature = temperature});
    n_changes += next != current;
    current = next;
  }
  CHECK(most < 89);       // 85 and what ten seconds may add
  CHECK(n_changes == 1);  // to int8, where it is between the marks
  CHECK(current == kInt8);
}

}  // namespace choose_variant_test
