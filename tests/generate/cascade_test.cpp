// SPDX-License-Identifier: Apache-2.0
//
// A small model that answers what it is sure of, and a large one for the rest.
#include "nibble/generate/cascade.hpp"

#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "generate/home_splits.hpp"
#include "generate/prefixes.hpp"
#include "nibble/model/convert.hpp"
#include "nibble/model/load.hpp"

namespace cascade_test {

using namespace nibble;
using namespace test;
using nibble::Answer;

namespace {

// The shipped model in 2 bits: it is wrong much more often.
const Model& first_model() {
  static const Model model = [] {
    const auto file = must(io::Gguf::open(home_model_path()));
    const auto bytes = must(quantize_model(file, {.format = quant::Format::q2_h}));
    const auto converted = must(io::Gguf::parse(bytes, "small"));
    return must(Model::from_gguf<graph::AllFormats>(converted));
  }();
  return model;
}
Session session_of(const Model& model) { return must(Session::create(model, {.n_ctx = 128})); }

Answer said(double confidence) { return {.text = "second", .confidence = confidence}; }

}  // namespace

TEST_CASE("an answer and how sure the model is of it") {
  Session session = session_of(home_model());
  const std::string prompt = "could you please dim the office light to 10 percent\n";
  double sum = 0, lowest = 0;
  Index n = 0;
  std::string text;
  must(generate(session, prompt, {}, [&](const Token& token) {
    text += token.text;
    sum += static_cast<double>(token.logprob);
    lowest = std::min(lowest, static_cast<double>(token.logprob));
    return ++n > 0;
  }));
  REQUIRE(session.rewind(0));
  const Answer a = must(answer(session, prompt));
  CHECK(a.text == "light.set(room=office, level=10)");
  CHECK(a.text == text);
  CHECK(a.n_tokens == n);
  CHECK(a.finish == Finish::end_of_text);
  CHECK(!a.is_second);
  CHECK(a.confidence == doctest::Approx(std::exp(lowest)));
  CHECK(session.position() == 0);
  const Answer mean = must(answer(session, prompt, {}, AnswerConfidence::mean));
  CHECK(mean.confidence == doctest::Approx(std::exp(sum / static_cast<double>(n))));
  CHECK(mean.confidence >= a.confidence);
  CHECK(code(answer(session, prompt, {.max_tokens = 0})) == Errc::invalid_argument);
  CHECK(session.position() == 0);
}

TEST_CASE("what is before the prompt stays") {
  Session session = session_of(home_model());
  const Ids before = {5, 6, 7};
  must(session.append(before));
  const Answer a = must(answer(session, "switch on the kitchen light\n"));
  CHECK(session.position() == 3);
  CHECK(must(answer(session, "switch on the kitchen light\n")).text == a.text);
}

TEST_CASE("a cascade asks the second stage below the threshold, and only there") {
  const std::string prompt = "switch on the kitchen light\n";
  Session session = session_of(home_model());
  const Answer alone = must(answer(session, prompt));
  int n_asked = 0;
  const auto second = [&](std::string_view asked) -> Result<Answer> {
    CHECK(asked == prompt);
    ++n_asked;
    return said(0.25);
  };
  const auto run = [&](CascadeOptions options) {
    n_asked = 0;
    Cascade cascade = must(Cascade::create(session_of(home_model()), second, std::move(options)));
    must(cascade.answer(prompt));
    return must(cascade.answer(prompt));  // the same the second time
  };
  const Answer kept = run({.threshold = alone.confidence});
  CHECK(kept.text == alone.text);
  CHECK(n_asked == 0);
  const double above = std::nextafter(alone.confidence, 2);
  const Answer handed = run({.threshold = above});
  CHECK(handed.text == "second");
  CHECK(handed.confidence == 0.25);
  CHECK(handed.is_second);
  CHECK(n_asked == 2);
  CHECK(run({.threshold = 2, .measure = AnswerConfidence::mean}).is_second);
  CHECK(run({.threshold = 2, .measure = AnswerConfidence::mean, .decide_after = 2}).is_second);
  CHECK(!run({.threshold = 0}).is_second);

  // The caller's own confidence.
  std::vector<std::string> seen;
  const auto own = [&](std::string_view, const Answer& answer) {
    seen.push_back(answer.text);
    return answer.text.size() > 3 ? 0.4 : 0.9;
  };
  CHECK(!run({.threshold = 0.4, .confidence = own}).is_second);
  CHECK(run({.threshold = 0.41, .confidence = own}).is_second);
  CHECK(seen == std::vector<std::string>(4, alone.text));

  // Errors of the second stage are handed on; what was cancelled is not asked again.
  const auto fails = [](std::string_view) -> Result<Answer> { return Error{Errc::io, "no net"}; };
  Cascade failing = must(Cascade::create(session_of(home_model()), fails, {.threshold = 2}));
  CHECK(code(failing.answer(prompt)) == Errc::io);
  const std::atomic<bool> cancel{true};
  Cascade cancelled = must(Cascade::create(session_of(home_model()), fails,
                                           {.threshold = 0, .generate = {.cancel = &cancel}}));
  CHECK(must(cancelled.answer(prompt)).finish == Finish::cancelled);
  CHECK(code(Cascade::create(session_of(home_model()), {})) == Errc::invalid_argument);
  CHECK(code(Cascade::create(session_of(home_model()), fails,
                             {.threshold = std::numeric_limits<double>::quiet_NaN()})) ==
        Errc::invalid_argument);
}

TEST_CASE("calibration: as many answers kept as the accuracy allows") {
  // By hand: kept from the top, right of all five with the second stage: 0.6 + ...
  const std::vector<LabelledAnswer> data = {{0.9, true, true},
                                            {0.8, false, true},
                                            {0.8, true, true},
                                            {0.5, true, false},
                                            {0.1, false, true}};
  // None kept: 4 of 5. 0.9: 4. 0.8 (both): 3. 0.5: 4. All: 3.
  const CascadeThreshold four = must(choose_threshold(data, 0.8));
  CHECK(four.threshold == 0.5);
  CHECK(four.accuracy == doctest::Approx(0.8));
  CHECK(four.kept == doctest::Approx(0.8));
  CHECK(must(choose_threshold(data, 0.6)).threshold == 0.1);
  CHECK(must(choose_threshold(data, 0.6)).kept == 1);
  CHECK(code(choose_threshold(data, 0.9)) == Errc::limit);
  CHECK(code(choose_threshold({}, 0.5)) == Errc::invalid_argument);
  const std::vector<LabelledAnswer> wrong = {{std::numeric_limits<double>::quiet_NaN(), true}};
  CHECK(code(choose_threshold(wrong, 0.5)) == Errc::invalid_argument);
  // Nothing may be kept: no threshold is high enough but infinity.
  const std::vector<LabelledAnswer> bad = {{1, false, true}};
  const CascadeThreshold none = must(choose_threshold(bad, 1));
  CHECK(none.kept == 0);
  CHECK(none.threshold > 1);

  // Against all thresholds, one by one.
  std::mt19937 random(4);
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<LabelledAnswer> some(1 + random() % 12);
    for (LabelledAnswer& a : some) {
      a = {static_cast<double>(random() % 6) / 5, random() % 3 > 0, random() % 4 > 0};
    }
    const double wanted = static_cast<double>(random() % 100) / 100;
    double most_kept = -1;
    for (const double t : {0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0}) {
      int n_right = 0, n_kept = 0;
      for (const LabelledAnswer& a : some) {
        n_kept += a.confidence >= t;
        n_right += a.confidence >= t ? a.is_first_right : a.is_second_right;
      }
      const auto n = static_cast<double>(some.size());
      if (n_right / n >= wanted) most_kept = std::max(most_kept, n_kept / n);
    }
    const auto found = choose_threshold(some, wanted);
    REQUIRE(found.has_value() == (most_kept >= 0));
    if (!found) continue;
    REQUIRE(found->kept == doctest::Approx(most_kept));
    REQUIRE(found->accuracy >= wanted);
  }
}

TEST_CASE("home commands: 2 bits answer, F16 where these are not sure") {
  const auto samples = read_samples("hard_2000.tsv");
  Session small = session_of(first_model()), large = session_of(home_model());
  std::vector<LabelledAnswer> labelled;
  for (std::size_t i = 0; i < 80; ++i) {
    const std::string prompt = samples[i].utterance + "\n";
    const Answer first = must(answer(small, prompt)), second = must(answer(large, prompt));
    labelled.push_back(
        {first.confidence, first.text == samples[i].call, second.text == samples[i].call});
  }
  int large_right = 0;
  for (const LabelledAnswer& a : labelled) large_right += a.is_second_right;
  const CascadeThreshold c = must(choose_threshold(labelled, large_right / 80.0 - 0.02));
  Cascade cascade = must(Cascade::create(
      session_of(first_model()), [&](std::string_view prompt) { return answer(large, prompt); },
      {.threshold = c.threshold}));
  // Others than those of the calibration.
  int n_right = 0, n_small = 0, n_large = 0, n_kept = 0;
  for (std::size_t i = 80; i < 180; ++i) {
    const std::string prompt = samples[i].utterance + "\n";
    const Answer a = must(cascade.answer(prompt));
    n_right += a.text == samples[i].call;
    n_kept += !a.is_second;
    n_small += must(answer(small, prompt)).text == samples[i].call;
    n_large += must(answer(large, prompt)).text == samples[i].call;
  }
  MESSAGE("threshold ", c.threshold, ": of 100, small ", n_small, ", large ", n_large, ", cascade ",
          n_right, " right; the small one kept ", n_kept);
  CHECK(n_kept > 10);
  CHECK(n_kept < 100);
  CHECK(n_right > n_small);
  CHECK(n_right >= n_large - 6);
}

}  // namespace cascade_test
