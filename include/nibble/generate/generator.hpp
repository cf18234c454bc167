// SPDX-License-Identifier: Apache-2.0
//
// Text generation: takes a prompt and gives tokens one by one, until one of the usual ends.
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
  const std::atomic<bool>* cancel = nullptr;  // checked before every step; true ends generation
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
  // The text that this token completes: often none, or that of several tokens; valid until next()
  // or prompt().
  std::string_view text;
  Finish finish = Finish::none;  // other than none with the last token
};

// Gets tokens from a session one by one. After prompt() nothing allocates.
class Generator {
 public:
  // The session must outlive the generator. Errors: those of Sampler::create; invalid_argument for
  // max_tokens < 1 or an empty stop string.
  static Result<Generator> create(Session& session, const GenerateOptions& options);

  // Appends a text to the session's sequence. The tokenizer puts its begin token in front if the
  // sequence is empty and the model wants one. After generation, new text follows the last
  // generated token, including an end token, unless the session was moved to another position. An
  // empty text continues the generation. Errors change nothing: unsupported (the model has no
  // tokenizer), those of Tokenizer::encode and Session::append.
  Result<void> prompt(std::string_view text);

  // The same for token ids. `at_start`: what is generated is the beginning of a text.
  Result<void> prompt(std::span<const std::int32_t> ids, bool at_start = false);

  // The next token, or nothing when generation has ended. (After a cancellation, text is lost that
  // was held back because it may begin a stop string.) Errors: invalid_argument before prompt().
  Result<std::optional<Token>> next();

  Finish finish() const noexcept;
  Index n_tokens() const noexcept;  // since prompt(), including the end token

 private:
  struct State;
  explicit Generator(Owned<State> state) noexcept;

  Owned<State> state_;
};

struct Generated {
  Index n_prompt = 0;  // tokens in the session before the first result
  Index n_tokens = 0;  // results, including the end token
  Finish finish = Finish::none;
};

// Runs a prompt and calls `on_token` with each token until the end, or until it returns false
// (finish: cancelled).
Result<Generated> generate(Session& session, std::string_view prompt,
                           const GenerateOptions& options,
                           FunctionRef<bool(const Token&)> on_token);

}}  // namespace nibble::NIBBLE_ABI

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/generate/generator-inl.hpp"
#endif
