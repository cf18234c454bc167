// SPDX-License-Identifier: Apache-2.0
//
// A scheduler's functions. Included by scheduler.hpp.
#pragma once

#include <algorithm>
#include <atomic>
#include <new>
#include <string>
#include <utility>

#include "nibble/core/native_thread.hpp"
#include "nibble/generate/completion-inl.hpp"
#include "nibble/generate/scheduler.hpp"
#include "nibble/generate/scheduler_admission-inl.hpp"
#include "nibble/generate/scheduler_requests-inl.hpp"
#include "nibble/generate/scheduler_state-inl.hpp"
#include "nibble/generate/scheduler_steps-inl.hpp"
#include "nibble/generate/warm_up.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

NIBBLE_INLINE Scheduler::Scheduler(Owned<State> state) noexcept : state_(std::move(state)) {}

NIBBLE_INLINE Error Scheduler::State::out_of_range(const char* name, Index value) {
  return {Errc::invalid_argument,
          std::string("scheduler: ") + name + " " + to_text(value) + " out of range"};
}

NIBBLE_INLINE Result<void> Scheduler::State::check_max_wait_ms(Index value) {
  if (value >= 0 && value <= kMost) return ok();
  return out_of_range("max_wait_ms", value);
}

NIBBLE_INLINE Result<EngineOptions> Scheduler::State::engine_options(
    const SchedulerOptions& options) {
  if (options.max_batch < 1 || options.max_batch > kMost)
    return out_of_range("max_batch", options.max_batch);
  if (options.max_queue < 1 || options.max_queue > kMost)
    return out_of_range("max_queue", options.max_queue);
  NIBBLE_CHECK(check_max_wait_ms(options.max_wait_ms));
  if (options.max_drafts < 0 || options.max_drafts > kMaxDrafts)
    return out_of_range("max_drafts", options.max_drafts);
  if (options.max_step_tokens < options.max_batch) {
    return Error{Errc::invalid_argument,
                 "scheduler: max_step_tokens " + to_text(options.max_step_tokens) +
                     " is less than max_batch " + to_text(options.max_batch)};
  }
  return EngineOptions{.n_ctx = options.n_ctx,
                       .max_sequences = options.max_batch,
                       .cache_positions = options.cache_positions,
                       .spare_bytes = options.prefix_cache_bytes,
                       .max_step_tokens = options.max_step_tokens,
                       .max_outputs = (std::min)(options.max_batch * (1 + options.max_drafts),
                                                 options.max_step_tokens),
                       .kv_type = options.kv_type,
                       .executor = options.executor,
                       .max_factor_rank = options.max_factor_rank};
}

NIBBLE_INLINE std::size_t Scheduler::State::table_bytes(const SchedulerOptions& options) noexcept {
  return sizeof(State) +
         static_cast<std::size_t>(options.max_batch) *
             (sizeof(Lane) + sizeof(Lane*) + sizeof(SequenceInput)) +
         static_cast<std::size_t>(options.max_queue) * 2 * sizeof(Shared<Request>);
}

NIBBLE_INLINE Result<std::size_t> Scheduler::bytes_needed(const Model& model,
                                                          const SchedulerOptions& options) {
  return catch_out_of_memory([&]() -> Result<std::size_t> {
    NIBBLE_TRY(engine_options, State::engine_options(options));
    NIBBLE_TRY(memory, Engine::memory_needed(model, engine_options));
    return memory.total() + State::table_bytes(options);
  });
}

NIBBLE_INLINE Result<Scheduler> Scheduler::create(const Model& model,
                                                  const SchedulerOptions& options) {
  return catch_out_of_memory([&]() -> Result<Scheduler> {
    NIBBLE_TRY(engine_options, State::engine_options(options));
    NIBBLE_TRY(engine, Engine::create(model, engine_options));
    if (engine.gives_embeddings()) {
      return Error{Errc::unsupported,
                   "scheduler: the model gives embeddings of texts, no next tokens; use Embedder"};
    }
    Owned<State> state(new (std::nothrow) State(std::move(engine), options));
    if (!state) return Error{Errc::out_of_memory, "a scheduler"};
    if (options.prefix_cache_bytes > 0) {
      NIBBLE_TRY(prefixes,
                 PrefixCache::create(state->engine, {.max_bytes = options.prefix_cache_bytes}));
      state->prefixes.emplace(std::move(prefixes));
    }
    if (options.max_drafts > 0) {
      NIBBLE_TRY(ngrams, NgramDrafts::create());
      state->ngrams.emplace(std::move(ngrams));
    }
    const auto n = static_cast<std::size_t>(options.max_batch);
    state->lanes.reserve(n);
    for (std::size_t i = 0; i < n; ++i) {
      NIBBLE_TRY(sequence, state->engine.new_sequence());
      state->lanes.emplace_back(std::move(sequence));
    }
    state->planned.reserve(n);
    state->inputs.reserve(n);
    state->queue.reserve(static_cast<std::size_t>(options.max_queue));
    state->ended.reserve(static_cast<std::size_t>(options.max_queue));
    return Scheduler(std::move(state));
  });
}

NIBBLE_INLINE Scheduler::State::~State() {
  for (const Shared<Request>& request : queue) request->end(Finish::cancelled);
  for (const Lane& lane : lanes) {
    if (lane.request) lane.request->end(Finish::cancelled);
  }
}

NIBBLE_INLINE const Model& Scheduler::model() const noexcept { return state_->engine.model(); }
NIBBLE_INLINE Index Scheduler::n_ctx() const noexcept { return state_->engine.n_ctx(); }
NIBBLE_INLINE std::size_t Scheduler::bytes() const noexcept {
  std::size_t bytes = State::table_bytes(state_->options) + state_->engine.bytes();
  for (const State::Lane& lane : state_->lanes) bytes += lane.sequence.bytes();
  return bytes;
}

NIBBLE_INLINE SchedulerStats Scheduler::stats() const noexcept {
  const State& s = *state_;
  SchedulerStats stats;
  {
    const WordLock lock(s.mutex);
    stats.n_waiting = static_cast<Index>(s.queue.size());
  }
  stats.n_running = s.n_running.load(std::memory_order_relaxed);
  stats.n_pages = s.engine.n_pages();
  const Index n_promised = s.n_promised_pages.load(std::memory_order_relaxed);
  stats.n_free_pages = stats.n_pages - (std::min)(stats.n_pages, n_promised);
  stats.n_steps = s.n_steps.load(std::memory_order_relaxed);
  stats.n_prompt_tokens = s.n_prompt_tokens.load(std::memory_order_relaxed);
  stats.n_cache_hits = s.n_cache_hits.load(std::memory_order_relaxed);
  stats.n_cached_tokens = s.n_cached_tokens.load(std::memory_order_relaxed);
  stats.n_generated_tokens = s.n_generated_tokens.load(std::memory_order_relaxed);
  stats.n_drafted = s.n_drafted.load(std::memory_order_relaxed);
  stats.n_accepted = s.n_accepted.load(std::memory_order_relaxed);
  stats.n_ended = s.n_ended.load(std::memory_order_relaxed);
  stats.n_refused = s.n_refused.load(std::memory_order_relaxed);
  return stats;
}

NIBBLE_INLINE Result<void> Scheduler::State::check_prefixes() const {
  if (prefixes) return ok();
  return Error{Errc::invalid_argument,
               "scheduler: it has no prefix cache (see prefix_cache_bytes in its options)"};
}

NIBBLE_INLINE Result<void> Scheduler::save_prefixes(const std::string& path) const {
  NIBBLE_CHECK(state_->check_prefixes());
  return state_->prefixes->save(path);
}

NIBBLE_INLINE Result<void> Scheduler::restore_prefixes(const std::string& path) {
  NIBBLE_CHECK(state_->check_prefixes());
  return state_->prefixes->restore(path);
}

NIBBLE_INLINE Result<void> Scheduler::set_depth(const Depth& depth) {
  State& s = *state_;
  NIBBLE_CHECK(s.engine.state_->check_depth(depth));
  return catch_out_of_memory([&]() -> Result<void> {
    std::vector<Index> left_out(depth.left_out.begin(), depth.left_out.end());
    const WordLock lock(s.mutex);
    s.next_n_layers = depth.n_layers;
    s.next_left_out.swap(left_out);
    s.depth_changes.store(true, std::memory_order_relaxed);
    return ok();
  });
}

NIBBLE_INLINE Result<void> Scheduler::set_max_wait_ms(Index max_wait_ms) {
  NIBBLE_CHECK(State::check_max_wait_ms(max_wait_ms));
  state_->max_wait_ms.store(max_wait_ms, std::memory_order_relaxed);
  return ok();
}

NIBBLE_INLINE Result<void> Scheduler::warm_up() { return nibble::warm_up(state_->engine); }

NIBBLE_INLINE void Scheduler::stop() noexcept {
  state_->is_stopped.store(true);
  state_->n_submitted.fetch_add(1);
  wake_all(state_->n_submitted);
}

NIBBLE_INLINE bool Scheduler::wait_for_work() noexcept {
  State& s = *state_;
  for (;;) {
    const std::uint32_t seen = s.n_submitted.load();
    if (s.is_stopped) return false;
    if (s.has_work()) return true;
    s.n_sleepers.fetch_add(1);
    sleep_while(s.n_submitted, seen);
    s.n_sleepers.fetch_sub(1);
  }
}

NIBBLE_INLINE bool Scheduler::step() {
  State& s = *state_;
  s.wait_for_more();
  s.change_depth();
  s.begin_and_end();
  if (s.plan()) s.run();
  s.n_promised_pages.store(s.promised_pages(), std::memory_order_relaxed);
  return s.has_work();
}

}}  // namespace nibble::NIBBLE_ABI
