// SPDX-License-Identifier: Apache-2.0
//
// Products of two matrices of floats. Small integers give exact sums, which must be equal to those
// of a plain loop: any wrong index shows. Fractions are compared with a sum in double, within the
// bound that kernels/gemm.hpp states.
#include "nibble/ops/gemm.hpp"

#include <array>
#include <cmath>
#include <cstring>
#include <random>

#include "doctest/doctest.h"
#include "kernels/arrays.hpp"
#include "kernels/each_target.hpp"
#include "ops/threads.hpp"

namespace gemm_test {

using namespace nibble;
using namespace nibble_test;
using ops::GemmOutput;

namespace {

std::size_t size(Index n) { return static_cast<std::size_t>(n); }

// A matrix of any layout at an odd address; what lies between its rows (columns) is a guard.
class Matrix {
 public:
  Matrix(Index m, Index n, bool by_columns, Index gap, std::size_t offset)
      : m_(m),
        n_(n),
        stride_((by_columns ? m : n) + gap),
        by_columns_(by_columns),
        values_(size((by_columns ? n : m) * stride_), offset) {
    for (Index i = 0; i < (by_columns ? n : m) * stride_; ++i) values_.data()[i] = kGap;
  }
  MatrixView<float> view() {
    const std::array<Index, 2> strides =
        by_columns_ ? std::array<Index, 2>{1, stride_} : std::array<Index, 2>{stride_, 1};
    return {values_.data(), {m_, n_}, strides};
  }
  float& operator()(Index i, Index j) { return view()(i, j); }
  void fill_integers(std::mt19937& random) {
    each([&](float& v) { v = static_cast<float>(static_cast<int>(random() % 9) - 4); });
  }
  void fill(std::mt19937& random) {
    std::normal_distribution<float> normal;
    each([&](float& v) { v = normal(random); });
  }
  void fill(float value) {
    each([&](float& v) { v = value; });
  }
  bool guards_intact() {
    if (!values_.guards_intact()) return false;
    const Index row = by_columns_ ? m_ : n_, rows = by_columns_ ? n_ : m_;
    for (Index r = 0; r < rows; ++r) {
      for (Index i = row; i < stride_; ++i) {
        if (values_.data()[r * stride_ + i] != kGap) return false;
      }
    }
    return true;
  }
  Floats values() {
    Floats all;
    each([&](float& v) { all.push_back(v); });
    return all;
  }

 private:
  static constexpr float kGap = -54321.0f;
  template <class Body>
  void each(Body body) {
    for (Index i = 0; i < m_; ++i) {
      for (Index j = 0; j < n_; ++j) body(view()(i, j));
    }
  }
  Index m_, n_, stride_;
  bool by_columns_;
  Guarded values_;
};

// gemm with scratch of exactly the size that is asked for, full of NaN, between guards.
void run(Executor& executor, MatrixView<const float> a, MatrixView<const float> b, Matrix& c,
         GemmOutput output) {
  const std::size_t bytes =
      ops::gemm_scratch_bytes(a.extent(0), b.extent(1), a.extent(1), executor.n_workers());
  auto memory = AlignedBuffer::allocate(bytes + 2 * kAlignment);
  REQUIRE(memory.has_value());
  std::memset(memory->data(), 0xFF, memory->size());  // the bits of a NaN
  ops::gemm(executor, a, b, c.view(), output, memory->bytes().subspan(kAlignment, bytes));
  bool intact = true;
  for (std::size_t i = 0; i < kAlignment; ++i) {
    intact = intact && memory->data()[i] == std::byte{0xFF} &&
             memory->data()[kAlignment + bytes + i] == std::byte{0xFF};
  }
  CHECK(intact);
  CHECK(c.guards_intact());
}

bool same_bits(const Floats& x, const Floats& y) {
  return x.size() == y.size() &&
         (x.empty() || std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0);
}

// The largest error, in units of what is allowed, of C that was `before`.
double worst_error(Matrix& a, Matrix& b, Matrix& c, const Floats& before, GemmOutput output) {
  const Index m = a.view().extent(0), n = b.view().extent(1), k = a.view().extent(1);
  const double block = static_cast<double>(kernels::gemm_block_k(k));
  const double blocks = std::ceil(static_cast<double>(k) / block);
  double worst = 0;
  for (Index i = 0; i < m; ++i) {
    for (Index j = 0; j < n; ++j) {
      const double old =
          output == GemmOutput::add ? static_cast<double>(before[size(i * n + j)]) : 0.0;
      double sum = old, magnitude = 0;
      for (Index l = 0; l < k; ++l) {
        const double product = static_cast<double>(a(i, l)) * static_cast<double>(b(l, j));
        sum += product;
        magnitude += std::abs(product);
      }
      // One more rounding for each product where there is no fused multiply-add.
      const double bound = ((std::min(block, static_cast<double>(k)) + blocks + 1) * magnitude +
                            blocks * std::abs(old)) *
                           0x1p-24;
      const double error = std::abs(static_cast<double>(c(i, j)) - sum);
      if (!(error <= bound)) return error / bound;
      worst = std::max(worst, error / bound);
    }
  }
  return worst;
}

// Calls body(a by columns, b by columns, output).
template <class Body>
void for_each_form(Body body) {
  for (int form = 0; form < 8; ++form) {
    body((form & 1) != 0, (form & 2) != 0, (form & 4) != 0 ? GemmOutput::add : GemmOutput::replace);
  }
}

// One product of integers, compared with a plain loop.
void check_integers(Executor& executor, Index m, Index n, Index k, std::mt19937& random) {
  CAPTURE(m);
  CAPTURE(n);
  CAPTURE(k);
  for_each_form([&](bool a_by_columns, bool b_by_columns, GemmOutput output) {
    CAPTURE(a_by_columns);
    CAPTURE(b_by_columns);
    const Index gap = static_cast<Index>(random() % 3);
    Matrix a(m, k, a_by_columns, gap, random() % 3), b(k, n, b_by_columns, gap, random() % 3);
    Matrix c(m, n, false, static_cast<Index>(random() % 3), random() % 3);
    a.fill_integers(random);
    b.fill_integers(random);
    c.fill_integers(random);
    Floats expected;
    for (Index i = 0; i < m; ++i) {
      for (Index j = 0; j < n; ++j) {
        int sum = output == GemmOutput::add ? static_cast<int>(c(i, j)) : 0;
        for (Index l = 0; l < k; ++l) sum += static_cast<int>(a(i, l)) * static_cast<int>(b(l, j));
        expected.push_back(static_cast<float>(sum));
      }
    }
    run(executor, a.view(), b.view(), c, output);
    CHECK(c.values() == expected);
  });
}

TEST_CASE("scratch for sizes up to some is enough for all of them") {
  const Index sizes[] = {1, 5, 12, 31, 33, 96, 97, 250, 257, 300, 768, 1000, 1024, 1100, 2300, 5000};
  for (const Index n_workers : {1, 2, 7}) {
    for (const Index most : {40, 257, 1024, 5000}) {
      const std::size_t enough = ops::gemm_scratch_bytes_up_to(most, most, most, n_workers);
      for (const Index m : sizes) {
        for (const Index n : sizes) {
          for (const Index k : sizes) {
            if (m > most || n > most || k > most) continue;
            REQUIRE(ops::gemm_scratch_bytes(m, n, k, n_workers) <= enough);
          }
        }
      }
    }
  }
  CHECK(ops::gemm_scratch_bytes_up_to(16, 32, 32, 1) < 64 << 10);  // little for little
}

}  // namespace

TEST_CASE("gemm of every small size is exact where sums are integers") {
  for_each_target([](simd::Target) {
    std::mt19937 random(1);
    InlineExecutor here;
    for (Index m = 1; m <= 14; ++m) {
      for (const Index k : {1, 2, 3, 4, 5, 9}) check_integers(here, m, 17, k, random);
    }
    for (Index n = 1; n <= 66; ++n) check_integers(here, 7, n, 6, random);
    for (Index k = 1; k <= 35; ++k) check_integers(here, 13, 33, k, random);
  });
}

TEST_CASE("gemm of many blocks is exact where sums are integers") {
  for_each_target([](simd::Target) {
    std::mt19937 random(2);
    InlineExecutor here;
    BackwardExecutor backward;
    for (Executor* const executor :
         {static_cast<Executor*>(&here), static_cast<Executor*>(&backward)}) {
      check_integers(*executor, 97, 40, 257, random);    // blocks of rows, of k
      check_integers(*executor, 3, 1025, 20, random);    // of columns
      check_integers(*executor, 13, 1100, 530, random);  // of columns and of k: several passes
      check_integers(*executor, 300, 3, 1, random);
      check_integers(*executor, 1, 1, 2000, random);
    }
  });
}

TEST_CASE("errors of gemm are below the bound") {
  for_each_target([](simd::Target) {
    std::mt19937 random(3);
    InlineExecutor here;
    for (const auto& [m, n, k] :
         {std::array<Index, 3>{31, 45, 96}, std::array<Index, 3>{25, 34, 256},
          std::array<Index, 3>{14, 19, 700}, std::array<Index, 3>{9, 70, 3}}) {
      for_each_form([&](bool a_by_columns, bool b_by_columns, GemmOutput output) {
        Matrix a(m, k, a_by_columns, 1, 1), b(k, n, b_by_columns, 2, 0), c(m, n, false, 3, 2);
        a.fill(random);
        b.fill(random);
        c.fill(random);
        const Floats before = c.values();
        run(here, a.view(), b.view(), c, output);
        CHECK(worst_error(a, b, c, before, output) <= 1.0);
      });
    }
  });
}

TEST_CASE("gemm gives the same bits with any number of workers") {
  for_each_target([](simd::Target) {
    std::mt19937 random(4);
    for (const auto& [m, n, k] :
         {std::array<Index, 3>{330, 50, 300}, std::array<Index, 3>{10, 640, 70},
          std::array<Index, 3>{64, 1100, 530}, std::array<Index, 3>{96, 64, 1200}}) {
      CAPTURE(m);
      for_each_form([&](bool a_by_columns, bool b_by_columns, GemmOutput output) {
        Matrix a(m, k, a_by_columns, 0, 0), b(k, n, b_by_columns, 0, 0);
        a.fill(random);
        b.fill(random);
        Matrix first(m, n, false, 0, 0);
        for (const Index n_workers : {1, 2, 3, 7}) {
          CAPTURE(n_workers);
          Threads threads(n_workers);
          Matrix c(m, n, false, 0, 0);
          c.fill(0.7f);
          run(threads, a.view(), b.view(), c, output);
          CHECK(threads.most_tasks >= n_workers);  // the work was split
          if (n_workers == 1) {
            first = c;
          } else {
            CHECK(same_bits(c.values(), first.values()));
          }
        }
      });
    }
  });
}

TEST_CASE("an element of gemm does not depend on other rows and columns, or on the layout") {
  for_each_target([](simd::Target) {
    constexpr Index m = 29, n = 75, k = 301;
    std::mt19937 random(5);
    InlineExecutor here;
    Matrix a(m, k, false, 0, 0), b(k, n, false, 0, 0), c(m, n, false, 0, 0);
    a.fill(random);
    b.fill(random);
    run(here, a.view(), b.view(), c, GemmOutput::replace);
    Matrix columns_of_a(m, k, true, 1, 0), columns_of_b(k, n, true, 1, 0), again(m, n, false, 1, 0);
    for (Index l = 0; l < k; ++l) {
      for (Index i = 0; i < m; ++i) columns_of_a(i, l) = a(i, l);
      for (Index j = 0; j < n; ++j) columns_of_b(l, j) = b(l, j);
    }
    run(here, columns_of_a.view(), columns_of_b.view(), again, GemmOutput::replace);
    CHECK(same_bits(again.values(), c.values()));
    for (const Index i : {0, 5, 6, 28}) {
      for (const Index j : {0, 15, 16, 74}) {
        Matrix one(1, 1, false, 0, 0);
        const MatrixView<const float> column(&b(0, j), {k, 1}, {n, 1});
        run(here, a.view().rows(i, 1), column, one, GemmOutput::replace);
        CHECK(one(0, 0) == c(i, j));
      }
    }
  });
}

TEST_CASE("the three products of training are those of transposed views") {
  constexpr Index m = 5, n = 3, k = 4;
  std::mt19937 random(6);
  InlineExecutor here;
  Matrix x(m, k, false, 1, 0), w(n, k, false, 2, 0), dy(m, n, false, 0, 0);
  for (Matrix* const matrix : {&x, &w, &dy}) matrix->fill_integers(random);
  Matrix y(m, n, false, 0, 0), dx(m, k, false, 0, 0), dw(n, k, false, 0, 0);
  dw.fill(100.0f);
  run(here, x.view(), ops::transposed(w.view()), y, GemmOutput::replace);
  run(here, dy.view(), w.view(), dx, GemmOutput::replace);
  run(here, ops::transposed(dy.view()), x.view(), dw, GemmOutput::add);
  for (Index r = 0; r < m; ++r) {
    for (Index i = 0; i < n; ++i) {
      float sum = 0;
      for (Index j = 0; j < k; ++j) sum += x(r, j) * w(i, j);
      CHECK(y(r, i) == sum);
    }
    for (Index j = 0; j < k; ++j) {
      float sum = 0;
      for (Index i = 0; i < n; ++i) sum += dy(r, i) * w(i, j);
      CHECK(dx(r, j) == sum);
    }
  }
  for (Index i = 0; i < n; ++i) {
    for (Index j = 0; j < k; ++j) {
      float sum = 100;
      for (Index r = 0; r < m; ++r) sum += dy(r, i) * x(r, j);
      CHECK(dw(i, j) == sum);
    }
  }
}

TEST_CASE("gemm keeps NaN and infinities where they belong, and does not read what it replaces") {
  for_each_target([](simd::Target) {
    constexpr Index m = 15, n = 37, k = 20;
    InlineExecutor here;
    for (const bool by_columns : {false, true}) {
      Matrix a(m, k, by_columns, 0, 0), b(k, n, by_columns, 0, 0), c(m, n, false, 0, 0);
      a.fill(1.0f);
      b.fill(1.0f);
      c.fill(kNan);
      a(13, 19) = kNan;
      a(2, 0) = 0.0f;
      b(0, 36) = kInf;
      run(here, a.view(), b.view(), c, GemmOutput::replace);
      for (Index i = 0; i < m; ++i) {
        for (Index j = 0; j < n; ++j) {
          CAPTURE(i);
          CAPTURE(j);
          if (i == 13 || (i == 2 && j == 36)) {
            CHECK(std::isnan(c(i, j)));  // 0 * inf, too
          } else {
            CHECK(c(i, j) == (j == 36 ? kInf : i == 2 ? 19.0f : 20.0f));
          }
        }
      }
    }
  });
}

TEST_CASE("gemm of nothing") {
  InlineExecutor here;
  for (const GemmOutput output : {GemmOutput::replace, GemmOutput::add}) {
    Matrix a(3, 0, false, 2, 0), b(0, 5, false, 0, 0), c(3, 5, false, 1, 0);
    c.fill(2.0f);
    run(here, a.view(), b.view(), c, output);
    CHECK(c.values() == Floats(15, output == GemmOutput::add ? 2.0f : 0.0f));
    Matrix no_rows(0, 4, false, 0, 0), right(4, 5, false, 0, 0), none(0, 5, false, 0, 0);
    run(here, no_rows.view(), right.view(), none, output);
    Matrix left(3, 4, false, 0, 0), no_columns(4, 0, false, 1, 0), empty(3, 0, false, 1, 0);
    run(here, left.view(), no_columns.view(), empty, output);
  }
}

TEST_CASE("scratch of gemm is bounded, and blocks of k are even") {
  static_assert(ops::gemm_scratch_bytes(0, 10, 10, 2) == 0);
  static_assert(ops::gemm_scratch_bytes(2000, 1024, 1024, 1) <= (1 << 20) + 136 * 1024);
  for (Index k = 0; k <= 3000; ++k) {
    const Index block = kernels::gemm_block_k(k);
    CHECK(block % 8 == 0);
    CHECK((block >= 8 && block <= kernels::kGemmBlockK));
    CHECK((k <= kernels::kGemmBlockK || block > kernels::kGemmBlockK / 2));
  }
  for (const Index m : {1, 11, 144, 145, 2000, 50257}) {
    for (const Index n : {1, 33, 1024, 1025, 50257}) {
      for (const Index k : {1, 256, 257, 50257}) {
        for (const Index n_workers : {1, 2, 3, 64}) {
          const ops::detail::GemmCut cut = ops::detail::gemm_cut(m, n, k, n_workers);
          CHECK(cut.panel_floats <= 1024 * 256);
          CHECK(cut.rows <= kernels::kGemmMaxRows);
          CHECK((cut.rows >= 1 && cut.task_columns >= 1 && cut.k_step >= 1));
          const std::size_t bytes = ops::gemm_scratch_bytes(m, n, k, n_workers);
          CHECK(bytes % kAlignment == 0);
          CHECK(bytes <= size((1 << 20) + n_workers * 136 * 1024));
        }
      }
    }
  }
}

}  // namespace gemm_test
