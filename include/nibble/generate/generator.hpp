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
#include "nibble/generate/draft_source.hpp"
#include "nibble/generate/sampling.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/model/progress.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

namespace grammar {
class Constraint;
}

// What generation does when the session's context is full.
enum class WhenFull : unsigned char {
  stop,  // ends: Finish::context_full
  // Goes on without end: forgets tokens in the middle (Session::roll). Those at the beginning stay,
  // because a model attends to them whatever they are ("attention sinks": G. Xiao et al.,
  // "Efficient Streaming Language Models with Attention Sinks", 2023), and half of the rest. That
  // half is read again, so a token costs that of a prompt more, on average; every so often one
  // takes longer. Each stretch is what a session would give that began with what is kept.
  roll,
};

struct GenerateOptions {
  SamplingOptions sampling = {};
  Index max_tokens = 256;
  WhenFull when_full = WhenFull::stop;
  Index n_kept_first = 4;  // tokens at the beginning that `roll` keeps, at most half of all
  // Generation ends before the first of these in the text, and at a control token of that name.
  std::vector<std::string> stop = {};
  bool parse_special = false;  // names of control tokens in the prompt mean those tokens
  // Checked before every step, also of the prompt; true ends generation.
  const std::atomic<bool>* cancel = nullptr;
  std::vector<std::int32_t> stop_tokens = {};  // generation ends at these too; they are not shown
  // Whether the tokenizer's begin token is put in front of a text. Unset: if the model wants one,
  // the session is empty, and the text does not itself begin with one.
  std::optional<bool> add_bos = {};
  Index time_limit_ms = 0;  // since the call of prompt(), checked as `cancel` is; 0: none
  // Called before each step of a prompt with the numbers of tokens read and of all to read; false
  // cancels.
  const Progress* progress = nullptr;
  // What the answer must be (grammar/constraint.hpp), for the vocabulary of the model's tokenizer.
  // It must outlive what uses the options. Tokens that it does not allow never come; those that are
  // certain come without running the model, with logprob 0. An empty prompt goes on in it, any
  // other one begins it anew. (Finding certain tokens allocates.)
  const grammar::Constraint* grammar = nullptr;
  // Guesses of the next tokens, to get several in one step; the same tokens come in less time. Off
  // if not asked for, since the session must have memory for more rows of logits.
  Speculation speculation = {};
};

enum class Finish : unsigned char {
  none,
  end_of_text,  // the model's own end token
  max_tokens,
  stop_string,
  context_full,
  cancelled,
  stop_token,  // one of GenerateOptions::stop_tokens
  time_limit,
  grammar_end,  // GenerateOptions::grammar allows nothing more
  failed,       // only of a Completion, which has the error
};

constexpr const char* to_string(Finish finish) noexcept {
  switch (finish) {
    case Finish::none: return "not finished";
    case Finish::end_of_text: return "end of text";
    case Finish::max_tokens: return "token limit";
    case Finish::stop_string: return "stop string";
    case Finish::context_full: return "context full";
    case Finish::cancelled: return "cancelled";
    case Finish::stop_token: return "stop token";
    case Finish::time_limit: return "time limit";
    case Finish::grammar_end: return "end of the grammar";
    case Finish::failed: return "failed";
  }
  return "unknown";
}

struct Token {
  // −1: no token, only the text that was held back when generation was cancelled or ran out of
  // time.
  std::int32_t id = 0;
  float logprob = 0;  // see TokenLogprob
  // The text that this token completes: often none, or that of several tokens; valid until next()
  // or prompt().
  std::string_view text;
  Finish finish = Finish::none;  // other than none with the last token
  // The most likely tokens in its place, SamplingOptions::top_logprobs of them; valid as `text`.
  std::span<const TokenLogprob> top_logprobs = {};
  // Log-probability among the tokens that GenerateOptions::grammar allowed; logprob without one.
  float allowed_logprob = 0;
};

// Gets tokens from a session one by one. A token is part of the session's sequence as soon as
// next() returns it: session.tokens() is always the whole history, and what comes next follows all
// of it. After prompt() nothing allocates.
//
// It shares what the session owns, so both may be moved, and destroyed in any order.
class Generator {
 public:
  // Errors: those of Sampler::create; invalid_argument for max_tokens < 1, an empty stop string, a
  // stop token that does not exist, a negative time limit, or more guesses than kMaxDrafts or than
  // the session has rows of logits for; out_of_memory.
  static Result<Generator> create(Session& session, const GenerateOptions& options);

  // Other options, from the next prompt() on. The sequence of random numbers goes on, unless the
  // seed is another one. Errors: as create(); then nothing changes.
  Result<void> set_options(const GenerateOptions& options);

  // Appends a text to the session's sequence and reads it. An empty text continues the generation,
  // or whatever the session has. If the prompt is cancelled or runs out of time, the session is as
  // it was, and finish() says so. Errors change nothing: invalid_argument (text and session are
  // empty), the one for which the model has no tokenizer (Model::tokenizer_error), those of
  // Tokenizer::encode and Session::append.
  Result<void> prompt(std::string_view text);

  // The same for token ids. `at_start`: what is generated is the beginning of a text. Without a
  // tokenizer there is no text, and no end token is known: name it in stop_tokens.
  Result<void> prompt(std::span<const std::int32_t> ids, bool at_start = false);

  // The next token, or nothing when generation has ended. Errors: invalid_argument before prompt(),
  // or if something else has changed the session's sequence since then (prompt("") goes on from
  // there); those of Sampler::sample and Session::logits.
  Result<std::optional<Token>> next();

  Finish finish() const noexcept;
  Index n_tokens() const noexcept;  // since prompt(), including the end token
  // Zeros without speculation; begins anew with other options for it.
  SpeculationStats speculation_stats() const noexcept;

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
// (finish: cancelled; text that is held back is not shown then).
Result<Generated> generate(Session& session, std::string_view prompt,
                           const GenerateOptions& options,
                           FunctionRef<bool(const Token&)> on_token);

}}  // namespace nibble::NIBBLE_ABI

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/generate/generator-inl.hpp"
#endif
