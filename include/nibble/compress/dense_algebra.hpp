// SPDX-License-Identifier: Apache-2.0
//
// Dense linear algebra in double for compression: products, Cholesky factors of second moments and
// solves with them, orthonormal rows, singular values. Plain loops over rows, in parallel where it
// pays; matrices are row-major and contiguous.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "nibble/core/executor.hpp"
#include "nibble/core/libm.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/text.hpp"
#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

// A matrix (rows, columns) of doubles.
struct DenseMatrix {
  Index rows = 0;
  Index columns = 0;
  std::vector<Scalar<double>> values;

  DenseMatrix() = default;
  DenseMatrix(Index n, Index k) : rows(n), columns(k), values(static_cast<std::size_t>(n * k)) {}

  double* row(Index i) noexcept { return &values[static_cast<std::size_t>(i * columns)].value; }
  const double* row(Index i) const noexcept {
    return &values[static_cast<std::size_t>(i * columns)].value;
  }
  double& operator()(Index i, Index j) noexcept { return row(i)[j]; }
  double operator()(Index i, Index j) const noexcept { return row(i)[j]; }
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
inline void add_scaled(double* to, const double* from, double factor, Index n) noexcept {
  for (Index i = 0; i < n; ++i) to[i] += factor * from[i];
}

}  // namespace detail

inline DenseMatrix transposed(const DenseMatrix& a) {
  DenseMatrix t(a.columns, a.rows);
  for (Index i = 0; i < a.rows; ++i) {
    for (Index j = 0; j < a.columns; ++j) t(j, i) = a(i, j);
  }
  return t;
}

// a (n, m) · b (m, k).
inline DenseMatrix product_of(const DenseMatrix& a, const DenseMatrix& b, Executor& executor) {
  NIBBLE_ASSERT(a.columns == b.rows);
  DenseMatrix c(a.rows, b.columns);
  executor.parallel_for(a.rows, [&](Index i, Index) {
    for (Index j = 0; j < a.columns; ++j) {
      if (const double x = a(i, j); x != 0) detail::add_scaled(c.row(i), b.row(j), x, b.columns);
    }
  });
  return c;
}

namespace detail {

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

// The mean diagonal of second moments Σxxᵀ (k, k), of which the lower triangle is read. Error:
// malformed (not finite; a negative diagonal; all zero: no data were seen).
inline Result<double> mean_second_moment(std::span<const double> h, Index k) {
  const auto n = static_cast<std::size_t>(k);
  NIBBLE_ASSERT(h.size() == n * n);
  double mean = 0;
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j <= i; ++j) {
      if (is_finite(h[i * n + j]) && (i != j || h[i * n + j] >= 0)) continue;
      return Error{Errc::malformed, "second moment (" + to_text(i) + ", " + to_text(j) + ") is " +
                                        to_text(h[i * n + j])};
    }
    mean += h[i * n + i] / static_cast<double>(k);
  }
  if (mean > 0) return mean;
  return Error{Errc::malformed, "second moments that are all zero: no data were seen"};
}

// lower (k, k) = the lower Cholesky factor of A + damping · I, where at(i, j), j ≤ i, is A with a
// mean diagonal of 1. If that is not positive definite, damping is raised tenfold, up to 1 (from
// 1e-6, if it is 0). Returns the damping. Error: malformed (not positive definite with any).
template <class At>
Result<double> damped_factor(At at, double damping, DenseMatrix& lower, Executor& executor) {
  const Index k = lower.rows;
  NIBBLE_ASSERT(lower.columns == k);
  for (;; damping = damping > 0 ? (std::min)(10 * damping, 1.0) : 1e-6) {
    for (Index i = 0; i < k; ++i) {
      for (Index j = 0; j <= i; ++j) lower(i, j) = at(i, j) + (i == j ? damping : 0.0);
    }
    if (detail::factor_lower(values(lower.values), k, executor) == k) break;
    if (damping >= 1) {
      return Error{Errc::malformed,
                   "second moments that are not those of any data (not positive semidefinite)"};
    }
  }
  for (Index i = 0; i < k; ++i) std::fill(lower.row(i) + i + 1, lower.row(i) + k, 0.0);
  return damping;
}

// x · S⁻¹ in place of each row of x (n, k), for a lower triangle S (k, k).
inline void solve_rows(DenseMatrix& x, const DenseMatrix& s, Executor& executor) noexcept {
  NIBBLE_ASSERT(x.columns == s.rows);
  executor.parallel_for(x.rows, [&](Index i, Index) {
    double* const row = x.row(i);
    for (Index j = s.rows - 1; j >= 0; --j) {  // row · S = old row, from the last column on
      row[j] /= s(j, j);
      detail::add_scaled(row, s.row(j), -row[j], j);
    }
  });
}

// Makes the rows of q orthonormal, by two rounds of Gram and Schmidt. Rows that depend on those
// before them become zero.
inline void orthonormalize_rows(DenseMatrix& q) noexcept {
  for (Index i = 0; i < q.rows; ++i) {
    const double before = std::sqrt(detail::dot(q.row(i), q.row(i), q.columns));
    for (int round = 0; round < 2; ++round) {
      for (Index j = 0; j < i; ++j) {
        detail::add_scaled(q.row(i), q.row(j), -detail::dot(q.row(i), q.row(j), q.columns),
                           q.columns);
      }
    }
    const double norm = std::sqrt(detail::dot(q.row(i), q.row(i), q.columns));
    const double factor = norm > 1e-12 * before ? 1 / norm : 0;
    for (Index j = 0; j < q.columns; ++j) q(i, j) *= factor;
  }
}

// Singular values of a matrix (n, k), descending, with their vectors: a = Σ values[i] · uᵢ · vᵢᵀ.
struct Singular {
  std::vector<Scalar<double>> values;  // (r)
  DenseMatrix u;                       // (r, n): left vectors as rows
  DenseMatrix v;                       // (r, k): right vectors as rows
};

namespace detail {

// One-sided Jacobi (Hestenes 1958): rotates pairs of rows of `a` until all are orthogonal; `v`
// (rows, rows) gets the same rotations. Then a's rows are singular values times right vectors.
inline void rotate_rows(DenseMatrix& a, DenseMatrix& v) noexcept {
  const Index n = a.rows;
  for (int sweep = 0; sweep < 60; ++sweep) {
    bool rotated = false;
    for (Index p = 0; p + 1 < n; ++p) {
      for (Index q = p + 1; q < n; ++q) {
        const double pp = dot(a.row(p), a.row(p), a.columns);
        const double qq = dot(a.row(q), a.row(q), a.columns);
        const double pq = dot(a.row(p), a.row(q), a.columns);
        if (!(std::fabs(pq) > 1e-15 * std::sqrt(pp * qq))) continue;
        rotated = true;
        const double zeta = (qq - pp) / (2 * pq);
        const double t = (zeta >= 0 ? 1 : -1) / (std::fabs(zeta) + std::sqrt(1 + zeta * zeta));
        const double c = 1 / std::sqrt(1 + t * t), s = c * t;
        const auto rotate = [&](DenseMatrix& m) {
          double *const x = m.row(p), *const y = m.row(q);
          for (Index i = 0; i < m.columns; ++i) {
            const double old = x[i];
            x[i] = c * old - s * y[i];
            y[i] = s * old + c * y[i];
          }
        };
        rotate(a);
        rotate(v);
      }
    }
    if (!rotated) return;
  }
}

// Of a matrix with few rows: all singular values.
inline Singular jacobi(DenseMatrix a) {
  DenseMatrix left(a.rows, a.rows);
  for (Index i = 0; i < a.rows; ++i) left(i, i) = 1;
  rotate_rows(a, left);
  struct Row {
    Index row;
    double norm;
  };
  std::vector<Row> order;
  for (Index i = 0; i < a.rows; ++i) {
    order.push_back({i, std::sqrt(dot(a.row(i), a.row(i), a.columns))});
  }
  std::stable_sort(order.begin(), order.end(),
                   [](const Row& x, const Row& y) { return x.norm > y.norm; });
  Singular out{{}, DenseMatrix(a.rows, a.rows), DenseMatrix(a.rows, a.columns)};
  for (Index i = 0; i < a.rows; ++i) {
    const auto [from, norm] = order[static_cast<std::size_t>(i)];
    out.values.push_back({norm});
    std::copy_n(left.row(from), a.rows, out.u.row(i));
    for (Index j = 0; j < a.columns && norm > 0; ++j) out.v(i, j) = a(from, j) / norm;
  }
  return out;
}

}  // namespace detail

// Matrices whose smaller side is up to this get all their singular values, by Jacobi rotations on
// one thread, whose time grows with the cube of that side (times the sweeps that it takes). Larger
// ones get the `rank` greatest, approximately.
inline constexpr Index kExactSide = 320;
inline constexpr int kSubspaceRounds = 4;

// The `rank` greatest singular values of a (n, k) and their vectors. Exact (to rounding) up to
// kExactSide, and where `rank` is within 16 of the smaller side; otherwise by subspace iteration
// from a random start (Halko, Martinsson and Tropp 2011) with `rank` + 16 vectors, whose error
// falls with (σ_{r+17}/σ_r) to the power of 2 · kSubspaceRounds + 1. The same matrix gives the same
// result. Memory: two copies of `a`. Error: malformed (numbers that are not finite).
inline Result<Singular> singular_values(const DenseMatrix& a, Index rank, Executor& executor) {
  for (const auto& [x] : a.values) {
    if (!is_finite(x)) return Error{Errc::malformed, "singular values: a number is not finite"};
  }
  const bool is_wide = a.rows <= a.columns;
  const Index side = (std::min)(a.rows, a.columns);
  rank = (std::min)(rank, side);
  Singular s;
  if (side <= kExactSide || rank + 16 >= side) {
    s = detail::jacobi(is_wide ? a : transposed(a));
    if (!is_wide) std::swap(s.u, s.v);
  } else {
    const DenseMatrix t = transposed(a);
    DenseMatrix q(rank + 16, a.rows);  // rows span the left vectors
    std::uint64_t state = 0x9E3779B97F4A7C15u;
    for (auto& [x] : q.values) {  // splitmix64, Steele et al. 2014; uniform in (−1, 1)
      std::uint64_t z = state += 0x9E3779B97F4A7C15u;
      z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
      z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
      x = static_cast<double>(static_cast<std::int64_t>(z ^ (z >> 31))) * 0x1p-63;
    }
    DenseMatrix w = product_of(q, a, executor);  // (r, k)
    for (int i = 0; i < kSubspaceRounds; ++i) {
      orthonormalize_rows(w);
      q = product_of(w, t, executor);
      orthonormalize_rows(q);
      w = product_of(q, a, executor);
    }
    s = detail::jacobi(std::move(w));  // qᵀ · (u · s · v)
    s.u = product_of(s.u, q, executor);
  }
  s.values.resize(static_cast<std::size_t>(rank));
  for (DenseMatrix* m : {&s.u, &s.v}) {
    m->rows = rank;
    m->values.resize(static_cast<std::size_t>(rank * m->columns));
  }
  return s;
}

}}}  // namespace nibble::NIBBLE_ABI::compress
