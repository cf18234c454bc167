// SPDX-License-Identifier: Apache-2.0
//
// How likely a model finds a given continuation: for multiple-choice questions, for ranking
// answers, for measuring.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/generate/logprob.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/ops/softmax.hpp"
#include "nibble/text/tokenizer.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct ScoredToken {
  std::int32_t id = 0;
  double logprob = 0;    // natural logarithm of its probability after all tokens before it
  bool is_best = false;  // the most likely token there (of several, the one with the lowest id)
};

// With a prompt p and a continuation c of n tokens:
//   logprob = log P(c | p) = sum over i of log P(c_i | p, c_1 ... c_(i-1)),
//   log P(t | ...) = logit_t - log(sum over all tokens s of exp(logit_s)),
// with the logits that the model computes after what stands before. No sampling option has any part
// in it.
struct Score {
  double logprob = 0;
  std::vector<ScoredToken> tokens;  // of the continuation
  // Whether always taking the most likely token gives this continuation.
  bool is_greedy() const noexcept {
    for (const ScoredToken& t : tokens) {
      if (!t.is_best) return false;
    }
    return true;
  }
};

namespace detail {

inline Result<void> check_scored(std::span<const std::int32_t> tokens, const Model& model) {
  if (tokens.empty()) return Error{Errc::invalid_argument, "score: an empty continuation"};
  const Index vocab_size = model.config().vocab_size;
  for (const std::int32_t id : tokens) {
    if (id >= 0 && id < vocab_size) continue;
    return Error{Errc::invalid_argument,
                 "score: token " + to_text(id) + " is not in [0, " + to_text(vocab_size) + ")"};
  }
  return ok();
}

NIBBLE_LAZY Result<void> add_token(Score& score, std::int32_t id, VectorView<const float> logits) {
  score.tokens.push_back({id, logprob_of(id, logits), ops::argmax(logits) == id});
  score.logprob += score.tokens.back().logprob;
  if (is_nan(score.logprob)) return not_numbers("score");
  return ok();
}

NIBBLE_LAZY Result<Score> score_here(Session& session, std::span<const std::int32_t> prompt,
                                     std::span<const std::int32_t> continuation) {
  Score score;
  NIBBLE_TRY(after_prompt, prompt.empty() ? session.logits() : session.append(prompt));
  NIBBLE_CHECK(add_token(score, continuation[0], after_prompt[0]));
  // The last token predicts nothing here.
  for (std::size_t done = 1; done < continuation.size();) {
    const std::size_t n =
        (std::min)(static_cast<std::size_t>(session.max_outputs()), continuation.size() - done);
    NIBBLE_TRY(logits, session.append(continuation.subspan(done - 1, n), static_cast<Index>(n)));
    for (std::size_t i = 0; i < n; ++i) {
      NIBBLE_CHECK(add_token(score, continuation[done + i], logits[static_cast<Index>(i)]));
    }
    done += n;
  }
  return score;
}

}  // namespace detail

// The score of token ids after what the session has and `prompt`; one of both may be empty. The
// session is then as it was. With a larger max_outputs it is faster. Errors: invalid_argument (an
// empty continuation, nothing before it, ids out of range), malformed (the logits are not numbers),
// out_of_memory, those of Session::append and Session::rewind: where rewind() is unsupported, the
// session keeps the tokens.
NIBBLE_LAZY Result<Score> score(Session& session, std::span<const std::int32_t> prompt,
                                std::span<const std::int32_t> continuation) {
  NIBBLE_CHECK(detail::check_scored(continuation, session.model()));
  const Index before = session.position();
  if (prompt.empty() && before == 0) {
    return Error{Errc::invalid_argument,
                 "score: nothing is before the continuation; begin with the model's begin token"};
  }
  auto score =
      catch_out_of_memory([&] { return detail::score_here(session, prompt, continuation); });
  NIBBLE_CHECK(session.rewind(before));
  return score;
}

// The same for texts. They are tokenized as one, and what differs from the tokens of the prompt
// alone is scored: that includes the end of the prompt if it is in one token with the beginning of
// the continuation. If the session is empty, the tokenizer's begin token comes first, if the model
// wants one. Errors: also the one for which the model has no tokenizer
// (Model::tokenizer_error), those of Tokenizer::encode.
NIBBLE_LAZY Result<Score> score(Session& session, std::string_view prompt,
                                std::string_view continuation) {
  const text::Tokenizer* const tokenizer = session.model().tokenizer();
  if (tokenizer == nullptr) {
    const Error& why = *session.model().tokenizer_error();
    return Error{why.code, "score: there is no tokenizer for the text: " + why.message};
  }
  return catch_out_of_memory([&]() -> Result<Score> {
    text::EncodeOptions options;
    if (session.position() > 0) options.add_bos = false;
    options.add_eos = false;
    NIBBLE_TRY(before, tokenizer->encode(prompt, options));
    std::string both(prompt);
    both += continuation;
    NIBBLE_TRY(ids, tokenizer->encode(both, options));
    std::size_t n = 0;
    while (n < before.size() && n < ids.size() && before[n] == ids[n]) ++n;
    const std::span<const std::int32_t> all(ids);
    return score(session, all.first(n), all.subspan(n));
  });
}

// A continuation and what is before it.
struct ScoreInput {
  std::span<const std::int32_t> prompt, continuation;
};

namespace detail {

// Scores the tokens of each continuation that `scores` has not yet, after those of `base` and of
// its prompt. Each is a fork of `base`; as many as the engine's options allow are computed
// together.
NIBBLE_LAZY Result<void> score_forks(Engine& engine, const Sequence& base,
                                     std::span<const ScoreInput> all, std::vector<Score>& scores) {
  struct Fork {
    Sequence sequence;
    std::size_t index;  // of its continuation
    Index n_pages;      // that it may still take
    std::size_t n_fed;  // of its tokens, prompt first; the last one predicts nothing here
  };
  const auto n_rows_of = [&](std::size_t i) {
    return all[i].prompt.size() + all[i].continuation.size() - 1;
  };
  const auto pages_of = [&](std::size_t i) {
    const auto n = static_cast<Index>(n_rows_of(i));
    // One more for the copy of the page that the base ends in.
    return (ops::pages_for(base.position() + n) - ops::pages_for(base.position()) + 1) *
           engine.n_page_tables();
  };
  std::vector<Fork> forks;
  std::vector<SequenceInput> inputs;
  std::vector<std::size_t> fork_of;  // each input
  for (std::size_t next = 0; next < all.size() || !forks.empty();) {
    Index n_reserved = 0;
    for (const Fork& fork : forks) n_reserved += fork.n_pages - fork.sequence.n_own_pages();
    while (next < all.size() && static_cast<Index>(forks.size()) < engine.max_sequences() &&
           (forks.empty() || n_reserved + pages_of(next) <= engine.n_free_pages())) {
      if (n_rows_of(next) > 0) {
        NIBBLE_TRY(sequence, base.fork());
        forks.push_back({std::move(sequence), next, pages_of(next), 0});
        n_reserved += pages_of(next);
      }
      ++next;
    }
    if (forks.empty()) continue;
    inputs.clear();
    fork_of.clear();
    Index rows_left = engine.max_step_tokens(), outputs_left = engine.max_outputs();
    for (std::size_t f = 0; f < forks.size(); ++f) {
      Fork& fork = forks[f];
      const ScoreInput& input = all[fork.index];
      const bool is_prompt = fork.n_fed < input.prompt.size();
      const auto part = is_prompt ? input.prompt.subspan(fork.n_fed)
                                  : input.continuation.subspan(fork.n_fed - input.prompt.size());
      // The last token of a prompt predicts; of a continuation all do but the last.
      auto n = static_cast<Index>(is_prompt ? part.size() : part.size() - 1);
      n = (std::min)(n, is_prompt ? rows_left : (std::min)(rows_left, outputs_left));
      const bool predicts = !is_prompt || n == static_cast<Index>(part.size());
      const Index n_outputs = !predicts ? 0 : is_prompt ? 1 : n;
      if (n == 0 || n_outputs > outputs_left) continue;
      inputs.push_back({.sequence = &fork.sequence,
                        .tokens = part.first(static_cast<std::size_t>(n)),
                        .n_outputs = n_outputs});
      fork_of.push_back(f);
      fork.n_fed += static_cast<std::size_t>(n);
      rows_left -= n;
      outputs_left -= n_outputs;
    }
    NIBBLE_TRY(logits, engine.run(inputs));
    Index row = 0;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const std::size_t index = forks[fork_of[i]].index;
      for (Index n = 0; n < inputs[i].n_outputs; ++n) {
        const std::int32_t id = all[index].continuation[scores[index].tokens.size()];
        NIBBLE_CHECK(add_token(scores[index], id, logits[row++]));
      }
    }
    std::erase_if(forks, [&](const Fork& fork) {
      return scores[fork.index].tokens.size() == all[fork.index].continuation.size();
    });
  }
  return ok();
}

}  // namespace detail

// The scores of continuations, each of its own prompt. As many as the engine's options allow are
// computed together, parts of long prompts too; the result of each is, bit for bit, what it would
// be alone. Errors: as above; no prompt may be empty.
NIBBLE_LAZY Result<std::vector<Score>> score(Engine& engine, std::span<const ScoreInput> inputs) {
  for (const ScoreInput& input : inputs) {
    NIBBLE_CHECK(detail::check_scored(input.continuation, engine.model()));
    if (!input.prompt.empty()) continue;
    return Error{Errc::invalid_argument,
                 "score: nothing is before a continuation; begin with the model's begin token"};
  }
  return catch_out_of_memory([&]() -> Result<std::vector<Score>> {
    std::vector<Score> scores(inputs.size());
    NIBBLE_TRY(base, engine.new_sequence());
    NIBBLE_CHECK(detail::score_forks(engine, base, inputs, scores));
    return scores;
  });
}

// The scores of several continuations of one prompt, which is computed once: each continuation is a
// fork of its sequence. Otherwise as the function before.
NIBBLE_LAZY Result<std::vector<Score>> score(
    Engine& engine, std::span<const std::int32_t> prompt,
    std::span<const std::span<const std::int32_t>> continuations) {
  for (const auto& tokens : continuations) {
    NIBBLE_CHECK(detail::check_scored(tokens, engine.model()));
  }
  if (prompt.empty()) {
    return Error{Errc::invalid_argument,
                 "score: nothing is before the continuations; begin with the model's begin token"};
  }
  return catch_out_of_memory([&]() -> Result<std::vector<Score>> {
    std::vector<Score> scores(continuations.size());
    std::vector<ScoreInput> inputs;
    for (const auto& tokens : continuations) inputs.push_back({{}, tokens});
    NIBBLE_TRY(base, engine.new_sequence());
    while (!prompt.empty()) {
      const auto most = static_cast<std::size_t>(engine.max_step_tokens());
      const std::size_t n = (std::min)(prompt.size(), most);
      const bool is_last = n == prompt.size();
      const SequenceInput input{
          .sequence = &base, .tokens = prompt.first(n), .n_outputs = is_last ? 1 : 0};
      NIBBLE_TRY(logits, engine.run({&input, 1}));
      for (std::size_t i = 0; is_last && i < scores.size(); ++i) {
        NIBBLE_CHECK(detail::add_token(scores[i], continuations[i][0], logits[0]));
      }
      prompt = prompt.subspan(n);
    }
    NIBBLE_CHECK(detail::score_forks(engine, base, inputs, scores));
    return scores;
  });
}

}}  // namespace nibble::NIBBLE_ABI
