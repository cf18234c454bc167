// SPDX-License-Identifier: Apache-2.0
//
// Second moments for tests of what uses them, and the textbook's way with them: explicit inverses
// of what is left of H, in double.
#pragma once

#include <cmath>
#include <cstddef>
#include <random>
#include <utility>
#include <vector>

#include "nibble/core/view.hpp"

namespace test {

using nibble::Index;

// Σ x xᵀ of inputs that resemble each other, with columns of different size.
inline std::vector<double> random_moments(Index k, unsigned seed, Index n_inputs = 0) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  const Index n_factors = 6;
  std::vector<double> mixes(static_cast<std::size_t>(n_factors * k)),
      sizes(static_cast<std::size_t>(k));
  for (double& v : mixes) v = normal(random);
  for (double& v : sizes) v = std::exp(0.7 * normal(random));
  std::vector<double> h(static_cast<std::size_t>(k * k)), x(static_cast<std::size_t>(k));
  for (Index t = 0; t < (n_inputs > 0 ? n_inputs : 3 * k); ++t) {
    double factors[n_factors];
    for (double& v : factors) v = normal(random);
    for (Index j = 0; j < k; ++j) {
      double v = normal(random);
      for (Index f = 0; f < n_factors; ++f)
        v += factors[f] * mixes[static_cast<std::size_t>(f * k + j)];
      x[static_cast<std::size_t>(j)] = v * sizes[static_cast<std::size_t>(j)];
    }
    for (std::size_t i = 0; i < x.size(); ++i) {
      for (std::size_t j = 0; j < x.size(); ++j) h[i * x.size() + j] += x[i] * x[j];
    }
  }
  return h;
}

inline std::vector<double> damped(std::vector<double> h, Index k, double damping) {
  double mean = 0;
  const auto n = static_cast<std::size_t>(k);
  for (std::size_t i = 0; i < n; ++i) mean += h[i * n + i] / static_cast<double>(k);
  for (std::size_t i = 0; i < n; ++i) h[i * n + i] += damping * mean;
  return h;
}

// By Gauss and Jordan, with pivots from the largest down.
inline std::vector<double> inverse(std::vector<double> a, std::size_t n) {
  std::vector<double> b(n * n);
  for (std::size_t i = 0; i < n; ++i) b[i * n + i] = 1;
  for (std::size_t c = 0; c < n; ++c) {
    std::size_t pivot = c;
    for (std::size_t r = c; r < n; ++r) {
      if (std::abs(a[r * n + c]) > std::abs(a[pivot * n + c])) pivot = r;
    }
    for (std::size_t j = 0; j < n; ++j) {
      std::swap(a[c * n + j], a[pivot * n + j]);
      std::swap(b[c * n + j], b[pivot * n + j]);
    }
    const double scale = 1 / a[c * n + c];
    for (std::size_t j = 0; j < n; ++j) a[c * n + j] *= scale, b[c * n + j] *= scale;
    for (std::size_t r = 0; r < n; ++r) {
      if (r == c || a[r * n + c] == 0) continue;
      const double amount = a[r * n + c];
      for (std::size_t j = 0; j < n; ++j) {
        a[r * n + j] -= amount * a[c * n + j];
        b[r * n + j] -= amount * b[c * n + j];
      }
    }
  }
  return b;
}

// The inverses of H without its first 0, 1, … columns: of each its first row.
inline std::vector<std::vector<double>> first_rows(const std::vector<double>& h, Index k) {
  std::vector<std::vector<double>> rows;
  for (Index begin = 0; begin < k; ++begin) {
    const auto n = static_cast<std::size_t>(k - begin);
    std::vector<double> rest(n * n);
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = 0; j < n; ++j) {
        rest[i * n + j] = h[(i + static_cast<std::size_t>(begin)) * static_cast<std::size_t>(k) +
                            j + static_cast<std::size_t>(begin)];
      }
    }
    auto inverted = inverse(std::move(rest), n);
    inverted.resize(n);
    rows.push_back(std::move(inverted));
  }
  return rows;
}

}  // namespace test
