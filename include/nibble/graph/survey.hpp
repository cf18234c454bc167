// SPDX-License-Identifier: Apache-2.0
//
// What an expression needs from outside: weights, caches, tables. The expression is the only
// description of an architecture; code that loads a model or allocates memory for sequences asks
// it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
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

inline constexpr std::size_t kNoSlot = RopeFactors::kNone;

// Weights that an expression needs.
struct WeightNeed {
  std::size_t slot = 0;  // the enumerator
  Index layer = -1;      // −1: outside of the layers
  Index n = 0;           // rows; 0: a vector
  Index k = 0;
  Index n_experts = 1;
  bool is_required = true;
  std::size_t tied_to = kNoSlot;    // a slot of the same layer whose weights are used instead
  bool is_table = false;            // rows are looked up (and n = 0: any number of them)
  RowsOf rows_of = RowsOf::tokens;  // of a table
};

// Receives all needs, in the order of the walk; a slot may come more than once. May throw: the
// exception reaches the caller of survey().
class SurveySink {
 public:
  virtual ~SurveySink() = default;
  virtual void weight(const WeightNeed&) {}
  // What a layer stores per position.
  virtual void cache(Index /*layer*/, const ops::KvShape&) {}
  // How many positions up to its own a row of a layer reads; 0: all.
  virtual void reads_cache(Index /*layer*/, Index /*window*/) {}
  // A layer stores nothing and reads what another one stores, which is of this shape.
  virtual void shares_cache(Index /*layer*/, Index /*other*/, const ops::KvShape&) {}
  // Layers read more of a step than the rows that they change.
  virtual void reads_beside() {}
  // Floats of recurrent state that a layer stores per sequence, and of such that changes once in a
  // chunk of positions.
  virtual void state(Index /*layer*/, Index /*n_floats*/, Index /*n_chunk_floats*/) {}
  // A table of rotations.
  virtual void rope(const RopeKey&, const RopeFactors&) {}
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
    if constexpr (!kIsNone<kSlot>) {
      report([&] { sink_.weight(need<kSlot>(n, k, n_experts, false)); });
    }
  }
  template <auto kSlot>
  void weight_rows(Index n, Index k, RowsOf rows_of) {
    WeightNeed table = need<kSlot>(n, k, 1, true);
    table.rows_of = rows_of;
    report([&] { sink_.weight(table); });
  }
  void cache(Index n_kv_heads, Index head_dim) {
    report([&] { sink_.cache(layer_, {n_kv_heads, head_dim}); });
  }
  void reads_cache(Index, Index, Index window) {
    report([&] { sink_.reads_cache(layer_, window); });
  }
  void shares_cache(Index other, Index n_kv_heads, Index head_dim) {
    report([&] { sink_.shares_cache(layer_, other, {n_kv_heads, head_dim}); });
  }
  StateAt state(Index n, Index n_chunk = 0) {
    report([&] { sink_.state(layer_, n, n_chunk); });
    return {0, n, 0, n_chunk};
  }
  template <auto kFactors>
  void angles(const RopeAngles& angles) {
    RopeFactors factors;
    const RopeKey key = rope_key<kFactors>(angles, layer_, true);
    if (key.dim == 0) return;
    if constexpr (!kIsNone<kFactors>) {
      WeightNeed vector = need<kFactors>(0, key.dim / 2, 1, false);
      vector.layer = -1;
      factors.slot = vector.slot;
      report([&] { sink_.weight(vector); });
      if constexpr (requires { kFactors.beyond; }) {
        vector.slot = factors.beyond = static_cast<std::size_t>(kFactors.beyond);
        factors.n_original = angles.n_original;
        report([&] { sink_.weight(vector); });
      }
    }
    report([&] { sink_.rope(key, factors); });
  }
  void both_ways() {
    report([&] { sink_.both_ways(); });
  }
  void max_positions(Index n) {
    if (n > 0) report([&] { sink_.max_positions(n); });
  }
  void factors(Index) const noexcept {}
  Index place() const noexcept { return 0; }
  template <class AnyValue, class Body>
  NIBBLE_COLD void repeat(Index n, const AnyValue&, Body&& body) {
    for (Index i = 0; i < n; ++i) {
      layer_ = n_layers_++;
      body();
    }
    layer_ = -1;
  }
  template <class Body>
  void when(bool condition, Body&& body) {
    if (condition) body();
  }
  void set_beside(const Value<>& value) noexcept {
    if (value.id >= 0) report([&] { sink_.reads_beside(); });
    LayerPass::set_beside(value);
  }
  template <class Body>
  void in_every_range(Body&& body) {
    body();
  }
  template <Label kName, class AnyValue>
  void observe(const AnyValue&) const noexcept {}
  void fail(const char*) const noexcept {}  // the plan reports it

  // Throws what the sink threw.
  void finish() const {
#if NIBBLE_HAS_EXCEPTIONS
    if (thrown_) std::rethrow_exception(thrown_);
#endif
  }

 private:
  // The walk is noexcept, because runs are, but a sink may run out of memory.
  template <class Call>
  void report(const Call& call) noexcept {
#if NIBBLE_HAS_EXCEPTIONS
    if (thrown_) return;
    try {
      call();
    } catch (...) {
      thrown_ = std::current_exception();
    }
#else
    call();
#endif
  }
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
  Index n_layers_ = 0;  // so far
#if NIBBLE_HAS_EXCEPTIONS
  std::exception_ptr thrown_;
#endif
};

}  // namespace detail

// Reports to `sink` what `expression` needs.
template <Expr E>
NIBBLE_COLD void survey(const E& expression, SurveySink& sink) {
  detail::Survey pass(sink);
  (void)apply(expression, pass, Start{});
  pass.finish();
}

namespace detail {

// How messages call the weights of a slot that has no name.
inline std::string slot_name(std::size_t slot, Index layer) {
  return "slot " + to_text(slot) + (layer < 0 ? "" : " of layer " + to_text(layer));
}

// Compares weights with what is reported.
class WeightChecker final : public SurveySink {
 public:
  using Name = FunctionRef<std::string(std::size_t slot, Index layer)>;
  WeightChecker(WeightTable table, Name name) : table_(table), name_(name) {}

  void weight(const WeightNeed& need) override {
    if (error_) return;
    if (!table_.has(need.slot, need.layer)) {
      return fail(Errc::invalid_argument, need,
                  " have no place in a table of " + to_text(table_.n_slots()) + " slots and " +
                      to_text(table_.n_layers()) + " layers");
    }
    const Weight& w = table_.at(need.slot, need.layer);
    if (!w) {
      // Tied weights too: whoever fills the table enters the other slot's weights there.
      if (!need.is_required && need.tied_to == kNoSlot) return;
      return fail(Errc::not_found, need, " are missing");
    }
    const bool any_rows = need.is_table && need.n == 0;
    if (w.k != need.k || w.n_experts != need.n_experts || (any_rows ? w.n < 1 : w.n != need.n)) {
      return fail(Errc::invalid_argument, need,
                  ": shape " + shape_text(w.n, w.k, w.n_experts) + ", expected " +
                      (any_rows ? "(any, " + to_text(need.k) + ")"
                                : shape_text(need.n, need.k, need.n_experts)));
    }
    if (reinterpret_cast<std::uintptr_t>(w.data) % kAlignment != 0) {
      return fail(Errc::invalid_argument, need,
                  " are not aligned to " + to_text(kAlignment) + " bytes");
    }
    if (w.is_vector()) {
      if (w.has_base() && w.factors == nullptr) return;
      return fail(Errc::invalid_argument, need, ": a vector cannot have factors");
    }
    if (w.factors != nullptr && !check_factors(need, w)) return;
    if (!w.has_base()) return;
    const Result<void> checked = check_matrix(w, !need.is_table);
    if (!checked) fail(checked.error().code, need, checked.error().message);
  }
  Result<void> finish() const {
    if (error_) return *error_;
    return ok();
  }

 private:
  // The format of a matrix, and whether it can have this shape and this input.
  static Result<void> check_matrix(const Weight& w, bool is_multiplied) {
    if (w.ops == nullptr) {
      return Error{Errc::invalid_argument, " are a matrix without a format"};
    }
    Result<void> checked = w.ops->check_shape(w.n, w.k);
    if (checked && is_multiplied && w.ops->input == InputKind::rows) {
      checked = check_row_input(w.k, w.input);
    }
    if (!checked) return Error{checked.error().code, ": " + checked.error().message};
    return ok();
  }
  bool check_factors(const WeightNeed& need, const Weight& w) {
    const Factors& f = *w.factors;
    const auto is_matrix = [](const Weight& m, Index n, Index k) {
      return m.has_base() && m.factors == nullptr && m.n_experts == 1 && m.n == n && m.k == k &&
             k > 0 && reinterpret_cast<std::uintptr_t>(m.data) % kAlignment == 0 &&
             check_matrix(m, true).has_value();
    };
    const char* what = nullptr;
    if (need.is_table) what = ": factors of a table, whose rows are looked up";
    if (w.n_experts != 1) what = ": factors of experts";
    if (!is_matrix(f.a, w.n, f.rank()) || !is_matrix(f.b, f.rank(), w.k)) {
      what = ": factors that are not whole matrices (n, rank) and (rank, k)";
    }
    if (what != nullptr) fail(Errc::invalid_argument, need, what);
    return what == nullptr;
  }
  void fail(Errc code, const WeightNeed& need, const std::string& what) {
    error_ = Error{code, "weights '" + name_(need.slot, need.layer) + "'" + what};
  }

  WeightTable table_;
  Name name_;
  std::optional<Error> error_;
};

}  // namespace detail

// Compares weights with what `report(sink)` reports. Shapes are checked once, when weights are
// bound, and not when they are used. name: how messages call the weights of a slot. Errors:
// not_found (weights are missing), limit (rows that are too large), invalid_argument (they have
// another shape, an input whose range is not usable, or the table is too small for them).
inline Result<void> check_weights(FunctionRef<void(SurveySink&)> report, WeightTable table,
                                  FunctionRef<std::string(std::size_t slot, Index layer)> name) {
  detail::WeightChecker checker(table, name);
  report(checker);
  return checker.finish();
}
// For a program that runs an expression itself.
template <Expr E>
Result<void> check_weights(const E& expression, WeightTable table) {
  return check_weights([&](SurveySink& sink) { survey(expression, sink); }, table,
                       detail::slot_name);
}

}}}  // namespace nibble::NIBBLE_ABI::graph
