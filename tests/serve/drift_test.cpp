// SPDX-License-Identifier: Apache-2.0
//
// Drift: the index against values computed by hand, its bound against tables and against samples,
// and a monitor whose input changes.
#include "nibble/serve/drift.hpp"

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "doctest/doctest.h"
#include "why.hpp"

namespace drift_test {

using namespace nibble;
using serve::BucketCounts;
using serve::DriftMonitor;
using serve::DriftReference;

namespace {

// Tokens of a vocabulary, of which those with small ids are the likelier the larger `power` is.
std::vector<std::int32_t> some_text(std::mt19937& random, std::size_t n, double power) {
  std::uniform_real_distribution<double> from_0_to_1;
  std::vector<std::int32_t> tokens(n);
  for (std::int32_t& token : tokens) {
    token = static_cast<std::int32_t>(1000 * std::pow(from_0_to_1(random), power));
  }
  return tokens;
}

}  // namespace

TEST_CASE("the stability index of two tables") {
  // (0.75 - 0.25) ln 3 + (0.25 - 0.75) ln(1/3) = ln 3, but for the halves that are added.
  const BucketCounts a = {1'000'000, 3'000'000}, b = {3'000'000, 1'000'000};
  CHECK(serve::stability_index(a, b) == doctest::Approx(std::log(3.0)).epsilon(1e-5));
  CHECK(serve::stability_index(a, a) == 0);
  CHECK(serve::stability_index(a, BucketCounts{0, 0}) == 0);
  // One sample each in different buckets: p = (1.5, 0.5) / 2, q = (0.5, 1.5) / 2.
  CHECK(serve::stability_index(BucketCounts{1, 0}, BucketCounts{0, 1}) ==
        doctest::Approx(std::log(3.0)).epsilon(1e-12));
}

TEST_CASE("what the index may be without drift") {
  // Quantiles of chi-squared for 0.999 as tables have them: 10.828, 27.877, 103.442.
  CHECK(serve::stability_bound(2, 1000, 1000) == doctest::Approx(10.828 * 0.002).epsilon(0.01));
  CHECK(serve::stability_bound(10, 500, 1000) == doctest::Approx(27.877 * 0.003).epsilon(0.01));
  CHECK(serve::stability_bound(64, 1000, 1000) == doctest::Approx(103.442 * 0.002).epsilon(0.01));
  // Of samples of one distribution it is above the bound in 1 of 1 000 cases.
  std::mt19937 random(1);
  int n_above = 0;
  constexpr int kCases = 2000;
  for (int i = 0; i < kCases; ++i) {
    BucketCounts counts[2] = {BucketCounts(10), BucketCounts(10)};
    for (BucketCounts& each : counts) {
      for (int k = 0; k < 400; ++k) ++each[(random() % 10 + random() % 10) / 2];
    }
    n_above += serve::stability_index(counts[0], counts[1]) > serve::stability_bound(10, 400, 400);
  }
  CHECK(n_above <= 10);  // 2 are to be expected
}

TEST_CASE("a monitor sees that the input changes, and that it comes back") {
  serve::Registry registry;
  auto monitor = DriftMonitor::create(registry, {.window_tokens = 4000, .window_answers = 300});
  REQUIRE_MESSAGE(monitor, test::why(monitor));
  DriftMonitor& m = **monitor;
  std::mt19937 random(2);
  const auto run = [&](double power, double confidence) {
    std::normal_distribution<double> spread(std::log(confidence), 0.1);
    for (int i = 0; i < 300; ++i) {
      m.record_prompt(some_text(random, 20, power));
      m.record_answer(spread(random));
    }
    CHECK(m.evaluate());
  };
  run(1, 0.8);  // becomes the reference
  CHECK(!m.has_drifted());
  run(1, 0.8);
  CHECK(!m.has_drifted());
  auto text = *registry.text();
  CHECK(text.find("nibble_input_drift_windows_total{result=\"same\"} 1\n") != text.npos);
  CHECK(text.find("nibble_confidence_drift_windows_total{result=\"same\"} 1\n") != text.npos);
  run(6, 0.8);  // other tokens
  CHECK(m.has_drifted());
  run(1, 0.5);  // the same tokens as at first, answers less sure
  CHECK(m.has_drifted());
  run(1, 0.8);
  CHECK(!m.has_drifted());
  text = *registry.text();
  CHECK(text.find("nibble_input_drift_windows_total{result=\"same\"} 3\n") != text.npos);
  CHECK(text.find("nibble_input_drift_windows_total{result=\"drifted\"} 1\n") != text.npos);
  CHECK(text.find("nibble_confidence_drift_windows_total{result=\"drifted\"} 1\n") != text.npos);

  // A window that is not full says nothing.
  m.record_prompt(some_text(random, 3999, 6));
  CHECK(m.evaluate());
  CHECK(!m.has_drifted());
  m.record_prompt(some_text(random, 1, 6));
  CHECK(m.evaluate());
  CHECK(m.has_drifted());
  // No number, and one that is none of a probability.
  m.record_answer(std::nan(""));
  m.record_answer(1);

  // Its reference, through a text, serves another one.
  const auto reference = DriftReference::parse(m.reference().text());
  REQUIRE_MESSAGE(reference, test::why(reference));
  CHECK(reference->tokens == m.reference().tokens);
  CHECK(reference->confidence == m.reference().confidence);
  serve::Registry second_registry;
  auto second = DriftMonitor::create(second_registry, {.window_tokens = 4000}, *reference);
  REQUIRE(second);
  (*second)->record_prompt(some_text(random, 4000, 6));
  CHECK((*second)->evaluate());
  CHECK((*second)->has_drifted());
  CHECK(!DriftMonitor::create(second_registry, {}, DriftReference{{1}, {1}}));
}

TEST_CASE("threads lose no sample while windows are taken") {
  serve::DriftWindow window(8);
  constexpr std::uint64_t kTimes = 50'000;
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (std::uint64_t i = 0; i < kTimes; ++i) window.record((t + i) % 8);
    });
  }
  std::uint64_t n = 0;
  const auto take = [&] {
    for (const std::uint64_t count : window.take()) n += count;
  };
  for (int i = 0; i < 100; ++i) take();
  for (std::thread& thread : threads) thread.join();
  take();
  CHECK(n == 4 * kTimes);
  CHECK(window.n() == 0);
}

TEST_CASE("texts that are no reference") {
  DriftReference good{BucketCounts(64, 1), BucketCounts(10, 2)};
  const std::string text = good.text();
  REQUIRE(DriftReference::parse(text));
  const auto is_refused = [](const std::string& bad, const char* part) {
    const auto reference = DriftReference::parse(bad);
    REQUIRE_MESSAGE(!reference, bad);
    CHECK(reference.error().code == Errc::malformed);
    CHECK_MESSAGE(test::why(reference).find(part) != std::string::npos, test::why(reference));
  };
  is_refused("", "tokens: the line is missing");
  is_refused("token 1\n", "tokens: the line begins otherwise");
  is_refused("tokens 1 2\n", "not 64 counts");
  is_refused(text + "\n", "more behind");
  is_refused(text + text, "more behind");
  is_refused(text.substr(0, text.size() - 1), "confidence: the line is missing");
  const auto with = [&](const std::string& count) {
    std::string changed = text;
    return changed.replace(changed.rfind(" 2"), 2, count);
  };
  REQUIRE(DriftReference::parse(with(" 9223372036854775790")));
  is_refused(with(" 9223372036854775808"), "confidence: the counts are too large");
  is_refused(with(" 99999999999999999999"), "confidence: a count is too large");
  is_refused(with(" -1"), "not 10 counts");
  is_refused(with("  1"), "not 10 counts");
  is_refused(with(" 1 1"), "not 10 counts");
  is_refused(with(""), "not 10 counts");
  good.confidence.assign(10, 0);
  is_refused(good.text(), "confidence: there are no samples");
}

}  // namespace drift_test
