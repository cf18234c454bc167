// SPDX-License-Identifier: Apache-2.0
//
// How an engine is made: what it takes is measured before any of it is allocated. Included by
// engine-inl.hpp.
#pragma once

#include <algorithm>
#include <new>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "nibble/generate/engine-inl.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

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
    NIBBLE_CHECK(state->make_placed());
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
  const bool is_placed = options.placement.back_end != nullptr;
  parts.working =
      (is_placed ? detail::PlacedRun::bytes_needed(options.placement, placed_sizes()) : 0) +
      sizeof(State) + places.size() * sizeof(graph::CachePlace) + working_bytes - rope_bytes;
  const std::size_t of_one =
      sizeof(Sequence::State) +
      Sequence::State::memory_bytes(limits.n_positions, pages.n_tables, needs.n_state_floats());
  parts.sequences = static_cast<std::size_t>(limits.max_segments) * of_one;
  return parts;
}

NIBBLE_INLINE Result<void> Engine::State::measure() {
  model.architecture().survey(needs);
  const ModelConfig& config = model.config();
  const auto is_chosen = [&](ops::KvType type) { return type == options.kv_type; };
  if (std::none_of(ops::kKvTypes.begin(), ops::kKvTypes.end(), is_chosen)) {
    std::string known;
    for (const ops::KvType type : ops::kKvTypes) {
      known += std::string(known.empty() ? "" : ", ") + to_string(type);
    }
    return Error{Errc::invalid_argument, "session: kv_type " +
                                             to_text(static_cast<int>(options.kv_type)) +
                                             " is none of " + known + " (see NIBBLE_KV_TYPES)"};
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
  limits.float_inputs = needs.float_inputs || options.exchangeable_weights ||
                        options.product_observer || options.max_factor_rank > 0;
  limits.code_inputs = needs.code_inputs || options.exchangeable_weights;
  limits.rounded_inputs = limits.code_inputs && ops::has_tiles();
  limits.max_rank = (std::max)(needs.max_rank, options.max_factor_rank);
  plan = model.architecture().plan(limits);
  if (!plan.is_valid()) {
    return Error{Errc::limit, "session: " + to_text(options.max_step_tokens) +
                                  " tokens per step and " + to_text(limits.n_positions) +
                                  " positions cannot be had: " + plan.error};
  }

  if (needs.shares_other_heads) {
    return Error{Errc::invalid_argument,
                 "session: a layer shares the cache of one that stores other heads"};
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
  NIBBLE_CHECK(add_spare_pages());
  if (options.maps_pages) NIBBLE_CHECK(align_lanes());

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
  working_bytes =
      align_up(plan.bytes) + rope_bytes + align_up(most_pairs * sizeof(double)) +
      align_up(static_cast<std::size_t>(limits.max_rows) * sizeof(std::int32_t)) +
      align_up(static_cast<std::size_t>(limits.max_segments * pages.n_tables) *
               sizeof(graph::Segment)) +
      align_up(static_cast<std::size_t>(limits.max_outputs) * sizeof(Index)) +
      align_up(static_cast<std::size_t>(3 * limits.max_segments) * sizeof(graph::RowAdapter)) +
      2 * align_up(needs.shapes.size() * sizeof(graph::LayerPart));
  return ok();
}

NIBBLE_INLINE Result<void> Engine::State::add_spare_pages() {
  const std::size_t page_bytes = layout.bytes() / static_cast<std::size_t>(layout.n_pages());
  if (options.cache_positions > 0 || page_bytes == 0) return ok();  // or no layer keeps anything
  const std::size_t n = options.spare_bytes / page_bytes;
  constexpr std::size_t kMost = std::size_t{1} << 30;
  layout.capacity += static_cast<Index>((std::min)(n, kMost)) * ops::kPagePositions;
  if (layout.is_valid()) return ok();
  return Error{Errc::invalid_argument, "session: the cache is too large (spare_bytes)"};
}

NIBBLE_INLINE Result<void> Engine::State::align_lanes() {
  const std::size_t system_page = io::MappedFile::system_page_bytes();
  if (system_page == 0) {
    return Error{Errc::unsupported, "engine: maps_pages, where the system cannot map files"};
  }
  for (Index layer = 0; layer < layout.n_layers; ++layer) {
    const ops::KvShape shape = layout.shape(layer);
    if (shape.n_kv_heads == 0) continue;
    const std::size_t tile = layout.tile_bytes(shape);
    const auto multiple = static_cast<Index>(system_page / std::gcd(system_page, tile));
    page_multiple = (std::max)(page_multiple, multiple);  // both are powers of two
  }
  const Index n_pages = layout.n_pages();
  layout.capacity =
      (n_pages + page_multiple - 1) / page_multiple * page_multiple * ops::kPagePositions;
  if (!layout.is_valid()) return Error{Errc::invalid_argument, "session: the cache is too large"};
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

NIBBLE_INLINE Result<void> Engine::State::make_placed() {
  if (options.placement.back_end == nullptr) return ok();
  if (options.placement.head && plan.rows == graph::Rows::segments) {
    return Error{Errc::unsupported, "engine: placement of the head of a model of embeddings"};
  }
  if (options.placement.end_layer > options.placement.first_layer && needs.layers_are_tied) {
    return Error{Errc::unsupported,
                 "engine: placement of layers of a model whose layers read what others store, or "
                 "inputs of their own"};
  }
  NIBBLE_TRY(made, detail::PlacedRun::create(options.placement, placed_sizes()));
  placed = std::move(made);
  return ok();
}

NIBBLE_INLINE Result<void> Engine::State::allocate() {
  pool = Shared<Pool>(Owned<Pool>(new (std::nothrow) Pool));
  if (!pool) return Error{Errc::out_of_memory, "an engine"};
  pool->shapes = std::move(needs.shapes);
  if (layout.n_kv_heads == 0) layout.shapes = pool->shapes;
  if (options.maps_pages) pool->page_multiple = page_multiple;
  auto cache_memory = options.maps_pages ? AlignedBuffer::allocate_pages(cache_bytes)
                                         : AlignedBuffer::allocate(cache_bytes);
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
  pool->n_state_floats = needs.n_state_floats();
  pool->chunk_state_at = needs.chunk_state_at();
  pool->vocab_size = model.config().vocab_size;
  pool->weights = model.weights();
  pool->max_factor_rank = options.max_factor_rank;

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
  row_adapters = arena.take<graph::RowAdapter>(3 * max_segments);
  fill_rope_tables(arena);
  const std::size_t n_layers = pool->shapes.size();
  layer_parts = arena.take<graph::LayerPart>(n_layers);
  key_parts = arena.take<graph::LayerPart>(n_layers);
  for (std::size_t i = 0; i < n_layers; ++i) {
    using enum graph::LayerPart;
    layer_parts[i] = all;
    key_parts[i] = pool->shapes[i].n_kv_heads > 0 ? keys : none;
  }
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

}}  // namespace nibble::NIBBLE_ABI
