// SPDX-License-Identifier: Apache-2.0
//
// What sampling options mean before there are logits: whether they are in range, and which steps
// they need.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/generate/sampling.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace detail {

inline Error bad_sampling(const std::string& what) {
  return {Errc::invalid_argument, "sampling: " + what};
}

inline Result<void> check_numbers(const SamplingOptions& o) {
  constexpr float kMost = kFloatMax;
  const struct {
    const char* name;
    float value, least, most;
    bool may_be_least;
    const char* range;
  } numbers[] = {
      {"temperature", o.temperature, 0, kMost, true, "at least 0"},
      {"temperature_range", o.temperature_range, 0, kMost, true, "at least 0"},
      {"temperature_exponent", o.temperature_exponent, 0, kMost, true, "at least 0"},
      {"top_p", o.top_p, 0, 1, false, "in (0, 1]"},
      {"min_p", o.min_p, 0, 1, true, "in [0, 1]"},
      {"typical_p", o.typical_p, 0, 1, false, "in (0, 1]"},
      {"repetition_penalty", o.repetition_penalty, 0, kMost, false, "positive"},
      {"frequency_penalty", o.frequency_penalty, -kMost, kMost, true, "a number"},
      {"presence_penalty", o.presence_penalty, -kMost, kMost, true, "a number"},
      {"dry_multiplier", o.dry_multiplier, 0, kMost, true, "at least 0"},
      {"dry_base", o.dry_base, 1, kMost, true, "at least 1"},
      {"xtc_probability", o.xtc_probability, 0, 1, true, "in [0, 1]"},
      {"xtc_threshold", o.xtc_threshold, 0, 1, false, "in (0, 1]"},
      {"mirostat_tau", o.mirostat_tau, 0, kMost, true, "at least 0"},
      {"mirostat_eta", o.mirostat_eta, 0, 1, true, "in [0, 1]"},
  };
  for (const auto& n : numbers) {
    if (is_finite(static_cast<double>(n.value)) && n.value <= n.most &&
        (n.value > n.least || (n.may_be_least && n.value == n.least))) {
      continue;
    }
    return bad_sampling(std::string(n.name) + " must be " + n.range);
  }
  return ok();
}

inline Result<void> check_counts(const SamplingOptions& o) {
  constexpr Index kMost = (std::numeric_limits<Index>::max)();
  const struct {
    const char* name;
    Index value, least, most;
  } counts[] = {
      {"top_k", o.top_k, 0, kMost},
      {"repetition_window", o.repetition_window, 0, kMost},
      {"dry_allowed_length", o.dry_allowed_length, 1, kMost},
      {"dry_window", o.dry_window, 0, kMaxDryWindow},
      {"top_logprobs", o.top_logprobs, 0, kMost},
  };
  for (const auto& n : counts) {
    if (n.value >= n.least && n.value <= n.most) continue;
    return bad_sampling(n.name + (n.value < n.least ? " must be at least " + to_text(n.least)
                                                    : " must be at most " + to_text(n.most)));
  }
  return ok();
}

inline Result<void> check_tokens(const SamplingOptions& o, Index vocab_size) {
  const auto is_token = [&](std::int32_t id) { return id >= 0 && id < vocab_size; };
  const auto no_token = [&](const char* name, std::int32_t id) {
    return bad_sampling(std::string(name) + ": token " + to_text(id) + " is not in [0, " +
                        to_text(vocab_size) + ")");
  };
  for (const std::int32_t id : o.dry_breakers) {
    if (!is_token(id)) return no_token("dry_breakers", id);
  }
  std::vector<LogitBias> banned;
  for (const LogitBias& b : o.logit_bias) {
    if (!is_token(b.token)) return no_token("logit_bias", b.token);
    if (is_finite(static_cast<double>(b.bias))) continue;
    if (!(b.bias < 0)) {
      return bad_sampling("logit_bias of token " + to_text(b.token) +
                          " must be a number or -infinity");
    }
    banned.push_back(b);
  }
  if (static_cast<Index>(banned.size()) < vocab_size) return ok();
  std::sort(banned.begin(), banned.end(),
            [](const LogitBias& a, const LogitBias& b) { return a.token < b.token; });
  const auto end =
      std::unique(banned.begin(), banned.end(),
                  [](const LogitBias& a, const LogitBias& b) { return a.token == b.token; });
  if (end - banned.begin() < vocab_size) return ok();
  return bad_sampling("logit_bias: no token is left");
}

inline Result<void> check_steps(const SamplingOptions& o) {
  for (std::size_t i = 0; i < o.steps.size(); ++i) {
    const SamplingStep step = o.steps[i];
    if (std::find(std::begin(kSamplingSteps), std::end(kSamplingSteps), step) ==
        std::end(kSamplingSteps)) {
      return bad_sampling("steps: there is no step " + to_text(static_cast<int>(step)));
    }
    for (std::size_t j = 0; j < i; ++j) {
      if (o.steps[j] == step) {
        return bad_sampling(std::string("steps: ") + to_string(step) + " is there twice");
      }
    }
  }
  return ok();
}

inline Result<void> check_sampling(const SamplingOptions& options, Index vocab_size) {
  NIBBLE_CHECK(check_numbers(options));
  NIBBLE_CHECK(check_counts(options));
  if (vocab_size < 1) return bad_sampling("the vocabulary is empty");
  NIBBLE_CHECK(check_tokens(options, vocab_size));
  return check_steps(options);
}

// Whether a step can change anything.
inline bool does_something(SamplingStep step, const SamplingOptions& o, Index vocab_size) noexcept {
  switch (step) {
    case SamplingStep::penalties:
      return o.repetition_window > 0 &&
             (o.repetition_penalty != 1 || o.frequency_penalty != 0 || o.presence_penalty != 0);
    case SamplingStep::dry: return o.dry_multiplier > 0 && o.dry_window > o.dry_allowed_length;
    case SamplingStep::top_k: return o.top_k > 0 && o.top_k < vocab_size;
    case SamplingStep::typical: return o.typical_p < 1;
    case SamplingStep::top_p: return o.top_p < 1;
    case SamplingStep::min_p: return o.min_p > 0;
    case SamplingStep::xtc: return o.xtc_probability > 0 && o.xtc_threshold <= 0.5f;
    case SamplingStep::temperature: return o.temperature != 1 || o.temperature_range > 0;
    case SamplingStep::mirostat: return o.mirostat_tau > 0;
  }
  return false;
}

// Whether the most likely token is always one of those that a step keeps.
constexpr bool keeps_best(SamplingStep step) noexcept {
  return step == SamplingStep::top_k || step == SamplingStep::top_p ||
         step == SamplingStep::min_p || step == SamplingStep::mirostat;
}

// With mirostat, whether the default order has a step.
constexpr bool goes_with_mirostat(SamplingStep step) noexcept {
  return step == SamplingStep::penalties || step == SamplingStep::dry ||
         step == SamplingStep::temperature || step == SamplingStep::mirostat;
}

// Only temperature 0 leaves one token whatever the logits are.
inline bool is_greedy(SamplingStep step, const SamplingOptions& o) noexcept {
  return step == SamplingStep::temperature && o.temperature == 0 && o.temperature_range == 0;
}

// The steps that must be done to get what all of them would give.
inline std::vector<SamplingStep> needed_steps(const SamplingOptions& o, Index vocab_size) {
  std::vector<SamplingStep> needed;
  const auto add = [&](SamplingStep step) {
    if (!needed.empty() && is_greedy(needed.back(), o)) return;  // one token is left
    if (!does_something(step, o, vocab_size)) return;
    while (is_greedy(step, o) && !needed.empty() && keeps_best(needed.back())) needed.pop_back();
    needed.push_back(step);
  };
  for (const SamplingStep step : o.steps) add(step);
  if (!o.steps.empty()) return needed;
  for (const SamplingStep step : kSamplingSteps) {
    if (o.mirostat_tau == 0 || goes_with_mirostat(step)) add(step);
  }
  return needed;
}

}}}  // namespace nibble::NIBBLE_ABI::detail
