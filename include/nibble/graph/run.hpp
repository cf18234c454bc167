// SPDX-License-Identifier: Apache-2.0
//
// Runs an expression: the walk of apply.hpp with data.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <utility>

#include "nibble/graph/layer_range.hpp"
#include "nibble/graph/observer.hpp"
#include "nibble/graph/plan.hpp"
#include "nibble/graph/rope_table.hpp"
#include "nibble/graph/step.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

// Everything that a run needs besides the expression. Whoever makes it has checked all of it:
// tokens are in range of the embedding, segments fit rows, cache and tables, output rows are
// ascending and in range.
struct RunArgs {
  Step step;
  WeightTable weights;
  ops::KvCache cache;
  std::span<const RopeTable> rope_tables;  // one for each set of angles of the expression
  std::span<std::byte> arena;              // Plan::bytes, aligned to kAlignment
  Executor* executor = nullptr;
  Tuning tuning = {};
  const Observer* observer = nullptr;
  const ProductObserver* product_observer = nullptr;  // needs a plan with Limits::float_inputs
  // (n_layers): where each layer keeps its keys and values; empty: in its own layer of the cache,
  // in the pages that Segment::pages says.
  std::span<const CachePlace> cache_places = {};
  // For the tables of pages after the first: the segments of the step once more for each, with its
  // pages.
  std::span<const Segment> table_segments = {};
  const LayerRange* range = nullptr;  // which layers run; null: all
  bool training = false;              // Dropout drops
  std::uint64_t dropout_seed = 0;
};

namespace detail {

template <int kMax>
class BasicRunner : public LayerPass {
 public:
  BasicRunner(const BasicPlan<kMax>& plan, const Limits& limits, const RunArgs& args) noexcept
      : plan_(plan),
        limits_(limits),
        args_(args),
        is_left_out_(args.range != nullptr && args.range->is_given) {
    NIBBLE_ASSERT(n_rows() >= 1 && n_rows() <= limits.max_rows);
    NIBBLE_ASSERT(args.step.n_outputs() >= 1 && args.step.n_outputs() <= limits.max_outputs);
    NIBBLE_ASSERT(!args.step.segments.empty() &&
                  static_cast<Index>(args.step.segments.size()) <= limits.max_segments);
    NIBBLE_ASSERT(args.step.segments.back().first_row + args.step.segments.back().n_rows ==
                  n_rows());
  }

  // ---- The pass ----
  const Limits& limits() const noexcept { return limits_; }
  // The same as in the planner: the largest possible number of rows, so that sizes agree.
  Index count(Rows rows) const noexcept { return limits_.count(rows); }
  template <Index W>
  Value<W> make(Dim<W> width, Rows rows) noexcept {
    return {next_++, rows, 0, width, width};
  }
  Scratch scratch(std::size_t) noexcept { return {next_++}; }
  template <class F, class... Values>
  void step(F&& f, const Values&...) noexcept {
    if (!is_skipped_ && !is_left_out_) f(*this);
  }
  template <auto kSlot>
  void weight([[maybe_unused]] Index n, [[maybe_unused]] Index k, Index = 1) const noexcept {
#if NIBBLE_DEBUG
    if constexpr (!kIsNone<kSlot>) {
      const Weight& w = weight(kSlot);
      NIBBLE_ASSERT(is_skipped_ || !w || (w.n == n && w.k == k));
    }
#endif
  }
  template <auto kSlot>
  void weight_rows([[maybe_unused]] Index n, [[maybe_unused]] Index k, RowsOf) const noexcept {
    NIBBLE_ASSERT(!weight(kSlot) || (weight(kSlot).k == k && weight(kSlot).n >= n));
  }
  void cache(Index, Index) const noexcept {}
  void reads_cache(Index, Index, Index) const noexcept {}
  void shares_cache(Index layer, Index, Index) noexcept {
    if (!is_skipped_) kv_layer_ = layer;
  }
  StateAt state(Index n, Index n_chunk = 0) noexcept {
    const StateAt at{state_, n, chunk_state_, n_chunk};
    if (!is_skipped_) {
      state_ += n;
      chunk_state_ += n_chunk;
    }
    return at;
  }
  template <auto kFactors>
  void angles(const RopeAngles&) const noexcept {}
  void both_ways() const noexcept {}
  void max_positions(Index) const noexcept {}
  void factors(Index) const noexcept {}
  Index place() noexcept { return place_++; }
  template <Index W, class Body>
  NIBBLE_COLD void repeat(Index n, const Value<W>& x, Body&& body) noexcept {
    NIBBLE_ASSERT(layer_ == -1);  // not within another repeat
    const int start = next_;
    const Index place = place_;
    for (Index i = 0; i < n; ++i) {
      layer_ = kv_layer_ = n_layers_++;
      next_ = start;
      place_ = place;
      if (args_.range != nullptr) begin_layer(view(x));
      body();
    }
    layer_ = -1;
    if (args_.range != nullptr) end_layers(view(x));
  }
  template <class Body>
  void when(bool condition, Body&& body) noexcept {
    const bool was_skipped = is_skipped_;
    is_skipped_ = was_skipped || !condition;
    body();  // skipped or not, so that values get the planner's numbers
    is_skipped_ = was_skipped;
  }
  template <class Body>
  void in_every_range(Body&& body) noexcept {
    const bool was_left_out = is_left_out_;
    is_left_out_ = false;
    body();
    is_left_out_ = was_left_out;
  }
  template <Label kName, Index W>
  void observe(const Value<W>& value) noexcept {
    if (args_.observer == nullptr || !*args_.observer || is_skipped_ || is_left_out_) return;
    (*args_.observer)(kName.view(), layer_, view(value));
  }
  bool observes_products() const noexcept {
    return args_.product_observer != nullptr && *args_.product_observer;
  }
  void observe_product(std::span<const std::size_t> slot_ids, MatrixView<const float> x) noexcept {
    (*args_.product_observer)(slot_ids, layer_, x);
  }
  // What a layer leaves out need not make sense there; the plan has checked the rest.
  void fail(const char*) const noexcept { NIBBLE_ASSERT(is_skipped_); }

  // ---- What steps use ----
  const Step& step_args() const noexcept { return args_.step; }
  // The rows of a value: (actual rows, width).
  template <Index W>
  View<float, kDynamic, W> view(const Value<W>& value) const noexcept {
    auto* const base = reinterpret_cast<float*>(args_.arena.data() +
                                                plan_.offsets[static_cast<std::size_t>(value.id)]);
    return View<float, kDynamic, W>(base + value.column, {count_of(value), value.width},
                                    {value.stride, 1});
  }
  std::span<std::byte> memory(const Scratch& scratch) const noexcept {
    return args_.arena.subspan(plan_.offsets[static_cast<std::size_t>(scratch.id)]);
  }
  // Memory for products whose weights have factors; see detail::FactorMemory.
  std::span<std::byte> factor_memory() const noexcept {
    return args_.arena.subspan(plan_.factors_at);
  }
  template <Index W>
  Index count_of(const Value<W>& value) const noexcept {
    switch (value.rows) {
      case Rows::all: return n_rows();
      case Rows::outputs: return args_.step.n_outputs();
      case Rows::segments: break;
    }
    return static_cast<Index>(args_.step.segments.size());
  }
  // Which of a value's rows have adapters.
  std::span<const RowAdapter> row_adapters(Rows rows) const noexcept {
    switch (rows) {
      case Rows::all: return args_.step.row_adapters;
      case Rows::outputs: return args_.step.output_adapters;
      case Rows::segments: break;
    }
    return args_.step.segment_adapters;
  }
  template <class Slot>
  const Weight& weight(Slot slot) const noexcept {
    return args_.weights.at(enumerator_of(slot), layer_);
  }
  // An empty view if the model has no such vector.
  template <class Slot>
  VectorView<const float> vector(Slot slot) const noexcept {
    if constexpr (std::is_same_v<Slot, Nothing>) {
      return {};
    } else {
      const Weight& w = weight(slot);
      return w ? VectorView<const float>(w.vector(), w.k) : VectorView<const float>();
    }
  }
  // The recurrent state that state() returned as `at`, of the sequence of `segment`.
  std::span<float> state_of(const Segment& segment, const StateAt& at) const noexcept {
    NIBBLE_ASSERT(segment.state != nullptr);
    return {segment.state + at.offset, static_cast<std::size_t>(at.n)};
  }
  std::span<float> chunk_state_of(const Segment& segment, const StateAt& at) const noexcept {
    NIBBLE_ASSERT(segment.chunk_state != nullptr);
    return {segment.chunk_state + at.chunk_offset, static_cast<std::size_t>(at.n_chunk)};
  }
  // Null if nothing is rotated.
  template <auto kFactors>
  const RopeTable* rope_table(const RopeAngles& angles) const noexcept {
    const RopeKey key = rope_key<kFactors>(angles, layer_, weights_have<kFactors>());
    if (key.dim == 0) return nullptr;
    for (const RopeTable& table : args_.rope_tables) {
      if (table.key == key) return &table;
    }
    NIBBLE_ASSERT(false);  // the survey has reported it
    return nullptr;
  }
  Executor& executor() const noexcept { return *args_.executor; }
  const Tuning& tuning() const noexcept { return args_.tuning; }
  const ops::KvCache& cache() const noexcept { return args_.cache; }
  Index layer() const noexcept { return layer_; }  // -1: outside of the layers
  Index cache_layer() const noexcept { return place_of_cache().layer; }
  std::span<const Segment> segments() const noexcept { return args_.step.segments; }
  // The segments of the step, with the pages of this layer.
  std::span<const Segment> cache_segments() const noexcept {
    const auto table = static_cast<std::size_t>(place_of_cache().table);
    const std::size_t n = args_.step.segments.size();
    return table == 0 ? args_.step.segments : args_.table_segments.subspan((table - 1) * n, n);
  }
  // This layer has stored its keys and values: in a run that wants no more of it, it ends here.
  void has_stored_keys() noexcept {
    if (args_.range != nullptr) is_left_out_ = args_.range->part_of(layer_) != LayerPart::all;
  }
  bool training() const noexcept { return args_.training; }
  // Each layer and each place draws its own numbers.
  kernels::Dropout dropout(float probability, Index place) const noexcept {
    constexpr std::uint64_t kPlaces = 1 << 16;
    return {probability, args_.dropout_seed + static_cast<std::uint64_t>(layer_ + 1) * kPlaces +
                             static_cast<std::uint64_t>(place)};
  }

 protected:
  void begin_layer(MatrixView<float> x) noexcept {
    is_left_out_ = args_.range->part_of(layer_) == LayerPart::none;
    exchange_rows(layer_, x);
  }
  void end_layers(MatrixView<float> x) noexcept {
    const bool was_last = n_layers_ == args_.weights.n_layers();
    if (was_last) exchange_rows(n_layers_, x);
    is_left_out_ = was_last && !args_.range->has_outputs;  // what follows
  }
  // Before this layer; after the last one, if there are no more.
  void exchange_rows(Index layer, MatrixView<float> x) noexcept {
    const LayerRange& range = *args_.range;
    const bool is_given = range.is_given && layer == range.begin;
    const bool is_stored = range.rows != nullptr && layer == range.end && !is_given;
    for (Index i = 0; i < x.extent(0) && (is_given || is_stored); ++i) {
      float* const row = x.data() + i * x.stride(0);
      float* const kept = range.row(i, x.extent(1));
      std::memcpy(is_given ? row : kept, is_given ? kept : row,
                  static_cast<std::size_t>(x.extent(1)) * sizeof(float));
    }
  }
  Index n_rows() const noexcept { return args_.step.n_rows(); }
  CachePlace place_of_cache() const noexcept {
    if (args_.cache_places.empty()) return {kv_layer_, 0};
    return args_.cache_places[static_cast<std::size_t>(kv_layer_)];
  }
  template <auto kSlot>
  bool weights_have() const noexcept {
    if constexpr (kIsNone<kSlot>) {
      return false;
    } else {
      // Factors belong to the whole model: all layers share them.
      return static_cast<bool>(args_.weights.at(enumerator_of(kSlot), -1));
    }
  }

  const BasicPlan<kMax>& plan_;
  const Limits& limits_;
  const RunArgs& args_;
  int next_ = 0;
  Index place_ = 0;
  Index n_layers_ = 0;        // so far
  Index kv_layer_ = -1;       // whose keys and values this layer reads
  Index state_ = 0;           // floats
  Index chunk_state_ = 0;     // floats
  bool is_skipped_ = false;   // by when()
  bool is_left_out_ = false;  // by RunArgs::range
};
using Runner = BasicRunner<kMaxValues>;

}  // namespace detail

// Runs `expression` with the plan that make_plan() made for it and `limits`. Returns the rows of
// the last node, (outputs or rows, width), which stay in the arena until the next run. No
// allocation. With a plan that is not valid, or an arena that is too small for it, nothing is
// computed and there are no rows.
template <Expr E>
NIBBLE_COLD auto run(const E& expression, const Plan& plan, const Limits& limits,
                     const RunArgs& args) noexcept {
  using Out = decltype(apply(expression, std::declval<detail::Runner&>(), Start{}));
  constexpr bool kIsOne = requires(Out out) { out.id; };
  static_assert(kIsOne, "nibble: an expression that is run gives one result");
  if constexpr (kIsOne) {
    using RowsOut = decltype(std::declval<detail::Runner&>().view(std::declval<Out>()));
    if (!plan.is_valid() || args.arena.size() < plan.bytes) return RowsOut();
    detail::Runner runner(plan, limits, args);
    return runner.view(apply(expression, runner, Start{}));
  }
}

}}}  // namespace nibble::NIBBLE_ABI::graph
