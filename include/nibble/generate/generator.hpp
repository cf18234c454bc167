// SPDX-License-Identifier: Apache-2.0
//
// Text generation: a prompt goes in, tokens come out one by one, until one of the usual ends.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/generate/sampler.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/generate/stop_matcher.hpp"
#include "nibble/text/stream_decoder.hpp"

namespace nibble::inline NIBBLE_ABI {

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
template <class SessionType>
class BasicGenerator {
 public:
  // The session must outlive the generator. Errors: those of Sampler::create; invalid_argument for
  // max_tokens < 1 or an empty stop string.
  static Result<BasicGenerator> create(SessionType& session, const GenerateOptions& options) {
    NIBBLE_TRY(sampler, Sampler::create(options.sampling, session.model().config().vocab_size));
    if (options.max_tokens < 1) {
      return Error{Errc::invalid_argument, "generate: max_tokens must be at least 1"};
    }
    for (const std::string& stop : options.stop) {
      if (stop.empty()) return Error{Errc::invalid_argument, "generate: an empty stop string"};
    }
    return BasicGenerator(session, options, std::move(sampler));
  }

  // Appends a text to the session's sequence; the tokenizer puts its begin token in front when the
  // sequence is empty and the model wants one. After results the conversation goes on behind the
  // last of them, the end token included, unless the session was taken somewhere else; an empty
  // text asks for more. Errors change nothing: unsupported (the model has no tokenizer), those of
  // Tokenizer::encode and Session::append.
  Status prompt(std::string_view text) {
    const text::Tokenizer* const tokenizer = session_->model().tokenizer();
    if (tokenizer == nullptr) {
      return Error{Errc::unsupported, "generate: the model has no tokenizer that is known here"};
    }
    text::EncodeOptions encode;
    if (session_->position() > 0) encode.add_bos = false;
    encode.add_eos = false;
    encode.parse_special = options_.parse_special;
    NIBBLE_TRY(ids, tokenizer->encode(text, encode));
    return prompt(ids, text.empty() && session_->position() == 0);
  }

  // The same for token ids. `at_start`: the text that follows is the beginning of a text.
  Status prompt(std::span<const std::int32_t> ids, bool at_start = false) {
    const Index before = session_->position();
    MatrixView<const float> logits;
    if (last_at_ == before) {
      NIBBLE_TRY(after_last, session_->append({&last_, 1}));
      logits = after_last;
    }
    if (!ids.empty() || logits.data() == nullptr) {
      auto after_ids = session_->append(ids);
      if (!after_ids) {
        NIBBLE_CHECK(session_->rewind(before));
        return std::move(after_ids).error();
      }
      logits = *after_ids;
    }
    logits_ = logits;
    last_at_ = kNowhere;
    n_tokens_ = 0;
    finish_ = Finish::none;
    if (const auto* tokenizer = session_->model().tokenizer()) {
      decoder_.emplace(*tokenizer, text::DecodeOptions{.at_start = at_start});
      stop_.reset(tokenizer->vocabulary().longest());
    }
    return ok();
  }

  // The next token, or nothing when generation has ended (cancelled: text that was held back, as it
  // may begin a stop string, is lost). Errors: invalid_argument before prompt().
  Result<std::optional<Token>> next() {
    if (finish_ != Finish::none) return std::optional<Token>();
    if (logits_.data() == nullptr) {
      return Error{Errc::invalid_argument, "generate: next() before prompt()"};
    }
    if (options_.cancel != nullptr && options_.cancel->load(std::memory_order_relaxed)) {
      finish_ = Finish::cancelled;
      return std::optional<Token>();
    }
    if (last_at_ != kNowhere) {  // only now is it known that another is wanted
      NIBBLE_TRY(logits, session_->append({&last_, 1}));
      logits_ = logits;
    }
    const Sampled sampled = sampler_.sample(
        {logits_.data(), static_cast<std::size_t>(logits_.extent(1))}, session_->tokens());
    if (std::isnan(sampled.logprob)) {
      return Error{Errc::malformed, "generate: the model's logits are not numbers"};
    }
    Token token{sampled.id, sampled.logprob, {}, Finish::none};
    last_ = sampled.id;
    last_at_ = session_->position();
    ++n_tokens_;
    stop_.next();
    const auto* const tokenizer = session_->model().tokenizer();
    if (tokenizer != nullptr && tokenizer->vocabulary().ends_generation(sampled.id)) {
      finish_ = Finish::end_of_text;
    } else {
      if (decoder_) stop_.push(decoder_->push(sampled.id));
      if (stop_.found())
        finish_ = Finish::stop_string;
      else if (n_tokens_ == options_.max_tokens)
        finish_ = Finish::max_tokens;
      else if (session_->position() == session_->capacity())
        finish_ = Finish::context_full;
    }
    if (finish_ != Finish::none && !stop_.found()) {  // what was held back comes now
      if (decoder_) stop_.push(decoder_->flush());
      stop_.flush();
    }
    token.finish = finish_;
    token.text = stop_.text();
    return std::optional<Token>(token);
  }

  Finish finish() const noexcept { return finish_; }
  Index n_tokens() const noexcept { return n_tokens_; }  // given since prompt(), the end included

 private:
  BasicGenerator(SessionType& session, const GenerateOptions& options, Sampler sampler)
      : session_(&session), options_(options), sampler_(std::move(sampler)), stop_(options.stop) {}

  static constexpr Index kNowhere = -1;

  SessionType* session_;
  GenerateOptions options_;
  Sampler sampler_;
  StopMatcher stop_;
  std::optional<text::StreamDecoder> decoder_;
  MatrixView<const float> logits_;  // of the session's last token
  std::int32_t last_ = 0;           // given last; not in the session yet
  Index last_at_ = kNowhere;        // its place there
  Index n_tokens_ = 0;
  Finish finish_ = Finish::none;
};

using Generator = BasicGenerator<Session>;

struct Generated {
  Index n_prompt = 0;  // tokens in the session before the first result
  Index n_tokens = 0;  // results, the end token included
  Finish finish = Finish::none;
};

// Prompt in, tokens to `on_token` until the end, or until it returns false (finish: cancelled).
template <class SessionType>
Result<Generated> generate(SessionType& session, std::string_view prompt,
                           const GenerateOptions& options,
                           FunctionRef<bool(const Token&)> on_token) {
  NIBBLE_TRY(generator, BasicGenerator<SessionType>::create(session, options));
  NIBBLE_CHECK(generator.prompt(prompt));
  Generated result;
  result.n_prompt = session.position();
  for (;;) {
    NIBBLE_TRY(token, generator.next());
    result.n_tokens = generator.n_tokens();
    result.finish = generator.finish();
    if (!token) return result;
    if (!on_token(*token)) {
      if (result.finish == Finish::none) result.finish = Finish::cancelled;
      return result;
    }
  }
}

}  // namespace nibble::inline NIBBLE_ABI
