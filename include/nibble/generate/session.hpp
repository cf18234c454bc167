// SPDX-License-Identifier: Apache-2.0
//
// A session: one sequence of tokens run through a model. Holds everything that changes (cache,
// working memory), allocated once when it is created; a token then allocates nothing.
#pragma once

#include <cstdint>
#include <span>

#include "nibble/core/executor.hpp"
#include "nibble/core/owned.hpp"
#include "nibble/core/result.hpp"
#include "nibble/model/model.hpp"
#include "nibble/ops/kv_type.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct SessionOptions {
  // Positions of the cache; 0: as many as the model was trained for, at most kDefaultContext. May
  // be more than that (quality is then the model's affair) unless positions are learned.
  Index n_ctx = 0;
  Index max_step_tokens = 64;  // tokens that one step of a prompt computes together
  Index max_outputs = 1;       // rows of logits that one call may ask for, at most max_step_tokens
  ops::KvType kv_type = ops::KvType::f16;
  Executor* executor = nullptr;  // must outlive the session; null: the calling thread
};

inline constexpr Index kDefaultContext = 4096;

// One sequence of tokens, with the cache and the working memory that running it takes.
// Not thread-safe; sessions of one model may run on different threads, each with its own executor.
template <class ModelType>
class BasicSession {
 public:
  // The model must outlive the session and stay where it is. Errors: invalid_argument,
  // out_of_memory.
  static Result<BasicSession> create(const ModelType& model, const SessionOptions& options = {});
  static Result<BasicSession> create(const ModelType&&, const SessionOptions& = {}) = delete;

  // Appends `tokens` to the sequence and returns the logits of the last `n_outputs` of them:
  // (n_outputs, vocab_size), valid until the next call. Errors change nothing: invalid_argument (no
  // tokens, an id out of range, more outputs than tokens or than max_outputs), limit (the cache is
  // full).
  Result<MatrixView<const float>> append(std::span<const std::int32_t> tokens, Index n_outputs = 1);

  const ModelType& model() const noexcept;
  // The sequence; valid until the next call that changes it.
  std::span<const std::int32_t> tokens() const noexcept;
  // How many tokens it has, and may have.
  Index position() const noexcept;
  Index capacity() const noexcept;
  // The most rows of logits that one call may ask for.
  Index max_outputs() const noexcept;

  // Forgets all tokens from `position` on. Error: invalid_argument if there are not that many.
  Status rewind(Index position);

  // Bytes that the session holds: working memory, cache, rotation tables, tokens.
  std::size_t bytes() const noexcept;

 private:
  struct State;
  explicit BasicSession(Owned<State> state) noexcept;

  Owned<State> state_;
};

using Session = BasicSession<Model>;

}}  // namespace nibble::NIBBLE_ABI

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/generate/session-inl.hpp"
#endif
