// SPDX-License-Identifier: Apache-2.0
#include "nibble/text/spm.hpp"

#include <algorithm>
#include <cstdint>
#include <ctime>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "text_fixtures.hpp"

namespace spm_test {

using namespace nibble::text;
using nibble::utf8_length;
using text_fixtures::OwnedPiece;

namespace {

// The definition, implemented slowly: look at all neighbours, merge the best pair, repeat.
std::vector<std::int32_t> slow_encode(const std::vector<OwnedPiece>& pieces,
                                      const std::string& text, bool space_prefix) {
  std::map<std::string, std::int32_t> ids;
  for (std::size_t i = 0; i < pieces.size(); ++i)
    ids[pieces[i].text] = static_cast<std::int32_t>(i);
  const auto id_of = [&](const std::string& s) {
    const auto found = ids.find(s);
    if (found == ids.end()) return -1;
    const PieceType type = pieces[static_cast<std::size_t>(found->second)].type;
    const bool ordinary = type == PieceType::normal || type == PieceType::unused ||
                          type == PieceType::user_defined || type == PieceType::undefined;
    return ordinary ? found->second : -1;
  };
  std::vector<std::string> symbols;
  if (space_prefix) symbols.push_back("\xE2\x96\x81");
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t n = std::max<std::size_t>(utf8_length(std::string_view(text).substr(at)), 1);
    symbols.push_back(text[at] == ' ' ? "\xE2\x96\x81" : text.substr(at, n));
    at += n;
  }
  for (;;) {
    std::size_t best = symbols.size();
    float best_score = 0;
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
      const int id = id_of(symbols[i] + symbols[i + 1]);
      if (id < 0) continue;
      const float score = pieces[static_cast<std::size_t>(id)].score;
      if (best == symbols.size() || score > best_score) {
        best = i;
        best_score = score;
      }
    }
    if (best == symbols.size()) break;
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
  std::vector<std::int32_t> out;
  for (const std::string& symbol : symbols) {
    if (id_of(symbol) >= 0) {
      out.push_back(id_of(symbol));
    } else {
      for (const char c : symbol) out.push_back(3 + static_cast<unsigned char>(c));
    }
  }
  return out;
}

std::vector<std::int32_t> encode(const Vocabulary& v, std::string_view text, bool space_prefix) {
  std::vector<std::int32_t> ids;
  SpmEncoder(v, text.size()).encode(text, space_prefix, ids);
  return ids;
}

}  // namespace

TEST_CASE("merging is what the definition says, on random texts") {
  const auto pieces = text_fixtures::small_pieces();
  const Vocabulary v = text_fixtures::small_vocabulary();
  std::mt19937 random(11);
  SpmEncoder encoder(v, 100);  // one for all texts: nothing may remain from one to the next
  for (int i = 0; i < 400; ++i) {
    const std::string text = text_fixtures::random_text(random, random() % 24);
    const bool prefix = random() % 2 != 0;
    std::vector<std::int32_t> ids;
    encoder.encode(text, prefix, ids);
    CHECK(ids == slow_encode(pieces, text, prefix));
  }
}

TEST_CASE("merging is what the definition says, on random vocabularies with equal scores") {
  std::mt19937 random(13);
  std::size_t merges = 0;
  for (int i = 0; i < 300; ++i) {
    auto pieces = text_fixtures::small_pieces();
    pieces.resize(259);
    for (std::size_t k = 0; k < 30; ++k) {
      std::string text(1 + random() % 6, 'a');
      for (char& c : text) c = static_cast<char>('a' + random() % 2);
      const auto type = random() % 10 == 0 ? PieceType::unused : PieceType::normal;
      pieces.push_back({text, static_cast<float>(random() % 5), type});
    }
    const auto v = Vocabulary::make(text_fixtures::views(pieces), {});
    REQUIRE(v);
    std::string text(random() % 40, 'a');
    for (char& c : text) c = static_cast<char>('a' + random() % 2);
    const auto ids = encode(*v, text, false);
    CHECK(ids == slow_encode(pieces, text, false));
    merges += text.size() - ids.size();
  }
  CHECK(merges > 1000);
}

TEST_CASE("text does not become a control, unknown or byte piece by spelling its name") {
  auto pieces = text_fixtures::small_pieces();
  // With these pieces, every name can be merged, with a better score than anything else.
  for (const char* part : {"<", ">", "<s", "</", "</s", "<u", "<un", "<unk", "0", "x", "1", "<0",
                           "<0x", "<0x4", "<0x41", "4"})
    pieces.push_back({part, 5, PieceType::normal});
  const auto v = Vocabulary::make(text_fixtures::views(pieces), {});
  REQUIRE(v);
  for (const char* name : {"<s>", "</s>", "<unk>", "<0x41>"}) {
    CAPTURE(name);
    const auto ids = encode(*v, name, false);
    REQUIRE(ids.size() == 2);
    CHECK(v->text(ids[0]) == std::string(name).substr(0, std::string(name).size() - 1));
    CHECK(v->text(ids[1]) == ">");
  }
}

TEST_CASE("a character that bytes cannot spell is one unknown token") {
  auto pieces = text_fixtures::small_pieces();
  pieces[3 + 0xBF] = {"gone", 0, PieceType::normal};
  const auto v = Vocabulary::make(text_fixtures::views(pieces), {});
  REQUIRE(v);
  CHECK(encode(*v, "a\xC3\xBF\xC3\xBE", false) ==
        std::vector<std::int32_t>{v->find("a"), 0, 3 + 0xC3, 3 + 0xBE});
}

TEST_CASE("a megabyte of anything takes at most four lookups a character and no stack") {
  const Vocabulary v = text_fixtures::small_vocabulary();
  std::mt19937 random(3);
  constexpr std::size_t kSize = std::size_t{1} << 20;
  const auto repeat = [](std::string part) {
    std::string text;
    while (text.size() < kSize) text += part;
    text.resize(kSize);
    return text;
  };
  for (const std::string& text :
       {std::string(kSize, 'a'), std::string(kSize, ' '), std::string(kSize, '\xE2'),
        repeat("banana"), repeat("the light in the kitchen "), repeat(std::string("\0\xF0\x9F", 3)),
        text_fixtures::random_bytes(random, kSize)}) {
    CAPTURE(text.substr(0, 8));
    SpmEncoder encoder(v, text.size());
    std::vector<std::int32_t> ids;
    encoder.encode(text, true, ids);
    CHECK(ids.size() > kSize / 8);
    CHECK(encoder.n_lookups() <= 4 * (text.size() + 1));
  }
}

TEST_CASE("time grows nearly linearly") {
  const Vocabulary v = text_fixtures::small_vocabulary();
  std::string text;
  while (text.size() < std::size_t{1} << 20)
    text += "please turn off the lights in the living room ";
  const auto cpu_time = [&](std::size_t size) {
    std::clock_t best = 0;
    for (int i = 0; i < 3; ++i) {
      const std::clock_t begin = std::clock();
      CHECK(!encode(v, std::string_view(text).substr(0, size), true).empty());
      const std::clock_t spent = std::clock() - begin;
      best = i == 0 ? spent : std::min(best, spent);
    }
    return static_cast<double>(best);
  };
  // 16 times the text: quadratic time would be 256 times as long. Caches and other programs make it
  // more than 16 times.
  CHECK(cpu_time(std::size_t{1} << 20) < 64 * cpu_time(std::size_t{1} << 16));
}

}  // namespace spm_test
