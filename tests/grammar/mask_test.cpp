// SPDX-License-Identifier: Apache-2.0
//
// Masks against a recognizer that tries each token alone.
#include "nibble/grammar/constraint.hpp"

#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "grammar/recognizer.hpp"
#include "grammar/small_vocabulary.hpp"
#include "nibble/grammar/gbnf.hpp"
#include "why.hpp"

namespace mask_test {

using namespace nibble::grammar;
using test::why;

namespace {

struct Case {
  const char* grammar;
  std::vector<std::string> parts;  // of tokens
  int length = 3;                  // parts of the longest token
};

// Follows random tokens; at each step all tokens are compared with the recognizer.
void check_case(const Case& c, int n_runs, const ConstraintOptions& options = {}) {
  CAPTURE(c.grammar);
  auto read = GbnfReader::read(c.grammar);
  REQUIRE_MESSAGE(read, why(read));
  auto grammar = Grammar::create(read->rules, read->root);
  REQUIRE_MESSAGE(grammar, why(grammar));
  const test::SmallVocabulary vocabulary(test::combinations(c.parts, c.length));
  auto trie = TokenTrie::create(vocabulary.get());
  REQUIRE_MESSAGE(trie, why(trie));
  auto constraint = Constraint::create(*grammar, *trie, options);
  REQUIRE_MESSAGE(constraint, why(constraint));
  TokenSet allowed(trie->n_tokens());
  std::mt19937 random(1);
  std::size_t n_allowed = 0;
  for (int run = 0; run < n_runs; ++run) {
    auto matcher = Matcher::create(*constraint);
    REQUIRE_MESSAGE(matcher, why(matcher));
    std::string text;
    for (int step = 0; step < 8 && !matcher->is_finished(); ++step) {
      CAPTURE(text);
      const test::Recognizer here(read->rules, read->root, text);
      REQUIRE(here.is_beginning());
      CHECK(matcher->can_end() == here.is_whole());
      const auto done = matcher->tokens(allowed);
      REQUIRE_MESSAGE(done, why(done));
      // What goes on from a text that is no beginning is none either.
      std::map<std::string, bool> known;
      const auto is_beginning = [&](const std::string& token, const auto& self) -> bool {
        if (token.size() > 1 && !self(token.substr(0, token.size() - 1), self)) return false;
        const auto [place, is_new] = known.try_emplace(token);
        if (is_new) {
          place->second = test::Recognizer(read->rules, read->root, text + token).is_beginning();
        }
        return place->second;
      };
      std::vector<std::int32_t> choices;
      for (std::int32_t id = 0; trie->contains(id); ++id) {
        const std::string token(trie->text(id));
        const bool expected = id == test::SmallVocabulary::kEnd
                                  ? here.is_whole()
                                  : !token.empty() && is_beginning(token, is_beginning);
        if (allowed.contains(id) != expected) {
          CAPTURE(token);
          CHECK(allowed.contains(id) == expected);
        }
        if (expected && id != test::SmallVocabulary::kEnd) choices.push_back(id);
      }
      n_allowed += choices.size();
      if (choices.empty()) break;
      // Long tokens and short ones alike.
      const std::int32_t id = choices[random() % choices.size()];
      const auto accepted = matcher->accept(id);
      REQUIRE_MESSAGE(accepted, why(accepted));
      REQUIRE(*accepted);
      text += trie->text(id);
    }
    const test::Recognizer end(read->rules, read->root, text);
    CHECK(matcher->can_end() == end.is_whole());
  }
  CHECK(n_allowed > 6);
}

const Case kCases[] = {
    {R"G(root ::= "yes" | "no" | "yellow")G", {"y", "e", "s", "n", "o", "l", "ye"}, 3},
    {R"G(root ::= item ("," item)*
item ::= [a-c]+ | "(" root ")")G",
     {"a", "b", ",", "(", ")"},
     4},
    {R"G(root ::= sum
sum ::= sum "+" product | product
product ::= product "*" value | value
value ::= [0-9] | "(" sum ")")G",
     {"1", "+", "*", "(", ")"},
     4},
    {R"G(root ::= a | b
a ::= "x" a "y" | ""
b ::= "x" b "yy" | "")G",
     {"x", "y"},
     5},
    {R"G(root ::= "a" root | "a")G", {"a", "b"}, 5},
    {R"G(root ::= "a" root "b" | "a" root "c" | "d")G", {"a", "b", "c", "d"}, 4},
    {R"G(root ::= [a-b]{2,5} "." [b-c]{3} [c]{1,})G", {"a", "b", "c", "."}, 4},
    {R"G(root ::= ("ab" | "a" | "ba"){3,40} "!")G", {"a", "b", "!"}, 5},
    {R"G(root ::= word{2,80} "."
word ::= [a-b]{1,70} " ")G",
     {"a", "b", " ", "."},
     4},
    {R"G(root ::= (("a"?){3,100} ","){2,90} "b")G", {"a", ",", "b"}, 4},
    {R"G(root ::= "\"" char{0,5} "\""
char ::= [^"\\\x00-\x1F] | "\\" ["n])G",
     {"a", "\"", "\\", "n", "\xC3\xA9", "\xE2", "\x82\xAC"},
     3},
    {R"G(root ::= [^a] . [あ-ん]+ "é")G",
     {"\xE3\x81", "\x82", "\xC3\xA9", "\xE3", "\xA9", "b", "a"},
     3},
    {R"G(root ::= text{0,3} "end"
text ::= [a-z ]* ";")G",
     {"e", "n", "d", ";", " "},
     4},
    {R"G(root ::= ws "{" ws (pair ("," ws pair)*)? "}" ws
pair ::= "\"" [a-c]* "\"" ws ":" ws value ws
value ::= root | "\"" [^"]* "\"" | [0-9]+ ("." [0-9]+)? | "[" ws "]" | "null"
ws ::= [ \t]*)G",
     {"\"", ":", "{", "}", "a", "1", " ", ","},
     3},
    {R"G(root ::= line+
line ::= [^\n]{0,4} "\n")G",
     {"a", "\n", "\xF0\x9F", "\x98\x80"},
     4},
    {R"G(root ::= (a b c)* "."
a ::= "x"?
b ::= "y"?
c ::= "z"? "w")G",
     {"x", "y", "z", "w", "."},
     4},
    {R"G(root ::= "" | "x" | opt opt opt
opt ::= ("a" | "b" opt)?)G",
     {"a", "b", "x"},
     4},
    {R"G(root ::= .*)G", {"a", "\xE2", "\x82", "\xAC"}, 4},
    {R"G(root ::= (.{2,3} "x"){1,2} .{70,75})G", {"a", "x", "\xC3", "\xA9"}, 4},
};

}  // namespace

TEST_CASE("a mask has exactly the tokens that the grammar can go on with") {
  for (const Case& c : kCases) check_case(c, 6);
}

TEST_CASE("masks do not depend on how much is remembered") {
  ConstraintOptions options;
  options.n_states = 1024;
  options.n_masks = 1;
  for (const Case& c : kCases) check_case(c, 3, options);
}

}  // namespace mask_test
