// SPDX-License-Identifier: Apache-2.0
//
// A generator's functions. Included by generator.hpp.
#pragma once

#include <algorithm>
#include <new>
#include <string>
#include <utility>

#include "nibble/core/native_thread.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/generate/generator.hpp"
#include "nibble/generate/logprob.hpp"
#include "nibble/generate/sampler.hpp"
#include "nibble/generate/stop_matcher.hpp"
#include "nibble/text/stream_decoder.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct Generator::State {
  State(Session s, const GenerateOptions& o, Sampler a)
      : session(std::move(s)),
        sampler(std::move(a)),
        options(o),
        stop(o.stop),
        stop_tokens(stop_tokens_of(o)),
        while_rolling([this](std::size_t, std::size_t) {
          interruption = interrupted(options, start);
          return interruption == Finish::none;
        }) {}

  struct StopToken {
    std::int32_t id;
    Finish finish;
  };

  static Result<void> validate(const GenerateOptions& options, const Model& model);
  std::vector<StopToken> stop_tokens_of(const GenerateOptions& o) const;
  const GenerateOptions& options_of_prompt() const noexcept { return next ? *next : options; }
  const text::Tokenizer* tokenizer() const noexcept { return session.model().tokenizer(); }
  // Whether a token is shown as text.
  bool has_text(std::span<const std::int32_t> ids) const noexcept;
  // Another number after each change of the sequence, by whomever.
  std::uint64_t version() noexcept { return session.sequence().state_->version; }
  // Why nothing may be computed any more; none: nothing speaks against it.
  static Finish interrupted(const GenerateOptions& o, std::int64_t start) noexcept;
  Finish finish_after(std::int32_t id) const noexcept;

  Result<void> prompt(std::string_view text);
  Result<void> prompt(std::span<const std::int32_t> ids, bool at_start);
  Result<std::optional<Token>> next_token();
  std::optional<Token> end(Finish why);
  bool is_full() const noexcept { return session.position() == session.capacity(); }
  bool is_at_end() const noexcept {
    return is_full() && (options.when_full == WhenFull::stop || session.capacity() < 2);
  }
  // Forgets tokens in the middle of a context that is full.
  Result<void> roll();
  // Those after the last token; none if generation was interrupted while they were computed.
  Result<std::optional<MatrixView<const float>>> logits();
  void show_held();

  Session session;  // a second owner of what the caller's session owns
  Sampler sampler;
  GenerateOptions options;
  std::optional<GenerateOptions> next;  // for the next prompt
  StopMatcher stop;
  std::vector<StopToken> stop_tokens;
  std::optional<text::StreamDecoder> decoder;
  Progress while_rolling;              // made once, so that nothing allocates later
  Finish interruption = Finish::none;  // that it has seen
  bool is_prompted = false;
  std::uint64_t known_version = 0;  // of the sequence, after our own last change
  std::int64_t start = 0;           // of the prompt, in nanoseconds
  Index n_tokens = 0;
  Finish finish = Finish::none;
};

NIBBLE_INLINE Generator::Generator(Owned<State> state) noexcept : state_(std::move(state)) {}

NIBBLE_INLINE Result<Generator> Generator::create(Session& session,
                                                  const GenerateOptions& options) {
  return catch_out_of_memory([&]() -> Result<Generator> {
    NIBBLE_CHECK(State::validate(options, session.model()));
    NIBBLE_TRY(sampler, Sampler::create(options.sampling, session.model().config().vocab_size));
    Owned<State> state(new (std::nothrow)
                           State(Session(session.state_), options, std::move(sampler)));
    if (!state) return Error{Errc::out_of_memory, "generate"};
    return Generator(std::move(state));
  });
}

NIBBLE_INLINE Result<void> Generator::set_options(const GenerateOptions& options) {
  return catch_out_of_memory([&]() -> Result<void> {
    NIBBLE_CHECK(State::validate(options, state_->session.model()));
    GenerateOptions copy = options;
    state_->next = std::move(copy);
    return ok();
  });
}

NIBBLE_INLINE Result<void> Generator::prompt(std::string_view text) {
  return catch_out_of_memory([&] { return state_->prompt(text); });
}

NIBBLE_INLINE Result<void> Generator::prompt(std::span<const std::int32_t> ids, bool at_start) {
  return catch_out_of_memory([&] { return state_->prompt(ids, at_start); });
}

NIBBLE_INLINE Result<std::optional<Token>> Generator::next() {
  return catch_out_of_memory([&] { return state_->next_token(); });
}

NIBBLE_INLINE Finish Generator::finish() const noexcept { return state_->finish; }

NIBBLE_INLINE Index Generator::n_tokens() const noexcept { return state_->n_tokens; }

NIBBLE_INLINE Result<void> Generator::State::validate(const GenerateOptions& options,
                                                      const Model& model) {
  const auto bad = [](const std::string& what) {
    return Error{Errc::invalid_argument, "generate: " + what};
  };
  const Index vocab_size = model.config().vocab_size;
  NIBBLE_CHECK(Sampler::validate(options.sampling, vocab_size));
  if (options.max_tokens < 1) return bad("max_tokens must be at least 1");
  if (options.n_kept_first < 0) return bad("n_kept_first must be at least 0");
  if (options.time_limit_ms < 0) return bad("time_limit_ms must be at least 0");
  if (!options.stop.empty() && model.tokenizer() == nullptr) {
    return bad("stop strings, but the model has no tokenizer; use stop_tokens");
  }
  for (const std::string& stop : options.stop) {
    if (stop.empty()) return bad("an empty stop string");
  }
  for (const std::int32_t id : options.stop_tokens) {
    if (id >= 0 && id < vocab_size) continue;
    return bad("stop token " + to_text(id) + " is not in [0, " + to_text(vocab_size) + ")");
  }
  return ok();
}

NIBBLE_INLINE std::vector<Generator::State::StopToken> Generator::State::stop_tokens_of(
    const GenerateOptions& o) const {
  std::vector<StopToken> tokens;
  for (const std::int32_t id : o.stop_tokens) tokens.push_back({id, Finish::stop_token});
  if (tokenizer() == nullptr) return tokens;
  const text::Vocabulary& vocabulary = tokenizer()->vocabulary();
  for (const std::string& name : o.stop) {
    const std::int32_t id = vocabulary.find(name);
    if (id == text::kNoToken || has_text({&id, 1})) continue;
    tokens.push_back({id, Finish::stop_string});
  }
  return tokens;
}

NIBBLE_INLINE bool Generator::State::has_text(std::span<const std::int32_t> ids) const noexcept {
  const text::Vocabulary& vocabulary = tokenizer()->vocabulary();
  for (const std::int32_t id : ids) {
    if (!vocabulary.contains(id)) continue;
    const text::PieceType type = vocabulary.type(id);
    if (type != text::PieceType::control && type != text::PieceType::unknown) return true;
  }
  return false;
}

NIBBLE_INLINE Finish Generator::State::interrupted(const GenerateOptions& o,
                                                   std::int64_t start) noexcept {
  if (o.cancel != nullptr && o.cancel->load(std::memory_order_relaxed)) return Finish::cancelled;
  if (o.time_limit_ms == 0) return Finish::none;
  const std::int64_t passed_ms = (monotonic_nanoseconds() - start) / 1'000'000;
  return passed_ms >= o.time_limit_ms ? Finish::time_limit : Finish::none;
}

NIBBLE_INLINE Result<void> Generator::State::prompt(std::string_view text) {
  if (tokenizer() == nullptr) {
    const Error& why = *session.model().tokenizer_error();
    return Error{why.code, "generate: there is no tokenizer for the text: " + why.message};
  }
  const GenerateOptions& o = options_of_prompt();
  const text::VocabularySettings& settings = tokenizer()->vocabulary().settings();
  text::EncodeOptions encode;
  const bool adds_bos = o.add_bos.value_or(settings.add_bos && session.position() == 0);
  encode.add_bos = adds_bos;
  encode.add_eos = false;
  encode.parse_special = o.parse_special;
  NIBBLE_TRY(all, tokenizer()->encode(text, encode));
  std::span<const std::int32_t> ids = all;
  const bool begins_itself = ids.size() > 1 && ids[0] == settings.bos && ids[1] == settings.bos;
  if (begins_itself && adds_bos && !o.add_bos) ids = ids.subspan(1);
  return prompt(ids, !has_text(session.tokens()) && !has_text(ids));
}

NIBBLE_INLINE Result<void> Generator::State::prompt(std::span<const std::int32_t> ids,
                                                    bool at_start) {
  if (ids.empty() && session.position() == 0) {
    return Error{Errc::invalid_argument,
                 "generate: the prompt is empty, and so is the session: there is nothing to go on "
                 "from (a text can begin with the begin token: GenerateOptions::add_bos)"};
  }
  const GenerateOptions& o = options_of_prompt();
  const std::int64_t now = monotonic_nanoseconds();
  const bool was_current = known_version == version();
  // What allocates comes first, so that errors change nothing.
  std::optional<Sampler> new_sampler;
  if (next) {
    new_sampler.emplace(sampler);
    NIBBLE_CHECK(new_sampler->set_options(next->sampling));
  }
  StopMatcher new_stop = next ? StopMatcher(next->stop) : stop;
  std::vector<StopToken> new_stop_tokens = stop_tokens_of(o);
  std::optional<text::StreamDecoder> new_decoder;
  if (tokenizer() != nullptr) {
    new_decoder.emplace(*tokenizer(), text::DecodeOptions{.at_start = at_start});
    new_stop.reset(tokenizer()->vocabulary().longest());
  }
  Finish stopped = Finish::none;
  if (!ids.empty()) {
    const auto go_on = [&](std::size_t done, std::size_t total) {
      stopped = interrupted(o, now);
      if (stopped == Finish::none && o.progress != nullptr && *o.progress &&
          !(*o.progress)(done, total)) {
        stopped = Finish::cancelled;
      }
      return stopped == Finish::none;
    };
    const Progress progress(go_on);
    const auto logits = session.append(ids, 1, &progress);
    if (!logits && stopped == Finish::none) {
      if (was_current) known_version = version();  // the session is as it was
      return logits.error();
    }
  }
  if (next) {
    sampler = *std::move(new_sampler);
    options = *std::move(next);
    next.reset();
  }
  stop = std::move(new_stop);
  stop_tokens = std::move(new_stop_tokens);
  decoder = std::move(new_decoder);
  is_prompted = true;
  known_version = version();
  start = now;
  n_tokens = 0;
  finish = stopped;
  return ok();
}

NIBBLE_INLINE Result<std::optional<Token>> Generator::State::next_token() {
  if (finish != Finish::none) return std::optional<Token>();
  if (!is_prompted) return Error{Errc::invalid_argument, "generate: next() before prompt()"};
  if (known_version != version()) {
    return Error{Errc::invalid_argument,
                 "generate: next() after the session's sequence was changed by something else "
                 "(rewind, append, another generator); call prompt() first, prompt(\"\") to go on"};
  }
  stop.next();
  if (const Finish why = interrupted(options, start); why != Finish::none) return end(why);
  if (is_at_end()) return end(Finish::context_full);
  if (is_full()) NIBBLE_CHECK(roll());
  NIBBLE_TRY(computed, logits());
  if (!computed) return end(interruption);
  const Sampled sampled = sampler.sample(
      {computed->data(), static_cast<std::size_t>(computed->extent(1))}, session.tokens());
  if (is_nan(static_cast<double>(sampled.logprob))) {
    return detail::not_numbers("generate");
  }
  NIBBLE_CHECK(session.sequence().push(sampled.id));
  known_version = version();
  ++n_tokens;
  finish = finish_after(sampled.id);
  if (finish == Finish::none) {
    if (decoder) stop.push(decoder->push(sampled.id));
    if (stop.found())
      finish = Finish::stop_string;
    else if (n_tokens == options.max_tokens)
      finish = Finish::max_tokens;
    else if (is_at_end())
      finish = Finish::context_full;
  }
  if (finish != Finish::none && !stop.found()) show_held();
  return std::optional<Token>(Token{sampled.id, sampled.logprob, stop.text(), finish});
}

NIBBLE_INLINE Result<void> Generator::State::roll() {
  const Index capacity = session.capacity();
  const Index n_first = (std::min)(options.n_kept_first, (capacity - 1) / 2);
  NIBBLE_CHECK(session.roll(n_first, (capacity - n_first) / 2));
  known_version = version();
  return ok();
}

NIBBLE_INLINE Result<std::optional<MatrixView<const float>>> Generator::State::logits() {
  using Logits = std::optional<MatrixView<const float>>;
  const bool has_rolled = session.sequence().n_pending() > 1;
  auto computed = has_rolled ? session.append({}, 1, &while_rolling) : session.logits();
  if (computed) return Logits(*computed);
  if (computed.error().code == Errc::cancelled) return Logits();
  return std::move(computed).error();
}

// Why a token itself is the last, if it is.
NIBBLE_INLINE Finish Generator::State::finish_after(std::int32_t id) const noexcept {
  if (tokenizer() != nullptr && tokenizer()->vocabulary().ends_generation(id)) {
    return Finish::end_of_text;
  }
  for (const StopToken& token : stop_tokens) {
    if (token.id == id) return token.finish;
  }
  return Finish::none;
}

NIBBLE_INLINE void Generator::State::show_held() {
  if (decoder) stop.push(decoder->flush());
  stop.flush();
}

// Ends generation without another token.
NIBBLE_INLINE std::optional<Token> Generator::State::end(Finish why) {
  finish = why;
  show_held();
  if (stop.text().empty()) return std::nullopt;
  return Token{text::kNoToken, 0, stop.text(), finish};
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
