// SPDX-License-Identifier: Apache-2.0
//
// Chooses a token from logits: adds the bias, then does the steps of a chain (sampling.hpp), then
// draws one of the tokens that are left.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "nibble/core/libm.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/generate/candidates.hpp"
#include "nibble/generate/logprob.hpp"
#include "nibble/generate/repeats.hpp"
#include "nibble/generate/sampling.hpp"
#include "nibble/generate/sampling_check.hpp"
#include "nibble/ops/softmax.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// The choices of one sequence: its random numbers and what mirostat has learned. Allocates when
// created and in set_options(), never after. Not for several threads at a time.
class Sampler {
 public:
  // Errors: invalid_argument for an option outside its range; the message names it.
  static Result<Sampler> create(const SamplingOptions& options, Index vocab_size) {
    return catch_out_of_memory([&]() -> Result<Sampler> {
      NIBBLE_CHECK(validate(options, vocab_size));
      return Sampler(options, vocab_size);
    });
  }

  // Whether create() would succeed.
  static Result<void> validate(const SamplingOptions& options, Index vocab_size) {
    return detail::check_sampling(options, vocab_size);
  }

  const SamplingOptions& options() const noexcept { return options_; }
  Index vocab_size() const noexcept { return vocab_size_; }

  // Other options for the tokens to come. The sequence of random numbers goes on, unless the seed
  // is another one; then, or with another mirostat_tau, mirostat begins anew. Errors: as create();
  // then nothing changes.
  Result<void> set_options(const SamplingOptions& options) {
    NIBBLE_TRY(changed, create(options, vocab_size_));
    if (options.seed == options_.seed) {
      changed.state_ = state_;
      if (options.mirostat_tau == options_.mirostat_tau) changed.surprise_limit_ = surprise_limit_;
    }
    *this = std::move(changed);
    return ok();
  }

  // `logits` (vocab_size): finite, or -infinity for tokens that must not come. `recent`: the tokens
  // so far, newest last, for penalties and DRY; values outside the vocabulary are ignored. Errors:
  // malformed (NaN or +infinity), invalid_argument (logits or bias leave no token). No random
  // number is used then.
  NIBBLE_LAZY Result<TokenLogprob> sample(std::span<const float> logits,
                                          std::span<const std::int32_t> recent) {
    NIBBLE_ASSERT(static_cast<Index>(logits.size()) == vocab_size_);
    const auto sum = ops::log_sum_exp(view_of(logits));
    if (is_nan(sum.log_sum)) return no_probabilities(logits);
    const auto logprob = [&](float logit) {
      return static_cast<float>(static_cast<double>(logit) - static_cast<double>(sum.max) -
                                sum.log_sum);
    };
    if (!top_.empty()) {
      candidates_.start(logits);
      candidates_.keep_best(top_.size());
      n_top_ = candidates_.size();
      for (std::size_t i = 0; i < n_top_; ++i) {
        top_[i] = {candidates_.id(i), logprob(candidates_.logit(i))};
      }
    }
    candidates_.start(logits);
    for (const LogitBias& b : options_.logit_bias) candidates_.add(b.token, b.bias);
    for (const SamplingStep step : steps_) {
      if (change(step, recent)) continue;
      if (!find_best()) return nothing_left();
      filter(step);
    }
    if (!find_best()) return nothing_left();
    const Candidates::Drawn drawn = candidates_.draw(uniform());
    if (learns_) learn(drawn.probability);
    return TokenLogprob{drawn.id, logprob(logits[static_cast<std::size_t>(drawn.id)])};
  }

  // The most likely tokens of the last sample(), options().top_logprobs of them if so many have a
  // probability, the most likely first. Valid until the next sample() or set_options().
  std::span<const TokenLogprob> top_logprobs() const noexcept { return {top_.data(), n_top_}; }

 private:
  static VectorView<const float> view_of(std::span<const float> x) noexcept {
    return VectorView<const float>(x.data(), x.size());
  }

  Sampler(const SamplingOptions& options, Index vocab_size)
      : options_(options),
        steps_(detail::needed_steps(options, vocab_size)),
        state_(options.seed),
        vocab_size_(vocab_size),
        surprise_limit_(2 * static_cast<double>(options.mirostat_tau)),
        top_(static_cast<std::size_t>((std::min)(options.top_logprobs, vocab_size))) {
    std::sort(options_.dry_breakers.begin(), options_.dry_breakers.end());
    learns_ = std::find(steps_.begin(), steps_.end(), SamplingStep::mirostat) != steps_.end();
    reserve();
  }

  static Error no_probabilities(std::span<const float> logits) {
    for (const float x : logits) {  // whether all are -infinity
      if (is_finite(static_cast<double>(x)) || is_nan(static_cast<double>(x)) || x > 0) {
        return detail::not_numbers("sampling");
      }
    }
    return nothing_left();
  }
  static Error nothing_left() {
    return detail::bad_sampling("no token is left; the logits or logit_bias ban all");
  }

  void reserve() {
    CandidateNeeds needs{.changes = !options_.logit_bias.empty(), .most_best = top_.size()};
    needs.weighs = steps_.empty() || !detail::is_greedy(steps_.back(), options_);
    bool repeats = false, are_all = true;  // are_all: no step has made a list yet
    for (const SamplingStep step : steps_) {
      switch (step) {
        case SamplingStep::penalties:
        case SamplingStep::dry:
          repeats = true;
          needs.changes = needs.changes || are_all;
          continue;
        case SamplingStep::xtc:
          needs.weighs = true;
          needs.changes = needs.changes || are_all;
          continue;
        case SamplingStep::temperature: continue;
        case SamplingStep::top_k:
          if (are_all) needs.most_best = (std::max)(needs.most_best, top_k());
          break;
        case SamplingStep::typical:
        case SamplingStep::top_p:
        case SamplingStep::min_p:
        case SamplingStep::mirostat:
          needs.weighs = true;
          needs.lists = needs.lists || are_all;
          break;
      }
      are_all = false;
    }
    const auto n = static_cast<std::size_t>(vocab_size_);
    candidates_.reserve(n, needs);
    if (!repeats) return;
    const bool has_dry = std::find(steps_.begin(), steps_.end(), SamplingStep::dry) != steps_.end();
    repeats_.reserve(n, has_dry ? static_cast<std::size_t>(options_.dry_window) : 0);
  }

  std::size_t top_k() const noexcept { return static_cast<std::size_t>(options_.top_k); }

  // Whether any token has a probability.
  NIBBLE_LAZY bool find_best() noexcept {
    const std::span<const float> all = candidates_.unknown_best();
    if (!all.empty()) {
      candidates_.set_best(static_cast<std::int32_t>(ops::argmax(view_of(all))));
    }
    return candidates_.any();
  }

  // The steps that change logits; false: it is none of them.
  bool change(SamplingStep step, std::span<const std::int32_t> recent) noexcept {
    const auto last = [&](Index n) {
      return recent.last((std::min)(recent.size(), static_cast<std::size_t>(n)));
    };
    if (step == SamplingStep::penalties) {
      const auto window = last(options_.repetition_window);
      repeats_.count(window);
      candidates_.change(window, repeats_, [this](double logit, std::uint32_t n) {
        const auto repetition = static_cast<double>(options_.repetition_penalty);
        return (logit > 0 ? logit / repetition : logit * repetition) -
               (n * static_cast<double>(options_.frequency_penalty) +
                static_cast<double>(options_.presence_penalty));
      });
      return true;
    }
    if (step == SamplingStep::dry) {
      const auto window = last(options_.dry_window);
      repeats_.find_repeated(window, options_.dry_allowed_length, options_.dry_breakers);
      candidates_.change(window, repeats_, [this](double logit, std::uint32_t n) {
        return logit - static_cast<double>(options_.dry_multiplier) *
                           power(static_cast<double>(options_.dry_base),
                                 n - static_cast<std::uint32_t>(options_.dry_allowed_length));
      });
      return true;
    }
    return false;
  }

  // The steps that drop tokens, and the temperature.
  void filter(SamplingStep step) noexcept {
    switch (step) {
      case SamplingStep::penalties:
      case SamplingStep::dry: return;  // see change()
      case SamplingStep::top_k: return candidates_.keep_best(top_k());
      case SamplingStep::typical:
        return candidates_.keep_near(candidates_.weigh().mean_distance,
                                     static_cast<double>(options_.typical_p));
      case SamplingStep::top_p:
        return candidates_.keep_near(0, static_cast<double>(options_.top_p));
      case SamplingStep::min_p:
        return candidates_.keep_up_to(-libm::log(static_cast<double>(options_.min_p)));
      case SamplingStep::xtc:
        if (!(uniform() < static_cast<double>(options_.xtc_probability))) return;
        return candidates_.drop_before_last(static_cast<double>(options_.xtc_threshold));
      case SamplingStep::temperature: return candidates_.divide_by(temperature());
      case SamplingStep::mirostat:
        return candidates_.keep_up_to(surprise_limit_ * kLog2 - libm::log(candidates_.weigh().sum));
    }
  }

  // Of the candidates.
  double temperature() const noexcept {
    const auto middle = static_cast<double>(options_.temperature);
    const auto range = static_cast<double>(options_.temperature_range);
    if (range == 0) return middle;
    const Candidates::Weighed w = candidates_.weigh();
    const double least = larger(middle - range, 0.0);
    if (w.n < 2) return least;
    const double share = w.entropy() / libm::log(static_cast<double>(w.n));
    return least +
           (middle + range - least) * libm::pow(smaller(larger(share, 0.0), 1.0),
                                                static_cast<double>(options_.temperature_exponent));
  }

  // Mirostat, after a token of this probability among the candidates.
  void learn(double probability) noexcept {
    const double surprise = -libm::log(probability) / kLog2;
    surprise_limit_ -= static_cast<double>(options_.mirostat_eta) *
                       (surprise - static_cast<double>(options_.mirostat_tau));
  }

  // Multiplications, for the same result on every machine.
  static double power(double base, std::uint32_t n) noexcept {
    double result = 1;
    for (; n > 0; n /= 2, base *= base) {
      if (n % 2 != 0) result *= base;
    }
    return result;
  }

  // splitmix64 (Steele, Lea and Flood 2014): the same numbers on every machine. In [0, 1).
  double uniform() noexcept {
    std::uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    return static_cast<double>(z >> 11) * 0x1p-53;
  }

  static constexpr double kLog2 = 0.693147180559945309;

  SamplingOptions options_;          // dry_breakers sorted
  std::vector<SamplingStep> steps_;  // that do something
  std::uint64_t state_;
  Index vocab_size_;
  double surprise_limit_;  // of mirostat, in bits
  bool learns_ = false;    // mirostat
  std::vector<TokenLogprob> top_;
  std::size_t n_top_ = 0;
  Repeats repeats_;
  Candidates candidates_;
};

}}  // namespace nibble::NIBBLE_ABI
