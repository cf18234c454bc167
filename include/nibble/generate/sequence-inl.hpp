// SPDX-License-Identifier: Apache-2.0
//
// A sequence's functions, and what sequences of an engine share. Included by engine-inl.hpp.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "nibble/core/arena.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/shared.hpp"
#include "nibble/generate/engine.hpp"
#include "nibble/generate/page_pool.hpp"
#include "nibble/graph/step.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/model/adapter_set-inl.hpp"
#include "nibble/model/config.hpp"
#include "nibble/ops/kv_cache.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// The cache, shared by an engine and all its sequences.
struct Engine::Pool {
  // Errors: as Engine::check_adapter().
  Result<void> check_adapter(const SequenceAdapter& adapter) const;

  AlignedBuffer memory;              // pages, then the number of sequences that use each page
  std::vector<ops::KvShape> shapes;  // of the layers, if they differ
  ops::KvCache cache;
  PagePool pages;
  PageLayout layout;
  // Where the options say maps_pages: a multiple of so many pages begins, in each kv head, at a
  // page of the system's memory. Else 0.
  Index page_multiple = 0;
  Index n_state_floats = 0;  // of one sequence
  Index chunk_state_at = 0;  // in it: what changes once in a chunk of positions
  Index vocab_size = 0;
  graph::WeightTable weights;            // of the model
  Index max_factor_rank = 0;             // of adapters
  std::uint64_t n_changes = 0;           // of the tokens of all sequences
  std::atomic<bool> is_exceeded{false};  // a key or value was too large for the cache's type
};

NIBBLE_INLINE Result<void> Engine::Pool::check_adapter(const SequenceAdapter& adapter) const {
  if (!is_finite(static_cast<double>(adapter.strength))) {
    return Error{Errc::invalid_argument, "engine: the strength of an adapter is not finite"};
  }
  if (!adapter) return ok();
  const AdapterSet::State& set = *adapter.set.state_;
  if (!weights.is_same(set.model.weights())) {
    return Error{Errc::invalid_argument, "engine: an adapter that was made for another model"};
  }
  if (set.max_rank <= max_factor_rank) return ok();
  return Error{Errc::limit, "engine: an adapter of rank " + to_text(set.max_rank) +
                                "; max_factor_rank in the options is " + to_text(max_factor_rank)};
}

struct Sequence::State {
  // Allocates an empty sequence.
  static Result<Sequence> create(const Shared<Engine::Pool>& pool, Index capacity);
  // Of its block of memory.
  static std::size_t memory_bytes(Index capacity, Index n_tables, Index n_state_floats) noexcept;
  ~State();

  // How many free pages it takes to compute n tokens in steps of at most max_rows, including copies
  // of shared pages, and after drop_unread_pages().
  Index n_pages_for(Index n, Index max_rows) const noexcept;
  // How many free pages drop_unread_pages() gives.
  Index n_unread_pages() const noexcept;
  // Drops what no later row reads.
  void drop_unread_pages() noexcept;
  // Takes the pages of a step that computes n tokens; that many must be free.
  void prepare(Index n) noexcept;
  // Adds n pending tokens, for which there must be space: a copy of `ids`, or n times kNoToken if
  // that is null.
  void add(const std::int32_t* ids, Index n) noexcept;
  // Forgets all tokens from n on.
  void cut(Index n) noexcept;
  // Makes all tokens from n on pending; with recurrent state also those before n whose state is
  // gone.
  void uncompute(Index n) noexcept;
  // The last n tokens, all of which are computed, are guesses: they stay so, but are no tokens.
  void put_ahead(Index n) noexcept;
  // Adds a token, which is pending, without forgetting guesses if it is the next of them.
  bool accept_ahead(std::int32_t id) noexcept;
  // The pending token, which is such a guess, is computed.
  void take_ahead() noexcept;
  // With recurrent state, which is that after all guesses, tokens of the last step become pending.
  void forget_ahead() noexcept;
  // Copies to `checkpoint` what a step of n tokens changes of the recurrent state.
  void keep_checkpoint(Index n) noexcept;
  // Copies the rest too.
  void complete_checkpoint() const noexcept;
  // Whether tokens [begin, end) can be computed again: rows of numbers are not kept.
  bool has_ids(Index begin, Index end) const noexcept;
  // The last position up to n, and up to n_computed, whose state is still there.
  Index last_reachable(Index n) const noexcept;
  // Whether the row at a position finds all pages that it reads.
  bool has_pages_of(Index position) const noexcept {
    const Index first = pool->layout.first_read(position);
    return first_column == 0 || pool->layout.n_windowed() == 0 || first >= first_column;
  }
  // Whether a position may be lost when tokens before `end` are computed in several steps.
  bool may_lose(Index position, Index end) const noexcept {
    const PageLayout& layout = pool->layout;
    return has_state() ||
           (layout.n_windowed() > 0 && layout.first_kept(end - 1) > layout.first_read(position));
  }
  // The first token that a step computes, of the first n_layers layers only (0: of all).
  Index first_to_compute(Index n_layers) const noexcept {
    const bool goes_on = n_layers > 0 && n_layers <= draft_layers && n_drafted > n_computed;
    return goes_on ? n_drafted : n_computed;
  }
  // Drops pages that are after what is computed or drafted.
  void drop_unused_pages() noexcept;
  Index n_pending() const noexcept { return n_tokens - n_computed; }
  Index n_prefix() const noexcept { return adapter.set.n_prefix(); }
  Index n_again() const noexcept { return (std::max)(end_again - n_computed, Index{0}); }
  bool has_state() const noexcept { return pool->n_state_floats > 0; }
  std::size_t state_bytes() const noexcept {
    return static_cast<std::size_t>(pool->n_state_floats) * sizeof(float);
  }
  std::size_t checkpoint_bytes() const noexcept {
    return static_cast<std::size_t>(checkpoint_floats) * sizeof(float);
  }
  float* chunk_state() const noexcept {
    return has_state() ? state + pool->chunk_state_at : nullptr;
  }
  ops::PageId& page(Index table, Index column) const noexcept {
    return pages[table * ops::pages_for(capacity) + column];
  }
  std::span<const ops::PageId> page_table(Index table) const noexcept {
    return {&page(table, 0), static_cast<std::size_t>(n_columns)};
  }
  // The first column of a table where there are pages.
  Index first_column_of(Index table) const noexcept {
    return table < pool->layout.n_full ? 0 : first_column;
  }
  // Calls f(page) for all pages.
  template <class F>
  void for_each_page(F&& f) const noexcept {
    for (Index table = 0; table < pool->layout.n_tables; ++table) {
      for (Index c = first_column_of(table); c < n_columns; ++c) f(page(table, c));
    }
  }

  Shared<Engine::Pool> pool;
  AlignedBuffer memory;
  std::int32_t* tokens = nullptr;  // (capacity)
  ops::PageId* pages = nullptr;    // (n_tables, pages_for(capacity)); -1: dropped
  // (n_state_floats): recurrent state after n_computed tokens and guesses; the first
  // checkpoint_floats of that before the last step, whose others are still those of `state`.
  float* state = nullptr;
  float* checkpoint = nullptr;
  Index capacity = 0;
  Index n_tokens = 0;
  Index n_computed = 0;  // the first of them, whose keys, values and state there are
  Index n_exact = 0;     // the first of these, and of guesses, stored as by all layers
  // Tokens [n_computed, n_drafted) have keys and values in the first draft_layers layers, computed
  // by Engine::draft().
  Index n_drafted = 0;
  Index draft_layers = 0;
  Index n_columns = 0;     // of the tables, each of 64 positions
  Index first_column = 0;  // that tables with a window still have
  Index checkpoint_position = 0, checkpoint_floats = 0;
  SequenceAdapter adapter;
  // Guesses that are computed, after the n_computed; the first of them may be the one pending
  // token. All other functions that change or compute tokens forget them.
  Index n_ahead = 0;
  // Pending tokens before this position were computed already, each as a generated token, and must
  // be computed so again.
  Index end_again = 0;
  // Another number after each change of the tokens, unlike that of any other sequence of the
  // engine.
  std::uint64_t version = 0;
};

NIBBLE_INLINE Sequence::Sequence(Owned<State> state) noexcept : state_(std::move(state)) {}

NIBBLE_INLINE Result<Sequence> Sequence::State::create(const Shared<Engine::Pool>& pool,
                                                       Index capacity) {
  Owned<State> state(new (std::nothrow) State);
  if (!state) return Error{Errc::out_of_memory, "a sequence"};
  state->pool = pool;
  const auto n = static_cast<std::size_t>(capacity);
  const auto n_pages = static_cast<std::size_t>(ops::pages_for(capacity) * pool->layout.n_tables);
  auto memory =
      AlignedBuffer::allocate(memory_bytes(capacity, pool->layout.n_tables, pool->n_state_floats));
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
  state->version = ++pool->n_changes;
  return Sequence(std::move(state));
}

NIBBLE_INLINE std::size_t Sequence::State::memory_bytes(Index capacity, Index n_tables,
                                                        Index n_state_floats) noexcept {
  const auto n_pages = static_cast<std::size_t>(ops::pages_for(capacity) * n_tables);
  return align_up(static_cast<std::size_t>(capacity) * sizeof(std::int32_t)) +
         align_up(n_pages * sizeof(ops::PageId)) +
         2 * align_up(static_cast<std::size_t>(n_state_floats) * sizeof(float));
}

NIBBLE_INLINE Sequence::State::~State() {
  for_each_page([&](ops::PageId page) { pool->pages.drop(page); });
}

NIBBLE_INLINE Index Sequence::State::n_pages_for(Index n, Index max_rows) const noexcept {
  const PageLayout& layout = pool->layout;
  NIBBLE_ASSERT(n_ahead == 0);
  const Index n_new = ops::pages_for(n_computed + n) - n_columns;
  Index n_pages = n_new * layout.n_full;
  // In several steps, tables with a window drop pages as they take others; but pages that others
  // have too do not become free.
  const Index kept = (std::max)(first_column, layout.first_kept(n_computed));
  Index n_windowed = n_new;
  if (n > max_rows) {
    n_windowed = (std::min)(
        n_new,
        (std::max)(Index{0}, layout.most_columns(n_computed + n, max_rows) - (n_columns - kept)));
  }
  n_pages += n_windowed * layout.n_windowed();
  const Index first = n_computed / ops::kPagePositions;
  for (Index table = 0; table < layout.n_tables; ++table) {
    const bool is_windowed = table >= layout.n_full;
    const Index begin = is_windowed && n_windowed < n_new ? kept : first;
    for (Index c = begin; c < n_columns; ++c) n_pages += pool->pages.is_shared(page(table, c));
  }
  return n_pages;
}

NIBBLE_INLINE Index Sequence::State::n_unread_pages() const noexcept {
  const Index kept = pool->layout.first_kept(n_computed);
  Index n = 0;
  for (Index table = pool->layout.n_full; table < pool->layout.n_tables; ++table) {
    for (Index c = first_column; c < kept; ++c) n += !pool->pages.is_shared(page(table, c));
  }
  return n;
}

NIBBLE_INLINE void Sequence::State::drop_unread_pages() noexcept {
  const PageLayout& layout = pool->layout;
  if (layout.n_windowed() == 0) return;
  for (const Index kept = layout.first_kept(n_computed); first_column < kept; ++first_column) {
    for (Index table = layout.n_full; table < layout.n_tables; ++table) {
      pool->pages.drop(std::exchange(page(table, first_column), -1));
    }
  }
}

NIBBLE_INLINE void Sequence::State::prepare(Index n) noexcept {
  PagePool& pool_pages = pool->pages;
  const Index first = n_computed / ops::kPagePositions, end = ops::pages_for(n_computed + n);
  for (Index table = 0; table < pool->layout.n_tables; ++table) {
    const auto before = [&](Index c) { return c > 0 ? page(table, c - 1) : ops::PageId{-1}; };
    if (first < n_columns && pool_pages.is_shared(page(table, first))) {
      const ops::PageId shared = page(table, first);
      page(table, first) = pool_pages.take(first > 0 ? before(first) : shared);
      pool->cache.copy_page(shared, page(table, first));
      pool_pages.drop(shared);
    }
    for (Index c = n_columns; c < end; ++c) page(table, c) = pool_pages.take(before(c));
  }
  n_columns = (std::max)(n_columns, end);
  if (has_state()) keep_checkpoint(n);
}

NIBBLE_INLINE void Sequence::State::keep_checkpoint(Index n) noexcept {
  const bool ends_chunk = n_computed % graph::kStateChunk + n >= graph::kStateChunk;
  checkpoint_floats = ends_chunk ? pool->n_state_floats : pool->chunk_state_at;
  std::memcpy(checkpoint, state, checkpoint_bytes());
  checkpoint_position = n_computed;
}

NIBBLE_INLINE void Sequence::State::complete_checkpoint() const noexcept {
  std::memcpy(checkpoint + checkpoint_floats, state + checkpoint_floats,
              state_bytes() - checkpoint_bytes());
}

NIBBLE_INLINE void Sequence::State::add(const std::int32_t* ids, Index n) noexcept {
  NIBBLE_ASSERT(n >= 0 && n <= capacity - n_tokens);
  forget_ahead();
  if (n == 0) return;
  if (ids == nullptr) {
    for (Index i = 0; i < n; ++i) tokens[n_tokens + i] = graph::kNoToken;
  } else {  // may be the sequence's own tokens
    std::memmove(tokens + n_tokens, ids, static_cast<std::size_t>(n) * sizeof(*ids));
  }
  n_tokens += n;
  version = ++pool->n_changes;
}

NIBBLE_INLINE void Sequence::State::cut(Index n) noexcept {
  n = (std::max)(n, n_prefix());
  if (n >= n_tokens) return;
  forget_ahead();
  n_tokens = n;
  version = ++pool->n_changes;
  uncompute(n);
}

NIBBLE_INLINE void Sequence::State::put_ahead(Index n) noexcept {
  NIBBLE_ASSERT(n_ahead == 0 && n_tokens == n_computed && n >= 0 && n < n_tokens);
  n_ahead = n;
  n_tokens -= n;
  n_computed -= n;
  version = ++pool->n_changes;
}

NIBBLE_INLINE bool Sequence::State::accept_ahead(std::int32_t id) noexcept {
  if (n_ahead == 0 || n_pending() > 0 || tokens[n_tokens] != id) return false;
  ++n_tokens;
  version = ++pool->n_changes;
  return true;
}

NIBBLE_INLINE void Sequence::State::take_ahead() noexcept {
  NIBBLE_ASSERT(n_ahead > 0 && n_pending() == 1);
  --n_ahead;
  ++n_computed;
}

NIBBLE_INLINE void Sequence::State::forget_ahead() noexcept {
  if (n_ahead == 0) return;
  const Index n = n_computed;
  n_computed += std::exchange(n_ahead, 0);
  uncompute(n);
  end_again = n;
}

NIBBLE_INLINE void Sequence::State::uncompute(Index n) noexcept {
  forget_ahead();
  end_again = (std::min)(end_again, n);
  if (n < n_drafted) {
    n_drafted = n;
    if (n >= n_computed) drop_unused_pages();
  }
  if (n >= n_computed) return;
  n = last_reachable(n);
  end_again = 0;
  if (has_state() && n == checkpoint_position) {
    std::memcpy(state, checkpoint, checkpoint_bytes());
  } else if (has_state()) {
    std::memset(state, 0, state_bytes());
    checkpoint_position = checkpoint_floats = 0;
  }
  n_computed = n_drafted = n;
  n_exact = (std::min)(n_exact, n);
  drop_unused_pages();
}

NIBBLE_INLINE bool Sequence::State::has_ids(Index begin, Index end) const noexcept {
  for (Index i = (std::max)(begin, n_prefix()); i < end; ++i) {
    if (tokens[i] == graph::kNoToken) return false;
  }
  return true;
}

NIBBLE_INLINE Index Sequence::State::last_reachable(Index n) const noexcept {
  n = (std::min)(n, n_computed);
  if (has_state() && n < n_computed + n_ahead)
    n = n >= checkpoint_position ? checkpoint_position : 0;
  return has_pages_of(n) ? n : 0;
}

NIBBLE_INLINE void Sequence::State::drop_unused_pages() noexcept {
  const Index end = ops::pages_for((std::max)(n_computed, n_drafted));
  for (Index table = 0; table < pool->layout.n_tables; ++table) {
    for (Index c = (std::max)(end, first_column_of(table)); c < n_columns; ++c) {
      pool->pages.drop(page(table, c));
    }
  }
  n_columns = end;
  first_column = (std::min)(first_column, end);
}

NIBBLE_INLINE std::span<const std::int32_t> Sequence::tokens() const noexcept {
  return {state_->tokens, static_cast<std::size_t>(state_->n_tokens)};
}
NIBBLE_INLINE Index Sequence::position() const noexcept { return state_->n_tokens; }
NIBBLE_INLINE Index Sequence::n_pending() const noexcept { return state_->n_pending(); }
NIBBLE_INLINE Index Sequence::n_exact() const noexcept {
  return (std::min)(state_->n_exact, state_->n_computed);
}
NIBBLE_INLINE Index Sequence::capacity() const noexcept { return state_->capacity; }
NIBBLE_INLINE Index Sequence::n_pages() const noexcept {
  Index n = 0;
  state_->for_each_page([&](ops::PageId) { ++n; });
  return n;
}
NIBBLE_INLINE std::size_t Sequence::bytes() const noexcept {
  return sizeof(State) + state_->memory.size();
}

NIBBLE_INLINE Index Sequence::n_own_pages() const noexcept {
  Index n = 0;
  state_->for_each_page([&](ops::PageId page) { n += !state_->pool->pages.is_shared(page); });
  return n;
}

NIBBLE_INLINE Result<Sequence> Sequence::fork() const {
  const State& from = *state_;
  NIBBLE_TRY(copy, State::create(from.pool, from.capacity));
  State& to = *copy.state_;
  std::memcpy(to.tokens, from.tokens, static_cast<std::size_t>(from.n_tokens) * sizeof(*to.tokens));
  for (Index table = 0; table < from.pool->layout.n_tables; ++table) {
    const auto pages = from.page_table(table);
    std::copy(pages.begin(), pages.end(), &to.page(table, 0));
  }
  to.n_columns = ops::pages_for(from.n_computed);  // without drafts
  to.first_column = from.first_column;
  to.n_tokens = from.n_tokens;
  to.n_computed = from.n_computed;
  to.n_exact = from.n_exact;
  to.for_each_page([&](ops::PageId page) { to.pool->pages.share(page); });
  to.checkpoint_position = from.checkpoint_position;
  to.checkpoint_floats = from.checkpoint_floats;
  to.adapter = from.adapter;
  if (from.has_state()) {
    std::memcpy(to.state, from.state, from.state_bytes());
    std::memcpy(to.checkpoint, from.checkpoint, from.checkpoint_bytes());
  }
  to.end_again = from.end_again;
  to.n_ahead = from.n_ahead;
  to.forget_ahead();
  return copy;
}

NIBBLE_INLINE const SequenceAdapter& Sequence::adapter() const noexcept { return state_->adapter; }

NIBBLE_INLINE Result<void> Sequence::set_adapter(const SequenceAdapter& adapter) {
  State& s = *state_;
  if (s.n_tokens > s.n_prefix()) {
    return Error{Errc::invalid_argument, "session: an adapter for a sequence that has " +
                                             to_text(s.n_tokens) +
                                             " tokens already; rewind(0) first"};
  }
  NIBBLE_CHECK(s.pool->check_adapter(adapter));
  const Index n_prefix = adapter.set.n_prefix();
  if (n_prefix > s.capacity) {
    return Error{Errc::limit, "session: an adapter with a prefix of " + to_text(n_prefix) +
                                  " rows does not fit in a context of " + to_text(s.capacity)};
  }
  s.adapter = {};
  s.cut(0);
  s.adapter = adapter;
  s.add(nullptr, n_prefix);
  return ok();
}

NIBBLE_INLINE Result<void> Sequence::push(std::int32_t token) {
  State& s = *state_;
  if (token < 0 || token >= s.pool->vocab_size) {
    return Error{Errc::invalid_argument, "session: token " + to_text(token) + " is not in [0, " +
                                             to_text(s.pool->vocab_size) + ")"};
  }
  if (s.n_tokens == s.capacity) {
    return Error{Errc::limit, "session: a context of " + to_text(s.capacity) + " tokens is full"};
  }
  s.add(&token, 1);
  return ok();
}

NIBBLE_INLINE Index Sequence::last_reachable(Index position) const noexcept {
  const State& s = *state_;
  return position >= s.n_computed ? (std::min)(position, s.n_tokens) : s.last_reachable(position);
}

NIBBLE_INLINE Result<void> Sequence::rewind(Index position) {
  State& s = *state_;
  if (position < 0 || position > s.n_tokens) {
    return Error{Errc::invalid_argument, "session: cannot go back to position " +
                                             to_text(position) + " of " + to_text(s.n_tokens)};
  }
  position = (std::max)(position, s.n_prefix());
  if (last_reachable(position) != position) {
    return Error{Errc::unsupported,
                 std::string("session: the model has ") +
                     (s.has_state() ? "recurrent state" : "layers with a window") +
                     ", and what it needs of position " + to_text(position) +
                     " is gone; keep a fork() of the sequence to come back to"};
  }
  s.cut(position);
  return ok();
}

}}  // namespace nibble::NIBBLE_ABI
