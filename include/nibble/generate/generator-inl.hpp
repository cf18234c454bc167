// SPDX-License-Identifier: Apache-2.0
//
// A generator's functions. Included by generator.hpp.
#pragma once

#include <new>
#include <utility>

#include "nibble/core/scalar.hpp"
#include "nibble/generate/generator.hpp"
#include "nibble/generate/sampler.hpp"
#include "nibble/generate/stop_matcher.hpp"
#include "nibble/text/stream_decoder.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct Generator::State {
  State(Session& s, const GenerateOptions& o, Sampler a)
      : session(s),
        max_tokens(o.max_tokens),
        parse_special(o.parse_special),
        cancel(o.cancel),
        sampler(std::move(a)),
        stop(o.stop) {}

  Result<void> prompt(std::string_view text);
  Result<void> prompt(std::span<const std::int32_t> ids, bool at_start);
  Result<std::optional<Token>> next();

  static constexpr Index kNowhere = -1;

  Session& session;
  Index max_tokens;
  bool parse_special;
  const std::atomic<bool>* cancel;
  Sampler sampler;
  StopMatcher stop;
  std::optional<text::StreamDecoder> decoder;
  MatrixView<const float> logits;  // of the session's last token
  std::int32_t last = 0;           // returned last; not in the session yet
  Index last_at = kNowhere;        // its position there
  Index n_tokens = 0;
  Finish finish = Finish::none;
};

NIBBLE_INLINE Generator::Generator(Owned<State> state) noexcept : state_(std::move(state)) {}

NIBBLE_INLINE Result<Generator> Generator::create(Session& session,
                                                  const GenerateOptions& options) {
  NIBBLE_TRY(sampler, Sampler::create(options.sampling, session.model().config().vocab_size));
  if (options.max_tokens < 1) {
    return Error{Errc::invalid_argument, "generate: max_tokens must be at least 1"};
  }
  for (const std::string& stop : options.stop) {
    if (stop.empty()) return Error{Errc::invalid_argument, "generate: an empty stop string"};
  }
  return catch_out_of_memory([&]() -> Result<Generator> {
    Owned<State> state(new (std::nothrow) State{session, options, std::move(sampler)});
    if (!state) return Error{Errc::out_of_memory, "generate"};
    return Generator(std::move(state));
  });
}

NIBBLE_INLINE Result<void> Generator::prompt(std::string_view text) {
  return catch_out_of_memory([&] { return state_->prompt(text); });
}

NIBBLE_INLINE Result<void> Generator::prompt(std::span<const std::int32_t> ids, bool at_start) {
  return catch_out_of_memory([&] { return state_->prompt(ids, at_start); });
}

NIBBLE_INLINE Result<std::optional<Token>> Generator::next() {
  return catch_out_of_memory([&] { return state_->next(); });
}

NIBBLE_INLINE Finish Generator::finish() const noexcept { return state_->finish; }

NIBBLE_INLINE Index Generator::n_tokens() const noexcept { return state_->n_tokens; }

NIBBLE_INLINE Result<void> Generator::State::prompt(std::string_view text) {
  const text::Tokenizer* const tokenizer = session.model().tokenizer();
  if (tokenizer == nullptr) {
    const Error& why = *session.model().tokenizer_error();
    return Error{why.code, "generate: there is no tokenizer for the text: " + why.message};
  }
  text::EncodeOptions encode;
  if (session.position() > 0) encode.add_bos = false;
  encode.add_eos = false;
  encode.parse_special = parse_special;
  NIBBLE_TRY(ids, tokenizer->encode(text, encode));
  return prompt(ids, text.empty() && session.position() == 0);
}

NIBBLE_INLINE Result<void> Generator::State::prompt(std::span<const std::int32_t> ids,
                                                    bool at_start) {
  const Index before = session.position();
  MatrixView<const float> after;
  if (last_at == before) {
    NIBBLE_TRY(after_last, session.append({&last, 1}));
    after = after_last;
  }
  if (!ids.empty() || after.data() == nullptr) {
    auto after_ids = session.append(ids);
    if (!after_ids) {
      NIBBLE_CHECK(session.rewind(before));
      return std::move(after_ids).error();
    }
    after = *after_ids;
  }
  logits = after;
  last_at = kNowhere;
  n_tokens = 0;
  finish = Finish::none;
  if (const auto* tokenizer = session.model().tokenizer()) {
    decoder.emplace(*tokenizer, text::DecodeOptions{.at_start = at_start});
    stop.reset(tokenizer->vocabulary().longest());
  }
  return ok();
}

NIBBLE_INLINE Result<std::optional<Token>> Generator::State::next() {
  if (finish != Finish::none) return std::optional<Token>();
  if (logits.data() == nullptr) {
    return Error{Errc::invalid_argument, "generate: next() before prompt()"};
  }
  if (cancel != nullptr && cancel->load(std::memory_order_relaxed)) {
    finish = Finish::cancelled;
    return std::optional<Token>();
  }
  if (last_at != kNowhere) {  // appended only now, when another token is wanted
    NIBBLE_TRY(after_last, session.append({&last, 1}));
    logits = after_last;
  }
  const Sampled sampled =
      sampler.sample({logits.data(), static_cast<std::size_t>(logits.extent(1))}, session.tokens());
  if (is_nan(static_cast<double>(sampled.logprob))) {
    return Error{Errc::malformed, "generate: the model's logits are not numbers"};
  }
  Token token{sampled.id, sampled.logprob, {}, Finish::none};
  last = sampled.id;
  last_at = session.position();
  ++n_tokens;
  stop.next();
  const auto* const tokenizer = session.model().tokenizer();
  if (tokenizer != nullptr && tokenizer->vocabulary().ends_generation(sampled.id)) {
    finish = Finish::end_of_text;
  } else {
    if (decoder) stop.push(decoder->push(sampled.id));
    if (stop.found())
      finish = Finish::stop_string;
    else if (n_tokens == max_tokens)
      finish = Finish::max_tokens;
    else if (session.position() == session.capacity())
      finish = Finish::context_full;
  }
  if (finish != Finish::none && !stop.found()) {  // what was held back is shown now
    if (decoder) stop.push(decoder->flush());
    stop.flush();
  }
  token.finish = finish;
  token.text = stop.text();
  return std::optional<Token>(token);
}

NIBBLE_INLINE Result<Generated> generate(Session& session, std::string_view prompt,
                                         const GenerateOptions& options,
                                         FunctionRef<bool(const Token&)> on_token) {
  NIBBLE_TRY(generator, Generator::create(session, options));
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

}}  // namespace nibble::NIBBLE_ABI
