// SPDX-License-Identifier: Apache-2.0
//
// Searches of scales against all scales there are.
#include "nibble/quant/weighted.hpp"

#include <cstring>
#include <limits>
#include <string>

#include "doctest/doctest.h"
#include "oracle.hpp"

namespace {

using namespace nibble::quant;
using nibble::f16;

#define SYMMETRIC_FORMATS Q4_0, Q5_0, Q8_0, Q3_H, Q2_H, TQ2_0, Q2_0, Q1_0
#define ALL_FORMATS SYMMETRIC_FORMATS, Q4_1, Q5_1, Q4_K, Q5_K, Q6_K, Q2_K, Q3_K

template <class F>
bool same(const typename F::Block& a, const typename F::Block& b) {
  return std::memcmp(&a, &b, sizeof(a)) == 0;
}

// In double, from the bits of a block of one scale.
template <class F>
double error_of(const std::vector<float>& x, const std::vector<float>& w,
                const typename F::Block& block) {
  double sum = 0;
  for (int i = 0; i < F::kLength; ++i) {
    const auto at = static_cast<std::size_t>(i);
    const double off = double{x[at]} - test::weight<F>(block, i);
    sum += double{w[at]} * off * off;
  }
  return sum;
}

// The least error of a symmetric block with this scale.
template <class F>
double error_with(const std::vector<float>& x, const std::vector<float>& w, double scale) {
  if (F::kBits < 4 && F::kLength == 32) {  // odd numbers of half steps, up to 7 or 6 scales
    const double step = F::kBits == 3 ? 2 : 4, top = F::kBits == 3 ? 7 : 6;
    double sum = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double odd = (std::floor(std::abs(x[i] / scale) / step) + 0.5) * step;
      const double off = std::abs(x[i]) - std::abs(scale) * std::min(odd, top);
      sum += double{w[i]} * off * off;
    }
    return sum;
  }
  if (F::kBits == 1) {
    double sum = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      sum += double{w[i]} * std::pow(std::abs(x[i]) - std::abs(scale), 2);
    }
    return sum;
  }
  const int low = F::kBits == 8 ? -127 : F::kBits == 2 ? -1 : -(1 << (F::kBits - 1));
  const int high = F::kBits == 8 ? 127 : F::kLength == 64 ? 2 : (1 << (F::kBits - 1)) - 1;
  double sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double code = std::min<double>(high, std::max<double>(low, std::round(x[i] / scale)));
    const double off = x[i] - scale * code;
    sum += double{w[i]} * off * off;
  }
  return sum;
}

template <class F>
double least_error(const std::vector<float>& x, const std::vector<float>& w) {
  double least = 0;
  for (std::size_t i = 0; i < x.size(); ++i) least += double{w[i]} * x[i] * x[i];
  for (std::uint16_t bits = 1; bits < 0x7C00; ++bits) {
    const double scale = test::decode(f16{bits});
    least = std::min({least, error_with<F>(x, w, scale), error_with<F>(x, w, -scale)});
  }
  return least;
}

struct Case {
  std::string name;
  std::vector<float> x, importance;
};

std::vector<float> random_importance(std::size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<float> w(n);
  for (float& v : w) v = std::exp(2.0f * std::normal_distribution<float>()(random));
  return w;
}

std::vector<Case> cases(std::size_t n, unsigned seed) {
  std::vector<Case> all;
  const std::vector<float> ones(n, 1.0f);
  const std::vector<float> normal = test::normal_row(n, 0.05f, seed);
  all.push_back({"normal, ones", normal, ones});
  all.push_back({"normal, importance", normal, random_importance(n, seed + 1)});
  std::vector<float> tails = normal;
  for (float& v : tails) v = v * v * v * 100.0f;
  all.push_back({"tails", tails, random_importance(n, seed + 2)});
  std::vector<float> peak = normal;  // the largest is positive: the scale should be negative
  peak[n / 3] = 0.4f;
  all.push_back({"one peak", peak, ones});
  std::vector<float> useless = random_importance(n, seed + 3);
  for (std::size_t i = 0; i < n; i += 2) useless[i] = 0.0f;
  all.push_back({"half without importance", peak, useless});
  std::vector<float> small = normal;
  for (float& v : small) v *= 1e-5f;  // scales are subnormal
  all.push_back({"small", small, random_importance(n, seed + 4)});
  std::vector<float> large = normal;
  for (float& v : large) v *= 2e6f;
  all.push_back({"large", large, random_importance(n, seed + 5)});
  std::vector<float> few(n, 0.0f);
  few[1] = 0.3f, few[2] = -0.7f;
  all.push_back({"few", few, ones});
  return all;
}

}  // namespace

TEST_CASE_TEMPLATE("a symmetric block has the best of all scales", F, SYMMETRIC_FORMATS) {
  for (unsigned seed = 1; seed <= (F::kLength == 32 ? 4 : 1); ++seed) {
    for (const Case& c : cases(F::kLength, 10 * seed)) {
      if (c.name == "large" && F::kLength > 32) continue;  // beyond the scales
      CAPTURE(c.name);
      CAPTURE(seed);
      typename F::Block block;
      CHECK(search_block<F>(c.x.data(), c.importance.data(), block));
      const double found = error_of<F>(c.x, c.importance, block);
      const double least = least_error<F>(c.x, c.importance);
      CHECK(found <= least * (1 + 1e-5) + 1e-30);
      CHECK(found >= least * (1 - 1e-6) - 1e-30);
    }
  }
}

TEST_CASE("both signs of a scale are tried") {
  std::vector<float> x(32);
  for (int i = 0; i < 16; ++i) x[static_cast<std::size_t>(i)] = 0.01f * static_cast<float>(i - 7);
  Q4_0::Block block;
  search_block<Q4_0>(x.data(), nullptr, block);  // -7 … 8
  CHECK(test::decode(block.scale) < 0);
  CHECK(weighted_error<Q4_0>(x.data(), nullptr, block) < 1e-8);
  for (float& v : x) v = -v;
  search_block<Q4_0>(x.data(), nullptr, block);
  CHECK(test::decode(block.scale) > 0);
}

namespace {

// The least error of all pairs with a scale and a minimum near where they belong.
template <class F>
double least_pair_error(const std::vector<float>& x, const std::vector<float>& w, double d,
                        double m) {
  constexpr int kLevels = (1 << F::kBits) - 1;
  double least = std::numeric_limits<double>::infinity();
  for (std::uint16_t bits = 1; bits < 0x7C00; ++bits) {
    const double scale = test::decode(f16{bits});
    if (scale < 0.7 * d || scale > 1.15 * d) continue;
    for (int other = 0; other < 0x10000; ++other) {
      const double minimum = test::decode(f16{static_cast<std::uint16_t>(other)});
      if (!(std::abs(minimum - m) < 1.5 * d)) continue;
      double sum = 0;
      for (std::size_t i = 0; i < x.size() && sum < least; ++i) {
        const double quotient = (x[i] - minimum) / scale;
        const double code = quotient <= 0         ? 0
                            : quotient >= kLevels ? kLevels
                                                  : std::floor(quotient + 0.5);
        const double off = x[i] - minimum - scale * code;
        sum += double{w[i]} * off * off;
      }
      least = std::min(least, sum);
    }
  }
  return least;
}

}  // namespace

TEST_CASE_TEMPLATE("with most effort, a block with a minimum has the best of all pairs", F, Q4_1,
                   Q5_1) {
  for (unsigned seed = 1; seed <= 2; ++seed) {
    const std::vector<float> x = test::normal_row(32, 3.0f, seed);  // f16 is coarse here
    const std::vector<float> w =
        seed == 1 ? random_importance(32, seed + 5) : std::vector<float>(32, 1.0f);
    typename F::Block block;
    CHECK(search_block<F>(x.data(), w.data(), block, Effort::most));
    const double found = error_of<F>(x, w, block);
    const auto [d, m] = test::exact_scale<F>(x.data());
    CHECK(found <= least_pair_error<F>(x, w, d, m) * (1 + 1e-5));
  }
}

TEST_CASE("the search of pairs needs nothing to start from") {
  namespace detail = nibble::quant::detail;
  for (unsigned seed = 1; seed <= 3; ++seed) {
    const std::vector<float> x = test::normal_row(32, 3.0f, seed);
    const detail::Normalized<32> normalized(x.data());
    detail::AffineItems<32> items;
    items.x = normalized.x;
    items.levels = 15;
    detail::normalize_importance(nullptr, items.importance);
    const detail::StoredNumbers<f16> numbers{{normalized.unit}};
    detail::BestPair alone, improved;
    detail::search_boxes(items, numbers, alone);
    detail::descend_stored(items, numbers, detail::fit_affine(items, false), improved);
    detail::search_boxes(items, numbers, improved);
    CHECK(alone.error == doctest::Approx(improved.error).epsilon(1e-5));
  }
}

TEST_CASE_TEMPLATE("the usual effort comes near the best pair", F, Q4_1, Q5_1) {
  double usual = 0, most = 0, plain = 0;
  for (unsigned seed = 1; seed <= 60; ++seed) {
    const std::vector<float> x = test::normal_row(32, 0.05f, seed);
    const std::vector<float> w = random_importance(32, seed + 100);
    typename F::Block block, best;
    search_block<F>(x.data(), w.data(), block);
    search_block<F>(x.data(), w.data(), best, Effort::most);
    const double least = error_of<F>(x, w, best);
    CHECK(error_of<F>(x, w, block) >= least * (1 - 1e-5));
    usual += std::log(error_of<F>(x, w, block));
    most += std::log(least);
    quantize_block<F>(x.data(), block);
    plain += std::log(error_of<F>(x, w, block));
  }
  MESSAGE("mean error relative to the best: usual ", std::exp((usual - most) / 60), ", plain ",
          std::exp((plain - most) / 60));
  CHECK(usual - most < 60 * std::log(1.10));
  CHECK(usual - most > 60 * std::log(1.01));
  CHECK(plain - usual > 60 * std::log(1.5));
}

TEST_CASE_TEMPLATE("a search is never worse than plain rounding", F, ALL_FORMATS) {
  double searched = 0, plain = 0;
  int n = 0;
  for (unsigned seed = 1; seed <= 12; ++seed) {
    for (const Case& c : cases(F::kLength, 100 * seed)) {
      if (c.name == "large" && F::kLength > 32) continue;  // beyond some scales
      for (const float* const w : {c.importance.data(), static_cast<const float*>(nullptr)}) {
        CAPTURE(c.name);
        CAPTURE(seed);
        typename F::Block before, after;
        CHECK(quantize_block<F>(c.x.data(), before) == search_block<F>(c.x.data(), w, after));
        const double old_error = weighted_error<F>(c.x.data(), w, before);
        const double error = weighted_error<F>(c.x.data(), w, after);
        CHECK(error <= old_error * (1 + 1e-5));
        if (c.name == "normal, importance" && w != nullptr) {
          searched += std::log(error);
          plain += std::log(old_error);
          ++n;
        }
      }
    }
  }
  MESSAGE(std::string(to_string(kFormatOf<F>)), ": mean error relative to plain rounding ",
          std::exp((searched - plain) / n));
  CHECK(std::exp((searched - plain) / n) < (F::kBits == 8 || F::kBits == 1 ? 0.99 : 0.9));
}

TEST_CASE_TEMPLATE("group scales are the best for the block's", F, Q6_K, Q3_K) {
  constexpr int kScales = F::kBits == 6 ? 128 : 32;  // of each sign
  constexpr double kHigh = F::kBits == 6 ? 31 : 3, kLow = -kHigh - 1;
  for (unsigned seed = 1; seed <= 5; ++seed) {
    const std::vector<float> x = test::normal_row(256, 0.05f, seed);
    const std::vector<float> w = random_importance(256, seed + 7);
    typename F::Block block;
    search_block<F>(x.data(), w.data(), block);
    const double d = test::decode(block.scale);
    for (std::size_t g = 0; g < 16; ++g) {
      const auto error = [&](int s) {
        double sum = 0;
        for (std::size_t i = 16 * g; i < 16 * g + 16; ++i) {
          const double code =
              s == 0 ? 0 : std::min(kHigh, std::max(kLow, std::round(x[i] / (d * s))));
          sum += double{w[i]} * (x[i] - d * s * code) * (x[i] - d * s * code);
        }
        return sum;
      };
      const int low = block.scales[g % 8], upper = block.scales[8 + g % 4];  // of Q3_K
      const double now =
          error(F::kBits == 6 ? block.scales[g]
                              : (g < 8 ? low % 16 : low / 16) - 32 + 16 * (upper >> g / 4 * 2 & 3));
      for (int s = -kScales; s < kScales; ++s) CHECK(error(s) >= now * (1 - 1e-5));
    }
  }
}

TEST_CASE_TEMPLATE("no neighbours of a group's minimum are better", F, Q4_K, Q5_K) {
  for (unsigned seed = 1; seed <= 5; ++seed) {
    const std::vector<float> x = test::normal_row(256, 0.05f, seed);
    const std::vector<float> w = random_importance(256, seed + 7);
    typename F::Block block;
    search_block<F>(x.data(), w.data(), block);
    for (std::size_t g = 0; g < 8; ++g) {
      const auto now = nibble::quant::detail::group_scale(block.scales, g);
      const auto error = [&](int s, int m) {
        const double step = test::decode(block.scale) * s, low = test::decode(block.minimum) * m;
        double sum = 0;
        for (std::size_t i = 32 * g; i < 32 * g + 32; ++i) {
          const double top = (1 << F::kBits) - 1;
          const double code =
              s == 0 ? 0 : std::min(top, std::max(0.0, std::round((x[i] + low) / step)));
          sum += double{w[i]} * std::pow(x[i] + low - step * code, 2);
        }
        return sum;
      };
      for (int m = std::max(0, now.minimum - 1); m <= std::min(63, now.minimum + 1); ++m) {
        CHECK(error(now.scale, m) >= error(now.scale, now.minimum) * (1 - 1e-5));
      }
    }
  }
}

TEST_CASE_TEMPLATE("a block's scale and minimum are the best for its codes", F, Q4_K, Q5_K) {
  double worst = 0, mean = 0;
  for (unsigned seed = 1; seed <= 10; ++seed) {
    const std::vector<float> x = test::normal_row(256, 0.05f, seed);
    const std::vector<float> w = random_importance(256, seed + 7);
    typename F::Block block;
    search_block<F>(x.data(), w.data(), block);
    float with_codes[256], with_minimums[256];  // x ≈ scale * a - minimum * b
    typename F::Block one = block;
    one.scale = nibble::to_f16(1.0f);
    one.minimum = f16{};
    dequantize_block<F>(one, with_codes);
    one.scale = f16{};
    one.minimum = nibble::to_f16(1.0f);
    dequantize_block<F>(one, with_minimums);
    double aa = 0, ab = 0, bb = 0, xa = 0, xb = 0;
    for (std::size_t i = 0; i < 256; ++i) {
      const double a = double{with_codes[i]}, b = double{with_minimums[i]};
      aa += double{w[i]} * a * a;
      ab += double{w[i]} * a * b;
      bb += double{w[i]} * b * b;
      xa += double{w[i]} * double{x[i]} * a;
      xb += double{w[i]} * double{x[i]} * b;
    }
    const double determinant = aa * bb - ab * ab;
    const double d = (bb * xa - ab * xb) / determinant, m = (aa * xb - ab * xa) / determinant;
    double least = 0;
    for (std::size_t i = 0; i < 256; ++i) {
      least += double{w[i]} *
               std::pow(double{x[i]} - d * double{with_codes[i]} - m * double{with_minimums[i]}, 2);
    }
    const double ratio = weighted_error<F>(x.data(), w.data(), block) / least;
    CHECK(ratio < 1.03);
    worst = std::max(worst, ratio);
    mean += (ratio - 1) / 10;
  }
  MESSAGE("error relative to the best: worst ", worst, ", mean 1 + ", mean);
  CHECK(mean < 0.005);
}

TEST_CASE_TEMPLATE("blocks of zeros stay what they are", F, ALL_FORMATS) {
  const std::vector<float> zeros(F::kLength, 0.0f);
  const std::vector<float> w = random_importance(F::kLength, 3);
  typename F::Block before{}, after{};
  CHECK(quantize_block<F>(zeros.data(), before));
  CHECK(search_block<F>(zeros.data(), w.data(), after));
  CHECK(weighted_error<F>(zeros.data(), nullptr, after) == 0);
  if (F::kLength == 32) CHECK(same<F>(before, after));
}

TEST_CASE_TEMPLATE("importance counts relative to that of a block", F, ALL_FORMATS) {
  const std::vector<float> x = test::normal_row(F::kLength, 0.05f, 5);
  std::vector<float> w = random_importance(F::kLength, 6), scaled = w;
  typename F::Block a{}, b{};
  search_block<F>(x.data(), w.data(), a);
  for (const float factor : {0x1p-100f, 0x1p90f}) {
    for (std::size_t i = 0; i < w.size(); ++i) scaled[i] = w[i] * factor;
    search_block<F>(x.data(), scaled.data(), b);
    CHECK(same<F>(a, b));
  }
  // None at all is the same for all.
  const std::vector<float> none(F::kLength, 0.0f);
  search_block<F>(x.data(), nullptr, a);
  search_block<F>(x.data(), none.data(), b);
  CHECK(same<F>(a, b));
  // What is no importance counts as none.
  w[3] = 0.0f;
  search_block<F>(x.data(), w.data(), a);
  for (const float bad :
       {-1.0f, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    w[3] = bad;
    search_block<F>(x.data(), w.data(), b);
    CHECK(same<F>(a, b));
  }
}

TEST_CASE_TEMPLATE("weights that are not plain become finite ones", F, ALL_FORMATS) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (const float odd : {kNan, kInf, -kInf, 3e38f, -1e30f, 1e9f, 1e-44f}) {
    std::vector<float> x = test::normal_row(F::kLength, 0.05f, 8);
    x[F::kLength / 2] = odd;
    const std::vector<float> w = random_importance(F::kLength, 9);
    typename F::Block before{}, after{};
    CAPTURE(odd);
    CHECK(quantize_block<F>(x.data(), before) == search_block<F>(x.data(), w.data(), after));
    float back[F::kLength];
    dequantize_block<F>(after, back);
    for (const float v : back) CHECK(std::isfinite(v));
  }
  const std::vector<float> tiny(F::kLength, 1e-44f);
  typename F::Block block{};
  CHECK(search_block<F>(tiny.data(), nullptr, block));
  CHECK(weighted_error<F>(tiny.data(), nullptr, block) < 1e-12);
}

TEST_CASE("rows check their sizes and their importance") {
  const std::vector<float> x = test::normal_row(96, 0.05f, 1);
  std::vector<float> w = random_importance(96, 2);
  std::vector<std::byte> row(54), again(54);
  REQUIRE(search_row(Format::q4_0, x, w, row));
  for (std::size_t b = 0; b < 3; ++b) {
    Q4_0::Block block;
    search_block<Q4_0>(x.data() + 32 * b, w.data() + 32 * b, block);
    CHECK(std::memcmp(row.data() + 18 * b, &block, 18) == 0);
  }
  REQUIRE(search_row(Format::q4_0, x, {}, again));
  CHECK(row != again);
  std::vector<std::byte> halves(192), expected(192);
  REQUIRE(search_row(Format::f16, x, w, halves));
  REQUIRE(row_from_f32(Format::f16, x, expected));
  CHECK(halves == expected);
  CHECK(!search_row(Format::q4_0, x, w, std::span(row).first(53)));
  CHECK(!search_row(Format::q4_k, x, w, row));
  CHECK(!search_row(Format::q4_0, x, std::span(w).first(32), row));
  w[7] = -1.0f;
  const auto refused = search_row(Format::q4_0, x, w, row);
  REQUIRE(!refused);
  CHECK(refused.error().message.find("column 7") != std::string::npos);
}

TEST_CASE("emphasis spares large weights as llama.cpp does") {
  const std::vector<float> x = {3.0f, 4.0f, 0.0f, 0.0f}, w = {1.0f, 2.0f, 3.0f, 0.0f};
  std::vector<float> out(4);
  emphasize(Emphasis::none, x, w, out);
  CHECK(out == w);
  emphasize(Emphasis::magnitude, x, w, out);  // mean x² is 6.25
  CHECK(out[0] == doctest::Approx(std::sqrt(15.25)));
  CHECK(out[1] == doctest::Approx(2 * std::sqrt(22.25)));
  CHECK(out[2] == doctest::Approx(7.5));
  CHECK(out[3] == 0.0f);
  emphasize(Emphasis::magnitude, x, {}, out);
  CHECK(out[3] == doctest::Approx(2.5));
}
