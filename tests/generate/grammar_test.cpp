// SPDX-License-Identifier: Apache-2.0
//
// Generation that is bound by a grammar, with the model that ships with nibble.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "generate/generating.hpp"
#include "generate/home_model.hpp"
#include "generate/scheduling.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/generate/generator.hpp"
#include "nibble/generate/scheduler.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/grammar/constraint.hpp"
#include "nibble/grammar/gbnf.hpp"
#include "nibble/text/tokenizer.hpp"
#include "why.hpp"

namespace grammar_test {

using namespace test;
using nibble::Finish;
using nibble::GenerateOptions;
using nibble::Generator;
using nibble::Session;
using nibble::grammar::Constraint;
using nibble::grammar::TokenTrie;

namespace {

const TokenTrie& home_trie() {
  static const TokenTrie trie = must(TokenTrie::create(home_model().tokenizer()->vocabulary()));
  return trie;
}

Constraint constraint_of(std::string_view gbnf) {
  return must(Constraint::create(must(nibble::grammar::from_gbnf(gbnf)), home_trie()));
}

struct Bound {
  std::string text;
  std::vector<float> logprobs;
  std::size_t n_forced = 0;
  Finish finish = Finish::none;
};

Bound generate(const Constraint& constraint, std::string_view prompt,
               GenerateOptions options = {}) {
  Session session = make_session();
  options.grammar = &constraint;
  Bound bound;
  const auto done = nibble::generate(session, prompt, options, [&](const nibble::Token& token) {
    bound.text += token.text;
    bound.logprobs.push_back(token.logprob);
    bound.n_forced += token.logprob == 0;
    return true;
  });
  REQUIRE_MESSAGE(done, why(done));
  bound.finish = done->finish;
  return bound;
}

// Calls as the model was taught them, of two rooms.
constexpr const char* kCalls =
    R"gbnf(root ::= device "." action "(room=" room (", level=" [0-9]{1,3})? ")"
device ::= "light" | "blinds" | "climate"
action ::= "on" | "off" | "set"
room ::= "office" | "kitchen")gbnf";

}  // namespace

TEST_CASE("an answer that the grammar allows is the model's own, with its own probabilities") {
  Session session = make_session();
  std::string text;
  std::vector<float> logprobs;
  const auto free = nibble::generate(session, kPrompt, {}, [&](const nibble::Token& token) {
    text += token.text;
    logprobs.push_back(token.logprob);
    return true;
  });
  REQUIRE_MESSAGE(free, why(free));
  REQUIRE(text == kAnswer);
  const Bound bound = generate(constraint_of(kCalls), kPrompt);
  CHECK(bound.text == kAnswer);
  CHECK(bound.finish == Finish::grammar_end);
  // The first choice is made from the same logits.
  REQUIRE(bound.logprobs.size() > 2);
  CHECK(bound.logprobs[0] == logprobs[0]);
  CHECK(bound.n_forced > 0);
}

TEST_CASE("an answer that the model would not give is given all the same") {
  const Bound off = generate(
      constraint_of("root ::= \"light.off(room=\" (\"office\" | \"hall\") \")\""), kPrompt);
  CHECK(off.text == "light.off(room=office)");
  CHECK(off.finish == Finish::grammar_end);
  // "light.off(room=" needs no model, and after the choice ")" does not.
  CHECK(off.n_forced >= off.logprobs.size() - 2);
}

TEST_CASE("random answers are in the grammar") {
  const Constraint constraint = constraint_of(kCalls);
  auto matcher = must(nibble::grammar::Matcher::create(constraint));
  GenerateOptions options;
  options.sampling.temperature = 3;
  options.sampling.top_k = 0;
  options.sampling.top_p = 1;
  options.sampling.min_p = 0;
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    options.sampling.seed = seed;
    const Bound bound = generate(constraint, "good morning\n", options);
    CAPTURE(bound.text);
    REQUIRE(matcher.restart());
    CHECK(must(matcher.accept_text(bound.text)));
    CHECK(matcher.can_end());
    CHECK((bound.finish == Finish::grammar_end || bound.finish == Finish::end_of_text));
  }
}

TEST_CASE("where the text may end, the model may end it") {
  const Bound bound = generate(constraint_of("root ::= .*"), kPrompt);
  CHECK(bound.text == kAnswer);
  CHECK(bound.finish == Finish::end_of_text);
}

TEST_CASE("certain tokens wait until the model is asked again") {
  const Constraint constraint = constraint_of("root ::= \"scene.start(name=\" [a-z_]+ \")\"");
  Session session = make_session();
  GenerateOptions options;
  options.grammar = &constraint;
  Generator generator = make_generator(session, options);
  REQUIRE(generator.prompt("reading mode\n"));
  nibble::Index most = 0;
  for (;;) {
    const auto token = must(generator.next());
    if (!token) break;
    most = std::max(most, session.sequence().n_pending());
  }
  CHECK(most >= 3);
  CHECK(generator.finish() == Finish::grammar_end);
}

TEST_CASE("an empty prompt goes on in the grammar, any other begins it anew") {
  const Constraint constraint =
      constraint_of("root ::= \"light.\" (\"on\" | \"off\") \"(\" [a-z=]+ \")\"");
  Session session = make_session();
  GenerateOptions options;
  options.grammar = &constraint;
  options.max_tokens = 3;
  Generator generator = make_generator(session, options);
  REQUIRE(generator.prompt("switch on the kitchen light\n"));
  std::string text = take(generator).text;
  CHECK(generator.finish() == Finish::max_tokens);
  for (int i = 0; i < 30 && generator.finish() == Finish::max_tokens; ++i) {
    REQUIRE(generator.prompt(""));
    text += take(generator).text;
  }
  CHECK(text == "light.on(room=kitchen)");
  REQUIRE(generator.prompt(""));
  CHECK_FALSE(must(generator.next()));
  CHECK(generator.finish() == Finish::grammar_end);
  REQUIRE(generator.prompt("\nswitch off the office light\n"));
  CHECK(take(generator).text.substr(0, 5) == "light");
}

TEST_CASE("requests of a scheduler may have grammars; what is certain takes no step of its own") {
  const Constraint off = constraint_of("root ::= \"light.off(room=office)\""),
                   calls = constraint_of(kCalls), nothing = constraint_of("root ::= \"\""),
                   talk = constraint_of(
                       "root ::= \"please switch the light on in the \" (\"office\" | \"kitchen\") "
                       "\" and then wake me up at \" [0-9] \":00 in the morning, thank you\"");
  std::vector<nibble::GenerateRequest> requests;
  for (const Constraint* constraint :
       {&off, &calls, &talk, static_cast<const Constraint*>(nullptr), &nothing, &talk}) {
    requests.push_back({.prompt = kPrompt});
    requests.back().options.grammar = constraint;
  }
  requests.back().options.max_tokens = 9;  // ends within what is certain
  std::vector<Answer> expected;
  for (const auto& request : requests) expected.push_back(alone(home_model(), request));
  CHECK(expected[0].text == "light.off(room=office)");
  CHECK(expected[1].text == kAnswer);
  CHECK(expected[4].finish == Finish::grammar_end);
  std::size_t n_most = 0;
  for (const Answer& answer : expected) n_most = std::max(n_most, answer.ids.size());
  for (const auto& [max_batch, max_step_tokens] : {std::pair{1, 1}, {2, 3}, {4, 20}, {6, 300}}) {
    CAPTURE(max_batch);
    auto scheduler =
        make_scheduler(home_model(), {.max_batch = max_batch, .max_step_tokens = max_step_tokens});
    std::vector<nibble::Completion> completions;
    for (const auto& request : requests) completions.push_back(must(scheduler.submit(request)));
    while (scheduler.step()) {
    }
    for (std::size_t i = 0; i < requests.size(); ++i) {
      CAPTURE(i);
      Answer answer;
      poll_all(completions[i], answer);
      CHECK(answer == expected[i]);
    }
    if (max_batch == 6) CHECK(scheduler.stats().n_steps < static_cast<std::int64_t>(n_most) / 2);
  }
  // Who does not want more gets no more, also of what is certain.
  auto scheduler = make_scheduler(home_model());
  std::size_t n = 0;
  requests[2].on_token = [&n](const nibble::Token& token) {
    n += token.id >= 0 ? 1u : 0u;
    return n < 3;
  };
  const auto completion = must(scheduler.submit(requests[2]));
  while (scheduler.step()) {
  }
  CHECK(n == 3);
  CHECK(completion.finish() == Finish::cancelled);
}

TEST_CASE("a grammar for another vocabulary, and a bias against it, are errors") {
  const nibble::text::Piece pieces[] = {{"<unk>", 0, nibble::text::PieceType::unknown}, {"a"}};
  nibble::text::VocabularySettings settings;
  settings.bos = settings.eos = nibble::text::kNoToken;
  const auto vocabulary = must(nibble::text::Vocabulary::make(pieces, settings));
  const auto trie = must(TokenTrie::create(vocabulary));
  const auto other =
      must(Constraint::create(must(nibble::grammar::from_gbnf("root ::= \"a\"")), trie));
  Session session = make_session();
  GenerateOptions options;
  options.grammar = &other;
  const auto refused = Generator::create(session, options);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().message.find("vocabulary of 2 tokens") != std::string::npos);

  const Constraint two = constraint_of("root ::= [a-b]");
  options.grammar = &two;
  for (std::int32_t id = 0; home_trie().contains(id); ++id) {
    const std::string_view text = home_trie().text(id);
    if (text == "a" || text == "b") options.sampling.logit_bias.push_back({id, -nibble::kInfinity});
  }
  Generator generator = make_generator(session, options);
  REQUIRE(generator.prompt(kPrompt));
  const auto none = generator.next();
  REQUIRE_FALSE(none);
  CHECK(none.error().message.find("grammar allows") != std::string::npos);
}

}  // namespace grammar_test
