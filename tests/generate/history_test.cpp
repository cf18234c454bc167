// SPDX-License-Identifier: Apache-2.0
//
// The history of a session is what was shown, whoever looks at it or changes it, and wherever
// session and generator are.
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "generate/generating.hpp"
#include "nibble/generate/engine.hpp"

namespace history_test {

using namespace nibble;
using test::copy;
using test::encode;
using test::Ids;
using test::joined;
using test::kAnswer;
using test::kPrompt;
using test::make_generator;
using test::make_session;
using test::must;
using test::take;

namespace {

GenerateOptions at_most(Index max_tokens) {
  GenerateOptions options;
  options.max_tokens = max_tokens;
  return options;
}

// What generate() shows.
std::string shown(Session& session, std::string_view prompt, const GenerateOptions& options = {}) {
  std::string text;
  must(generate(session, prompt, options, [&](const Token& token) {
    text += token.text;
    return true;
  }));
  return text;
}

Ids answer_ids() {
  Session session = make_session();
  Generator generator = make_generator(session);
  REQUIRE(generator.prompt(kPrompt));
  return take(generator).ids;
}

std::vector<float> row(MatrixView<const float> logits) {
  return {logits[0].data(), logits[0].data() + logits.extent(1)};
}

}  // namespace

TEST_CASE("the history is what was shown, however generation is divided") {
  const Ids whole = joined({encode(kPrompt), answer_ids()});
  CHECK(test::home_model().tokenizer()->vocabulary().ends_generation(whole.back()));
  for (const Index n : {1, 2, 3, 5, 100}) {
    CAPTURE(n);
    Session session = make_session();
    std::string text = shown(session, kPrompt, at_most(n));
    while (session.position() < static_cast<Index>(whole.size())) {
      CHECK(copy(session.tokens()) == Ids(whole.begin(), whole.begin() + session.position()));
      CHECK(session.sequence().n_pending() == 1);
      text += shown(session, "", at_most(n));
    }
    CHECK(text == kAnswer);
    CHECK(copy(session.tokens()) == whole);
  }
  // A callback that has enough; a stop string; a cancelled generator.
  Session session = make_session();
  int n = 0;
  must(generate(session, kPrompt, {}, [&](const Token&) { return ++n < 4; }));
  CHECK(copy(session.tokens()) ==
        Ids(whole.begin(), whole.end() - (static_cast<std::ptrdiff_t>(answer_ids().size()) - 4)));
  REQUIRE(session.rewind(0));
  GenerateOptions options;
  options.stop = {"("};
  CHECK(shown(session, kPrompt, options) == "light.set");
  CHECK(std::string(test::home_model().tokenizer()->decode(session.tokens())).find("light.set(") !=
        std::string::npos);
}

TEST_CASE("pending tokens are computed with what comes next, as if they had been before") {
  const Ids prompt_ids = encode(kPrompt), more = {7, 8, 9};
  const Ids answer = answer_ids();
  Session session = make_session({.kv_type = ops::KvType::f32});
  shown(session, kPrompt);
  REQUIRE(session.sequence().n_pending() == 1);
  const auto fork = must(session.sequence().fork());
  CHECK(copy(fork.tokens()) == copy(session.tokens()));
  CHECK(fork.n_pending() == 1);
  const auto logits = row(must(session.append(more)));
  CHECK(copy(session.tokens()) == joined({prompt_ids, answer, more}));
  CHECK(session.sequence().n_pending() == 0);

  Session straight = make_session({.kv_type = ops::KvType::f32});
  const auto expected = row(must(straight.append(joined({prompt_ids, answer, more}))));
  for (std::size_t i = 0; i < logits.size(); ++i) {
    REQUIRE(std::abs(logits[i] - expected[i]) < 1e-3f);
  }
  // Back to before the pending token, and to before others.
  Session again = make_session();
  shown(again, kPrompt);
  REQUIRE(again.rewind(again.position() - 1));
  CHECK(again.sequence().n_pending() == 0);
  CHECK(copy(again.tokens()) == joined({prompt_ids, Ids(answer.begin(), answer.end() - 1)}));
  REQUIRE(again.rewind(static_cast<Index>(prompt_ids.size())));
  CHECK(shown(again, "") == kAnswer);
}

TEST_CASE("sequences with pending tokens in one step") {
  auto engine = must(Engine::create(test::home_model(), {.n_ctx = 64, .max_sequences = 2}));
  auto a = must(engine.new_sequence());
  auto b = must(engine.new_sequence());
  const Ids ids = {1, 20, 30, 40, 50};
  const std::span<const std::int32_t> all(ids);
  const SequenceInput start{.sequence = &a, .tokens = all.first(3)};
  must(engine.run({&start, 1}));
  REQUIRE(a.push(40));
  REQUIRE(a.push(50));
  REQUIRE(b.push(1));
  CHECK(a.n_pending() == 2);
  CHECK(a.position() == 5);
  const SequenceInput inputs[] = {{.sequence = &a}, {.sequence = &b, .tokens = all.subspan(1)}};
  const auto logits = must(engine.run(inputs));
  CHECK(a.n_pending() == 0);
  CHECK(copy(a.tokens()) == ids);
  CHECK(copy(b.tokens()) == ids);
  for (Index i = 0; i < logits.extent(1); ++i) {
    REQUIRE(std::abs(logits(0, i) - logits(1, i)) < 1e-2f);
  }
  // Nothing to compute, no such token, no room.
  const SequenceInput nothing{.sequence = &a};
  CHECK(engine.run({&nothing, 1}).error().code == Errc::invalid_argument);
  CHECK(a.push(-1).error().code == Errc::invalid_argument);
  CHECK(a.push(512).error().code == Errc::invalid_argument);
  auto small = must(engine.new_sequence(1));
  REQUIRE(small.push(3));
  const auto full = small.push(3);
  REQUIRE(!full);
  CHECK(full.error().code == Errc::limit);
  CHECK(full.error().message.find("is full") != std::string::npos);
  CHECK(small.position() == 1);
}

TEST_CASE("a prompt follows the sequence as it is, not as the generator left it") {
  // The sequence is replaced by another one of the same length: nothing of the old one may come.
  const Ids end = encode("end", false);
  for (const int n_taken : {0, 1, 3}) {
    Session session = make_session();
    Generator generator = make_generator(session);
    REQUIRE(generator.prompt(kPrompt));
    take(generator, static_cast<std::size_t>(n_taken));
    const Index n = session.position();
    REQUIRE(session.rewind(0));
    Ids other;
    for (Index i = 0; i < n; ++i) other.push_back(static_cast<std::int32_t>(300 + i));
    must(session.append(other));
    REQUIRE(generator.prompt("end"));
    CHECK(copy(session.tokens()) == joined({other, end}));
  }
}

TEST_CASE("a generator notices every change of its sequence by others") {
  const auto refused = [](Generator& generator) {
    const auto token = generator.next();
    REQUIRE(!token);
    CHECK(token.error().code == Errc::invalid_argument);
    CHECK(token.error().message.find("changed by something else") != std::string::npos);
  };
  const auto started = [](Session& session) {
    Generator generator = make_generator(session);
    REQUIRE(generator.prompt(kPrompt));
    take(generator, 3);
    return generator;
  };
  Session session = make_session();
  Generator a = started(session);
  REQUIRE(session.rewind(session.position() - 1));
  refused(a);
  // Also if the sequence has the same length or the same tokens again.
  REQUIRE(session.sequence().push(5));
  refused(a);
  REQUIRE(session.rewind(0));
  refused(a);
  REQUIRE(session.append(Ids{1, 300}));
  refused(a);
  REQUIRE(a.prompt(""));

  // Another generator on the session; one goes on where the other is.
  REQUIRE(session.rewind(0));
  Generator b = started(session);
  refused(a);
  REQUIRE(a.prompt(""));
  std::string text = test::home_model().tokenizer()->decode(session.tokens());
  text += take(a, 1).text;
  refused(b);
  text += take(a).text;
  CHECK(text == std::string(kPrompt) + kAnswer);

  // Another sequence in its place.
  REQUIRE(session.rewind(0));
  Generator c = started(session);
  auto snapshot = must(session.sequence().fork());
  REQUIRE(c.next());
  session.sequence() = std::move(snapshot);
  refused(c);
  REQUIRE(c.prompt(""));
  text = test::home_model().tokenizer()->decode(session.tokens());
  CHECK(text + take(c).text == std::string(kPrompt) + kAnswer);
}

TEST_CASE("other sequences of the engine do not disturb a generator") {
  const Ids whole = joined({encode(kPrompt), answer_ids()});
  for (const bool recompute : {false, true}) {
    Session session = make_session({.n_ctx = 192});
    Generator generator = make_generator(session);
    REQUIRE(generator.prompt(kPrompt));
    Sequence other = must(session.engine().new_sequence());
    const Ids ids = {1, 2, 3};
    for (int i = 0; i < 20; ++i) {
      // Its logits take the place of those that the generator has not read yet.
      const SequenceInput input{.sequence = &other, .tokens = ids};
      if (recompute || i > 0) must(session.engine().run({&input, 1}));
      if (!must(generator.next())) break;
    }
    take(generator);
    CHECK(copy(session.tokens()) == whole);
  }
}

TEST_CASE("logits() are those after the last token, wherever the sequence is") {
  const Ids ids = encode(kPrompt);
  Session session = make_session();
  const auto none = session.logits();
  REQUIRE(!none);
  CHECK(none.error().code == Errc::invalid_argument);
  std::vector<std::vector<float>> after;
  for (const std::int32_t id : ids) after.push_back(row(must(session.append({&id, 1}))));
  CHECK(row(must(session.logits())) == after.back());
  for (std::size_t n = ids.size(); n > 4; n -= 4) {
    REQUIRE(session.rewind(static_cast<Index>(n)));
    CHECK(row(must(session.logits())) == after[n - 1]);
    CHECK(copy(session.tokens()) == Ids(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(n)));
  }
  REQUIRE(session.rewind(2));
  REQUIRE(session.sequence().push(ids[2]));
  CHECK(row(must(session.logits())) == after[2]);
}

namespace {

struct Assistant {
  Model model;
  Session session;
  Generator generator;
};

Result<Assistant> make_assistant() {
  NIBBLE_TRY(model, load(test::home_model_path()));
  NIBBLE_TRY(session, Session::create(model, {}));
  NIBBLE_TRY(generator, Generator::create(session, {}));
  return Assistant{std::move(model), std::move(session), std::move(generator)};
}

}  // namespace

TEST_CASE("sessions and generators may be moved and destroyed in any order") {
  auto assistant = must(make_assistant());
  REQUIRE(assistant.generator.prompt(kPrompt));
  std::vector<Assistant> assistants;
  assistants.push_back(std::move(assistant));
  for (int i = 0; i < 5; ++i) assistants.push_back(must(make_assistant()));  // the vector grows
  CHECK(take(assistants[0].generator).text == kAnswer);
  CHECK(assistants[0].session.position() > 20);

  std::vector<Session> sessions;
  std::vector<Generator> generators;
  for (int i = 0; i < 5; ++i) {
    sessions.push_back(make_session());
    generators.push_back(make_generator(sessions.back()));
  }
  REQUIRE(generators[0].prompt(kPrompt));
  CHECK(take(generators[0], 2).ids.size() == 2);
  sessions.clear();  // a generator shares what its session owns
  CHECK(take(generators[0]).ids.size() + 2 == answer_ids().size());
  REQUIRE(generators[4].prompt(kPrompt));
  CHECK(take(generators[4]).text == kAnswer);

  // Assigning: the generator stays with what it was made for.
  Session first = make_session(), second = make_session();
  Generator generator = make_generator(first);
  REQUIRE(generator.prompt(kPrompt));
  first = std::move(second);
  CHECK(first.position() == 0);
  CHECK(take(generator).text == kAnswer);
  CHECK(first.position() == 0);
}

}  // namespace history_test
