// SPDX-License-Identifier: Apache-2.0
//
// Products whose weights have factors of low rank, beside a matrix or instead of it: each kind of
// node, as written and as fused, against the dense matrix base + scale · A · B in double, in memory
// full of NaN.
#include <array>
#include <cmath>
#include <cstring>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/core/thread_pool.hpp"
#include "nibble/graph/check.hpp"
#include "nibble/graph/fuse.hpp"
#include "nibble/quant/format.hpp"

namespace factors_test {
namespace {

using namespace nibble;
using namespace nibble::graph;
using quant::Format;
using Doubles = std::vector<double>;
using Table = std::vector<Doubles>;

enum class S : unsigned char { table, norm, gate, up, same, gate_bias, up_bias };
constexpr std::size_t kSlots = 7;
constexpr Index kDim = 64, kWide = 80, kWords = 12, kRank = 32;

struct Kind {
  std::optional<Format> base;
  Format a, b;
  float scale;
  bool bias;
  double tolerance;  // relative to the largest result
  Index rank = kRank;
  // Ranges of inputs that are known before, for weights in I8Channel.
  quant::StaticScale of_base = {}, of_a = {}, of_b = {};
};

class Weights {
 public:
  explicit Weights(const Kind& kind, bool only_up = false) : kind_(kind) {
    table_[0] = matrix(Format::f32, kWords, kDim, 1, dense_[0]);
    dense_[1] = random(kDim, 1);
    table_[1] = vector(dense_[1]);
    factored(S::gate, kWide, !only_up);
    factored(S::up, kWide, true);
    factored(S::same, kDim, true);
    for (const S slot : {S::gate_bias, S::up_bias}) {
      const auto i = static_cast<std::size_t>(slot);
      dense_[i].assign(static_cast<std::size_t>(kWide), 0);
      if (!kind.bias) continue;
      dense_[i] = random(kWide, 1);
      table_[i] = vector(dense_[i]);
    }
  }
  WeightTable table() const { return {table_, kSlots}; }
  const Doubles& dense(S slot) const { return dense_[static_cast<std::size_t>(slot)]; }
  Weight& at(S slot) { return table_[static_cast<std::size_t>(slot)]; }

 private:
  Doubles random(Index n, double size) {
    std::normal_distribution<double> normal(0, size);
    Doubles x(static_cast<std::size_t>(n));
    for (double& v : x) v = static_cast<double>(static_cast<float>(normal(random_)));
    return x;
  }
  std::byte* allocate(std::size_t bytes) {
    auto memory = AlignedBuffer::allocate(bytes);
    REQUIRE(memory.has_value());
    memory_.push_back(*std::move(memory));
    return memory_.back().data();
  }
  Weight vector(const Doubles& x) {
    auto* const to = reinterpret_cast<float*>(allocate(x.size() * sizeof(float)));
    for (std::size_t i = 0; i < x.size(); ++i) to[i] = static_cast<float>(x[i]);
    return weight_of(VectorView<const float>(to, static_cast<Index>(x.size())));
  }
  // A random matrix in a format; `stored` gets its values.
  Weight matrix(Format format, Index n, Index k, double size, Doubles& stored) {
    const FormatOps* const ops = find(AllFormats::kOps, format);
    REQUIRE(ops != nullptr);
    const auto row = *quant::row_bytes(format, static_cast<std::size_t>(k));
    const Doubles x = random(n * k, size);
    const std::vector<float> floats(x.begin(), x.end());
    std::vector<float> back(floats.size());
    std::vector<std::byte> rows(static_cast<std::size_t>(n) * row);
    for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) {
      const auto at = i * static_cast<std::size_t>(k), length = static_cast<std::size_t>(k);
      const auto bytes = std::span(rows).subspan(i * row, row);
      REQUIRE(quant::row_from_f32(format, std::span(floats).subspan(at, length), bytes));
      REQUIRE(quant::row_to_f32(format, bytes, std::span(back).subspan(at, length)));
    }
    stored.assign(back.begin(), back.end());
    std::byte* const packed = allocate(static_cast<std::size_t>(ops->packed_bytes(n, k)));
    for (Index r = 0; r < n; r += quant::kPanelRows) {
      ops->pack_panel()(rows.data() + static_cast<std::size_t>(r) * row,
                        std::min(quant::kPanelRows, n - r), k,
                        packed + r / quant::kPanelRows * ops->panel_bytes(k));
    }
    return {ops, n, k, packed};
  }
  void factored(S slot, Index n, bool has_factors) {
    const Index rank_of_all = kind_.rank;
    const auto i = static_cast<std::size_t>(slot);
    Doubles& w = dense_[i];
    Weight weight{nullptr, n, kDim};
    w.assign(static_cast<std::size_t>(n * kDim), 0);
    if (kind_.base || !has_factors) {
      weight = matrix(kind_.base.value_or(Format::f32), n, kDim, 0.12, w);
      weight.input = kind_.of_base;
    }
    if (has_factors) {
      Doubles a, b;
      Factors& f = factors_[i];
      f.a = matrix(kind_.a, n, rank_of_all, 0.15, a);
      f.b = matrix(kind_.b, rank_of_all, kDim, 0.15, b);
      f.a.input = kind_.of_a;
      f.b.input = kind_.of_b;
      f.scale = kind_.scale;
      weight.factors = &f;
      const auto rank = static_cast<std::size_t>(rank_of_all), k = static_cast<std::size_t>(kDim);
      for (std::size_t row = 0; row < static_cast<std::size_t>(n); ++row) {
        for (std::size_t r = 0; r < rank; ++r) {
          for (std::size_t j = 0; j < k; ++j) {
            w[row * k + j] += static_cast<double>(kind_.scale) * a[row * rank + r] * b[r * k + j];
          }
        }
      }
    }
    table_[i] = weight;
  }

  Kind kind_;
  std::mt19937 random_{77};
  std::vector<AlignedBuffer> memory_;
  std::array<Weight, kSlots> table_{};
  std::array<Factors, kSlots> factors_{};
  std::array<Doubles, kSlots> dense_;
};

constexpr std::array<std::int32_t, 5> kTokens = {4, 0, 9, 11, 4};
constexpr Index kOutputs[] = {0, 2, 4};
const Segment kSegments[] = {Segment{.n_rows = 5}};
constexpr Limits kLimits{.max_rows = 7, .max_outputs = 4, .n_positions = 8, .max_rank = 40};

// The rows of the first of kTokens.
template <class E>
Table run_once(const E& expression, const Weights& weights, Executor* pool = nullptr,
               std::size_t n_tokens = kTokens.size()) {
  Limits limits = kLimits;
  if (pool != nullptr) limits.max_workers = pool->n_workers();
  const Plan plan = make_plan(expression, limits);
  REQUIRE(plan.is_valid());
  auto arena = AlignedBuffer::allocate(plan.bytes + 64);
  REQUIRE(arena.has_value());
  std::memset(arena->data(), 255, plan.bytes + 64);
  InlineExecutor executor;
  const Segment segment{.n_rows = static_cast<Index>(n_tokens)};
  RunArgs args;
  args.step = {.tokens = std::span(kTokens).first(n_tokens),
               .segments = {&segment, 1},
               .output_rows = std::span(kOutputs).first(1)};
  args.weights = weights.table();
  args.arena = arena->bytes().first(plan.bytes);
  args.executor = pool != nullptr ? pool : &executor;
  const auto checked = check_run(expression, plan, limits, args);
  CAPTURE(checked ? std::string() : checked.error().message);
  REQUIRE(checked);
  const auto out = run(expression, plan, limits, args);
  Table rows;
  for (Index i = 0; i < out.extent(0); ++i) {
    rows.emplace_back();
    for (Index j = 0; j < out.extent(1); ++j) rows.back().push_back(static_cast<double>(out(i, j)));
  }
  for (std::size_t i = 0; i < 64; ++i) CHECK(arena->data()[plan.bytes + i] == std::byte{255});
  return rows;
}

void check_close(const Table& rows, const Table& expected, double tolerance) {
  REQUIRE(rows.size() == expected.size());
  double largest = 0, off = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    REQUIRE(rows[i].size() == expected[i].size());
    for (std::size_t j = 0; j < rows[i].size(); ++j) {
      largest = std::max(largest, std::fabs(expected[i][j]));
      const double d = std::fabs(rows[i][j] - expected[i][j]);
      off = d <= off ? off : d;  // NaN stays
    }
  }
  CAPTURE(off / largest);
  CHECK(off <= tolerance * largest);
}

template <class E>
void check_both(const E& expression, const Weights& weights, const Table& expected,
                double tolerance) {
  check_close(run_once(expression, weights), expected, tolerance);
  const auto fused = fuse(expression);
  const Table rows = run_once(fused, weights);
  check_close(rows, expected, tolerance);
  // The same bits on several threads, and for a row that is alone.
  static const auto pool = ThreadPool::create({.n_threads = 3});
  REQUIRE(pool.has_value());
  CHECK(run_once(fused, weights, &**pool) == rows);
  CHECK(run_once(fused, weights, nullptr, 1) == Table{rows[0]});
}

// ---- The same in double ------------------------------------------------------------------------

Table embedded(const Weights& w) {
  Table rows;
  for (const std::int32_t token : kTokens) {
    const auto begin = w.dense(S::table).begin() + std::ptrdiff_t{token} * kDim;
    rows.emplace_back(begin, begin + kDim);
  }
  return rows;
}
Table normed(Table rows, const Weights& w) {
  for (Doubles& row : rows) {
    double squares = 0;
    for (const double x : row) squares += x * x;
    for (std::size_t j = 0; j < row.size(); ++j) {
      row[j] *= w.dense(S::norm)[j] / std::sqrt(squares / static_cast<double>(row.size()) + 1e-5);
    }
  }
  return rows;
}
Table product(const Table& rows, const Weights& w, S slot, std::optional<S> bias) {
  const Doubles& m = w.dense(slot);
  Table out;
  for (const Doubles& row : rows) {
    out.emplace_back();
    for (std::size_t n = 0; n * row.size() < m.size(); ++n) {
      double sum = bias ? w.dense(*bias)[n] : 0;
      for (std::size_t k = 0; k < row.size(); ++k) sum += row[k] * m[n * row.size() + k];
      out.back().push_back(sum);
    }
  }
  return out;
}
template <class F>
Table combined(Table a, const Table& b, F f) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    for (std::size_t j = 0; j < a[i].size(); ++j) a[i][j] = f(a[i][j], b[i][j]);
  }
  return a;
}
double silu_of(double x) { return x / (1 + std::exp(-x)); }
Table silu_rows(Table rows) {
  return combined(rows, rows, [](double x, double) { return silu_of(x); });
}

void check_nodes(const Kind& kind, bool only_up) {
  CAPTURE(kind.bias);
  CAPTURE(only_up);
  CAPTURE(to_string(kind.a));
  CAPTURE(to_string(kind.b));
  CAPTURE(std::string(kind.base ? to_string(*kind.base) : "no base"));
  const Weights w(kind, only_up);
  const auto start = embedding<S::table>(Dim<>{kDim});
  const auto up = linear<S::up, optional_slot(S::up_bias)>(Dim<>{kWide});
  const auto gate = linear<S::gate, optional_slot(S::gate_bias)>(Dim<>{kWide});
  const auto same = linear<S::same>(Dim<>{kDim});
  const auto norm = rms_norm<S::norm>(1e-5f);
  const Table x = embedded(w), y = normed(x, w);
  const auto plus = [](double a, double b) { return a + b; };
  const double t = kind.tolerance;

  check_both(start >> up, w, product(x, w, S::up, S::up_bias), t);
  check_both(start >> up >> silu(), w, silu_rows(product(x, w, S::up, S::up_bias)), t);
  check_both(start >> norm >> up, w, product(y, w, S::up, S::up_bias), t);
  check_both(start >> norm >> fork(gate, up) >> sum(), w,
             combined(product(y, w, S::gate, S::gate_bias), product(y, w, S::up, S::up_bias), plus),
             t);
  check_both(start >> norm >> fork(gate >> silu(), up) >> multiply(), w,
             combined(silu_rows(product(y, w, S::gate, S::gate_bias)),
                      product(y, w, S::up, S::up_bias), [](double a, double b) { return a * b; }),
             2 * t);
  check_both(start >> residual(norm >> same), w, combined(x, product(y, w, S::same, {}), plus), t);
  check_both(start >> residual(norm >> same >> silu()), w,
             combined(x, silu_rows(product(y, w, S::same, {})), plus), t);
}

}  // namespace

TEST_CASE("products with factors are those of the dense matrix") {
  // Rounding of sums of 64 and 32 terms; 8-bit codes of activations, twice.
  constexpr double kExact = 4e-6, kCodes = 0.03;
  for (const bool bias : {false, true}) {
    for (const bool only_up : {false, true}) {
      check_nodes({Format::f32, Format::f32, Format::f32, 0.7f, bias, kExact}, only_up);
      check_nodes({{}, Format::f32, Format::f32, 1.0f, bias, kExact}, only_up);
      check_nodes({{}, Format::f16, Format::f16, 0.7f, bias, kExact}, only_up);
      check_nodes({Format::q4_0, Format::f16, Format::f32, 1.0f, bias, kCodes}, only_up);
      check_nodes({Format::q8_0, Format::q4_0, Format::q8_0, 0.7f, bias, kCodes}, only_up);
      check_nodes({{}, Format::q4_0, Format::q4_0, 1.0f, bias, kCodes}, only_up);
      check_nodes({Format::f16, Format::f16, Format::q8_0, 1.0f, bias, kCodes}, only_up);
    }
  }
}

TEST_CASE("factors of any rank, in 8 bits, with inputs whose ranges are known or not") {
  constexpr double kExact = 4e-6, kCodes = 0.03;
  constexpr auto kInt8 = Format::i8_channel;
  const quant::StaticScale fixed{0.08f, 0, false}, affine{0.08f, 120, true};
  for (const bool only_up : {false, true}) {
    for (const Index rank : {Index{7}, Index{40}}) {
      CAPTURE(rank);
      check_nodes({{}, Format::f32, Format::f32, 0.7f, true, kExact, rank}, only_up);
      check_nodes({Format::f16, Format::f16, Format::f32, 1.0f, false, kExact, rank}, only_up);
      check_nodes({Format::q4_0, Format::f16, Format::q8_0, 0.7f, true, kCodes, rank}, only_up);
      check_nodes({{}, kInt8, Format::f16, 0.7f, false, kCodes, rank}, only_up);
      check_nodes({Format::f16, kInt8, kInt8, 1.0f, true, kCodes, rank}, only_up);
      check_nodes({{}, kInt8, kInt8, 1.0f, true, kCodes, rank, {}, fixed, affine}, only_up);
      check_nodes({Format::q8_0, kInt8, kInt8, 0.7f, false, kCodes, rank, {}, affine, fixed},
                  only_up);
      // A base with a known range beside a B with blocks: codes of one input in two forms.
      check_nodes({kInt8, Format::f16, Format::q8_0, 0.7f, true, kCodes, rank, fixed}, only_up);
      check_nodes({kInt8, kInt8, Format::q4_0, 0.7f, false, kCodes, rank, affine, affine}, only_up);
    }
  }
}

TEST_CASE("factors cost nothing where there are none, and are checked where they are") {
  const Kind kind{Format::f32, Format::f32, Format::f32, 1, false, 0};
  Weights w(kind);
  const auto expression = fuse(embedding<S::table>(Dim<>{kDim}) >>
                               residual(rms_norm<S::norm>(1e-5f) >> linear<S::same>(Dim<>{kDim})));
  Limits none = kLimits;
  none.max_rank = 0;
  const Plan plan = make_plan(expression, none);
  CHECK(plan.is_valid());
  CHECK(plan.factors_at == plan.bytes);
  CHECK(make_plan(expression, kLimits).bytes > plan.bytes);
  Limits much = kLimits;
  much.max_rank = kMaxValueBytes;
  CHECK(!make_plan(expression, much).is_valid());

  const auto why = [&](const Limits& limits) -> std::string {
    const Plan p = make_plan(expression, limits);
    auto arena = AlignedBuffer::allocate(p.bytes);
    InlineExecutor executor;
    RunArgs args;
    args.step = {.tokens = kTokens, .segments = kSegments, .output_rows = kOutputs};
    args.weights = w.table();
    args.arena = arena->bytes();
    args.executor = &executor;
    const auto checked = check_run(expression, p, limits, args);
    return checked ? "" : checked.error().message;
  };
  CHECK(why(kLimits).empty());
  CHECK(why(none).find("rank 32") != std::string::npos);
  Limits codes = kLimits;
  codes.float_inputs = false;
  CHECK(why(codes).find("float_inputs") != std::string::npos);
  Factors wrong = *w.at(S::same).factors;
  std::swap(wrong.a, wrong.b);
  w.at(S::same).factors = &wrong;
  CHECK(why(kLimits).find("factors") != std::string::npos);
}

}  // namespace factors_test
