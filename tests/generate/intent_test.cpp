// SPDX-License-Identifier: Apache-2.0
//
// Intents and their confidences, with the model that ships with nibble.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "generate/generating.hpp"
#include "nibble/chat/tool_calls.hpp"
#include "nibble/generate/read_intent.hpp"
#include "nibble/generate/scheduler.hpp"
#include "nibble/generate/scored_text.hpp"
#include "nibble/grammar/constraint.hpp"
#include "nibble/grammar/intents.hpp"
#include "why.hpp"

namespace intent_test {

using namespace test;
using nibble::Calibration;
using nibble::Errc;
using nibble::GenerateOptions;
using nibble::ScoredText;
using nibble::Session;
using nibble::Token;
namespace grammar = nibble::grammar;
using grammar::Intents;
using grammar::IntentValue;
using grammar::SlotKind;

namespace {

const grammar::TokenTrie& home_trie() {
  static const auto trie = must(grammar::TokenTrie::create(home_model().tokenizer()->vocabulary()));
  return trie;
}

const Intents& intents() {
  static const Intents all = [] {
    const grammar::Slot room{.name = "room", .choices = {"office", "kitchen", "bedroom"}};
    const grammar::Slot level{.name = "level", .kind = SlotKind::integer};
    const grammar::Slot items{.name = "items", .choices = {"milk", "eggs", "tea"}, .max_items = 5};
    const grammar::Slot task{.name = "task", .kind = SlotKind::word};
    const grammar::Slot day{.name = "day", .choices = {"today", "tomorrow", "monday"}};
    return must(Intents::create({{"light.set", {room, level}},
                                 {"light.on", {room}},
                                 {"light.off", {room}},
                                 {"list.add", {items}},
                                 {"remind", {task, day}},
                                 {"none"}}));
  }();
  return all;
}

const grammar::Constraint& constraint() {
  static const auto made = must(grammar::Constraint::create(intents().grammar(), home_trie()));
  return made;
}

IntentValue read(std::string_view prompt, const nibble::IntentCalibration& calibration = {}) {
  Session session = make_session();
  return must(nibble::read_intent(session, std::string(prompt) + "\n", intents(), constraint(),
                                  calibration));
}

// Of a token among those that a grammar allows, in double precision.
double allowed_logprob(std::int32_t id, const grammar::TokenSet& allowed,
                       nibble::MatrixView<const float> logits) {
  double largest = -1e300, sum = 0;
  const auto logit = [&](std::int32_t i) { return static_cast<double>(logits(0, i)); };
  allowed.for_each([&](std::int32_t i) { largest = std::max(largest, logit(i)); });
  allowed.for_each([&](std::int32_t i) { sum += std::exp(logit(i) - largest); });
  return logit(id) - largest - std::log(sum);
}

}  // namespace

TEST_CASE("what is said is read as an intent with values") {
  const IntentValue call = read("could you please dim the office light to 10 percent");
  CHECK(call.name == "light.set");
  REQUIRE(call.slot_values.size() == 2);
  CHECK(call.find("room")->text == "office");
  CHECK(call.find("level")->integer == 10);
  CHECK(call.confidence > 0.9);
  CHECK(call.find("level")->confidence > 0.9);
  const IntentValue list = read("please add milk and eggs to my shopping list");
  CHECK(list.name == "list.add");
  CHECK(list.find("items")->items == std::vector<std::string>{"milk", "eggs"});
  const IntentValue task = read("remind me to water the plants tomorrow");
  CHECK(task.find("task")->text == "water_the_plants");
  CHECK(task.find("day")->text == "tomorrow");
}

TEST_CASE("the model is less sure of what it was not taught") {
  const IntentValue clear = read("turn on the kitchen lights");
  const IntentValue attic = read("turn on the attic lights");  // no room of these intents
  CHECK(clear.find("room")->confidence > attic.find("room")->confidence);
}

TEST_CASE("confidences are probabilities among the tokens that the grammar allows") {
  Session session = make_session();
  GenerateOptions options;
  options.grammar = &constraint();
  const std::string prompt = "add tea to the shopping list for me\n";
  ScoredText answer;
  std::vector<Token> tokens;
  must(nibble::generate(session, prompt, options, [&](const Token& token) {
    answer.add(token);
    tokens.push_back(token);
    return true;
  }));
  // Once more, token by token.
  REQUIRE(session.rewind(0));
  auto matcher = must(grammar::Matcher::create(constraint()));
  grammar::TokenSet allowed(home_trie().n_tokens());
  auto logits = must(session.append(encode(prompt)));
  double sum = 0, own = 0;
  std::size_t n_certain = 0;
  for (const Token& token : tokens) {
    REQUIRE(matcher.tokens(allowed));
    // What is certain comes with 0, however many ways there are to spell it.
    const bool is_certain = token.logprob == 0;
    const double expected = is_certain ? 0 : allowed_logprob(token.id, allowed, logits);
    n_certain += is_certain;
    sum += expected;
    own += static_cast<double>(token.logprob);
    CHECK(static_cast<double>(token.allowed_logprob) == doctest::Approx(expected).epsilon(1e-3));
    CHECK(token.allowed_logprob >= token.logprob);
    REQUIRE(must(matcher.accept(token.id)));
    const std::int32_t ids[] = {token.id};
    logits = must(session.append(ids));
  }
  CHECK(answer.text() == "list.add(items=[tea])");
  CHECK(n_certain > 0);
  CHECK(n_certain < tokens.size());
  CHECK(answer.logprob(0, answer.text().size()) == doctest::Approx(sum).epsilon(1e-3));
  CHECK(sum > own);
  const IntentValue value = must(nibble::intent_of(answer, intents()));
  CHECK(value.confidence * value.slot_values[0].confidence <= std::exp(sum) * 1.0001);
  CHECK(value.confidence <= 1);
}

TEST_CASE("without a grammar all tokens are allowed") {
  Session session = make_session();
  must(nibble::generate(session, kPrompt, {}, [&](const Token& token) {
    CHECK(token.allowed_logprob == token.logprob);
    return true;
  }));
}

TEST_CASE("a scheduler's answers have the same confidences") {
  const IntentValue alone = read("switch off the bedroom lamp");
  nibble::Scheduler scheduler = must(nibble::Scheduler::create(home_model(), {}));
  nibble::GenerateRequest request{.prompt = "switch off the bedroom lamp\n"};
  request.options.grammar = &constraint();
  auto completion = must(scheduler.submit(std::move(request)));
  ScoredText answer;
  while (scheduler.step()) {
    while (const auto token = completion.poll()) answer.add(*token);
  }
  while (const auto token = completion.poll()) answer.add(*token);
  const IntentValue value = must(nibble::intent_of(answer, intents()));
  CHECK(value.name == alone.name);
  CHECK(value.confidence == alone.confidence);
  CHECK(value.find("room")->confidence == alone.find("room")->confidence);
}

TEST_CASE("a calibration changes confidences, and nothing else") {
  const char* const prompt = "switch off the bedroom lamp";
  const IntentValue plain = read(prompt);
  const nibble::IntentCalibration calibration{{0.5, 0}, {0.25, 0}};
  const IntentValue corrected = read(prompt, calibration);
  CHECK(corrected.name == plain.name);
  CHECK(corrected.confidence == calibration.intent(plain.confidence));
  CHECK(corrected.slot_values[0].confidence == calibration.slot(plain.slot_values[0].confidence));
  CHECK(corrected.confidence < plain.confidence);
}

TEST_CASE("an answer without an end is an error") {
  Session session = make_session();
  GenerateOptions options;
  options.max_tokens = 2;
  const auto cut = nibble::read_intent(session, "turn on the kitchen lights\n", intents(),
                                       constraint(), {}, options);
  REQUIRE_FALSE(cut);
  CHECK(cut.error().code == Errc::limit);
  CHECK(why(cut).find("token limit") != std::string::npos);
}

TEST_CASE("parts of an answer with texts that come late") {
  ScoredText text;
  const auto add = [&](const char* shown, float logprob, nibble::Finish finish) {
    Token token;
    token.text = shown;
    token.allowed_logprob = logprob;
    token.finish = finish;
    text.add(token);
  };
  add("ab", -1, nibble::Finish::none);
  add("", -2, nibble::Finish::none);
  add("cde", -4, nibble::Finish::none);  // with the one before
  add("", -8, nibble::Finish::end_of_text);
  CHECK(text.text() == "abcde");
  CHECK(text.logprob(0, 2) == -1);
  CHECK(text.logprob(0, 3) == -7);
  CHECK(text.logprob(2, 4) == -6);
  CHECK(text.logprob(4, 5) == -14);
  CHECK(text.logprob(0, 5) == -15);
  CHECK(text.logprob(1, 1) == 0);
}

TEST_CASE("tools are called by a model that was never taught to") {
  const auto tools = must(nibble::chat::Tools::create(R"([
      {"name": "light", "parameters": {"type": "object", "properties": {"room":
        {"enum": ["office", "kitchen"]}, "level": {"type": "integer", "minimum": 0,
        "maximum": 100}}, "required": ["room", "level"]}},
      {"name": "stop"}])"));
  const auto bound = must(grammar::Constraint::create(tools.grammar(), home_trie()));
  Session session = make_session();
  GenerateOptions options;
  options.grammar = &bound;
  std::string answer;
  must(nibble::generate(session, kPrompt, options, [&](const Token& token) {
    answer += token.text;
    return true;
  }));
  CAPTURE(answer);
  const auto calls = must(tools.parse(answer));
  REQUIRE(calls.size() == 1);
  if (calls[0].name == "light") CHECK(calls[0].arguments.find("level")->number() <= 100);
}

}  // namespace intent_test
