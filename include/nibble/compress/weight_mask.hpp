// SPDX-License-Identifier: Apache-2.0
//
// Unstructured pruning: which weights of a matrix stay, as one bit each. Masks are chosen by
// magnitude or by Wanda's score, as a share of each row or as N of each M neighbours; steps that
// follow (rounding by columns, sparse formats, training) keep the other weights at zero.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "nibble/core/arena.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/text.hpp"
#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

// A bit for each weight of a matrix (n, k), set if the weight stays. Rows begin with a whole word;
// bits beyond k are zero.
class WeightMask {
 public:
  WeightMask() = default;
  // All weights go, or all stay. Sizes are not negative; n · k bits must fit in memory.
  WeightMask(Index n, Index k, bool stays = false)
      : n_(n), k_(k), words_(static_cast<std::size_t>(n * stride())) {
    if (!stays) return;
    for (Index i = 0; i < n; ++i) {
      for (Index j = 0; j < k; ++j) set(i, j);
    }
  }

  Index n() const noexcept { return n_; }
  Index k() const noexcept { return k_; }
  bool stays(Index row, Index column) const noexcept {
    return (word_at(row, column) >> (column % 64) & 1) != 0;
  }
  void set(Index row, Index column, bool stays = true) noexcept {
    const std::uint64_t bit = std::uint64_t{1} << (column % 64);
    std::uint64_t& w = word_at(row, column);
    w = stays ? w | bit : w & ~bit;
  }
  Index count() const noexcept {
    Index n = 0;
    for (const auto& [word] : words_) n += std::popcount(word);
    return n;
  }
  // Weights that stay, of all.
  double density() const noexcept {
    return n_ * k_ == 0 ? 1 : static_cast<double>(count()) / static_cast<double>(n_ * k_);
  }
  // Words of 64 columns, the lowest bit first: (n, ceil(k / 64)).
  const std::vector<Scalar<std::uint64_t>>& words() const noexcept { return words_; }
  // A byte for each weight, 1: stays. For steps that want (n, k) bytes.
  std::vector<std::uint8_t> bytes() const {
    std::vector<std::uint8_t> out(static_cast<std::size_t>(n_ * k_));
    for (Index i = 0; i < n_; ++i) {
      for (Index j = 0; j < k_; ++j) out[static_cast<std::size_t>(i * k_ + j)] = stays(i, j);
    }
    return out;
  }
  // Sets the weights (n, k) that go to zero.
  void apply(std::span<float> weights) const noexcept {
    NIBBLE_ASSERT(weights.size() == static_cast<std::size_t>(n_ * k_));
    for (Index i = 0; i < n_; ++i) {
      for (Index j = 0; j < k_; ++j) {
        if (!stays(i, j)) weights[static_cast<std::size_t>(i * k_ + j)] = 0;
      }
    }
  }

 private:
  Index stride() const noexcept { return (k_ + 63) / 64; }
  std::uint64_t& word_at(Index row, Index column) noexcept {
    return words_[static_cast<std::size_t>(row * stride() + column / 64)].value;
  }
  std::uint64_t word_at(Index row, Index column) const noexcept {
    return words_[static_cast<std::size_t>(row * stride() + column / 64)].value;
  }

  Index n_ = 0;
  Index k_ = 0;
  std::vector<Scalar<std::uint64_t>> words_;
};

// How many weights stay: a share of each row (rounded to the nearest number, half upwards), or `n`
// of each `m` neighbours in a row (m > 0; a shorter rest at the end of a row keeps n too).
struct MaskShare {
  double density = 0.5;
  Index n = 0;
  Index m = 0;
};

namespace detail {

inline Result<void> check_mask(std::span<const float> weights, Index n, Index k,
                               const MaskShare& share) {
  if (n < 1 || k < 1 || n > kMaxBytes / k || weights.size() != static_cast<std::size_t>(n * k)) {
    return Error{Errc::invalid_argument, "mask: " + to_text(weights.size()) + " weights are not (" +
                                             to_text(n) + ", " + to_text(k) + ")"};
  }
  const bool ok_share =
      share.m > 0 ? share.n >= 0 && share.n <= share.m : share.density >= 0 && share.density <= 1;
  if (!ok_share) {
    return Error{Errc::invalid_argument, "mask: a density of " + to_text(share.density) + " or " +
                                             to_text(share.n) + " of " + to_text(share.m)};
  }
  for (const float w : weights) {
    if (is_nan(static_cast<double>(w))) {
      return Error{Errc::malformed, "mask: a weight that is not a number"};
    }
  }
  return ok();
}

// Keeps the `count` highest scores of columns [begin, end) of a row; of equal ones the first.
inline void keep_highest(std::span<const double> scores, Index begin, Index end, Index count,
                         Index row, WeightMask& mask) {
  std::vector<Index> order(static_cast<std::size_t>(end - begin));
  std::iota(order.begin(), order.end(), begin);
  const auto better = [&](Index a, Index b) {
    const double x = scores[static_cast<std::size_t>(a)], y = scores[static_cast<std::size_t>(b)];
    return x != y ? x > y : a < b;
  };
  const auto middle = order.begin() + static_cast<std::ptrdiff_t>((std::min)(count, end - begin));
  if (middle != order.end()) std::nth_element(order.begin(), middle, order.end(), better);
  for (auto i = order.begin(); i != middle; ++i) mask.set(row, *i);
}

}  // namespace detail

// Wanda (Sun et al. 2024): a weight's score is |w| · ‖x‖₂, with the norm of its input over
// calibration rows; scores compete within an output row. norms: (k), ‖x_j‖ or anything
// proportional; empty: 1, selection by magnitude. Errors: invalid_argument (sizes, shares, norms
// that are negative or no numbers), malformed (a weight that is no number).
inline Result<WeightMask> choose_mask(std::span<const float> weights, Index n, Index k,
                                      const MaskShare& share, std::span<const double> norms = {}) {
  return catch_out_of_memory([&]() -> Result<WeightMask> {
    NIBBLE_CHECK(detail::check_mask(weights, n, k, share));
    if (!norms.empty() && norms.size() != static_cast<std::size_t>(k)) {
      return Error{Errc::invalid_argument,
                   "mask: norms of " + to_text(norms.size()) + " columns, not " + to_text(k)};
    }
    for (const double norm : norms) {
      if (!(norm >= 0) || !is_finite(norm)) {
        return Error{Errc::invalid_argument, "mask: a norm that is negative or not a number"};
      }
    }
    WeightMask mask(n, k);
    std::vector<double> scores(static_cast<std::size_t>(k));
    for (Index row = 0; row < n; ++row) {
      for (Index j = 0; j < k; ++j) {
        const auto i = static_cast<std::size_t>(j);
        scores[i] = std::fabs(static_cast<double>(weights[static_cast<std::size_t>(row * k + j)])) *
                    (norms.empty() ? 1 : norms[i]);
      }
      if (share.m == 0) {
        const auto count =
            static_cast<Index>(std::floor(share.density * static_cast<double>(k) + 0.5));
        detail::keep_highest(scores, 0, k, count, row, mask);
        continue;
      }
      for (Index j = 0; j < k; j += share.m) {
        detail::keep_highest(scores, j, (std::min)(k, j + share.m), share.n, row, mask);
      }
    }
    return mask;
  });
}

// √(Σx² / n) of each column, from the sums of an importance matrix. Errors: invalid_argument (no
// rows; a sum that is negative or no number).
inline Result<std::vector<double>> input_norms(std::span<const double> sums_of_squares,
                                               double n_rows) {
  if (!(n_rows > 0) || !is_finite(n_rows)) {
    return Error{Errc::invalid_argument, "mask: statistics of " + to_text(n_rows) + " rows"};
  }
  return catch_out_of_memory([&]() -> Result<std::vector<double>> {
    std::vector<double> norms;
    for (const double sum : sums_of_squares) {
      if (!(sum >= 0) || !is_finite(sum)) {
        return Error{Errc::invalid_argument, "mask: a sum of squares that is negative or infinite"};
      }
      norms.push_back(std::sqrt(sum / n_rows));
    }
    return norms;
  });
}

}}}  // namespace nibble::NIBBLE_ABI::compress
