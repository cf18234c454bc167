// SPDX-License-Identifier: Apache-2.0
//
// Factors of low rank against what can be known otherwise: matrices that are made of known singular
// vectors, the theorem of Eckart, Young and Mirsky on the least error, and the optimality of the
// whitened approximation against alternating least squares.
#include "nibble/compress/low_rank.hpp"

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "doctest/doctest.h"
#include "why.hpp"

namespace low_rank_test {
namespace {

using namespace nibble;
using namespace nibble::compress;
using Doubles = std::vector<double>;

Doubles random_values(std::size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  Doubles values(n);
  for (double& x : values) x = normal(random);
  return values;
}

// A matrix whose singular values are `sigma`: Σ σᵢ uᵢ vᵢᵀ with random orthonormal vectors, made
// here with Gram and Schmidt.
Doubles with_spectrum(Index n, Index k, const Doubles& sigma, unsigned seed) {
  const auto vectors = [&](Index length, unsigned s) {
    Doubles q = random_values(sigma.size() * static_cast<std::size_t>(length), s);
    const auto l = static_cast<std::size_t>(length);
    for (std::size_t i = 0; i < sigma.size(); ++i) {
      for (std::size_t round = 0; round < 2; ++round) {
        for (std::size_t j = 0; j < i; ++j) {
          double dot = 0;
          for (std::size_t c = 0; c < l; ++c) dot += q[i * l + c] * q[j * l + c];
          for (std::size_t c = 0; c < l; ++c) q[i * l + c] -= dot * q[j * l + c];
        }
      }
      double norm = 0;
      for (std::size_t c = 0; c < l; ++c) norm += q[i * l + c] * q[i * l + c];
      for (std::size_t c = 0; c < l; ++c) q[i * l + c] /= std::sqrt(norm);
    }
    return q;
  };
  const Doubles u = vectors(n, seed), v = vectors(k, seed + 1);
  const auto rows = static_cast<std::size_t>(n), columns = static_cast<std::size_t>(k);
  Doubles a(rows * columns);
  for (std::size_t r = 0; r < sigma.size(); ++r) {
    for (std::size_t i = 0; i < rows; ++i) {
      for (std::size_t j = 0; j < columns; ++j) {
        a[i * columns + j] += sigma[r] * u[r * rows + i] * v[r * columns + j];
      }
    }
  }
  return a;
}

std::vector<float> to_floats(const Doubles& x) { return {x.begin(), x.end()}; }

Doubles product(const LowRank& f) {
  const auto n = static_cast<std::size_t>(f.n), k = static_cast<std::size_t>(f.k),
             r = static_cast<std::size_t>(f.rank);
  Doubles out(n * k);
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t s = 0; s < r; ++s) {
      for (std::size_t j = 0; j < k; ++j) {
        out[i * k + j] +=
            static_cast<double>(f.a[i * r + s].value) * static_cast<double>(f.b[s * k + j].value);
      }
    }
  }
  return out;
}

// Σ over the rows d of (w − p) of d · M · dᵀ: the squared error of outputs.
double output_error(const std::vector<float>& w, const Doubles& p, const Doubles& moments,
                    std::size_t k) {
  double sum = 0;
  for (std::size_t at = 0; at < w.size(); at += k) {
    for (std::size_t i = 0; i < k; ++i) {
      for (std::size_t j = 0; j < k; ++j) {
        const double m = moments.empty() ? (i == j ? 1.0 : 0.0) : moments[i * k + j];
        sum += (static_cast<double>(w[at + i]) - p[at + i]) * m *
               (static_cast<double>(w[at + j]) - p[at + j]);
      }
    }
  }
  return sum;
}

// Inputs of unequal and correlated channels.
Doubles moments_of_inputs(std::size_t k, unsigned seed) {
  const std::size_t n = 3 * k;
  Doubles x = random_values(n * k, seed), m(k * k);
  for (std::size_t r = 0; r < n; ++r) {
    for (std::size_t i = 0; i < k; ++i) {
      x[r * k + i] *= 0.05 + 2.0 * static_cast<double>(i % 5);
      if (i > 0) x[r * k + i] += 0.6 * x[r * k + i - 1];
    }
    for (std::size_t i = 0; i < k; ++i) {
      for (std::size_t j = 0; j < k; ++j) m[i * k + j] += x[r * k + i] * x[r * k + j];
    }
  }
  return m;
}

InlineExecutor alone;

}  // namespace

TEST_CASE(
    "singular values of a matrix with a known spectrum, both ways round, exact and iterated") {
  for (const auto& [n, k] : {std::pair<Index, Index>{12, 31}, {31, 12}, {20, 20}}) {
    Doubles sigma;
    for (int i = 0; i < 9; ++i) sigma.push_back(std::pow(0.6, i) * 7);
    const Doubles a = with_spectrum(n, k, sigma, 5);
    DenseMatrix m(n, k);
    for (std::size_t i = 0; i < a.size(); ++i) m.values[i].value = a[i];
    const auto s = singular_values(m, 9, alone);
    REQUIRE_MESSAGE(s, test::why(s));
    REQUIRE(s->values.size() == 9);
    for (std::size_t i = 0; i < 9; ++i) {
      CHECK(std::fabs(s->values[i].value - sigma[i]) < 1e-12 * sigma[0]);
    }
    for (Index i = 0; i < n; ++i) {
      for (Index j = 0; j < k; ++j) {
        double sum = 0;
        for (Index r = 0; r < 9; ++r) {
          sum += s->u(r, i) * s->values[static_cast<std::size_t>(r)].value * s->v(r, j);
        }
        CHECK(std::fabs(sum - m(i, j)) < 1e-12 * sigma[0]);
      }
    }
  }
  // Large enough for the iteration, with a tail: the greatest values are found to a part in 10⁵.
  Doubles sigma;
  for (int i = 0; i < 60; ++i) sigma.push_back(std::pow(0.8, i));
  for (const auto& [n, k] : {std::pair<Index, Index>{330, 340}, {340, 330}}) {
    const Doubles a = with_spectrum(n, k, sigma, 6);
    DenseMatrix m(n, k);
    for (std::size_t i = 0; i < a.size(); ++i) m.values[i].value = a[i];
    const auto s = singular_values(m, 8, alone);
    REQUIRE_MESSAGE(s, test::why(s));
    for (std::size_t i = 0; i < 8; ++i) CHECK(std::fabs(s->values[i].value / sigma[i] - 1) < 1e-5);
  }
}

TEST_CASE("a plain factorization leaves what the theorem says, by rank, ratio and energy") {
  const Index n = 24, k = 40;
  Doubles sigma;
  for (int i = 0; i < 24; ++i) sigma.push_back(1.0 / (1 + i));
  const std::vector<float> w = to_floats(with_spectrum(n, k, sigma, 9));
  const auto tail = [&](Index rank) {
    double sum = 0;
    for (std::size_t i = static_cast<std::size_t>(rank); i < sigma.size(); ++i) {
      sum += sigma[i] * sigma[i];
    }
    return sum;
  };
  const auto check = [&](const RankOptions& options, Index rank) {
    const auto f = low_rank(w, n, k, {}, options, alone);
    REQUIRE_MESSAGE(f, test::why(f));
    REQUIRE(f->rank == rank);
    const double error = output_error(w, product(*f), {}, static_cast<std::size_t>(k));
    CHECK(std::fabs(error - tail(rank)) < 1e-5 * tail(0));
    CHECK(std::fabs(f->relative_error - std::sqrt(tail(rank) / tail(0))) < 1e-5);
  };
  check({.rank = 5}, 5);
  check({.rank = 5, .multiple = 8}, 8);
  check({.ratio = 0.5}, 7);  // 0.5 · 24 · 40 / 64 = 7.5
  check({.rank = 24}, 24);
  Index rank = 0;
  while (tail(rank) > 0.1 * tail(0)) ++rank;
  check({.energy = 0.9}, rank);
  // Padded beyond the smaller side: the rest is zero, the product exact.
  const auto padded = low_rank(w, n, k, {}, {.rank = 20, .multiple = 32}, alone);
  REQUIRE_MESSAGE(padded, test::why(padded));
  CHECK(padded->rank == 32);
  CHECK(output_error(w, product(*padded), {}, static_cast<std::size_t>(k)) < 1e-9);
}

TEST_CASE("whitened factors are the best for outputs: no step of least squares improves them") {
  const Index n = 14, k = 10, rank = 3;
  const std::size_t columns = 10;
  const std::vector<float> w = to_floats(random_values(140, 3));
  const Doubles moments = moments_of_inputs(columns, 4);
  const auto plain = low_rank(w, n, k, {}, {.rank = rank}, alone);
  const auto best = low_rank(w, n, k, moments, {.rank = rank, .damping = 0}, alone);
  REQUIRE_MESSAGE(best, test::why(best));
  const double plain_error = output_error(w, product(*plain), moments, columns);
  const double error = output_error(w, product(*best), moments, columns);
  CHECK(error < 0.9 * plain_error);
  const double all = output_error(w, Doubles(140), moments, columns);
  CHECK(std::fabs(best->relative_error - std::sqrt(error / all)) < 1e-4);

  // Random directions of A and of B: the error is at a stationary point, so that small steps change
  // it in second order only, and never downwards.
  for (unsigned seed = 20; seed < 60; ++seed) {
    LowRank moved = *best;
    const Doubles da = random_values(moved.a.size(), seed),
                  db = random_values(moved.b.size(), ~seed);
    for (std::size_t i = 0; i < da.size(); ++i)
      moved.a[i].value += static_cast<float>(2e-2 * da[i]);
    for (std::size_t i = 0; i < db.size(); ++i)
      moved.b[i].value += static_cast<float>(2e-2 * db[i]);
    CHECK(output_error(w, product(moved), moments, columns) > error);
  }
  // Alternating least squares from elsewhere ends no lower: the global optimum.
  double lowest = plain_error;
  for (unsigned start = 0; start < 4; ++start) {
    Doubles b = random_values(static_cast<std::size_t>(rank) * columns, 100 + start);
    Doubles a(static_cast<std::size_t>(n * rank));
    const auto solve = [](Doubles m, Doubles y, std::size_t size) {  // Gauss and Jordan
      for (std::size_t p = 0; p < size; ++p) {
        const double pivot = m[p * size + p];
        for (std::size_t i = 0; i < size; ++i) {
          if (i == p) continue;
          const double f = m[i * size + p] / pivot;
          for (std::size_t j = 0; j < size; ++j) m[i * size + j] -= f * m[p * size + j];
          y[i] -= f * y[p];
        }
      }
      for (std::size_t p = 0; p < size; ++p) y[p] /= m[p * size + p];
      return y;
    };
    const std::size_t r = 3;
    for (int round = 0; round < 400; ++round) {
      // A: a row at a time, (B M Bᵀ) a = B M w.
      Doubles bm(r * columns), bmb(r * r);
      for (std::size_t s = 0; s < r; ++s) {
        for (std::size_t i = 0; i < columns; ++i) {
          for (std::size_t j = 0; j < columns; ++j) {
            bm[s * columns + j] += b[s * columns + i] * moments[i * columns + j];
          }
        }
      }
      for (std::size_t s = 0; s < r; ++s) {
        for (std::size_t t = 0; t < r; ++t) {
          for (std::size_t j = 0; j < columns; ++j) {
            bmb[s * r + t] += bm[s * columns + j] * b[t * columns + j];
          }
        }
      }
      for (std::size_t i = 0; i < 14; ++i) {
        Doubles y(r);
        for (std::size_t s = 0; s < r; ++s) {
          for (std::size_t j = 0; j < columns; ++j) {
            y[s] += bm[s * columns + j] * static_cast<double>(w[i * columns + j]);
          }
        }
        const Doubles row = solve(bmb, y, r);
        std::copy(row.begin(), row.end(), a.begin() + static_cast<std::ptrdiff_t>(i * r));
      }
      // B = (AᵀA)⁻¹ Aᵀ W: the moments cancel.
      Doubles aa(r * r);
      for (std::size_t i = 0; i < 14; ++i) {
        for (std::size_t s = 0; s < r; ++s) {
          for (std::size_t t = 0; t < r; ++t) aa[s * r + t] += a[i * r + s] * a[i * r + t];
        }
      }
      for (std::size_t j = 0; j < columns; ++j) {
        Doubles y(r);
        for (std::size_t i = 0; i < 14; ++i) {
          for (std::size_t s = 0; s < r; ++s) {
            y[s] += a[i * r + s] * static_cast<double>(w[i * columns + j]);
          }
        }
        const Doubles column = solve(aa, y, r);
        for (std::size_t s = 0; s < r; ++s) b[s * columns + j] = column[s];
      }
    }
    Doubles p(140);
    for (std::size_t i = 0; i < 14; ++i) {
      for (std::size_t s = 0; s < r; ++s) {
        for (std::size_t j = 0; j < columns; ++j) {
          p[i * columns + j] += a[i * r + s] * b[s * columns + j];
        }
      }
    }
    lowest = std::min(lowest, output_error(w, p, moments, columns));
  }
  CHECK(error < lowest * (1 + 1e-5));
  CHECK(lowest < error * (1 + 1e-3));
}

TEST_CASE("damping is a share of the mean diagonal") {
  // One row and one column of factors for two channels, which can be computed by hand: S is
  // diagonal, and the greatest singular value picks the channel with the greater |w| · s.
  const std::vector<float> w = {3, 0, 0, 2};
  const Doubles moments = {1, 0, 0, 3};
  const auto kept = [&](double damping) {
    const auto f = low_rank(w, 2, 2, moments, {.rank = 1, .damping = damping}, alone);
    REQUIRE_MESSAGE(f, test::why(f));
    return std::fabs(f->a[0].value) > std::fabs(f->a[1].value) ? 0 : 1;
  };
  // Without: 9 · 1 against 4 · 3. With d · 2 added: 9 + 18 d against 12 + 8 d, even at d = 0.3.
  CHECK(kept(0) == 1);
  CHECK(kept(0.29) == 1);
  CHECK(kept(0.31) == 0);
}

TEST_CASE("a correction makes up for the error of a quantized matrix") {
  const Index n = 32, k = 64;
  const std::vector<float> w = to_floats(random_values(2048, 8));
  std::vector<float> q = w;
  for (float& x : q) x = std::round(x * 2) / 2;
  double last = 1e30;
  for (const Index rank : {1, 8, 31}) {
    const auto f = low_rank_correction(w, q, n, k, {}, {.rank = rank}, alone);
    REQUIRE_MESSAGE(f, test::why(f));
    Doubles sum = product(*f);
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += static_cast<double>(q[i]);
    const double error = output_error(w, sum, {}, static_cast<std::size_t>(k));
    CHECK(error < last);
    last = error;
  }
  const auto all = low_rank_correction(w, q, n, k, {}, {.rank = 32}, alone);
  Doubles sum = product(*all);
  for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += static_cast<double>(q[i]);
  CHECK(output_error(w, sum, {}, static_cast<std::size_t>(k)) < 1e-9);
}

TEST_CASE("what cannot be factored is an error") {
  const std::vector<float> w(12, 1.0f);
  CHECK(!low_rank(w, 3, 5, {}, {.rank = 1}, alone));
  CHECK(!low_rank(w, 3, 4, {}, {}, alone));
  CHECK(!low_rank(w, 3, 4, {}, {.ratio = 1.5}, alone));
  CHECK(!low_rank(w, 3, 4, Doubles(9, 1.0), {.rank = 1}, alone));
  CHECK(!low_rank(w, 3, 4, Doubles(16), {.rank = 1}, alone));                    // no data
  CHECK(low_rank(w, 3, 4, Doubles(16, 1.0), {.rank = 1, .damping = 0}, alone));  // singular: raised
  Doubles indefinite(16);
  for (std::size_t i = 0; i < 16; ++i) indefinite[i] = i % 5 == 0 ? 1 : 4;
  CHECK(low_rank(w, 3, 4, indefinite, {.rank = 1}, alone).error().code == Errc::malformed);
  indefinite[2] = indefinite[8] = NAN;
  CHECK(low_rank(w, 3, 4, indefinite, {.rank = 1}, alone).error().code == Errc::malformed);
  constexpr Index kMost = std::numeric_limits<Index>::max();
  CHECK(low_rank(w, 3, 4, {}, {.rank = 1, .multiple = kMost}, alone).error().code == Errc::limit);
  CHECK(low_rank(w, 3, 4, {}, {.rank = 1, .multiple = kMost / 16}, alone).error().code ==
        Errc::limit);
  CHECK(low_rank(w, 3, 4, {}, {.rank = kMost, .multiple = 2}, alone)->rank == 2);
  CHECK(low_rank(w, 3, 4, {}, {.energy = 1, .max_rank = kMost, .multiple = 3}, alone)->rank == 3);
  CHECK(low_rank(w, 3, 4, Doubles(16, 1.0), {.rank = 1}, alone));
  std::vector<float> bad = w;
  bad[5] = INFINITY;
  CHECK(!low_rank(bad, 3, 4, {}, {.rank = 1}, alone));
  CHECK(!low_rank_correction(w, std::vector<float>(11), 3, 4, {}, {.rank = 1}, alone));
}

}  // namespace low_rank_test
