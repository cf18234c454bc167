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
#include "nibble/generate/engine.hpp"
#include "nibble/generate/engine_needs.hpp"
#include "nibble/generate/sequence-inl.hpp"
#include "nibble/graph/run.hpp"
#include "nibble/model/architecture.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct Engine::State {
  State(const Model& m, const EngineOptions& o) : model(m), options(o), needs(m) {}

  // What an engine takes, before any of it is allocated.
  Result<void> measure();
  // Which layers share a table of pages, and which of them have a window.
  void place_layers();
  // Whether the model is one for sessions, or for embedders. Errors: unsupported.
  Result<void> check_gives(Gives what) const;
  Result<void> allocate();
  void fill_rope_tables(Arena& arena);
  Result<void> can_run(std::span<const SequenceInput> inputs) const;
  Result<void> can_run(const SequenceInput& input, std::size_t index) const;
  Result<void> check_pages(Index n_pages) const;
  // Computes the pending tokens of each sequence, but at most max_rows of each. On an error they
  // stay pending.
  Result<MatrixView<const float>> run(std::span<const SequenceInput> inputs, Index max_rows);
  // Forgets guesses after the sequence's tokens, and computes what is pending only because of that,
  // as it was computed before; n_more tokens are to follow.
  Result<void> compute_again(Sequence& sequence, Index n_more);
  void put_rows(const SequenceInput& input, Index first_row) noexcept;
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
  std::int32_t* tokens = nullptr;      // (max_rows), of a step
  graph::Segment* segments = nullptr;  // (n_tables, max_segments)
  Index* output_rows = nullptr;        // (max_outputs)
  float* rows = nullptr;               // (max_rows, width), once rows of numbers were given
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
NIBBLE_INLINE bool Engine::gives_embeddings() const noexcept {
  return state_->plan.rows == graph::Rows::segments;
}
NIBBLE_INLINE Index Engine::output_width() const noexcept { return state_->plan.width; }
NIBBLE_INLINE std::size_t Engine::bytes() const noexcept {
  return state_->bytes() + state_->row_memory.size();
}
NIBBLE_INLINE void Engine::set_policy(const ops::PagePolicy* policy) noexcept {
  state_->args.step.policy = policy;
  ++state_->n_settings;
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

NIBBLE_INLINE Result<void> Engine::State::check_gives(Gives what) const {
  const Gives gives = plan.rows == graph::Rows::segments ? Gives::embeddings : Gives::logits;
  if (what == Gives::any || what == gives) return ok();
  if (what == Gives::logits) {
    return Error{Errc::unsupported,
                 "session: the model gives embeddings of texts, no next tokens; use Embedder"};
  }
  return Error{Errc::unsupported,
               "embedder: the model gives the next token's logits, no embeddings of texts. (If its "
               "file is of an embedding model, load() must be told so: see EmbeddingOf in "
               "model/llama_embedding.hpp)"};
}

NIBBLE_INLINE Result<Engine> Engine::create(const Model& model, const EngineOptions& options) {
  return create(model, options, Gives::any);
}

NIBBLE_INLINE Result<Engine> Engine::create(const Model& model, const EngineOptions& options,
                                            Gives what) {
  NIBBLE_CHECK(simd::ensure_target());
  if (!model.has_weights()) {
    return Error{Errc::invalid_argument, "session: the model is an outline, without weights"};
  }
  return catch_out_of_memory([&]() -> Result<Engine> {
    Owned<State> state(new (std::nothrow) State(model, options));
    if (!state) return Error{Errc::out_of_memory, "an engine"};
    NIBBLE_CHECK(state->measure());
    NIBBLE_CHECK(state->check_gives(what));
    NIBBLE_CHECK(state->allocate());
    return Engine(std::move(state));
  });
}

NIBBLE_INLINE Result<EngineMemory> Engine::memory_needed(const Model& model,
                                                         const EngineOptions& options) {
  return catch_out_of_memory([&]() -> Result<EngineMemory> {
    State state(model, options);
    NIBBLE_CHECK(state.measure());
    return state.memory_parts();
  });
}

NIBBLE_INLINE Result<std::size_t> Engine::bytes_needed(const Model& model,
                                                       const EngineOptions& options) {
  NIBBLE_TRY(needed, memory_needed(model, options));
  return needed.engine();
}

NIBBLE_INLINE EngineMemory Engine::State::memory_parts() const noexcept {
  EngineMemory parts;
  parts.cache = cache_bytes + sizeof(Pool) + Shared<Pool>::count_bytes() +
                static_cast<std::size_t>(Index{model.config().n_layers}) * sizeof(ops::KvShape);
  parts.tables =
      rope_bytes + needs.ropes.bytes() + needs.ropes.all().size() * sizeof(graph::RopeTable);
  parts.working =
      sizeof(State) + places.size() * sizeof(graph::CachePlace) + working_bytes - rope_bytes;
  const std::size_t of_one =
      sizeof(Sequence::State) +
      Sequence::State::memory_bytes(limits.n_positions, pages.n_tables, needs.n_state_floats);
  parts.sequences = static_cast<std::size_t>(limits.max_segments) * of_one;
  return parts;
}

NIBBLE_INLINE Result<void> Engine::State::measure() {
  model.architecture().survey(needs);
  const ModelConfig& config = model.config();
  bool is_type = false;
  for (const ops::KvType type : ops::kKvTypes) is_type = is_type || type == options.kv_type;
  if (!is_type) {
    return Error{Errc::invalid_argument, "session: kv_type " +
                                             to_text(static_cast<int>(options.kv_type)) +
                                             " is none of f32, f16, bf16, int8"};
  }
  constexpr Index kMax = Index{1} << 30;
  if (options.n_ctx < 0 || options.n_ctx > kMax || options.max_step_tokens < 1 ||
      options.max_outputs < 0 || options.max_sequences < 1 || options.max_sequences > 1 << 16 ||
      options.cache_positions < 0 || options.cache_positions > kMax || options.window_margin < -1 ||
      options.window_margin > kMax || options.max_factor_rank < 0 ||
      options.max_factor_rank > 1 << 20) {
    return Error{
        Errc::invalid_argument,
        "session: n_ctx " + to_text(options.n_ctx) + ", max_step_tokens " +
            to_text(options.max_step_tokens) + ", max_outputs " + to_text(options.max_outputs) +
            ", max_sequences " + to_text(options.max_sequences) + ", cache_positions " +
            to_text(options.cache_positions) + ", window_margin " + to_text(options.window_margin) +
            ", max_factor_rank " + to_text(options.max_factor_rank) + " out of range"};
  }
  limits.n_positions =
      options.n_ctx > 0 ? options.n_ctx : (std::min)(config.n_ctx, kDefaultContext);
  if (needs.n_positions > 0 && limits.n_positions > needs.n_positions) {
    return Error{Errc::invalid_argument, "session: " + to_text(limits.n_positions) +
                                             " positions, but the model has learned only " +
                                             to_text(needs.n_positions)};
  }
  limits.max_segments = options.max_sequences;
  limits.max_rows = (std::min)(options.max_step_tokens, limits.n_positions * options.max_sequences);
  const Index outputs = options.max_outputs > 0 ? options.max_outputs : options.max_sequences;
  limits.max_outputs = (std::min)(outputs, limits.max_rows);
  if (limits.max_rows > kMax) {
    return Error{Errc::invalid_argument, "session: max_step_tokens " +
                                             to_text(options.max_step_tokens) +
                                             " is too large for this model"};
  }
  if (args.executor = options.executor; args.executor == nullptr) args.executor = &own_executor;
  limits.max_workers = args.executor->n_workers();
  limits.float_inputs =
      needs.float_inputs || options.exchangeable_weights || options.product_observer;
  limits.code_inputs = needs.code_inputs || options.exchangeable_weights;
  limits.max_rank = (std::max)(needs.max_rank, options.max_factor_rank);
  plan = model.architecture().plan(limits);
  if (!plan.is_valid()) {
    return Error{Errc::limit, "session: " + to_text(options.max_step_tokens) +
                                  " tokens per step and " + to_text(limits.n_positions) +
                                  " positions cannot be had: " + plan.error};
  }

  layout.type = options.kv_type;
  place_layers();
  layout.capacity =
      ops::kPagePositions *
      (options.cache_positions > 0
           ? ops::pages_for(options.cache_positions) * pages.n_tables
           : pages.most_pages(limits.n_positions, limits.max_rows) * limits.max_segments);
  if (needs.are_alike()) {
    layout.n_kv_heads = needs.shapes[0].n_kv_heads;
    layout.head_dim = needs.shapes[0].head_dim;
  }
  if (layout.n_kv_heads == 0) layout.shapes = needs.shapes;
  if (!layout.is_valid()) return Error{Errc::invalid_argument, "session: the cache is too large"};

  const Index n_pages = layout.n_pages();
  for (const graph::RopeNeed& rope : needs.ropes.all()) {
    const Index n_pairs = rope.key.dim / 2;
    if (limits.n_positions * (8 * n_pairs + 4) > kMaxBytes / 16) {  // no sum below overflows
      return Error{Errc::limit, "session: the cache is too large for the address space"};
    }
    rope_bytes += graph::RopeTable::bytes_needed(rope.key, limits.n_positions);
    most_pairs = (std::max)(most_pairs, static_cast<std::size_t>(n_pairs));
  }
  if (static_cast<Index>(layout.bytes()) > kMaxBytes / 2 || n_pages > kMaxBytes / 64) {
    return Error{Errc::limit, "session: the cache is too large for the address space"};
  }
  cache_bytes =
      align_up(layout.bytes()) + align_up(static_cast<std::size_t>(n_pages) * sizeof(std::int32_t));
  working_bytes = align_up(plan.bytes) + rope_bytes + align_up(most_pairs * sizeof(double)) +
                  align_up(static_cast<std::size_t>(limits.max_rows) * sizeof(std::int32_t)) +
                  align_up(static_cast<std::size_t>(limits.max_segments * pages.n_tables) *
                           sizeof(graph::Segment)) +
                  align_up(static_cast<std::size_t>(limits.max_outputs) * sizeof(Index));
  return ok();
}

NIBBLE_INLINE void Engine::State::place_layers() {
  layout.n_layers = model.config().n_layers;
  const auto n_layers = static_cast<std::size_t>(layout.n_layers);
  const std::vector<Scalar<Index>> windows = std::move(needs.windows);
  if (!needs.are_alike() || needs.shapes[0].n_kv_heads == 0) return;
  if (needs.reads_both_ways) {
    // A sequence that is computed at once needs the keys and values of one layer at a time.
    layout.n_layers = 1;
    places.assign(n_layers, {0, 0});
    return;
  }
  Index n_windowed = 0;
  for (const auto& [window] : windows) {
    n_windowed += window > 0;
    pages.window = (std::max)(pages.window, window);
  }
  pages.kept = pages.window + options.window_margin;
  if (n_windowed == 0 || options.window_margin < 0 || pages.kept >= limits.n_positions) return;
  const Index n_full = layout.n_layers - n_windowed;
  layout.n_layers = std::gcd(n_full, n_windowed);  // as few tables as possible
  pages.n_tables = (n_full + n_windowed) / layout.n_layers;
  pages.n_full = n_full / layout.n_layers;
  if (pages.n_tables == 1) return;
  places.reserve(n_layers);
  Index next_full = 0, next_windowed = n_full;
  for (std::size_t i = 0; i < n_layers; ++i) {
    const Index n = windows[i].value > 0 ? next_windowed++ : next_full++;
    places.push_back({n % layout.n_layers, n / layout.n_layers});
  }
}

NIBBLE_INLINE Result<void> Engine::State::allocate() {
  pool = Shared<Pool>(Owned<Pool>(new (std::nothrow) Pool));
  if (!pool) return Error{Errc::out_of_memory, "an engine"};
  pool->shapes = std::move(needs.shapes);
  if (layout.n_kv_heads == 0) layout.shapes = pool->shapes;
  auto cache_memory = AlignedBuffer::allocate(cache_bytes);
  if (!cache_memory) return std::move(cache_memory).error().in("session: the cache");
  pool->memory = *std::move(cache_memory);
  Arena cache_arena(pool->memory.bytes());
  const std::size_t n_cache_bytes = layout.bytes();
  NIBBLE_TRY(cache, ops::KvCache::create(
                        {cache_arena.take<std::byte>(n_cache_bytes), n_cache_bytes}, layout));
  cache.report_exceeded(&pool->is_exceeded);
  pool->cache = cache;
  const auto n_users = static_cast<std::size_t>(layout.n_pages());
  pool->pages = PagePool({cache_arena.take<std::int32_t>(n_users), n_users});
  pool->layout = pages;
  pool->n_state_floats = needs.n_state_floats;
  pool->vocab_size = model.config().vocab_size;

  const auto max_rows = static_cast<std::size_t>(limits.max_rows);
  const auto max_segments = static_cast<std::size_t>(limits.max_segments);
  const auto max_outputs = static_cast<std::size_t>(limits.max_outputs);
  auto working_memory = AlignedBuffer::allocate(working_bytes);
  if (!working_memory) return std::move(working_memory).error().in("session: working memory");
  memory = *std::move(working_memory);
  Arena arena(memory.bytes());
  args.arena = {arena.take<std::byte>(plan.bytes), plan.bytes};
  args.cache = cache;
  args.cache_places = places;
  args.weights = model.weights();
  args.tuning = model.tuning();
  args.observer = &options.observer;
  args.product_observer = &options.product_observer;
  tokens = arena.take<std::int32_t>(max_rows);
  segments = arena.take<graph::Segment>(max_segments * static_cast<std::size_t>(pages.n_tables));
  output_rows = arena.take<Index>(max_outputs);
  fill_rope_tables(arena);
  return ok();
}

NIBBLE_INLINE void Engine::State::fill_rope_tables(Arena& arena) {
  rope_tables.reserve(needs.ropes.all().size());
  double* const frequencies = arena.take<double>(most_pairs);
  for (const graph::RopeNeed& rope : needs.ropes.all()) {
    const std::size_t bytes = graph::RopeTable::bytes_needed(rope.key, limits.n_positions);
    rope_tables.push_back(rope.table({arena.take<std::byte>(bytes), bytes}, model.weights(),
                                     limits.n_positions,
                                     {frequencies, static_cast<std::size_t>(rope.key.dim / 2)}));
  }
  args.rope_tables = rope_tables;
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
  const Index n = input.n_rows() + s.n_pending();
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
  Index n_rows = 0, n_outputs = 0, n_pages = 0;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    NIBBLE_CHECK(can_run(inputs[i], i));
    for (std::size_t j = 0; j < i; ++j) {
      if (inputs[j].sequence != inputs[i].sequence) continue;
      return Error{Errc::invalid_argument, "engine: inputs " + to_text(j) + " and " + to_text(i) +
                                               " are of the same sequence"};
    }
    const Sequence::State& s = *inputs[i].sequence->state_;
    const Index n = inputs[i].n_rows() + s.n_pending();
    n_rows += n;
    n_outputs += inputs[i].n_outputs;
    n_pages += s.n_pages_for(n, n) - s.n_unread_pages();
  }
  if (n_rows > limits.max_rows || n_outputs > limits.max_outputs) {
    return Error{Errc::limit, "engine: a step of " + to_text(n_rows) +
                                  " tokens (pending ones included) with " + to_text(n_outputs) +
                                  " outputs; at most " + to_text(limits.max_rows) + " and " +
                                  to_text(limits.max_outputs)};
  }
  return check_pages(n_pages);
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

NIBBLE_INLINE Result<MatrixView<const float>> Engine::State::run(
    std::span<const SequenceInput> inputs, Index max_rows) {
  graph::Step& step = args.step;
  Index n_rows = 0, n_outputs = 0;
  std::size_t n_segments = 0;
  for (const SequenceInput& input : inputs) input.sequence->state_->drop_unread_pages();
  for (const SequenceInput& input : inputs) {
    Sequence::State& s = *input.sequence->state_;
    const Index n = (std::min)(s.n_pending(), max_rows);
    s.prepare(n);
    if (input.rows.data() != nullptr) put_rows(input, n_rows + n - input.n_rows());
    std::memcpy(tokens + n_rows, s.tokens + s.n_computed,
                static_cast<std::size_t>(n) * sizeof(*tokens));
    segments[n_segments++] = {n_rows, n, s.n_computed, input.kind, s.page_table(0), s.state};
    for (Index i = n - input.n_outputs; i < n; ++i) output_rows[n_outputs++] = n_rows + i;
    n_rows += n;
  }
  const bool has_outputs = n_outputs > 0;
  if (!has_outputs) output_rows[n_outputs++] = n_rows - 1;  // nobody reads it
  step.tokens = {tokens, static_cast<std::size_t>(n_rows)};
  step.segments = {segments, n_segments};
  args.table_segments = put_table_segments(inputs);
  step.output_rows = {output_rows, static_cast<std::size_t>(n_outputs)};
  step.rows = rows == nullptr ? MatrixView<const float>()
                              : MatrixView<const float>(rows, n_rows, Index{model.config().dim});
  const MatrixView<const float> logits = model.architecture().run(plan, limits, args);
  ++n_steps;
  const bool is_exceeded = pool->is_exceeded.exchange(false, std::memory_order_relaxed);
  for (std::size_t i = 0; i < n_segments; ++i) {
    Sequence::State& s = *inputs[i].sequence->state_;
    const Index before = s.n_computed;
    s.n_computed += segments[i].n_rows;
    if (is_exceeded) s.uncompute(before);
  }
  if (is_exceeded) {
    return Error{Errc::limit,
                 "session: a key or value of the model is beyond 65504, the most that an f16 cache "
                 "can hold; choose kv_type bf16 or f32 in the session's or engine's options"};
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
    if (input.rows.data() == nullptr || s.rows != nullptr) continue;
    const auto n = static_cast<std::size_t>(s.limits.max_rows * s.model.config().dim);
    NIBBLE_TRY(memory, AlignedBuffer::allocate(n * sizeof(float)));
    s.row_memory = std::move(memory);
    s.rows = reinterpret_cast<float*>(s.row_memory.data());
  }
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
