// SPDX-License-Identifier: Apache-2.0
//
// What an expression is run with: each thing that does not fit is an error that says which.
#include "nibble/graph/check.hpp"

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/graph/fuse.hpp"
#include "nibble/ops/kv_cache.hpp"

namespace check_test {
namespace {

using namespace nibble;
using namespace nibble::graph;

enum class S : unsigned char { table, places, w, v, out, factors };
constexpr std::size_t kSlots = 6;
constexpr Limits kLimits{.max_rows = 4, .max_outputs = 4, .n_positions = 8, .max_segments = 2};

auto expression() {
  const Heads heads{Dim<>{4}, Dim<>{2}, Dim<>{16}, 1.0f};
  const auto attention =
      fork(linear<S::w>(Dim<>{64}), linear<S::v>(Dim<>{32}), linear<S::v>(Dim<>{32})) >>
      rope<kernels::HalfSplit, optional_slot(S::factors)>(heads, {Index{16}}) >> cache_kv(heads) >>
      scores(heads) >> softmax(heads) >> attend_values(heads) >> linear<S::w>(Dim<>{64});
  return fork(embedding<S::table>(Dim<>{64}), position_embedding<S::places>(Dim<>{64})) >> sum() >>
         repeat(Dim<>{2}, residual(attention)) >> output_rows() >> linear<S::out>(Dim<>{10});
}

// A model of two layers and all that it runs with.
struct Run {
  Run() {
    at(S::table, -1) = matrix(10, 64);
    at(S::places, -1) = matrix(8, 64);
    at(S::out, -1) = matrix(10, 64);
    for (Index layer = 0; layer < 2; ++layer) {
      at(S::w, layer) = matrix(64, 64);
      at(S::v, layer) = matrix(32, 64);
    }
    args.weights = WeightTable(table, kSlots);
    args.step = {.tokens = tokens, .segments = segments, .output_rows = outputs};
    args.executor = &executor;
    arena = memory(plan.bytes);
    args.arena = arena.bytes();
    cache = memory(layout.bytes());
    args.cache = *ops::KvCache::create(cache.bytes(), layout);
    angles = memory(RopeTable::bytes_needed(key, 8));
    rope_table = RopeTable::fill(angles.bytes(), key, 8, frequencies, {});
    args.rope_tables = {&rope_table, 1};
  }
  static AlignedBuffer memory(std::size_t bytes) {
    auto allocated = AlignedBuffer::allocate(bytes);
    REQUIRE(allocated.has_value());
    return *std::move(allocated);
  }
  Weight matrix(Index n, Index k) const {
    return {&kFormatOps<quant::F32>, n, k, reinterpret_cast<const std::byte*>(data.data())};
  }
  Weight& at(S slot, Index layer) {
    return table[static_cast<std::size_t>(layer + 1) * kSlots + static_cast<std::size_t>(slot)];
  }
  Result<void> check() const { return check_run(expression(), plan, limits, args); }
  void check_fails(std::string_view part) const {
    const auto checked = check();
    CAPTURE(part);
    REQUIRE_FALSE(checked);
    CAPTURE(checked.error().message);
    CHECK(checked.error().message.find(part) != std::string::npos);
  }

  alignas(kAlignment) std::array<float, 1> data{};  // nobody reads weights here
  std::vector<Weight> table = std::vector<Weight>(3 * kSlots);
  Limits limits = kLimits;
  Plan plan = make_plan(expression(), limits);
  InlineExecutor executor;
  std::vector<std::int32_t> tokens = {0, 9, 3};
  std::vector<Segment> segments = {{.n_rows = 2},
                                   {.first_row = 2, .n_rows = 1, .first_position = 7}};
  std::vector<Index> outputs = {1, 2};
  ops::KvCacheLayout layout{.n_layers = 2, .n_kv_heads = 2, .head_dim = 16, .capacity = 128};
  RopeKey key{16, 10000.0f, 1, false};
  std::array<double, 8> frequencies{};
  RopeTable rope_table;
  AlignedBuffer arena, cache, angles;
  RunArgs args;
};

}  // namespace

TEST_CASE("what an expression is run with: weights") {
  Run run;
  CHECK(run.check());
  run.at(S::v, 1) = {};
  run.check_fails("weights 'slot 3 of layer 1' are missing");
  run.at(S::v, 1) = run.matrix(16, 64);  // one slot twice, in two shapes
  run.check_fails("weights 'slot 3 of layer 1': shape (16, 64), expected (32, 64)");
  run.at(S::v, 1) = run.matrix(0, 64);
  run.check_fails("shape (64), expected (32, 64)");
  run.at(S::v, 1) = run.matrix(32, 64);
  run.at(S::table, -1) = run.matrix(0, 64);  // rows are looked up, but it is a vector
  run.check_fails("weights 'slot 0': shape (64), expected (any, 64)");
  run.at(S::table, -1) = run.matrix(10, 64);
  run.at(S::w, 0).ops = nullptr;
  run.check_fails("without a format");
  run.at(S::w, 0) = run.matrix(64, 64);
  run.at(S::w, 0).data += 4;
  run.check_fails("not aligned to 64 bytes");
  run.at(S::w, 0) = run.matrix(64, 64);
  CHECK(run.check());
  // Fewer layers than the expression has, or slots.
  run.args.weights = WeightTable(std::span(run.table).first(2 * kSlots), kSlots);
  run.check_fails("layer 1' have no place in a table of 6 slots and 1 layers");
  run.args.weights = WeightTable(run.table, 2);
  run.check_fails("have no place in a table of 2 slots");
  run.args.weights = {};
  run.check_fails("have no place in a table of 0 slots");
}

TEST_CASE("what an expression is run with: formats") {
  Run run;
  for (const FormatOps* ops : {&kFormatOps<quant::Q4_0>, &kFormatOps<quant::Q8_0>}) {
    run.at(S::w, 0).ops = ops;
    CHECK(run.check());
    run.limits.code_inputs = false;
    run.plan = make_plan(expression(), run.limits);
    run.check_fails("8-bit codes, but Limits::code_inputs is false");
    run.limits = kLimits;
    run.plan = make_plan(expression(), run.limits);
  }
  run.limits.float_inputs = false;
  run.check_fails("floats, but Limits::float_inputs is false");
  // A whole number of blocks.
  const Dim<> k48{48};
  const auto small = embedding<S::table>(k48) >> linear<S::w>(k48);
  run.at(S::table, -1) = run.matrix(10, 48);
  run.at(S::w, -1) = run.matrix(48, 48);
  CHECK(check_weights(small, run.args.weights));
  run.at(S::w, -1).ops = &kFormatOps<quant::Q8_0>;
  const auto checked = check_weights(small, run.args.weights);
  REQUIRE_FALSE(checked);
  CHECK(checked.error().message ==
        "weights 'slot 2': a row of 48 weights is no whole number of blocks of 32");
}

TEST_CASE("what an expression is run with: memory and tables") {
  const auto after = [](auto&& change, std::string_view part) {
    Run run;
    change(run);
    run.check_fails(part);
  };
  after([](Run& r) { r.plan = make_plan(fuse(expression()), r.limits); }, "another expression");
  after([](Run& r) { r.limits.max_rows = 5; }, "another expression or of other limits");
  after([](Run& r) { r.limits.max_rows = 0; }, "a limit is less than 1");
  after([](Run& r) { r.plan.error = "no plan"; }, "the plan is of another");
  after([](Run& r) { r.args.arena = r.args.arena.first(r.plan.bytes - 1); }, "an arena of");
  after([](Run& r) { r.args.arena = {r.args.arena.data() + 1, r.plan.bytes}; }, "an arena of");
  after([](Run& r) { r.args.executor = nullptr; }, "no executor");
  after([](Run& r) { r.args.tuning.rows_per_task = 0; }, "a Tuning with less than 1 row per task");
  after([](Run& r) { r.args.tuning.tasks_per_worker = 0; }, "less than 1 row per task or 1 task");
  after([](Run& r) { r.args.cache = {}; }, "the cache has 0 kv heads of 0 in layer 0, expected 2");
  after(
      [](Run& r) {
        r.layout.n_layers = 1;
        r.args.cache = *ops::KvCache::create(r.cache.bytes(), r.layout);
      },
      "the cache has 0 kv heads of 0 in layer 1");
  after(
      [](Run& r) {
        r.layout.head_dim = 8;
        r.args.cache = *ops::KvCache::create(r.cache.bytes(), r.layout);
      },
      "the cache has 2 kv heads of 8 in layer 0, expected 2 of 16");
  after([](Run& r) { r.args.rope_tables = {}; }, "no rope table for 16 dimensions");
  after([](Run& r) { r.rope_table.key.theta = 500000; }, "no rope table for 16 dimensions");
  after([](Run& r) { r.at(S::factors, -1) = r.matrix(0, 8); }, "no rope table for 16 dimensions");
  after(
      [](Run& r) { r.rope_table = RopeTable::fill(r.angles.bytes(), r.key, 7, r.frequencies, {}); },
      "a rope table of 7 positions, expected 8");
  after([](Run& r) { r.at(S::places, -1) = r.matrix(7, 64); },
        "embeddings of 7 positions; Limits::n_positions is 8");
}

TEST_CASE("what an expression is run with: the step") {
  const auto after = [](auto&& change, std::string_view part) {
    Run run;
    change(run, run.args.step);
    run.check_fails(part);
  };
  after([](Run&, Step& s) { s.tokens = {}; }, "0 rows; Limits::max_rows is 4");
  after(
      [](Run& r, Step& s) {
        s.tokens = (r.tokens = {1, 2, 3, 4, 5});
      },
      "5 rows; Limits::max_rows");
  after([](Run& r, Step&) { r.tokens[1] = 10; }, "token 10 is not in [0, 10)");
  after([](Run& r, Step&) { r.tokens[1] = -2; }, "token -2 is not in [0, 10)");
  after([](Run& r, Step&) { r.tokens[1] = kNoToken; }, "Step::rows has no row of 64");
  after([](Run&, Step& s) { s.output_rows = {}; }, "0 outputs");
  after([](Run& r, Step&) { r.outputs[1] = 3; }, "output rows are not ascending");
  after([](Run& r, Step&) { r.outputs[1] = 1; }, "output rows are not ascending");
  after([](Run& r, Step&) { r.outputs[0] = -1; }, "output rows are not ascending");
  after([](Run&, Step& s) { s.segments = {}; }, "not all of its rows");
  after([](Run& r, Step& s) { s.segments = std::span(r.segments).first(1); },
        "not all of its rows");
  after([](Run& r, Step&) { r.segments[1] = {.first_row = 2, .n_rows = 2}; },
        "not all of its rows");
  after([](Run& r, Step&) { r.segments[1].first_row = 1; }, "does not begin where");
  after([](Run& r, Step&) { r.segments[0].n_rows = 1; }, "does not begin where");
  after([](Run& r, Step&) { r.segments[1].first_position = 8; },
        "ends at position 9; Limits::n_positions is 8");
  after([](Run& r, Step&) { r.segments[0].first_position = -1; }, "a segment at position -1");
  after(
      [](Run& r, Step& s) {
        r.segments = {{.n_rows = 1}, {.first_row = 1, .n_rows = 1}, {.first_row = 2, .n_rows = 1}};
        s.segments = r.segments;
      },
      "more segments than Limits::max_segments, 2");
  static const std::array<ops::PageId, 1> kBeyond = {2};
  after([](Run& r, Step&) { r.segments[1].pages = kBeyond; }, "not in pages that the cache has");

  // Rows of numbers in place of tokens.
  Run run;
  std::vector<float> numbers(3 * 64);
  run.tokens[1] = kNoToken;
  run.args.step.rows = MatrixView<const float>(numbers.data(), 3, 64);
  CHECK(run.check());
  run.args.step.rows = MatrixView<const float>(numbers.data(), 3, 63);
  run.check_fails("Step::rows has no row of 64");
}

}  // namespace check_test
