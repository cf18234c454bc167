// SPDX-License-Identifier: Apache-2.0
//
// Guesses in a scheduler: each request gets what it would get without them, in fewer steps.
#include <array>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "allocation_counter.hpp"
#include "doctest/doctest.h"
#include "generate/known_text.hpp"
#include "generate/scheduling.hpp"
#include "nibble/grammar/constraint.hpp"
#include "nibble/grammar/gbnf.hpp"

namespace scheduler_speculation_test {

using namespace nibble;
using test::alone;
using test::Answer;
using test::home_model;
using test::Ids;
using test::KnownText;
using test::make_scheduler;
using test::must;
using test::poll_all;

namespace {

void finish_all(Scheduler& scheduler, std::vector<Completion>& completions,
                std::vector<Answer>& answers) {
  answers.resize(completions.size());
  for (bool more = true; more;) {
    more = scheduler.step();
    for (std::size_t i = 0; i < completions.size(); ++i) poll_all(completions[i], answers[i]);
  }
}

std::vector<GenerateRequest> requests_of(Index max_tokens) {
  std::vector<GenerateRequest> requests;
  for (std::size_t i = 0; i < 6; ++i) {
    GenerateRequest request{.tokens = test::some_tokens(3 + 5 * i, i)};
    request.options.max_tokens = max_tokens + static_cast<Index>(i);
    if (i % 2 == 1) {
      request.options.sampling.temperature = 0.9f;
      request.options.sampling.seed = i;
      request.options.sampling.repetition_penalty = 1.2f;
    }
    requests.push_back(std::move(request));
  }
  return requests;
}

Ids text_of(const GenerateRequest& request, const Answer& answer) {
  return test::joined({request.tokens, answer.ids});
}

}  // namespace

TEST_CASE("with guesses, right or wrong, each request of a scheduler gets what it gets alone") {
  const Model model = test::small_model();
  auto requests = requests_of(40);
  requests[2].options.stop_tokens = {7};
  std::vector<Answer> expected;
  for (const GenerateRequest& request : requests) {
    expected.push_back(alone(model, request, {.n_ctx = 128}));
  }
  for (const double wrong : {0.0, 0.4, 1.0}) {
    for (const Index max_drafts : {1, 3, 7}) {
      for (const Index max_batch : {1, 3, 6}) {
        CAPTURE(wrong);
        CAPTURE(max_drafts);
        CAPTURE(max_batch);
        std::vector<KnownText> sources;
        for (std::size_t i = 0; i < requests.size(); ++i) {
          sources.emplace_back(text_of(requests[i], expected[i]), wrong);
        }
        auto scheduler = make_scheduler(
            model, {.n_ctx = 128, .max_batch = max_batch, .max_drafts = max_drafts});
        std::vector<Completion> completions;
        std::vector<Answer> answers;
        for (std::size_t i = 0; i < requests.size(); ++i) {
          GenerateRequest request = requests[i];
          if (i != 4) {  // one asks for no guesses
            request.options.speculation = {max_drafts, &sources[i], true};
          }
          completions.push_back(must(scheduler.submit(std::move(request))));
        }
        finish_all(scheduler, completions, answers);
        for (std::size_t i = 0; i < requests.size(); ++i) {
          CAPTURE(i);
          CHECK(answers[i] == expected[i]);
        }
        const SchedulerStats stats = scheduler.stats();
        CHECK(stats.n_drafted > 0);
        CHECK(stats.n_accepted <= stats.n_drafted);
        if (wrong == 1.0) CHECK(stats.n_accepted == 0);
        if (wrong == 0.0) CHECK(stats.n_accepted > 40);
      }
    }
  }
}

TEST_CASE("right guesses save steps, one each") {
  const Model model = test::small_model();
  GenerateRequest request{.tokens = test::some_tokens(9, 1)};
  request.options.max_tokens = 41;
  const Answer expected = alone(model, request, {.n_ctx = 128});
  KnownText source(text_of(request, expected));
  request.options.speculation = {4, &source, true};
  auto scheduler = make_scheduler(model, {.n_ctx = 128, .max_drafts = 4});
  Answer answer;
  auto completion = must(scheduler.submit(request));
  while (scheduler.step()) poll_all(completion, answer);
  poll_all(completion, answer);
  CHECK(answer == expected);
  // The prompt gives a token, then 8 steps five each.
  CHECK(scheduler.stats().n_steps == 9);
  CHECK(scheduler.stats().n_drafted == 32);
  CHECK(scheduler.stats().n_accepted == 32);
}

TEST_CASE("guesses end where the answer, the context and a cancelled request end") {
  const Model model = test::small_model();
  for (const Index n_ctx : {16, 20, 21, 64}) {
    CAPTURE(n_ctx);
    GenerateRequest request{.tokens = test::some_tokens(12, 3)};
    request.options.max_tokens = 30;
    const Answer expected = alone(model, request, {.n_ctx = n_ctx});
    KnownText source(text_of(request, alone(model, request, {.n_ctx = 128})));
    request.options.speculation = {7, &source, true};
    auto scheduler = make_scheduler(model, {.n_ctx = n_ctx, .max_batch = 2, .max_drafts = 7});
    std::vector<Completion> completions;
    std::vector<Answer> answers;
    for (int i = 0; i < 2; ++i) completions.push_back(must(scheduler.submit(request)));
    finish_all(scheduler, completions, answers);
    CHECK(answers[0] == expected);
    CHECK(answers[1] == expected);
  }
  // Who has enough gets no more tokens of the same step.
  GenerateRequest request{.tokens = test::some_tokens(12, 3)};
  KnownText source(text_of(request, alone(model, request, {.n_ctx = 128})));
  request.options.max_tokens = 30;
  request.options.speculation = {7, &source, true};
  int n = 0;
  request.on_token = [&n](const Token& token) { return token.id < 0 || ++n < 4; };
  auto scheduler = make_scheduler(model, {.n_ctx = 128, .max_drafts = 7});
  const auto completion = must(scheduler.submit(std::move(request)));
  while (scheduler.step()) {
  }
  CHECK(n == 4);
  CHECK(completion.finish() == Finish::cancelled);
}

TEST_CASE("guesses follow a grammar, and what it makes certain is computed as without them") {
  const auto trie = must(grammar::TokenTrie::create(home_model().tokenizer()->vocabulary()));
  // Nothing is certain after the room; all is, once it has ended.
  for (const char* const level : {"[0-9]+ \")\"", "\"10)\""}) {
    CAPTURE(std::string(level));
    const auto rules = must(grammar::from_gbnf(
        std::string("root ::= \"light.set(room=\" [a-z]+ \", level=\" ") + level));
    const auto constraint = must(grammar::Constraint::create(rules, trie));
    GenerateRequest request{.prompt = test::kPrompt};
    request.options.max_tokens = 30;
    request.options.grammar = &constraint;
    const Answer expected = alone(home_model(), request, {.n_ctx = 128});
    CHECK(expected.text == test::kAnswer);
    const Ids prompt = must(home_model().tokenizer()->encode(request.prompt, {.add_eos = false}));
    for (const double wrong : {0.0, 0.3}) {
      KnownText source(test::joined({prompt, expected.ids}), wrong);
      request.options.speculation = {7, &source, true};
      auto scheduler = make_scheduler(home_model(), {.n_ctx = 128, .max_drafts = 7});
      std::vector<Completion> completions;
      std::vector<Answer> answers;
      for (int i = 0; i < 3; ++i) completions.push_back(must(scheduler.submit(request)));
      finish_all(scheduler, completions, answers);
      for (const Answer& answer : answers) CHECK(answer == expected);
      CHECK(source.n_asked > 0);
    }
  }
}

TEST_CASE("without a source, guesses are what other answers said; with a prefix cache too") {
  const std::array<const char*, 3> prompts = {test::kPrompt, "switch on the kitchen light\n",
                                              test::kPrompt};
  auto scheduler = make_scheduler(
      home_model(), {.n_ctx = 128, .prefix_cache_bytes = std::size_t{1} << 20, .max_drafts = 4});
  for (int round = 0; round < 3; ++round) {
    std::vector<Completion> completions;
    std::vector<Answer> answers, expected;
    for (const char* const prompt : prompts) {
      GenerateRequest request{.prompt = prompt};
      request.options.max_tokens = 30;
      expected.push_back(alone(home_model(), request, {.n_ctx = 128}));
      request.options.speculation = {.max_drafts = 4, .always = true};
      completions.push_back(must(scheduler.submit(std::move(request))));
    }
    finish_all(scheduler, completions, answers);
    CHECK(answers == expected);
  }
  CHECK(scheduler.stats().n_accepted > 10);
}

// A guess whose key no f16 cache holds makes the step fail; the request goes on without it.
TEST_CASE("guesses that make a step fail are left out") {
  constexpr std::int32_t kBad = 0;
  const auto width = static_cast<std::size_t>(home_model().config().dim);
  const Model model = test::changed_model({}, [&](const std::string& name, auto& weights) {
    if (name == "token_embd.weight") {
      for (std::size_t i = 0; i < weights.size(); i += width) weights[i] = 0;
      weights[kBad * width] = 1000;
    }
    if (name != "blk.0.attn_k.weight") return;
    for (std::size_t i = 0; i < weights.size(); i += width) weights[i] = 1e5f;
  });
  GenerateRequest request{.prompt = "switch on the kitchen light\n"};
  request.options.max_tokens = 12;
  request.options.sampling.logit_bias = {{kBad, -std::numeric_limits<float>::infinity()}};
  const Answer expected = alone(model, request, {.n_ctx = 128});
  KnownText source(Ids(100, kBad));
  request.options.speculation = {3, &source, true};
  auto scheduler = make_scheduler(model, {.n_ctx = 128, .max_batch = 2, .max_drafts = 3});
  std::vector<Completion> completions;
  std::vector<Answer> answers;
  completions.push_back(must(scheduler.submit(request)));
  completions.push_back(must(scheduler.submit(request)));
  finish_all(scheduler, completions, answers);
  CHECK(answers[0] == expected);
  CHECK(answers[1] == expected);
}

TEST_CASE("no step with guesses allocates; more of them than there is room for are refused") {
  const Model model = test::small_model();
  GenerateRequest request{.tokens = test::some_tokens(9, 1)};
  request.options.max_tokens = 60;
  request.options.speculation = {.max_drafts = 3, .always = true};
  auto scheduler = make_scheduler(model, {.n_ctx = 128, .max_batch = 2, .max_drafts = 3});
  std::vector<Completion> completions;
  for (int i = 0; i < 2; ++i) completions.push_back(must(scheduler.submit(request)));
  const auto before = allocation_count();
  while (scheduler.step()) {
  }
  CHECK(allocation_count() == before);
  CHECK(scheduler.stats().n_drafted > 0);

  request.options.speculation.max_drafts = 4;
  const auto refused = scheduler.submit(request);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == Errc::invalid_argument);
  CHECK(refused.error().message.find("max_drafts") != std::string::npos);
  for (const Index n : {-1, 8}) CHECK_FALSE(Scheduler::create(model, {.max_drafts = n}));
}

}  // namespace scheduler_speculation_test
