// SPDX-License-Identifier: Apache-2.0
//
// What a model predicts along a text, kept in little memory, to compare many variants of the model
// with it: the divergence that each step of a compression costs. generate/divergence.hpp compares
// two models once and needs no such memory.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nibble/core/scalar.hpp"
#include "nibble/generate/divergence.hpp"
#include "nibble/generate/logprob.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/generate/text_chunks.hpp"
#include "nibble/ops/softmax.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

// The sequences along which predictions are compared: parts of a text, or prompts with answers.
class TrialText {
 public:
  // Cuts a text into chunks of `context` tokens, as perplexity() does, and drops the remainder: the
  // second half of each is scored; its first token is replaced by `bos` (not if that is negative).
  // Errors: invalid_argument (context below 4, fewer tokens than that), out_of_memory.
  static Result<TrialText> chunks(std::span<const std::int32_t> tokens, Index context,
                                  std::int32_t bos) {
    const auto n_chunks = context < 4 ? Index{0} : static_cast<Index>(tokens.size()) / context;
    if (n_chunks == 0) {
      return Error{Errc::invalid_argument, "predictions: " + to_text(tokens.size()) +
                                               " tokens in chunks of " + to_text(context)};
    }
    return catch_out_of_memory([&]() -> Result<TrialText> {
      TrialText text;
      for (Index c = 0; c < n_chunks; ++c) {
        NIBBLE_CHECK(text.add(tokens.subspan(static_cast<std::size_t>(c * context),
                                             static_cast<std::size_t>(context)),
                              context / 2 + 1));
        if (bos >= 0) text.ids_[text.parts_.back().begin].value = bos;
      }
      return text;
    });
  }

  // Adds a sequence; its tokens from `first_scored` on are scored. Errors: invalid_argument (none
  // are, or the first is, which nothing predicts), out_of_memory.
  Result<void> add(std::span<const std::int32_t> ids, Index first_scored) {
    if (first_scored < 1 || first_scored >= static_cast<Index>(ids.size())) {
      return Error{Errc::invalid_argument, "predictions: token " + to_text(first_scored) +
                                               " as the first to predict of " +
                                               to_text(ids.size())};
    }
    return catch_out_of_memory([&]() -> Result<void> {
      const std::size_t begin = ids_.size();
      for (const std::int32_t id : ids) ids_.push_back({id});
      parts_.push_back({begin, ids.size(), static_cast<std::size_t>(first_scored)});
      longest_ = (std::max)(longest_, static_cast<Index>(ids.size()));
      n_scored_ += static_cast<Index>(ids.size()) - first_scored;
      return ok();
    });
  }

  std::size_t n_sequences() const noexcept { return parts_.size(); }
  Index n_scored() const noexcept { return n_scored_; }  // tokens
  Index longest() const noexcept { return longest_; }
  std::span<const std::int32_t> ids(std::size_t sequence) const noexcept {
    return {values(ids_) + parts_[sequence].begin, parts_[sequence].length};
  }
  std::size_t first_scored(std::size_t sequence) const noexcept {
    return parts_[sequence].first_scored;
  }

 private:
  struct Part {
    std::size_t begin, length, first_scored;
  };
  std::vector<Scalar<std::int32_t>> ids_;
  std::vector<Part> parts_;
  Index longest_ = 0, n_scored_ = 0;
};

// Of each position it keeps the tokens with a probability of at least kLeastProbability, and how
// probable all others are together; they count as one token. So the divergence is a lower bound of
// the exact one, which is seldom more than a few hundredths above it.
class ReferencePredictions {
 public:
  static constexpr double kLeastProbability = 1e-5;

  // Runs the text through the session, whose sequence is lost. `progress` as for perplexity(), by
  // sequences. Errors: invalid_argument (an empty text, a sequence that is longer than the session
  // holds, a token that is not in the vocabulary), malformed (logits that are not numbers),
  // cancelled, those of Session::append().
  NIBBLE_COLD static Result<ReferencePredictions> record(Session& session, TrialText text,
                                                         const Progress* progress = nullptr) {
    if (text.n_sequences() == 0 || text.longest() > session.capacity()) {
      return Error{Errc::invalid_argument, "predictions: " + to_text(text.n_sequences()) +
                                               " sequences of up to " + to_text(text.longest()) +
                                               " tokens; the session holds " +
                                               to_text(session.capacity())};
    }
    return catch_out_of_memory([&]() -> Result<ReferencePredictions> {
      ReferencePredictions kept;
      kept.text_ = std::move(text);
      kept.vocab_size_ = session.model().config().vocab_size;
      for (std::size_t i = 0; i < kept.text_.n_sequences(); ++i) {
        for (const std::int32_t id : kept.text_.ids(i)) {
          if (id >= 0 && id < kept.vocab_size_) continue;
          return Error{Errc::invalid_argument,
                       "predictions: token " + to_text(id) + " is not in the vocabulary"};
        }
      }
      NIBBLE_CHECK(kept.run(session, progress,
                            [&](std::size_t, VectorView<const float> logits, std::int32_t next) {
                              kept.keep(logits, next);
                              return !is_nan(kept.positions_.back().rest);
                            }));
      return kept;
    });
  }

  Index n_positions() const noexcept { return static_cast<Index>(positions_.size()); }
  const TrialText& text() const noexcept { return text_; }

  // How far the predictions of a session (of a model with the same vocabulary) are from these. In
  // the result, a is this reference. The sequence is lost. Errors: those of perplexity().
  NIBBLE_COLD Result<Divergence> compare(Session& session,
                                         const Progress* progress = nullptr) const {
    if (session.model().config().vocab_size != vocab_size_ ||
        session.capacity() < text_.longest()) {
      return Error{Errc::invalid_argument, "predictions: of a vocabulary of " +
                                               to_text(vocab_size_) + " and sequences of up to " +
                                               to_text(text_.longest()) +
                                               " tokens; the session has " +
                                               to_text(Index{session.model().config().vocab_size}) +
                                               " and holds " + to_text(session.capacity())};
    }
    return catch_out_of_memory([&]() -> Result<Divergence> {
      nibble::detail::DivergenceSum sum;
      NIBBLE_CHECK(run(session, progress,
                       [&](std::size_t i, VectorView<const float> logits, std::int32_t next) {
                         return sum.add(divergence_at(i, logits), positions_[i].next,
                                        nibble::detail::logprob_of(next, logits),
                                        ops::argmax(logits) == positions_[i].best);
                       }));
      return std::move(sum).result();
    });
  }

 private:
  struct Token {
    std::int32_t id;
    float logprob;
  };
  struct Position {
    std::size_t end;  // of its tokens
    double rest;      // probability of all others
    double next;      // log-probability of the token that follows in the text
    Index best;
  };

  // Calls on_position(index, logits, next token) for each position that is kept.
  template <class F>
  Result<void> run(Session& session, const Progress* progress, F on_position) const {
    std::size_t index = 0;
    for (std::size_t s = 0; s < text_.n_sequences(); ++s) {
      const std::span<const std::int32_t> ids = text_.ids(s);
      NIBBLE_CHECK(nibble::detail::score_sequence<1>(
          {&session}, ids, text_.first_scored(s), "predictions",
          [&](std::int32_t next, const nibble::detail::LogitsOfEach<1>& logits) {
            return on_position(index++, logits[0], next);
          }));
      if (progress != nullptr && *progress && !(*progress)(s + 1, text_.n_sequences())) {
        return Error{Errc::cancelled, "predictions"};
      }
    }
    return ok();
  }

  void keep(VectorView<const float> logits, std::int32_t next) {
    const auto total = ops::log_sum_exp(logits);
    const double offset = static_cast<double>(total.max) + total.log_sum;
    const double least = offset + std::log(kLeastProbability);
    double kept = 0;
    for (Index i = 0; i < logits.extent(0); ++i) {
      const auto logit = static_cast<double>(logits(i));
      if (logit < least) continue;
      tokens_.push_back({static_cast<std::int32_t>(i), static_cast<float>(logit - offset)});
      kept += std::exp(logit - offset);
    }
    positions_.push_back({tokens_.size(),
                          is_nan(kept + offset) ? kept + offset : larger(0.0, 1 - kept),
                          static_cast<double>(logits(next)) - offset, ops::argmax(logits)});
  }

  // Sum of p log(p / q) over the kept tokens and the rest.
  double divergence_at(std::size_t i, VectorView<const float> logits) const {
    const auto total = ops::log_sum_exp(logits);
    const double offset = static_cast<double>(total.max) + total.log_sum;
    double sum = 0, other_kept = 0;
    for (std::size_t t = i == 0 ? 0 : positions_[i - 1].end; t < positions_[i].end; ++t) {
      const double log_p = static_cast<double>(tokens_[t].logprob);
      const double log_q = static_cast<double>(logits(tokens_[t].id)) - offset;
      sum += std::exp(log_p) * (log_p - log_q);
      other_kept += std::exp(log_q);
    }
    constexpr double kLeastRest = 1e-9;  // below, it is rounding
    const double rest = positions_[i].rest, other_rest = larger(1 - other_kept, kLeastRest);
    if (rest > kLeastRest) sum += rest * std::log(rest / other_rest);
    return is_nan(sum) || sum > 0 ? sum : 0;
  }

  TrialText text_;
  Index vocab_size_ = 0;
  std::vector<Token> tokens_;
  std::vector<Position> positions_;
};

}}}  // namespace nibble::NIBBLE_ABI::compress
