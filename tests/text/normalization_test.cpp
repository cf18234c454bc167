// SPDX-License-Identifier: Apache-2.0
#include "nibble/text/normalization.hpp"

#include <string>
#include <string_view>
#include <utility>

#include "doctest/doctest.h"

namespace normalization_test {

using namespace nibble::text;

namespace {

std::string composed(std::string_view text) { return std::string(Normalizer().compose(text)); }
std::string decomposed(std::string_view text) { return std::string(Normalizer().decomposed(text)); }

}  // namespace

TEST_CASE("text is decomposed, marks are ordered, and composed again") {
  // composed, decomposed
  for (const auto& [c, d] : {std::pair<std::string, std::string>{"", ""},
                             {"plain", "plain"},
                             {"é", "e\u0301"},
                             {"ǖx", "u\u0308\u0304x"},     // two steps
                             {"\u1E69", "s\u0323\u0307"},  // two marks
                             {"한글", "\u1112\u1161\u11AB\u1100\u1173\u11AF"},
                             {"가\u11A7", "\u1100\u1161\u11A7"},  // not a final consonant
                             {"\u0915\u093C", "\u0915\u093C"},    // excluded from composition
                             {"\u2ADD\u0338", "\u2ADD\u0338"},
                             {"𝅘𝅥", "𝅘𝅥"}}) {
    CAPTURE(d);
    CHECK(decomposed(c) == d);
    CHECK(composed(c) == c);
    CHECK(composed(d) == c);
    CHECK(decomposed(d) == d);
  }
  CHECK(composed("s\u0307\u0323") == "\u1E69");  // marks in the other order
  CHECK(composed("a\u0315\u0300\u05AE\u0301b") == "\u00E0\u05AE\u0301\u0315b");
  CHECK(composed("\u212B") == "\u00C5");  // a character that is another
  CHECK(composed("\u0958") == "\u0915\u093C");
  CHECK(composed("\u0301e") == "\u0301e");  // no starter
  CHECK(composed("e\u0334\u0334\u0301") == "\u00E9\u0334\u0334");
  CHECK(composed("a\u05D0\u0300") == "a\u05D0\u0300");  // a starter between
  CHECK(composed("\u1100\u0300\u1161") == "\u1100\u0300\u1161");
}

TEST_CASE("bytes that are no UTF-8 stay and compose with nothing") {
  CHECK(composed("e\xCC\x81\xCC") == "é\xCC");
  CHECK(composed("\xFF\u0301e\xFE\u0301") == "\xFF\u0301e\xFE\u0301");
  CHECK(decomposed("\xE4\xBD") == "\xE4\xBD");
}

TEST_CASE("a long row of marks takes n log n") {
  std::string text = "e";
  for (int i = 0; i < 100000; ++i) text += i % 2 != 0 ? "\u0301" : "\u0323";
  const std::string out = composed(text);
  CHECK(out.size() == text.size());  // "ẹ" has three bytes; its accents do not compose
  CHECK(out.substr(0, 3) == "\u1EB9");
}

TEST_CASE("lower case") {
  for (const auto& [upper, lower] : {std::pair(U'A', U'a'),
                                     {U'Z', U'z'},
                                     {U'a', U'a'},
                                     {U'É', U'é'},
                                     {U'Ā', U'ā'},
                                     {U'ā', U'ā'},
                                     {U'Ÿ', U'ÿ'},
                                     {U'Ж', U'ж'},
                                     {U'Ω', U'ω'},
                                     {U'ẞ', U'ß'},
                                     {U'𐐀', U'𐐨'},
                                     {U'@', U'@'},
                                     {U'[', U'['},
                                     {U'你', U'你'}}) {
    CAPTURE(static_cast<unsigned>(upper));
    CHECK(lower_case(upper) == lower);
  }
}

}  // namespace normalization_test
