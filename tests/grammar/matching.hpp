// SPDX-License-Identifier: Apache-2.0
//
// Whole texts against grammars, for tests.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "doctest/doctest.h"
#include "grammar/small_vocabulary.hpp"
#include "nibble/grammar/constraint.hpp"
#include "nibble/grammar/gbnf.hpp"
#include "why.hpp"

namespace test {

// All bytes, and a few texts of JSON and of home commands.
inline const nibble::grammar::TokenTrie& small_trie() {
  static const SmallVocabulary vocabulary({"{\"",  "\": ", "\", \"", "\"}", "[",    "]",       ", ",
                                           "null", "true", "ab",     "a",   "abc",  "x",       "xx",
                                           "12",   "0",    "light",  " on", " off", "light on"});
  static const auto made = nibble::grammar::TokenTrie::create(vocabulary.get());
  REQUIRE_MESSAGE(made, why(made));
  return *made;
}

inline nibble::grammar::Matcher matcher_of(const nibble::grammar::Grammar& grammar) {
  auto constraint = nibble::grammar::Constraint::create(grammar, small_trie());
  REQUIRE_MESSAGE(constraint, why(constraint));
  auto matcher = nibble::grammar::Matcher::create(*constraint);
  REQUIRE_MESSAGE(matcher, why(matcher));
  return *std::move(matcher);
}

inline nibble::grammar::Grammar gbnf(std::string_view text) {
  auto grammar = nibble::grammar::from_gbnf(text);
  REQUIRE_MESSAGE(grammar, text, ": ", why(grammar));
  return *std::move(grammar);
}

// Whether the whole text is in the grammar.
inline bool matches(nibble::grammar::Matcher& matcher, std::string_view text) {
  REQUIRE(matcher.restart());
  const auto accepted = matcher.accept_text(text);
  REQUIRE_MESSAGE(accepted, why(accepted));
  return *accepted && matcher.can_end();
}

}  // namespace test
