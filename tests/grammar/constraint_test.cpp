// SPDX-License-Identifier: Apache-2.0
//
// Matchers: tokens, ends, going back, forks, what is forced, and what they allocate.
#include "nibble/grammar/constraint.hpp"

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "allocation_counter.hpp"
#include "doctest/doctest.h"
#include "grammar/matching.hpp"
#include "nibble/grammar/gbnf.hpp"
#include "nibble/grammar/json_schema.hpp"
#include "why.hpp"

namespace constraint_test {

using nibble::Errc;
using namespace nibble::grammar;
using test::small_trie;
using test::why;

namespace {

std::int32_t token(std::string_view text) {
  for (std::int32_t id = 0; small_trie().contains(id); ++id)
    if (small_trie().text(id) == text) return id;
  FAIL("no such token: ", text);
  return -1;
}

std::vector<std::string> allowed_texts(Matcher& matcher) {
  TokenSet allowed(small_trie().n_tokens());
  const auto done = matcher.tokens(allowed);
  REQUIRE_MESSAGE(done, why(done));
  std::vector<std::string> texts;
  allowed.for_each([&](std::int32_t id) {
    texts.push_back(small_trie().is_end(id) ? "END" : std::string(small_trie().text(id)));
  });
  std::sort(texts.begin(), texts.end());
  texts.erase(std::unique(texts.begin(), texts.end()), texts.end());  // "a" is a byte, too
  return texts;
}

using Texts = std::vector<std::string>;

}  // namespace

TEST_CASE("tokens: text only as far as the grammar allows it, ends where it may end") {
  Matcher matcher = test::matcher_of(test::gbnf("root ::= \"light\" (\" on\" | \" off\")?"));
  CHECK(allowed_texts(matcher) == Texts{"l", "light", "light on"});
  CHECK_FALSE(matcher.can_end());
  CHECK_FALSE(*matcher.accept(token(" on")));
  CHECK_FALSE(*matcher.accept(test::SmallVocabulary::kEnd));
  CHECK_FALSE(*matcher.accept(test::SmallVocabulary::kControl));
  CHECK_FALSE(*matcher.accept(test::SmallVocabulary::kUnknown));
  CHECK_FALSE(*matcher.accept(-1));
  CHECK_FALSE(*matcher.accept(1'000'000));
  CHECK(*matcher.accept(token("light")));
  CHECK(allowed_texts(matcher) == Texts{" ", " off", " on", "END"});
  CHECK(matcher.can_end());
  CHECK_FALSE(matcher.is_finished());
  CHECK(*matcher.accept(token(" off")));
  CHECK(matcher.is_finished());
  CHECK(allowed_texts(matcher) == Texts{"END"});
  CHECK(*matcher.accept(test::SmallVocabulary::kEnd));
  CHECK(matcher.is_finished());
  CHECK(allowed_texts(matcher).empty());
  CHECK_FALSE(*matcher.accept(test::SmallVocabulary::kEnd));
}

TEST_CASE("tokens can be taken back, as many as were asked for") {
  const auto constraint =
      Constraint::create(test::gbnf("root ::= \"a\" \"b\" \"x\"* \"c\""), small_trie());
  REQUIRE(constraint);
  auto matcher = Matcher::create(*constraint, 3);
  REQUIRE(matcher);
  CHECK(matcher->n_back() == 0);
  CHECK(matcher->rollback(0));
  CHECK_FALSE(matcher->rollback(1));
  CHECK(*matcher->accept(token("ab")));
  const Texts after_ab = allowed_texts(*matcher);
  CHECK(*matcher->accept(token("xx")));
  CHECK(*matcher->accept(token("c")));
  CHECK(*matcher->accept(test::SmallVocabulary::kEnd));
  CHECK(matcher->n_back() == 3);
  CHECK_FALSE(matcher->rollback(4));
  CHECK(matcher->is_finished());
  CHECK(matcher->rollback(3));
  CHECK(allowed_texts(*matcher) == after_ab);
  CHECK(matcher->n_back() == 0);
  CHECK(*matcher->accept(token("c")));
  CHECK(matcher->can_end());
  REQUIRE(matcher->restart());
  CHECK(*matcher->accept(token("a")));
}

TEST_CASE("forks go their own ways, and remember the same past") {
  Matcher matcher = test::matcher_of(test::gbnf("root ::= (\"ab\" | \"ax\")+ \"c\""));
  CHECK(*matcher.accept(token("ab")));
  CHECK(*matcher.accept(token("a")));
  auto fork = matcher.fork();
  REQUIRE_MESSAGE(fork, why(fork));
  CHECK(*matcher.accept(token("b")));
  CHECK(*fork->accept(token("x")));
  CHECK(*fork->accept(token("ab")));
  CHECK(fork->rollback(4));
  CHECK(allowed_texts(*fork) == Texts{"a", "ab", "abc"});
  CHECK(allowed_texts(matcher) == Texts{"a", "ab", "abc", "c"});
  Matcher moved = std::move(*fork);
  fork = std::move(matcher);
  CHECK(*moved.accept(token("abc")));
  CHECK(*fork->accept(token("c")));
}

TEST_CASE("forgetting what is not in use changes nothing for those that are") {
  // Each depth and count is a state of its own: with 1 024 of them it is full now and then.
  const Grammar grammar = test::gbnf(
      "root ::= item{1,900000}\nitem ::= \"[\" item* \"]\" | [ab]{1,3} \";\" | \"x\"{2,70} \".\"");
  const auto small = Constraint::create(grammar, small_trie(), {.n_states = 1024, .n_masks = 1});
  const auto large = Constraint::create(grammar, small_trie(), {.n_states = 1 << 16});
  REQUIRE(small);
  REQUIRE(large);
  std::mt19937 random(3);
  std::vector<Matcher> a, b;
  for (int i = 0; i < 4; ++i) {
    a.push_back(*Matcher::create(*small, 8));
    b.push_back(*Matcher::create(*large, 8));
  }
  TokenSet of_a(small_trie().n_tokens()), of_b(small_trie().n_tokens());
  std::size_t wrong = 0;
  for (int step = 0; step < 6000; ++step) {
    const auto i = static_cast<std::size_t>(random() % 4);
    const auto done_a = a[i].tokens(of_a), done_b = b[i].tokens(of_b);
    REQUIRE_MESSAGE(done_a, why(done_a));
    REQUIRE_MESSAGE(done_b, why(done_b));
    std::vector<std::int32_t> ids;
    of_b.for_each([&](std::int32_t id) {
      wrong += !of_a.contains(id);
      // Deep, but not ever deeper.
      const int weight = small_trie().text(id)[0] == ']' ? 3 : 1;
      for (int k = 0; k < weight && !small_trie().is_end(id); ++k) ids.push_back(id);
    });
    wrong += of_a.count() != of_b.count();
    if (random() % 8 == 0 && a[i].n_back() >= 5) {
      REQUIRE(a[i].rollback(5));
      REQUIRE(b[i].rollback(5));
      continue;
    }
    const std::int32_t id = ids[random() % ids.size()];
    REQUIRE(*a[i].accept(id));
    REQUIRE(*b[i].accept(id));
  }
  CHECK(wrong == 0);
}

TEST_CASE("forced text is the only one, and only settled tokens are certain") {
  const auto forced = [](Matcher& matcher) {
    std::string text;
    const auto done = matcher.forced_text(text);
    REQUIRE_MESSAGE(done, why(done));
    return text;
  };
  Matcher matcher = test::matcher_of(
      *from_json_schema(R"({"type": "object", "properties": {"name": {"type": "string"},
                            "on": {"type": "boolean"}}, "required": ["name", "on"]})"));
  CHECK(forced(matcher) == "{\"name\": \"");
  // "\": " could not go on beyond the end; but the last quote could begin a token with more text.
  auto n = matcher.settled("{\"name\": \"");
  REQUIRE_MESSAGE(n, why(n));
  CHECK(*n == 9);
  CHECK(*matcher.accept_text("{\"name\": \"x"));
  CHECK(forced(matcher).empty());
  CHECK(*matcher.accept_text("\""));
  CHECK(forced(matcher) == ", \"on\": ");
  CHECK(*matcher.accept_text(", \"on\": t"));
  CHECK(forced(matcher) == "rue}");
  n = matcher.settled("rue}");
  REQUIRE_MESSAGE(n, why(n));
  CHECK(*n == 4);  // nothing follows
  CHECK(*matcher.accept_text("rue}"));
  CHECK(matcher.is_finished());
  CHECK(forced(matcher).empty());

  Matcher endless = test::matcher_of(test::gbnf("root ::= \"a\"{900,}"));
  std::string text;
  REQUIRE(endless.forced_text(text, 100));
  CHECK(text == std::string(100, 'a'));
}

TEST_CASE("a vocabulary that cannot spell what must come is an error") {
  nibble::text::VocabularySettings settings;
  settings.bos = settings.eos = nibble::text::kNoToken;
  const nibble::text::Piece pieces[] = {
      {"<unk>", 0, nibble::text::PieceType::unknown}, {"a"}, {"b"}};
  const auto vocabulary = nibble::text::Vocabulary::make(pieces, settings);
  REQUIRE_MESSAGE(vocabulary, why(vocabulary));
  const auto trie = TokenTrie::create(*vocabulary);
  REQUIRE(trie);
  const auto constraint = Constraint::create(test::gbnf("root ::= \"a\" \"c\""), *trie);
  REQUIRE(constraint);
  auto matcher = Matcher::create(*constraint);
  REQUIRE(matcher);
  TokenSet allowed(trie->n_tokens());
  CHECK(matcher->tokens(allowed));
  CHECK(*matcher->accept(1));
  const auto done = matcher->tokens(allowed);
  REQUIRE_FALSE(done);
  CHECK(done.error().code == Errc::not_found);
  TokenSet other(trie->n_tokens() + 1);
  CHECK_FALSE(matcher->tokens(other));
}

TEST_CASE("nothing is allocated once a matcher is made") {
  const auto constraint = Constraint::create(
      *from_json_schema(R"({"type": "array", "items": {"type": "object", "properties": {
          "a": {"type": "string", "maxLength": 40}, "b": {"type": "integer"}}}})"),
      small_trie(), {.n_states = 1024, .n_masks = 2});
  REQUIRE_MESSAGE(constraint, why(constraint));
  auto matcher = Matcher::create(*constraint);
  REQUIRE(matcher);
  TokenSet allowed(small_trie().n_tokens());
  std::mt19937 random(5);
  std::vector<std::int32_t> ids(small_trie().n_tokens());
  const long long before = allocation_count();
  for (int i = 0; i < 3000; ++i) {
    const bool done = matcher->tokens(allowed) ? true : false;
    std::size_t n = 0;
    allowed.for_each([&](std::int32_t id) {
      if (!small_trie().is_end(id)) ids[n++] = id;
    });
    const bool is_over = !done || n == 0;
    const bool went_on = !is_over && *matcher->accept(ids[random() % n]);
    if (!went_on && !matcher->restart()) FAIL("restart");
  }
  CHECK(allocation_count() == before);
}

TEST_CASE("threads share a constraint") {
  const auto constraint = Constraint::create(
      test::gbnf("root ::= item+\nitem ::= \"[\" item* \"]\" | [ab]{1,30} \";\""), small_trie(),
      {.n_states = 1024, .n_masks = 1});
  REQUIRE(constraint);
  std::vector<std::thread> threads;
  std::vector<std::size_t> counts(3);
  for (std::size_t t = 0; t < counts.size(); ++t) {
    threads.emplace_back([&, t] {
      auto matcher = Matcher::create(*constraint);
      TokenSet allowed(small_trie().n_tokens());
      std::mt19937 random(7);  // the same in all threads
      for (int i = 0; i < 500; ++i) {
        if (!matcher->tokens(allowed)) return;
        counts[t] += allowed.count();
        std::vector<std::int32_t> ids;
        allowed.for_each([&](std::int32_t id) {
          if (!small_trie().is_end(id)) ids.push_back(id);
        });
        auto fork = matcher->fork();
        if (!*matcher->accept(ids[random() % ids.size()])) return;
        if (i % 16 == 0) *matcher = *std::move(fork);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(counts[0] > 1000);
  CHECK(counts[0] == counts[1]);
  CHECK(counts[0] == counts[2]);
}

}  // namespace constraint_test
