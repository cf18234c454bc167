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
#include "nibble/generate/generation-inl.hpp"
#include "nibble/generate/generator.hpp"
#include "nibble/generate/speculator.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct Generator::State {
  State(Session s, detail::Generation g)
      : session(std::move(s)),
        generation(std::move(g)),
        while_rolling([this](std::size_t, std::size_t) {
          interruption = generation.interrupted();
          return interruption == Finish::none;
        }) {}

  // For these options; none if they want none.
  static Result<std::optional<detail::Speculator>> speculator_for(const GenerateOptions& options,
                                                                  const Session& session);
  static Result<void> validate(const GenerateOptions& options, const Session& session);
  const GenerateOptions& options_of_prompt() const noexcept {
    return next ? *next : generation.options();
  }
  // Another number after each change of the sequence, by whomever.
  std::uint64_t version() noexcept { return session.sequence().state_->version; }

  Result<void> prompt(std::string_view text);
  Result<void> prompt(std::span<const std::int32_t> ids, bool at_start);
  Result<std::optional<Token>> next_token();
  // Ends generation without another token.
  std::optional<Token> end(Finish why);
  // But for the prefix of an adapter.
  bool is_empty() noexcept {
    return session.position() == session.sequence().adapter().set.n_prefix();
  }
  bool is_full() const noexcept { return session.position() == session.capacity(); }
  bool is_at_end() const noexcept {
    const bool stops = generation.options().when_full == WhenFull::stop || session.capacity() < 2;
    return is_full() && stops;
  }
  // Forgets tokens in the middle of a context that is full.
  Result<void> roll();
  // Those after the last token; none if generation was interrupted while they were computed.
  Result<std::optional<MatrixView<const float>>> logits();
  // The same of a step that may look ahead.
  Result<MatrixView<const float>> speculate();

  Session session;  // a second owner of what the caller's session owns
  detail::Generation generation;
  std::optional<GenerateOptions> next;  // for the next prompt
  std::optional<detail::Speculator> speculator;
  detail::StepTimes step_times;        // with a speculator
  Progress while_rolling;              // made once, so that nothing allocates later
  Finish interruption = Finish::none;  // that it has seen
  bool is_prompted = false;
  std::uint64_t known_version = 0;  // of the sequence, after our own last change
};

NIBBLE_INLINE Generator::Generator(Owned<State> state) noexcept : state_(std::move(state)) {}

NIBBLE_INLINE Result<Generator> Generator::create(Session& session,
                                                  const GenerateOptions& options) {
  return catch_out_of_memory([&]() -> Result<Generator> {
    NIBBLE_CHECK(State::validate(options, session));
    NIBBLE_TRY(generation, detail::Generation::create(options, session.model()));
    NIBBLE_TRY(speculator, State::speculator_for(options, session));
    Owned<State> state(new (std::nothrow) State(Session(session.state_), std::move(generation)));
    if (!state) return Error{Errc::out_of_memory, "generate"};
    state->speculator = std::move(speculator);
    return Generator(std::move(state));
  });
}

NIBBLE_INLINE Result<void> Generator::set_options(const GenerateOptions& options) {
  return catch_out_of_memory([&]() -> Result<void> {
    NIBBLE_CHECK(State::validate(options, state_->session));
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

NIBBLE_INLINE Finish Generator::finish() const noexcept { return state_->generation.finish(); }

NIBBLE_INLINE Index Generator::n_tokens() const noexcept { return state_->generation.n_tokens(); }

NIBBLE_INLINE SpeculationStats Generator::speculation_stats() const noexcept {
  return state_->speculator ? state_->speculator->stats() : SpeculationStats{};
}

NIBBLE_INLINE Result<void> Generator::State::validate(const GenerateOptions& options,
                                                      const Session& session) {
  NIBBLE_CHECK(detail::Generation::validate(options, session.model()));
  const Index n = options.speculation.max_drafts;
  if (n >= 0 && n <= kMaxDrafts && n < session.max_outputs()) return ok();
  return Error{Errc::invalid_argument, "generate: speculation.max_drafts " + to_text(n) +
                                           "; at most " + to_text(kMaxDrafts) +
                                           ", and the session's max_outputs, which is " +
                                           to_text(session.max_outputs()) + ", must be one more"};
}

NIBBLE_INLINE Result<std::optional<detail::Speculator>> Generator::State::speculator_for(
    const GenerateOptions& options, const Session& session) {
  std::optional<detail::Speculator> made;
  if (options.speculation.max_drafts == 0) return made;
  NIBBLE_TRY(speculator,
             detail::Speculator::create(options.speculation, session.model().config().vocab_size));
  made.emplace(std::move(speculator));
  return made;
}

NIBBLE_INLINE Result<void> Generator::State::prompt(std::string_view text) {
  NIBBLE_TRY(ids, detail::encode_prompt(session.model(), text, options_of_prompt(), is_empty()));
  const text::Tokenizer& tokenizer = *session.model().tokenizer();
  const auto has_text = [&](std::span<const std::int32_t> tokens) {
    return detail::has_text(tokenizer, tokens);
  };
  return prompt(ids, !has_text(session.tokens()) && !has_text(ids));
}

NIBBLE_INLINE Result<void> Generator::State::prompt(std::span<const std::int32_t> ids,
                                                    bool at_start) {
  if (ids.empty() && is_empty()) {
    return Error{Errc::invalid_argument,
                 "generate: the prompt is empty, and so is the session: there is nothing to go on "
                 "from (a text can begin with the begin token: GenerateOptions::add_bos)"};
  }
  const GenerateOptions& o = options_of_prompt();
  const std::int64_t now = monotonic_nanoseconds();
  const bool was_current = known_version == version();
  const Index n_known = was_current ? session.position() : 0;
  // What allocates comes first, so that errors change nothing.
  std::optional<Sampler> sampler;
  std::optional<detail::Speculator> other_speculator;
  const bool has_other = next && next->speculation != generation.options().speculation;
  if (next) {
    NIBBLE_TRY(changed, generation.changed_sampler(next->sampling));
    sampler.emplace(std::move(changed));
  }
  if (has_other) {
    NIBBLE_TRY(made, speculator_for(*next, session));
    other_speculator = std::move(made);
  }
  NIBBLE_TRY(text, generation.new_text(o, at_start, ids.empty()));
  Finish stopped = Finish::none;
  if (!ids.empty()) {
    const auto go_on = [&](std::size_t done, std::size_t total) {
      stopped = detail::Generation::interrupted(o, now, done, total);
      return stopped == Finish::none;
    };
    const Progress progress(go_on);
    const auto logits = session.append(ids, 1, &progress);
    if (!logits && stopped == Finish::none) {
      if (was_current) known_version = version();  // the session is as it was
      return logits.error();
    }
  }
  if (has_other) speculator = std::move(other_speculator);
  if (speculator) speculator->restart(session.tokens(), has_other ? 0 : n_known);
  if (next) {
    generation.change(*std::move(next), *std::move(sampler));
    next.reset();
  }
  generation.begin(std::move(text), now, stopped);
  is_prompted = true;
  known_version = version();
  return ok();
}

NIBBLE_INLINE Result<std::optional<Token>> Generator::State::next_token() {
  if (generation.finish() != Finish::none) return std::optional<Token>();
  if (!is_prompted) return Error{Errc::invalid_argument, "generate: next() before prompt()"};
  if (known_version != version()) {
    return Error{Errc::invalid_argument,
                 "generate: next() after the session's sequence was changed by something else "
                 "(rewind, append, another generator); call prompt() first, prompt(\"\") to go on"};
  }
  if (const Finish why = generation.interrupted(); why != Finish::none) return end(why);
  if (is_at_end()) return end(Finish::context_full);
  if (is_full()) NIBBLE_CHECK(roll());
  NIBBLE_TRY(forced, generation.forced());
  TokenLogprob next_one{forced, 0};
  if (forced == text::kNoToken) {
    NIBBLE_TRY(computed, logits());
    if (!computed) return end(interruption);
    auto sampled = generation.sample(*computed, session.tokens());
    if (!sampled) return std::move(sampled).error().in("generate");
    next_one = *sampled;
  }
  NIBBLE_CHECK(session.state_->accept(next_one.id));
  known_version = version();
  if (speculator) speculator->take(session.tokens());
  return std::optional<Token>(generation.take(next_one, is_at_end()));
}

NIBBLE_INLINE Result<void> Generator::State::roll() {
  const Index capacity = session.capacity();
  const Index n_first = (std::min)(generation.options().n_kept_first, (capacity - 1) / 2);
  NIBBLE_CHECK(session.roll(n_first, (capacity - n_first) / 2));
  known_version = version();
  if (speculator) speculator->restart(session.tokens(), n_first);
  return ok();
}

NIBBLE_INLINE Result<std::optional<MatrixView<const float>>> Generator::State::logits() {
  using Logits = std::optional<MatrixView<const float>>;
  const Sequence::State& s = *session.sequence().state_;
  const bool is_ahead = session.state_->take_ahead();
  const bool has_rolled = s.n_pending() > s.n_again() + 1;
  const bool looks_ahead = speculator && !is_ahead && !has_rolled && s.n_pending() > 0;
  auto computed = looks_ahead  ? speculate()
                  : has_rolled ? session.append({}, 1, &while_rolling)
                               : session.logits();
  if (computed) return Logits(*computed);
  if (computed.error().code == Errc::cancelled) return Logits();
  return std::move(computed).error();
}

NIBBLE_INLINE Result<MatrixView<const float>> Generator::State::speculate() {
  const Index n_left = generation.options().max_tokens - generation.n_tokens();
  const Index n_pending = session.sequence().n_pending();
  const Index most = (std::min)(session.state_->most_ahead(), n_left - 1);
  const auto guesses = speculator->guess(session.tokens(), most, {.n_rows = n_pending}, step_times,
                                         [&](auto tokens) { return generation.n_allowed(tokens); });
  const std::int64_t start = monotonic_nanoseconds();
  auto looked = session.state_->look_ahead(guesses);
  const bool is_alone = !looked && !guesses.empty();  // what fails may be the guesses
  if (is_alone) looked = session.state_->look_ahead({});
  if (!looked) return std::move(looked).error();
  const Index n_guesses = is_alone ? Index{0} : static_cast<Index>(guesses.size());
  step_times.add(n_pending + n_guesses, static_cast<double>(monotonic_nanoseconds() - start));
  speculator->ran(n_guesses, step_times.of(n_pending + n_guesses));
  return session.state_->last_logits;
}

NIBBLE_INLINE std::optional<Token> Generator::State::end(Finish why) {
  const Token token = generation.end(why);
  return token.text.empty() ? std::optional<Token>() : token;
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
