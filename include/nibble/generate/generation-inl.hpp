// SPDX-License-Identifier: Apache-2.0
//
// What generating one text is, apart from running the model: from logits to a token, its text, and
// the end. Generator and Scheduler have it in common. Included by generator-inl.hpp.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/native_thread.hpp"
#include "nibble/generate/generator.hpp"
#include "nibble/generate/grammar_guide.hpp"
#include "nibble/generate/logprob.hpp"
#include "nibble/generate/sampler.hpp"
#include "nibble/generate/stop_matcher.hpp"
#include "nibble/text/stream_decoder.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace detail {

// The text of tokens that come one by one, up to the first stop string. Allocates when it is made.
class GeneratedText {
 public:
  // tokenizer: may be null, there is no text then. at_start: the tokens are the beginning of a
  // text.
  GeneratedText(const text::Tokenizer* tokenizer, const std::vector<std::string>& stops,
                bool at_start)
      : stop_(stops) {
    if (tokenizer == nullptr) return;
    decoder_.emplace(*tokenizer, text::DecodeOptions{.at_start = at_start});
    stop_.reset(tokenizer->vocabulary().longest());
  }

  // What text() shows has been taken.
  void next() { stop_.next(); }
  void push(std::int32_t id) {
    if (decoder_) stop_.push(decoder_->push(id));
  }
  // No more tokens come: what was held back is ordinary text, unless it follows a stop string.
  void flush() {
    if (stop_.found()) return;
    if (decoder_) stop_.push(decoder_->flush());
    stop_.flush();
  }
  std::string_view text() const noexcept { return stop_.text(); }
  bool found() const noexcept { return stop_.found(); }

 private:
  StopMatcher stop_;
  std::optional<text::StreamDecoder> decoder_;
};

// Whether a token is shown as text.
inline bool has_text(const text::Tokenizer& tokenizer, std::span<const std::int32_t> ids) noexcept {
  const text::Vocabulary& vocabulary = tokenizer.vocabulary();
  for (const std::int32_t id : ids) {
    if (!vocabulary.contains(id)) continue;
    const text::PieceType type = vocabulary.type(id);
    if (type != text::PieceType::control && type != text::PieceType::unknown) return true;
  }
  return false;
}

// The tokens of a prompt. is_first: nothing comes before it. Errors: as Generator::prompt().
inline Result<std::vector<std::int32_t>> encode_prompt(const Model& model, std::string_view text,
                                                       const GenerateOptions& options,
                                                       bool is_first) {
  const text::Tokenizer* const tokenizer = model.tokenizer();
  if (tokenizer == nullptr) {
    const Error& why = *model.tokenizer_error();
    return Error{why.code, "generate: there is no tokenizer for the text: " + why.message};
  }
  const text::VocabularySettings& settings = tokenizer->vocabulary().settings();
  text::EncodeOptions encode;
  encode.add_bos = options.add_bos.value_or(settings.add_bos && is_first);
  encode.add_eos = false;
  encode.parse_special = options.parse_special;
  NIBBLE_TRY(ids, tokenizer->encode(text, encode));
  const bool begins_itself = ids.size() > 1 && ids[0] == settings.bos && ids[1] == settings.bos;
  if (begins_itself && encode.add_bos && !options.add_bos) ids.erase(ids.begin());
  return ids;
}

// One text after another, with the same options or others. Nothing allocates but what says so.
class Generation {
 public:
  struct StopToken {
    std::int32_t id;
    Finish finish;
  };
  // What is new with each text.
  struct Text {
    GeneratedText shown;
    std::vector<StopToken> stop_tokens;
    std::optional<GrammarGuide> guide = {};
  };

  // Errors: as Generator::create().
  static Result<void> validate(const GenerateOptions& options, const Model& model);
  // `options` were validated. Allocates.
  static Result<Generation> create(const GenerateOptions& options, const Model& model) {
    NIBBLE_TRY(sampler, Sampler::create(options.sampling, model.config().vocab_size));
    return Generation(std::move(sampler), options, model.tokenizer());
  }
  // Allocates what the next text takes, with these options. goes_on: in the grammar, if it is the
  // same. Errors: those of grammar::Matcher::create().
  Result<Text> new_text(const GenerateOptions& options, bool at_start, bool goes_on = false) const {
    Text text{GeneratedText(tokenizer_, options.stop, at_start), stop_tokens_of(options)};
    if (options.grammar == nullptr) return text;
    const bool forks = goes_on && text_.guide && options.grammar == options_.grammar;
    NIBBLE_TRY(guide, forks ? text_.guide->fork()
                            : GrammarGuide::create(*options.grammar, sampler_.vocab_size()));
    text.guide.emplace(std::move(guide));
    return text;
  }
  // The sampler that goes on from this one with other options. Allocates. Errors: as Sampler's.
  Result<Sampler> changed_sampler(const SamplingOptions& sampling) const {
    Sampler changed = sampler_;
    NIBBLE_CHECK(changed.set_options(sampling));
    return changed;
  }
  void change(GenerateOptions options, Sampler sampler) {
    options_ = std::move(options);
    sampler_ = std::move(sampler);
  }

  // Begins a text. start: when it was asked for, in nanoseconds, for the time limit. finish: none,
  // or why it has ended already.
  void begin(Text text, std::int64_t start, Finish finish = Finish::none) {
    text_ = std::move(text);
    start_ = start;
    n_tokens_ = 0;
    finish_ = finish;
    const bool is_over = text_.guide && text_.guide->is_finished();
    if (finish == Finish::none && is_over) finish_ = Finish::grammar_end;
  }

  const GenerateOptions& options() const noexcept { return options_; }
  Finish finish() const noexcept { return finish_; }
  Index n_tokens() const noexcept { return n_tokens_; }
  // Whether the last token is a part of the text.
  bool is_shown() const noexcept { return is_shown_; }

  // Why nothing may be computed any more; none: nothing speaks against it.
  static Finish interrupted(const GenerateOptions& options, std::int64_t start) noexcept;
  Finish interrupted() const noexcept { return interrupted(options_, start_); }
  // The same before a step of the prompt, which the options may follow.
  static Finish interrupted(const GenerateOptions& options, std::int64_t start, std::size_t done,
                            std::size_t total);

  // Chooses the next token; `so_far` are those of the sequence. Errors: those of Sampler::sample()
  // and of GrammarGuide.
  Result<TokenLogprob> sample(MatrixView<const float> logits,
                              std::span<const std::int32_t> so_far) {
    const std::span<const float> row(logits.data(), static_cast<std::size_t>(logits.extent(1)));
    return catch_out_of_memory(
        [&] { return text_.guide ? sample_allowed(row, so_far) : sampler_.sample(row, so_far); });
  }
  // The next token if the grammar leaves no choice; else kNoToken. Its logprob is 0. Errors: those
  // of GrammarGuide::forced().
  Result<std::int32_t> forced() {
    if (!text_.guide) return text::kNoToken;
    return text_.guide->forced(*tokenizer_);
  }
  // How many of these tokens, of which each follows the one before, the grammar lets be chosen one
  // after the other.
  Index n_allowed(std::span<const std::int32_t> guesses) {
    if (!text_.guide) return static_cast<Index>(guesses.size());
    return text_.guide->n_allowed(guesses);
  }
  // Takes that token, and says what it shows and whether it is the last. is_full: no further token
  // fits into the sequence.
  Token take(const TokenLogprob& sampled, bool is_full);
  // Ends without a token: only what was held back is shown.
  Token end(Finish why);

 private:
  Generation(Sampler sampler, const GenerateOptions& options, const text::Tokenizer* tokenizer)
      : sampler_(std::move(sampler)),
        options_(options),
        tokenizer_(tokenizer),
        text_{GeneratedText(tokenizer_, options.stop, false), {}} {}

  Result<TokenLogprob> sample_allowed(std::span<const float> logits,
                                      std::span<const std::int32_t> so_far);
  std::vector<StopToken> stop_tokens_of(const GenerateOptions& options) const;
  // Why a token itself is the last, if it is.
  Finish finish_after(std::int32_t id) const noexcept;

  Sampler sampler_;
  GenerateOptions options_;
  const text::Tokenizer* tokenizer_;  // of the model; null: none
  Text text_;
  std::int64_t start_ = 0;
  Index n_tokens_ = 0;
  Finish finish_ = Finish::none;
  bool is_shown_ = false;
};

NIBBLE_INLINE Result<void> Generation::validate(const GenerateOptions& options,
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
  if (options.grammar == nullptr) return ok();
  const std::size_t n = options.grammar->trie().n_tokens();
  if (model.tokenizer() != nullptr && model.tokenizer()->vocabulary().size() == n) return ok();
  return bad("the grammar is for a vocabulary of " + to_text(n) +
             " tokens, not for that of the model's tokenizer");
}

// The logprob is the model's own, whatever the grammar allows.
NIBBLE_INLINE Result<TokenLogprob> Generation::sample_allowed(
    std::span<const float> logits, std::span<const std::int32_t> so_far) {
  NIBBLE_TRY(allowed, text_.guide->allow(logits));
  auto chosen = sampler_.sample(allowed, so_far);
  if (!chosen && chosen.error().code == Errc::invalid_argument) {
    return Error{Errc::invalid_argument,
                 "no token is left that the grammar allows (see logit_bias)"};
  }
  if (!chosen) return std::move(chosen).error();
  TokenLogprob sampled = *chosen;
  sampled.allowed_logprob = chosen->logprob;
  sampled.logprob = static_cast<float>(
      logprob_of(sampled.id, VectorView<const float>(logits.data(), logits.size())));
  NIBBLE_CHECK(text_.guide->accept(sampled.id));
  return sampled;
}

NIBBLE_INLINE std::vector<Generation::StopToken> Generation::stop_tokens_of(
    const GenerateOptions& options) const {
  std::vector<StopToken> tokens;
  for (const std::int32_t id : options.stop_tokens) tokens.push_back({id, Finish::stop_token});
  if (tokenizer_ == nullptr) return tokens;
  for (const std::string& name : options.stop) {
    const std::int32_t id = tokenizer_->vocabulary().find(name);
    if (id == text::kNoToken || has_text(*tokenizer_, {&id, 1})) continue;
    tokens.push_back({id, Finish::stop_string});
  }
  return tokens;
}

NIBBLE_INLINE Finish Generation::interrupted(const GenerateOptions& options,
                                             std::int64_t start) noexcept {
  if (options.cancel != nullptr && options.cancel->load(std::memory_order_relaxed)) {
    return Finish::cancelled;
  }
  if (options.time_limit_ms == 0) return Finish::none;
  const std::int64_t passed_ms = (monotonic_nanoseconds() - start) / 1'000'000;
  return passed_ms >= options.time_limit_ms ? Finish::time_limit : Finish::none;
}

NIBBLE_INLINE Finish Generation::interrupted(const GenerateOptions& options, std::int64_t start,
                                             std::size_t done, std::size_t total) {
  const Finish why = interrupted(options, start);
  if (why != Finish::none || options.progress == nullptr || !*options.progress) return why;
  return (*options.progress)(done, total) ? Finish::none : Finish::cancelled;
}

NIBBLE_INLINE Finish Generation::finish_after(std::int32_t id) const noexcept {
  if (tokenizer_ != nullptr && tokenizer_->vocabulary().ends_generation(id)) {
    return Finish::end_of_text;
  }
  for (const StopToken& token : text_.stop_tokens) {
    if (token.id == id) return token.finish;
  }
  return Finish::none;
}

NIBBLE_INLINE Token Generation::take(const TokenLogprob& sampled, bool is_full) {
  GeneratedText& shown = text_.shown;
  shown.next();
  ++n_tokens_;
  finish_ = finish_after(sampled.id);
  is_shown_ = finish_ == Finish::none;
  if (is_shown_) {
    shown.push(sampled.id);
    if (shown.found())
      finish_ = Finish::stop_string;
    else if (text_.guide && text_.guide->is_finished())
      finish_ = Finish::grammar_end;
    else if (n_tokens_ == options_.max_tokens)
      finish_ = Finish::max_tokens;
    else if (is_full)
      finish_ = Finish::context_full;
  }
  if (finish_ != Finish::none) shown.flush();
  const float allowed = text_.guide ? sampled.allowed_logprob : sampled.logprob;
  return {sampled.id, sampled.logprob, shown.text(), finish_, sampler_.top_logprobs(), allowed};
}

NIBBLE_INLINE Token Generation::end(Finish why) {
  finish_ = why;
  is_shown_ = false;
  text_.shown.next();
  text_.shown.flush();
  return {text::kNoToken, 0, text_.shown.text(), why, {}};
}

}}}  // namespace nibble::NIBBLE_ABI::detail
