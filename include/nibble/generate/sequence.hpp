// SPDX-License-Identifier: Apache-2.0
//
// A sequence of tokens and what a model stores for it: pages of keys and values, which sequences
// with the same beginning can share, and recurrent state.
#pragma once

#include <cstdint>
#include <span>

#include "nibble/core/owned.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/view.hpp"
#include "nibble/model/adapter_set.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// Made by Engine::new_sequence(); it may outlive the engine. An engine and its sequences may be
// used by only one thread at a time.
class Sequence {
 public:
  // The tokens so far, pending ones included; kNoToken (−1) where rows of numbers were given. Valid
  // until the next call that changes the sequence.
  std::span<const std::int32_t> tokens() const noexcept;
  // How many tokens it has, and how many it may have.
  Index position() const noexcept;
  Index capacity() const noexcept;

  // Adds a token without computing it: it is pending until the next step of the sequence, which
  // computes it together with what that step adds. For a token that a model has generated: it is a
  // part of the sequence at once, but what follows it may never be asked for. Errors:
  // invalid_argument (no token of the model), limit (the sequence is full).
  Result<void> push(std::int32_t token);
  // How many of the last tokens are pending.
  Index n_pending() const noexcept;

  // How many of the first computed tokens are stored as all layers of the model store them. What
  // follows the first that is not, since it left out layers other than the last (Engine::set_depth,
  // set_early_exit), is an approximation. rewind() to here, and what comes next is exact again.
  Index n_exact() const noexcept;

  // A second sequence with the same tokens. Pages of keys and values are shared; a page is copied
  // when either sequence writes to it. Recurrent state is copied now. A fork is also a snapshot to
  // return to. Errors: out_of_memory.
  Result<Sequence> fork() const;

  // Forgets all tokens from `position` on. Recurrent state cannot go back: with it, the only
  // possible positions are those of pending tokens, the end of what is computed, the one before the
  // last step, and 0. Layers with a window keep EngineOptions::window_margin positions before it:
  // so many, at least, are possible, the one before the last step, and 0. Errors: invalid_argument
  // (there are fewer tokens), unsupported (the state or the keys of that position are gone).
  Result<void> rewind(Index position);
  // The last position up to `position` that rewind() can reach.
  Index last_reachable(Index position) const noexcept;

  // The adapter that computes the tokens of the sequence; by default none. The sequence shares it
  // until it has another one. If it has a prefix, that many positions stand before all tokens from
  // now on, pending at first; rewind() does not forget them. Errors change nothing:
  // invalid_argument (there are tokens, whose keys and values depend on the adapter: rewind(0)
  // first), limit (no space for the prefix), those of Engine::check_adapter().
  Result<void> set_adapter(const SequenceAdapter& adapter);
  const SequenceAdapter& adapter() const noexcept;

  // Pages of the cache that it uses (Engine::pages_for), and how many of these no other sequence
  // uses.
  Index n_pages() const noexcept;
  Index n_own_pages() const noexcept;

  // Bytes of its own besides pages: its tables, tokens and state.
  std::size_t bytes() const noexcept;

 private:
  friend class Engine;
  friend class Generator;
  friend class Session;
  friend class Embedder;
  friend class PrefixCache;
  friend class Scheduler;
  struct State;
  explicit Sequence(Owned<State> state) noexcept;

  Owned<State> state_;
};

}}  // namespace nibble::NIBBLE_ABI
