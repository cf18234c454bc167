// SPDX-License-Identifier: Apache-2.0
#include "nibble/compress/equalize.hpp"

#include <cmath>
#include <random>
#include <vector>

#include "doctest/doctest.h"
#include "why.hpp"

namespace equalize_test {

using namespace nibble;
using namespace nibble::compress;
using quant::Format;

namespace {

constexpr Index kColumns = 96;

struct Layer {
  std::vector<float> first, second;  // (5, k), (300, k)
  std::vector<float> gain;           // (k)
  std::vector<float> magnitudes, squares;
  std::vector<double> moments;
  std::vector<std::vector<double>> inputs;

  explicit Layer(unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const auto k = static_cast<std::size_t>(kColumns);
    for (std::size_t i = 0; i < 5 * k; ++i) first.push_back(0.05f * normal(random));
    for (std::size_t i = 0; i < 300 * k; ++i) second.push_back(0.05f * normal(random));
    magnitudes.resize(k);
    squares.resize(k);
    moments.resize(k * k);
    for (std::size_t j = 0; j < k; ++j) {
      gain.push_back(std::exp(0.5f * normal(random)) * (j % 31 == 7 ? 20.0f : 1.0f));
    }
    constexpr std::size_t kInputs = 200;
    for (std::size_t t = 0; t < kInputs; ++t) {
      std::vector<double> x(k);
      for (std::size_t j = 0; j < k; ++j) x[j] = double{gain[j] * normal(random)};
      for (std::size_t i = 0; i < k; ++i) {
        magnitudes[i] += static_cast<float>(std::abs(x[i]) / kInputs);
        squares[i] += static_cast<float>(x[i] * x[i]);
        for (std::size_t j = 0; j < k; ++j) moments[i * k + j] += x[i] * x[j];
      }
      inputs.push_back(std::move(x));
    }
  }

  std::vector<MatrixWeights> matrices() const { return {{first, 5}, {second, 300}}; }

  // Σ (y - y')² of the inputs, for weights that are rounded with scales.
  double error(const std::vector<float>& w, std::span<const float> scales, Index step) const {
    const auto k = static_cast<std::size_t>(kColumns);
    std::vector<float> scaled(k), importance(k);
    std::vector<std::byte> row(*quant::row_bytes(Format::q4_0, k));
    double sum = 0;
    for (std::size_t r = 0; r < w.size() / k; r += static_cast<std::size_t>(step)) {
      for (std::size_t j = 0; j < k; ++j) {
        scaled[j] = w[r * k + j] * scales[j];
        importance[j] = squares[j] / (scales[j] * scales[j]);
      }
      REQUIRE(quant::search_row(Format::q4_0, scaled, importance, row));
      REQUIRE(quant::row_to_f32(Format::q4_0, row, scaled));
      for (const auto& x : inputs) {
        double y = 0;
        for (std::size_t j = 0; j < k; ++j) {
          y += x[j] * (double{scaled[j]} / double{scales[j]} - double{w[r * k + j]});
        }
        sum += y * y;
      }
    }
    return sum;
  }
};

std::span<const float> span_of(const Equalization& found) {
  return {values(found.scales), found.scales.size()};
}

}  // namespace

TEST_CASE("equalization lowers the error of products that it measures") {
  for (unsigned seed = 1; seed <= 3; ++seed) {
    const Layer layer(seed);
    InlineExecutor executor;
    const auto matrices = layer.matrices();
    const auto found =
        find_equalization(matrices, kColumns, {layer.magnitudes, layer.squares, layer.moments},
                          {.max_rows = 300}, executor);
    REQUIRE_MESSAGE(found, test::why(found));
    const std::vector<float> ones(static_cast<std::size_t>(kColumns), 1.0f);
    const double before = layer.error(layer.first, ones, 1) + layer.error(layer.second, ones, 1);
    const double after = layer.error(layer.first, span_of(*found), 1) +
                         layer.error(layer.second, span_of(*found), 1);
    MESSAGE("alpha ", found->alpha, ": ", after / before);
    CHECK(found->error_before == doctest::Approx(before).epsilon(1e-4));
    CHECK(found->error == doctest::Approx(after).epsilon(1e-4));
    CHECK(after < 0.9 * before);
  }
}

TEST_CASE("the scales are those of the paper, and of all exponents the best is taken") {
  const Layer layer(4);
  InlineExecutor executor;
  const std::vector<MatrixWeights> matrices = {{layer.second, 300}};
  const auto k = static_cast<std::size_t>(kColumns);
  const auto found =
      find_equalization(matrices, kColumns, {layer.magnitudes, layer.squares, layer.moments},
                        {.n_steps = 4, .max_rows = 100}, executor);
  REQUIRE_MESSAGE(found, test::why(found));
  double least = layer.error(layer.second, std::vector<float>(k, 1.0f), 3);
  std::vector<float> best(k, 1.0f);
  for (const double alpha : {0.0, 0.25, 0.5, 0.75}) {
    std::vector<double> s(k);
    double low = 1e30, high = 0;
    for (std::size_t j = 0; j < k; ++j) {
      double mean = 0;
      for (std::size_t r = 0; r < 300; ++r) {
        double top = 0;
        for (std::size_t i = j / 32 * 32; i < j / 32 * 32 + 32; ++i) {
          top = std::max(top, std::abs(double{layer.second[r * k + i]}));
        }
        mean += std::abs(double{layer.second[r * k + j]}) / top / 300;
      }
      s[j] = std::pow(double{layer.magnitudes[j]}, alpha) / std::pow(mean, 1 - alpha);
      low = std::min(low, s[j]);
      high = std::max(high, s[j]);
    }
    std::vector<float> scales(k);
    for (std::size_t j = 0; j < k; ++j)
      scales[j] = static_cast<float>(s[j] / std::sqrt(low * high));
    const double error = layer.error(layer.second, scales, 3);
    if (error < least) least = error, best = scales;
  }
  CHECK(found->error == doctest::Approx(least).epsilon(1e-3));
  for (std::size_t j = 0; j < k; ++j) {
    CHECK(span_of(*found)[j] == doctest::Approx(best[j]).epsilon(1e-5));
  }
}

TEST_CASE("scales fold into a gain or rows, and nothing changes") {
  const Layer layer(5);
  const auto k = static_cast<std::size_t>(kColumns);
  std::vector<float> scales(k), gain = layer.gain, w = layer.first;
  for (std::size_t j = 0; j < k; ++j) scales[j] = 0.25f + static_cast<float>(j % 7);
  divide_vector(gain, scales);
  multiply_columns(w, scales);
  for (std::size_t i = 0; i < w.size(); ++i) {
    CHECK(w[i] * gain[i % k] == doctest::Approx(layer.first[i] * layer.gain[i % k]).epsilon(1e-6));
  }
  // (k, 5): rows are the inputs' columns.
  std::vector<float> up(layer.first), down(layer.second);
  divide_rows(up, scales);
  multiply_columns(down, scales);
  for (std::size_t j = 0; j < k; ++j) {
    for (std::size_t c = 0; c < 5; ++c) {
      CHECK(up[j * 5 + c] * down[3 * k + j] ==
            doctest::Approx(layer.first[j * 5 + c] * layer.second[3 * k + j]).epsilon(1e-6));
    }
  }
}

TEST_CASE("equalization refuses what does not fit") {
  const Layer layer(6);
  InlineExecutor executor;
  const auto matrices = layer.matrices();
  const auto code = [&](const InputMoments& inputs, const EqualizationOptions& options,
                        Index k = kColumns) {
    const auto found = find_equalization(matrices, k, inputs, options, executor);
    REQUIRE(!found);
    return found.error().code;
  };
  const InputMoments good{layer.magnitudes, layer.squares, {}};
  CHECK(code(good, {}, 64) == Errc::invalid_argument);
  CHECK(code({layer.magnitudes, {}, {}}, {}) == Errc::invalid_argument);
  CHECK(code({layer.magnitudes, layer.squares, std::span(layer.moments).first(96)}, {}) ==
        Errc::invalid_argument);
  CHECK(code(good, {.format = Format::f16}) == Errc::unsupported);
  CHECK(code(good, {.format = Format::q4_0_bitmask}) == Errc::unsupported);
  for (const double bad : {double{INFINITY}, double{NAN}}) {
    std::vector<double> moments = layer.moments;
    moments[kColumns + 3] = bad;
    CHECK(code({layer.magnitudes, layer.squares, moments}, {}) == Errc::malformed);
  }
  CHECK(code(good, {.n_steps = 0}) == Errc::invalid_argument);
  const auto without = find_equalization({}, kColumns, good, {}, executor);
  CHECK(!without);
}

}  // namespace equalize_test
