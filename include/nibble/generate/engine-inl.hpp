// SPDX-License-Identifier: Apache-2.0
//
// An engine's functions. Included by engine.hpp.
#pragma once

#include <algorithm>
#include <cstring>
#include <new>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "nibble/core/arena.hpp"
#include "nibble/core/shared.hpp"
#include "nibble/generate/adapter_runs.hpp"
#include "nibble/generate/early_exit-inl.hpp"
#include "nibble/generate/engine.hpp"
#include "nibble/generate/engine_needs.hpp"
#include "nibble/generate/placed_run-inl.hpp"
#include "nibble/generate/sequence-inl.hpp"
#include "nibble/graph/run.hpp"
#include "nibble/io/mapped_file.hpp"
#include "nibble/model/architecture.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct Engine::State {
  State(const Model& m, const EngineOptions& o) : model(m), options(o), needs(m) {}

  // What an engine takes, before any of it is allocated.
  Result<void> measure();
  // Which layers share a table of pages, and which of them have a window.
  void place_layers();
  // Rounds the cache up so that each kv head's tiles begin at a page of the system's memory.
  Result<void> add_spare_pages();
  Result<void> align_lanes();
  // Whether the model is one for sessions, or for embedders. Errors: unsupported.
  Result<void> check_gives(Gives what) const;
  Result<void> allocate();
  void fill_rope_tables(Arena& arena);
  Result<void> can_run(std::span<const SequenceInput> inputs) const;
  Result<void> can_run(const SequenceInput& input, std::size_t index) const;
  Index pages_needed(std::span<const SequenceInput> inputs) const noexcept;
  Result<void> check_pages(Index n_pages) const;
  // Computes the pending tokens of each sequence, but at most max_rows of each. On an error they
  // stay pending.
  Result<MatrixView<const float>> run(std::span<const SequenceInput> inputs, Index max_rows);
  // Memory for rows of numbers, when the first are given. Error: out_of_memory.
  Result<void> allocate_rows(std::span<const SequenceInput> inputs);
  // Forgets guesses after the sequence's tokens, and computes what is pending only because of that,
  // as it was computed before; n_more tokens are to follow.
  Result<void> compute_again(Sequence& sequence, Index n_more);
  void put_rows(const SequenceInput& input, Index first_row) noexcept;
  // Runs the step of `args`, through the layers that there should be.
  MatrixView<const float> run_layers(bool has_outputs) noexcept;
  // What is computed of a sequence now, after a run of the step's segment.
  void advance(Sequence::State& sequence, const graph::Segment& segment) const noexcept;
  // How many rows a step has of a sequence's pending tokens.
  Index n_pending(const Sequence::State& s) const noexcept {
    return s.n_tokens - s.first_to_compute(draft_layers);
  }
  Result<void> can_run_fewer(const char* what) const;
  Result<void> check_depth(const Depth& depth) const;
  static bool is_left_out(const Depth& depth, Index layer) noexcept;
  detail::PlacedRun::Sizes placed_sizes() const noexcept {
    return {limits, Index{model.config().n_layers}, Index{model.config().dim}, plan.width};
  }
  Result<void> make_placed();
  // Those of n_rows positions of a sequence, from `first` on, that are learned rows of its adapter.
  void put_prefix(const Sequence::State& s, Index first_row, Index first, Index n_rows) noexcept;
  // Which rows of the step have adapters, in the step's arguments.
  void put_row_adapters(std::span<const SequenceInput> inputs) noexcept;
  // The segments of the step for the tables of pages after the first.
  std::span<const graph::Segment> put_table_segments(
      std::span<const SequenceInput> inputs) noexcept;
  EngineMemory memory_parts() const noexcept;
  std::size_t bytes() const noexcept { return memory_parts().engine(); }

  Model model;
  EngineOptions options;
  detail::EngineNeeds needs;
  graph::Limits limits;
  graph::Plan plan;
  ops::KvCacheLayout layout;
  PageLayout pages;
  Index page_multiple = 1;                         // of Pool
  std::vector<graph::CachePlace> places;           // of the layers; empty: as graph::RunArgs says
  std::size_t cache_bytes = 0, working_bytes = 0;  // of the two blocks of memory
  std::size_t rope_bytes = 0;                      // the part of the tables in the second
  std::size_t most_pairs = 0;                      // of a table of rotations
  std::uint64_t n_steps = 0;                       // logits are valid until the next one
  std::uint64_t n_settings = 0;                    // calls that can change what steps give
  Shared<Pool> pool;
  AlignedBuffer memory;
  graph::RunArgs args;
  std::vector<graph::RopeTable> rope_tables;
  InlineExecutor own_executor;
  std::int32_t* tokens = nullptr;             // (max_rows), of a step
  graph::Segment* segments = nullptr;         // (n_tables, max_segments)
  Index* output_rows = nullptr;               // (max_outputs)
  graph::RowAdapter* row_adapters = nullptr;  // (3, max_segments)
  float* rows = nullptr;                      // (max_rows, width), once rows of numbers were given
  graph::LayerPart* layer_parts = nullptr;    // (n_layers): what of each layer runs
  graph::LayerPart* key_parts = nullptr;  // (n_layers): what stores keys and values, and no more
  bool is_full_depth = true;              // all of all layers
  bool stores_exactly = true;             // what all of all layers would store
  Index draft_layers = 0;                 // that the step runs; 0: it is no draft
  bool is_staged = false;                 // the step runs in stages, for early exit
  Owned<detail::StagedRun> early_exit;    // null: there is none
  Owned<detail::PlacedRun> placed;        // null: all parts run here
  AlignedBuffer row_memory;
};

NIBBLE_INLINE Engine::Engine(Owned<State> state) noexcept : state_(std::move(state)) {}

NIBBLE_INLINE const Model& Engine::model() const noexcept { return state_->model; }
NIBBLE_INLINE Index Engine::n_ctx() const noexcept { return state_->limits.n_positions; }
NIBBLE_INLINE Index Engine::max_sequences() const noexcept { return state_->limits.max_segments; }
NIBBLE_INLINE Index Engine::max_step_tokens() const noexcept { return state_->limits.max_rows; }
NIBBLE_INLINE Index Engine::max_outputs() const noexcept { return state_->limits.max_outputs; }
NIBBLE_INLINE Index Engine::n_pages() const noexcept { return state_->pool->pages.n_pages(); }
NIBBLE_INLINE Index Engine::n_free_pages() const noexcept { return state_->pool->pages.n_free(); }
NIBBLE_INLINE Index Engine::pages_for(Index n_positions) const noexcept {
  return state_->pages.most_pages(n_positions, state_->limits.max_rows);
}
NIBBLE_INLINE Index Engine::n_page_tables() const noexcept { return state_->pages.n_tables; }
NIBBLE_INLINE Index Engine::pages_needed(std::span<const SequenceInput> inputs) const noexcept {
  return state_->pages_needed(inputs);
}
NIBBLE_INLINE bool Engine::gives_embeddings() const noexcept {
  return state_->plan.rows == graph::Rows::segments;
}
NIBBLE_INLINE Index Engine::output_width() const noexcept { return state_->plan.width; }
NIBBLE_INLINE std::size_t Engine::bytes() const noexcept {
  const State& s = *state_;
  return s.bytes() + s.row_memory.size() + (s.early_exit ? s.early_exit->bytes() : 0);
}
NIBBLE_INLINE void Engine::set_policy(const ops::PagePolicy* policy) noexcept {
  state_->args.step.policy = policy;
  ++state_->n_settings;
}

NIBBLE_INLINE Result<void> Engine::check_adapter(const SequenceAdapter& adapter) const {
  return state_->pool->check_adapter(adapter);
}

NIBBLE_INLINE Result<void> Engine::exchange_weights(graph::WeightTable weights) {
  State& s = *state_;
  ++s.n_settings;
  const graph::WeightTable own = s.model.weights();
  if (weights.size() == 0) {
    s.args.weights = own;
    return ok();
  }
  if (!s.options.exchangeable_weights) {
    return Error{Errc::invalid_argument,
                 "engine: it was made without exchangeable_weights in its options"};
  }
  if (weights.size() != own.size() || weights.n_slots() != own.n_slots()) {
    return Error{Errc::invalid_argument, "engine: a table of " + to_text(weights.size()) +
                                             " weights for a model of " + to_text(own.size())};
  }
  for (Index layer = -1; layer < own.n_layers(); ++layer) {
    for (std::size_t slot = 0; slot < own.n_slots(); ++slot) {
      const graph::Weight &a = own.at(slot, layer), &b = weights.at(slot, layer);
      if (!a && !b) continue;
      if (a && b && a.n == b.n && a.k == b.k && a.n_experts == b.n_experts) continue;
      const auto text = [](const graph::Weight& w) {
        return w ? graph::shape_text(w.n, w.k, w.n_experts) : std::string("none");
      };
      return Error{Errc::invalid_argument, "engine: other weights for " +
                                               s.model.architecture().tensor_name(slot, layer) +
                                               " are " + text(b) + ", the model's " + text(a)};
    }
  }
  NIBBLE_CHECK(catch_out_of_memory([&]() -> Result<void> {
    const ModelGraph& graph = s.model.architecture();
    auto checked = graph::check_weights(
        [&](graph::SurveySink& sink) { graph.survey(sink); }, weights,
        [&](std::size_t slot, Index layer) { return graph.tensor_name(slot, layer); });
    if (!checked) return Error{Errc::invalid_argument, checked.error().message}.in("engine");
    detail::ExchangeChecker checker(own, weights, s.limits.max_rank);
    graph.survey(checker);
    return checker.finish();
  }));
  s.args.weights = weights;
  return ok();
}

NIBBLE_INLINE Result<Sequence> Engine::new_sequence(Index capacity) {
  const Index n = capacity == 0 ? state_->limits.n_positions : capacity;
  if (n < 1 || n > state_->limits.n_positions) {
    return Error{Errc::invalid_argument, "engine: a sequence of " + to_text(n) +
                                             " positions; n_ctx is " +
                                             to_text(state_->limits.n_positions)};
  }
  return catch_out_of_memory([&] { return Sequence::State::create(state_->pool, n); });
}

NIBBLE_INLINE Result<void> Engine::State::can_run(const SequenceInput& input,
                                                  std::size_t index) const {
  const auto error = [&](Errc code, const std::string& what) {
    const bool many = limits.max_segments > 1;
    return Error{code, (many ? "engine: input " + to_text(index) + ": " : "session: ") + what};
  };
  if (input.sequence == nullptr || input.sequence->state_->pool.get() != pool.get()) {
    return error(Errc::invalid_argument, "no sequence of this engine");
  }
  const Sequence::State& s = *input.sequence->state_;
  if (placed && s.adapter) {
    return error(Errc::unsupported, "an adapter in a model with parts in other places");
  }
  const Index n = input.n_rows() + n_pending(s);
  if (input.rows.data() != nullptr && draft_layers > 0) {
    return error(Errc::invalid_argument, "rows of numbers in a draft: they are not kept");
  }
  if (input.rows.data() != nullptr &&
      (!input.tokens.empty() || input.rows.extent(1) != model.config().dim)) {
    return error(Errc::invalid_argument, "rows of " + to_text(input.rows.extent(1)) +
                                             " numbers instead of tokens; " + "the model's have " +
                                             to_text(Index{model.config().dim}));
  }
  if (n < 1) return error(Errc::invalid_argument, "0 tokens: there is nothing to compute");
  if (input.n_outputs < 0 || input.n_outputs > (std::min)(n, limits.max_outputs)) {
    return error(Errc::invalid_argument, to_text(input.n_outputs) + " outputs of " + to_text(n) +
                                             " tokens; at most " + to_text(limits.max_outputs) +
                                             " at once");
  }
  if (input.n_rows() > s.capacity - s.n_tokens) {
    return error(Errc::limit, to_text(input.n_rows()) + " tokens at position " +
                                  to_text(s.n_tokens) + " do not fit in a context of " +
                                  to_text(s.capacity));
  }
  if (needs.reads_both_ways && s.n_computed > 0) {
    return error(Errc::invalid_argument,
                 "the model reads a sequence in both directions and so at once; this one has "
                 "tokens already");
  }
  for (std::size_t i = 0; i < input.tokens.size(); ++i) {
    const std::int32_t token = input.tokens[i];
    if (token >= 0 && token < model.config().vocab_size) continue;
    return error(Errc::invalid_argument, "token " + to_text(i) + " is " + to_text(token) +
                                             ", not in [0, " +
                                             to_text(Index{model.config().vocab_size}) + ")");
  }
  return ok();
}

NIBBLE_INLINE Result<void> Engine::State::can_run(std::span<const SequenceInput> inputs) const {
  const auto n_inputs = static_cast<Index>(inputs.size());
  if (n_inputs < 1) return Error{Errc::invalid_argument, "engine: a step without inputs"};
  if (n_inputs > limits.max_segments) {
    return Error{Errc::limit, "engine: " + to_text(n_inputs) +
                                  " sequences in one step; max_sequences is " +
                                  to_text(limits.max_segments)};
  }
  Index n_rows = 0, n_outputs = 0;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    NIBBLE_CHECK(can_run(inputs[i], i));
    for (std::size_t j = 0; j < i; ++j) {
      if (inputs[j].sequence != inputs[i].sequence) continue;
      return Error{Errc::invalid_argument, "engine: inputs " + to_text(j) + " and " + to_text(i) +
                                               " are of the same sequence"};
    }
    n_rows += inputs[i].n_rows() + n_pending(*inputs[i].sequence->state_);
    n_outputs += inputs[i].n_outputs;
  }
  if (n_rows > limits.max_rows || n_outputs > limits.max_outputs) {
    return Error{Errc::limit, "engine: a step of " + to_text(n_rows) +
                                  " tokens (pending ones included) with " + to_text(n_outputs) +
                                  " outputs; at most " + to_text(limits.max_rows) + " and " +
                                  to_text(limits.max_outputs)};
  }
  return check_pages(pages_needed(inputs));
}

NIBBLE_INLINE Index
Engine::State::pages_needed(std::span<const SequenceInput> inputs) const noexcept {
  Index n_pages = 0;
  for (const SequenceInput& input : inputs) {
    const Sequence::State& s = *input.sequence->state_;
    const Index n = input.n_rows() + s.n_pending();
    n_pages += s.n_pages_for(n, n) - s.n_unread_pages();
  }
  return n_pages;
}

NIBBLE_INLINE Result<void> Engine::State::check_pages(Index n_pages) const {
  if (n_pages <= pool->pages.n_free()) return ok();
  return Error{Errc::limit, "engine: the cache is full: " + to_text(n_pages) +
                                " pages are needed and " + to_text(pool->pages.n_free()) +
                                " are free"};
}

NIBBLE_INLINE Result<void> Engine::can_run(const SequenceInput& input) const {
  const State& s = *state_;
  NIBBLE_CHECK(s.can_run(input, 0));
  const Index n = input.n_rows() + input.sequence->n_pending();
  if (n > s.limits.max_rows && s.needs.reads_both_ways) {
    return Error{Errc::limit, "session: the model reads all " + to_text(n) +
                                  " tokens at once; max_step_tokens is " +
                                  to_text(s.limits.max_rows)};
  }
  const Sequence::State& sequence = *input.sequence->state_;
  return s.check_pages(sequence.n_pages_for(n, s.limits.max_rows) - sequence.n_unread_pages());
}

NIBBLE_INLINE Result<void> Engine::State::allocate_rows(std::span<const SequenceInput> inputs) {
  const auto has_rows = [](const SequenceInput& input) {
    const Sequence::State& s = *input.sequence->state_;
    return input.rows.data() != nullptr || s.n_computed < s.n_prefix();
  };
  if (rows != nullptr || !std::any_of(inputs.begin(), inputs.end(), has_rows)) return ok();
  const auto n = static_cast<std::size_t>(limits.max_rows * model.config().dim);
  NIBBLE_TRY(allocated, AlignedBuffer::allocate(n * sizeof(float)));
  row_memory = std::move(allocated);
  rows = reinterpret_cast<float*>(row_memory.data());
  return ok();
}

NIBBLE_INLINE void Engine::State::put_prefix(const Sequence::State& s, Index first_row, Index first,
                                             Index n_rows) noexcept {
  const Index n = (std::min)(s.n_prefix() - first, n_rows);
  if (n <= 0) return;
  const Index width = model.config().dim;
  const float* const from = s.adapter.set.state_->prefix + first * width;
  std::memcpy(rows + first_row * width, from, static_cast<std::size_t>(n * width) * sizeof(float));
}

NIBBLE_INLINE Result<void> Engine::State::compute_again(Sequence& sequence, Index n_more) {
  Sequence::State& s = *sequence.state_;
  s.forget_ahead();
  const Index n = (std::min)(s.n_again(), s.n_pending() + n_more - 1);
  if (n < 1 || s.pool.get() != pool.get()) return ok();
  NIBBLE_CHECK(check_pages(s.n_pages_for(n, n) - s.n_unread_pages()));
  const SequenceInput input{
      .sequence = &sequence, .n_outputs = 0, .kind = ops::SegmentKind::generation};
  NIBBLE_CHECK(run({&input, 1}, n));
  return ok();
}

NIBBLE_INLINE void Engine::State::put_rows(const SequenceInput& input, Index first_row) noexcept {
  const Index width = model.config().dim;
  for (Index i = 0; i < input.rows.extent(0); ++i) {
    for (Index j = 0; j < width; ++j) rows[(first_row + i) * width + j] = input.rows(i, j);
  }
}

NIBBLE_INLINE std::span<const graph::Segment> Engine::State::put_table_segments(
    std::span<const SequenceInput> inputs) noexcept {
  graph::Segment* const first = segments + inputs.size();
  graph::Segment* next = first;
  for (Index table = 1; table < pages.n_tables; ++table) {
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      *next = segments[i];
      next++->pages = inputs[i].sequence->state_->page_table(table);
    }
  }
  return {first, static_cast<std::size_t>(next - first)};
}

NIBBLE_INLINE void Engine::State::put_row_adapters(std::span<const SequenceInput> inputs) noexcept {
  detail::AdapterRuns of_rows(row_adapters), of_outputs(row_adapters + limits.max_segments),
      of_segments(row_adapters + 2 * limits.max_segments);
  Index n_outputs = 0;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const SequenceAdapter& adapter = inputs[i].sequence->state_->adapter;
    const Index first_output = std::exchange(n_outputs, n_outputs + inputs[i].n_outputs);
    if (!adapter) continue;
    graph::RowAdapter part = adapter.set.state_->in_step(adapter.strength);
    const auto add = [&](detail::AdapterRuns& runs, Index first, Index n) {
      part.first_row = first;
      part.n_rows = n;
      runs.add(part);
    };
    add(of_rows, segments[i].first_row, segments[i].n_rows);
    add(of_outputs, first_output, inputs[i].n_outputs);
    add(of_segments, static_cast<Index>(i), 1);
  }
  args.step.row_adapters = of_rows.all();
  args.step.output_adapters = of_outputs.all();
  args.step.segment_adapters = of_segments.all();
}

NIBBLE_INLINE Result<MatrixView<const float>> Engine::State::run(
    std::span<const SequenceInput> inputs, Index max_rows) {
  graph::Step& step = args.step;
  Index n_rows = 0, n_outputs = 0;
  std::size_t n_segments = 0;
  NIBBLE_CHECK(allocate_rows(inputs));
  for (const SequenceInput& input : inputs) input.sequence->state_->drop_unread_pages();
  for (const SequenceInput& input : inputs) {
    Sequence::State& s = *input.sequence->state_;
    const Index first = s.first_to_compute(draft_layers);
    const Index n = (std::min)(s.n_tokens - first, max_rows);
    s.prepare(first + n - s.n_computed);
    put_prefix(s, n_rows, first, n);
    if (input.rows.data() != nullptr) put_rows(input, n_rows + n - input.n_rows());
    std::memcpy(tokens + n_rows, s.tokens + first, static_cast<std::size_t>(n) * sizeof(*tokens));
    if (placed) placed->set_sequence(n_segments, &s);
    segments[n_segments++] = {n_rows,          n,       first,          input.kind,
                              s.page_table(0), s.state, s.chunk_state()};
    for (Index i = n - input.n_outputs; i < n; ++i) output_rows[n_outputs++] = n_rows + i;
    n_rows += n;
  }
  const bool has_outputs = n_outputs > 0;
  if (!has_outputs) output_rows[n_outputs++] = n_rows - 1;  // nobody reads it
  step.tokens = {tokens, static_cast<std::size_t>(n_rows)};
  step.segments = {segments, n_segments};
  args.table_segments = put_table_segments(inputs);
  put_row_adapters(inputs);
  step.output_rows = {output_rows, static_cast<std::size_t>(n_outputs)};
  step.rows = rows == nullptr ? MatrixView<const float>()
                              : MatrixView<const float>(rows, n_rows, Index{model.config().dim});
  const MatrixView<const float> logits = run_layers(has_outputs);
  ++n_steps;
  const bool has_failed = placed && logits.data() == nullptr;
  const bool is_exceeded = pool->is_exceeded.exchange(false, std::memory_order_relaxed);
  for (std::size_t i = 0; i < n_segments; ++i) {
    Sequence::State& s = *inputs[i].sequence->state_;
    const Index before = s.n_computed;
    advance(s, segments[i]);
    if (is_exceeded || has_failed) s.uncompute(before);
  }
  if (has_failed) return placed->failure();
  if (is_exceeded) {
    return Error{
        Errc::limit,
        "session: a key or value of the model is beyond 65504, the most that an f16 cache "
        "or an int4 one can hold; choose kv_type bf16 or f32 in the session's or engine's options"};
  }
  return has_outputs || plan.rows == graph::Rows::segments ? logits : logits.rows(0, 0);
}

NIBBLE_INLINE Result<MatrixView<const float>> Engine::run(std::span<const SequenceInput> inputs) {
  State& s = *state_;
  for (const SequenceInput& input : inputs) {
    if (input.sequence != nullptr) NIBBLE_CHECK(s.compute_again(*input.sequence, input.n_rows()));
  }
  NIBBLE_CHECK(s.can_run(inputs));
  for (const SequenceInput& input : inputs) {
    input.sequence->state_->add(input.rows.data() != nullptr ? nullptr : input.tokens.data(),
                                input.n_rows());
  }
  auto logits = s.run(inputs, s.limits.max_rows);
  if (!logits) {
    for (const SequenceInput& input : inputs) {
      Sequence::State& sequence = *input.sequence->state_;
      sequence.cut(sequence.n_tokens - input.n_rows());
    }
  }
  return logits;
}

}}  // namespace nibble::NIBBLE_ABI

#include "nibble/generate/depth-inl.hpp"
#include "nibble/generate/engine_create-inl.hpp"
