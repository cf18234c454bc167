// SPDX-License-Identifier: Apache-2.0
//
// Column-by-column rounding against the textbook: optimal brain surgery with an explicit inverse of
// what is left of H, in double.
#include "nibble/compress/column_rounding.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "compress/moments.hpp"
#include "doctest/doctest.h"
#include "kernels/arrays.hpp"
#include "why.hpp"

namespace {

using namespace nibble;
using namespace nibble::compress;
using quant::Format;
using Kind = MaskRule::Kind;
using test::damped;
using test::first_rows;
using test::inverse;
using test::random_moments;

std::vector<float> random_weights(Index n, Index k, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 0.05f);
  std::vector<float> w(static_cast<std::size_t>(n * k));
  for (float& v : w) v = normal(random);
  return w;
}

struct Rounded {
  std::vector<float> weights;
  std::vector<std::uint8_t> mask;
  ColumnRoundingResult result;
  std::vector<std::byte> bytes;
};

Rounded rounded(const std::vector<float>& w, Index n, Index k, const std::vector<double>& h,
                const ColumnRoundingOptions& options, const ColumnFactorOptions& columns = {},
                bool backwards = false) {
  InlineExecutor forwards;
  nibble_test::BackwardExecutor other;
  Executor& executor = backwards ? static_cast<Executor&>(other) : forwards;
  auto factor = ColumnFactor::create(h, k, columns, executor);
  REQUIRE_MESSAGE(factor, test::why(factor));
  const auto row_bytes = *quant::row_bytes(options.format, static_cast<std::size_t>(k));
  Rounded out;
  out.bytes.resize(static_cast<std::size_t>(n) * row_bytes);
  out.mask.resize(w.size(), 7);
  auto done = round_columns(*factor, w, n, options, executor, out.bytes, out.mask);
  REQUIRE_MESSAGE(done, test::why(done));
  out.result = *done;
  out.weights.resize(w.size());
  for (Index row = 0; row < n; ++row) {
    const auto at = static_cast<std::size_t>(row);
    REQUIRE(quant::row_to_f32(
        options.format, std::span(out.bytes).subspan(at * row_bytes, row_bytes),
        std::span(out.weights)
            .subspan(at * static_cast<std::size_t>(k), static_cast<std::size_t>(k))));
  }
  return out;
}

std::vector<float> plainly(const std::vector<float>& w, Index k, Format format) {
  const auto columns = static_cast<std::size_t>(k);
  std::vector<std::byte> row(*quant::row_bytes(format, columns));
  std::vector<float> out(w.size());
  for (std::size_t i = 0; i < w.size(); i += columns) {
    REQUIRE(quant::search_row(format, std::span(w).subspan(i, columns), {}, row));
    REQUIRE(quant::row_to_f32(format, row, std::span(out).subspan(i, columns)));
  }
  return out;
}

// The weights of a row by the textbook. group(j, w) is called with the current weights (from column
// 0 on) when column j comes, and round(j, w_j) returns what is stored.
template <class Group, class Round>
std::vector<double> by_the_book(const float* w, Index k,
                                const std::vector<std::vector<double>>& rows, Group group,
                                Round round) {
  std::vector<double> current(w, w + k), stored(static_cast<std::size_t>(k));
  for (std::size_t j = 0; j < current.size(); ++j) {
    group(static_cast<Index>(j), current);
    stored[j] = round(static_cast<Index>(j), current[j]);
    const double error = (current[j] - stored[j]) / rows[j][0];
    for (std::size_t i = j; i < current.size(); ++i) current[i] -= error * rows[j][i - j];
  }
  return stored;
}

template <class F>
void check_against_the_book(Index k, const MaskRule& rule, double damping = 0.01) {
  const Index n = 4;
  const std::vector<float> w = random_weights(n, k, 11);
  const std::vector<double> h = random_moments(k, 12);
  ColumnRoundingOptions options;
  options.format = quant::kFormatOf<F>;
  options.mask = rule;
  options.n_sweeps = 0;
  const Rounded ours = rounded(w, n, k, h, options, {.damping = damping});
  const auto rows = first_rows(damped(h, k, damping), k);
  double error = 0;
  Index n_pruned = 0;
  for (Index row = 0; row < n; ++row) {
    std::vector<bool> keep(static_cast<std::size_t>(k), true);
    typename F::Block block;
    const auto choose = [&](Index from, const std::vector<double>& current) {
      for (Index i = 0; i < rule.m; ++i) keep[static_cast<std::size_t>(from + i)] = true;
      for (Index left = rule.m; left > rule.n; --left) {
        Index least = -1;
        double lowest = std::numeric_limits<double>::infinity();
        for (Index i = from; i < from + rule.m; ++i) {
          const auto at = static_cast<std::size_t>(i);
          const double saliency = current[at] * current[at] / rows[at][0];
          if (keep[at] && saliency < lowest) lowest = saliency, least = i;
        }
        keep[static_cast<std::size_t>(least)] = false;
      }
    };
    const auto stored = by_the_book(
        w.data() + row * k, k, rows,
        [&](Index j, const std::vector<double>& current) {
          if (j % F::kLength == 0) {
            float x[F::kLength], importance[F::kLength];
            for (Index i = j; i < j + F::kLength && rule.kind == Kind::n_of_m; ++i) {
              if (i % rule.m == 0) choose(i, current);
            }
            for (Index i = 0; i < F::kLength; ++i) {
              const auto at = static_cast<std::size_t>(j + i);
              if (rule.kind == Kind::given) {
                keep[at] = rule.mask[static_cast<std::size_t>(row * k) + at] != 0;
              }
              x[i] = keep[at] ? static_cast<float>(current[at]) : 0.0f;
              importance[i] = keep[at] ? static_cast<float>(1 / rows[at][0]) : 0.0f;
            }
            quant::search_block<F>(x, importance, block);
          }
          if (rule.kind == Kind::n_of_m && j % rule.m == 0) choose(j, current);
        },
        [&](Index j, double v) {
          const auto at = static_cast<std::size_t>(j);
          if (!keep[at]) {
            ++n_pruned;
            return 0.0;
          }
          const double scale = double{to_f32(block.scale)};
          if (scale == 0) return 0.0;
          const int low = quant::lowest_code<F>(), high = quant::highest_code<F>();
          return scale * std::min<double>(high, std::max<double>(low, std::round(v / scale)));
        });
    for (Index j = 0; j < k; ++j) {
      CAPTURE(row);
      CAPTURE(j);
      const auto at = static_cast<std::size_t>(row * k + j);
      CHECK(double{ours.weights[at]} == stored[static_cast<std::size_t>(j)]);
      CHECK((ours.mask[at] != 0) == keep[static_cast<std::size_t>(j)]);
    }
  }
  error = output_error(w, ours.weights, n, k, damped(h, k, damping));
  CHECK(ours.result.error == doctest::Approx(error).epsilon(1e-3));
  CHECK(ours.result.n_pruned == n_pruned);
}

}  // namespace

TEST_CASE("rounding is the textbook's") {
  check_against_the_book<quant::Q4_0>(96, {});
  check_against_the_book<quant::Q5_0>(64, {}, 0.1);
  check_against_the_book<quant::Q8_0>(32, {});
}

TEST_CASE("N:M and a given mask with rounding are the textbook's") {
  check_against_the_book<quant::Q4_0>(96, {.kind = Kind::n_of_m, .n = 2, .m = 4});
  check_against_the_book<quant::Q8_0>(64, {.kind = Kind::n_of_m, .n = 5, .m = 8});
  check_against_the_book<quant::Q4_0>(128, {.kind = Kind::n_of_m, .n = 24, .m = 64});
  std::vector<std::uint8_t> mask(4 * 96);
  std::mt19937 random(5);
  for (auto& keep : mask) keep = random() % 3 == 0 ? 0 : 1;
  check_against_the_book<quant::Q4_0>(96, {.kind = Kind::given, .mask = mask});
}

TEST_CASE("N:M keeps n of each m, also where a group is longer than a block") {
  const Index rows = 5, k = 512;
  const std::vector<float> w = random_weights(rows, k, 13);
  const std::vector<double> h = random_moments(k, 14);
  for (const Format format : {Format::q4_0, Format::q8_0, Format::q6_k, Format::f32}) {
    for (const Index m : {1, 4, 32, 64, 128, 256}) {
      ColumnRoundingOptions options;
      options.format = format;
      options.mask = {.kind = Kind::n_of_m, .n = (m + 1) / 3, .m = m};
      const Rounded ours = rounded(w, rows, k, h, options);
      for (std::size_t begin = 0; begin < w.size(); begin += static_cast<std::size_t>(m)) {
        Index n_kept = 0;
        for (std::size_t i = begin; i < begin + static_cast<std::size_t>(m); ++i) {
          n_kept += ours.mask[i];
          if (ours.mask[i] == 0) CHECK(ours.weights[i] == 0);
        }
        CAPTURE(to_string(format));
        CAPTURE(m);
        CHECK(n_kept == options.mask.n);
      }
    }
  }
}

TEST_CASE("a share of weights is pruned as by the textbook") {
  const Index n = 6, k = 300;  // two blocks of columns
  const std::vector<float> w = random_weights(n, k, 21);
  const std::vector<double> h = random_moments(k, 22);
  ColumnRoundingOptions options;
  options.format = Format::f32;
  options.mask = {.kind = Kind::share, .sparsity = 0.6};
  options.n_sweeps = 0;
  const Rounded ours = rounded(w, n, k, h, options, {.damping = 0.05});
  const auto rows = first_rows(damped(h, k, 0.05), k);
  std::vector<std::vector<double>> current;
  for (Index row = 0; row < n; ++row) {
    current.emplace_back(w.begin() + row * k, w.begin() + (row + 1) * k);
  }
  for (Index begin = 0; begin < k; begin += 256) {
    const Index end = std::min<Index>(begin + 256, k);
    std::vector<std::pair<double, std::pair<std::size_t, std::size_t>>> scores;
    for (std::size_t row = 0; row < current.size(); ++row) {
      for (auto j = static_cast<std::size_t>(begin); j < static_cast<std::size_t>(end); ++j) {
        scores.push_back({current[row][j] * current[row][j] / rows[j][0], {row, j}});
      }
    }
    std::sort(scores.begin(), scores.end());
    scores.resize(static_cast<std::size_t>(std::lround(0.6 * static_cast<double>(scores.size()))));
    std::vector<std::vector<bool>> keep(current.size(),
                                        std::vector<bool>(static_cast<std::size_t>(k), true));
    for (const auto& score : scores) keep[score.second.first][score.second.second] = false;
    for (std::size_t row = 0; row < current.size(); ++row) {
      for (auto j = static_cast<std::size_t>(begin); j < static_cast<std::size_t>(end); ++j) {
        if (keep[row][j]) continue;
        const double error = current[row][j] / rows[j][0];
        for (std::size_t i = j; i < current[row].size(); ++i) {
          current[row][i] -= error * rows[j][i - j];
        }
        current[row][j] = 0;
      }
    }
  }
  Index n_zero = 0;
  for (std::size_t i = 0; i < w.size(); ++i) {
    const double wanted = current[i / static_cast<std::size_t>(k)][i % static_cast<std::size_t>(k)];
    CHECK((ours.weights[i] == 0) == (wanted == 0));
    CHECK(std::abs(double{ours.weights[i]} - wanted) < 2e-5);
    CHECK((ours.mask[i] == 0) == (ours.weights[i] == 0));
    if (ours.mask[i] == 0) ++n_zero;
  }
  CHECK(ours.result.n_pruned == n_zero);
  CHECK(n_zero == std::lround(0.6 * 6 * 256) + std::lround(0.6 * 6 * 44));
}

TEST_CASE("inputs that do not resemble each other: plain rounding") {
  const Index n = 3;
  for (const Format format :
       {Format::q4_0, Format::q4_1, Format::q5_0, Format::q5_1, Format::q8_0, Format::q4_k,
        Format::q5_k, Format::q6_k, Format::f16, Format::bf16, Format::f32}) {
    CAPTURE(to_string(format));
    const Index k = format == Format::f16 ? 172 : 512;
    const std::vector<float> w = random_weights(n, k, 31);
    std::vector<double> h(static_cast<std::size_t>(k * k));
    for (std::size_t i = 0; i < static_cast<std::size_t>(k); ++i) {
      h[i * static_cast<std::size_t>(k + 1)] = 4;
    }
    ColumnRoundingOptions options;
    options.format = format;
    // Scales and minimums are not the best of all, so looking again may improve them.
    const bool is_searched = format == Format::q4_0 || format == Format::q5_0 ||
                             format == Format::q8_0 || format == Format::q6_k;
    if (!is_searched) options.n_sweeps = 0;
    const auto plain = plainly(w, k, format);
    CHECK(rounded(w, n, k, h, options, {.damping = 0}).weights == plain);
    CHECK(rounded(w, n, k, h, options, {.damping = 0, .order = ColumnOrder::by_diagonal}).weights ==
          plain);
    // By diagonal, but otherwise the same: codes find their way back.
    for (std::size_t i = 0; i < static_cast<std::size_t>(k); ++i) {
      h[i * static_cast<std::size_t>(k + 1)] = 4 + 1e-9 * static_cast<double>(i * 7 % 13);
    }
    CHECK(rounded(w, n, k, h, options, {.damping = 0, .order = ColumnOrder::by_diagonal}).weights ==
          plain);
  }
}

TEST_CASE("rounding by columns loses less than plain rounding, whatever runs it") {
  const Index n = 21, k = 512;
  const std::vector<float> w = random_weights(n, k, 41);
  const std::vector<double> h = random_moments(k, 42);
  for (const Format format :
       {Format::q4_0, Format::q4_1, Format::q5_0, Format::q5_1, Format::q8_0, Format::q4_k,
        Format::q5_k, Format::q6_k, Format::q2_k, Format::q3_k}) {
    CAPTURE(to_string(format));
    ColumnRoundingOptions options;
    options.format = format;
    const double plain = output_error(w, plainly(w, k, format), n, k, h);
    const Rounded by_columns = rounded(w, n, k, h, options);
    const double error = output_error(w, by_columns.weights, n, k, h);
    const double by_diagonal = output_error(
        w, rounded(w, n, k, h, options, {.order = ColumnOrder::by_diagonal}).weights, n, k, h);
    MESSAGE(std::string(to_string(format)), ": error relative to plain rounding ", error / plain,
            ", by diagonal ", by_diagonal / plain);
    CHECK(error < 0.7 * plain);
    CHECK(by_diagonal < 0.8 * plain);
    CHECK(rounded(w, n, k, h, options, {}, true).bytes == by_columns.bytes);
  }
}

TEST_CASE("when all columns were looked at again, no other code and no other scale is better") {
  const Index n = 3, k = 96;
  const std::vector<float> w = random_weights(n, k, 81);
  const std::vector<double> h = random_moments(k, 82);
  const std::vector<double> with_damping = damped(h, k, 0.01);
  ColumnRoundingOptions options;
  options.n_sweeps = 0;
  const Rounded once = rounded(w, n, k, h, options);
  options.n_sweeps = 100;
  const Rounded ours = rounded(w, n, k, h, options);
  const double least = output_error(w, ours.weights, n, k, with_damping);
  CHECK(ours.result.error == doctest::Approx(least).epsilon(1e-3));
  CHECK(least < 0.99 * output_error(w, once.weights, n, k, with_damping));
  for (std::size_t b = 0; b < 9; ++b) {
    quant::Q4_0::Block block;
    std::memcpy(&block, ours.bytes.data() + b * sizeof(block), sizeof(block));
    std::vector<float> other = ours.weights;
    const auto error = [&] { return output_error(w, other, n, k, with_damping); };
    const float scale = to_f32(block.scale);
    for (std::size_t i = 32 * b; i < 32 * b + 32; ++i) {
      for (const float by : {-scale, scale}) {
        const float code = (ours.weights[i] + by) / scale;
        if (code < -8.5f || code > 7.5f) continue;
        other[i] = ours.weights[i] + by;
        const double h_jj = with_damping[i % 96 * 97];
        CHECK(error() > least - 2e-3 * double{by} * double{by} * h_jj);
        other[i] = ours.weights[i];
      }
    }
    for (const int by : {-4, -2, -1, 1, 2, 4}) {
      const float next = to_f32(f16{static_cast<std::uint16_t>(block.scale.bits + by)});
      for (std::size_t i = 32 * b; i < 32 * b + 32; ++i) {
        other[i] = ours.weights[i] / scale * next;
      }
      CHECK(error() > least * (1 - 1e-4));
    }
  }
}

TEST_CASE("kept weights become those that make good best") {
  const Index n = 3, k = 40;
  const std::vector<float> w = random_weights(n, k, 91);
  const std::vector<double> h = random_moments(k, 92);
  const std::vector<double> with_damping = damped(h, k, 0.01);
  std::vector<std::uint8_t> mask(w.size());
  for (std::size_t i = 0; i < mask.size(); ++i) mask[i] = i * i % 7 < 3 ? 1 : 0;
  ColumnRoundingOptions options;
  options.format = Format::f32;
  options.mask = {.kind = Kind::given, .mask = mask};
  options.n_sweeps = 0;
  const Rounded once = rounded(w, n, k, h, options);
  options.n_sweeps = 500;
  const Rounded ours = rounded(w, n, k, h, options);
  // Least squares for the kept weights of each row.
  std::vector<float> best(w.size());
  for (std::size_t row = 0; row < 3; ++row) {
    std::vector<std::size_t> kept;
    for (std::size_t j = 0; j < 40; ++j) {
      if (mask[row * 40 + j] != 0) kept.push_back(j);
    }
    std::vector<double> a;
    for (const std::size_t i : kept) {
      for (const std::size_t j : kept) a.push_back(with_damping[i * 40 + j]);
    }
    const auto inverted = inverse(a, kept.size());
    for (std::size_t i = 0; i < kept.size(); ++i) {
      double sum = 0;
      for (std::size_t j = 0; j < kept.size(); ++j) {
        double wanted = 0;
        for (std::size_t c = 0; c < 40; ++c) {
          wanted += with_damping[kept[j] * 40 + c] * double{w[row * 40 + c]};
        }
        sum += inverted[i * kept.size() + j] * wanted;
      }
      best[row * 40 + kept[i]] = static_cast<float>(sum);
    }
  }
  const double least = output_error(w, best, n, k, with_damping);
  const double error = output_error(w, ours.weights, n, k, with_damping);
  MESSAGE("error relative to the least: ", error / least, ", once ",
          output_error(w, once.weights, n, k, with_damping) / least);
  CHECK(error < 1.02 * least);
  CHECK(error < output_error(w, once.weights, n, k, with_damping));
}

TEST_CASE("pruning by columns loses less than pruning alone, and masks are kept") {
  const Index n = 16, k = 172;
  const std::vector<float> w = random_weights(n, k, 51);
  const std::vector<double> h = random_moments(k, 52);
  std::vector<std::uint8_t> mask(w.size());
  std::vector<float> zeroed = w;
  for (std::size_t i = 0; i < w.size(); ++i) {
    mask[i] = std::abs(w[i]) > 0.03f ? 1 : 0;
    if (mask[i] == 0) zeroed[i] = 0;
  }
  ColumnRoundingOptions options;
  options.format = Format::f16;
  options.mask = {.kind = Kind::given, .mask = mask};
  for (const ColumnOrder order : {ColumnOrder::natural, ColumnOrder::by_diagonal}) {
    const Rounded ours = rounded(w, n, k, h, options, {.order = order}, true);
    for (std::size_t i = 0; i < w.size(); ++i) {
      CHECK((ours.weights[i] == 0) == (mask[i] == 0));
      CHECK(ours.mask[i] == mask[i]);
    }
    CHECK(output_error(w, ours.weights, n, k, h) < 0.6 * output_error(w, zeroed, n, k, h));
  }
  // All and nothing.
  options.mask = {.kind = Kind::share, .sparsity = 1};
  const Rounded none = rounded(w, n, k, h, options);
  CHECK(std::all_of(none.weights.begin(), none.weights.end(), [](float v) { return v == 0; }));
  options.mask = {.kind = Kind::share, .sparsity = 0};
  CHECK(rounded(w, n, k, h, options).result.n_pruned == 0);
  options.format = Format::f32;
  CHECK(rounded(w, n, k, h, options).weights == w);
  // A row's end that is no whole group.
  options.mask = {.kind = Kind::n_of_m, .n = 3, .m = 8};
  CHECK(rounded(w, n, k, h, options).result.n_pruned == n * (21 * 5 + 1));
}

TEST_CASE("few data, or none for a column") {
  const Index n = 4, k = 96;
  const std::vector<float> w = random_weights(n, k, 61);
  std::vector<double> h = random_moments(k, 62, 10);  // rank 10
  ColumnRoundingOptions options;
  const Rounded ours = rounded(w, n, k, h, options);
  CHECK(output_error(w, ours.weights, n, k, h) <
        output_error(w, plainly(w, k, Format::q4_0), n, k, h));
  for (std::size_t i = 0; i < 96; ++i) h[5 * 96 + i] = h[i * 96 + 5] = 0;
  const Rounded unseen = rounded(w, n, k, h, options, {.damping = 0});  // raised
  for (const float v : unseen.weights) CHECK(std::isfinite(v));
}

TEST_CASE("second moments of any scale: the same weights, and an error of that scale") {
  const Index n = 4, k = 320;
  const std::vector<float> w = random_weights(n, k, 63);
  const std::vector<double> h = random_moments(k, 64);
  for (const Kind kind : {Kind::none, Kind::share, Kind::n_of_m}) {
    ColumnRoundingOptions options;
    options.mask.kind = kind;
    const Rounded plain = rounded(w, n, k, h, options);
    for (const double scale : {0x1p-166, 0x1p166, 0x1p-900, 0x1p900}) {  // 1e-50, 1e50, …
      std::vector<double> scaled = h;
      for (double& x : scaled) x *= scale;
      const Rounded other = rounded(w, n, k, scaled, options);
      CAPTURE(scale);
      CHECK(other.bytes == plain.bytes);
      CHECK(other.result.error / scale == doctest::Approx(plain.result.error).epsilon(1e-12));
    }
  }
}

TEST_CASE("what does not fit is refused with a reason") {
  InlineExecutor executor;
  const Index k = 64;
  const std::vector<double> h = random_moments(k, 71);
  const auto factor = ColumnFactor::create(h, k, {}, executor);
  const auto by_diagonal =
      ColumnFactor::create(h, k, {.order = ColumnOrder::by_diagonal}, executor);
  REQUIRE(factor);
  REQUIRE(by_diagonal);
  std::vector<float> w = random_weights(2, k, 72);
  std::vector<std::byte> out(2 * 36);
  const auto refused = [&](const ColumnRoundingOptions& options, const ColumnFactor& with,
                           std::span<std::byte> to, std::span<std::uint8_t> mask = {}) {
    const auto done = round_columns(with, w, 2, options, executor, to, mask);
    REQUIRE(!done);
    return done.error();
  };
  CHECK(refused({}, *factor, std::span(out).first(71)).code == Errc::invalid_argument);
  std::uint8_t short_mask[3];
  CHECK(refused({}, *factor, out, short_mask).code == Errc::invalid_argument);
  CHECK(refused({.format = Format::q4_k}, *factor, out).code == Errc::invalid_argument);
  std::vector<std::byte> channel(2 * *quant::row_bytes(Format::i8_channel, 64));
  CHECK(refused({.format = Format::i8_channel}, *factor, channel).code == Errc::unsupported);
  CHECK(refused({.format = Format::q4_0_16x4}, *factor, out).code == Errc::unsupported);
  const auto with_mask = [](MaskRule rule, Format format = Format::q4_0) {
    ColumnRoundingOptions options;
    options.format = format;
    options.mask = rule;
    return options;
  };
  std::vector<std::byte> minimum(2 * 40);
  CHECK(refused(with_mask({.kind = Kind::share}, Format::q4_1), *factor, minimum).code ==
        Errc::unsupported);
  CHECK(refused(with_mask({.kind = Kind::share, .sparsity = 1.5}), *factor, out).code ==
        Errc::invalid_argument);
  CHECK(refused(with_mask({.kind = Kind::share, .sparsity = NAN}), *factor, out).code ==
        Errc::invalid_argument);
  CHECK(refused(with_mask({.kind = Kind::n_of_m, .n = 2, .m = 3}), *factor, out).code ==
        Errc::invalid_argument);
  CHECK(refused(with_mask({.kind = Kind::n_of_m, .n = 5, .m = 4}), *factor, out).code ==
        Errc::invalid_argument);
  CHECK(refused(with_mask({.kind = Kind::n_of_m}), *by_diagonal, out).code ==
        Errc::invalid_argument);
  CHECK(refused(with_mask({.kind = Kind::given}), *factor, out).code == Errc::invalid_argument);
  w[64 + 5] = INFINITY;
  CHECK(refused({}, *factor, out).message.find("weight 5 of row 1") != std::string::npos);
  w[64 + 5] = 1e9f;
  CHECK(refused({}, *factor, out).code == Errc::limit);
  w.pop_back();
  CHECK(refused({}, *factor, out).code == Errc::invalid_argument);
}
