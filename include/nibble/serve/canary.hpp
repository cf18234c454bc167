// SPDX-License-Identifier: Apache-2.0
//
// A new version of a model for a few, compared with the old one, until it is known whether all may
// have it: latency and quality decide, by limits that stand in a file.
//
//   auto canary = serve::Canary::create(*serve::CanaryRule::parse(text));
//   const auto arm = canary->arm_of(device_id);  // the same for a device, always
//   ... answer, with the model of this arm ...
//   canary->add(arm, {.latency_ms = 140, .quality = 1});
//   if (canary->verdict().decision == serve::CanaryDecision::roll_back) ...
//
// One may look after every answer, and stop whenever there is a decision: the intervals below hold
// at all times together ("always valid"), so looking often makes no mistake more likely. They are
// the empirical Bernstein confidence sequences of Waudby-Smith and Ramdas ("Estimating means of
// bounded random variables by betting", 2023, theorem 2), which need no more than that answers
// are independent and their values between two bounds, whatever their distribution.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "nibble/core/owned.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

// A number from 0 to 1 by a name and an id, the same on every machine and in every version: who is
// in the first 5 % of one name is in those of another no more often than others. (FNV-1a of
// both, mixed as MurmurHash3 ends.) Not secret: who may choose an id can choose the share.
double stable_share(std::string_view name, std::string_view id) noexcept;

// An interval in which the mean of values from 0 to 1 lies: with a probability of 1 - alpha it does
// so after every value that is added. (So one may stop when it is small enough.)
class ConfidenceSequence {
 public:
  // alpha in (0, 1).
  explicit ConfidenceSequence(double alpha) noexcept;

  // Values outside [0, 1] are cut; NaN counts as 0.
  void add(double value) noexcept;

  double low() const noexcept { return low_; }
  double high() const noexcept { return high_; }
  double mean() const noexcept;  // 0 of none
  std::uint64_t n() const noexcept { return n_; }

 private:
  double log_term_;
  std::uint64_t n_ = 0;
  double sum_ = 0, squares_ = 0;  // of values; of their distances to the mean that was expected
  double weight_ = 0, weighted_ = 0, penalty_ = 0;
  double low_ = 0, high_ = 1;
};

enum class CanaryMode : std::uint8_t {
  // Those in the share get answers of the candidate.
  live,
  // All get answers of the baseline; for those in the share the candidate answers too, unseen. Each
  // such pair is compared: differences are smaller than what requests differ by, so it takes fewer.
  shadow,
};

enum class CanaryArm : std::uint8_t { baseline, candidate };

// The file: one JSON object with these names; `mode` is "live" or "shadow". What is not there has
// the value that stands here, but `name` must be there, and names that are not known are errors.
struct CanaryRule {
  std::string name;  // of the rollout; another name chooses other devices
  CanaryMode mode = CanaryMode::live;
  double share = 0.05;  // in (0, 1]: of those who are chosen
  // The candidate is rolled back when it is known to be worse by more than this, and promoted when
  // it is known not to be: in both measures.
  double max_quality_drop = 0.02;  // of the mean quality, from 0 to 1
  double max_slowdown = 0.1;       // of the mean latency: 0.1 is 10 %
  // What takes longer counts as so long. The closer to the usual times, the fewer answers it takes.
  double latency_cap_ms = 10'000;
  // The probability of a wrong decision: to promote what is worse than that, or to roll back what
  // is not.
  double alpha = 0.05;
  // It is promoted after so many answers at the earliest, and rolled back when there is no other
  // decision after so many.
  std::uint64_t min_answers = 100, max_answers = 100'000;

  // Errors: malformed (no JSON object with these names), invalid_argument (a value out of range).
  static Result<CanaryRule> parse(std::string_view json);
  Result<void> validate() const;
};

// Of one answer.
struct CanaryOutcome {
  double latency_ms = 0;
  double quality = 1;       // from 0 to 1: of a judge, of known answers, of a user's thumb
  bool has_failed = false;  // there was no answer: it counts as the worst of both
};

enum class CanaryDecision : std::uint8_t { none, promote, roll_back };

struct CanaryVerdict {
  CanaryDecision decision = CanaryDecision::none;
  const char* reason = "";  // in words, for a log
  // Where the candidate's mean quality less the baseline's is, and by which part its mean latency
  // is more: the ends of the intervals, infinite where nothing is known.
  double quality_low = -1, quality_high = 1;
  double slowdown_low = -1, slowdown_high = static_cast<double>(kInfinity);
  std::uint64_t n_baseline = 0, n_candidate = 0;  // answers
};

// Once there is a decision it stays; answers that come later are counted no more. Thread-safe.
class Canary {
 public:
  // Errors: those of CanaryRule::validate().
  static Result<Canary> create(CanaryRule rule);

  // Whether a device or user is among the share.
  bool is_chosen(std::string_view id) const noexcept;
  // Whose answer it gets. After a decision: of the arm that has won.
  CanaryArm arm_of(std::string_view id) const noexcept;

  // An answer, in mode live. Errors: invalid_argument (the mode is shadow; a latency that is
  // negative or no number, a quality outside [0, 1]).
  Result<void> add(CanaryArm arm, const CanaryOutcome& outcome);
  // Both answers to one request, in mode shadow. Errors: as above.
  Result<void> add_pair(const CanaryOutcome& baseline, const CanaryOutcome& candidate);

  CanaryVerdict verdict() const noexcept;
  const CanaryRule& rule() const noexcept;

 private:
  struct State;
  Canary() noexcept = default;

  Owned<State> state_;
};

constexpr const char* to_string(CanaryDecision decision) noexcept {
  switch (decision) {
    case CanaryDecision::none: return "none";
    case CanaryDecision::promote: return "promote";
    case CanaryDecision::roll_back: return "roll back";
  }
  return "unknown";
}

}}}  // namespace nibble::NIBBLE_ABI::serve

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/serve/canary-inl.hpp"
#endif
