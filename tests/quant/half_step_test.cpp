// SPDX-License-Identifier: Apache-2.0
//
// The formats of 2 and 3 bits: codes that stand for odd multiples of half a step.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/quant/format.hpp"
#include "nibble/quant/quantize.hpp"
#include "oracle.hpp"

namespace half_step_test {
namespace {

using namespace nibble::quant;

// Weight j of a block by the table in block.hpp.
template <class F>
double documented(const typename F::Block& block, int j) {
  return test::weight<F>(block, j);
}

template <class F>
double error_of(const float* x, const typename F::Block& block) {
  double sum = 0;
  for (int j = 0; j < F::kLength; ++j) {
    const double difference = x[j] - documented<F>(block, j);
    sum += difference * difference;
  }
  return sum;
}

// The least error that a scale (any, not only of f16) allows, by trying many.
template <class F>
double least_error(const float* x) {
  double peak = 0;
  for (int j = 0; j < F::kLength; ++j) peak = std::max(peak, std::abs(double{x[j]}));
  double least = std::numeric_limits<double>::infinity();
  for (int step = 1; step <= 4000; ++step) {
    const double scale = peak * step / 4000;
    double sum = 0;
    for (int j = 0; j < F::kLength; ++j) {
      double nearest = std::numeric_limits<double>::infinity();
      for (int c = 0; c < 1 << F::kBits; ++c) {
        const double w = scale * (F::kBits == 3 ? 2 * c - 7 : 4 * c - 6);
        nearest = std::min(nearest, std::abs(x[j] - w));
      }
      sum += nearest * nearest;
    }
    least = std::min(least, sum);
  }
  return least;
}

}  // namespace

TEST_CASE_TEMPLATE("Blocks of few bits mean what their table says", F, Q3_H, Q2_H) {
  std::mt19937 random(1);
  for (int round = 0; round < 50; ++round) {
    typename F::Block block;
    block.scale = round_to<nibble::f16>(0.01f * static_cast<float>(round - 25));
    for (auto& byte : block.codes) byte = static_cast<std::uint8_t>(random());
    std::array<float, F::kLength> weights;
    dequantize_block<F>(block, weights.data());
    for (int j = 0; j < F::kLength; ++j) {
      CAPTURE(j);
      CHECK(weights[static_cast<std::size_t>(j)] == documented<F>(block, j));
    }
  }
}

TEST_CASE_TEMPLATE("Rounding to few bits is nearly as good as can be", F, Q3_H, Q2_H) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  double sum = 0, least = 0;
  for (int round = 0; round < 60; ++round) {
    std::array<float, F::kLength> x;
    for (float& v : x) v = normal(random) * (round % 3 == 0 ? 1e-3f : 10.0f);
    typename F::Block block;
    CHECK(quantize_block<F>(x.data(), block));
    const double scale = test::decode(block.scale);
    CHECK(scale > 0);
    const double error = error_of<F>(x.data(), block), best = least_error<F>(x.data());
    CHECK(error <= 1.2 * best);
    sum += error / best;
    least += 1;
    // Each code is the nearest to its weight.
    for (int j = 0; j < F::kLength; ++j) {
      const double step = scale * (F::kBits == 3 ? 2 : 4);
      const double w = documented<F>(block, j), top = scale * (F::kBits == 3 ? 7 : 6);
      const double v = x[static_cast<std::size_t>(j)];
      CHECK((std::abs(v - w) <= 0.5001 * step || (std::abs(v) > top && std::abs(w) == top)));
    }
  }
  CHECK(sum / least < 1.02);
}

TEST_CASE_TEMPLATE("Blocks of few bits of zeros, huge weights, and what is no number", F, Q3_H,
                   Q2_H) {
  std::array<float, F::kLength> x{};
  typename F::Block block;
  CHECK(quantize_block<F>(x.data(), block));
  for (int j = 0; j < F::kLength; ++j) CHECK(documented<F>(block, j) == 0);
  x[3] = std::numeric_limits<float>::quiet_NaN();
  CHECK(!quantize_block<F>(x.data(), block));
  x[3] = 3e38f;
  CHECK(!quantize_block<F>(x.data(), block));
  CHECK(std::isfinite(documented<F>(block, 3)));
  x[3] = 1e5f;  // its scale is below f16's largest number
  CHECK(quantize_block<F>(x.data(), block));
  CHECK(documented<F>(block, 3) > 1e4);
  x.fill(-1e-30f);
  CHECK(quantize_block<F>(x.data(), block));
  for (int j = 0; j < F::kLength; ++j) CHECK(std::abs(documented<F>(block, j)) < 1e-6);
}

}  // namespace half_step_test
