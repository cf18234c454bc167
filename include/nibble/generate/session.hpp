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
#include "nibble/generate/engine.hpp"
#include "nibble/generate/sequence.hpp"
#include "nibble/model/model.hpp"
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
  Executor* executor = nullptr;  // must outlive the session; null: the calling thread
};

// One engine and one sequence. Keeps the model alive. Not thread-safe; sessions of one model may
// run on different threads, each with its own executor.
class Session {
 public:
  // Errors: invalid_argument, out_of_memory, limit (where pointers have 32 bits).
  static Result<Session> create(const Model& model, const SessionOptions& options = {});

  // Appends `tokens` to the sequence and returns the logits of the last `n_outputs` of them:
  // (n_outputs, vocab_size), valid until the next call. Errors change nothing: invalid_argument (no
  // tokens, an id out of range, more outputs than tokens or than max_outputs), limit (the cache is
  // full, or the model needs a sequence in one step and it is longer than max_step_tokens).
  Result<MatrixView<const float>> append(std::span<const std::int32_t> tokens, Index n_outputs = 1);

  const Model& model() const noexcept;
  // The tokens of the sequence; valid until the next call that changes it.
  std::span<const std::int32_t> tokens() const noexcept;
  // How many tokens it has, and how many it may have.
  Index position() const noexcept;
  Index capacity() const noexcept;
  // The largest number of rows of logits that one call may ask for.
  Index max_outputs() const noexcept;

  // Forgets all tokens from `position` on. A model with recurrent state recomputes what it cannot
  // go back to. Errors: invalid_argument (there are fewer tokens), unsupported (rows of numbers
  // would have to be computed anew), limit (forks hold the pages for that; the sequence is then
  // shorter).
  Result<void> rewind(Index position);

  // Bytes that the session holds: working memory, cache, rotation tables, tokens.
  std::size_t bytes() const noexcept;

  // The parts of a session: for forks and for other kinds of steps.
  Engine& engine() noexcept;
  Sequence& sequence() noexcept;

 private:
  Session(Engine engine, Sequence sequence) noexcept;

  Engine engine_;
  Sequence sequence_;
};

}}  // namespace nibble::NIBBLE_ABI

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/generate/session-inl.hpp"
#endif
