// SPDX-License-Identifier: Apache-2.0
#include "nibble/compress/histogram.hpp"

#include <cmath>
#include <random>
#include <utility>
#include <vector>

#include "doctest/doctest.h"

namespace histogram_test {

using namespace nibble;
using compress::Histogram;

namespace {

// The counts of `x` in bins of `width`, straight from the definition.
std::pair<std::vector<std::uint64_t>, std::vector<std::uint64_t>> counted(
    const std::vector<float>& x, double width, Index n_bins) {
  std::vector<std::uint64_t> above(static_cast<std::size_t>(n_bins)), below(above);
  for (const float v : x) {
    if (v == 0) continue;
    const auto bin =
        static_cast<std::size_t>(std::floor(std::fabs(static_cast<double>(v)) / width));
    ++(v > 0 ? above : below).at(bin);
  }
  return {above, below};
}

void check_equal(const Histogram& h, const std::vector<float>& x) {
  const auto [above, below] = counted(x, h.bin_width(), h.n_bins());
  CHECK(std::equal(above.begin(), above.end(), h.above_zero().begin(), h.above_zero().end()));
  CHECK(std::equal(below.begin(), below.end(), h.below_zero().begin(), h.below_zero().end()));
  CHECK(h.n_values() == x.size());
}

// Numbers that grow, so that the range has to.
std::vector<float> growing(std::size_t n, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(n);
  for (std::size_t i = 0; i < n; ++i) {
    x[i] = i % 17 == 0 ? 0.0f : normal(random) * std::exp(static_cast<float>(i) * 0.005f);
  }
  return x;
}

}  // namespace

TEST_CASE("histogram: counts as if the range had been known, in any order and in any pieces") {
  for (const Index n_bins : {Index{256}, Index{2048}}) {
    std::vector<float> x = growing(1500, 1);
    Histogram h(n_bins);
    for (std::size_t i = 0; i < x.size(); i += 7) {
      h.add(std::span(x).subspan(i, std::min<std::size_t>(7, x.size() - i)));
    }
    check_equal(h, x);
    float largest = 0;
    std::uint64_t n_zeros = 0;
    for (const float v : x) {
      largest = std::fmax(largest, std::fabs(v));
      n_zeros += v == 0 ? 1 : 0;
    }
    CHECK(h.n_zeros() == n_zeros);
    // The range is a power of two, and the least that holds all.
    const double range = h.bin_width() * static_cast<double>(n_bins);
    CHECK(range > static_cast<double>(largest));
    CHECK(range / 2 <= static_cast<double>(largest));
    CHECK(std::exp2(std::round(std::log2(range))) == range);

    std::vector<float> backwards(x.rbegin(), x.rend());
    Histogram all(n_bins);
    all.add(backwards);
    CHECK(all.bin_width() == h.bin_width());
    check_equal(all, x);
  }
}

TEST_CASE("histogram: merging is counting both") {
  const std::vector<float> a = growing(300, 2), b = growing(1400, 3);
  for (const bool swap : {false, true}) {
    Histogram first, second;
    first.add(swap ? b : a);
    second.add(swap ? a : b);
    first.merge(second);
    std::vector<float> both = a;
    both.insert(both.end(), b.begin(), b.end());
    check_equal(first, both);
    Histogram empty;
    first.merge(empty);
    check_equal(first, both);
    empty.merge(first);
    check_equal(empty, both);
  }
}

TEST_CASE("histogram: the least and the largest numbers, zeros, what is not finite") {
  Histogram h;
  CHECK(h.n_values() == 0);
  const float tiny = std::numeric_limits<float>::denorm_min();
  const float huge = std::numeric_limits<float>::max();
  h.add(std::vector<float>{0, -0.0f});
  CHECK(h.n_zeros() == 2);
  h.add(std::vector<float>{tiny, tiny, -tiny});
  CHECK(h.above_zero()[1024] == 2);  // the range is twice the number
  CHECK(h.below_zero()[1024] == 1);
  h.add(std::vector<float>{huge, -huge, 1});
  check_equal(h, {0, 0, tiny, tiny, -tiny, huge, -huge, 1});
  CHECK(h.above_zero()[0] == 3);
  CHECK(h.above_zero()[2047] == 1);
  CHECK(h.below_zero()[2047] == 1);

  Histogram strange;
  strange.add(std::vector<float>{NAN, INFINITY, -INFINITY, 3});
  CHECK(strange.n_not_finite() == 3);
  check_equal(strange, {3});
  Histogram tinies, other;
  tinies.add(std::vector<float>{tiny});
  other.add(std::vector<float>{huge});
  tinies.merge(other);
  check_equal(tinies, {tiny, huge});
  other.merge(tinies);
  check_equal(other, {huge, tiny, huge});
}

}  // namespace histogram_test
