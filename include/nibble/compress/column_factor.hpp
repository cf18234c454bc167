// SPDX-License-Identifier: Apache-2.0
//
// What column-by-column methods need of the second moments of a product's inputs, H = Σ x xᵀ (k,
// k): how an error in one column of the weights is best made good by the columns after it, and what
// error then remains.
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
#include <utility>
#include <vector>

#include "nibble/core/executor.hpp"
#include "nibble/core/libm.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

enum class ColumnOrder : std::uint8_t {
  natural,
  by_diagonal,  // columns with large Σx² first, while there are many left that can make good
};

struct ColumnFactorOptions {
  // Added to the diagonal, as a part of its mean. A larger one keeps corrections smaller: safer
  // with few calibration data. If H is not positive definite with it, tenfold, up to 1.
  double damping = 0.01;
  ColumnOrder order = ColumnOrder::natural;
};

namespace detail {

inline double dot(const double* a, const double* b, Index n) noexcept {
  double sums[8] = {};
  Index i = 0;
  for (; i + 8 <= n; i += 8) {
    for (Index j = 0; j < 8; ++j) sums[j] += a[i + j] * b[i + j];
  }
  double rest = 0;
  for (; i < n; ++i) rest += a[i] * b[i];
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7])) +
         rest;
}

// Replaces the lower triangle of a symmetric matrix a (k, k) by its Cholesky factor L, a = L Lᵀ, in
// panels of 64 columns. Returns k, or the first column whose pivot is not positive.
inline Index factor_lower(double* a, Index k, Executor& executor) noexcept {
  constexpr Index kPanel = 64, kRows = 16;
  for (Index begin = 0; begin < k; begin += kPanel) {
    const Index end = (std::min)(begin + kPanel, k);
    const auto solve_row = [&](Index i, Index columns) {
      double* const row = a + i * k;
      for (Index j = begin; j < columns; ++j) {
        const double* const other = a + j * k;
        row[j] = (row[j] - dot(row + begin, other + begin, j - begin)) / other[j];
      }
    };
    for (Index i = begin; i < end; ++i) {
      solve_row(i, i);
      double* const row = a + i * k;
      const double pivot = row[i] - dot(row + begin, row + begin, i - begin);
      if (!is_finite(pivot) || !(pivot > 0)) return i;
      row[i] = libm::sqrt(pivot);
    }
    const Index n_below = k - end;
    const Index n_tasks = (n_below + kRows - 1) / kRows;
    const auto rows_of = [&](Index task) {
      return std::pair(end + task * kRows, (std::min)(end + (task + 1) * kRows, k));
    };
    executor.parallel_for(n_tasks, [&](Index task, Index) {
      const auto [from, to] = rows_of(task);
      for (Index i = from; i < to; ++i) solve_row(i, end);
    });
    executor.parallel_for(n_tasks, [&](Index task, Index) {
      const auto [from, to] = rows_of(task);
      for (Index first = end; first < to; first += kPanel) {  // columns that stay in the cache
        for (Index i = from; i < to; ++i) {
          double* const row = a + i * k;
          const Index last = (std::min)(first + kPanel, i + 1);
          for (Index j = first; j < last; ++j) {
            row[j] -= dot(row + begin, a + j * k + begin, end - begin);
          }
        }
      }
    });
  }
  return k;
}

}  // namespace detail

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
    double sum = 0;
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = 0; j <= i; ++j) {
        if (is_finite(h[i * n + j]) && (i != j || h[i * n + j] >= 0)) continue;
        return Error{Errc::malformed, "second moment (" + to_text(i) + ", " + to_text(j) + ") is " +
                                          to_text(h[i * n + j])};
      }
      sum += h[i * n + i];
    }
    if (!is_finite(sum) || !(sum > 0)) {
      return Error{Errc::malformed, "second moments that are all zero: no data were seen"};
    }
    ColumnFactor factor;
    factor.k_ = k;
    factor.order_ = options.order;
    factor.order_columns(h);
    const double mean = sum / static_cast<double>(k);
    std::vector<Scalar<double>> lower(n * n);
    for (double damping = options.damping;; damping = damping > 0 ? 10 * damping : 1e-6) {
      factor.copy_reversed(h, mean * damping, values(lower));
      const Index failed = detail::factor_lower(values(lower), k, executor);
      factor.damping_ = damping;
      if (failed == k) break;
      if (damping >= 1) {
        return Error{Errc::malformed,
                     "second moments that are not those of any data (not positive semidefinite)"};
      }
    }
    factor.take(values(lower), executor);
    factor.keep(h, mean * factor.damping_);
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

  // H with its columns in order, then the last one first: its lower Cholesky factor, turned back,
  // is the upper one that is wanted.
  void copy_reversed(std::span<const double> h, double added, double* out) const noexcept {
    for (Index i = 0; i < k_; ++i) {
      const Index row = column(k_ - 1 - i);
      for (Index j = 0; j <= i; ++j) {
        const Index other = column(k_ - 1 - j);
        const Index at = (std::max)(row, other) * k_ + (std::min)(row, other);
        out[i * k_ + j] = h[static_cast<std::size_t>(at)] + (i == j ? added : 0.0);
      }
    }
  }

  void keep(std::span<const double> h, double added) {
    moments_.resize(upper_.size());
    for (Index i = 0; i < k_; ++i) {
      for (Index j = 0; j < k_; ++j) {
        const Index at = (std::max)(i, j) * k_ + (std::min)(i, j);
        moments_[static_cast<std::size_t>(i * stride_ + j)].value =
            static_cast<float>(h[static_cast<std::size_t>(at)] + (i == j ? added : 0.0));
      }
    }
  }

  // Inverts U, in strips of columns, which do not depend on each other.
  void take(const double* lower, Executor& executor) {
    constexpr Index kStrip = 64;
    stride_ = (k_ + 255) / 256 * 256;
    upper_.resize(static_cast<std::size_t>(k_ * stride_));
    remaining_.resize(static_cast<std::size_t>(k_));
    const auto r = [&](Index i, Index j) { return lower[(k_ - 1 - i) * k_ + (k_ - 1 - j)]; };
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
  double damping_ = 0;
  std::vector<Scalar<Index>> columns_;
  std::vector<Scalar<float>> upper_, moments_;
  std::vector<Scalar<double>> remaining_;
};

}}}  // namespace nibble::NIBBLE_ABI::compress
