// SPDX-License-Identifier: Apache-2.0
//
// The functions of a cache of prefixes. Included by prefix_cache.hpp.
#pragma once

#include <algorithm>
#include <cstring>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "nibble/core/scalar.hpp"
#include "nibble/generate/engine-inl.hpp"
#include "nibble/generate/prefix_cache.hpp"
#include "nibble/generate/prefix_tree.hpp"
#include "nibble/generate/sequence-inl.hpp"
#include "nibble/io/checksum.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct PrefixCache::State {
  State(const Engine::State& engine, std::size_t max)
      : model(engine.model),
        pool(engine.pool),
        n_ctx(engine.limits.n_positions),
        max_bytes(max),
        page_bytes(pool->cache.page_bytes()),
        tree(pool->pages, pool->layout, pool->n_state_floats > 0) {}

  // All but the last, and no more than capacity.
  static std::span<const std::int32_t> to_match(std::span<const std::int32_t> tokens,
                                                Index capacity) noexcept {
    const auto n = tokens.empty() ? std::size_t{0} : tokens.size() - 1;
    return tokens.first((std::min)(n, static_cast<std::size_t>((std::max)(capacity, Index{0}))));
  }
  // Into an empty sequence, of what has this fingerprint (PrefixWeights). Returns how many tokens
  // it has then.
  Index match(std::span<const std::int32_t> tokens, std::uint64_t weights,
              Sequence::State& s) noexcept;
  Result<void> check_engine(const Sequence& sequence) const {
    if (sequence.state_->pool.get() == pool.get()) return ok();
    return Error{Errc::invalid_argument, "prefix cache: a sequence of another engine"};
  }
  // What can be inserted of a sequence.
  detail::Prefix prefix_of(const Sequence::State& s) const noexcept;
  Index insert(detail::Prefix prefix, std::uint64_t weights);
  // Makes room for a prefix, or for as many whole pages of it as possible. False if there is none
  // for anything that is not there already.
  bool fit(detail::Prefix& prefix, detail::PrefixTree::Place from) noexcept;
  // Gives the places before `end` the pages that they miss and the prefix has, if there is room.
  void fill_gaps(const detail::Prefix& prefix, detail::PrefixTree::Place end) noexcept;
  bool has_room_for(const detail::Prefix& prefix, detail::PrefixTree::Place from) const noexcept;
  // Anything but what was used at the time `except`.
  bool evict(std::uint64_t except) noexcept {
    const bool done = tree.evict(except);
    stats.n_evictions += done;
    return done;
  }
  std::size_t bytes() const noexcept {
    return static_cast<std::size_t>(tree.n_pages()) * page_bytes + tree.node_bytes();
  }
  std::vector<ops::KvCache::Lane> lanes() const {
    std::vector<ops::KvCache::Lane> all;
    pool->cache.for_each_lane([&](const ops::KvCache::Lane& lane) { all.push_back(lane); });
    return all;
  }

  Model model;
  Shared<Engine::Pool> pool;
  Index n_ctx;
  std::size_t max_bytes, page_bytes;
  detail::PrefixTree tree;
  std::uint64_t time = 0;  // counts matches and insertions
  PrefixCacheStats stats;
};

NIBBLE_INLINE std::uint64_t PrefixWeights::fingerprint() const noexcept {
  if (!adapter_) return number_;
  const std::uint64_t of_adapter = adapter_.fingerprint();
  return io::checksum(std::as_bytes(std::span<const std::uint64_t>(&of_adapter, 1)), number_);
}

NIBBLE_INLINE PrefixCache::PrefixCache(Shared<State> state) noexcept : state_(std::move(state)) {}

NIBBLE_INLINE std::size_t PrefixCache::bytes() const noexcept { return state_->bytes(); }
NIBBLE_INLINE std::size_t PrefixCache::max_bytes() const noexcept { return state_->max_bytes; }
NIBBLE_INLINE Index PrefixCache::n_pages() const noexcept { return state_->tree.n_pages(); }
NIBBLE_INLINE const PrefixCacheStats& PrefixCache::stats() const noexcept { return state_->stats; }
NIBBLE_INLINE void PrefixCache::clear() noexcept { state_->tree.clear(); }

NIBBLE_INLINE Result<PrefixCache> PrefixCache::create(const Engine& engine,
                                                      const PrefixCacheOptions& options) {
  const Engine::State& e = *engine.state_;
  if (e.needs.reads_both_ways) {
    return Error{Errc::unsupported,
                 "prefix cache: the model reads a sequence in both directions; what it computes of "
                 "a beginning depends on the rest"};
  }
  return catch_out_of_memory([&]() -> Result<PrefixCache> {
    const std::size_t half = e.layout.bytes() / 2;
    Shared<State> state(Owned<State>(
        new (std::nothrow) State(e, options.max_bytes > 0 ? options.max_bytes : half)));
    if (!state) return Error{Errc::out_of_memory, "a prefix cache"};
    return PrefixCache(std::move(state));
  });
}

// ---- Finding -----------------------------------------------------------------------------------

NIBBLE_INLINE Index PrefixCache::n_known(std::span<const std::int32_t> tokens,
                                         const PrefixWeights& weights) const noexcept {
  const Index n_rows = weights.adapter().set.n_prefix();
  const auto asked = State::to_match(tokens, state_->n_ctx - n_rows);
  return state_->tree.find(asked, weights.fingerprint(), n_rows).n;
}

NIBBLE_INLINE Index PrefixCache::n_cached(std::span<const std::int32_t> tokens,
                                          const PrefixWeights& weights) const noexcept {
  const detail::PrefixTree& tree = state_->tree;
  const Index n_rows = weights.adapter().set.n_prefix();
  const auto asked = State::to_match(tokens, state_->n_ctx - n_rows);
  const Index n = tree.reachable(tree.find(asked, weights.fingerprint(), n_rows)).n;
  return n < n_rows ? 0 : n;
}

NIBBLE_INLINE Result<Sequence> PrefixCache::match(std::span<const std::int32_t> tokens,
                                                  const PrefixWeights& weights, Index capacity) {
  const Index n = capacity == 0 ? state_->n_ctx : capacity;
  if (n < 1 || n > state_->n_ctx) {
    return Error{Errc::invalid_argument, "prefix cache: a sequence of " + to_text(n) +
                                             " positions; n_ctx is " + to_text(state_->n_ctx)};
  }
  return catch_out_of_memory([&]() -> Result<Sequence> {
    NIBBLE_TRY(sequence, Sequence::State::create(state_->pool, n));
    NIBBLE_CHECK(sequence.set_adapter(weights.adapter()));
    state_->match(tokens, weights.fingerprint(), *sequence.state_);
    return sequence;
  });
}

NIBBLE_INLINE Result<Index> PrefixCache::match(std::span<const std::int32_t> tokens, Sequence& into,
                                               std::uint64_t number) {
  NIBBLE_CHECK(state_->check_engine(into));
  Sequence::State& s = *into.state_;
  if (s.n_tokens > s.n_prefix() || s.n_computed > 0) {
    return Error{Errc::invalid_argument, "prefix cache: the sequence has tokens already"};
  }
  return state_->match(tokens, PrefixWeights(s.adapter, number).fingerprint(), s);
}

NIBBLE_INLINE Index PrefixCache::State::match(std::span<const std::int32_t> tokens,
                                              std::uint64_t weights, Sequence::State& s) noexcept {
  const Index n_rows = s.n_prefix();  // which it has, to be computed
  detail::PrefixTree::Place at =
      tree.reachable(tree.find(to_match(tokens, s.capacity - n_rows), weights, n_rows));
  if (at.n < n_rows) at = {};
  const PageLayout& layout = pool->layout;
  if (at.n > 0) s.n_tokens = s.n_computed = s.n_exact = s.checkpoint_position = at.n;
  s.first_column = s.n_columns = ops::pages_for(at.n);
  tree.copy(at, s.tokens, [&](Index column, const Scalar<ops::PageId>* pages) {
    // Of tables with a window: columns without gaps up to the end.
    bool is_whole = s.first_column == column + 1;
    for (Index table = layout.n_full; table < layout.n_tables; ++table) {
      is_whole = is_whole && pages[table].value >= 0;
    }
    for (Index table = 0; table < layout.n_tables; ++table) {
      const bool is_taken = table < layout.n_full || is_whole;
      s.page(table, column) = is_taken ? pages[table].value : -1;
    }
    if (is_whole) s.first_column = column;
  });
  s.for_each_page([&](ops::PageId page) { pool->pages.share(page); });
  if (s.has_state() && at.n > 0) {
    std::memcpy(s.state, values(tree.node(at.node).state), s.state_bytes());
    s.checkpoint_floats = 0;
  }
  s.version = ++pool->n_changes;
  tree.touch(at.node, ++time);
  ++stats.n_matches;
  stats.n_tokens_asked += tokens.size();
  stats.n_tokens_matched += static_cast<std::uint64_t>((std::max)(at.n - n_rows, Index{0}));
  return at.n;
}

// ---- Keeping -----------------------------------------------------------------------------------

NIBBLE_INLINE Result<Index> PrefixCache::insert(const Sequence& sequence, std::uint64_t number) {
  NIBBLE_CHECK(state_->check_engine(sequence));
  return catch_out_of_memory([&]() -> Result<Index> {
    const Sequence::State& s = *sequence.state_;
    const PrefixWeights weights(s.adapter, number);
    return state_->insert(state_->prefix_of(s), weights.fingerprint());
  });
}

NIBBLE_INLINE detail::Prefix PrefixCache::State::prefix_of(
    const Sequence::State& s) const noexcept {
  // With guesses ahead, its state is that after them.
  const bool is_ahead = s.has_state() && s.n_ahead > 0;
  const Index end = is_ahead ? s.checkpoint_position : s.n_computed;
  Index n = 0;
  while (n < (std::min)(end, s.n_exact) && s.has_ids(n, n + 1)) ++n;
  if (n < s.n_prefix()) n = 0;
  if (s.has_state() && n < end) n = 0;  // its state is that after rows of numbers
  if (is_ahead) s.complete_checkpoint();
  const auto n_floats = n > 0 ? static_cast<std::size_t>(pool->n_state_floats) : 0;
  return {{s.tokens, static_cast<std::size_t>(n)},
          {is_ahead ? s.checkpoint : s.state, n_floats},
          s.pages,
          ops::pages_for(s.capacity)};
}

NIBBLE_INLINE Index PrefixCache::State::insert(detail::Prefix prefix, std::uint64_t weights) {
  const detail::PrefixTree::Place from = tree.find(prefix.tokens, weights);
  tree.touch(from.node, ++time);
  if (tree.reachable(from).n == prefix.n()) return prefix.n();
  const std::span<const std::int32_t> tokens = prefix.tokens;
  if (fit(prefix, from)) tree.insert(prefix, from, weights, time);
  fill_gaps(prefix, tree.find(prefix.tokens, weights));
  return tree.reachable(tree.find(tokens, weights)).n;
}

NIBBLE_INLINE void PrefixCache::State::fill_gaps(const detail::Prefix& prefix,
                                                 detail::PrefixTree::Place end) noexcept {
  const auto n_bytes = static_cast<std::size_t>(tree.fill_gaps(prefix, end, true)) * page_bytes;
  while (bytes() + n_bytes > max_bytes && evict(time)) {
  }
  if (bytes() + n_bytes <= max_bytes) tree.fill_gaps(prefix, end, false);
}

NIBBLE_INLINE bool PrefixCache::State::has_room_for(const detail::Prefix& prefix,
                                                    detail::PrefixTree::Place from) const noexcept {
  const auto n_pages = static_cast<std::size_t>(tree.pages_for(prefix, from));
  const std::size_t used = bytes();
  return used <= max_bytes &&
         n_pages * page_bytes + tree.bytes_for(prefix, from) <= max_bytes - used;
}

NIBBLE_INLINE bool PrefixCache::State::fit(detail::Prefix& prefix,
                                           detail::PrefixTree::Place from) noexcept {
  while (!has_room_for(prefix, from) && evict(time)) {
  }
  while (!has_room_for(prefix, from)) {
    const Index n = (prefix.n() - 1) / ops::kPagePositions;
    if (!prefix.state.empty() || n * ops::kPagePositions <= from.n) return false;
    prefix.tokens = prefix.tokens.first(static_cast<std::size_t>(n * ops::kPagePositions));
  }
  return true;
}

NIBBLE_INLINE Index PrefixCache::make_room(Index n_pages) noexcept {
  while (state_->pool->pages.n_free() < n_pages && state_->evict(0)) {
  }
  return state_->pool->pages.n_free();
}

NIBBLE_INLINE bool PrefixCache::has_state() const noexcept {
  return state_->pool->n_state_floats > 0;
}

NIBBLE_INLINE Index PrefixCache::n_pages_in_use() noexcept { return state_->tree.n_in_use(); }

NIBBLE_INLINE Index PrefixCache::n_whole_pages(const Sequence& sequence) const noexcept {
  return state_->pool->layout.n_full * (sequence.state_->n_computed / ops::kPagePositions);
}

NIBBLE_INLINE Index PrefixCache::n_shared_pages(const Sequence& sequence) const noexcept {
  const Sequence::State& s = *sequence.state_;
  Index n = 0;
  for (Index table = 0; table < state_->pool->layout.n_full; ++table) {
    for (Index c = 0; c < s.n_computed / ops::kPagePositions; ++c) {
      n += state_->tree.holds(s.page(table, c));
    }
  }
  return n;
}

}}  // namespace nibble::NIBBLE_ABI

#include "nibble/generate/prefix_file-inl.hpp"
