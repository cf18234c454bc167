// SPDX-License-Identifier: Apache-2.0
//
// What an expression needs from outside: weights, caches, tables. The expression is the only
// description of an architecture; code that loads a model or allocates memory for sequences asks
// it.
#pragma once

#include <cstddef>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>

#include "nibble/core/executor.hpp"
#include "nibble/core/result.hpp"
#include "nibble/graph/apply.hpp"
#include "nibble/graph/rope_table.hpp"
#include "nibble/ops/kv_cache.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

inline constexpr std::size_t kNoSlot = std::numeric_limits<std::size_t>::max();

// Weights that an expression needs.
struct WeightNeed {
  std::size_t slot = 0;  // the enumerator
  Index layer = -1;      // −1: outside of the layers
  Index n = 0;           // rows; 0: a vector
  Index k = 0;
  Index n_experts = 1;
  bool is_required = true;
  std::size_t tied_to = kNoSlot;  // a slot outside of the layers whose weights are used instead
  bool is_table = false;          // rows are looked up (and n = 0: any number of them)
};

// Receives all needs, in the order of the walk; a slot may come more than once.
class SurveySink {
 public:
  virtual ~SurveySink() = default;
  virtual void weight(const WeightNeed&) {}
  // What a layer stores per position.
  virtual void cache(Index /*layer*/, const ops::KvShape&) {}
  // Floats of recurrent state that a layer stores per sequence.
  virtual void state(Index /*layer*/, Index /*n_floats*/) {}
  // A table of rotations. factors: the slot of its factors, or kNoSlot.
  virtual void rope(const RopeKey&, std::size_t /*factors*/) {}
  // There are embeddings for this many positions and no more.
  virtual void max_positions(Index) {}
  // Rows see later positions of their segment.
  virtual void both_ways() {}
};

namespace detail {

class Survey : public LayerPass {
 public:
  explicit Survey(SurveySink& sink) noexcept : sink_(sink) {}

  // The sizes of working memory do not matter here: the planner computes them.
  const Limits& limits() const noexcept { return limits_; }
  Index count(Rows) const noexcept { return 1; }
  template <Index W>
  Value<W> make(Dim<W> width, Rows rows) noexcept {
    return {next_++, rows, 0, width, width};
  }
  Scratch scratch(std::size_t) noexcept { return {next_++}; }
  template <class F, class... Values>
  void step(F&&, const Values&...) const noexcept {}

  template <auto kSlot>
  void weight(Index n, Index k, Index n_experts = 1) {
    if constexpr (!kIsNone<kSlot>) sink_.weight(need<kSlot>(n, k, n_experts, false));
  }
  template <auto kSlot>
  void weight_rows(Index n, Index k) {
    sink_.weight(need<kSlot>(n, k, 1, true));
  }
  void cache(Index n_kv_heads, Index head_dim) { sink_.cache(layer_, {n_kv_heads, head_dim}); }
  StateAt state(Index n) {
    sink_.state(layer_, n);
    return {0, n};
  }
  template <auto kFactors>
  void angles(const RopeAngles& angles) {
    std::size_t factors = kNoSlot;
    const RopeKey key = rope_key<kFactors>(angles, layer_, true);
    if constexpr (!kIsNone<kFactors>) {
      factors = static_cast<std::size_t>(enumerator_of(kFactors));
      WeightNeed vector = need<kFactors>(0, key.dim / 2, 1, false);
      vector.layer = -1;
      if (key.dim > 0) sink_.weight(vector);
    }
    if (key.dim > 0) sink_.rope(key, factors);
  }
  void both_ways() { sink_.both_ways(); }
  void max_positions(Index n) {
    if (n > 0) sink_.max_positions(n);
  }
  Index place() const noexcept { return 0; }
  template <class Body>
  NIBBLE_COLD void repeat(Index n, Body&& body) {
    for (layer_ = 0; layer_ < n; ++layer_) body();
    layer_ = -1;
  }
  template <class Body>
  void when(bool condition, Body&& body) {
    if (condition) body();
  }
  template <Label kName, class AnyValue>
  void observe(const AnyValue&) const noexcept {}
  void fail(const char*) const noexcept {}  // the plan reports it

 private:
  template <auto kSlot>
  WeightNeed need(Index n, Index k, Index n_experts, bool is_table) const noexcept {
    using S = std::remove_const_t<decltype(kSlot)>;
    WeightNeed need;
    need.slot = static_cast<std::size_t>(enumerator_of(kSlot));
    need.layer = layer_;
    need.n = n;
    need.k = k;
    need.n_experts = n_experts;
    need.is_table = is_table;
    if constexpr (requires(S s) { s.other; }) {
      need.tied_to = static_cast<std::size_t>(kSlot.other);
      need.is_required = false;
    } else if constexpr (requires(S s) { s.slot; }) {
      need.is_required = false;
    }
    return need;
  }

  SurveySink& sink_;
  Limits limits_;
  int next_ = 0;
};

}  // namespace detail

// Reports to `sink` what `expression` needs.
template <Expr E>
NIBBLE_COLD void survey(const E& expression, SurveySink& sink) {
  detail::Survey pass(sink);
  (void)apply(expression, pass, Start{});
}

// Compares weights with what an expression needs. Shapes are checked once, when weights are bound,
// and not when they are used. name: how messages call the weights of a slot.
class WeightChecker final : public SurveySink {
 public:
  using Name = FunctionRef<std::string(std::size_t slot, Index layer)>;
  WeightChecker(WeightTable table, Name name) : table_(table), name_(name) {}

  void weight(const WeightNeed& need) override {
    if (error_) return;
    const Weight& w = table_.at(need.slot, need.layer);
    if (!w) {
      // Tied weights too: whoever fills the table enters the other slot's weights there.
      if (!need.is_required && need.tied_to == kNoSlot) return;
      error_ = Error{Errc::not_found, "weights '" + name_(need.slot, need.layer) + "' are missing"};
    } else if (w.k != need.k || w.n_experts != need.n_experts ||
               (w.n != need.n && !(need.is_table && need.n == 0))) {
      error_ =
          Error{Errc::invalid_argument, "weights '" + name_(need.slot, need.layer) + "': shape " +
                                            shape_text(w.n, w.k, w.n_experts) + ", expected " +
                                            shape_text(need.n, need.k, need.n_experts)};
    }
  }
  Status finish() const {
    if (error_) return *error_;
    return ok();
  }

 private:
  WeightTable table_;
  Name name_;
  std::optional<Error> error_;
};

// The same check for a program that runs an expression itself. Errors: not_found, invalid_argument.
template <Expr E>
Status check_weights(const E& expression, WeightTable table) {
  const auto name = [](std::size_t slot, Index layer) {
    return "slot " + std::to_string(slot) + (layer < 0 ? "" : " of layer " + std::to_string(layer));
  };
  WeightChecker checker(table, name);
  survey(expression, checker);
  return checker.finish();
}

}}}  // namespace nibble::NIBBLE_ABI::graph
