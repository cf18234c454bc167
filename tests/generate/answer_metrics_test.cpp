// SPDX-License-Identifier: Apache-2.0
//
// Answers compared with the right ones. The figures of BLEU are those of sacreBLEU 2.6 with
// tokenize="none" and effective_order=True, on words that are separated by hand.
#include "nibble/generate/answer_metrics.hpp"

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"

namespace answer_metrics_test {

using namespace nibble;

namespace {

double bleu_of(const std::vector<std::pair<std::string, std::string>>& pairs) {
  BleuSum sum;
  for (const auto& [answer, right] : pairs) sum.add(answer, right);
  return sum.value();
}

}  // namespace

TEST_CASE("exact match: but for white space at the ends") {
  CHECK(exact_match("a b", "a b"));
  CHECK(exact_match(" a b\n", "\ta b"));
  CHECK(exact_match("", " \n"));
  CHECK(!exact_match("a  b", "a b"));
  CHECK(!exact_match("A b", "a b"));
  CHECK(!exact_match("a b.", "a b"));
  static_assert(exact_match("x ", "x"));
}

TEST_CASE("F1 of words") {
  CHECK(token_f1("the cat", "the cat") == 1);
  CHECK(token_f1("The CAT!", "cat, the") == 1);
  CHECK(token_f1("", "...") == 1);
  CHECK(token_f1("cat", "") == 0);
  CHECK(token_f1("", "cat") == 0);
  CHECK(token_f1("dog", "cat") == 0);
  // 2 of 3 words are right, and 2 of 4 are there: 2 * (2/3 * 2/4) / (2/3 + 2/4).
  CHECK(token_f1("a b x", "a b c d") == doctest::Approx(4.0 / 7));
  // A word counts as often as both have it.
  CHECK(token_f1("a a a", "a") == doctest::Approx(0.5));
  CHECK(token_f1("a a a", "a a b") == doctest::Approx(2.0 / 3));
  CHECK(token_f1("light.set(room=office, level=10)", "light.set(room=office, level=20)") ==
        doctest::Approx(5.0 / 6));
  CHECK(token_f1("caf\xc3\xa9 noir", "caf\xc3\xa9") == doctest::Approx(2.0 / 3));

  // Against counts in maps.
  std::mt19937 random(1);
  for (int trial = 0; trial < 300; ++trial) {
    std::string texts[2];
    std::map<char, int> counts[2];
    int n[2] = {};
    for (int side = 0; side < 2; ++side) {
      n[side] = 1 + static_cast<int>(random() % 9);
      for (int i = 0; i < n[side]; ++i) {
        const auto word = static_cast<char>('a' + random() % 4);
        texts[side] += word;
        texts[side] += random() % 2 == 0 ? " " : ", ";
        ++counts[side][word];
      }
    }
    double common = 0;
    for (const auto& [word, count] : counts[0]) common += std::min(count, counts[1][word]);
    const double precision = common / n[0], recall = common / n[1];
    const double f1 = common == 0 ? 0 : 2 * precision * recall / (precision + recall);
    REQUIRE(token_f1(texts[0], texts[1]) == doctest::Approx(f1));
  }
}

TEST_CASE("BLEU, as sacreBLEU has it") {
  CHECK(bleu_of({{"the cat sat on the mat", "the cat is on the mat"}}) ==
        doctest::Approx(0.3799178428257963).epsilon(1e-12));
  CHECK(bleu_of({{"light.set(room=office, level=10)", "light.set(room=office, level=20)"},
                 {"light.on(room=attic)", "light.off(room=attic)"}}) ==
        doctest::Approx(0.7457981540149952).epsilon(1e-12));
  CHECK(bleu_of({{"the the the the the the the", "the cat is on the mat"}}) ==
        doctest::Approx(0.07809849842300637).epsilon(1e-12));
  CHECK(bleu_of({{"on", "on the mat"}}) == doctest::Approx(0.13533528323661276).epsilon(1e-12));
  CHECK(bleu_of({{"a b", "a b"}, {"c d e", "c d e"}}) == doctest::Approx(1).epsilon(1e-12));
  CHECK(bleu_of({{"a b c d e f", "a x c y e z"}}) ==
        doctest::Approx(0.10682175159905853).epsilon(1e-12));
  CHECK(bleu_of({{"x y", "a b"}}) == 0);
  CHECK(bleu_of({{"", "a"}}) == 0);
  CHECK(bleu_of({}) == 0);
  CHECK(bleu_of({{"Cat", "cat"}}) == 0);  // case counts
}

}  // namespace answer_metrics_test
