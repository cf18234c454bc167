// SPDX-License-Identifier: Apache-2.0
#include "nibble/ops/embedding_back.hpp"

#include "doctest/doctest.h"
#include "kernels/arrays.hpp"
#include "kernels/each_target.hpp"

namespace embedding_back_test {

using namespace nibble;
using namespace nibble_test;

TEST_CASE("AddScaled of every length") {
  for_each_target([](simd::Target) {
    const auto kernel = simd::kernel<kernels::AddScaled>();
    for_each_length([&](std::size_t n, std::size_t offset) {
      const Floats x = random_floats(n, -2, 2), before = random_floats(n, -2, 2, 2);
      Guarded from(x, offset), to(before, offset + 1);
      kernel(from.data(), 0.7f, to.data(), static_cast<Index>(n));
      Exact exact, allowed;
      for (std::size_t i = 0; i < n; ++i) {
        exact.push_back(before[i] + static_cast<long double>(x[i]) * 0.7f);
        allowed.push_back(kU * (std::fabs(exact[i]) + std::fabs(x[i])));
      }
      CHECK(worst(to.values(), exact, allowed) <= 1.0);
      CHECK((to.guards_intact() && from.guards_intact()));
      Exact wrong = exact;
      for (auto& v : wrong) v *= 1.01L;
      if (n > 0) CHECK(worst(to.values(), wrong, allowed) > 1.0);
    });
  });
}

TEST_CASE("gradients of embeddings: rows add up in order, the same on any number of workers") {
  constexpr Index kM = 900, kN = 37, kStride = 210;
  for (const Index k : {1, 31, 64, 203}) {
    CAPTURE(k);
    const Floats dy = random_floats(kM * kStride, -1, 1);
    std::vector<std::int32_t> tokens;
    for (Index i = 0; i < kM; ++i) {
      // A frequent token, and rows that the input gave as numbers.
      const Index token = i % 3 == 0 ? 5 : i % 11 == 1 ? -1 : i * i % (kN - 1);
      tokens.push_back(static_cast<std::int32_t>(token));
    }
    const MatrixView<const float> view(dy.data(), {kM, k}, {kStride, 1});
    const auto run_with = [&](Executor& executor) {
      Floats table(static_cast<std::size_t>(kN * (k + 2)), 0.5f);
      ops::embedding_back(executor, tokens, view, 0.25f,
                          MatrixView<float>(table.data(), {kN, k}, {k + 2, 1}));
      return table;
    };
    for_each_target([&](simd::Target) {
      InlineExecutor one;
      BackwardExecutor three;
      const Floats table = run_with(one);
      CHECK(run_with(three) == table);
      CHECK((three.n_tasks_run > 0) == (k > 31));
      for (Index row = 0; row < kN; ++row) {
        for (Index j = 0; j < k + 2; ++j) {
          double sum = 0.5, size = 0.5;
          for (Index i = 0; i < kM && j < k; ++i) {
            if (tokens[static_cast<std::size_t>(i)] != row) continue;
            const double v = dy[static_cast<std::size_t>(i * kStride + j)];
            sum += 0.25 * v;
            size += 0.25 * std::fabs(v);
          }
          // Up to 330 additions; the row that no token has, and gaps, are unchanged.
          const double error = table[static_cast<std::size_t>(row * (k + 2) + j)] - sum;
          REQUIRE(std::fabs(error) <= (size == 0.5 ? 0 : 340 * 0x1p-24 * size));
        }
      }
    });
  }
}

TEST_CASE("gradients of position embeddings, and of chosen rows") {
  const Floats dy = {1, 2, 3, 4, 5, 6};
  Floats table(8, 0.0f);
  InlineExecutor executor;
  const auto position = [](Index i) { return i % 2 + 1; };
  ops::rows_back(executor, MatrixView<const float>(dy.data(), 3, 2), 1.0f,
                 MatrixView<float>(table.data(), 4, 2), position);
  CHECK(table == Floats{0, 0, 6, 8, 3, 4, 0, 0});
}

}  // namespace embedding_back_test
