// SPDX-License-Identifier: Apache-2.0
//
// Matrices of low rank: a weight W (n, k) as A · B with A (n, r) and B (r, k), or the error of a
// quantized weight, W − Q(W) ≈ A · B, which is then added to it. With statistics of the inputs the
// approximation is the best for the outputs, not for the weights.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nibble/compress/dense_algebra.hpp"
#include "nibble/core/arena.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/text.hpp"
#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

// How the rank is chosen; the first that is given. It is rounded up to a multiple and is at most
// the smaller side of the matrix (rounded down to a multiple, if that is at least one).
struct RankOptions {
  Index rank = 0;    // given
  double ratio = 0;  // the factors have about this share of the matrix' weights: r (n + k) = q n k
  // The least rank that keeps this share of Σσ² (up to max_rank).
  double energy = 0;
  // With energy: how many singular values are computed. 0: all, on one thread; beyond some hundred
  // rows and columns that takes long (kExactSide), so that a number should be given.
  Index max_rank = 0;
  // The block length of A's format: its rows are r long.
  Index multiple = 1;
  // Share of the mean diagonal that is added to Σxxᵀ; raised as in damped_factor().
  double damping = 0.01;
};

struct LowRank {
  Index n = 0, k = 0, rank = 0;
  std::vector<Scalar<float>> a;                 // (n, rank)
  std::vector<Scalar<float>> b;                 // (rank, k)
  std::vector<Scalar<double>> singular_values;  // those that were computed, descending
  // ‖(W − AB)·S‖ / ‖W·S‖ before A and B are rounded, with S = 1 without statistics.
  double relative_error = 0;
};

namespace detail {

// The number of columns that is a multiple and nearest from above, within the matrix.
inline Index rounded_rank(Index rank, Index multiple, Index side) noexcept {
  rank = (std::min)((std::max)(rank, Index{1}), side);
  rank = (rank + multiple - 1) / multiple * multiple;
  return rank <= side ? rank : (std::max)(side / multiple * multiple, multiple);
}

inline Result<void> check_rank_options(std::span<const float> weights, Index n, Index k,
                                       std::span<const double> moments, const RankOptions& o) {
  if (n < 1 || k < 1 || n > kMaxBytes / 8 / k ||
      weights.size() != static_cast<std::size_t>(n * k)) {
    return Error{Errc::invalid_argument, "low rank: " + to_text(weights.size()) +
                                             " weights are not (" + to_text(n) + ", " + to_text(k) +
                                             ")"};
  }
  if (!moments.empty() &&
      (k > kMaxBytes / 8 / k || moments.size() != static_cast<std::size_t>(k * k))) {
    return Error{Errc::invalid_argument, "low rank: second moments of " + to_text(moments.size()) +
                                             " numbers are not (" + to_text(k) + ", " + to_text(k) +
                                             ")"};
  }
  const bool is_given =
      o.rank > 0 || (o.ratio > 0 && o.ratio <= 1) || (o.energy > 0 && o.energy <= 1);
  if (!is_given || o.rank < 0 || o.multiple < 1 || o.max_rank < 0 || !(o.damping >= 0) ||
      !is_finite(o.damping)) {
    return Error{Errc::invalid_argument,
                 "low rank: a rank, a ratio up to 1 or an energy up to 1 is needed, and a multiple "
                 "of at least 1 and a damping of at least 0"};
  }
  // The rank is at most the smaller side, or the multiple.
  if (o.multiple > kMaxBytes / 8 / (std::max)(n, k)) {
    return Error{Errc::limit,
                 "low rank: factors of a rank of " + to_text(o.multiple) + " are too large"};
  }
  return ok();
}

// S of S · Sᵀ = Σxxᵀ / (its mean diagonal) + damping.
inline Result<DenseMatrix> whitening(std::span<const double> moments, Index k, double damping,
                                     Executor& executor) {
  DenseMatrix s(k, k);
  const auto factor = [&]() -> Result<void> {
    NIBBLE_TRY(mean, mean_second_moment(moments, k));
    const auto at = [&](Index i, Index j) {
      return moments[static_cast<std::size_t>(i * k + j)] / mean;
    };
    NIBBLE_CHECK(damped_factor(at, damping, s, executor));
    return ok();
  };
  Result<void> done = factor();
  if (!done) return std::move(done).error().in("low rank");
  return s;
}

// How many singular values to compute, and which rank to take of them.
inline Index wanted_rank(Index n, Index k, const RankOptions& o) noexcept {
  const Index side = (std::min)(n, k);
  if (o.rank > 0) return rounded_rank(o.rank, o.multiple, side);
  if (o.ratio > 0) {
    const auto n_k = static_cast<double>(n) * static_cast<double>(k);
    const auto rank = static_cast<Index>(o.ratio * n_k / static_cast<double>(n + k));
    return rounded_rank(rank, o.multiple, side);
  }
  return o.max_rank > 0 ? rounded_rank(o.max_rank, o.multiple, side) : side;
}
inline Index rank_of_energy(const Singular& s, double total, const RankOptions& o,
                            Index side) noexcept {
  double kept = 0;
  Index rank = 0;
  for (const auto& [value] : s.values) {
    if (kept >= o.energy * total) break;
    kept += value * value;
    ++rank;
  }
  return rounded_rank(rank, o.multiple, side);
}

}  // namespace detail

// Factors of `weights` (n, k), row-major, that make ‖(W − AB)·S‖ least: A = U·√Σ and B = √Σ·Vᵀ·S⁻¹
// of the greatest singular values of W·S (SVD-LLM, Wang et al. 2024). moments: Σxxᵀ of the inputs
// (k, k), whose Cholesky factor is S; empty: S = 1, a plain truncated SVD. If the rank is padded
// beyond the smaller side, the rest is zero. How exact it is: singular_values(). Errors:
// invalid_argument (sizes, options), limit (a multiple that is too large), malformed (numbers that
// are not finite, moments of nothing or not positive semidefinite), out_of_memory.
inline Result<LowRank> low_rank(std::span<const float> weights, Index n, Index k,
                                std::span<const double> moments, const RankOptions& options,
                                Executor& executor) {
  return catch_out_of_memory([&]() -> Result<LowRank> {
    NIBBLE_CHECK(detail::check_rank_options(weights, n, k, moments, options));
    DenseMatrix w(n, k), s;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      w.values[i].value = static_cast<double>(weights[i]);
    }
    if (!moments.empty()) {
      NIBBLE_TRY(made, detail::whitening(moments, k, options.damping, executor));
      s = std::move(made);
      w = product_of(w, s, executor);
    }
    double total = 0;
    for (const auto& [x] : w.values) total += x * x;
    const Index side = (std::min)(n, k);
    NIBBLE_TRY(svd,
               singular_values(w, (std::min)(detail::wanted_rank(n, k, options), side), executor));
    LowRank out;
    out.n = n;
    out.k = k;
    out.rank = options.rank > 0 || options.ratio > 0
                   ? detail::wanted_rank(n, k, options)
                   : detail::rank_of_energy(svd, total, options, side);
    out.singular_values = svd.values;
    const Index used = (std::min)(out.rank, svd.u.rows);
    DenseMatrix b(used, k);
    double kept = 0;
    out.a.resize(static_cast<std::size_t>(n * out.rank));
    for (Index r = 0; r < used; ++r) {
      const double value = svd.values[static_cast<std::size_t>(r)].value;
      const double root = std::sqrt(value);
      kept += value * value;
      for (Index i = 0; i < n; ++i) {
        out.a[static_cast<std::size_t>(i * out.rank + r)].value =
            static_cast<float>(root * svd.u(r, i));
      }
      for (Index j = 0; j < k; ++j) b(r, j) = root * svd.v(r, j);
    }
    if (!moments.empty()) solve_rows(b, s, executor);
    out.b.resize(static_cast<std::size_t>(out.rank * k));
    for (std::size_t i = 0; i < b.values.size(); ++i) {
      out.b[i].value = static_cast<float>(b.values[i].value);
    }
    out.relative_error = total > 0 ? std::sqrt(larger(0.0, 1 - kept / total)) : 0;
    return out;
  });
}

// A low-rank correction of a quantized matrix: factors of weights − quantized, both (n, k) (LQER,
// Zhang et al. 2024; with moments EoRA, Liu et al. 2024). Errors: as low_rank().
inline Result<LowRank> low_rank_correction(std::span<const float> weights,
                                           std::span<const float> quantized, Index n, Index k,
                                           std::span<const double> moments,
                                           const RankOptions& options, Executor& executor) {
  return catch_out_of_memory([&]() -> Result<LowRank> {
    if (weights.size() != quantized.size()) {
      return Error{Errc::invalid_argument, "low rank: " + to_text(quantized.size()) +
                                               " quantized weights for " + to_text(weights.size())};
    }
    std::vector<Scalar<float>> error(weights.size());
    for (std::size_t i = 0; i < error.size(); ++i) error[i].value = weights[i] - quantized[i];
    return low_rank({values(error), error.size()}, n, k, moments, options, executor);
  });
}

}}}  // namespace nibble::NIBBLE_ABI::compress
