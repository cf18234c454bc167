// SPDX-License-Identifier: Apache-2.0
//
// A session: one sequence of tokens run through a model; the simple way to use an engine.
// Everything that changes (cache, working memory) is allocated once, when the session is created; a
// token then allocates nothing.
#pragma once

#include <cstdint>
#include <span>

#include "nibble/core/executor.hpp"
#include "nibble/core/owned.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/shared.hpp"
#include "nibble/generate/engine.hpp"
#include "nibble/generate/sequence.hpp"
#include "nibble/model/adapter_set.hpp"
#include "nibble/model/model.hpp"
#include "nibble/model/progress.hpp"
#include "nibble/ops/kv_type.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct SessionOptions {
  // Positions of the cache; 0: as many as the model was trained for, at most kDefaultContext. May
  // be more than the model was trained for (quality is then up to the model) unless positions are
  // learned.
  Index n_ctx = 0;
  Index max_step_tokens = 64;  // tokens of a prompt that one step computes together
  Index max_outputs = 1;       // rows of logits that one call may ask for, at most max_step_tokens
  ops::KvType kv_type = ops::KvType::f16;
  Executor* executor = nullptr;       // must outlive the session; null: the calling thread
  bool exchangeable_weights = false;  // see EngineOptions
  Index max_factor_rank = 0;          // see EngineOptions
  Index window_margin = 256;          // see EngineOptions
  graph::Observer observer = {};      // see EngineOptions
  graph::ProductObserver product_observer = {};
  Placement placement = {};  // see EngineOptions
};

// One engine and one sequence. Keeps the model alive, and may be moved at any time: generators
// refer to what it owns, not to this object. Not thread-safe; sessions of one model may run on
// different threads, each with its own executor.
class Session {
 public:
  // Errors: invalid_argument, out_of_memory, limit (where pointers have 32 bits), unsupported (a
  // model that gives embeddings).
  static Result<Session> create(const Model& model, const SessionOptions& options = {});
  // What bytes() will be, without allocating that. Errors: as create().
  static Result<std::size_t> bytes_needed(const Model& model, const SessionOptions& options = {});
  Session(Session&&) noexcept = default;
  Session& operator=(Session&&) noexcept = default;

  // Appends `tokens` to the sequence, computes them and what was pending, and returns the logits of
  // the last `n_outputs` of the sequence: (n_outputs, vocab_size), valid until the next call.
  // `progress` is called before each step with the numbers of tokens that are computed and of all
  // to compute; false cancels. Errors change nothing: invalid_argument (nothing to compute, an id
  // out of range, more outputs than tokens or than max_outputs), limit (the cache is full; the
  // model needs a sequence in one step and it is longer than max_step_tokens; a key or value of the
  // model is too large for an f16 cache), cancelled, unsupported (several steps of a model with
  // recurrent state, after rows of numbers: what would be computed anew is not kept).
  Result<MatrixView<const float>> append(std::span<const std::int32_t> tokens, Index n_outputs = 1,
                                         const Progress* progress = nullptr);

  // The logits after the last token: (1, vocab_size), valid until the next call. Computes them if
  // the token is pending; and once more if they are gone, after rewind() or steps of other
  // sequences of the engine. Errors: those of append(); invalid_argument (there are no tokens).
  Result<MatrixView<const float>> logits();

  const Model& model() const noexcept;
  // The tokens of the sequence, pending ones included; valid until the next call that changes it.
  std::span<const std::int32_t> tokens() const noexcept;
  // How many tokens it has, and how many it may have.
  Index position() const noexcept;
  Index capacity() const noexcept;
  // The largest number of rows of logits that one call may ask for.
  Index max_outputs() const noexcept;

  // The adapter that computes the session's tokens; by default none. The session shares it until
  // it has another one. The rows of a prefix are positions before all tokens, which rewind() does
  // not forget. Errors change nothing: those of Sequence::set_adapter(), for example if there are
  // tokens: rewind(0) comes first.
  Result<void> set_adapter(const SequenceAdapter& adapter);

  // Forgets all tokens from `position` on. A model with recurrent state, or with windows, cannot go
  // back to each position (Sequence::rewind): the tokens since the last that it can go back to
  // become pending, and the next call computes them once more. Errors: invalid_argument (there are
  // fewer tokens), unsupported (rows of numbers would have to be computed anew).
  Result<void> rewind(Index position);

  // Forgets the tokens between the first n_first and the last n_last, to make space in a context
  // that is full. The last ones become pending at their new positions: the next call computes them
  // anew. (Their keys could be rotated to where they are now instead, but each time they would be
  // rounded once more, and learned positions and recurrent state have no such way.) The session is
  // then, bit for bit, one that was given what is left. The prefix of an adapter always stays.
  // Errors change nothing: invalid_argument (there are fewer tokens), unsupported (rows of numbers
  // would have to be computed anew).
  Result<void> roll(Index n_first, Index n_last);

  // Bytes that the session holds: working memory, cache, rotation tables, tokens.
  std::size_t bytes() const noexcept;

  // The parts of a session: for forks and for other kinds of steps. They stay where they are when
  // the session moves.
  Engine& engine() noexcept;
  Sequence& sequence() noexcept;

 private:
  friend class Generator;
  friend class LayerDrafts;
  struct State;
  explicit Session(Shared<State> state) noexcept;

  Shared<State> state_;
};

}}  // namespace nibble::NIBBLE_ABI

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/generate/session-inl.hpp"
#endif
