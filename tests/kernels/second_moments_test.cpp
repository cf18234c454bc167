// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/second_moments.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "doctest/doctest.h"
#include "kernels/each_target.hpp"

namespace second_moments_test {

using namespace nibble;
using kernels::AddSecondMoments;

namespace {

struct Matrix {
  Index m, k, stride;
  std::vector<float> x;
  // Columns of very different sizes, and numbers outside of the matrix that would be seen.
  Matrix(Index rows, Index columns, Index more)
      : m(rows), k(columns), stride(columns + more), x(static_cast<std::size_t>(m * stride), NAN) {
    std::uint32_t state = 1;
    for (Index r = 0; r < m; ++r) {
      for (Index c = 0; c < k; ++c) {
        state = state * 1664525u + 1013904223u;
        const float v = static_cast<float>(state >> 8) * 0x1p-23f - 1.0f;
        at(r, c) = std::ldexp(v, static_cast<int>(c % 7) - 3);
      }
    }
  }
  float& at(Index r, Index c) { return x[static_cast<std::size_t>(r * stride + c)]; }
};

// Adds twice, so that what was there counts; columns in ranges as tasks have them.
void check(Matrix& a) {
  const auto size = static_cast<std::size_t>(a.k * (a.k + 1) / 2);
  std::vector<double> sums(size + 1, 0.5);
  for (int times = 0; times < 2; ++times) {
    for (Index first = 0; first < a.k; first += AddSecondMoments::kColumns) {
      simd::kernel<AddSecondMoments>()(a.x.data(), a.stride, a.m, a.k, first,
                                       std::min(a.k, first + AddSecondMoments::kColumns),
                                       sums.data());
    }
  }
  const double bound =
      static_cast<double>(AddSecondMoments::kRowsInFloats) * 0x1p-24 * (1 + 0x1p-18);
  int faults = 0;
  std::size_t place = 0;
  for (Index i = 0; i < a.k; ++i) {
    for (Index j = i; j < a.k; ++j, ++place) {
      double sum = 0, sizes = 0;
      for (Index r = 0; r < a.m; ++r) {
        const double product = static_cast<double>(a.at(r, i)) * static_cast<double>(a.at(r, j));
        sum += product;
        sizes += std::fabs(product);
      }
      const double error = std::fabs(sums[place] - 0.5 - 2 * sum);
      faults += error <= 2 * bound * sizes + 0x1p-45 * (1 + sizes) ? 0 : 1;
    }
  }
  CHECK(faults == 0);
  CHECK(sums[size] == 0.5);
}

}  // namespace

TEST_CASE("second moments of any size, on every target") {
  nibble_test::for_each_target([](simd::Target) {
    for (const Index k : {1, 2, 7, 15, 16, 17, 31, 32, 33, 47, 64, 65, 100}) {
      for (const Index m : {0, 1, 31, 32, 33, 127, 128, 129, 300}) {
        CAPTURE(k);
        CAPTURE(m);
        Matrix a(m, k, m % 3);
        check(a);
      }
    }
    // All columns in one call, and a range in the middle alone.
    Matrix a(40, 75, 1);
    std::vector<double> whole(75 * 76 / 2), parts(75 * 76 / 2);
    const auto add = simd::kernel<AddSecondMoments>();
    add(a.x.data(), a.stride, a.m, a.k, 0, a.k, whole.data());
    for (const Index first : {64, 0, 32}) {
      add(a.x.data(), a.stride, a.m, a.k, first, std::min<Index>(a.k, first + 32), parts.data());
    }
    CHECK(whole == parts);
  });
}

TEST_CASE("second moments: sums of many rows keep what floats would lose") {
  nibble_test::for_each_target([](simd::Target) {
    Matrix a(4096, 2, 0);
    for (Index r = 0; r < a.m; ++r) {
      a.at(r, 0) = 1.0f;
      a.at(r, 1) = r < 32 ? 16384.0f : 0x1p-12f;
    }
    std::vector<double> sums(3);
    simd::kernel<AddSecondMoments>()(a.x.data(), 2, a.m, 2, 0, 2, sums.data());
    CHECK(sums[0] == 4096);
    CHECK(sums[1] == 32 * 16384.0 + (4096 - 32) * 0x1p-12);
  });
}

}  // namespace second_moments_test
