// SPDX-License-Identifier: Apache-2.0
//
// Chooses a token from logits: bias, repetition penalty, top-k, top-p, min-p, temperature, in this
// order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "nibble/core/libm.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/generate/candidates.hpp"
#include "nibble/generate/sampling.hpp"
#include "nibble/ops/softmax.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct Sampled {
  std::int32_t id = 0;
  float logprob = 0;  // natural logarithm of the model's own probability, before any option
};

// One sequence of random choices. Allocates when created and in set_options(), never after.
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
    const auto bad = [](const std::string& what) {
      return Error{Errc::invalid_argument, "sampling: " + what};
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
    Index n_banned = 0;
    std::int32_t last_banned = -1;
    for (const LogitBias& b : sorted(options.logit_bias)) {
      if (b.token < 0 || b.token >= vocab_size)
        return bad("logit_bias: token " + to_text(b.token) + " is not in [0, " +
                   to_text(vocab_size) + ")");
      const bool is_number = is_finite(static_cast<double>(b.bias));
      if (!is_number && !(b.bias < 0))
        return bad("logit_bias of token " + to_text(b.token) + " must be a number or -infinity");
      if (is_number || b.token == last_banned) continue;
      last_banned = b.token;
      ++n_banned;
    }
    if (n_banned >= vocab_size) return bad("logit_bias: no token is left");
    return ok();
  }

  const SamplingOptions& options() const noexcept { return options_; }
  Index vocab_size() const noexcept { return vocab_size_; }

  // Other options for the tokens to come. The sequence of random numbers goes on, unless the seed
  // is another one. Errors: as create(); then nothing changes.
  Result<void> set_options(const SamplingOptions& options) {
    NIBBLE_TRY(changed, create(options, vocab_size_));
    if (options.seed == options_.seed) changed.state_ = state_;
    *this = std::move(changed);
    return ok();
  }

  // `logits` (vocab_size): finite or -inf, not all -inf; otherwise logprob is NaN. `recent`: the
  // tokens so far, newest last, for the penalty; values outside the vocabulary are ignored.
  NIBBLE_LAZY Sampled sample(std::span<const float> logits,
                             std::span<const std::int32_t> recent) noexcept {
    NIBBLE_ASSERT(static_cast<Index>(logits.size()) == vocab_size_);
    const std::span<const float> changed = change(logits, recent);
    const auto best = static_cast<std::int32_t>(ops::argmax(view_of(changed)));
    const auto sum = ops::log_sum_exp(view_of(logits));
    const bool chooses = options_.temperature > 0 && !is_nan(sum.log_sum);
    const std::int32_t id = chooses ? choose(changed, best) : best;
    const double logit = static_cast<double>(logits[static_cast<std::size_t>(id)]);
    return {id, static_cast<float>(logit - static_cast<double>(sum.max) - sum.log_sum)};
  }

 private:
  static VectorView<const float> view_of(std::span<const float> x) noexcept {
    return VectorView<const float>(x.data(), x.size());
  }

  Sampler(const SamplingOptions& options, Index vocab_size)
      : state_(options.seed), vocab_size_(vocab_size) {
    take(options);
  }

  static std::vector<LogitBias> sorted(std::vector<LogitBias> biases) {
    std::stable_sort(biases.begin(), biases.end(),
                     [](const LogitBias& a, const LogitBias& b) { return a.token < b.token; });
    return biases;
  }

  void take(const SamplingOptions& options) {
    options_ = options;
    options_.logit_bias = sorted(options.logit_bias);
    const auto n = static_cast<std::size_t>(vocab_size_);
    top_k_ = options.top_k < vocab_size_ ? static_cast<std::size_t>(options.top_k) : 0;
    const bool changes = !options_.logit_bias.empty() || options.repetition_penalty != 1;
    if (changes) changed_.resize(n);
    if (options.temperature == 0) return;
    candidates_.reserve(n, top_k_, top_k_ == 0 && options.top_p == 1 && options.min_p == 0);
  }

  // The logits with bias and penalty.
  std::span<const float> change(std::span<const float> logits,
                                std::span<const std::int32_t> recent) noexcept {
    const std::span<const LogitBias> biases = options_.logit_bias;
    if (biases.empty() && options_.repetition_penalty == 1) return logits;
    float* const changed = values(changed_);
    std::memcpy(changed, logits.data(), logits.size_bytes());
    for (const LogitBias& b : biases) changed[b.token] += b.bias;
    if (options_.repetition_penalty != 1) {
      const auto window = static_cast<std::size_t>(options_.repetition_window);
      for (const std::int32_t id : recent.last((std::min)(recent.size(), window))) {
        if (id < 0 || id >= vocab_size_) continue;  // a row of numbers
        // From the logit before the penalty: a token that appears twice is penalized once.
        const float logit = biased(logits[static_cast<std::size_t>(id)], id);
        changed[id] =
            logit > 0 ? logit / options_.repetition_penalty : logit * options_.repetition_penalty;
      }
    }
    return {changed, logits.size()};
  }

  float biased(float logit, std::int32_t id) const noexcept {
    const auto& biases = options_.logit_bias;
    auto b = std::partition_point(biases.begin(), biases.end(),
                                  [id](const LogitBias& x) { return x.token < id; });
    for (; b != biases.end() && b->token == id; ++b) logit += b->bias;
    return logit;
  }

  std::int32_t choose(std::span<const float> logits, std::int32_t best_id) noexcept {
    const auto best = static_cast<double>(logits[static_cast<std::size_t>(best_id)]);
    if (!is_finite(best)) return best_id;  // there is nothing to choose from
    const auto top_p = static_cast<double>(options_.top_p);
    const bool has_floor = options_.min_p > 0;
    const double floor = has_floor ? best + libm::log(static_cast<double>(options_.min_p)) : best;
    if (top_k_ > 0) {
      candidates_.take_best(logits, top_k_);
      if (top_p < 1) candidates_.keep_mass(best, top_p * candidates_.mass(best));
    } else if (top_p < 1) {
      const double enough = candidates_.take_mass(logits, best, top_p);
      candidates_.keep_mass(best, enough);
    } else if (has_floor) {
      candidates_.take_from(logits, floor);
    } else {
      candidates_.take_all(logits);
    }
    if (has_floor) candidates_.keep_from(floor);
    return candidates_.draw(best, static_cast<double>(options_.temperature), uniform());
  }

  // splitmix64 (Steele, Lea and Flood 2014): the same numbers on every machine. In [0, 1).
  double uniform() noexcept {
    std::uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    return static_cast<double>(z >> 11) * 0x1p-53;
  }

  SamplingOptions options_;  // logit_bias sorted by token
  std::uint64_t state_;
  Index vocab_size_;
  std::size_t top_k_ = 0;               // 0: all
  std::vector<Scalar<float>> changed_;  // (vocab_size) if there is a bias or penalty
  Candidates candidates_;
};

}}  // namespace nibble::NIBBLE_ABI
