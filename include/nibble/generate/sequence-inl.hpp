// SPDX-License-Identifier: Apache-2.0
//
// A sequence's functions, and what sequences of an engine share. Included by engine-inl.hpp.
#pragma once

#include <algorithm>
#include <cstring>
#include <new>
#include <string>
#include <utility>

#include "nibble/core/arena.hpp"
#include "nibble/core/shared.hpp"
#include "nibble/generate/engine.hpp"
#include "nibble/generate/page_pool.hpp"
#include "nibble/graph/step.hpp"
#include "nibble/model/config.hpp"
#include "nibble/ops/kv_cache.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// The cache, shared by an engine and all its sequences.
struct Engine::Pool {
  AlignedBuffer memory;              // pages, then the number of sequences that use each page
  std::vector<ops::KvShape> shapes;  // of the layers, if they differ
  ops::KvCache cache;
  PagePool pages;
  Index n_state_floats = 0;  // of one sequence
};

struct Sequence::State {
  // Allocates an empty sequence.
  static Result<Sequence> create(const Shared<Engine::Pool>& pool, Index capacity);
  ~State();

  // How many pages a step that adds n tokens takes, including copies of shared pages.
  Index n_pages_for(Index n) const noexcept;
  // Takes these pages; that many must be free.
  void prepare(Index n) noexcept;
  bool has_state() const noexcept { return pool->n_state_floats > 0; }
  std::size_t state_bytes() const noexcept {
    return static_cast<std::size_t>(pool->n_state_floats) * sizeof(float);
  }
  std::span<const ops::PageId> page_table() const noexcept {
    return {pages, static_cast<std::size_t>(n_pages)};
  }

  Shared<Engine::Pool> pool;
  AlignedBuffer memory;
  std::int32_t* tokens = nullptr;  // (capacity)
  ops::PageId* pages = nullptr;    // (pages_for(capacity))
  float* state = nullptr;          // (n_state_floats): recurrent state after all tokens
  float* checkpoint = nullptr;     // the same, before the last step
  Index capacity = 0;
  Index position = 0;
  Index n_pages = 0;
  Index checkpoint_position = 0;
};

NIBBLE_INLINE Sequence::Sequence(Owned<State> state) noexcept : state_(std::move(state)) {}

NIBBLE_INLINE Result<Sequence> Sequence::State::create(const Shared<Engine::Pool>& pool,
                                                       Index capacity) {
  Owned<State> state(new (std::nothrow) State);
  if (!state) return Error{Errc::out_of_memory, "a sequence"};
  const auto n = static_cast<std::size_t>(capacity);
  const auto n_pages = static_cast<std::size_t>(ops::pages_for(capacity));
  const std::size_t state_bytes =
      align_up(static_cast<std::size_t>(pool->n_state_floats) * sizeof(float));
  auto memory = AlignedBuffer::allocate(align_up(n * sizeof(std::int32_t)) +
                                        align_up(n_pages * sizeof(ops::PageId)) + 2 * state_bytes);
  if (!memory) return std::move(memory).error().in("a sequence");
  state->memory = *std::move(memory);
  Arena arena(state->memory.bytes());
  state->tokens = arena.take<std::int32_t>(n);
  state->pages = arena.take<ops::PageId>(n_pages);
  if (pool->n_state_floats > 0) {  // zeros, like all of the memory
    state->state = arena.take<float>(static_cast<std::size_t>(pool->n_state_floats));
    state->checkpoint = arena.take<float>(static_cast<std::size_t>(pool->n_state_floats));
  }
  state->capacity = capacity;
  state->pool = pool;
  return Sequence(std::move(state));
}

NIBBLE_INLINE Sequence::State::~State() {
  for (const ops::PageId page : page_table()) pool->pages.drop(page);
}

NIBBLE_INLINE Index Sequence::State::n_pages_for(Index n) const noexcept {
  const Index first = position / ops::kPagePositions;
  const bool copies = first < n_pages && pool->pages.is_shared(pages[first]);
  return ops::pages_for(position + n) - n_pages + (copies ? 1 : 0);
}

NIBBLE_INLINE void Sequence::State::prepare(Index n) noexcept {
  PagePool& pool_pages = pool->pages;
  const Index first = position / ops::kPagePositions;
  if (first < n_pages && pool_pages.is_shared(pages[first])) {
    const ops::PageId shared = pages[first];
    pages[first] = pool_pages.take(first > 0 ? pages[first - 1] : shared);
    pool->cache.copy_page(shared, pages[first]);
    pool_pages.drop(shared);
  }
  for (; n_pages < ops::pages_for(position + n); ++n_pages) {
    pages[n_pages] = pool_pages.take(n_pages > 0 ? pages[n_pages - 1] : -1);
  }
  if (!has_state()) return;
  std::memcpy(checkpoint, state, state_bytes());
  checkpoint_position = position;
}

NIBBLE_INLINE std::span<const std::int32_t> Sequence::tokens() const noexcept {
  return {state_->tokens, static_cast<std::size_t>(state_->position)};
}
NIBBLE_INLINE Index Sequence::position() const noexcept { return state_->position; }
NIBBLE_INLINE Index Sequence::capacity() const noexcept { return state_->capacity; }
NIBBLE_INLINE Index Sequence::n_pages() const noexcept { return state_->n_pages; }
NIBBLE_INLINE std::size_t Sequence::bytes() const noexcept { return state_->memory.size(); }

NIBBLE_INLINE Index Sequence::n_own_pages() const noexcept {
  Index n = 0;
  for (const ops::PageId page : state_->page_table()) n += !state_->pool->pages.is_shared(page);
  return n;
}

NIBBLE_INLINE Result<Sequence> Sequence::fork() const {
  const State& from = *state_;
  NIBBLE_TRY(copy, State::create(from.pool, from.capacity));
  State& to = *copy.state_;
  std::memcpy(to.tokens, from.tokens,
              static_cast<std::size_t>(from.position) * sizeof(*to.tokens));
  std::memcpy(to.pages, from.pages, static_cast<std::size_t>(from.n_pages) * sizeof(*to.pages));
  for (const ops::PageId page : from.page_table()) from.pool->pages.share(page);
  to.n_pages = from.n_pages;
  to.position = from.position;
  to.checkpoint_position = from.checkpoint_position;
  if (from.has_state()) {
    std::memcpy(to.state, from.state, from.state_bytes());
    std::memcpy(to.checkpoint, from.checkpoint, from.state_bytes());
  }
  return copy;
}

NIBBLE_INLINE Index Sequence::last_reachable(Index position) const noexcept {
  const State& s = *state_;
  if (!s.has_state() || position >= s.position) return (std::min)(position, s.position);
  return position >= s.checkpoint_position ? s.checkpoint_position : 0;
}

NIBBLE_INLINE Result<void> Sequence::rewind(Index position) {
  State& s = *state_;
  if (position < 0 || position > s.position) {
    return Error{Errc::invalid_argument, "session: cannot go back to position " +
                                             to_text(position) + " of " +
                                             to_text(s.position)};
  }
  if (last_reachable(position) != position) {
    return Error{Errc::unsupported,
                 "session: the model has recurrent state, and that of position " +
                     to_text(position) +
                     " is gone; keep a fork() of the sequence to come back to"};
  }
  if (s.has_state() && position < s.position) {
    if (position == s.checkpoint_position) {
      std::memcpy(s.state, s.checkpoint, s.state_bytes());
    } else {
      std::memset(s.state, 0, s.state_bytes());
      std::memset(s.checkpoint, 0, s.state_bytes());
      s.checkpoint_position = 0;
    }
  }
  s.position = position;
  while (s.n_pages > ops::pages_for(position)) s.pool->pages.drop(s.pages[--s.n_pages]);
  return ok();
}

}}  // namespace nibble::NIBBLE_ABI
