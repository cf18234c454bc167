// SPDX-License-Identifier: Apache-2.0
//
// Text generation: a prompt goes in, tokens come out one by one, until one of the usual ends.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/core/owned.hpp"
#include "nibble/generate/sampling.hpp"
#include "nibble/generate/session.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct GenerateOptions {
  SamplingOptions sampling;
  Index max_tokens = 256;
  std::vector<std::string> stop;  // generation ends before the first of these in the text
  bool parse_special = false;     // names of control tokens in the prompt mean those tokens
  const std::atomic<bool>* cancel = nullptr;  // looked at before every step; true ends generation
};

enum class Finish : unsigned char {
  none,
  end_of_text,  // the model's own end token
  max_tokens,
  stop_string,
  context_full,
  cancelled,
};

constexpr const char* to_string(Finish finish) noexcept {
  switch (finish) {
    case Finish::none: return "not finished";
    case Finish::end_of_text: return "end of text";
    case Finish::max_tokens: return "token limit";
    case Finish::stop_string: return "stop string";
    case Finish::context_full: return "context full";
    case Finish::cancelled: return "cancelled";
  }
  return "unknown";
}

struct Token {
  std::int32_t id = 0;
  float logprob = 0;  // see Sampled
  // What this token completes, often nothing or several pieces; valid until next() or prompt().
  std::string_view text;
  Finish finish = Finish::none;  // other than none with the last token
};

// Pulls tokens out of a session. After prompt() nothing allocates.
class Generator {
 public:
  // The session must outlive the generator. Errors: those of Sampler::create; invalid_argument for
  // max_tokens < 1 or an empty stop string.
  static Result<Generator> create(Session& session, const GenerateOptions& options);

  // Appends a text to the session's sequence; the tokenizer puts its begin token in front when the
  // sequence is empty and the model wants one. After generation, new text follows the last generated
  // token, the end token included, unless the session was moved to another position; an empty text
  // asks for more. Errors change nothing: unsupported (the model has no tokenizer), those of
  // Tokenizer::encode and Session::append.
  Status prompt(std::string_view text);

  // The same for token ids. `at_start`: the text that follows is the beginning of a text.
  Status prompt(std::span<const std::int32_t> ids, bool at_start = false);

  // The next token, or nothing when generation has ended (cancelled: text that was held back, as it
  // may begin a stop string, is lost). Errors: invalid_argument before prompt().
  Result<std::optional<Token>> next();

  Finish finish() const noexcept;
  Index n_tokens() const noexcept;  // given since prompt(), the end included

 private:
  struct State;
  explicit Generator(Owned<State> state) noexcept;

  Owned<State> state_;
};

struct Generated {
  Index n_prompt = 0;  // tokens in the session before the first result
  Index n_tokens = 0;  // results, the end token included
  Finish finish = Finish::none;
};

// Prompt in, tokens to `on_token` until the end, or until it returns false (finish: cancelled).
Result<Generated> generate(Session& session, std::string_view prompt,
                           const GenerateOptions& options,
                           FunctionRef<bool(const Token&)> on_token);

}}  // namespace nibble::NIBBLE_ABI

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/generate/generator-inl.hpp"
#endif
