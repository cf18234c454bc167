// SPDX-License-Identifier: Apache-2.0
//
// Formats of one and two bits with one scale: what rounding writes, against their rules in double.
// (vectors_test.cpp and read_only_test.cpp compare bytes and weights of others with ggml's and gguf's.)
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <initializer_list>
#include <limits>
#include <random>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/quant/format.hpp"

namespace few_bits_test {

using namespace nibble::quant;

namespace {

// Calls body(x, weights that a block of x stands for, its scale) for blocks of random weights.
template <class F, class Body>
void for_blocks(const Body& body) {
  std::mt19937 random(5);
  for (int round = 0; round < 50; ++round) {
    std::normal_distribution<float> normal(0.05f, 0.01f * static_cast<float>(round + 1));
    std::vector<float> x(F::kLength), made(F::kLength);
    for (float& v : x) v = normal(random);
    typename F::Block block;
    REQUIRE(F::quantize(x.data(), block));
    F::dequantize(block, made.data());
    body(x, made, double{nibble::to_f32(block.scale)});
  }
}

double rounded(double scale) {
  return double{nibble::to_f32(nibble::to_f16(static_cast<float>(scale)))};
}

// The squared error of x where each weight is the nearest of scale * level.
double error_with(const std::vector<float>& x, double scale, std::initializer_list<int> levels) {
  double sum = 0;
  for (const float v : x) {
    double least = std::numeric_limits<double>::infinity();
    for (const int level : levels) least = std::min(least, std::abs(double{v} - scale * level));
    sum += least * least;
  }
  return sum;
}

double error_of(const std::vector<float>& x, const std::vector<float>& made) {
  double sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    sum += (double{x[i]} - double{made[i]}) * (double{x[i]} - double{made[i]});
  }
  return sum;
}

double peak_of(const std::vector<float>& x) {
  return double{*std::max_element(x.begin(), x.end(), [](float a, float b) {
    return std::abs(a) < std::abs(b);
  })};
}

}  // namespace

TEST_CASE("Q1_0: the signs, times the mean of the magnitudes") {
  for_blocks<Q1_0>([](const auto& x, const auto& made, double scale) {
    double sum = 0;
    for (const float v : x) sum += std::abs(double{v});
    // Half a unit of f16, and 128 roundings of the sum in float.
    CHECK(std::abs(scale * 128 / sum - 1) <= 0x1p-11 + 0x1p-17);
    for (std::size_t i = 0; i < x.size(); ++i) CHECK(double{made[i]} == (x[i] < 0 ? -scale : scale));
  });
}

TEST_CASE("TQ2_0: as near to the largest magnitude, to zero, or to minus it as before it is rounded") {
  for_blocks<TQ2_0>([](const auto& x, const auto& made, double scale) {
    const double peak = std::abs(peak_of(x));
    CHECK(scale == rounded(peak));
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double share = double{x[i]} / peak;
      if (std::abs(std::abs(share) - 0.5) < 1e-6) continue;  // either, in float
      CHECK(double{made[i]} == scale * (share > 0.5 ? 1 : share < -0.5 ? -1 : 0));
    }
  });
}

TEST_CASE("Q2_0: of the two scales that hold the peak, the one that loses less") {
  int n_halves = 0;
  for_blocks<Q2_0>([&](const auto& x, const auto& made, double scale) {
    const double half = rounded(peak_of(x) / 2), whole = rounded(-peak_of(x));
    CHECK((scale == half || scale == whole));
    n_halves += scale == half;
    const double least =
        std::min(error_with(x, half, {-1, 0, 1, 2}), error_with(x, whole, {-1, 0, 1, 2}));
    CHECK(error_of(x, made) <= least * (1 + 1e-5));
  });
  CHECK(n_halves > 0);
}

}  // namespace few_bits_test
