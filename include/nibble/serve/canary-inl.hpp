// SPDX-License-Identifier: Apache-2.0
//
// The functions of the canary. Included by canary.hpp.
#pragma once

#include <algorithm>
#include <atomic>
#include <new>
#include <utility>

#include "nibble/core/libm.hpp"
#include "nibble/core/native_thread.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/io/json.hpp"
#include "nibble/serve/canary.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

NIBBLE_INLINE double stable_share(std::string_view name, std::string_view id) noexcept {
  std::uint64_t hash = 0xCBF29CE484222325u;
  const auto add = [&](unsigned char byte) { hash = (hash ^ byte) * 0x100000001B3u; };
  for (const char c : name) add(static_cast<unsigned char>(c));
  add(0);  // between them: "a" and "bc" are not "ab" and "c"
  for (const char c : id) add(static_cast<unsigned char>(c));
  hash = (hash ^ (hash >> 33)) * 0xFF51AFD7ED558CCDu;
  hash = (hash ^ (hash >> 33)) * 0xC4CEB9FE1A85EC53u;
  hash ^= hash >> 33;
  return static_cast<double>(hash >> 11) * 0x1p-53;
}

// ---- ConfidenceSequence ------------------------------------------------------------------------

NIBBLE_INLINE ConfidenceSequence::ConfidenceSequence(double alpha) noexcept
    : log_term_(libm::log(2 / alpha)) {}

NIBBLE_INLINE double ConfidenceSequence::mean() const noexcept {
  return n_ == 0 ? 0 : sum_ / static_cast<double>(n_);
}

NIBBLE_INLINE void ConfidenceSequence::add(double value) noexcept {
  const double x = value > 0 ? (value < 1 ? value : 1) : 0;
  // What is known before x decides how much it weighs: mean and variance as if there had been one
  // more value, of mean and variance 1/2 and 1/4.
  const auto n_before = static_cast<double>(n_);
  const double expected = (0.5 + sum_) / (n_before + 1);
  const double variance = (0.25 + squares_) / (n_before + 1);
  const double n = n_before + 1;
  constexpr double kMostWeight = 0.5;
  double weight = libm::sqrt(2 * log_term_ / (variance * n * libm::log(1 + n)));
  if (weight > kMostWeight) weight = kMostWeight;
  const double off = x - expected;
  weight_ += weight;
  weighted_ += weight * x;
  penalty_ += off * off * (-libm::log(1 - weight) - weight);  // 4 (x - m)^2 psi(weight)

  ++n_;
  sum_ += x;
  const double now_off = x - (0.5 + sum_) / (n + 1);
  squares_ += now_off * now_off;

  const double middle = weighted_ / weight_, half = (log_term_ + penalty_) / weight_;
  // Those of before hold, too.
  if (middle - half > low_) low_ = middle - half;
  if (middle + half < high_) high_ = middle + half;
}

// ---- CanaryRule --------------------------------------------------------------------------------

NIBBLE_INLINE Result<CanaryRule> CanaryRule::parse(std::string_view json) {
  return catch_out_of_memory([&]() -> Result<CanaryRule> {
    CanaryRule rule;
    io::JsonReader reader(json);
    std::uint64_t seen = 0;
    const auto number = [&](double& value) -> Result<void> {
      NIBBLE_TRY(read, reader.number());
      value = read;
      return ok();
    };
    const auto count = [&](std::uint64_t& value) -> Result<void> {
      NIBBLE_TRY(read, reader.unsigned_integer());
      value = read;
      return ok();
    };
    NIBBLE_CHECK(reader.object([&](const std::string& key) -> Result<void> {
      constexpr std::string_view kNames[] = {
          "name",           "mode",  "share",       "max_quality_drop", "max_slowdown",
          "latency_cap_ms", "alpha", "min_answers", "max_answers"};
      const auto* const at = std::find(std::begin(kNames), std::end(kNames), key);
      if (at == std::end(kNames)) return reader.error("a canary has no '" + printable(key) + "'");
      const auto i = static_cast<unsigned>(at - std::begin(kNames));
      if ((seen >> i & 1) != 0) return reader.error("'" + key + "' is there twice");
      seen |= std::uint64_t{1} << i;
      switch (i) {
        case 0: {
          NIBBLE_TRY(text, reader.string());
          rule.name = std::move(text);
          return ok();
        }
        case 1: {
          NIBBLE_TRY(text, reader.string());
          if (text != "live" && text != "shadow") {
            return reader.error("mode: it is 'live' or 'shadow'");
          }
          rule.mode = text == "live" ? CanaryMode::live : CanaryMode::shadow;
          return ok();
        }
        case 2: return number(rule.share);
        case 3: return number(rule.max_quality_drop);
        case 4: return number(rule.max_slowdown);
        case 5: return number(rule.latency_cap_ms);
        case 6: return number(rule.alpha);
        case 7: return count(rule.min_answers);
        default: return count(rule.max_answers);
      }
    }));
    if (!reader.at_end()) return reader.error("more text behind the object");
    NIBBLE_CHECK(rule.validate());
    return rule;
  });
}

NIBBLE_INLINE Result<void> CanaryRule::validate() const {
  const auto refuse = [](const char* what) {
    return Error{Errc::invalid_argument, std::string("canary: ") + what};
  };
  if (name.empty()) return refuse("name must not be empty");
  if (!(share > 0 && share <= 1)) return refuse("share must be above 0 and at most 1");
  if (!(max_quality_drop >= 0 && max_quality_drop <= 1)) {
    return refuse("max_quality_drop must be from 0 to 1");
  }
  if (!(max_slowdown >= 0 && max_slowdown <= 1000)) {
    return refuse("max_slowdown must be from 0 to 1000");
  }
  if (!(latency_cap_ms > 0 && is_finite(latency_cap_ms))) {
    return refuse("latency_cap_ms must be a number above 0");
  }
  if (!(alpha > 0 && alpha < 1)) return refuse("alpha must be between 0 and 1");
  if (min_answers > max_answers || max_answers < 1) {
    return refuse("max_answers must be at least 1 and min_answers");
  }
  return ok();
}

// ---- Canary ------------------------------------------------------------------------------------

struct Canary::State {
  // Four intervals in mode live (quality and latency of both arms), two of differences in mode
  // shadow: if all hold, with a probability of 1 - alpha, no decision is wrong.
  explicit State(CanaryRule with_rule)
      : rule(std::move(with_rule)),
        quality{ConfidenceSequence(part_of_alpha()), ConfidenceSequence(part_of_alpha())},
        latency{ConfidenceSequence(part_of_alpha()), ConfidenceSequence(part_of_alpha())} {}

  double part_of_alpha() const noexcept {
    return rule.alpha / (rule.mode == CanaryMode::live ? 4 : 2);
  }

  // Both from 0 to 1.
  double latency_of(const CanaryOutcome& outcome) const noexcept {
    return outcome.has_failed ? 1 : (std::min)(1.0, outcome.latency_ms / rule.latency_cap_ms);
  }
  static double quality_of(const CanaryOutcome& outcome) noexcept {
    return outcome.has_failed ? 0 : outcome.quality;
  }
  Result<void> accepts(CanaryMode mode, const CanaryOutcome& outcome) const {
    if (mode != rule.mode) {
      return Error{Errc::invalid_argument,
                   "canary: add() is for the mode live, add_pair() for the mode shadow"};
    }
    const bool is_valid = outcome.latency_ms >= 0 && is_finite(outcome.latency_ms) &&
                          outcome.quality >= 0 && outcome.quality <= 1;
    if (outcome.has_failed || is_valid) return ok();
    return Error{Errc::invalid_argument,
                 "canary: a latency must be a number of at least 0, a quality from 0 to 1"};
  }
  void decide() noexcept;

  const CanaryRule rule;
  mutable std::atomic<std::uint32_t> mutex{0};  // of all that follows
  // Mode live: of baseline and candidate. Mode shadow: the first of each, of the candidate's less
  // the baseline's, moved to [0, 1]; latencies less the longest that the candidate's may be.
  ConfidenceSequence quality[2], latency[2];
  double baseline_latency = 0;  // sum, of pairs
  CanaryVerdict verdict;
};

NIBBLE_INLINE void Canary::State::decide() noexcept {
  CanaryVerdict& v = verdict;
  const double allowed = 1 + rule.max_slowdown;
  const double infinity = static_cast<double>(kInfinity);
  bool is_slower = false, is_fast_enough = false;
  if (rule.mode == CanaryMode::live) {
    v.quality_low = quality[1].low() - quality[0].high();
    v.quality_high = quality[1].high() - quality[0].low();
    const auto& [baseline, candidate] = latency;
    is_slower = candidate.low() > allowed * baseline.high();
    is_fast_enough = candidate.high() <= allowed * baseline.low();
    v.slowdown_low = baseline.high() > 0 ? candidate.low() / baseline.high() - 1 : -1;
    v.slowdown_high = baseline.low() > 0 ? candidate.high() / baseline.low() - 1 : infinity;
  } else {
    v.quality_low = 2 * quality[0].low() - 1;
    v.quality_high = 2 * quality[0].high() - 1;
    const double low = latency[0].low() * (1 + allowed) - allowed;
    const double high = latency[0].high() * (1 + allowed) - allowed;
    is_slower = low > 0;
    is_fast_enough = high <= 0;
    const double mean = baseline_latency / static_cast<double>(v.n_baseline);
    v.slowdown_low = mean > 0 ? low / mean + rule.max_slowdown : -infinity;
    v.slowdown_high = mean > 0 ? high / mean + rule.max_slowdown : infinity;
  }
  const auto end = [&](CanaryDecision decision, const char* reason) {
    v.decision = decision;
    v.reason = reason;
  };
  const auto roll_back = CanaryDecision::roll_back;
  if (v.quality_high < -rule.max_quality_drop) return end(roll_back, "quality is worse");
  if (is_slower) return end(roll_back, "latency is worse");
  const bool is_good_enough = v.quality_low >= -rule.max_quality_drop;
  if (is_good_enough && is_fast_enough && v.n_candidate >= rule.min_answers) {
    return end(CanaryDecision::promote, "neither quality nor latency is worse");
  }
  if (v.n_candidate >= rule.max_answers) return end(roll_back, "not known to be as good in time");
}

NIBBLE_INLINE Result<Canary> Canary::create(CanaryRule rule) {
  NIBBLE_CHECK(rule.validate());
  Canary canary;
  canary.state_ = Owned<State>(new (std::nothrow) State(std::move(rule)));
  if (!canary.state_) return Error{Errc::out_of_memory, "canary: out of memory"};
  return canary;
}

NIBBLE_INLINE bool Canary::is_chosen(std::string_view id) const noexcept {
  return stable_share(state_->rule.name, id) < state_->rule.share;
}

NIBBLE_INLINE CanaryArm Canary::arm_of(std::string_view id) const noexcept {
  const CanaryDecision decision = verdict().decision;
  if (decision == CanaryDecision::promote) return CanaryArm::candidate;
  const bool is_candidate =
      decision == CanaryDecision::none && state_->rule.mode == CanaryMode::live && is_chosen(id);
  return is_candidate ? CanaryArm::candidate : CanaryArm::baseline;
}

NIBBLE_INLINE Result<void> Canary::add(CanaryArm arm, const CanaryOutcome& outcome) {
  State& s = *state_;
  NIBBLE_CHECK(s.accepts(CanaryMode::live, outcome));
  const WordLock lock(s.mutex);
  if (s.verdict.decision != CanaryDecision::none) return ok();
  const auto i = static_cast<std::size_t>(arm);
  s.quality[i].add(s.quality_of(outcome));
  s.latency[i].add(s.latency_of(outcome));
  ++(arm == CanaryArm::baseline ? s.verdict.n_baseline : s.verdict.n_candidate);
  s.decide();
  return ok();
}

NIBBLE_INLINE Result<void> Canary::add_pair(const CanaryOutcome& baseline,
                                            const CanaryOutcome& candidate) {
  State& s = *state_;
  NIBBLE_CHECK(s.accepts(CanaryMode::shadow, baseline));
  NIBBLE_CHECK(s.accepts(CanaryMode::shadow, candidate));
  const WordLock lock(s.mutex);
  if (s.verdict.decision != CanaryDecision::none) return ok();
  s.quality[0].add((s.quality_of(candidate) - s.quality_of(baseline) + 1) / 2);
  const double allowed = 1 + s.rule.max_slowdown, before = s.latency_of(baseline);
  s.latency[0].add((s.latency_of(candidate) - allowed * before + allowed) / (1 + allowed));
  s.baseline_latency += before;
  ++s.verdict.n_baseline;
  ++s.verdict.n_candidate;
  s.decide();
  return ok();
}

NIBBLE_INLINE CanaryVerdict Canary::verdict() const noexcept {
  const WordLock lock(state_->mutex);
  return state_->verdict;
}

NIBBLE_INLINE const CanaryRule& Canary::rule() const noexcept { return state_->rule; }

}}}  // namespace nibble::NIBBLE_ABI::serve
