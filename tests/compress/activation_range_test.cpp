// SPDX-License-Identifier: Apache-2.0
#include "nibble/compress/activation_range.hpp"

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "why.hpp"

namespace activation_range_test {

using namespace nibble;
using namespace nibble::compress;

namespace {

struct Numbers {
  std::vector<float> x;
  Histogram histogram;
  float low = kInfinity, high = -kInfinity;

  explicit Numbers(std::vector<float> values, Index n_bins = 2048)
      : x(std::move(values)), histogram(n_bins) {
    histogram.add(x);
    for (const float v : x) {
      low = std::fmin(low, v);
      high = std::fmax(high, v);
    }
  }
  ObservedNumbers observed() const { return {histogram, low, high}; }
  double range() const { return histogram.bin_width() * static_cast<double>(histogram.n_bins()); }
};

ActivationRange range_of(const Numbers& n, const RangeOptions& options) {
  const auto r = activation_range(n.observed(), options);
  REQUIRE_MESSAGE(r, test::why(r));
  CHECK(r->scale.is_unsigned == options.is_unsigned);
  return *r;
}

enum class Kind { normal, outliers, positive, negative, silu, shifted };
constexpr Kind kKinds[] = {Kind::normal,   Kind::outliers, Kind::positive,
                           Kind::negative, Kind::silu,     Kind::shifted};

std::vector<float> sample(Kind kind, std::size_t n, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(n);
  for (std::size_t i = 0; i < n; ++i) {
    float v = normal(random);
    if (kind == Kind::outliers && i % 500 == 0) v *= 40;
    if (kind == Kind::positive) v = std::fabs(v);
    if (kind == Kind::negative) v = -std::fabs(v) * 0.01f;
    if (kind == Kind::silu) v = v / (1 + std::exp(-v));
    if (kind == Kind::shifted) v = v * 0.3f + 4;
    x[i] = v;
  }
  return x;
}

// The mean squared error of quantizing the numbers themselves.
double true_error(const std::vector<float>& x, const ActivationRange& r) {
  double sum = 0;
  for (const float v : x) {
    const double scale = static_cast<double>(r.scale.scale);
    const double low = r.scale.is_unsigned ? 0 : -127, high = r.scale.is_unsigned ? 255 : 127;
    const double code =
        std::clamp(std::round(static_cast<double>(v) / scale) + r.scale.zero_point, low, high);
    const double miss = static_cast<double>(v) - scale * (code - r.scale.zero_point);
    sum += miss * miss;
  }
  return sum / static_cast<double>(x.size());
}

bool near(double a, double b, double relative) {
  return std::fabs(a - b) <= relative * std::fabs(b);
}

}  // namespace

TEST_CASE("range: min/max holds all numbers, with the finest steps") {
  for (const Kind kind : kKinds) {
    CAPTURE(static_cast<int>(kind));
    const Numbers n(sample(kind, 5000, 1));
    const ActivationRange s = range_of(n, {RangeMethod::min_max});
    CHECK(near(static_cast<double>(s.scale.scale),
               std::fmax(-static_cast<double>(n.low), static_cast<double>(n.high)) / 127, 1e-6));
    CHECK(s.scale.zero_point == 0);
    CHECK(s.clipped == 0);
    const ActivationRange u = range_of(n, {RangeMethod::min_max, true});
    const double low = std::fmin(0, n.low), high = std::fmax(0, n.high);
    CHECK(near(static_cast<double>(u.scale.scale), (high - low) / 255, 1e-6));
    CHECK(u.scale.zero_point == static_cast<int>(std::round(-low / ((high - low) / 255))));
    CHECK(u.scale.zero_point >= 0);
    CHECK(u.scale.zero_point <= 255);
    CHECK(u.clipped == 0);
    CHECK(static_cast<double>(u.low()) <= low + static_cast<double>(u.scale.scale) * 0.501);
    CHECK(static_cast<double>(u.high()) >= high - static_cast<double>(u.scale.scale) * 0.501);
    // What the histogram says of the error is what it is (bins are an eighth of a step or less).
    CHECK(near(s.error, true_error(n.x, s), 0.05));
    CHECK(near(u.error, true_error(n.x, u), 0.05));
  }
}

TEST_CASE("range: percentiles are those of the sorted numbers, within a bin") {
  for (const Kind kind : kKinds) {
    for (const double percentile : {99.0, 99.9, 99.99, 100.0}) {
      CAPTURE(static_cast<int>(kind));
      CAPTURE(percentile);
      const Numbers n(sample(kind, 20000, 2));
      const double bin = n.histogram.bin_width();
      std::vector<double> sizes, above, below;
      for (const float v : n.x) {
        sizes.push_back(std::fabs(static_cast<double>(v)));
        (v > 0 ? above : below).push_back(std::fabs(static_cast<double>(v)));
      }
      const double n_all = static_cast<double>(n.x.size());
      const auto bound = [&](std::vector<double>& x, double share) {
        std::sort(x.begin(), x.end());
        const auto cut = static_cast<std::size_t>(n_all * (1 - percentile / 100) * share + 1e-6);
        return cut < x.size() ? x[x.size() - 1 - cut] : 0.0;
      };
      const RangeOptions options{RangeMethod::percentile, false, percentile};
      const double scale = static_cast<double>(range_of(n, options).scale.scale);
      const double expected = bound(sizes, 1);
      CHECK(scale * 127 >= expected * (1 - 1e-6));
      CHECK(scale * 127 <= expected + bin);
      const ActivationRange u = range_of(n, {RangeMethod::percentile, true, percentile});
      const double width = bound(above, 0.5) + bound(below, 0.5);
      CHECK(static_cast<double>(u.scale.scale) * 255 >= width * (1 - 1e-6));
      CHECK(static_cast<double>(u.scale.scale) * 255 <= width + 2 * bin);
      CHECK(range_of(n, options).clipped <= 1 - percentile / 100 + 1e-12);
    }
  }
}

namespace {

// The divergence for a candidate, as its description says it, one bin after the other.
double divergence(const std::vector<double>& sizes, std::size_t t, std::size_t n_levels) {
  std::vector<double> p(sizes.begin(), sizes.begin() + static_cast<std::ptrdiff_t>(t));
  for (std::size_t i = t; i < sizes.size(); ++i) p[t - 1] += sizes[i];
  std::vector<double> q(t);
  for (std::size_t level = 0; level < n_levels; ++level) {
    const std::size_t begin = level * t / n_levels, end = (level + 1) * t / n_levels;
    double sum = 0, filled = 0;
    for (std::size_t i = begin; i < end; ++i) {
      sum += sizes[i];
      filled += sizes[i] > 0 ? 1 : 0;
    }
    for (std::size_t i = begin; i < end; ++i) {
      if (sizes[i] > 0) q[i] = sum / filled;
    }
  }
  double p_sum = 0, q_sum = 0, kl = 0;
  for (const double v : p) p_sum += v;
  for (const double v : q) q_sum += v;
  for (std::size_t i = 0; i < t; ++i) {
    if (p[i] == 0) continue;
    if (q[i] == 0) return INFINITY;
    kl += p[i] / p_sum * std::log(p[i] / p_sum / (q[i] / q_sum));
  }
  return kl;
}

std::vector<double> sizes_in_bins(const Numbers& n) {
  std::vector<double> sizes(static_cast<std::size_t>(n.histogram.n_bins()));
  for (const float v : n.x) {
    ++sizes[static_cast<std::size_t>(std::fabs(static_cast<double>(v)) / n.histogram.bin_width())];
  }
  return sizes;
}

}  // namespace

TEST_CASE("range: KL finds the least divergence of all candidates") {
  for (const Kind kind : kKinds) {
    for (const bool is_unsigned : {false, true}) {
      CAPTURE(static_cast<int>(kind));
      CAPTURE(is_unsigned);
      const Numbers n(sample(kind, 8000, 3));
      const bool is_one_sided = is_unsigned && (n.low >= 0 || n.high <= 0);
      const std::size_t n_levels = is_one_sided ? 256 : 128;
      const std::vector<double> sizes = sizes_in_bins(n);
      double least = INFINITY, bound = 0;
      for (std::size_t t = n_levels; t <= sizes.size(); ++t) {
        const double kl = divergence(sizes, t, n_levels);
        if (kl < least - 1e-12) {
          least = kl;
          bound = static_cast<double>(t) * n.histogram.bin_width();
        }
      }
      const ActivationRange r = range_of(n, {RangeMethod::kl, is_unsigned});
      const double low = std::fmax(std::fmin(n.low, 0.0f), -bound);
      const double high = std::fmin(std::fmax(n.high, 0.0f), bound);
      const double expected =
          is_unsigned ? (high - low) / 255 : std::fmin(std::fmax(-n.low, n.high), bound) / 127;
      CHECK(near(static_cast<double>(r.scale.scale), expected, 1e-6));
    }
  }
  // A tail whose bins all hold numbers: what is beyond a candidate counts. Fewer and fewer numbers,
  // or some bins that have many more than their neighbours.
  for (const double decay : {0.0, 50.0, 150.0, 400.0}) {
    CAPTURE(decay);
    std::vector<double> sizes;
    std::vector<Scalar<double>> counts;
    for (int i = 0; i < 2048; ++i) {
      const double uneven = 2 + (i < 600 ? i * 7919 % 13 : 0) + (i % 97 == 0 ? 50 : 0);
      sizes.push_back(decay > 0 ? std::floor(400 * std::exp(-i / decay)) : uneven);
      counts.push_back({sizes.back()});
    }
    for (const std::size_t n_levels : {128u, 256u}) {
      double least = INFINITY;
      std::size_t best = 0;
      for (std::size_t t = n_levels; t <= sizes.size() && sizes[t - 1] > 0; ++t) {
        const double kl = divergence(sizes, t, n_levels);
        if (kl < least - 1e-12) {
          least = kl;
          best = t;
        }
      }
      CHECK(compress::detail::least_divergent_bins(counts, n_levels) == best);
    }
  }
  // It clips outliers.
  const Numbers n(sample(Kind::outliers, 50000, 4));
  CHECK(range_of(n, {RangeMethod::kl}).scale.scale < 0.5f * range_of(n, {}).scale.scale);
}

TEST_CASE("range: MSE comes as near to the best range as a fine search") {
  for (const Kind kind : kKinds) {
    CAPTURE(static_cast<int>(kind));
    const Numbers n(sample(kind, 3000, 5));
    const double low = std::fmin(0, n.low), high = std::fmax(0, n.high);
    double best = INFINITY, best_unsigned = INFINITY;
    for (int i = 1; i <= 400; ++i) {
      ActivationRange r;
      r.scale.scale = static_cast<float>(std::fmax(-low, high) / 127 * i / 400);
      best = std::fmin(best, true_error(n.x, r));
    }
    for (int i = 1; i <= 50; ++i) {
      for (int j = 1; j <= 50; ++j) {
        const double from = low * i / 50, to = high * j / 50;
        ActivationRange r;
        r.scale.is_unsigned = true;
        r.scale.scale = static_cast<float>((to - from) / 255);
        r.scale.zero_point = static_cast<int>(std::round(-from / ((to - from) / 255)));
        best_unsigned = std::fmin(best_unsigned, true_error(n.x, r));
      }
    }
    const ActivationRange s = range_of(n, {RangeMethod::mse});
    const ActivationRange u = range_of(n, {RangeMethod::mse, true});
    CHECK(true_error(n.x, s) <= 1.03 * best);
    CHECK(true_error(n.x, u) <= 1.03 * best_unsigned);
    for (const auto method : {RangeMethod::min_max, RangeMethod::percentile, RangeMethod::kl}) {
      CHECK(s.error <= range_of(n, {method}).error * (1 + 1e-9));
      CHECK(u.error <= range_of(n, {method, true}).error * 1.01);
    }
    // A scale that is off by a few percent is worse: the measure sees it.
    if (kind == Kind::normal) {
      ActivationRange off = range_of(n, {RangeMethod::min_max});
      off.scale.scale *= 0.5f;
      CHECK(true_error(n.x, off) > s.error);
    }
  }
}

TEST_CASE("range: numbers that are all alike, all zero, very small or very large") {
  for (const RangeMethod method :
       {RangeMethod::min_max, RangeMethod::percentile, RangeMethod::kl, RangeMethod::mse}) {
    for (const bool is_unsigned : {false, true}) {
      CAPTURE(to_string(method));
      CAPTURE(is_unsigned);
      const RangeOptions options{method, is_unsigned};
      for (const float one : {2.5f, -2.5f, 1e-20f, -3e30f}) {
        CAPTURE(one);
        const Numbers n(std::vector<float>(10, one));
        const ActivationRange r = range_of(n, options);
        // One number is represented within half a step, which is a 254th or a 510th of it.
        CHECK(std::sqrt(true_error(n.x, r)) <=
              std::fabs(static_cast<double>(one)) / (is_unsigned ? 500 : 250));
      }
      const ActivationRange zero = range_of(Numbers(std::vector<float>(3)), options);
      CHECK(zero.scale.scale == quant::kMinStaticScale);
      CHECK(zero.scale.zero_point == 0);
      CHECK(zero.error == 0);
      const Numbers tiny({1e-42f, -1e-40f});
      CHECK(range_of(tiny, options).scale.scale >= quant::kMinStaticScale);

      const auto message = [&](const Numbers& n) {
        return test::why(activation_range(n.observed(), options));
      };
      CHECK(message(Numbers({})).find("no numbers") != std::string::npos);
      CHECK(message(Numbers({1, NAN})).find("not finite") != std::string::npos);
      CHECK(message(Numbers({1, INFINITY})).find("not finite") != std::string::npos);
      CHECK(message(Numbers({3e38f})).find("no 8-bit scale") != std::string::npos);
      Histogram none;
      CHECK(test::why(activation_range({none, 0, 0}, options)).find("no numbers") !=
            std::string::npos);
      const Numbers fine({1, 2});
      CHECK(!activation_range({fine.histogram, 0, 0}, options));
      CHECK(!activation_range({fine.histogram, 2, 1}, options));
      CHECK(!activation_range({fine.histogram, 0, 100}, options));
    }
  }
  const Numbers fine({1, 2});
  for (const double percentile : {0.0, -1.0, 100.5, static_cast<double>(NAN)}) {
    CHECK(!activation_range(fine.observed(), {RangeMethod::percentile, false, percentile}));
  }
}

}  // namespace activation_range_test
