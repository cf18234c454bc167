// SPDX-License-Identifier: Apache-2.0
//
// A completion: the answer to a request that a Scheduler has taken, while it is generated and
// after.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "nibble/core/result.hpp"
#include "nibble/core/shared.hpp"
#include "nibble/core/view.hpp"
#include "nibble/generate/generator.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// Made by Scheduler::submit(); it may outlive the scheduler, which ends it then. One thread at a
// time calls poll() or wait(); any thread may call the rest at any time. Whoever does not want the
// answer any more destroys it: that cancels the request.
class Completion {
 public:
  Completion(Completion&& other) noexcept = default;
  Completion& operator=(Completion&& other) noexcept;
  ~Completion();

  // The next token if it is there. The last has a finish that is not none, and comes exactly once:
  // as the last token, or with id kNoToken (−1) and the text that was held back if the request
  // ended without one more token. After it, and for requests with on_token, there is nothing. The
  // text is valid until the next call. Allocates nothing.
  std::optional<Token> poll();
  // The same, but waits for a token; nothing once it has ended. Another thread must step the
  // scheduler meanwhile.
  std::optional<Token> wait();

  // Ends it before the next step of the scheduler. Does nothing if it has ended.
  void cancel() noexcept;

  // Why it has ended; none: it has not. All tokens are there then, and can still be taken.
  Finish finish() const noexcept;
  // Once it has ended: the error, if finish() is `failed`. Errors: malformed (the logits are not
  // numbers), those of Engine::run().
  Result<void> status() const;
  // Tokens of the prompt.
  std::span<const std::int32_t> prompt() const noexcept;
  // How many those are; and, once it has ended, how many were generated, including the end token.
  Index n_prompt() const noexcept;
  Index n_tokens() const noexcept;

 private:
  friend class Scheduler;
  struct State;
  explicit Completion(Shared<State> state) noexcept;

  Shared<State> state_;  // the scheduler has it too, until it has ended
};

}}  // namespace nibble::NIBBLE_ABI
