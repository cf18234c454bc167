// SPDX-License-Identifier: Apache-2.0
//
// Conditional compute: a small model answers, and a second stage only where the small one is not
// sure. The second stage is a function: a larger model here, or a service elsewhere.
//
//   auto cascade = Cascade::create(std::move(small), [&](std::string_view prompt) {
//     return answer(large, prompt);
//   }, {.threshold = chosen.threshold});  // by choose_threshold()
//   auto answer = cascade->answer("turn on the lamp\n");
//
// (Cascades: FrugalGPT, Chen et al. 2023. Probabilities of tokens are a confidence only once they
// are calibrated: see choose_threshold().)
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/callback.hpp"
#include "nibble/core/libm.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/generate/generator.hpp"
#include "nibble/generate/session.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// How the probabilities of an answer's tokens become the confidence of the answer.
enum class AnswerConfidence : std::uint8_t {
  lowest,  // that of the least likely token
  mean,    // their geometric mean: exp(mean log-probability)
};

struct Answer {
  std::string text;
  double confidence = 1;  // from 0 to 1; 1: of an answer without tokens
  Index n_tokens = 0;     // generated, the end token included
  Finish finish = Finish::none;
  bool is_second = false;  // from the second stage of a cascade
};

struct CascadeOptions {
  // An answer of the first stage whose confidence is below it is not taken. 0: all are.
  double threshold = 0.6;
  AnswerConfidence measure = AnswerConfidence::lowest;
  // In place of the measure: how sure to be of a whole answer of the first stage.
  Callback<double(std::string_view prompt, const Answer& answer)> confidence = {};
  // The first stage gives up as soon as it is known that its answer is not taken: with the measure
  // `lowest` at the first token that is below the threshold. With `mean` it may decide after so
  // many tokens, by these alone; 0: when the answer is complete.
  Index decide_after = 0;
  GenerateOptions generate = {};  // of the first stage
};

namespace detail {

// Collects the confidence of an answer, token by token.
class AnswerSum {
 public:
  explicit AnswerSum(AnswerConfidence measure) noexcept : measure_(measure) {}
  void add(double logprob) noexcept {
    sum_ += logprob;
    if (!(logprob >= lowest_)) lowest_ = logprob;
    ++n_;
  }
  double confidence() const noexcept {
    if (n_ == 0) return 1;
    const double logprob =
        measure_ == AnswerConfidence::lowest ? lowest_ : sum_ / static_cast<double>(n_);
    return is_nan(logprob) ? 0 : libm::exp(logprob);
  }

 private:
  AnswerConfidence measure_;
  double sum_ = 0, lowest_ = 0;
  Index n_ = 0;
};

// `gives_up(n_tokens, confidence)` ends the answer early.
inline Result<Answer> answer(Session& session, std::string_view prompt,
                             const GenerateOptions& options, AnswerConfidence measure,
                             FunctionRef<bool(Index, double)> gives_up) {
  return catch_out_of_memory([&]() -> Result<Answer> {
    Answer answer;
    AnswerSum sum(measure);
    Index n = 0;
    const auto on_token = [&](const Token& token) {
      answer.text += token.text;
      if (token.id < 0) return true;  // only text that was held back
      sum.add(static_cast<double>(token.logprob));
      return !gives_up(++n, sum.confidence());
    };
    const Index before = session.position();
    auto generated = generate(session, prompt, options, on_token);
    NIBBLE_CHECK(session.rewind((std::min)(before, session.position())));
    if (!generated) return std::move(generated).error();
    answer.confidence = sum.confidence();
    answer.n_tokens = generated->n_tokens;
    answer.finish = generated->finish;
    return answer;
  });
}

}  // namespace detail

// What a session answers to a prompt, and how sure it is. What the session had before comes before
// the prompt, and is all that it has afterwards. (Log-probabilities are those of the model,
// whatever the sampling options.) Errors: those of generate() and of Session::rewind().
inline Result<Answer> answer(Session& session, std::string_view prompt,
                             const GenerateOptions& options = {},
                             AnswerConfidence measure = AnswerConfidence::lowest) {
  return detail::answer(session, prompt, options, measure, [](Index, double) { return false; });
}

// Not thread-safe, as the session is not.
class Cascade {
 public:
  // Errors are handed on.
  using Stage = Callback<Result<Answer>(std::string_view prompt)>;

  // `second` is asked with the whole prompt, without what the session of the first stage has before
  // it. Errors: invalid_argument (no second stage, a threshold that is not a number, a negative
  // decide_after).
  static Result<Cascade> create(Session first, Stage second, CascadeOptions options = {}) {
    if (!second || is_nan(options.threshold) || options.decide_after < 0) {
      return Error{Errc::invalid_argument,
                   "cascade: it needs a second stage, a threshold that is a number, and "
                   "decide_after of 0 or more"};
    }
    return Cascade(std::move(first), std::move(second), std::move(options));
  }

  // The answer of the first stage if it is sure enough, otherwise that of the second, with the
  // confidence that this one says. An answer that was cancelled or ran out of time is returned as
  // it is. Errors: those of the stages.
  Result<Answer> answer(std::string_view prompt) {
    const bool is_own = !options_.confidence;
    const auto gives_up = [&](Index n, double confidence) {
      if (!is_own || confidence >= options_.threshold) return false;
      return options_.measure == AnswerConfidence::lowest || n == options_.decide_after;
    };
    bool gave_up = false;
    NIBBLE_TRY(first, detail::answer(session_, prompt, options_.generate, options_.measure,
                                     [&](Index n, double confidence) {
                                       return gave_up = gives_up(n, confidence);
                                     }));
    if (!gave_up && (first.finish == Finish::cancelled || first.finish == Finish::time_limit)) {
      return first;
    }
    if (!is_own) first.confidence = options_.confidence(prompt, first);
    if (!gave_up && first.confidence >= options_.threshold) return first;
    NIBBLE_TRY(second, second_(prompt));
    second.is_second = true;
    return second;
  }

  double threshold() const noexcept { return options_.threshold; }

 private:
  Cascade(Session first, Stage second, CascadeOptions options) noexcept
      : session_(std::move(first)), second_(std::move(second)), options_(std::move(options)) {}

  Session session_;
  Stage second_;
  CascadeOptions options_;
};

// ---- The threshold -----------------------------------------------------------------------------

// A question whose right answer is known: what the first stage said, and whether it and the second
// were right. Where the second stage was not asked, is_second_right = true makes the target that of
// the answers which the first keeps, with those that it hands on taken as right.
struct LabelledAnswer {
  double confidence = 0;  // of the first stage
  bool is_first_right = false;
  bool is_second_right = true;
};

struct CascadeThreshold {
  double threshold = 0;  // for CascadeOptions
  double accuracy = 0;   // of the cascade with it, on these questions
  double kept = 0;       // the share of questions that the first stage answers
};

// The threshold with which the first stage answers as many of these questions as possible, while
// the cascade is right on at least a share `accuracy` of them. The share is that of these
// questions: calibrate on some hundred of the task (500 or more), and check on others. Errors:
// invalid_argument (no questions, a confidence that is not a number), limit (no threshold is as
// accurate; the message says the most that can be had).
inline Result<CascadeThreshold> choose_threshold(std::span<const LabelledAnswer> answers, double accuracy) {
  return catch_out_of_memory([&]() -> Result<CascadeThreshold> {
    std::vector<LabelledAnswer> sorted(answers.begin(), answers.end());
    std::size_t n_right = 0;
    for (const LabelledAnswer& a : sorted) {
      n_right += a.is_second_right;
      if (!is_nan(a.confidence)) continue;
      return Error{Errc::invalid_argument, "cascade: a confidence that is not a number"};
    }
    if (sorted.empty()) return Error{Errc::invalid_argument, "cascade: calibration without data"};
    std::sort(sorted.begin(), sorted.end(), [](const LabelledAnswer& a, const LabelledAnswer& b) {
      return a.confidence > b.confidence;
    });
    const auto n = static_cast<double>(sorted.size());
    // From none kept to all; of equal ones, all or none.
    CascadeThreshold best{static_cast<double>(kInfinity), static_cast<double>(n_right) / n, 0};
    double most = best.accuracy;
    bool is_found = best.accuracy >= accuracy;
    for (std::size_t i = 0; i < sorted.size(); ++i) {
      n_right += sorted[i].is_first_right;
      n_right -= sorted[i].is_second_right;
      const double threshold = sorted[i].confidence;
      if (i + 1 < sorted.size() && sorted[i + 1].confidence == threshold) continue;
      const double share = static_cast<double>(n_right) / n;
      most = (std::max)(most, share);
      if (share < accuracy) continue;
      is_found = true;
      best = {threshold, share, static_cast<double>(i + 1) / n};
    }
    if (is_found) return best;
    return Error{Errc::limit, "cascade: no threshold gives an accuracy of " + to_text(accuracy) +
                                  "; the most is " + to_text(most)};
  });
}

}}  // namespace nibble::NIBBLE_ABI
