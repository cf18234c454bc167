// SPDX-License-Identifier: Apache-2.0
#include "nibble/compress/column_factor.hpp"

#include <cmath>
#include <string>
#include <vector>

#include "compress/moments.hpp"
#include "doctest/doctest.h"
#include "kernels/arrays.hpp"
#include "why.hpp"

namespace column_factor_test {

using namespace nibble;
using namespace nibble::compress;
using test::damped;
using test::first_rows;
using test::random_moments;

TEST_CASE("the factor is that of the inverses of what is left of H, in both orders") {
  for (const Index k : {1, 5, 64, 65, 150}) {
    const std::vector<double> h = random_moments(k, 3);
    const auto at = [&](Index i, Index j) { return static_cast<std::size_t>(i * k + j); };
    for (const ColumnOrder order : {ColumnOrder::natural, ColumnOrder::by_diagonal}) {
      nibble_test::BackwardExecutor executor;
      const auto factor = ColumnFactor::create(h, k, {.damping = 0.1, .order = order}, executor);
      REQUIRE_MESSAGE(factor, test::why(factor));
      CHECK(factor->damping() == 0.1);
      CHECK(factor->stride() % 256 == 0);
      const std::vector<double> wanted = damped(h, k, 0.1);
      std::vector<double> in_order(wanted.size());
      for (Index i = 0; i < k; ++i) {
        for (Index j = 0; j < k; ++j) {
          in_order[at(i, j)] = wanted[at(factor->column(i), factor->column(j))];
        }
      }
      const auto rows = first_rows(in_order, k);
      for (Index i = 0; i < k; ++i) {
        const auto& row = rows[static_cast<std::size_t>(i)];
        if (order == ColumnOrder::natural) {
          CHECK(factor->column(i) == i);
        } else if (i > 0) {
          CHECK(in_order[at(i, i)] <= in_order[at(i - 1, i - 1)]);
        }
        CHECK(factor->remaining(i) * factor->scale() == doctest::Approx(1 / row[0]).epsilon(1e-9));
        for (Index j = 0; j < factor->stride(); ++j) {
          const double exact =
              j <= i || j >= k ? 0.0 : -row[static_cast<std::size_t>(j - i)] / row[0];
          CHECK(std::abs(double{factor->row(i)[j]} - exact) <= 1e-7 * std::abs(exact) + 1e-12);
        }
      }
    }
  }
}

TEST_CASE("damping is raised tenfold, to 1 and no further") {
  InlineExecutor executor;
  const auto damping = [&](double off, double from) {
    const std::vector<double> h = {1, 0, off, 1};  // positive definite from off - 1 on
    const auto factor = ColumnFactor::create(h, 2, {.damping = from}, executor);
    return factor ? factor->damping() : -1;
  };
  CHECK(damping(0.9, 0) == 0);
  CHECK(damping(1, 0) == 1e-6);
  CHECK(damping(1.05, 0.02) == 0.2);
  CHECK(damping(1.9, 0.3) == 1);
  CHECK(damping(2.5, 0.3) == -1);
  CHECK(damping(1.9, 3) == 3);
}

TEST_CASE("what are no second moments is refused with a reason") {
  InlineExecutor executor;
  const auto create = [&](std::vector<double> h, Index k, double damping = 0.01) {
    const auto factor = ColumnFactor::create(h, k, {.damping = damping}, executor);
    REQUIRE(!factor);
    return factor.error().message;
  };
  CHECK(create(std::vector<double>(9), 3).find("no data were seen") != std::string::npos);
  CHECK(create({1, 0, 0, 1}, 3).find("9 numbers, not 4") != std::string::npos);
  CHECK(create({1}, 1, -1).find("damping") != std::string::npos);
  CHECK(create({1, 0, 5, 1}, 2).find("semidefinite") != std::string::npos);
  CHECK(create({1, 0, NAN, 1}, 2).find("(1, 0)") != std::string::npos);
  CHECK(create({1, 0, 0, -1}, 2).find("(1, 1)") != std::string::npos);
  CHECK(create({}, 0).find("0 columns") != std::string::npos);
}

}  // namespace column_factor_test
