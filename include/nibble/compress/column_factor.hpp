// SPDX-License-Identifier: Apache-2.0
//
// What column-by-column methods need of the second moments of a product's inputs, which are the
// matrix H = Σ x xᵀ (k, k): how an error in one column of the weights is best made good by the
// columns after it, and what error then remains.
//
// With H = R Rᵀ, R upper triangular, let U be R with its columns divided by their diagonal elements
// and D the squares of these. A row of weights w that is stored as q then has the error
//   (w - q) H (w - q)ᵀ = Σ_j D_j e_j²,  e (U⁻¹) = w - q
// so if column j is rounded from w_j - Σ_{i<j} e_i (U⁻¹)_ij, and is off by e_j, the error grows by
// D_j e_j², and the columns after it have made good all that they can: optimal brain surgery. This
// is GPTQ and SparseGPT, where D and U⁻¹ come from a Cholesky factor of H⁻¹ (whose diagonal is
// 1/√D); an inverse of H is not needed.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "nibble/compress/dense_algebra.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

enum class ColumnOrder : std::uint8_t {
  natural,
  by_diagonal,  // columns with large Σx² first, while there are many left that can make good
};

struct ColumnFactorOptions {
  // Added to the diagonal, as a part of its mean. A larger one keeps corrections smaller: safer
  // with few calibration data. If H is not positive definite with it, it is raised
  // (damped_factor()).
  double damping = 0.01;
  ColumnOrder order = ColumnOrder::natural;
};

class ColumnFactor {
 public:
  // From H (k, k), symmetric, any scale; only its lower triangle is read. Errors: invalid_argument
  // (sizes, damping), malformed (not finite; a negative diagonal; not positive semidefinite; all
  // zero: no data were seen), limit, out_of_memory.
  static Result<ColumnFactor> create(std::span<const double> h, Index k,
                                     const ColumnFactorOptions& options, Executor& executor) {
    return catch_out_of_memory([&] { return make(h, k, options, executor); });
  }

  Index k() const noexcept { return k_; }
  ColumnOrder order() const noexcept { return order_; }
  double damping() const noexcept { return damping_; }  // that was needed
  // The column that is the i-th to be rounded.
  Index column(Index i) const noexcept { return columns_[static_cast<std::size_t>(i)].value; }
  // Row i: what the columns after the i-th in order take over of an error of 1 in it, -(U⁻¹)_ij;
  // zero up to j = i. stride() numbers, zero from k on.
  const float* row(Index i) const noexcept { return values(upper_) + i * stride_; }
  Index stride() const noexcept { return stride_; }  // a multiple of 256
  // The mean diagonal of H. What follows is of H divided by it, which f32 holds at any scale.
  double scale() const noexcept { return scale_; }
  // Row `column` of H with damping, not in order; stride() numbers, zero from k on.
  const float* moments(Index column) const noexcept { return values(moments_) + column * stride_; }
  // D, in order.
  double remaining(Index i) const noexcept { return remaining_[static_cast<std::size_t>(i)].value; }

 private:
  static Result<ColumnFactor> make(std::span<const double> h, Index k,
                                   const ColumnFactorOptions& options, Executor& executor) {
    if (k < 1 || k > (Index{1} << 20)) {
      return Error{Errc::limit, "second moments of " + to_text(k) + " columns"};
    }
    const auto n = static_cast<std::size_t>(k);
    if (h.size() != n * n) {
      return Error{Errc::invalid_argument, "second moments of " + to_text(k) + " columns are " +
                                               to_text(n * n) + " numbers, not " +
                                               to_text(h.size())};
    }
    if (!is_finite(options.damping) || options.damping < 0) {
      return Error{Errc::invalid_argument,
                   "damping " + to_text(options.damping) + "; 0.01 is usual"};
    }
    NIBBLE_TRY(scale, mean_second_moment(h, k));
    ColumnFactor factor;
    factor.scale_ = scale;
    factor.k_ = k;
    factor.order_ = options.order;
    factor.order_columns(h);
    // H with its columns in order, then the last one first: its lower Cholesky factor, turned back,
    // is the upper one that is wanted.
    DenseMatrix lower(k, k);
    NIBBLE_TRY(damping, damped_factor(
                            [&](Index i, Index j) {
                              return factor.scaled(h, factor.column(k - 1 - i),
                                                   factor.column(k - 1 - j));
                            },
                            options.damping, lower, executor));
    factor.damping_ = damping;
    factor.take(lower, executor);
    factor.keep(h);
    return factor;
  }

  void order_columns(std::span<const double> h) {
    const auto n = static_cast<std::size_t>(k_);
    columns_.resize(n);
    for (std::size_t i = 0; i < n; ++i) columns_[i].value = static_cast<Index>(i);
    if (order_ == ColumnOrder::natural) return;
    std::sort(columns_.begin(), columns_.end(), [&](Scalar<Index> a, Scalar<Index> b) {
      const auto i = static_cast<std::size_t>(a.value), j = static_cast<std::size_t>(b.value);
      return h[i * n + i] != h[j * n + j] ? h[i * n + i] > h[j * n + j] : i < j;
    });
  }

  double scaled(std::span<const double> h, Index i, Index j) const noexcept {
    const Index at = (std::max)(i, j) * k_ + (std::min)(i, j);
    return h[static_cast<std::size_t>(at)] / scale_;
  }

  void keep(std::span<const double> h) {
    moments_.resize(upper_.size());
    for (Index i = 0; i < k_; ++i) {
      for (Index j = 0; j < k_; ++j) {
        moments_[static_cast<std::size_t>(i * stride_ + j)].value =
            static_cast<float>(scaled(h, i, j) + (i == j ? damping_ : 0.0));
      }
    }
  }

  // Inverts U, in strips of columns, which do not depend on each other.
  void take(const DenseMatrix& lower, Executor& executor) {
    constexpr Index kStrip = 64;
    stride_ = (k_ + 255) / 256 * 256;
    upper_.resize(static_cast<std::size_t>(k_ * stride_));
    remaining_.resize(static_cast<std::size_t>(k_));
    const auto r = [&](Index i, Index j) { return lower(k_ - 1 - i, k_ - 1 - j); };
    for (Index j = 0; j < k_; ++j) {
      remaining_[static_cast<std::size_t>(j)].value = r(j, j) * r(j, j);
    }
    std::vector<Scalar<double>> strips(
        static_cast<std::size_t>(executor.n_workers() * k_ * kStrip));
    executor.parallel_for((k_ + kStrip - 1) / kStrip, [&](Index task, Index worker) {
      double* const strip = values(strips) + worker * k_ * kStrip;  // (k, kStrip) of the inverse
      const Index first = task * kStrip, last = (std::min)(first + kStrip, k_);
      for (Index i = last; i-- > 0;) {
        double* const row = strip + i * kStrip;
        for (Index j = 0; j < kStrip; ++j) row[j] = i == first + j ? 1.0 : 0.0;
        for (Index m = i + 1; m < last; ++m) {
          const double amount = r(i, m) / r(m, m);
          const double* const other = strip + m * kStrip;
          for (Index j = 0; j < kStrip; ++j) row[j] -= amount * other[j];
        }
        for (Index j = (std::max)(first, i + 1); j < last; ++j) {
          upper_[static_cast<std::size_t>(i * stride_ + j)].value =
              static_cast<float>(-row[j - first]);
        }
      }
    });
  }

  Index k_ = 0, stride_ = 0;
  ColumnOrder order_ = ColumnOrder::natural;
  double damping_ = 0, scale_ = 1;
  std::vector<Scalar<Index>> columns_;
  std::vector<Scalar<float>> upper_, moments_;
  std::vector<Scalar<double>> remaining_;
};

}}}  // namespace nibble::NIBBLE_ABI::compress
