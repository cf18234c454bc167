// SPDX-License-Identifier: Apache-2.0
//
// A sequence of tokens and what a model keeps of it: pages of keys and values, which sequences that
// begin alike share, and recurrent state.
#pragma once

#include <cstdint>
#include <span>

#include "nibble/core/owned.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// Made by Engine::new_sequence(); lives on by itself, also after the engine. An engine and its
// sequences are one thread's at a time.
class Sequence {
 public:
  // The tokens so far; kNoToken (−1) where rows of numbers were given. Valid until the next call
  // that changes the sequence.
  std::span<const std::int32_t> tokens() const noexcept;
  // How many tokens it has, and may have.
  Index position() const noexcept;
  Index capacity() const noexcept;

  // A second sequence with the same tokens. Pages of keys and values are shared, and copied one by
  // one when either sequence writes to them; recurrent state is copied now. A fork is also a
  // snapshot to come back to. Errors: out_of_memory.
  Result<Sequence> fork() const;

  // Forgets all tokens from `position` on. Recurrent state cannot go back: with it only the
  // position that the sequence has, the one before its last step, and 0 are possible. Errors:
  // invalid_argument (there are not that many tokens), unsupported (no such state).
  Status rewind(Index position);
  // Of the positions that rewind() can reach, the last one up to `position`.
  Index last_reachable(Index position) const noexcept;

  // Pages of the cache that it uses, and how many of them no other sequence uses.
  Index n_pages() const noexcept;
  Index n_own_pages() const noexcept;

  // Bytes of its own besides pages: its tables, tokens and state.
  std::size_t bytes() const noexcept;

 private:
  friend class Engine;
  struct State;
  explicit Sequence(Owned<State> state) noexcept;

  Owned<State> state_;
};

}}  // namespace nibble::NIBBLE_ABI
