// SPDX-License-Identifier: Apache-2.0
//
// A histogram of numbers whose range nobody knows beforehand, in memory of a fixed size. Bins are
// equally wide on both sides of zero; the range is a power of two, and doubles by merging pairs of
// bins when a larger number comes. So a bin holds exactly what it would hold had the range been
// known from the start, and the order of the numbers does not matter.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "nibble/core/scalar.hpp"
#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

class Histogram {
 public:
  static constexpr Index kDefaultBins = 2048;
  static constexpr Index kMinBins = 256;

  // The number of bins of each side: a power of two, at least kMinBins.
  explicit Histogram(Index n_bins = kDefaultBins)
      : n_bins_(n_bins), counts_(2 * static_cast<std::size_t>(n_bins)) {
    NIBBLE_ASSERT(n_bins >= kMinBins && (n_bins & (n_bins - 1)) == 0);
  }

  // Counts the numbers. Those that are not finite are only counted as such.
  void add(std::span<const float> x) noexcept {
    float largest = 0;
    for (const float v : x) {
      const float size = v < 0 ? -v : v;  // of NaN: itself, which is larger than nothing
      if (size > largest && is_finite(static_cast<double>(size))) largest = size;
    }
    if (largest > 0) grow_to_hold(largest);
    const double per_bin = 1 / bin_width();
    std::uint64_t* const above = values(counts_);
    std::uint64_t* const below = above + n_bins_;
    for (const float v : x) {
      if (!is_finite(static_cast<double>(v))) {
        ++n_not_finite_;
      } else if (v > 0) {
        ++above[static_cast<Index>(static_cast<double>(v) * per_bin)];
      } else if (v < 0) {
        ++below[static_cast<Index>(static_cast<double>(-v) * per_bin)];
      } else {
        ++n_zeros_;
      }
    }
  }

  // Adds the counts of `other`, which must have the same number of bins.
  void merge(const Histogram& other) noexcept {
    NIBBLE_ASSERT(n_bins_ == other.n_bins_);
    n_zeros_ += other.n_zeros_;
    n_not_finite_ += other.n_not_finite_;
    if (!other.has_range_) return;
    grow_to(other.exponent_);
    const int shift = exponent_ - other.exponent_;
    for (Index side = 0; side < 2; ++side) {
      for (Index i = 0; i < n_bins_; ++i) {
        // Beyond 62 doublings everything is in the first bin.
        const Index to = shift > 62 ? 0 : i >> shift;
        at(side * n_bins_ + to) += other.at(side * n_bins_ + i);
      }
    }
  }

  Index n_bins() const noexcept { return n_bins_; }
  // The width of a bin; those of numbers above zero are [i, i + 1) · width.
  double bin_width() const noexcept {
    return std::ldexp(1.0, exponent_) / static_cast<double>(n_bins_);
  }
  // How many numbers are in the bins of each side, in bin 0 … n_bins − 1 by size. Zeros are in
  // none.
  std::span<const std::uint64_t> above_zero() const noexcept {
    return {values(counts_), static_cast<std::size_t>(n_bins_)};
  }
  std::span<const std::uint64_t> below_zero() const noexcept {
    return {values(counts_) + n_bins_, static_cast<std::size_t>(n_bins_)};
  }
  std::uint64_t n_zeros() const noexcept { return n_zeros_; }
  std::uint64_t n_not_finite() const noexcept { return n_not_finite_; }
  // All finite numbers.
  std::uint64_t n_values() const noexcept {
    std::uint64_t n = n_zeros_;
    for (const auto& count : counts_) n += count.value;
    return n;
  }
  std::size_t bytes() const noexcept { return counts_.capacity() * sizeof(counts_[0]); }

 private:
  std::uint64_t& at(Index i) noexcept { return counts_[static_cast<std::size_t>(i)].value; }
  std::uint64_t at(Index i) const noexcept { return counts_[static_cast<std::size_t>(i)].value; }

  void grow_to_hold(float size) noexcept {
    int exponent = 0;
    std::frexp(static_cast<double>(size), &exponent);  // size < 2^exponent
    grow_to(exponent);
  }
  void grow_to(int exponent) noexcept {
    if (!has_range_) exponent_ = exponent;
    has_range_ = true;
    // After so many doublings all numbers are in the first bin and stay there.
    if (exponent - exponent_ > 64) exponent_ = halve_all(exponent);
    for (; exponent_ < exponent; ++exponent_) halve();
  }
  int halve_all(int exponent) noexcept {
    for (int i = 0; i < 64; ++i) halve();
    return exponent;
  }
  void halve() noexcept {
    for (Index side = 0; side < 2; ++side) {
      const Index first = side * n_bins_;
      for (Index i = 0; i < n_bins_ / 2; ++i) {
        at(first + i) = at(first + 2 * i) + at(first + 2 * i + 1);
      }
      for (Index i = n_bins_ / 2; i < n_bins_; ++i) at(first + i) = 0;
    }
  }

  Index n_bins_;
  int exponent_ = 0;  // the range is 2^exponent_
  bool has_range_ = false;
  std::uint64_t n_zeros_ = 0;
  std::uint64_t n_not_finite_ = 0;
  std::vector<Scalar<std::uint64_t>> counts_;  // (2, n_bins): above zero, below
};

}}}  // namespace nibble::NIBBLE_ABI::compress
