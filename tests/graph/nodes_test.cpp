// SPDX-License-Identifier: Apache-2.0
//
// What nodes do, layer by layer and row by row: expressions of few nodes, run on rows whose results
// can be told by hand. Each is run as written and as fused, in memory full of NaN.
#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/graph/check.hpp"
#include "nibble/graph/fuse.hpp"
#include "nibble/ops/pack.hpp"

namespace nodes_test {
namespace {

using namespace nibble;
using namespace nibble::graph;
using Table = std::vector<std::vector<float>>;

enum class S : unsigned char { table, places, norm, w, v, bias };
constexpr std::size_t kSlots = 6;
constexpr Index kLayers = 3, kWidth = 8, kWords = 10;
constexpr Dim<> kDim{kWidth};

// Values that differ by slot, layer, row and column, near 1.
float value(S slot, Index layer, Index row, Index column) {
  const auto s = static_cast<Index>(slot);
  return 1 + static_cast<float>((7 * s + 5 * (layer + 1) + 3 * row + column) % 11) / 16;
}

class Weights {
 public:
  Weights() {
    for (Index layer = -1; layer < kLayers; ++layer) {
      add(S::table, layer, kWords);
      add(S::places, layer, kWords);
      add(S::w, layer, kWidth);
      add(S::v, layer, kWidth);
      add(S::norm, layer, 0);
      add(S::bias, layer, 0);
    }
  }
  WeightTable table() const { return {table_, kSlots}; }
  void remove(S slot, Index layer) { at(slot, layer) = {}; }

 private:
  Weight& at(S slot, Index layer) {
    return table_[static_cast<std::size_t>(layer + 1) * kSlots + static_cast<std::size_t>(slot)];
  }
  void add(S slot, Index layer, Index n) {
    std::vector<float> values;
    for (Index i = 0; i < (n > 0 ? n : 1); ++i) {
      for (Index j = 0; j < kWidth; ++j) values.push_back(value(slot, layer, i, j));
    }
    const auto bytes = n > 0 ? static_cast<std::size_t>(quant::Packed<quant::F32>::bytes(n, kWidth))
                             : values.size() * sizeof(float);
    auto memory = AlignedBuffer::allocate(bytes);
    REQUIRE(memory.has_value());
    if (n == 0) {
      std::memcpy(memory->data(), values.data(), bytes);
      at(slot, layer) = weight_of(
          VectorView<const float>(reinterpret_cast<const float*>(memory->data()), kWidth));
    } else {
      InlineExecutor executor;
      ops::pack<quant::F32>(executor, reinterpret_cast<const std::byte*>(values.data()), n, kWidth,
                            memory->data());
      at(slot, layer) = weight_of(quant::PackedMatrix<quant::F32>{memory->data(), n, kWidth});
    }
    memory_.push_back(*std::move(memory));
  }

  std::vector<Weight> table_ = std::vector<Weight>((kLayers + 1) * kSlots);
  std::vector<AlignedBuffer> memory_;
};

// Two sequences: rows 0 to 2 at positions 0 to 2, rows 3 and 4 at positions 6 and 7.
const std::array<Segment, 2> kSegments = {
    Segment{.n_rows = 3}, Segment{.first_row = 3, .n_rows = 2, .first_position = 6}};
const std::array<std::int32_t, 5> kTokens = {4, 0, 9, 1, 4};
const std::array<Index, 3> kOutputs = {0, 2, 4};
constexpr Limits kLimits{.max_rows = 6, .max_outputs = 4, .n_positions = 8, .max_segments = 2};

RunArgs args_of(const Weights& weights) {
  RunArgs args;
  args.step = {.tokens = kTokens, .segments = kSegments, .output_rows = kOutputs};
  args.weights = weights.table();
  return args;
}

template <class E>
Table run_once(const E& expression, RunArgs args) {
  const Plan plan = make_plan(expression, kLimits);
  CAPTURE(std::string(plan.error != nullptr ? plan.error : ""));
  REQUIRE(plan.is_valid());
  auto arena = AlignedBuffer::allocate(plan.bytes);
  REQUIRE(arena.has_value());
  std::memset(arena->data(), 255, plan.bytes);
  InlineExecutor executor;
  args.arena = arena->bytes();
  args.executor = &executor;
  const auto checked = check_run(expression, plan, kLimits, args);
  CAPTURE(checked ? std::string() : checked.error().message);
  REQUIRE(checked);
  const auto out = run(expression, plan, kLimits, args);
  Table rows;
  for (Index i = 0; i < out.extent(0); ++i) {
    rows.emplace_back();
    for (Index j = 0; j < out.extent(1); ++j) rows.back().push_back(out(i, j));
  }
  return rows;
}

void check_equal(const Table& rows, const Table& expected) {
  REQUIRE(rows.size() == expected.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    REQUIRE(rows[i].size() == expected[i].size());
    for (std::size_t j = 0; j < rows[i].size(); ++j) {
      CAPTURE(i);
      CAPTURE(j);
      CHECK(rows[i][j] == doctest::Approx(expected[i][j]).epsilon(1e-5));
    }
  }
}

// As written and as fused.
template <class E>
void check_run_gives(const E& expression, const RunArgs& args, const Table& expected) {
  check_equal(run_once(expression, args), expected);
  check_equal(run_once(fuse(expression), args), expected);
}

// ---- The same by hand --------------------------------------------------------------------------

Table embedded(float scale = 1) {
  Table rows;
  for (const std::int32_t token : kTokens) {
    rows.emplace_back();
    for (Index j = 0; j < kWidth; ++j) rows.back().push_back(scale * value(S::table, -1, token, j));
  }
  return rows;
}
template <class F>
Table each(Table rows, F&& f) {
  for (auto& row : rows) {
    for (float& x : row) x = f(x);
  }
  return rows;
}
float silu_of(float x) { return x / (1 + std::exp(-x)); }
Table product(const Table& rows, S slot, Index layer) {
  Table out;
  for (const auto& row : rows) {
    out.emplace_back();
    for (Index n = 0; n < kWidth; ++n) {
      double sum = 0;
      for (Index k = 0; k < kWidth; ++k) {
        sum += static_cast<double>(row[static_cast<std::size_t>(k)]) *
               static_cast<double>(value(slot, layer, n, k));
      }
      out.back().push_back(static_cast<float>(sum));
    }
  }
  return out;
}
Table normed(Table rows, Index layer) {
  for (auto& row : rows) {
    double squares = 0;
    for (const float x : row) squares += static_cast<double>(x) * static_cast<double>(x);
    const double size = std::sqrt(squares / static_cast<double>(row.size()));
    for (std::size_t j = 0; j < row.size(); ++j) {
      row[j] = static_cast<float>(static_cast<double>(row[j]) / size) *
               value(S::norm, layer, 0, static_cast<Index>(j));
    }
  }
  return rows;
}
Table sum_of(Table a, const Table& b) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    for (std::size_t j = 0; j < a[i].size(); ++j) a[i][j] += b[i][j];
  }
  return a;
}
Table chosen(const Table& rows) {
  Table out;
  for (const Index row : kOutputs) out.push_back(rows[static_cast<std::size_t>(row)]);
  return out;
}

auto start() { return embedding<S::table>(kDim); }

// The first of several results.
struct SplitFirst : Node {};
auto split_first() { return SplitFirst{}; }
template <class Pass, class... Values>
constexpr auto apply(const SplitFirst&, Pass&, const std::tuple<Values...>& values) noexcept {
  return std::get<0>(values);
}

}  // namespace

TEST_CASE("embeddings: of tokens, with a factor; of positions; rows of numbers") {
  const Weights weights;
  RunArgs args = args_of(weights);
  check_run_gives(start(), args, embedded());
  check_run_gives(embedding<S::table>(kDim, kWords, 0.5f), args, embedded(0.5f));
  Table places;
  for (const Index position : {0, 1, 2, 6, 7}) {
    places.emplace_back();
    for (Index j = 0; j < kWidth; ++j) {
      places.back().push_back(value(S::places, -1, position, j));
    }
  }
  check_run_gives(position_embedding<S::places>(kDim), args, places);
  check_run_gives(fork(start(), position_embedding<S::places>(kDim)) >> sum(), args,
                  sum_of(embedded(), places));
  const std::array<std::int32_t, 5> mixed = {4, kNoToken, 9, kNoToken, 4};
  std::vector<float> numbers(5 * kWidth);
  for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i);
  args.step.tokens = mixed;
  args.step.rows = MatrixView<const float>(numbers.data(), 5, kWidth);
  Table expected = embedded(0.5f);
  for (const std::size_t row : {1u, 3u}) {
    for (std::size_t j = 0; j < kWidth; ++j) expected[row][j] = numbers[row * kWidth + j];
  }
  check_run_gives(embedding<S::table>(kDim, kWords, 0.5f), args, expected);
  for (const std::size_t row : {1u, 3u}) {
    for (float& x : expected[row]) x *= 3;
  }
  check_run_gives(embedding<S::table>(kDim, kWords, 0.5f, 3.0f), args, expected);
}

TEST_CASE("layers: each has its weights, its values and its parts") {
  const Weights weights;
  const RunArgs args = args_of(weights);
  const std::array<float, kLayers> factors = {2, 3, 5};
  const std::array<bool, kLayers> some = {true, false, true};
  const auto factor = scale(PerLayer<float>(factors.data(), kLayers));
  const auto times = [](float f) { return each(embedded(), [f](float x) { return f * x; }); };
  check_run_gives(start() >> repeat(Dim<>{1}, factor), args, times(2));
  check_run_gives(start() >> repeat(Dim<>{3}, factor), args, times(30));
  check_run_gives(start() >> repeat(Dim<>{3}, when(PerLayer<bool>(some.data(), kLayers), factor)),
                  args, times(10));
  check_run_gives(start() >> repeat(Dim<>{3}, when(false, factor)), args, times(1));
  const auto in_some = when(PerLayer<bool>(some.data(), kLayers), factor >> when(true, factor));
  check_run_gives(start() >> repeat(Dim<>{3}, in_some), args, times(100));
  check_run_gives(start() >> repeat(Dim<>{3}, when(false, factor >> in_some)), args, times(1));

  const auto body = residual(rms_norm<S::norm>(0) >> linear<S::w>(kDim) >> silu());
  const auto layer = [](const Table& x, Index i) {
    return sum_of(x, each(product(normed(x, i), S::w, i), silu_of));
  };
  const Table two = layer(layer(embedded(), 0), 1);
  check_run_gives(start() >> repeat(Dim<>{2}, body), args, two);
  // A second repeat goes on with the next layer.
  check_run_gives(start() >> repeat(Dim<>{2}, body) >> repeat(Dim<>{1}, body), args, layer(two, 2));
  check_run_gives(start() >> repeat(Dim<>{1}, factor) >> repeat(Dim<>{2}, factor), args, times(30));
  check_run_gives(start() >> repeat(Dim<>{2}, body) >> linear<S::w>(kDim), args,
                  product(two, S::w, -1));
  // What a layer leaves out need not make sense there.
  const std::array<Index, kLayers> widths = {kWidth, 7, kWidth};
  const auto of_width =
      residual(rms_norm<S::norm>(0) >> linear<S::w>(Dim<kPerLayer>(widths.data(), kLayers)));
  const auto linear_layer = [](const Table& x, Index i) {
    return sum_of(x, product(normed(x, i), S::w, i));
  };
  check_run_gives(start() >> repeat(Dim<>{3}, when(PerLayer<bool>(some.data(), kLayers), of_width)),
                  args, linear_layer(linear_layer(embedded(), 0), 2));
}

TEST_CASE("an observer sees each layer once, and nothing where a part is left out") {
  const Weights weights;
  RunArgs args = args_of(weights);
  const std::array<bool, kLayers> some = {true, false, true};
  std::vector<std::pair<std::string, Index>> seen;
  const auto see = [&](std::string_view name, Index layer, MatrixView<const float> rows) {
    seen.emplace_back(name, layer);
    CHECK(rows.extent(0) == 5);
    CHECK(rows(4, 7) == doctest::Approx(embedded()[4][7] * (name == "start" ? 1.0f : 2.0f)));
  };
  const Observer observer = see;
  args.observer = &observer;
  run_once(start() >> tap<"start">() >> scale(2) >>
               repeat(Dim<>{2}, when(PerLayer<bool>(some.data(), kLayers), tap<"layer">())) >>
               repeat(Dim<>{1}, tap<"more">()),
           args);
  const std::vector<std::pair<std::string, Index>> expected = {
      {"start", -1}, {"layer", 0}, {"more", 2}};
  CHECK(seen == expected);
}

TEST_CASE("values live as long as they are needed") {
  const Weights weights;
  const RunArgs args = args_of(weights);
  const auto body = residual(linear<S::w>(kDim) >> silu() >> linear<S::v>(kDim) >> scale(0.125f));
  Table layers = embedded();
  for (Index i = 0; i < kLayers; ++i) {
    const Table inner = product(each(product(layers, S::w, i), silu_of), S::v, i);
    layers = sum_of(layers, each(inner, [](float x) { return 0.125f * x; }));
  }
  check_run_gives(start() >> repeat(Dim<>{kLayers}, body), args, layers);
  // The first branch is needed after the layers of the second.
  check_run_gives(fork(start(), start() >> repeat(Dim<>{kLayers}, body)) >> sum(), args,
                  sum_of(embedded(), layers));
  // The first results of a fork are needed after its last.
  const auto branch = linear<S::w>(kDim) >> silu();
  const Table branched = each(product(embedded(), S::w, -1), silu_of);
  check_run_gives(start() >> fork(branch, branch >> linear<S::v>(kDim) >> silu()) >> sum(), args,
                  sum_of(branched, each(product(branched, S::v, -1), silu_of)));
  // The rows of a residual are needed after a body of several steps.
  check_run_gives(start() >> residual(branch >> linear<S::v>(kDim) >> silu()), args,
                  sum_of(embedded(), each(product(branched, S::v, -1), silu_of)));
  check_run_gives(start() >> residual(branch >> linear<S::v>(kDim)), args,
                  sum_of(embedded(), product(branched, S::v, -1)));
}

TEST_CASE("the rows that are wanted, of several sequences") {
  const Weights weights;
  const RunArgs args = args_of(weights);
  check_run_gives(start() >> output_rows(), args, chosen(embedded()));
  check_run_gives(start() >> output_rows() >> rms_norm<S::norm>(0) >> linear<S::w>(kDim), args,
                  product(normed(chosen(embedded()), -1), S::w, -1));
}

TEST_CASE("columns, pairs and biases") {
  Weights weights;
  const RunArgs args = args_of(weights);
  Table expected;
  for (const auto& row : embedded()) {
    expected.emplace_back();
    for (std::size_t j = 0; j < 4; ++j) expected.back().push_back(row[j] * row[4 + j]);
  }
  const auto fresh = start() >> scale(1);
  check_run_gives(fresh >> split(Dim<>{4}, Dim<>{4}) >> multiply(), args, expected);
  const auto gated =
      start() >> fork(linear<S::w>(kDim) >> silu(), linear<S::v>(kDim)) >> multiply();
  Table product_of = each(product(embedded(), S::w, -1), silu_of);
  const Table up = product(embedded(), S::v, -1);
  for (std::size_t i = 0; i < up.size(); ++i) {
    for (std::size_t j = 0; j < up[i].size(); ++j) product_of[i][j] *= up[i][j];
  }
  check_run_gives(gated, args, product_of);
  const auto biased = start() >> linear<S::w, optional_slot(S::bias)>(kDim);
  Table with_bias = product(embedded(), S::w, -1);
  for (auto& row : with_bias) {
    for (std::size_t j = 0; j < row.size(); ++j) {
      row[j] += value(S::bias, -1, 0, static_cast<Index>(j));
    }
  }
  check_run_gives(biased, args, with_bias);
  weights.remove(S::bias, -1);
  check_run_gives(biased, args, product(embedded(), S::w, -1));
  check_run_gives(start() >> in_place(rms_norm<S::norm>(0)), args, normed(embedded(), -1));
  Table unit = normed(embedded(), -1);
  for (auto& row : unit) {
    for (std::size_t j = 0; j < row.size(); ++j)
      row[j] /= value(S::norm, -1, 0, static_cast<Index>(j));
  }
  check_run_gives(start() >> rms_norm<kNone>(0), args, unit);  // no weights: ones
}

TEST_CASE("a gate, caps, a row for all, a body in place") {
  Weights weights;
  const RunArgs args = args_of(weights);
  Table gated;
  for (const auto& row : embedded()) {
    gated.emplace_back();
    for (std::size_t j = 0; j < 4; ++j) gated.back().push_back(silu_of(row[j]) * row[4 + j]);
  }
  check_run_gives(start() >> scale(1) >> split(Dim<>{4}, Dim<>{4}) >> silu_gate(), args, gated);
  check_run_gives(start() >> cap_rows(0.75f), args,
                  each(embedded(), [](float x) { return 0.75f * std::tanh(x / 0.75f); }));
  check_run_gives(start() >> cap_rows(0), args, embedded());
  check_run_gives(start() >> in_place(linear<S::w>(kDim) >> silu()), args,
                  each(product(embedded(), S::w, -1), silu_of));
  Table with_row = embedded();
  for (auto& row : with_row) {
    for (std::size_t j = 0; j < row.size(); ++j) {
      row[j] += value(S::places, -1, 0, static_cast<Index>(j));
    }
  }
  const auto typed = start() >> add_row<optional_slot(S::places)>();
  check_run_gives(typed, args, with_row);
  weights.remove(S::places, -1);
  check_run_gives(typed, args, embedded());
}

TEST_CASE("pooling: a row for each sequence") {
  const Weights weights;
  const RunArgs args = args_of(weights);
  const Table rows = embedded();
  Table mean(2, std::vector<float>(kWidth));
  for (std::size_t j = 0; j < kWidth; ++j) {
    mean[0][j] = (rows[0][j] + rows[1][j] + rows[2][j]) / 3;
    mean[1][j] = (rows[3][j] + rows[4][j]) / 2;
  }
  check_run_gives(start() >> pool(Pooling::mean), args, mean);
  check_run_gives(start() >> pool(Pooling::first), args, {rows[0], rows[3]});
  check_run_gives(start() >> pool(Pooling::last) >> linear<S::w>(kDim), args,
                  product({rows[2], rows[4]}, S::w, -1));
}

TEST_CASE("parts of q, k and v: norms of heads or none, temperatures by position") {
  const Weights weights;
  const RunArgs args = args_of(weights);
  const auto heads = Heads(Dim<>{1}, Dim<>{1}, kDim, 1.0f);
  const auto query = [&](const auto& part) {
    return start() >> fork(linear<S::w>(kDim), linear<S::v>(kDim), linear<S::v>(kDim)) >> part >>
           split_first();
  };
  const Table q = product(embedded(), S::w, -1);
  const auto norms = head_norm<S::norm, S::norm>(heads, 0);
  check_run_gives(query(when(true, norms)), args, normed(q, -1));
  check_run_gives(query(when(false, norms)), args, q);
  // Positions 0, 1, 2, 6, 7 in steps of 3.
  Table warm = q;
  for (float& x : warm[3]) x *= 1 + 0.5f * std::log(3.0f);
  for (float& x : warm[4]) x *= 1 + 0.5f * std::log(3.0f);
  check_run_gives(query(temper_queries({0.5f, 3})), args, warm);
  check_run_gives(query(temper_queries({})), args, q);
}

TEST_CASE("norms: their eps, their weights, what follows") {
  const Weights weights;
  const RunArgs args = args_of(weights);
  constexpr double kEps = 0.5;
  Table layer = embedded(), rms = embedded();
  for (std::size_t i = 0; i < layer.size(); ++i) {
    double sum = 0, squares = 0;
    for (const float x : layer[i]) {
      sum += static_cast<double>(x) / kWidth;
      squares += static_cast<double>(x) * static_cast<double>(x) / kWidth;
    }
    for (std::size_t j = 0; j < kWidth; ++j) {
      const auto x = static_cast<double>(layer[i][j]);
      const auto w = static_cast<double>(value(S::norm, -1, 0, static_cast<Index>(j)));
      layer[i][j] = static_cast<float>((x - sum) / std::sqrt(squares - sum * sum + kEps) * w);
      rms[i][j] = static_cast<float>(x / std::sqrt(squares + kEps) * w);
    }
  }
  const auto eps = static_cast<float>(kEps);
  const auto layer_of = layer_norm<S::norm, kNone>(eps);
  check_run_gives(start() >> layer_of, args, layer);
  check_run_gives(start() >> layer_of >> linear<S::w>(kDim), args, product(layer, S::w, -1));
  check_run_gives(start() >> layer_of >> gelu_erf(), args, each(layer, [](float x) {
                    return x * 0.5f * (1 + std::erf(x / std::sqrt(2.0f)));
                  }));
  check_run_gives(start() >> rms_norm<S::norm>(eps), args, rms);
  check_run_gives(start() >> rms_norm<S::norm>(eps) >> linear<S::w>(kDim), args,
                  product(rms, S::w, -1));
}

TEST_CASE("without a plan, or without its memory, there are no rows") {
  const Weights weights;
  RunArgs args = args_of(weights);
  InlineExecutor executor;
  args.executor = &executor;
  const auto wrong = start() >> residual(linear<S::w>(Dim<>{5}));
  const Plan none = make_plan(wrong, kLimits);
  CHECK_FALSE(none.is_valid());
  CHECK(run(wrong, none, kLimits, args).extent(0) == 0);
  const auto right = start() >> residual(linear<S::w>(kDim));
  CHECK(run(right, make_plan(right, kLimits), kLimits, args).extent(0) == 0);  // no arena
}

TEST_CASE("dropout: each layer and each place draws its own numbers") {
  const Weights weights;
  RunArgs args = args_of(weights);
  args.dropout_seed = 7;
  const auto half = dropout(0.5f);
  const auto norm = layer_norm<S::norm, kNone>(1e-5f) >> gelu_erf();
  // How many of the 40 values are kept.
  const auto kept = [&](const auto& expression) {
    int n = 0;
    for (const bool fused : {false, true}) {
      int n_here = 0;
      for (const auto& row :
           fused ? run_once(fuse(expression), args) : run_once(expression, args)) {
        for (const float x : row) n_here += x != 0;
      }
      if (fused) CHECK(n_here == n);
      n = n_here;
    }
    return n;
  };
  check_run_gives(start() >> half >> repeat(Dim<>{2}, half), args, embedded());
  args.training = true;
  const int once = kept(start() >> half);
  CHECK(once > 10);
  CHECK(once < 30);
  CHECK(kept(start() >> repeat(Dim<>{1}, half)) > 10);
  // Twice the same numbers would drop nothing more.
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    args.dropout_seed = seed;
    const int first = kept(start() >> half);
    CHECK(kept(start() >> half >> half) < first);
    CHECK(kept(start() >> half >> repeat(Dim<>{1}, half)) < first);
    const int layer = kept(start() >> repeat(Dim<>{1}, half));
    CHECK(kept(start() >> repeat(Dim<>{2}, half)) < layer);
    CHECK(kept(start() >> repeat(Dim<>{1}, half >> half)) < layer);
    CHECK(kept(start() >> repeat(Dim<>{2}, half)) != kept(start() >> repeat(Dim<>{3}, half)));
    const int both = kept(start() >> norm >> half);
    CHECK(kept(start() >> norm >> half >> scale(1) >> half) < both);
  }
}

}  // namespace nodes_test
