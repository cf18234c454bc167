// SPDX-License-Identifier: Apache-2.0
#include "nibble/grammar/gbnf.hpp"

#include <string>
#include <string_view>
#include <vector>

#include "doctest/doctest.h"
#include "grammar/matching.hpp"
#include "why.hpp"

namespace gbnf_test {

using nibble::Errc;
using namespace nibble::grammar;
using test::why;

namespace {

struct Case {
  const char* name;
  const char* grammar;
  std::vector<std::string> valid, invalid;
};

const Case kCases[] = {
    {"JSON",
     R"G(# values, with space behind tokens
root ::= object
value ::= (object | array | string | number | "true" | "false" | "null") space
object ::= "{" space (
    member
    ("," space member)*
  )? "}"
member ::= string ":" space value
array ::= "[" space (value ("," space value)*)? "]"
string ::= "\"" ([^"\\\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}))* "\""
number ::= "-"? ("0" | [1-9] [0-9]*) ("." [0-9]+)? ([eE] [-+]? [0-9]+)?
space ::= [ \t\n]*)G",
     {"{}", "{\"a\": [1, -2.5e+3, \"\\u00e9\xC3\xA9\"], \"b\": {\"c\":null}}"},
     {"", "{", "[]", "{\"a\": 01}", "{\"a\": \"\t\"}", "{\"a\": \"\xFF\"}", "{}{}"}},
    {"a list",
     R"G(root ::= item+
item ::= "- " [^\r\n\x0b\x0c\x85\u2028\u2029]+ "\n")G",
     {"- milk\n", "- milk\n- two \xC3\xA9\n"},
     {"milk\n", "- \n", "- a", "- a\xE2\x80\xA8\n"}},
    {"arithmetic",
     R"G(root ::= (sum "=" ws term "\n")+
sum ::= term ([-+*/] term)*
term ::= ident | num | "(" ws sum ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num ::= [0-9]+ ws
ws ::= [ \t\n]*)G",
     {"1+2=3\n", "(a+b2) *7 = x\n"},
     {"1+=3\n", "1+2=3", "(1=2\n"}},
    {"chess",
     R"G(# moves in pairs, with their numbers
root ::= "1. " move " " move "\n" ([1-9] [0-9]? ". " move " " move "\n")+
move ::= (pawn | piece | castle) [+#]?
piece ::= [NBKQR] [a-h]? [1-8]? "x"? [a-h] [1-8]
pawn ::= ([a-h] "x")? [a-h] [1-8] ("=" [NBKQR])?
castle ::= "O-O" "-O"?)G",
     {"1. e4 e5\n2. Nf3 Nc6\n", "1. exd5 O-O-O\n12. Qxf7# a8=Q+\n"},
     {"1. e4 e5\n", "1. e9 e5\n2. Nf3 Nc6\n", "1. e4\n"}},
    {"Japanese",
     R"G(root ::= word ([ \t\n]* word)*
word ::= kana | kanji
kana ::= [ぁ-ゟ゠-ヿ]+
kanji ::= [一-龯]+)G",
     {"東京", "ひらがな カタカナ", "東京 の\n夜"},
     {"Tokyo", "東京x", "\xE6\x9D", " 東"}},
    {"escapes",
     R"G(root ::= "\x41\u00e9\U0001F600\t\\\"\[\]" [\]\\\x30-\x32] [^\n] [a\]-])G",
     {"A\xC3\xA9\xF0\x9F\x98\x80\t\\\"[]]x]", "A\xC3\xA9\xF0\x9F\x98\x80\t\\\"[]1\xC3\xA9-"},
     {"A\xC3\xA9\xF0\x9F\x98\x80\t\\\"[]3xa", "A\xC3\xA9\xF0\x9F\x98\x80\t\\\"[]1\na"}},
    {"repetitions",
     R"G(root ::= "ab"? "cd"* ("e"+ | "f"{2}) [g]{1,2} "h"{2,} . {0,1})G",
     {"ffghh", "abcdcdeegghhh", "eghh!", "eghhh\xC3\xA9"},
     {"fghh", "effghh", "ffggghh", "ffgh", "eghh!!", "a"}},
    {"repetitions of repetitions",
     R"G(root ::= "a"+? "b"{2}{3} "c"*)G",
     {"bbbbbb", "aabbbbbbcc"},
     {"bb", "bbbbb", "bbbbbbb"}},
    {"left recursion of one rule",
     R"G(root ::= root "+" term | root "-" term | term
term ::= [0-9]+)G",
     {"1", "1+2-33"},
     {"", "+1", "1+", "1++2"}},
    {"lines go on in brackets and behind |",
     "root ::= (\n \"a\"\n \"b\" # comment\n) |\n \"c\"\n\n"
     "other ::= \"d\"\n",
     {"ab", "c"},
     {"d", "a"}},
    {"nothing", "root ::= \"\"", {""}, {"a"}},
    {"names",
     "root ::= rule-1 Rule_2 3\nrule-1 ::= \"a\"\nRule_2 ::= \"b\"\n3 ::= \"c\"",
     {"abc"},
     {"ab"}},
};

}  // namespace

TEST_CASE("GBNF: which texts grammars accept") {
  for (const Case& c : kCases) {
    CAPTURE(std::string(c.name));
    Matcher matcher = test::matcher_of(test::gbnf(c.grammar));
    for (const std::string& text : c.valid) CHECK_MESSAGE(test::matches(matcher, text), text);
    for (const std::string& text : c.invalid) CHECK_MESSAGE(!test::matches(matcher, text), text);
  }
}

TEST_CASE("GBNF: another rule can be the first") {
  const auto grammar = from_gbnf("a ::= \"x\"\nb ::= a a", "b");
  REQUIRE_MESSAGE(grammar, why(grammar));
  Matcher matcher = test::matcher_of(*grammar);
  CHECK(test::matches(matcher, "xx"));
  CHECK_FALSE(test::matches(matcher, "x"));
}

TEST_CASE("GBNF: what is wrong is an error that says where") {
  const auto fails = [](std::string_view text, Errc code, const char* part) {
    CAPTURE(text);
    const auto grammar = from_gbnf(text);
    REQUIRE_FALSE(grammar);
    CAPTURE(grammar.error().message);
    CHECK(grammar.error().code == code);
    CHECK(grammar.error().message.find(part) != std::string::npos);
  };
  fails("", Errc::malformed, "no rule 'root'");
  fails("a ::= \"x\"", Errc::malformed, "no rule 'root'");
  fails("root ::= missing", Errc::malformed, "'missing' is used");
  fails("root ::= \"a\"\nroot ::= \"b\"", Errc::malformed, "line 2: rule 'root' is defined twice");
  fails("root = \"a\"", Errc::malformed, "::=");
  fails("root ::= \"a", Errc::malformed, "literal without end");
  fails("root ::= [a", Errc::malformed, "set without end");
  fails("root ::= [b-a]", Errc::malformed, "range");
  fails("root ::= (\"a\"", Errc::malformed, "expected )");
  fails("root ::= \"a\" )", Errc::malformed, "no part of the rule");
  fails("root ::= \"\\q\"", Errc::malformed, "escape");
  fails("root ::= \"\\x4\"", Errc::malformed, "hexadecimal");
  fails("root ::= \"\\ud800\"", Errc::malformed, "no character");
  fails("root ::= \"a\"{3,2}", Errc::malformed, "at least 3");
  fails("root ::= \"a\"{x}", Errc::malformed, "number of repetitions");
  fails("root ::= \"\xFF\"", Errc::malformed, "UTF-8");
  fails("root ::= <think>", Errc::unsupported, "names of tokens");
  fails("root ::= []", Errc::malformed, "no text can meet");
  fails("root ::= a\na ::= \"x\" a", Errc::malformed, "no text can meet");
  fails("root ::= \"x\" | a\na ::= \"x\" a", Errc::malformed, "rule 'a'");
  fails("root ::= root", Errc::malformed, "no text can meet");
  fails("root ::= a | \"x\"\na ::= b \"y\"\nb ::= a | \"z\"", Errc::unsupported, "left recursion");
  fails("root ::= (\"x\"? root \"y\") | \"z\"", Errc::unsupported, "left recursion");
}

}  // namespace gbnf_test
