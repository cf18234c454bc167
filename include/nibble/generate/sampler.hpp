// SPDX-License-Identifier: Apache-2.0
//
// Chooses a token from logits: repetition penalty, top-k, top-p, min-p, temperature, in this order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "nibble/core/libm.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/generate/sampling.hpp"
#include "nibble/ops/softmax.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct Sampled {
  std::int32_t id = 0;
  float logprob = 0;  // natural logarithm of the model's own probability, before any option
};

// One sequence of random choices. Allocates when created, never after.
class Sampler {
 public:
  // Errors: invalid_argument for an option outside its range; the message names it.
  static Result<Sampler> create(const SamplingOptions& options, Index vocab_size) {
    const auto bad = [](const char* what) {
      return Error{Errc::invalid_argument, std::string("sampling: ") + what};
    };
    if (!(options.temperature >= 0) || !is_finite(static_cast<double>(options.temperature)))
      return bad("temperature must be at least 0");
    if (options.top_k < 0) return bad("top_k must be at least 0");
    if (is_nan(static_cast<double>(options.top_p)) || !(options.top_p > 0 && options.top_p <= 1))
      return bad("top_p must be in (0, 1]");
    if (is_nan(static_cast<double>(options.min_p)) || !(options.min_p >= 0 && options.min_p <= 1))
      return bad("min_p must be in [0, 1]");
    if (!(options.repetition_penalty > 0) ||
        !is_finite(static_cast<double>(options.repetition_penalty)))
      return bad("repetition_penalty must be positive");
    if (options.repetition_window < 0) return bad("repetition_window must be at least 0");
    if (vocab_size < 1) return bad("the vocabulary is empty");
    return catch_out_of_memory([&]() -> Result<Sampler> { return Sampler(options, vocab_size); });
  }

  const SamplingOptions& options() const noexcept { return options_; }

  // `logits` (vocab_size): finite or -inf, not all -inf. `recent`: the tokens so far, all of the
  // vocabulary, newest last, for the penalty.
  NIBBLE_LAZY Sampled sample(std::span<const float> logits,
                             std::span<const std::int32_t> recent) noexcept {
    NIBBLE_ASSERT(logits.size() == candidates_.size());
    const VectorView<const float> values(logits.data(), logits.size());
    std::int32_t id;
    if (options_.temperature == 0 && options_.repetition_penalty == 1) {
      id = static_cast<std::int32_t>(ops::argmax(values));
    } else {
      id = choose(logits, recent);
    }
    const auto sum = ops::log_sum_exp(values);
    const double logit = static_cast<double>(logits[static_cast<std::size_t>(id)]);
    return {id, static_cast<float>(logit - static_cast<double>(sum.max) - sum.log_sum)};
  }

 private:
  struct Candidate {
    float logit;
    std::int32_t id;
    // More likely candidates first; equal ones by id, so that a result never depends on the sorting
    // algorithm.
    friend bool operator<(const Candidate& a, const Candidate& b) noexcept {
      return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
    }
  };

  Sampler(const SamplingOptions& options, Index vocab_size)
      : options_(options),
        state_(options.seed),
        candidates_(static_cast<std::size_t>(vocab_size)),
        weights_(static_cast<std::size_t>(vocab_size)) {}

  std::int32_t choose(std::span<const float> logits,
                      std::span<const std::int32_t> recent) noexcept {
    for (std::size_t i = 0; i < logits.size(); ++i) {
      // NaN has no order; as the least likely token it does no harm.
      const float logit = is_nan(static_cast<double>(logits[i])) ? -kInfinity : logits[i];
      candidates_[i] = {logit, static_cast<std::int32_t>(i)};
    }
    penalize(logits, recent);
    if (options_.temperature == 0) {
      return std::min_element(candidates_.begin(), candidates_.end())->id;
    }
    std::size_t n = candidates_.size();
    if (options_.top_k > 0) n = (std::min)(n, static_cast<std::size_t>(options_.top_k));
    const bool ordered = n < candidates_.size() || options_.top_p < 1 || options_.min_p > 0;
    const auto end = candidates_.begin() + static_cast<std::ptrdiff_t>(n);
    if (ordered) std::partial_sort(candidates_.begin(), end, candidates_.end());
    n = keep_top_p(n);
    n = keep_min_p(n);
    return draw(n);
  }

  void penalize(std::span<const float> logits, std::span<const std::int32_t> recent) noexcept {
    if (options_.repetition_penalty == 1) return;
    const auto window = static_cast<std::size_t>(options_.repetition_window);
    for (const std::int32_t id : recent.last((std::min)(recent.size(), window))) {
      // Uses the original logit: a token that appears twice is penalized once.
      const float logit = logits[static_cast<std::size_t>(id)];
      if (is_nan(static_cast<double>(logit))) continue;
      candidates_[static_cast<std::size_t>(id)].logit =
          logit > 0 ? logit / options_.repetition_penalty : logit * options_.repetition_penalty;
    }
  }

  // Sets weights_ to exp((logit - best) / temperature) of the first n candidates; returns their
  // sum.
  double weigh(std::size_t n, double temperature) noexcept {
    double best = static_cast<double>(candidates_[0].logit);
    for (std::size_t i = 1; i < n; ++i) {
      best = larger(best, static_cast<double>(candidates_[i].logit));
    }
    double sum = 0;
    for (std::size_t i = 0; i < n; ++i) {
      weights_[i].value =
          libm::exp((static_cast<double>(candidates_[i].logit) - best) / temperature);
      sum += weights_[i].value;
    }
    return sum;
  }

  std::size_t keep_top_p(std::size_t n) noexcept {
    if (options_.top_p >= 1) return n;
    const double enough = weigh(n, 1) * static_cast<double>(options_.top_p);
    double sum = 0;
    for (std::size_t i = 0; i < n; ++i) {
      sum += weights_[i].value;
      if (sum >= enough) return i + 1;
    }
    return n;
  }

  std::size_t keep_min_p(std::size_t n) noexcept {
    if (options_.min_p <= 0) return n;
    const double least =
        static_cast<double>(candidates_[0].logit) + libm::log(static_cast<double>(options_.min_p));
    std::size_t kept = 1;
    while (kept < n && static_cast<double>(candidates_[kept].logit) >= least) ++kept;
    return kept;
  }

  std::int32_t draw(std::size_t n) noexcept {
    double left = weigh(n, static_cast<double>(options_.temperature)) * uniform();
    std::size_t chosen = 0;
    for (std::size_t i = 0; i < n && left >= 0; ++i) {
      if (!(weights_[i].value > 0)) continue;  // never chosen, even if rounding leaves a remainder
      chosen = i;
      left -= weights_[i].value;
    }
    return candidates_[chosen].id;
  }

  // splitmix64 (Steele, Lea and Flood 2014): the same numbers on every machine. In [0, 1).
  double uniform() noexcept {
    std::uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    return static_cast<double>(z >> 11) * 0x1p-53;
  }

  SamplingOptions options_;
  std::uint64_t state_;
  std::vector<Candidate> candidates_;
  std::vector<Scalar<double>> weights_;
};

}}  // namespace nibble::NIBBLE_ABI
