// SPDX-License-Identifier: Apache-2.0
#include "nibble/train/schedule.hpp"

#include <cmath>
#include <cstdlib>
#include <limits>

#include "doctest/doctest.h"

namespace schedule_test {

using nibble::train::Schedule;
using nibble::train::detail::exact_text, nibble::train::detail::with_point;

namespace {

constexpr Schedule kCosine{Schedule::Shape::cosine, 2e-3, 1e-4, 10, 110};
static_assert(kCosine.at(10) == 2e-3);
static_assert(kCosine.at(0) > 0 && kCosine.at(0) < kCosine.at(1));
static_assert(kCosine.at(110) == 1e-4 && kCosine.at(1000) == 1e-4);

}  // namespace

TEST_CASE("the cosine is the one of the C library") {
  for (int i = 0; i <= 1000; ++i) {
    const double x = i / 1000.0;
    const double want = std::cos(3.14159265358979323846 * x);
    CHECK(std::fabs(nibble::train::detail::cosine_of_turn(x) - want) < 1e-15);
  }
}

TEST_CASE("warm-up, cosine, line, constant") {
  for (std::uint64_t step = 0; step < 10; ++step) {
    CHECK(kCosine.at(step) == doctest::Approx(2e-3 * static_cast<double>(step + 1) / 11));
  }
  CHECK(kCosine.at(60) == doctest::Approx((2e-3 + 1e-4) / 2).epsilon(1e-12));
  CHECK(kCosine.at(35) == doctest::Approx(1e-4 + 1.9e-3 * (1 + std::sqrt(0.5)) / 2).epsilon(1e-12));
  for (std::uint64_t step = 10; step < 110; ++step) CHECK(kCosine.at(step) > kCosine.at(step + 1));

  Schedule line = kCosine;
  line.shape = Schedule::Shape::linear;
  CHECK(line.at(10) == 2e-3);
  CHECK(line.at(35) == doctest::Approx(2e-3 - 1.9e-3 / 4).epsilon(1e-12));
  CHECK(line.at(109) == doctest::Approx(1e-4 + 1.9e-3 / 100).epsilon(1e-12));
  CHECK(line.at(110) == 1e-4);

  Schedule constant = kCosine;
  constant.shape = Schedule::Shape::constant;
  CHECK(constant.at(9) < 2e-3);
  CHECK(constant.at(10) == 2e-3);
  CHECK(constant.at(5000) == 2e-3);

  const Schedule only_warm_up{Schedule::Shape::linear, 1, 0.5, 4, 4};
  CHECK(only_warm_up.at(3) == doctest::Approx(0.8));
  CHECK(only_warm_up.at(4) == 0.5);
}

TEST_CASE("parameters are checked") {
  using Shape = Schedule::Shape;
  CHECK(kCosine.validate());
  CHECK(Schedule{}.validate());
  CHECK(!Schedule{Shape::linear, -1, 0, 0, 1}.validate());
  CHECK(!Schedule{Shape::linear, std::nan(""), 0, 0, 1}.validate());
  CHECK(!Schedule{Shape::linear, std::numeric_limits<double>::infinity(), 0, 0, 1}.validate());
  CHECK(!Schedule{Shape::linear, 1, -1, 0, 1}.validate());
  CHECK(!Schedule{Shape::linear, 1, 2, 0, 1}.validate());
  CHECK(!Schedule{Shape::linear, 1, 0, 0, 0}.validate());
  const auto long_warm_up = Schedule{Shape::linear, 1, 0, 5, 4}.validate();
  REQUIRE(!long_warm_up);
  CHECK(long_warm_up.error().message == "schedule: a warm-up of 5 steps in a run of 4");
}

TEST_CASE("numbers come back from their text, whatever point the locale has") {
  for (const double x : {0.1, -1.0 / 3, 1e-300, 123456789.0, 0.0, 2e25}) {
    CHECK(std::strtod(exact_text(x).c_str(), nullptr) == x);
    const auto narrow = static_cast<float>(x);
    CHECK(std::strtof(exact_text(static_cast<double>(narrow), 9).c_str(), nullptr) == narrow);
  }
  CHECK(exact_text(0.5) == "0.5");
  CHECK(exact_text(-1e-7) == "-9.9999999999999995e-08");
  CHECK(with_point("-1,5e-05") == "-1.5e-05");
  CHECK(with_point("1\xd9\xab"
                   "5") == "1.5");
  CHECK(with_point("15") == "15");
}

TEST_CASE("fingerprints differ where schedules do") {
  Schedule other = kCosine;
  CHECK(other.fingerprint() == kCosine.fingerprint());
  other.peak = std::nextafter(other.peak, 1);
  CHECK(other.fingerprint() != kCosine.fingerprint());
}

}  // namespace schedule_test
