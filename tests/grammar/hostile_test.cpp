// SPDX-License-Identifier: Apache-2.0
//
// Grammars that are made to take long, or much: they are errors, or they are quick all the same.
#include <chrono>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "grammar/matching.hpp"
#include "nibble/grammar/constraint.hpp"
#include "nibble/grammar/gbnf.hpp"
#include "nibble/grammar/json_schema.hpp"
#include "why.hpp"

namespace hostile_test {

using nibble::Errc;
using namespace nibble::grammar;
using test::why;

namespace {

// Each of these takes milliseconds; a machine under load and without optimization may need more.
constexpr double kMostSeconds = 30;

double seconds_of(auto&& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::string times(std::string_view text, int n) {
  std::string all;
  for (int i = 0; i < n; ++i) all += text;
  return all;
}

// Makes the grammar, takes masks, and goes on with the text as far as it can.
void survive(const std::string& text, const std::string& answer) {
  CAPTURE(text.substr(0, 200));
  const double seconds = seconds_of([&] {
    auto grammar = from_gbnf(text);
    if (!grammar) return;
    auto constraint = Constraint::create(*grammar, test::small_trie(), {.n_states = 1024});
    REQUIRE_MESSAGE(constraint, why(constraint));
    auto matcher = Matcher::create(*constraint);
    if (!matcher) return;
    TokenSet allowed(test::small_trie().n_tokens());
    for (const char c : answer) {
      if (!matcher->tokens(allowed)) return;
      const auto accepted = matcher->accept_text(std::string(1, c));
      if (!accepted || !*accepted) return;
    }
  });
  CHECK(seconds < kMostSeconds);
}

void is_error(const std::string& text, Errc code) {
  CAPTURE(text.substr(0, 200));
  const double seconds = seconds_of([&] {
    const auto grammar = from_gbnf(text);
    REQUIRE_FALSE(grammar);
    CAPTURE(grammar.error().message);
    CHECK(grammar.error().code == code);
  });
  CHECK(seconds < kMostSeconds);
}

}  // namespace

TEST_CASE("huge repetitions are errors") {
  is_error("root ::= \"a\"{1,1000000000}", Errc::limit);
  is_error("root ::= \"a\"{99999999999999999999}", Errc::limit);
  is_error("root ::= \"a\"{1000001,}", Errc::limit);
  is_error("root ::= " + times("(", 1000) + "\"a\"" + times("){9}", 1000), Errc::limit);
  is_error("root ::= \"a\"" + times("{9}", 40), Errc::limit);
  CHECK_FALSE(from_json_schema(R"({"minItems": 1000000000})"));
  CHECK_FALSE(from_json_schema(R"({"type": "string", "minLength": 1e18})"));
}

TEST_CASE("repetitions that are large are counted, not copied") {
  Matcher matcher = test::matcher_of(test::gbnf("root ::= [ab]{3,1000000} \"c\""));
  CHECK(test::matches(matcher, times("ab", 5000) + "c"));
  CHECK_FALSE(test::matches(matcher, "abc"));
  Matcher exact = test::matcher_of(test::gbnf("root ::= (\"ab\"{500} \";\"){100}"));
  CHECK(test::matches(exact, times(times("ab", 500) + ";", 100)));
  CHECK_FALSE(test::matches(exact, times(times("ab", 500) + ";", 99)));
  CHECK_FALSE(test::matches(exact, times("ab", 501)));
}

TEST_CASE("brackets, rules and alternatives without end") {
  is_error("root ::= " + times("(", 100000), Errc::limit);
  is_error("root ::= " + times("(", 65) + "\"a\"" + times(")", 65), Errc::limit);
  std::string chain = "root ::= r0\n";
  for (int i = 0; i < 20000; ++i) {
    chain += "r" + std::to_string(i) + " ::= \"a\" r" + std::to_string(i + 1) + "\n";
  }
  survive(chain + "r20000 ::= \"b\"\n", times("a", 50));
  std::string left = "root ::= r0\n";
  for (int i = 0; i < 20000; ++i) {
    left += "r" + std::to_string(i) + " ::= r" + std::to_string(i + 1) + " \"a\"\n";
  }
  survive(left + "r20000 ::= \"b\"\n", "baaa");
  is_error(left + "r20000 ::= r0 | \"b\"\n", Errc::unsupported);
  // Doubles with each rule.
  std::string doubled = "root ::= r0\n";
  for (int i = 0; i < 200; ++i) {
    const std::string next = " r" + std::to_string(i + 1);
    doubled += "r" + std::to_string(i) + " ::=" + next + next + "\n";
  }
  survive(doubled + "r200 ::= \"a\"?\n", times("a", 30));
  survive("root ::= " + times("\"a\" | ", 50000) + "\"b\"", "a");
  survive("root ::= [" + times("\\x01-\\x02", 4000) + "]", "\x01");
}

TEST_CASE("ambiguity without end") {
  survive("root ::= (\"a\"* \"a\"*)* (\"a\" | \"aa\")* \"b\"", times("a", 60));
  survive("root ::= ((\"a\" | \"aa\"){0,1000000} \"x\"?){0,1000000} \"b\"", times("a", 200));
  survive("root ::= s\ns ::= \"a\" s s | \"a\"", times("a", 100));
  survive("root ::= s\ns ::= \"a\" s \"b\" | \"a\" s \"c\" | \"a\" s | \"d\"", times("a", 300));
  survive("root ::= (\"a\" | \"b\")* \"a\" (\"a\" | \"b\"){18} \"c\"", times("ab", 40));
  survive("root ::= (a | b | c)+\na ::= \"a\"? b c\nb ::= \"b\"? \"x\" c?\nc ::= \"c\" a?",
          times("xc", 40));
}

TEST_CASE("too many ways to go on are an error value, and nothing changes") {
  // Every count from n / 2 to n is possible.
  auto matcher = test::matcher_of(test::gbnf("root ::= (\"a\" | \"aa\"){0,1000000} \"b\""));
  bool has_failed = false;
  for (int i = 0; i < 5000 && !has_failed; ++i) {
    const auto accepted = matcher.accept_text("a");
    if (accepted) continue;
    has_failed = true;
    CHECK(accepted.error().code == Errc::limit);
    CHECK(accepted.error().message.find("ambiguous") != std::string::npos);
    REQUIRE(matcher.rollback(1));
    CHECK(*matcher.accept_text("b"));
    CHECK(matcher.is_finished());
  }
  CHECK(has_failed);
}

TEST_CASE("an answer that nests without end ends with an error value") {
  const Grammar grammar = test::gbnf("root ::= \"[\" root \"]\" | \"x\"");
  auto constraint = Constraint::create(grammar, test::small_trie(), {.n_states = 1024});
  REQUIRE_MESSAGE(constraint, why(constraint));
  auto matcher = Matcher::create(*constraint);
  REQUIRE_MESSAGE(matcher, why(matcher));
  bool has_failed = false;
  for (int i = 0; i < 200000 && !has_failed; ++i) {
    const auto accepted = matcher->accept_text("[");
    has_failed = !accepted;
    if (has_failed) CHECK(accepted.error().code == Errc::limit);
  }
  CHECK(has_failed);
  // As deep as there was room for, it still goes on.
  CHECK(matcher->rollback(1));
}

TEST_CASE("schemas that are made to take long") {
  const auto survive_schema = [](const std::string& schema) {
    CAPTURE(schema.substr(0, 200));
    CHECK(seconds_of([&] { (void)from_json_schema(schema); }) < kMostSeconds);
  };
  survive_schema(times("{\"items\":", 100000));
  survive_schema(times("{\"items\":", 60) + "{}" + times("}", 60));
  survive_schema(times("{\"allOf\":[", 60) + "{}" + times("]}", 60));
  // 2^40 combinations of branches.
  std::string choices = "{\"allOf\": [";
  for (int i = 0; i < 16; ++i) {
    choices +=
        (i > 0 ? "," : "") +
        std::string("{\"anyOf\": [{\"minLength\": 1}, {\"maxLength\": 2}, {\"minLength\": 3}]}");
  }
  survive_schema(choices + "]}");
  // References that branch into each other.
  std::string defs = "{\"$ref\": \"#/$defs/d0\", \"$defs\": {";
  for (int i = 0; i < 200; ++i) {
    const std::string next = "{\"$ref\": \"#/$defs/d" + std::to_string((i + 1) % 200) + "\"}";
    defs += (i > 0 ? "," : "") + std::string("\"d") + std::to_string(i) +
            "\": {\"properties\": {\"a\": " + next + ", \"b\": {\"anyOf\": [" + next + "," + next +
            "]}}}";
  }
  survive_schema(defs + "}}");
  std::string members = "{\"properties\": {";
  for (int i = 0; i < 2000; ++i) {
    members +=
        (i > 0 ? "," : "") + std::string("\"m") + std::to_string(i) + "\": {\"type\": \"string\"}";
  }
  survive_schema(members + "}}");
  survive_schema("{\"pattern\": \"" + times("(", 10000) + "\"}");
  survive_schema("{\"pattern\": \"" + times("(a*)*", 1000) + "\"}");
  survive_schema("{\"pattern\": \"" + times("[a-c]{1000}", 500) + "\"}");
  survive_schema("{\"pattern\": \"(a|aa)+(a|b)*a(a|b){15}$\"}");
}

}  // namespace hostile_test
