// SPDX-License-Identifier: Apache-2.0
//
// A cache of prefixes: keys, values and state of the beginnings of sequences that an engine has
// computed, so that a later sequence with the same beginning starts from there. A radix tree over
// tokens (as SGLang's: L. Zheng et al., "SGLang: Efficient Execution of Structured Language Model
// Programs", 2024) refers to pages of the engine's own cache: finding a prefix copies nothing.
//
//   auto cache = PrefixCache::create(engine);
//   auto sequence = cache->match(prompt);       // sequence->position() tokens are computed already
//   ... run the rest of the prompt ...
//   cache->insert(*sequence);
//
// A Scheduler has such a cache of its own (SchedulerOptions::prefix_cache_bytes).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "nibble/core/result.hpp"
#include "nibble/core/shared.hpp"
#include "nibble/generate/engine.hpp"
#include "nibble/generate/sequence.hpp"
#include "nibble/model/adapter_set.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct PrefixCacheOptions {
  // Bytes of pages, tokens and states that the cache holds at most; 0: half of the engine's pages.
  std::size_t max_bytes = 0;
};

// What has happened so far.
struct PrefixCacheStats {
  std::uint64_t n_matches = 0;         // calls of match()
  std::uint64_t n_tokens_asked = 0;    // in these
  std::uint64_t n_tokens_matched = 0;  // and how many of them were there
  std::uint64_t n_evictions = 0;
};

// How the pages of a file become those of an engine.
enum class PageUse : std::uint8_t {
  copy,  // into the memory of the engine
  // In place: the engine's cache has the system's pages of the file, as every other process that
  // maps it. So processes share a prompt's pages, and none needs another to stay alive.
  map,
};

// What computes a sequence: its adapter, and a number of the weights, which is 0 for the model's
// own, and for others (Engine::exchange_weights) their fingerprint (model/fingerprint.hpp), or any
// number that the program keeps for the same ones.
class PrefixWeights {
 public:
  PrefixWeights(std::uint64_t number = 0) noexcept : number_(number) {}  // NOLINT: is a number
  PrefixWeights(const SequenceAdapter& adapter, std::uint64_t number = 0) noexcept  // NOLINT
      : number_(number), adapter_(adapter) {}

  const SequenceAdapter& adapter() const noexcept { return adapter_; }
  // Of both: without an adapter that of the weights.
  std::uint64_t fingerprint() const noexcept;

 private:
  std::uint64_t number_;
  SequenceAdapter adapter_;
};

// Belongs to one engine, whose cache of keys and values it keeps alive; uses it and its sequences,
// so it may be used by only one thread at a time together with them (a scheduler's own lock will
// do). Nothing here is called by a step of the engine.
//
// What matched gives the same logits, bit for bit, as computing it anew, if it was computed as rows
// of prompts (SegmentKind::prompt), with the same weights and page policy. Generated tokens may be
// inserted as well: what follows them then equals a continuation of that sequence.
//
// Prefixes of different weights or adapters never mix (PrefixWeights).
class PrefixCache {
 public:
  // Errors: out_of_memory, unsupported (a model that reads a sequence at once: it has no prefixes).
  static Result<PrefixCache> create(const Engine& engine, const PrefixCacheOptions& options = {});

  // A sequence with the longest cached beginning of `tokens`, but without the last of them: a step
  // must have something to compute. It is empty if there is none, and shares the pages of the
  // cache. It has the adapter of `weights`; learned rows of that come before the tokens, are cached
  // with them, and count as tokens in what the functions below return. capacity: as for
  // Engine::new_sequence. Errors: as there, and those of Engine::check_adapter().
  Result<Sequence> match(std::span<const std::int32_t> tokens, const PrefixWeights& weights = {},
                         Index capacity = 0);
  // The same into a sequence of the engine, which must be empty but for learned rows. Returns how
  // many tokens it has computed then. Allocates nothing. Errors: invalid_argument (it is not empty,
  // or of another engine).
  // `number`: of the weights (PrefixWeights); the adapter is that of the sequence.
  Result<Index> match(std::span<const std::int32_t> tokens, Sequence& into,
                      std::uint64_t number = 0);
  // How far it has these tokens, also where no sequence can go on (match()).
  Index n_known(std::span<const std::int32_t> tokens,
                const PrefixWeights& weights = {}) const noexcept;
  // How many tokens match() would find. Does not count as a use.
  Index n_cached(std::span<const std::int32_t> tokens,
                 const PrefixWeights& weights = {}) const noexcept;

  // Keeps what is computed of a sequence of the engine, as it is now: its pages are shared, not
  // copied, until it writes to one. Prefixes that were used longest ago make room for it, but none
  // whose pages are in use by a sequence. Returns how many of the tokens are cached now, from the
  // first on: fewer than are computed where rows of numbers follow, or tokens that did not go
  // through all layers (Sequence::n_exact), or if there is no room for more (with recurrent state,
  // then nothing is added). `number`: of the weights (PrefixWeights); the adapter is that of the
  // sequence. Errors change nothing: invalid_argument (a sequence of another engine),
  // out_of_memory.
  Result<Index> insert(const Sequence& sequence, std::uint64_t number = 0);

  // Whether prefixes are found only at places where they were inserted, because of recurrent state.
  bool has_state() const noexcept;

  // Drops prefixes, those first that were used longest ago, until n_pages of the engine are free or
  // nothing is left that would free some. Returns how many are free.
  Index make_room(Index n_pages) noexcept;
  // How many pages of the engine make_room() cannot free, at most, because sequences use them.
  Index n_pages_in_use() noexcept;
  // The pages of a sequence to which it does not write any more, nor drops them: whole ones, of
  // layers that keep all positions. And how many of them the cache has too.
  Index n_whole_pages(const Sequence& sequence) const noexcept;
  Index n_shared_pages(const Sequence& sequence) const noexcept;
  // Drops all prefixes; sequences keep their pages.
  void clear() noexcept;

  // Writes all prefixes to the file `path`, completely or not at all. Errors: io, out_of_memory.
  Result<void> save(const std::string& path) const;
  // Fills the cache, which must be empty, with the prefixes of a file. It must have been saved for
  // the same model (model/fingerprint.hpp), the same type of the cache and the same SIMD target:
  // others compute other bits. Damage is found; a file that somebody made on purpose can give wrong
  // text, nothing worse.
  //
  // PageUse::map needs an engine with EngineOptions::maps_pages. Nothing is copied but ends of
  // pages of the system; what is written later (a page is free again and gets other tokens) is
  // private, the file never changes. For memory alone, without a disk, put the file where the
  // system keeps files in memory: /dev/shm on Linux, as shm_open() does. The file may be removed or
  // replaced by renaming (as save() does) while processes use it. It must not be changed or made
  // shorter while the engine or one of its sequences lives: that changes pages or ends the process,
  // as with every mapped file.
  //
  // Errors change nothing: io, malformed, not_found, unsupported (a version to come; PageUse::map
  // of a file from a system with smaller pages), invalid_argument (another model, type or target;
  // the cache is not empty; PageUse::map without maps_pages), limit (more than max_bytes or than
  // the engine's free pages, which for PageUse::map must follow each other; longer than n_ctx),
  // out_of_memory.
  Result<void> restore(const std::string& path, PageUse use = PageUse::copy);

  // Bytes of all that the cache holds, pages included.
  std::size_t bytes() const noexcept;
  std::size_t max_bytes() const noexcept;
  Index n_pages() const noexcept;
  const PrefixCacheStats& stats() const noexcept;

 private:
  struct State;
  class FileReader;
  explicit PrefixCache(Shared<State> state) noexcept;

  Shared<State> state_;
};

}}  // namespace nibble::NIBBLE_ABI

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/generate/prefix_cache-inl.hpp"
#endif
