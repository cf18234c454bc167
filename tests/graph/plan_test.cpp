// SPDX-License-Identifier: Apache-2.0
//
// The memory plan compared with an independent record of the walk: every round of every layer
// separately, every value with the steps that name it. Two values that live at the same time must
// not share a byte.
#include "nibble/graph/plan.hpp"

#include <algorithm>
#include <vector>

#include "doctest/doctest.h"
#include "graph/tiny_dims.hpp"
#include "nibble/graph/fuse.hpp"
#include "nibble/model/gpt2.hpp"
#include "nibble/model/llama.hpp"

namespace plan_test {
namespace {

using namespace nibble;
using namespace nibble::graph;
using test::kTinyPlan;

// The memory of a static model is a constant that a program can check. The number is that of the
// plan when this was written: less is fine, more should be noticed.
static_assert(kTinyPlan.is_valid());
static_assert(kTinyPlan.bytes <= 6592);  // three quarters: attention

struct Life {
  int id;
  std::size_t bytes;
  int first, last;
};

// A pass (see pass.hpp) that runs nothing and unrolls the layers.
class Recorder : public graph::detail::LayerPass {
 public:
  explicit Recorder(const Limits& limits) : limits_(limits) {}

  const Limits& limits() const noexcept { return limits_; }
  Index count(Rows rows) const noexcept {
    return rows == Rows::all ? limits_.max_rows : limits_.max_outputs;
  }
  template <Index W>
  Value<W> make(Dim<W> width, Rows rows) noexcept {
    return {born(static_cast<std::size_t>(count(rows) * width) * 4), rows, 0, width, width};
  }
  Scratch scratch(std::size_t bytes) noexcept { return {born(bytes)}; }
  template <class F, class... Values>
  void step(F&&, const Values&... used) noexcept {
    (name(used.id), ...);
    ++time_;
  }
  template <auto kSlot>
  void weight(Index, Index, Index = 1) noexcept {}
  template <auto kSlot>
  void weight_rows(Index, Index, RowsOf) noexcept {}
  void cache(Index, Index) noexcept {}
  void reads_cache(Index, Index, Index) noexcept {}
  StateAt state(Index n, Index n_chunk = 0) noexcept { return {0, n, 0, n_chunk}; }
  template <auto kFactors>
  void angles(const RopeAngles&) noexcept {}
  void both_ways() noexcept {}
  void max_positions(Index) noexcept {}
  void factors(Index) noexcept {}
  Index place() noexcept { return 0; }
  void fail(const char* message) { FAIL(message); }
  template <class AnyValue, class Body>
  void repeat(Index n, const AnyValue&, Body&& body) noexcept {
    const int start = next_;
    for (layer_ = 0; layer_ < n; ++layer_) {
      next_ = start;
      body();
    }
    layer_ = -1;
  }
  template <class Body>
  void when(bool, Body&& body) noexcept {
    body();
  }
  template <Label kName, class AnyValue>
  void observe(const AnyValue& value) noexcept {
    name(value.id);
  }

  const std::vector<Life>& lives() const { return lives_; }

 private:
  int born(std::size_t bytes) {
    lives_.push_back({next_, bytes, time_, time_});
    return next_++;
  }
  void name(int id) {
    if (id < 0) return;
    const auto newest = std::find_if(lives_.rbegin(), lives_.rend(),
                                     [&](const Life& life) { return life.id == id; });
    REQUIRE(newest != lives_.rend());
    newest->last = time_;
  }

  Limits limits_;
  int next_ = 0, time_ = 0;
  std::vector<Life> lives_;
};

// Returns the bytes that any plan needs: the largest amount that lives at one time.
template <class E>
std::size_t check_plan(const E& expression, const Limits& limits) {
  const Plan plan = make_plan(expression, limits);
  REQUIRE(plan.is_valid());
  Recorder recorder(limits);
  apply(expression, recorder, Start{});
  const auto& lives = recorder.lives();
  REQUIRE(lives.size() >= static_cast<std::size_t>(plan.n_values));
  int overlaps = 0;
  std::size_t most = 0;
  for (const Life& a : lives) {
    const std::size_t offset = plan.offsets[static_cast<std::size_t>(a.id)];
    CHECK(offset % kAlignment == 0);
    CHECK(offset + a.bytes <= plan.bytes);
    std::size_t together = 0;
    for (const Life& b : lives) {
      if (b.first <= a.first && a.first <= b.last) together += b.bytes;
      if (&a == &b || a.first > b.last || b.first > a.last) continue;
      const std::size_t other = plan.offsets[static_cast<std::size_t>(b.id)];
      if (offset < other + b.bytes && other < offset + a.bytes) ++overlaps;
    }
    most = std::max(most, together);
  }
  CHECK(overlaps == 0);
  CHECK(plan.bytes >= most);
  // Little is lost because of the order in which values are placed.
  CHECK(plan.bytes <= most * 3 / 2 + 64 * static_cast<std::size_t>(plan.n_values));
  return most;
}

ModelConfig small_config(Index n_layers) {
  ModelConfig c;
  c.vocab_size = 50;
  c.dim = 24;
  c.n_layers = n_layers;
  c.n_heads = 6;
  c.n_kv_heads = 2;
  c.head_dim = 4;
  c.ffn_dim = 100;
  return c;
}

}  // namespace

TEST_CASE("values that live at the same time do not share memory") {
  for (const Index n_layers : {1, 2, 3}) {
    for (const Index max_tokens : {1, 3, 16}) {
      for (const Index max_outputs : {1, 16}) {
        Limits limits{max_tokens, std::min(max_tokens, max_outputs), 40, 3, 2};
        const ModelConfig c = small_config(n_layers);
        const auto check = [&](const auto& expression) {
          for (const bool floats : {true, false}) {
            for (const bool codes : {true, false}) {
              if (!floats && !codes) continue;
              limits.float_inputs = floats;
              limits.code_inputs = codes;
              check_plan(expression, limits);
            }
          }
        };
        check(llama(c));
        check(fuse(llama(c)));
        check(gpt2(c));
        check(fuse(gpt2(c)));
      }
    }
  }
}

TEST_CASE("what a layer reads again in its next round is kept") {
  using enum Slot;
  const Dim<> d{8};
  // Two results are made before the layers. Only the second goes through them; both are summed
  // after.
  const auto expression =
      fork(embedding<token_embd>(d),
           embedding<token_embd>(d) >>
               repeat(Dim<>{3}, residual(linear<ffn_up>(d) >> silu() >> linear<ffn_down>(d)))) >>
      sum() >> linear<output>(d);
  check_plan(expression, Limits{4, 4, 1, 1});
  check_plan(fuse(expression), Limits{4, 4, 1, 1});
}

namespace {

// Two steps in place, of which the second names only its scratch.
struct Late : Node {};
template <class Pass, Index W>
constexpr auto apply(const Late&, Pass& pass, const Value<W>& x) noexcept {
  pass.step([](auto&) {}, x);
  pass.step([](auto&) {}, pass.scratch(100));
  return x;
}

}  // namespace
}  // namespace plan_test

template <>
inline constexpr bool nibble::graph::kIsInPlace<plan_test::Late> = true;

namespace plan_test {

TEST_CASE("the result stays until the end") {
  using enum Slot;
  const Dim<> d{8};
  const auto apart = [](const Plan& plan) {
    REQUIRE(plan.n_values == 2);
    return plan.offsets[0] + 128 <= plan.offsets[1] || plan.offsets[1] + 128 <= plan.offsets[0];
  };
  const Limits limits{4, 4, 1, 1};
  CHECK(apart(make_plan(embedding<token_embd>(d) >> Late{}, limits)));
  // Also from layer to layer.
  CHECK(apart(make_plan(embedding<token_embd>(d) >> repeat(Dim<>{2}, Late{}), limits)));
}

TEST_CASE("layers that differ") {
  using enum Slot;
  const Dim<> d{8};
  // In each order: the first layer is not always the largest.
  for (const std::array<Index, 3>& widths :
       {std::array<Index, 3>{8, 40, 24}, {40, 24, 8}, {8, 8, 200}}) {
    const Dim<kPerLayer> wide(widths.data(), 3);
    const auto body = residual(linear<ffn_up>(wide) >> silu() >> linear<ffn_down>(d) >> silu());
    const auto model =
        embedding<token_embd>(d) >> repeat(Dim<>{3}, body >> body) >> linear<output>(d);
    check_plan(model, Limits{4, 4, 1, 1});
    check_plan(fuse(model), Limits{4, 4, 1, 1});
    // No more values than in one layer.
    const auto one =
        embedding<token_embd>(d) >> repeat(Dim<>{1}, body >> body) >> linear<output>(d);
    CHECK(make_plan(model, Limits{}).n_values == make_plan(one, Limits{}).n_values);
  }
}

TEST_CASE("layers that are not there take no memory") {
  using enum Slot;
  const Dim<> d{8}, wide{1000};
  const auto body = residual(linear<ffn_up>(wide) >> linear<ffn_down>(d));
  const auto start = embedding<token_embd>(d);
  const Limits limits{};
  const Plan without = make_plan(start >> linear<output>(d), limits);
  const Plan none = make_plan(start >> repeat(Dim<>{0}, body) >> linear<output>(d), limits);
  CHECK(none.bytes == without.bytes);
  CHECK(none.n_values == without.n_values);
  CHECK(make_plan(start >> repeat(Dim<>{1}, body) >> linear<output>(d), limits).bytes >
        without.bytes);
}

TEST_CASE("a plan of static dimensions is that of dynamic ones") {
  ModelConfig c;
  const test::TinyDims tiny;
  c.vocab_size = Index{tiny.vocab_size};
  c.dim = Index{tiny.dim};
  c.n_layers = Index{tiny.n_layers};
  c.n_heads = Index{tiny.n_heads};
  c.n_kv_heads = Index{tiny.n_kv_heads};
  c.head_dim = Index{tiny.head_dim};
  c.ffn_dim = Index{tiny.ffn_dim};
  c.rope_dim = tiny.rope_dim;
  const Plan plan = make_plan(fuse(llama(c)), test::kTinyLimits);
  CHECK(plan.bytes == kTinyPlan.bytes);
  CHECK(plan.n_values == kTinyPlan.n_values);
  CHECK(plan.offsets == kTinyPlan.offsets);
}

TEST_CASE("more results than a plan has room for") {
  const Dim<> d{4};
  const auto l = linear<Slot::ffn_up>(d);
  const auto eight = l >> l >> l >> l >> l >> l >> l >> l;
  const auto many = eight >> eight >> eight >> eight >> eight >> eight >> eight >> eight;
  const auto start = embedding<Slot::token_embd>(d);
  CHECK_FALSE(make_plan(start >> many, Limits{}).is_valid());
  CHECK(make_plan(start >> eight, Limits{}).is_valid());
}

}  // namespace plan_test
