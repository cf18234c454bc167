// SPDX-License-Identifier: Apache-2.0
//
// How far the predictions of one model are from those of another on the same text: what a weight
// format, a cache type or a conversion costs.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nibble/core/scalar.hpp"
#include "nibble/generate/logprob.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/generate/text_chunks.hpp"
#include "nibble/ops/softmax.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// Over all compared positions; probabilities are those of all tokens of the vocabulary.
struct Divergence {
  double mean = 0;                      // of D(a || b) = sum of p_a log(p_a / p_b), in nats
  double median = 0, p99 = 0, max = 0;  // of the same
  double same_best = 0;  // the part of the positions whose most likely token is equal
  double perplexity_a = 0, perplexity_b = 0;
  Index n_positions = 0;
};

namespace detail {

// D(a || b) of two rows of logits.
NIBBLE_LAZY double kl_divergence(VectorView<const float> a, VectorView<const float> b) {
  const auto total_a = ops::log_sum_exp(a), total_b = ops::log_sum_exp(b);
  const auto logprob = [](float logit, const auto& total) {
    return static_cast<double>(logit) - static_cast<double>(total.max) - total.log_sum;
  };
  double sum = 0;
  for (Index i = 0; i < a.extent(0); ++i) {
    const double log_a = logprob(a(i), total_a);
    if (log_a > -100) sum += std::exp(log_a) * (log_a - logprob(b(i), total_b));
  }
  return sum > 0 ? sum : 0;  // rounding can make it slightly negative
}

// Sums up the positions of a comparison.
class DivergenceSum {
 public:
  // Of one position: its divergence, the log-probabilities of the token that follows, and whether
  // both find the same token most likely. False if what was added is no number.
  bool add(double divergence, double logprob_a, double logprob_b, bool is_same_best) {
    all_.push_back({divergence});
    sum_ += divergence;
    sum_a_ -= logprob_a;
    sum_b_ -= logprob_b;
    n_same_ += is_same_best ? 1 : 0;
    return !is_nan(sum_ + sum_a_ + sum_b_);
  }
  // Of at least one position.
  Divergence result() && {
    std::sort(all_.begin(), all_.end(),
              [](const auto& x, const auto& y) { return x.value < y.value; });
    const auto n = static_cast<double>(all_.size());
    Divergence result;
    result.n_positions = static_cast<Index>(all_.size());
    result.mean = sum_ / n;
    result.median = all_[all_.size() / 2].value;
    result.p99 = all_[all_.size() * 99 / 100].value;
    result.max = all_.back().value;
    result.same_best = static_cast<double>(n_same_) / n;
    result.perplexity_a = std::exp(sum_a_ / n);
    result.perplexity_b = std::exp(sum_b_ / n);
    return result;
  }

 private:
  std::vector<Scalar<double>> all_;
  double sum_ = 0, sum_a_ = 0, sum_b_ = 0;
  Index n_same_ = 0;
};

}  // namespace detail

// Compares the predictions of two sessions, in chunks as perplexity() measures them: the second
// half of each chunk of `context` tokens. The models must have the same vocabulary. Both sequences
// are lost. `progress` as for perplexity(). Errors: those of perplexity(); invalid_argument
// (vocabularies of different sizes, a session and itself).
NIBBLE_LAZY Result<Divergence> divergence(Session& a, Session& b,
                                          std::span<const std::int32_t> tokens, Index context,
                                          std::int32_t bos, const Progress* progress = nullptr) {
  if (&a == &b) {
    return Error{Errc::invalid_argument,
                 "divergence: a session and itself; its logits are valid "
                 "until its next step only, so compare two"};
  }
  const Index most = (std::min)(a.capacity(), b.capacity());
  const Index n_chunks = context < 1 ? 0 : static_cast<Index>(tokens.size()) / context;
  if (context < 4 || context > most || n_chunks == 0) {
    return Error{Errc::invalid_argument, "divergence: " + to_text(tokens.size()) +
                                             " tokens in chunks of " + to_text(context) +
                                             "; the sessions hold " + to_text(most)};
  }
  const Index vocab_a = a.model().config().vocab_size, vocab_b = b.model().config().vocab_size;
  if (vocab_a != vocab_b) {
    return Error{Errc::invalid_argument, "divergence: vocabularies of " + to_text(vocab_a) +
                                             " and " + to_text(vocab_b) + " tokens"};
  }
  return catch_out_of_memory([&]() -> Result<Divergence> {
    detail::DivergenceSum sum;
    NIBBLE_CHECK(detail::score_chunks<2>(
        {&a, &b}, tokens, context, bos, progress, "divergence",
        [&](std::int32_t next, const detail::LogitsOfEach<2>& logits) {
          return sum.add(detail::kl_divergence(logits[0], logits[1]),
                         detail::logprob_of(next, logits[0]), detail::logprob_of(next, logits[1]),
                         ops::argmax(logits[0]) == ops::argmax(logits[1]));
        }));
    return std::move(sum).result();
  });
}

}}  // namespace nibble::NIBBLE_ABI
