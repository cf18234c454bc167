// SPDX-License-Identifier: Apache-2.0
//
// Counters, gauges and histograms, and their text.
#include "nibble/serve/metrics.hpp"

#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "doctest/doctest.h"
#include "why.hpp"

namespace metrics_test {

using namespace nibble;
using serve::Registry;

TEST_CASE("the text of metrics, by the letter") {
  Registry registry;
  auto* const answers = *registry.counter("answers_total", "Answers.\nA \\ and \"quotes\".");
  auto* const other =
      *registry.counter("answers_total", "not used", {{"model", "a\\b\"c\nd\xff"}, {"kind", "é"}});
  auto* const energy = *registry.counter("energy_joules_total", "Energy.", {}, 1e-6);
  auto* const level = *registry.gauge("level", "A level.");
  auto* const sensor = *registry.gauge("sensor", "");
  CHECK(sensor->value() == 0);
  CHECK(!sensor->is_set());
  const double bounds[] = {0.001, 0.5, 2};
  auto* const seconds = *registry.histogram("wait_seconds", "Waits.", bounds, {{"a", "b"}});
  answers->add();
  answers->add(41);
  other->add(3);
  energy->add(2'500'000);
  level->set(-1.5);
  for (const double x : {0.001, 0.0011, 0.5, 2.5, 1e9, std::numeric_limits<double>::quiet_NaN()}) {
    seconds->observe(x);
  }
  const auto text = registry.text();
  REQUIRE(text);
  CHECK(*text ==
        "# HELP answers_total Answers.\\nA \\\\ and \"quotes\".\n"
        "# TYPE answers_total counter\n"
        "answers_total 42\n"
        "answers_total{model=\"a\\\\b\\\"c\\nd?\",kind=\"é\"} 3\n"
        "# HELP energy_joules_total Energy.\n"
        "# TYPE energy_joules_total counter\n"
        "energy_joules_total 2.5\n"
        "# HELP level A level.\n"
        "# TYPE level gauge\n"
        "level -1.5\n"
        "# HELP sensor \n"
        "# TYPE sensor gauge\n"
        "# HELP wait_seconds Waits.\n"
        "# TYPE wait_seconds histogram\n"
        "wait_seconds_bucket{a=\"b\",le=\"0.001\"} 1\n"
        "wait_seconds_bucket{a=\"b\",le=\"0.5\"} 3\n"
        "wait_seconds_bucket{a=\"b\",le=\"2.0\"} 3\n"
        "wait_seconds_bucket{a=\"b\",le=\"+Inf\"} 5\n"
        "wait_seconds_sum{a=\"b\"} 1000000003.0021\n"
        "wait_seconds_count{a=\"b\"} 5\n");
  level->set(std::numeric_limits<double>::infinity());
  CHECK(registry.text()->find("\nlevel +Inf\n") != std::string::npos);
  level->set(std::numeric_limits<double>::quiet_NaN());
  CHECK(registry.text()->find("\nlevel NaN\n") != std::string::npos);
  sensor->set(0);
  CHECK(registry.text()->find("\nsensor 0.0\n") != std::string::npos);
}

TEST_CASE("a metric of the same name and labels is the same, what differs is refused") {
  Registry registry;
  const double bounds[] = {1, 2}, falling[] = {2, 1}, infinite[] = {1, double{kInfinity}};
  const double others[] = {1, 3};
  auto* const a = *registry.counter("a_total", "");
  CHECK(*registry.counter("a_total", "other help") == a);
  CHECK(*registry.counter("a_total", "", {{"b", "c"}}) != a);
  REQUIRE(registry.histogram("h", "", bounds));
  const auto is_refused = [](const auto& result, const char* part) {
    REQUIRE(!result);
    CHECK(result.error().code == Errc::invalid_argument);
    CHECK_MESSAGE(test::why(result).find(part) != std::string::npos, test::why(result));
  };
  is_refused(registry.gauge("a_total", ""), "metric 'a_total': there is one of another kind");
  is_refused(registry.counter("a_total", "", {}, 2), "another unit");
  is_refused(registry.counter("b", "", {}, 0), "unit");
  is_refused(registry.counter("", ""), "no name");
  is_refused(registry.counter("1a", ""), "no name");
  is_refused(registry.counter("a b\n", ""), "metric 'a b?': this is no name");
  is_refused(registry.counter("c", "", {{"x:y", ""}}), "'x:y' is no name of a label");
  is_refused(registry.counter("c", "", {{"le", ""}}), "'le' is no name of a label");
  is_refused(registry.counter("c", "", {{"x", ""}, {"x", ""}}), "twice");
  is_refused(registry.histogram("i", "", falling), "ascend");
  is_refused(registry.histogram("i", "", infinite), "finite");
  is_refused(registry.histogram("i", "", {}), "from 1 to 32 bounds");
  is_refused(registry.histogram("i", "", std::vector<double>(33)), "from 1 to 32 bounds");
  is_refused(registry.histogram("h", "", others, {{"x", "y"}}), "other bounds");
  CHECK(registry.counter("vllm:requests", ""));
  CHECK(registry.text()->find("\ni") == std::string::npos);
}

TEST_CASE("threads lose no count") {
  Registry registry;
  auto* const counter = *registry.counter("n_total", "");
  const double bounds[] = {0.5, 1.5};
  auto* const histogram = *registry.histogram("h", "", bounds);
  constexpr int kThreads = 4, kTimes = 20'000;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kTimes; ++i) {
        counter->add(2);
        histogram->observe(t % 3);  // whole numbers: the sum is exact in any order
        if (i % 5'000 == 0) CHECK(registry.text());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(counter->count() == 2 * kThreads * kTimes);
  CHECK(histogram->count() == kThreads * kTimes);
  CHECK(histogram->count(0) == 2 * kTimes);
  CHECK(histogram->count(1) == kTimes);
  CHECK(histogram->count(2) == kTimes);
  CHECK(histogram->sum() == (0 + 1 + 2 + 0) * kTimes);
}

}  // namespace metrics_test
