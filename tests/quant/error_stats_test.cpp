// SPDX-License-Identifier: Apache-2.0
#include "nibble/quant/error_stats.hpp"

#include <limits>
#include <vector>

#include "doctest/doctest.h"

namespace error_stats_test {

using nibble::quant::ErrorStats;

namespace {
constexpr double kInf = std::numeric_limits<double>::infinity();
}

TEST_CASE("statistics worked out by hand") {
  const std::vector<float> x = {1.0f, -2.0f, 3.0f, 0.5f, 0.0f, -1.0f};
  const std::vector<float> y = {1.5f, -2.0f, 1.0f, 0.0f, 0.5f, 1.0f};
  // errors 0.5, 0, -2, -0.5, 0.5, 2: squares 0.25 + 4 + 0.25 + 0.25 + 4 = 8.75
  // signal 1 + 4 + 9 + 0.25 + 0 + 1 = 15.25
  ErrorStats stats;
  stats.add(x, y);
  CHECK(stats.count == 6);
  CHECK(stats.rmse() == doctest::Approx(1.2076147288491199));  // sqrt(8.75 / 6)
  CHECK(stats.max_abs == 2.0);
  CHECK(stats.snr_db() == doctest::Approx(2.4126178964628));  // 10 log10(15.25 / 8.75)
  CHECK(stats.sign_flips == 1);
  CHECK(stats.rounded_to_zero == 1);
  CHECK(stats.not_finite == 0);
}

TEST_CASE("merged statistics are those of all pairs") {
  std::vector<float> x(1000), y(1000);
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] = static_cast<float>(i % 17) - 8.0f;
    y[i] = x[i] + 0.25f * static_cast<float>(i % 5);
  }
  ErrorStats whole, first, second;
  whole.add(x, y);
  first.add(std::span(x).first(300), std::span(y).first(300));
  second.add(std::span(x).subspan(300), std::span(y).subspan(300));
  first.merge(second);
  first.merge(ErrorStats{});
  CHECK(first.count == whole.count);
  CHECK(first.rmse() == whole.rmse());  // sums of multiples of 1/16: exact in any order
  CHECK(first.snr_db() == whole.snr_db());
  CHECK(first.max_abs == whole.max_abs);
  CHECK(first.sign_flips == whole.sign_flips);
  CHECK(first.rounded_to_zero == whole.rounded_to_zero);
}

TEST_CASE("no pairs, no error, no signal") {
  ErrorStats stats;
  CHECK(stats.rmse() == 0.0);
  CHECK(stats.snr_db() == kInf);
  stats.add(3.0f, 3.0f);
  CHECK(stats.rmse() == 0.0);
  CHECK(stats.snr_db() == kInf);
  ErrorStats silent;
  silent.add(0.0f, -0.0f);
  CHECK(silent.snr_db() == kInf);
  CHECK(silent.rounded_to_zero == 0);
  silent.add(0.0f, 1.0f);
  CHECK(silent.snr_db() == -kInf);
  CHECK(silent.sign_flips == 0);
}

TEST_CASE("values that are not finite are counted, and spoil nothing") {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  ErrorStats stats;
  stats.add(1.0f, kNan);
  stats.add(static_cast<float>(kInf), 1.0f);
  CHECK(stats.rmse() == 0.0);
  stats.add(1.0f, 3.0f);
  CHECK(stats.count == 3);
  CHECK(stats.not_finite == 2);
  CHECK(stats.rmse() == 2.0);
  CHECK(stats.max_abs == 2.0);
}

TEST_CASE("sums keep small errors of large tensors, and the largest floats do not overflow") {
  ErrorStats stats;
  stats.add(1e4f, 0.0f);
  for (int i = 0; i < 100000; ++i) stats.add(0.0f, 1e-2f);
  // In f32 each of these errors would be lost.
  CHECK(stats.sum_squared_error - 1e8 == doctest::Approx(100000 * 1e-4).epsilon(1e-4));
  ErrorStats large;
  large.add(std::numeric_limits<float>::max(), -std::numeric_limits<float>::max());
  CHECK(large.rmse() == 2.0 * double{std::numeric_limits<float>::max()});
  CHECK(large.sign_flips == 1);
}

}  // namespace error_stats_test
