// SPDX-License-Identifier: Apache-2.0
//
// The router, its cache and its circuit breaker, with stages and a clock of their own; and with the
// shipped model.
#include "nibble/serve/router.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "generate/home_model.hpp"
#include "generate/home_splits.hpp"
#include "serve/values.hpp"

namespace router_test {

using namespace nibble;
using namespace nibble::serve;
using test::code_of;
using test::value_of;

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// A device and a service of which each answer is known before.
struct Scene {
  std::vector<double> confidences = {0.9};  // of the tokens here, so far as lowest
  Errc local_error = Errc::limit;
  bool is_local_failing = false;
  Finish local_finish = Finish::end_of_text, remote_finish = Finish::end_of_text;
  bool is_remote_failing = false;
  Errc remote_error = Errc::io;
  std::int64_t now = 1'000'000, remote_takes = 10;
  Index n_prompt = 3;
  // What happened.
  int n_local = 0, n_remote = 0, n_tokens = 0;
  std::int64_t timeout = 0;
  std::string asked;

  RouterStages stages() {
    RouterStages made;
    made.local = [this](std::string_view prompt,
                        FunctionRef<bool(Index, double)> gives_up) -> Result<Answer> {
      ++n_local;
      if (is_local_failing) return Error{local_error, "no local answer"};
      Answer answer{.text = "here: " + std::string(prompt), .finish = local_finish};
      for (const double confidence : confidences) {
        ++n_tokens;
        ++answer.n_tokens;
        if (gives_up(answer.n_tokens, confidence)) return Answer{.text = "a part"};
      }
      return answer;
    };
    made.remote = [this](std::string_view prompt, std::int64_t timeout_ms) -> Result<Answer> {
      ++n_remote;
      asked = prompt;
      timeout = timeout_ms;
      now += remote_takes;
      if (is_remote_failing) return Error{remote_error, "no service"};
      return Answer{.text = "there: " + std::string(prompt), .finish = remote_finish};
    };
    made.now_ms = [this] { return now; };
    made.count_tokens = [this](std::string_view) -> Result<Index> { return n_prompt; };
    return made;
  }
  Router router(const RouterOptions& options = {}) {
    return value_of(Router::create(stages(), options));
  }
};

// What the answers of a year of calls would be is not kept here: each prompt is another one.
std::string prompt_of(int i) { return "prompt " + std::to_string(i); }

}  // namespace

TEST_CASE("breaker: opens after failures in a row, asks once, doubles its wait") {
  CircuitBreaker breaker({.failures = 3, .open_ms = 100, .longest_open_ms = 300});
  const auto fail = [&](std::int64_t now) {
    const auto call = breaker.try_call(now);
    REQUIRE(call != 0);
    breaker.failed(call, now);
  };
  fail(0);
  fail(1);
  breaker.succeeded(breaker.try_call(2));  // not in a row
  fail(3);
  fail(4);
  CHECK(breaker.state() == BreakerState::closed);
  const auto old = breaker.try_call(4);
  fail(5);
  CHECK(breaker.state() == BreakerState::open);
  CHECK(breaker.n_opened() == 1);
  breaker.succeeded(old);  // news from before
  breaker.failed(old, 50);
  CHECK(breaker.state() == BreakerState::open);
  CHECK(!breaker.allows(104));
  CHECK(breaker.try_call(104) == 0);
  CHECK(breaker.allows(105));
  auto probe = breaker.try_call(105);
  CHECK(probe != 0);
  CHECK(breaker.state() == BreakerState::half_open);
  CHECK(breaker.try_call(1000) == 0);  // only one
  breaker.failed(old, 1000);           // nor is this about the probe
  CHECK(breaker.state() == BreakerState::half_open);
  breaker.failed(probe, 110);
  CHECK(breaker.n_opened() == 2);
  CHECK(breaker.try_call(309) == 0);  // 200 now
  probe = breaker.try_call(310);
  CHECK(probe != 0);
  breaker.failed(probe, 320);
  CHECK(breaker.try_call(619) == 0);  // 300, not 400
  probe = breaker.try_call(620);
  CHECK(probe != 0);
  breaker.given_up(probe, 630);  // no news: the same wait again
  CHECK(breaker.try_call(929) == 0);
  probe = breaker.try_call(930);
  breaker.succeeded(probe);
  CHECK(breaker.state() == BreakerState::closed);
  fail(931);
  fail(932);
  CHECK(breaker.state() == BreakerState::closed);  // counted anew
  fail(933);
  CHECK(breaker.try_call(1032) == 0);
  CHECK(breaker.try_call(1033) != 0);  // 100 again
  CircuitBreaker set_back({.failures = 1, .open_ms = 100});
  set_back.failed(set_back.try_call(1'000'000), 1'000'000);
  CHECK(!set_back.allows(1'000'050));
  CHECK(set_back.allows(10));
}

TEST_CASE("prompts that differ in white space alone are equal") {
  CHECK(normalized_prompt("  a\t b\n\nc \r\n") == "a b c");
  CHECK(normalized_prompt("a b c") == "a b c");
  CHECK(normalized_prompt(" \v\f ") == "");
  CHECK(normalized_prompt("") == "");
  CHECK(normalized_prompt("A \xc2\xa0z") == "A \xc2\xa0z");
}

TEST_CASE("cache: bounded, by use and by age") {
  const Answer answer{.text = std::string(100, 'x')};
  AnswerCache probe({.max_bytes = 1000});
  probe.put("k1", answer, 0);
  const std::size_t one = probe.bytes();
  CHECK(one > 102);
  AnswerCache cache({.max_bytes = 3 * one, .max_age_ms = 50});
  cache.put("k1", answer, 0);
  cache.put("k2", answer, 1);
  cache.put("k3", answer, 2);
  CHECK(cache.n_answers() == 3);
  CHECK(cache.bytes() == 3 * one);
  CHECK(cache.find("k1", 3) != nullptr);
  cache.put("k4", answer, 4);
  CHECK(cache.find("k2", 5) == nullptr);  // not used for longest
  REQUIRE(cache.find("k1", 5) != nullptr);
  CHECK(cache.find("k1", 5)->text == answer.text);
  CHECK(cache.find("k3", 5) != nullptr);
  CHECK(cache.find("k4", 5) != nullptr);
  CHECK(cache.find("k1", 50) != nullptr);
  CHECK(cache.find("k1", 51) == nullptr);  // too old, and gone
  CHECK(cache.n_answers() == 2);
  CHECK(cache.bytes() == 2 * one);
  CHECK(cache.find("k4", 3) == nullptr);  // from the future
  cache.put("k3", Answer{.text = "other"}, 60);
  CHECK(cache.n_answers() == 1);
  CHECK(cache.find("k3", 60)->text == "other");
  cache.put("k5", Answer{.text = std::string(3 * one, 'y')}, 60);
  CHECK(cache.find("k5", 60) == nullptr);
  CHECK(cache.find("k3", 60) != nullptr);  // nothing had to go for it
  AnswerCache none({.max_bytes = 0});
  none.put("k", {}, 0);
  CHECK(none.n_answers() == 0);

  // Against a map and a list of what was used.
  std::mt19937 random(2);
  AnswerCache some({.max_bytes = 5 * one, .max_age_ms = 1'000'000});
  std::vector<std::pair<std::string, std::string>> kept;  // the last used is at the end
  for (int i = 0; i < 2000; ++i) {
    const std::string key = "k" + std::to_string(random() % 9);
    const auto at = std::find_if(kept.begin(), kept.end(), [&](auto& k) { return k.first == key; });
    if (random() % 2 == 0) {
      const Answer* const found = some.find(key, i);
      REQUIRE((found != nullptr) == (at != kept.end()));
      if (found == nullptr) continue;
      REQUIRE(found->text == at->second);
      std::rotate(at, at + 1, kept.end());
    } else {
      const std::string text(100, static_cast<char>('a' + i % 26));
      some.put(key, Answer{.text = text}, i);
      if (at != kept.end()) kept.erase(at);
      if (kept.size() == 5) kept.erase(kept.begin());
      kept.emplace_back(key, text);
    }
    REQUIRE(some.bytes() == kept.size() * one);
  }
}

TEST_CASE("router: who answers, by confidence") {
  Scene scene;
  Router router = scene.router({.threshold = 0.6, .decide_after = 2});
  const auto ask = [&](std::vector<double> confidences) {
    static int n = 0;
    scene.confidences = std::move(confidences);
    scene.n_tokens = scene.n_local = scene.n_remote = 0;
    return value_of(router.answer(prompt_of(++n)));
  };
  RoutedAnswer a = ask({0.9, 0.6});
  CHECK(a.route == Route::local);
  CHECK(a.answer.text.starts_with("here: "));
  CHECK(!a.answer.is_second);
  CHECK(a.confidence == 0.6);
  CHECK(scene.n_remote == 0);
  // After the decision nothing changes it.
  a = ask({0.9, 0.7, 0.1, 0.1});
  CHECK(a.route == Route::local);
  CHECK(a.confidence == 0.7);
  CHECK(scene.n_tokens == 4);
  a = ask({0.9, std::nextafter(0.6, 0), 0.1, 0.1});
  CHECK(a.route == Route::remote);
  CHECK(a.answer.text.starts_with("there: "));
  CHECK(a.answer.is_second);
  CHECK(scene.n_tokens == 2);
  CHECK(scene.n_local == 1);
  CHECK(scene.timeout == 10'000);
  // The lowest is known to be too low as soon as it is.
  ask({0.1, 0.1, 0.1});
  CHECK(scene.n_tokens == 1);
  CHECK(ask({kNan, 0.9}).route == Route::remote);
  CHECK(ask({}).route == Route::local);  // an answer without tokens
  CHECK(ask({0.5}).route == Route::remote);
  const RouterCounts counts = router.counts();
  CHECK(counts.n_local == 3);
  CHECK(counts.n_remote == 4);
  CHECK(counts.n_unsure == 4);
  CHECK(counts.n_in_time == 4);
  CHECK(counts.n_long == 0);
  CHECK(counts.n_requests() == 7);

  // A mean counts when it is complete.
  Router by_mean =
      scene.router({.threshold = 0.6, .measure = AnswerConfidence::mean, .decide_after = 2});
  scene.confidences = {0.1, 0.7, 0.1};
  CHECK(value_of(by_mean.answer("m1")).route == Route::local);
  scene.n_tokens = 0;
  scene.confidences = {0.9, 0.5, 0.9};
  CHECK(value_of(by_mean.answer("m2")).route == Route::remote);
  CHECK(scene.n_tokens == 2);
  Router at_end =
      scene.router({.threshold = 0.6, .measure = AnswerConfidence::mean, .decide_after = 0});
  scene.n_tokens = 0;
  scene.confidences = {0.9, 0.9, 0.9, 0.9, 0.5};
  CHECK(value_of(at_end.answer("m3")).route == Route::remote);
  CHECK(scene.n_tokens == 5);

  // Calibrated: log-odds 0 become 1, that is 0.73.
  Router calibrated = scene.router({.threshold = 0.7, .calibration = {1, 1}});
  scene.confidences = {0.5};
  a = value_of(calibrated.answer("c"));
  CHECK(a.route == Route::local);
  CHECK(a.confidence == doctest::Approx(1 / (1 + std::exp(-1.0))));
}

TEST_CASE("router: long prompts go elsewhere unseen") {
  Scene scene;
  Router router = scene.router({.max_context = 512});
  scene.n_prompt = 512;
  CHECK(value_of(router.answer("a")).route == Route::local);
  scene.n_prompt = 513;
  scene.n_local = 0;
  CHECK(value_of(router.answer("b")).route == Route::remote);
  CHECK(scene.n_local == 0);
  CHECK(router.counts().n_long == 1);
  CHECK(router.counts().n_unsure == 0);
  scene.is_remote_failing = true;
  const RoutedAnswer a = value_of(router.answer("c"));
  CHECK(a.route == Route::fallback);
  CHECK(a.answer.text == "here: c");
  RouterStages uncounted = scene.stages();
  uncounted.count_tokens = {};
  CHECK(code_of(Router::create(uncounted)) == Errc::invalid_argument);
  scene.is_remote_failing = false;
  Router unlimited = value_of(Router::create(uncounted, {.max_context = 0}));
  CHECK(value_of(unlimited.answer("d")).route == Route::local);
}

TEST_CASE("router: answers of the service are kept") {
  Scene scene;
  scene.confidences = {0.1};
  Router router = scene.router({.cache = {.max_age_ms = 1000}});
  CHECK(value_of(router.answer("a  b")).route == Route::remote);
  CHECK(scene.asked == "a  b");  // as it is: only the key is normalized
  scene.n_local = 0;
  const RoutedAnswer a = value_of(router.answer(" a b\n"));
  CHECK(a.route == Route::cached);
  CHECK(a.answer.text == "there: a  b");
  CHECK(a.answer.is_second);
  CHECK(scene.n_local == 0);
  CHECK(scene.n_remote == 1);
  CHECK(router.counts().n_cached == 1);
  CHECK(router.counts().n_kept == 1);
  scene.now += 1001;
  CHECK(value_of(router.answer("a b")).route == Route::remote);
  // Half an answer is not kept.
  scene.remote_finish = Finish::time_limit;
  CHECK(value_of(router.answer("c")).route == Route::remote);
  CHECK(value_of(router.answer("c")).route == Route::remote);
}

TEST_CASE("router: offline, slow and failing services") {
  Scene scene;
  scene.confidences = {0.9, 0.1, 0.1, 0.1};
  const RouterOptions options = {
      .timeout_ms = 50, .breaker = {.failures = 2, .open_ms = 100, .longest_open_ms = 400}};
  Router router = scene.router(options);
  scene.is_remote_failing = true;
  for (int i = 0; i < 2; ++i) {
    scene.n_local = 0;
    const RoutedAnswer a = value_of(router.answer(prompt_of(i)));
    CHECK(a.route == Route::fallback);
    CHECK(a.answer.text == "here: " + prompt_of(i));
    CHECK(a.answer.n_tokens == 4);
    CHECK(scene.n_local == 2);  // it was given up, and made again
  }
  CHECK(router.breaker() == BreakerState::open);
  // While it is open no answer is given up, and the service is left alone.
  scene.n_local = scene.n_remote = 0;
  const RoutedAnswer kept = value_of(router.answer("open"));
  CHECK(kept.route == Route::fallback);
  CHECK(kept.answer.text == "here: open");
  CHECK(scene.n_local == 1);
  CHECK(scene.n_remote == 0);
  RouterCounts counts = router.counts();
  CHECK(counts.n_fallback == 3);
  CHECK(counts.n_failed == 2);
  CHECK(counts.n_not_asked == 1);
  CHECK(counts.n_opened == 1);
  CHECK(counts.n_unsure == 3);
  // Back again.
  scene.now += 100;
  scene.is_remote_failing = false;
  CHECK(value_of(router.answer("back")).route == Route::remote);
  CHECK(router.breaker() == BreakerState::closed);
  // Late answers are taken, but two of them open the breaker.
  scene.remote_takes = 51;
  CHECK(value_of(router.answer("late 1")).route == Route::remote);
  CHECK(value_of(router.answer("late 2")).route == Route::remote);
  CHECK(router.breaker() == BreakerState::open);
  CHECK(router.counts().n_late == 2);
  CHECK(router.counts().n_in_time == 1);
  // A refused request says that the service is there.
  scene.now += 100;
  scene.remote_takes = 50;
  scene.is_remote_failing = true;
  scene.remote_error = Errc::invalid_argument;
  CHECK(value_of(router.answer("refused")).route == Route::fallback);
  CHECK(router.breaker() == BreakerState::closed);
  CHECK(router.counts().n_refused == 1);
  // Who gives up wants no other answer, and the probe is free for the next.
  scene.remote_error = Errc::io;
  value_of(router.answer("f1"));
  value_of(router.answer("f2"));
  CHECK(router.breaker() == BreakerState::open);
  scene.now += 100;
  scene.remote_error = Errc::cancelled;
  CHECK(code_of(router.answer("cancelled")) == Errc::cancelled);
  CHECK(router.breaker() == BreakerState::open);
  CHECK(router.counts().n_errors == 1);
  scene.now += 100;
  scene.is_remote_failing = false;
  CHECK(value_of(router.answer("again")).route == Route::remote);
}

TEST_CASE("router: failures of the model here") {
  Scene scene;
  Router router = scene.router();
  scene.is_local_failing = true;
  CHECK(value_of(router.answer("a")).route == Route::remote);
  CHECK(router.counts().n_unsure == 0);
  scene.is_remote_failing = true;
  CHECK(code_of(router.answer("b")) == Errc::limit);
  scene.local_error = Errc::cancelled;
  scene.n_remote = 0;
  CHECK(code_of(router.answer("c")) == Errc::cancelled);
  CHECK(scene.n_remote == 0);
  CHECK(router.counts().n_errors == 2);
  CHECK(router.counts().n_requests() == 3);
  // What was cancelled or ran out of time while it was made is returned, unsure or not.
  scene.is_local_failing = false;
  Router by_mean = scene.router({.measure = AnswerConfidence::mean});
  for (const Finish finish : {Finish::cancelled, Finish::time_limit}) {
    scene.local_finish = finish;
    scene.confidences = {0.5};
    const RoutedAnswer a = value_of(by_mean.answer("d"));
    CHECK(a.answer.finish == finish);
    CHECK(a.route == Route::local);
  }
  CHECK(scene.n_remote == 0);

  // A service that throws does not take the one call that it may have with it.
  int n = 0;
  RouterStages stages = scene.stages();
  scene.local_finish = Finish::end_of_text;
  scene.confidences = {0.1};
  stages.remote = [&](std::string_view, std::int64_t) -> Result<Answer> {
    if (++n < 3) throw std::bad_alloc();
    return Answer{.text = "there"};
  };
  Router throwing = value_of(Router::create(stages, {.breaker = {.failures = 1, .open_ms = 100}}));
  CHECK(code_of(throwing.answer("e")) == Errc::out_of_memory);
  CHECK(throwing.breaker() == BreakerState::open);
  scene.now += 100;
  CHECK(code_of(throwing.answer("f")) == Errc::out_of_memory);
  CHECK(throwing.breaker() == BreakerState::open);
  CHECK(throwing.counts().n_failed == 2);
  scene.now += 200;
  CHECK(value_of(throwing.answer("g")).route == Route::remote);
}

TEST_CASE("router: options out of range") {
  Scene scene;
  const auto refused = [&](const RouterOptions& options) {
    return code_of(Router::create(scene.stages(), options)) == Errc::invalid_argument;
  };
  CHECK(!refused({}));
  CHECK(!refused({.threshold = std::numeric_limits<double>::infinity()}));
  CHECK(refused({.threshold = kNan}));
  CHECK(refused({.calibration = {-1, 0}}));
  CHECK(refused({.calibration = {1, kNan}}));
  CHECK(refused({.decide_after = -1}));
  CHECK(refused({.max_context = -1}));
  CHECK(refused({.timeout_ms = 0}));
  CHECK(refused({.cache = {.max_age_ms = -1}}));
  CHECK(refused({.breaker = {.failures = 0}}));
  CHECK(refused({.breaker = {.open_ms = 0}}));
  CHECK(refused({.breaker = {.open_ms = 100, .longest_open_ms = 99}}));
  RouterStages none = scene.stages();
  none.remote = {};
  CHECK(code_of(Router::create(none)) == Errc::invalid_argument);
  none = scene.stages();
  none.local = {};
  CHECK(code_of(Router::create(none)) == Errc::invalid_argument);
  none = scene.stages();
  none.now_ms = {};
  CHECK(code_of(Router::create(none)) == Errc::invalid_argument);
}

TEST_CASE("router: many threads, every outcome counted once") {
  std::atomic<std::int64_t> now{0};
  std::atomic<int> n_calls{0};
  RouterStages stages;
  stages.now_ms = [&] { return now.fetch_add(1); };
  stages.count_tokens = [](std::string_view prompt) -> Result<Index> {
    return static_cast<Index>(prompt.size());
  };
  stages.local = [](std::string_view prompt, FunctionRef<bool(Index, double)> gives_up) {
    const bool stopped = gives_up(1, prompt.back() % 2 == 0 ? 0.9 : 0.1);
    return Result<Answer>(Answer{.text = stopped ? "part" : "whole", .n_tokens = 1});
  };
  stages.remote = [&](std::string_view, std::int64_t) -> Result<Answer> {
    if (++n_calls % 3 == 0) return Error{Errc::io, "down"};
    return Answer{.text = "there"};
  };
  Router router = value_of(Router::create(stages, {.cache = {.max_bytes = 5000, .max_age_ms = 500},
                                                   .breaker = {.failures = 2, .open_ms = 20}}));
  std::vector<std::thread> threads;
  std::atomic<int> n_bad{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 500; ++i) {
        const auto a = router.answer(std::to_string(t * 7 + i % 31));
        if (!a || a->answer.text == "part") ++n_bad;
        if (a && a->answer.is_second != (a->answer.text == "there")) ++n_bad;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(n_bad == 0);
  const RouterCounts counts = router.counts();
  CHECK(counts.n_requests() == 2000);
  CHECK(counts.n_errors == 0);
  CHECK(counts.n_in_time + counts.n_late + counts.n_failed ==
        static_cast<std::uint64_t>(n_calls.load()));
  CHECK(counts.n_remote == counts.n_in_time + counts.n_late);
  CHECK(counts.n_unsure == counts.n_remote + counts.n_fallback);
  CHECK(counts.n_fallback == counts.n_failed + counts.n_not_asked);
  CHECK(counts.n_cached > 0);
}

TEST_CASE("calibration: the threshold keeps its promise on other data") {
  // A model whose confidences are too high: it is right with probability c * c.
  std::mt19937 random(7);
  std::uniform_real_distribution<double> uniform(0, 1);
  std::map<std::string, std::pair<double, bool>> truth;
  const LocalStage local = [&](std::string_view prompt,
                               FunctionRef<bool(Index, double)> gives_up) -> Result<Answer> {
    const auto& [confidence, is_right] = truth.at(std::string(prompt));
    // Only the first eight tokens decide.
    for (Index n = 1; n <= 12; ++n) gives_up(n, n < 8 ? 1 : n == 8 ? confidence : 0.01);
    return Answer{.text = is_right ? "right" : "wrong", .n_tokens = 12};
  };
  const auto make = [&](std::string_view kind) {
    std::vector<LabelledPrompt> known;
    for (int i = 0; i < 2000; ++i) {
      const double confidence = uniform(random);
      const std::string prompt = std::string(kind) + std::to_string(i);
      truth[prompt] = {confidence, uniform(random) < confidence * confidence};
      known.push_back({prompt, "right"});
    }
    return known;
  };
  const auto known = make("known");
  const RouterCalibration found = value_of(calibrate(local, known, 0.9));
  CHECK(found.threshold.accuracy >= 0.9);
  CHECK(found.threshold.kept > 0.2);
  CHECK(found.threshold.kept < 0.8);
  CHECK(found.calibration(0.5) == doctest::Approx(0.25).epsilon(0.15));
  RouterOptions options;
  found.apply_to(options);
  // What was found before does not count when it is found again.
  const RouterCalibration again = value_of(calibrate(local, known, 0.9, options));
  CHECK(again.calibration.slope == found.calibration.slope);
  CHECK(again.threshold.threshold == found.threshold.threshold);
  RouterStages stages;
  stages.local = local;
  stages.now_ms = [] { return std::int64_t{0}; };
  stages.count_tokens = [](std::string_view) -> Result<Index> { return Index{1}; };
  stages.remote = [](std::string_view, std::int64_t) -> Result<Answer> {
    return Answer{.text = "right"};
  };
  const auto run = [&](const std::vector<LabelledPrompt>& prompts) {
    Router router = value_of(Router::create(stages, options));
    int n_right = 0;
    for (const LabelledPrompt& one : prompts) {
      n_right += value_of(router.answer(one.prompt)).answer.text == "right";
    }
    return std::pair(n_right / 2000.0, static_cast<double>(router.counts().n_local) / 2000);
  };
  const auto [accuracy, kept] = run(known);  // exactly what was found
  CHECK(accuracy == doctest::Approx(found.threshold.accuracy).epsilon(1e-12));
  CHECK(kept == doctest::Approx(found.threshold.kept).epsilon(1e-12));
  const auto [other_accuracy, other_kept] = run(make("other"));
  CHECK(other_accuracy > 0.88);
  CHECK(std::abs(other_kept - kept) < 0.05);

  CHECK(code_of(calibrate(local, {}, 0.9)) == Errc::invalid_argument);
  CHECK(code_of(calibrate(local, known, 1.1)) == Errc::limit);
  const auto none_right = value_of(
      calibrate(local, known, 1, {}, [](const Answer&, const LabelledPrompt&) { return false; }));
  CHECK(none_right.threshold.kept == 0);
}

TEST_CASE("router with a session: home commands") {
  const auto samples = test::read_samples("hard_2000.tsv");
  const auto session = [] { return value_of(Session::create(test::home_model(), {.n_ctx = 128})); };
  const LocalStage local = local_stage(session());
  std::vector<LabelledPrompt> known;
  for (std::size_t i = 0; i < 40; ++i) {
    known.push_back({samples[i].utterance + "\n", samples[i].call});
  }
  const RouterOptions whole = {.decide_after = 0};
  const RouterCalibration found = value_of(calibrate(local, known, 0.95, whole));
  RouterOptions options = whole;
  found.apply_to(options);
  RouterStages stages;
  stages.now_ms = [] { return std::int64_t{0}; };
  std::size_t at = 0;
  stages.remote = [&](std::string_view, std::int64_t) -> Result<Answer> {
    return Answer{.text = known[at].answer};
  };
  Router router = value_of(Router::create(session(), stages, options));
  int n_right = 0;
  for (at = 0; at < known.size(); ++at) {
    n_right += value_of(router.answer(known[at].prompt)).answer.text == known[at].answer;
  }
  CHECK(n_right >= 38);
  CHECK(n_right / 40.0 == doctest::Approx(found.threshold.accuracy));
  CHECK(router.counts().n_local > 20);
  CHECK(router.counts().n_remote > 0);
  MESSAGE("threshold ", found.threshold.threshold, ": ", router.counts().n_local, " of 40 here");
  // The tokenizer counts: the begin token and the words of the prompt.
  options.max_context = 2;
  Router strict = value_of(Router::create(session(), stages, options));
  at = 0;
  CHECK(value_of(strict.answer(known[0].prompt)).route == Route::remote);
  CHECK(strict.counts().n_long == 1);
}

}  // namespace router_test
