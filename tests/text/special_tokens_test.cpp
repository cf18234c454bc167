// SPDX-License-Identifier: Apache-2.0
#include "nibble/text/special_tokens.hpp"

#include <random>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "text_fixtures.hpp"

namespace special_tokens_test {

using namespace nibble::text;

namespace {

Vocabulary vocabulary_with(const std::vector<text_fixtures::OwnedPiece>& extra) {
  auto pieces = text_fixtures::small_pieces();
  pieces.insert(pieces.end(), extra.begin(), extra.end());
  auto vocabulary = Vocabulary::make(text_fixtures::views(pieces), {});
  REQUIRE(vocabulary);
  return *std::move(vocabulary);
}

}  // namespace

TEST_CASE("the leftmost token is found, and the longest of those that begin there") {
  const Vocabulary v = vocabulary_with({{"<|a|>", 0, PieceType::control},
                                        {"<|a", 0, PieceType::user_defined},
                                        {"|a|>>>>", 0, PieceType::user_defined},
                                        {"\xFF", 0, PieceType::user_defined}});
  const SpecialTokens all(v, true), user(v, false);
  CHECK(all.find(v, "x<|a|>>>>").at == 1);
  CHECK(all.find(v, "x<|a|>>>>").id == v.find("<|a|>"));
  CHECK(user.find(v, "x<|a|>>>>").id == v.find("<|a"));
  CHECK(user.find(v, "x<|b|a|>>>>").id == v.find("|a|>>>>"));
  CHECK(user.find(v, "x<|").id == kNoToken);
  CHECK(user.find(v, "\xFE\xFF").at == 1);
  CHECK(user.find(v, "<s>").id == kNoToken);
  CHECK(all.find(v, "<s>").id == 1);
  CHECK(all.find(v, "").id == kNoToken);
}

TEST_CASE("random tokens in random text: as by trying every token at every place") {
  std::mt19937 random(7);
  // `lead`, if any, then up to `longest` letters. append, not +: GCC 12 warns about operator+.
  const auto word = [&](const char* lead, std::size_t longest) {
    std::string text = lead;
    for (std::size_t n = 1 + random() % longest; n > 0; --n) text += "ab\xFF"[random() % 3];
    return text;
  };
  std::size_t found = 0;
  for (int round = 0; round < 300; ++round) {
    std::vector<text_fixtures::OwnedPiece> extra;
    for (std::size_t i = 0; i < 1 + random() % 12; ++i)
      extra.push_back({word("#", 5), 0, PieceType::user_defined});
    const Vocabulary v = vocabulary_with(extra);
    const SpecialTokens tokens(v, false);
    for (int i = 0; i < 20; ++i) {
      std::string text;
      for (int k = 0; k < 6; ++k) text += word(random() % 2 != 0 ? "#" : "", 6);
      std::size_t at = text.npos;
      std::string best;
      for (std::size_t p = 0; p < text.size() && best.empty(); ++p)
        for (const auto& piece : extra)
          if (text.compare(p, piece.text.size(), piece.text) == 0 &&
              piece.text.size() > best.size()) {
            best = piece.text;
            at = p;
          }
      const auto match = tokens.find(v, text);
      CHECK(match.at == at);
      CHECK(match.id == (best.empty() ? kNoToken : v.find(best)));
      found += match.id != kNoToken;
    }
  }
  CHECK(found > 1000);
}

}  // namespace special_tokens_test
