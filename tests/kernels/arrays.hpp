// SPDX-License-Identifier: Apache-2.0
//
// Shared by the tests of elementwise kernels: arrays at odd addresses between guards, all lengths
// that matter, and a comparison of results that handles NaN, infinity and the allowed error.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "nibble/core/executor.hpp"

namespace nibble_test {

using Floats = std::vector<float>;
using Exact = std::vector<long double>;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr long double kU = 0x1p-24L;  // half the distance from 1 to the next float

// The distance between floats around x.
inline long double ulp(long double x) {
  int exponent = 0;
  std::frexp(x, &exponent);
  return std::ldexp(1.0L, std::max(exponent - 24, -149));
}

// The largest error in units of the allowed error: a result is right if this is at most 1. Infinite
// if a NaN or infinity is missing or unexpected, or if the lengths differ.
inline double worst(const Floats& got, const Exact& exact, const Exact& allowed) {
  if (got.size() != exact.size() || exact.size() != allowed.size()) return kInf;
  double result = 0.0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const float rounded = static_cast<float>(exact[i]);
    if (std::isnan(rounded) || std::isinf(rounded)) {
      const bool same = std::isnan(rounded) ? std::isnan(got[i]) : got[i] == rounded;
      if (!same) return kInf;
      continue;
    }
    if (!std::isfinite(got[i])) return kInf;
    const long double error = std::fabs(static_cast<long double>(got[i]) - exact[i]);
    if (error > 0) result = std::max(result, static_cast<double>(error / allowed[i]));
  }
  return result;
}

inline Floats random_floats(std::size_t n, float low, float high, unsigned seed = 1) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(low, high);
  Floats x(n);
  for (float& v : x) v = uniform(random);
  return x;
}

// n floats that start `offset` floats after the start of an allocation, with guards on both sides.
class Guarded {
 public:
  Guarded(std::size_t n, std::size_t offset)
      : storage_(n + offset + 4, kGuard), n_(n), at_(offset) {}
  Guarded(const Floats& x, std::size_t offset) : Guarded(x.size(), offset) {
    std::copy(x.begin(), x.end(), storage_.begin() + static_cast<std::ptrdiff_t>(at_));
  }
  float* data() { return storage_.data() + at_; }
  Floats values() const {
    const auto begin = storage_.begin() + static_cast<std::ptrdiff_t>(at_);
    return {begin, begin + static_cast<std::ptrdiff_t>(n_)};
  }
  bool guards_intact() const {
    for (std::size_t i = 0; i < storage_.size(); ++i) {
      if ((i < at_ || i >= at_ + n_) && storage_[i] != kGuard) return false;
    }
    return true;
  }

 private:
  static constexpr float kGuard = 12345.678f;
  Floats storage_;
  std::size_t n_;
  std::size_t at_;
};

// Calls body(n, offset) for every length from 0 to more than three of the longest vectors (16
// floats), at several addresses.
template <class Body>
void for_each_length(Body&& body) {
  for (std::size_t n = 0; n <= 3 * 16 + 1; ++n) {
    for (std::size_t offset = 0; offset < 3; ++offset) body(n, offset);
  }
}

// Runs tasks backwards with changing worker numbers: neither may matter.
class BackwardExecutor final : public nibble::Executor {
 public:
  explicit BackwardExecutor(nibble::Index n_workers = 3) : n_workers_(n_workers) {}
  nibble::Index n_workers() const noexcept override { return n_workers_; }
  void parallel_for(nibble::Index n_tasks, Task task) noexcept override {
    for (nibble::Index i = n_tasks; i-- > 0;) task(i, i % n_workers_);
    n_tasks_run += n_tasks;
  }
  nibble::Index n_tasks_run = 0;

 private:
  nibble::Index n_workers_;
};

}  // namespace nibble_test
