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
#include <vector>

#include "nibble/core/scalar.hpp"
#include "nibble/generate/divergence.hpp"
#include "nibble/generate/logprob.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/ops/softmax.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

// Of each position it keeps the tokens with a probability of at least kLeastProbability, and how
// probable all others are together; they count as one token. So the divergence is a lower bound of
// the exact one, which is seldom more than a few hundredths above it.
class ReferencePredictions {
 public:
  static constexpr double kLeastProbability = 1e-5;

  // Runs the text through the session, in chunks as perplexity() does (the second half of each
  // chunk of `context` tokens is kept). The session's sequence is lost. Errors: as for
  // perplexity().
  NIBBLE_COLD static Result<ReferencePredictions> record(Session& session,
                                                         std::span<const std::int32_t> tokens,
                                                         Index context, std::int32_t bos,
                                                         const Progress* progress = nullptr) {
    const auto n_chunks = context < 1 ? Index{0} : static_cast<Index>(tokens.size()) / context;
    if (context < 4 || context > session.capacity() || n_chunks == 0) {
      return Error{Errc::invalid_argument,
                   "predictions: " + to_text(tokens.size()) + " tokens in chunks of " +
                       to_text(context) + "; the session holds " + to_text(session.capacity())};
    }
    return catch_out_of_memory([&]() -> Result<ReferencePredictions> {
      ReferencePredictions kept;
      kept.context_ = context;
      kept.n_chunks_ = n_chunks;
      kept.vocab_size_ = session.model().config().vocab_size;
      kept.ids_.resize(static_cast<std::size_t>(n_chunks * context));
      for (std::size_t i = 0; i < kept.ids_.size(); ++i) {
        const bool is_first = i % static_cast<std::size_t>(context) == 0;
        const std::int32_t id = is_first && bos >= 0 ? bos : tokens[i];
        if (id < 0 || id >= kept.vocab_size_) {
          return Error{Errc::invalid_argument,
                       "predictions: token " + to_text(id) + " is not in the vocabulary"};
        }
        kept.ids_[i].value = id;
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
  Index context() const noexcept { return context_; }

  // How far the predictions of a session (of a model with the same vocabulary) are from these. In
  // the result, a is this reference. The sequence is lost. Errors: those of perplexity().
  NIBBLE_COLD Result<Divergence> compare(Session& session,
                                         const Progress* progress = nullptr) const {
    if (session.model().config().vocab_size != vocab_size_ || session.capacity() < context_) {
      return Error{Errc::invalid_argument, "predictions: of a vocabulary of " +
                                               to_text(vocab_size_) + " and chunks of " +
                                               to_text(context_) + " tokens; the session has " +
                                               to_text(Index{session.model().config().vocab_size}) +
                                               " and holds " + to_text(session.capacity())};
    }
    return catch_out_of_memory([&]() -> Result<Divergence> {
      Divergence result;
      std::vector<Scalar<double>> all(positions_.size());
      double sum = 0, sum_a = 0, sum_b = 0;
      Index n_same = 0;
      NIBBLE_CHECK(run(session, progress,
                       [&](std::size_t i, VectorView<const float> logits, std::int32_t next) {
                         const Position& position = positions_[i];
                         const double d = divergence_at(i, logits);
                         all[i].value = d;
                         sum += d;
                         sum_a -= position.next;
                         sum_b -= nibble::detail::logprob_of(next, logits);
                         n_same += ops::argmax(logits) == position.best ? 1 : 0;
                         return !is_nan(sum + sum_b);
                       }));
      std::sort(all.begin(), all.end(),
                [](const auto& x, const auto& y) { return x.value < y.value; });
      const auto n = static_cast<double>(all.size());
      result.n_positions = n_positions();
      result.mean = sum / n;
      result.median = all[all.size() / 2].value;
      result.p99 = all[all.size() * 99 / 100].value;
      result.max = all.back().value;
      result.same_best = static_cast<double>(n_same) / n;
      result.perplexity_a = std::exp(sum_a / n);
      result.perplexity_b = std::exp(sum_b / n);
      return result;
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
    const std::span<const std::int32_t> all(values(ids_), ids_.size());
    const auto length = static_cast<std::size_t>(context_);
    std::size_t index = 0;
    for (Index c = 0; c < n_chunks_; ++c) {
      const auto ids = all.subspan(static_cast<std::size_t>(c) * length, length);
      NIBBLE_CHECK(session.rewind(0));
      NIBBLE_CHECK(session.append(ids.first(length / 2)));
      for (std::size_t first = length / 2; first < length - 1;) {
        const auto n =
            (std::min)(static_cast<std::size_t>(session.max_outputs()), length - 1 - first);
        NIBBLE_TRY(rows, session.append(ids.subspan(first, n), static_cast<Index>(n)));
        for (std::size_t i = 0; i < n; ++i) {
          if (!on_position(index++, rows[static_cast<Index>(i)], ids[first + i + 1])) {
            return nibble::detail::not_numbers("predictions");
          }
        }
        first += n;
      }
      if (progress != nullptr && *progress &&
          !(*progress)(static_cast<std::size_t>(c) + 1, static_cast<std::size_t>(n_chunks_))) {
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

  Index context_ = 0, n_chunks_ = 0, vocab_size_ = 0;
  std::vector<Scalar<std::int32_t>> ids_;  // (n_chunks, context)
  std::vector<Token> tokens_;
  std::vector<Position> positions_;
};

}}}  // namespace nibble::NIBBLE_ABI::compress
