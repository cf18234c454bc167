// SPDX-License-Identifier: Apache-2.0
//
// Masks against a selection that sorts nothing: a weight stays if few enough others of its row beat
// it.
#include "nibble/compress/weight_mask.hpp"

#include <cmath>
#include <random>
#include <vector>

#include "doctest/doctest.h"
#include "why.hpp"

namespace weight_mask_test {

using namespace nibble;
using namespace nibble::compress;

namespace {

std::vector<float> some_weights(std::size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> w(n);
  for (float& x : w) x = std::round(normal(random) * 8) / 8;  // with equal ones
  return w;
}

void check(Index n, Index k, const MaskShare& share, bool by_norm) {
  const auto w = some_weights(static_cast<std::size_t>(n * k), static_cast<unsigned>(n + k));
  std::vector<double> norms;
  for (Index j = 0; by_norm && j < k; ++j) norms.push_back(0.5 + static_cast<double>(j * 7 % 5));
  const auto mask = choose_mask(w, n, k, share, norms);
  REQUIRE_MESSAGE(mask, test::why(mask));
  REQUIRE(mask->size() == w.size());
  for (Index i = 0; i < n; ++i) {
    for (Index j = 0; j < k; ++j) {
      const auto score = [&](Index c) {
        return std::fabs(static_cast<double>(w[static_cast<std::size_t>(i * k + c)])) *
               (by_norm ? norms[static_cast<std::size_t>(c)] : 1);
      };
      const Index begin = share.m > 0 ? j / share.m * share.m : 0;
      const Index end = share.m > 0 ? std::min(k, begin + share.m) : k;
      const Index room = share.m > 0 ? share.n : std::lround(share.kept * static_cast<double>(k));
      Index better = 0;
      for (Index c = begin; c < end; ++c) {
        better += score(c) > score(j) || (score(c) == score(j) && c < j) ? 1 : 0;
      }
      CHECK((*mask)[static_cast<std::size_t>(i * k + j)] == (better < room ? 1 : 0));
    }
  }
  auto masked = w;
  apply_mask(*mask, masked);
  for (std::size_t i = 0; i < w.size(); ++i) {
    CHECK(masked[i] == ((*mask)[i] != 0 ? w[i] : 0.0f));
  }
}

}  // namespace

TEST_CASE("magnitude and Wanda keep the highest scores of each row, or of each group") {
  for (const bool by_norm : {false, true}) {
    for (const Index k : {1, 5, 63, 64, 65, 130}) {
      for (const double kept : {0.0, 0.3, 0.5, 1.0}) check(3, k, {.kept = kept}, by_norm);
      check(3, k, {.n = 2, .m = 4}, by_norm);
      check(2, k, {.n = 4, .m = 8}, by_norm);
    }
  }
  // The input decides: a small weight of a loud channel stays.
  const auto wanda = choose_mask(std::vector<float>{1, 3}, 1, 2, {}, std::vector<double>{4, 1});
  CHECK(*wanda == std::vector<std::uint8_t>{1, 0});
}

TEST_CASE("masks of nothing are errors") {
  const std::vector<float> w(12, 1.0f);
  CHECK(!choose_mask(w, 3, 5, {}));
  CHECK(!choose_mask(w, 3, 4, {.kept = 1.5}));
  CHECK(!choose_mask(w, 3, 4, {.n = 5, .m = 4}));
  CHECK(!choose_mask(w, 3, 4, {.n = -1, .m = 4}));
  CHECK(!choose_mask(w, 3, 4, {.n = 1, .m = -4}));
  CHECK(!choose_mask(w, 3, 4, {}, std::vector<double>(3, 1.0)));
  CHECK(!choose_mask(w, 3, 4, {}, std::vector<double>{1, 1, 1, -1}));
  CHECK(!choose_mask(w, 3, 4, {}, std::vector<double>{1, 1, 1, INFINITY}));
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    std::vector<float> not_finite = w;
    not_finite[5] = bad;
    const auto mask = choose_mask(not_finite, 3, 4, {}, std::vector<double>{1, 0, 1, 1});
    REQUIRE(!mask);
    CHECK(mask.error().code == Errc::malformed);
  }
}

}  // namespace weight_mask_test
