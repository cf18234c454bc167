// SPDX-License-Identifier: Apache-2.0
//
// Unstructured pruning: which weights of a matrix (n, k) stay. A mask has a byte for each, 1: it
// stays, as rounding by columns takes it (MaskRule in mask_rule.hpp). Masks are chosen by
// magnitude or by Wanda's score, as a share of each row or as N of each M neighbours; steps that
// follow keep the other weights at zero.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "nibble/core/arena.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/text.hpp"
#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

// How many weights stay: a share of each row (rounded to the nearest number, half upwards), or `n`
// of each `m` neighbours in a row (m > 0; a shorter rest at the end of a row keeps n too).
struct MaskShare {
  double kept = 0.5;
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
  const bool has_share =
      share.m == 0 ? share.kept >= 0 && share.kept <= 1 : share.n >= 0 && share.n <= share.m;
  if (!has_share) {
    return Error{Errc::invalid_argument, "mask: a share of " + to_text(share.kept) + " or " +
                                             to_text(share.n) + " of " + to_text(share.m)};
  }
  for (const float w : weights) {
    if (!is_finite(static_cast<double>(w))) {
      return Error{Errc::malformed, "mask: a weight that is not a finite number"};
    }
  }
  return ok();
}

// Keeps the `count` highest scores of columns [begin, end) of a row in its mask; of equal ones the
// first. order: scratch memory.
inline void keep_highest(std::span<const double> scores, Index begin, Index end, Index count,
                         std::vector<Scalar<Index>>& order, std::span<std::uint8_t> mask) {
  order.clear();
  for (Index j = begin; j < end; ++j) order.push_back({j});
  const auto better = [&](Scalar<Index> a, Scalar<Index> b) {
    const double x = scores[static_cast<std::size_t>(a.value)];
    const double y = scores[static_cast<std::size_t>(b.value)];
    return x != y ? x > y : a.value < b.value;
  };
  const auto middle = order.begin() + static_cast<std::ptrdiff_t>((std::min)(count, end - begin));
  if (middle != order.end()) std::nth_element(order.begin(), middle, order.end(), better);
  for (auto i = order.begin(); i != middle; ++i) mask[static_cast<std::size_t>(i->value)] = 1;
}

}  // namespace detail

// Wanda (Sun et al. 2024): a weight's score is |w| · ‖x‖₂, with the norm of its input over
// calibration rows; scores compete within an output row. norms: (k), ‖x_j‖ or anything
// proportional, as the square roots of an importance matrix are; empty: 1, selection by magnitude.
// Errors: invalid_argument (sizes, shares, norms that are negative or not finite), malformed (a
// weight that is not finite).
inline Result<std::vector<std::uint8_t>> choose_mask(std::span<const float> weights, Index n,
                                                     Index k, const MaskShare& share,
                                                     std::span<const double> norms = {}) {
  return catch_out_of_memory([&]() -> Result<std::vector<std::uint8_t>> {
    NIBBLE_CHECK(detail::check_mask(weights, n, k, share));
    if (!norms.empty() && norms.size() != static_cast<std::size_t>(k)) {
      return Error{Errc::invalid_argument,
                   "mask: norms of " + to_text(norms.size()) + " columns, not " + to_text(k)};
    }
    for (const double norm : norms) {
      if (!(norm >= 0) || !is_finite(norm)) {
        return Error{Errc::invalid_argument, "mask: a norm that is negative or not finite"};
      }
    }
    std::vector<std::uint8_t> mask(weights.size());
    std::vector<Scalar<double>> products(static_cast<std::size_t>(k));
    const std::span<double> scores(values(products), products.size());
    std::vector<Scalar<Index>> order;
    for (Index row = 0; row < n; ++row) {
      for (Index j = 0; j < k; ++j) {
        const auto i = static_cast<std::size_t>(j);
        scores[i] = std::fabs(static_cast<double>(weights[static_cast<std::size_t>(row * k + j)])) *
                    (norms.empty() ? 1 : norms[i]);
      }
      const auto of_row =
          std::span(mask).subspan(static_cast<std::size_t>(row * k), static_cast<std::size_t>(k));
      if (share.m == 0) {
        const auto count =
            static_cast<Index>(std::floor(share.kept * static_cast<double>(k) + 0.5));
        detail::keep_highest(scores, 0, k, count, order, of_row);
        continue;
      }
      for (Index j = 0; j < k; j += share.m) {
        detail::keep_highest(scores, j, (std::min)(k, j + share.m), share.n, order, of_row);
      }
    }
    return mask;
  });
}

// Sets the weights that go to zero.
inline void apply_mask(std::span<const std::uint8_t> mask, std::span<float> weights) noexcept {
  NIBBLE_ASSERT(mask.size() == weights.size());
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (mask[i] == 0) weights[i] = 0;
  }
}

}}}  // namespace nibble::NIBBLE_ABI::compress
