// SPDX-License-Identifier: Apache-2.0
//
// Rollouts to a few, by simulation: how often a decision is wrong, and how soon it is made.
#include "nibble/serve/canary.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "serve/values.hpp"

namespace canary_test {

using namespace nibble;
using namespace nibble::serve;
using test::code_of;
using test::value_of;

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Theorem 2 of Waudby-Smith and Ramdas, by the letter and from all values anew.
std::pair<double, double> interval_of(const std::vector<double>& x, double alpha) {
  double low = 0, high = 1;
  for (std::size_t t = 1; t <= x.size(); ++t) {
    double sum_lambda = 0, sum_lambda_x = 0, sum_v_psi = 0;
    for (std::size_t i = 1; i <= t; ++i) {
      const auto mean_after = [&](std::size_t n) {
        double sum = 0.5;
        for (std::size_t j = 0; j < n; ++j) sum += x[j];
        return sum / static_cast<double>(n + 1);
      };
      double squares = 0.25;
      for (std::size_t j = 1; j < i; ++j) squares += std::pow(x[j - 1] - mean_after(j), 2);
      const double variance = squares / static_cast<double>(i);
      const auto n = static_cast<double>(i);
      const double lambda =
          std::min(0.5, std::sqrt(2 * std::log(2 / alpha) / (variance * n * std::log(n + 1))));
      const double psi = (-std::log(1 - lambda) - lambda) / 4;
      sum_lambda += lambda;
      sum_lambda_x += lambda * x[i - 1];
      sum_v_psi += 4 * std::pow(x[i - 1] - mean_after(i - 1), 2) * psi;
    }
    const double middle = sum_lambda_x / sum_lambda;
    const double half = (std::log(2 / alpha) + sum_v_psi) / sum_lambda;
    low = std::max(low, middle - half);
    high = std::min(high, middle + half);
  }
  return {low, high};
}

struct Arms {
  double baseline_quality = 0.9, candidate_quality = 0.9;
  double baseline_ms = 100, candidate_ms = 100;  // means, of a uniform distribution
};

// Answers until there is a decision.
CanaryVerdict roll_out(const CanaryRule& rule, const Arms& arms, std::mt19937& random) {
  Canary canary = value_of(Canary::create(rule));
  std::uniform_real_distribution<double> uniform(0, 1);
  const auto answer = [&](double quality, double ms) {
    return CanaryOutcome{.latency_ms = 2 * ms * uniform(random),
                         .quality = uniform(random) < quality ? 1.0 : 0.0};
  };
  while (canary.verdict().decision == CanaryDecision::none) {
    const CanaryOutcome candidate = answer(arms.candidate_quality, arms.candidate_ms);
    if (rule.mode == CanaryMode::shadow) {
      REQUIRE(canary.add_pair(answer(arms.baseline_quality, arms.baseline_ms), candidate));
      continue;
    }
    REQUIRE(canary.add(CanaryArm::candidate, candidate));
    for (int i = 0; i < 4; ++i) {
      REQUIRE(canary.add(CanaryArm::baseline, answer(arms.baseline_quality, arms.baseline_ms)));
    }
  }
  return canary.verdict();
}

struct Decisions {
  int n_promoted = 0, n_rolled_back = 0, n_undecided = 0;
  std::uint64_t longest = 0;  // answers of the candidate
};
Decisions roll_out_often(const CanaryRule& rule, const Arms& arms, int n) {
  Decisions all;
  std::mt19937 random(11);
  for (int i = 0; i < n; ++i) {
    const CanaryVerdict v = roll_out(rule, arms, random);
    if (v.decision == CanaryDecision::promote) {
      ++all.n_promoted;
    } else if (v.n_candidate >= rule.max_answers) {
      ++all.n_undecided;
    } else {
      ++all.n_rolled_back;
    }
    all.longest = std::max(all.longest, v.n_candidate);
  }
  return all;
}

// The most failures of n that a rate of `rate` has, but for one in ten thousand runs.
double most_of(int n, double rate) { return n * rate + 4 * std::sqrt(n * rate * (1 - rate)); }

}  // namespace

TEST_CASE("who is chosen: the same everywhere, as many as wanted, other ones for another name") {
  // These numbers must never change: devices would move between the arms.
  CHECK(stable_share("", "") == doctest::Approx(0.722706486340339).epsilon(1e-15));
  CHECK(stable_share("rollout-7", "device-1") ==
        doctest::Approx(0.09401193760597104).epsilon(1e-15));
  CHECK(stable_share("rollout-8", "device-1") ==
        doctest::Approx(0.17151598927100875).epsilon(1e-15));
  CHECK(stable_share("a", "bc") != stable_share("ab", "c"));
  constexpr int kDevices = 40'000;
  int n_first = 0, n_second = 0, n_both = 0;
  std::vector<int> tenths(10);
  for (int i = 0; i < kDevices; ++i) {
    const std::string id = "device-" + std::to_string(i);
    const double share = stable_share("first", id);
    REQUIRE((share >= 0 && share < 1));
    ++tenths[static_cast<std::size_t>(share * 10)];
    const bool is_first = share < 0.05, is_second = stable_share("second", id) < 0.05;
    n_first += is_first;
    n_second += is_second;
    n_both += is_first && is_second;
  }
  CHECK(std::abs(n_first - 2000) < 180);  // four standard deviations
  CHECK(std::abs(n_second - 2000) < 180);
  CHECK(std::abs(n_both - 100) < 40);
  double chi_squared = 0;
  for (const int n : tenths) chi_squared += std::pow(n - kDevices / 10, 2) / (kDevices / 10);
  CHECK(chi_squared < 33.7);  // 9 degrees of freedom: one in ten thousand
}

TEST_CASE("confidence sequence: the theorem") {
  std::mt19937 random(3);
  std::uniform_real_distribution<double> uniform(0, 1);
  for (const double alpha : {0.05, 0.001}) {
    ConfidenceSequence sequence(alpha);
    CHECK(sequence.low() == 0);
    CHECK(sequence.high() == 1);
    CHECK(sequence.mean() == 0);
    std::vector<double> x;
    for (int i = 0; i < 60; ++i) {
      x.push_back(i % 3 == 0 ? uniform(random) : 0.9);
      sequence.add(x.back());
    }
    const auto [low, high] = interval_of(x, alpha);
    CHECK(sequence.low() == doctest::Approx(low).epsilon(1e-12));
    CHECK(sequence.high() == doctest::Approx(high).epsilon(1e-12));
    CHECK(sequence.n() == 60);
  }
  ConfidenceSequence cut(0.05);
  for (int i = 0; i < 400; ++i) cut.add(i % 2 == 0 ? 7 : -3);
  CHECK(cut.mean() == 0.5);
  CHECK((cut.low() < 0.5 && cut.high() > 0.5));
  ConfidenceSequence nan(0.05);
  for (int i = 0; i < 100; ++i) nan.add(kNan);
  CHECK(nan.mean() == 0);
  CHECK(nan.high() < 0.2);
}

TEST_CASE("confidence sequence: the mean is outside at any time with at most alpha") {
  constexpr int kRuns = 400, kSteps = 1500;
  constexpr double kAlpha = 0.1;
  for (const double p : {0.02, 0.5, 0.97}) {
    std::mt19937 random(5);
    std::bernoulli_distribution coin(p);
    int n_wrong = 0, n_naive = 0;
    double width = 0;
    for (int run = 0; run < kRuns; ++run) {
      ConfidenceSequence sequence(kAlpha);
      bool is_naive_wrong = false;
      for (int i = 0; i < kSteps; ++i) {
        sequence.add(coin(random) ? 1 : 0);
        // The usual interval of a fixed number of values, looked at each time.
        const double n = i + 1, mean = sequence.mean();
        if (i >= 30) {
          const double half = 1.645 * std::sqrt(p * (1 - p) / n);
          is_naive_wrong |= std::abs(mean - p) > half;
        }
      }
      n_wrong += sequence.low() > p || sequence.high() < p;
      n_naive += is_naive_wrong;
      width += (sequence.high() - sequence.low()) / kRuns;
    }
    MESSAGE("mean ", p, ": wrong in ", n_wrong, " of ", kRuns, " runs, width ", width,
            "; the usual interval is wrong in ", n_naive);
    CHECK(n_wrong <= most_of(kRuns, kAlpha));
    CHECK(n_naive > most_of(kRuns, kAlpha));  // so this test can fail
    // And it says something: at most three times the usual interval.
    CHECK(width < 3 * 2 * 1.645 * std::sqrt(p * (1 - p) / kSteps) + 0.01);
  }
}

TEST_CASE("rollouts at the limit: wrong decisions are rare") {
  constexpr int kRuns = 60;
  for (const CanaryMode mode : {CanaryMode::live, CanaryMode::shadow}) {
    const CanaryRule rule = {.name = "x",
                             .mode = mode,
                             .max_quality_drop = 0.05,
                             .max_slowdown = 0.2,
                             .latency_cap_ms = 300,
                             .alpha = 0.1,
                             .min_answers = 30,
                             .max_answers = 1500};
    // As bad as just allowed, in one measure: it is not to be rolled back ...
    const Decisions quality =
        roll_out_often(rule, {.candidate_quality = 0.85, .candidate_ms = 80}, kRuns);
    CHECK(quality.n_rolled_back <= most_of(kRuns, rule.alpha));
    // ... and a hair worse than allowed, it is not to be promoted.
    CHECK(quality.n_promoted <= most_of(kRuns, rule.alpha));
    const Decisions latency =
        roll_out_often(rule, {.candidate_quality = 0.95, .candidate_ms = 120}, kRuns);
    CHECK(latency.n_rolled_back <= most_of(kRuns, rule.alpha));
    CHECK(latency.n_promoted <= most_of(kRuns, rule.alpha));
  }
}

TEST_CASE("rollouts that are clear are decided, and soon") {
  constexpr int kRuns = 20;
  for (const CanaryMode mode : {CanaryMode::live, CanaryMode::shadow}) {
    const CanaryRule rule = {.name = "x",
                             .mode = mode,
                             .max_quality_drop = 0.05,
                             .max_slowdown = 0.2,
                             .latency_cap_ms = 300,
                             .max_answers = 20'000};
    const Decisions good = roll_out_often(rule, {.candidate_quality = 0.92}, kRuns);
    CHECK(good.n_promoted == kRuns);
    CHECK(good.longest < 8000);
    const Decisions worse = roll_out_often(rule, {.candidate_quality = 0.6}, kRuns);
    CHECK(worse.n_rolled_back == kRuns);
    CHECK(worse.longest < 500);
    const Decisions slow = roll_out_often(rule, {.candidate_ms = 200}, kRuns);
    CHECK(slow.n_rolled_back == kRuns);
    CHECK(slow.longest < 500);
    // By a tenth of the limit too slow: that takes longer.
    const Decisions slower = roll_out_often(rule, {.candidate_ms = 132}, kRuns);
    CHECK(slower.n_rolled_back == kRuns);
    CHECK(slower.longest < 15'000);
    MESSAGE("decided after at most ", good.longest, ", ", worse.longest, ", ", slow.longest,
            " and ", slower.longest, " answers");
  }
}

TEST_CASE("a rollout: arms before and after the decision, failures, the end") {
  const CanaryRule rule = {.name = "r", .share = 0.25, .latency_cap_ms = 300, .min_answers = 50};
  Canary canary = value_of(Canary::create(rule));
  std::string chosen, other;
  for (int i = 0; chosen.empty() || other.empty(); ++i) {
    const std::string id = std::to_string(i);
    (stable_share("r", id) < 0.25 ? chosen : other) = id;
  }
  CHECK(canary.is_chosen(chosen));
  CHECK(!canary.is_chosen(other));
  CHECK(canary.arm_of(chosen) == CanaryArm::candidate);
  CHECK(canary.arm_of(other) == CanaryArm::baseline);
  CHECK(canary.verdict().slowdown_high == std::numeric_limits<double>::infinity());
  // It fails each time: the latency and quality that are said then do not count.
  int n = 0;
  while (canary.verdict().decision == CanaryDecision::none && ++n < 500) {
    REQUIRE(canary.add(CanaryArm::baseline, {.latency_ms = 100}));
    REQUIRE(canary.add(CanaryArm::candidate, {.latency_ms = kNan, .has_failed = true}));
  }
  const CanaryVerdict v = canary.verdict();
  CHECK(v.decision == CanaryDecision::roll_back);
  CHECK(std::string(v.reason) == "quality is worse");
  CHECK(n < 50);  // bad news need not wait
  CHECK(v.quality_high < -0.02);
  CHECK(canary.arm_of(chosen) == CanaryArm::baseline);
  REQUIRE(canary.add(CanaryArm::candidate, {.latency_ms = 1}));
  CHECK(canary.verdict().n_candidate == v.n_candidate);

  // Promoted, after min_answers at the earliest.
  CanaryRule wide = rule;
  wide.max_quality_drop = 1;
  wide.max_slowdown = 1000;
  Canary easy = value_of(Canary::create(wide));
  for (int i = 0; i < 49; ++i) {
    REQUIRE(easy.add(CanaryArm::baseline, {.latency_ms = 100}));
    REQUIRE(easy.add(CanaryArm::candidate, {.latency_ms = 100}));
  }
  CHECK(easy.verdict().decision == CanaryDecision::none);
  REQUIRE(easy.add(CanaryArm::candidate, {.latency_ms = 100}));
  CHECK(easy.verdict().decision == CanaryDecision::promote);
  CHECK(easy.arm_of(other) == CanaryArm::candidate);

  // Not decided in time. In mode shadow everybody has the baseline until then.
  CanaryRule strict = rule;
  strict.mode = CanaryMode::shadow;
  strict.max_quality_drop = strict.max_slowdown = 0;
  strict.max_answers = 60;
  Canary never = value_of(Canary::create(strict));
  CHECK(never.arm_of(chosen) == CanaryArm::baseline);
  for (int i = 0; i < 60; ++i) {
    CHECK(never.verdict().decision == CanaryDecision::none);
    REQUIRE(never.add_pair({.latency_ms = 100}, {.latency_ms = 100}));
  }
  CHECK(never.verdict().decision == CanaryDecision::roll_back);
  CHECK(std::string(never.verdict().reason) == "not known to be as good in time");
  CHECK(never.verdict().n_baseline == 60);

  CHECK(code_of(never.add(CanaryArm::baseline, {})) == Errc::invalid_argument);
  CHECK(code_of(canary.add_pair({}, {})) == Errc::invalid_argument);
  CHECK(code_of(canary.add(CanaryArm::baseline, {.latency_ms = -1})) == Errc::invalid_argument);
  CHECK(code_of(canary.add(CanaryArm::baseline, {.latency_ms = kNan})) == Errc::invalid_argument);
  CHECK(code_of(canary.add(CanaryArm::baseline, {.quality = 1.01})) == Errc::invalid_argument);
  CHECK(code_of(never.add_pair({}, {.quality = kNan})) == Errc::invalid_argument);
}

TEST_CASE("what a verdict says: four intervals of arms, two of differences") {
  // Each with its part of alpha, so that all hold together.
  CanaryRule rule = {.name = "x", .max_slowdown = 0.5, .latency_cap_ms = 400, .alpha = 0.08};
  Canary live = value_of(Canary::create(rule));
  rule.mode = CanaryMode::shadow;
  Canary shadow = value_of(Canary::create(rule));
  ConfidenceSequence quality[2] = {ConfidenceSequence(0.02), ConfidenceSequence(0.02)};
  ConfidenceSequence latency[2] = {ConfidenceSequence(0.02), ConfidenceSequence(0.02)};
  ConfidenceSequence quality_of_pairs(0.04), latency_of_pairs(0.04);
  std::mt19937 random(6);
  std::uniform_real_distribution<double> uniform(0, 1);
  double sum = 0;
  for (int i = 0; i < 80; ++i) {
    const CanaryOutcome before{.latency_ms = 500 * uniform(random), .quality = uniform(random)};
    const CanaryOutcome after{.latency_ms = 500 * uniform(random), .quality = uniform(random)};
    REQUIRE(live.add(CanaryArm::baseline, before));
    REQUIRE(live.add(CanaryArm::candidate, after));
    REQUIRE(shadow.add_pair(before, after));
    const double ms[2] = {std::min(1.0, before.latency_ms / 400),
                          std::min(1.0, after.latency_ms / 400)};
    quality[0].add(before.quality);
    quality[1].add(after.quality);
    latency[0].add(ms[0]);
    latency[1].add(ms[1]);
    quality_of_pairs.add((after.quality - before.quality + 1) / 2);
    latency_of_pairs.add((ms[1] - 1.5 * ms[0] + 1.5) / 2.5);
    sum += ms[0];
  }
  const CanaryVerdict one = live.verdict(), two = shadow.verdict();
  REQUIRE(one.decision == CanaryDecision::none);
  REQUIRE(two.decision == CanaryDecision::none);
  CHECK(one.quality_low == doctest::Approx(quality[1].low() - quality[0].high()));
  CHECK(one.quality_high == doctest::Approx(quality[1].high() - quality[0].low()));
  CHECK(one.slowdown_low == doctest::Approx(latency[1].low() / latency[0].high() - 1));
  CHECK(one.slowdown_high == doctest::Approx(latency[1].high() / latency[0].low() - 1));
  CHECK(two.quality_low == doctest::Approx(2 * quality_of_pairs.low() - 1));
  CHECK(two.quality_high == doctest::Approx(2 * quality_of_pairs.high() - 1));
  const double mean = sum / 80;
  CHECK(two.slowdown_low ==
        doctest::Approx((2.5 * latency_of_pairs.low() - 1.5 + 0.5 * mean) / mean));
  CHECK(two.slowdown_high ==
        doctest::Approx((2.5 * latency_of_pairs.high() - 1.5 + 0.5 * mean) / mean));
}

TEST_CASE("pairs say more than arms: requests differ more than models") {
  // Easy and hard requests; the candidate is 1 % slower, as good.
  std::mt19937 random(8);
  std::uniform_real_distribution<double> uniform(0, 1);
  CanaryRule rule = {.name = "x",
                     .max_quality_drop = 0.05,
                     .max_slowdown = 0.2,
                     .latency_cap_ms = 300,
                     .max_answers = 100'000};
  Canary live = value_of(Canary::create(rule));
  rule.mode = CanaryMode::shadow;
  Canary shadow = value_of(Canary::create(rule));
  for (int i = 0; i < 20'000; ++i) {
    const double ms = 200 * uniform(random), quality = uniform(random) < 0.7 ? 1 : 0;
    const CanaryOutcome before{.latency_ms = ms, .quality = quality};
    const CanaryOutcome after{.latency_ms = 1.01 * ms, .quality = quality};
    REQUIRE(live.add(CanaryArm::baseline, before));
    REQUIRE(live.add(CanaryArm::candidate, after));
    REQUIRE(shadow.add_pair(before, after));
  }
  const CanaryVerdict one = live.verdict(), two = shadow.verdict();
  CHECK(one.decision == CanaryDecision::promote);
  CHECK(two.decision == CanaryDecision::promote);
  CHECK(two.n_candidate * 4 < one.n_candidate);
  CHECK((two.slowdown_low < 0.01 && two.slowdown_high > 0.01 && two.slowdown_high <= 0.2));
  CHECK((one.slowdown_low < 0.01 && one.slowdown_high > 0.01 && one.slowdown_high <= 0.2));
  MESSAGE("promoted after ", two.n_candidate, " pairs, ", one.n_candidate, " answers of each arm");
}

TEST_CASE("the file of a rollout") {
  const CanaryRule all = value_of(CanaryRule::parse(
      R"({"name": "r-7", "mode": "shadow", "share": 0.1, "max_quality_drop": 0.01,
          "max_slowdown": 0.25, "latency_cap_ms": 2000, "alpha": 0.01, "min_answers": 7,
          "max_answers": 9})"));
  CHECK(all.name == "r-7");
  CHECK(all.mode == CanaryMode::shadow);
  CHECK(all.share == 0.1);
  CHECK(all.max_quality_drop == 0.01);
  CHECK(all.max_slowdown == 0.25);
  CHECK(all.latency_cap_ms == 2000);
  CHECK(all.alpha == 0.01);
  CHECK(all.min_answers == 7);
  CHECK(all.max_answers == 9);
  const CanaryRule least = value_of(CanaryRule::parse(R"({"name": "x"})"));
  CHECK(least.share == 0.05);
  CHECK(least.mode == CanaryMode::live);
  for (const char* const text :
       {"", "[]", "{", R"({"name": 7})", R"({"name": "x", "nmae": 1})", R"({"name": "x"} x)",
        R"({"name": "x", "name": "y"})", R"({"name": "x", "mode": "both"})",
        R"({"name": "x", "min_answers": -1})", R"({"name": "x", "share": "all"})",
        R"({"name": "x", "share": 1e999})"}) {
    CAPTURE(text);
    CHECK(code_of(CanaryRule::parse(text)) == Errc::malformed);
  }
  for (const char* const text :
       {"{}", R"({"name": ""})", R"({"name": "x", "share": 0})", R"({"name": "x", "share": 1.1})",
        R"({"name": "x", "max_quality_drop": -0.1})", R"({"name": "x", "max_slowdown": -1})",
        R"({"name": "x", "latency_cap_ms": 0})", R"({"name": "x", "alpha": 0})",
        R"({"name": "x", "alpha": 1})", R"({"name": "x", "min_answers": 10, "max_answers": 9})",
        R"({"name": "x", "min_answers": 0, "max_answers": 0})"}) {
    CAPTURE(text);
    CHECK(code_of(CanaryRule::parse(text)) == Errc::invalid_argument);
  }
  CHECK(code_of(Canary::create({.name = "x", .alpha = kNan})) == Errc::invalid_argument);
}

TEST_CASE("a rollout that many threads report to") {
  Canary canary = value_of(Canary::create({.name = "x", .max_answers = 1'000'000}));
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        const auto arm = t % 2 == 0 ? CanaryArm::baseline : CanaryArm::candidate;
        (void)canary.add(arm, {.latency_ms = 100, .quality = 0.5}).has_value();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(canary.verdict().n_baseline == 100);
  CHECK(canary.verdict().n_candidate == 100);
}

}  // namespace canary_test
