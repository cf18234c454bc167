// SPDX-License-Identifier: Apache-2.0
#include "nibble/generate/calibration.hpp"

#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <vector>

#include "doctest/doctest.h"
#include "why.hpp"

namespace calibration_test {

using nibble::Calibration;
using nibble::Errc;
using nibble::fit_calibration;
using nibble::JudgedConfidence;
using nibble::reliability;
using test::why;

namespace {

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// Answers whose confidence c is right with probability sigmoid(slope * log_odds(c) + offset).
std::vector<JudgedConfidence> judged(double slope, double offset, std::size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> uniform(0, 1);
  std::vector<JudgedConfidence> all;
  for (std::size_t i = 0; i < n; ++i) {
    const double x = 8 * uniform(random) - 3;
    all.push_back({sigmoid(x), uniform(random) < sigmoid(slope * x + offset)});
  }
  return all;
}

double error_of(std::vector<JudgedConfidence> all, const Calibration& calibration = {}) {
  for (JudgedConfidence& one : all) one.confidence = calibration(one.confidence);
  const auto result = reliability(all);
  REQUIRE_MESSAGE(result, why(result));
  return result->error;
}

Calibration fitted(const std::vector<JudgedConfidence>& all) {
  const auto result = fit_calibration(all);
  REQUIRE_MESSAGE(result, why(result));
  return *result;
}

}  // namespace

TEST_CASE("the line is found, and what it corrects is right as often as it says") {
  for (const Calibration line : {Calibration{0.5, 0.3}, Calibration{1.7, -1}, Calibration{1, 0}}) {
    CAPTURE(line.slope);
    const Calibration found = fitted(judged(line.slope, line.offset, 20'000, 1));
    CHECK(std::abs(found.slope - line.slope) < 0.08);
    CHECK(std::abs(found.offset - line.offset) < 0.08);
    const auto others = judged(line.slope, line.offset, 20'000, 2);
    CHECK(error_of(others, found) < 0.015);
    if (line.slope != 1) CHECK(error_of(others) > 0.05);
  }
}

TEST_CASE("a calibration keeps the order of confidences") {
  const Calibration line = fitted(judged(0.4, -0.5, 2000, 3));
  double last = -1;
  for (int i = 0; i <= 1000; ++i) {
    const double c = line(i / 1000.0);
    CHECK(c >= last);
    CHECK(c > 0);
    CHECK(c < 1);
    last = c;
  }
  CHECK(Calibration{}(0.25) == 0.25);
  CHECK(Calibration{}(1) == 1);
}

TEST_CASE("few answers, or only right ones, give a line that is sure of nothing") {
  const std::vector<JudgedConfidence> right(50, {0.9999999, true});
  CHECK(fitted(right)(0.9999999) == doctest::Approx(51.0 / 52).epsilon(1e-3));
  const std::vector<JudgedConfidence> one = {{0.8, false}};
  const double c = fitted(one)(0.8);
  CHECK(c > 0.05);
  CHECK(c < 0.95);
  // Where the higher ones are wrong, the rate alone is told.
  std::vector<JudgedConfidence> upside_down;
  for (int i = 0; i < 100; ++i) upside_down.push_back({i % 2 ? 0.9 : 0.1, i % 2 == 0});
  const Calibration line = fitted(upside_down);
  CHECK(line.slope == 0);
  CHECK(line(0.9) == doctest::Approx(0.5));
}

TEST_CASE("reliability by hand") {
  const std::vector<JudgedConfidence> all = {{0.95, true},  {0.91, true}, {1, false},
                                             {0.05, false}, {0, false},   {0.5, true}};
  const auto result = reliability(all);
  REQUIRE_MESSAGE(result, why(result));
  REQUIRE(result->bins.size() == 10);
  CHECK(result->bins[9].n == 3);
  CHECK(result->bins[9].confidence == doctest::Approx(2.86 / 3));
  CHECK(result->bins[9].accuracy == doctest::Approx(2.0 / 3));
  CHECK(result->bins[0].n == 2);
  CHECK(result->bins[5].n == 1);
  CHECK(result->error == doctest::Approx((0.86 + 0.05 + 0.5) / 6));
}

TEST_CASE("what is no confidence is an error") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const double bad : {-0.1, 1.1, nan}) {
    const std::vector<JudgedConfidence> all = {{0.5, true}, {bad, true}};
    CHECK(fit_calibration(all).error().code == Errc::invalid_argument);
    CHECK(reliability(all).error().code == Errc::invalid_argument);
  }
  CHECK(fit_calibration({}).error().code == Errc::invalid_argument);
  CHECK(reliability({}, 0).error().code == Errc::invalid_argument);
  CHECK(reliability({}, 2'000'000).error().code == Errc::invalid_argument);
  CHECK(reliability({})->error == 0);
}

}  // namespace calibration_test
