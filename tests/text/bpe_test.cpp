// SPDX-License-Identifier: Apache-2.0
#include "nibble/text/bpe.hpp"

#include <cstdint>
#include <ctime>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "text_fixtures.hpp"

namespace bpe_test {

using namespace nibble::text;
using text_fixtures::BpeParts;

namespace {

using Ids = std::vector<std::int32_t>;

Ids encode(const Vocabulary& v, std::string_view text) {
  Ids ids;
  BpeEncoder(v, text.size()).encode(text, ids);
  return ids;
}

// The definition, implemented slowly: of all neighbours, merge the pair that is first in the list,
// at its leftmost place; repeat.
Ids slow_encode_word(const Vocabulary& v, std::string_view word) {
  Ids ids;
  for (const char c : word) ids.push_back(v.byte_token(static_cast<unsigned char>(c)));
  for (;;) {
    std::int32_t best = -1;
    std::size_t at = 0;
    for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
      const std::int32_t rank = v.find_merge(ids[i], ids[i + 1]);
      if (rank >= 0 && (best < 0 || rank < best)) {
        best = rank;
        at = i;
      }
    }
    if (best < 0) return ids;
    ids[at] = v.merges()[static_cast<std::size_t>(best)].result;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
}

Ids slow_encode(const Vocabulary& v, std::string_view text) {
  Ids ids;
  WordCutter words(v.pre_tokenizer()->cuts, text);
  for (std::string_view word; !(word = words.next()).empty();)
    for (const std::int32_t id : slow_encode_word(v, word)) ids.push_back(id);
  return ids;
}

}  // namespace

TEST_CASE("bytes stand for characters, and back") {
  std::string all, characters, back;
  for (int byte = 0; byte < 256; ++byte) all.push_back(static_cast<char>(byte));
  append_byte_characters(characters, all);
  append_bytes(back, characters);
  CHECK(back == all);
  const auto characters_of = [](std::string_view bytes) {
    std::string out;
    append_byte_characters(out, bytes);
    return out;
  };
  CHECK(characters_of(" a\n~") == "ĠaĊ~");
  CHECK(characters_of("\x7F\xA0\xAD\xFF") == "\u0121\u0142\u0143ÿ");
  back.clear();
  append_bytes(back, "\u0144 你\xC4");  // these stand for no byte
  CHECK(back == "\u0144 你\xC4");
}

TEST_CASE("merging is what the definition says, on random merges and texts") {
  std::mt19937 random(5);
  std::size_t merged = 0;
  for (int i = 0; i < 100; ++i) {
    BpeParts parts;
    for (int k = 0; k < 40; ++k) {
      const auto any = [&]() -> const std::string& {
        // One of the letters a and b, or of what merges made.
        const std::size_t n = 2 + parts.pieces.size() - 256;
        const std::size_t pick = random() % n;
        return parts.pieces[pick < 2 ? 'a' + pick : 256 + pick - 2].text;
      };
      const std::string left = any(), right = any();
      if (left.size() + right.size() < 9) parts.add(left, right);
    }
    const Vocabulary v = parts.make();
    for (int k = 0; k < 20; ++k) {
      std::string text(random() % 60, 'a');
      for (char& c : text) c = "aaaabbbb  1"[random() % 11];
      const Ids ids = encode(v, text);
      CHECK(ids == slow_encode(v, text));
      merged += text.size() - ids.size();
    }
  }
  CHECK(merged > 10000);
}

TEST_CASE("words that repeat, and words that share a place among those that are remembered") {
  BpeParts parts;
  for (const auto& [a, b] : {std::pair("t", "h"), {"th", "e"}, {"Ġ", "the"}, {"i", "n"}})
    parts.add(a, b);
  const Vocabulary v = parts.make();
  std::string text;
  for (int i = 0; i < 20000; ++i) {
    text += " the";
    text += std::to_string(i * 7919 % 5000);
    text += 'x';
    text += std::string(static_cast<std::size_t>(i % 40), 'n');
  }
  BpeEncoder encoder(v, 0);  // room for few words
  Ids ids;
  encoder.encode(text, ids);
  CHECK(ids == slow_encode(v, text));
  const Ids first = ids;
  ids.clear();
  encoder.encode(text, ids);
  CHECK(ids == first);
}

TEST_CASE("a word that is a token: merges decide, unless they are to be ignored") {
  BpeParts parts;
  parts.pieces.push_back({"the", 0, PieceType::normal});       // 256, no merge makes it
  parts.pieces.push_back({"control", 0, PieceType::control});  // 257
  VocabularySettings settings = parts.settings();
  CHECK(encode(parts.make(settings), "the") == Ids{'t', 'h', 'e'});
  settings.ignore_merges = true;
  CHECK(encode(parts.make(settings), "the the") == Ids{256, ' ', 't', 'h', 'e'});
  CHECK(encode(parts.make(settings), "control").size() == 7);  // by its name only
}

TEST_CASE("bytes without a piece are lost, unless there is an unknown token") {
  BpeParts parts;
  parts.pieces[0xFF] = {"<unk>", 0, PieceType::unknown};
  VocabularySettings settings = parts.settings();
  CHECK(encode(parts.make(settings), "a\xFF") == Ids{'a'});
  settings.unk = 0xFF;
  CHECK(encode(parts.make(settings), "a\xFF") == Ids{'a', 0xFF});
  settings.unk = 'z';  // some files name a token that means something else
  CHECK(encode(parts.make(settings), "a\xFF") == Ids{'a'});
}

TEST_CASE("a long word takes n log n") {
  BpeParts parts;
  std::string run = "a";
  for (int i = 0; i < 6; ++i, run += run) parts.add(run, run);
  const Vocabulary v = parts.make();
  const auto cpu_time = [&](std::size_t size) {
    const std::string text(size, 'a');
    const std::clock_t begin = std::clock();
    CHECK(encode(v, text).size() == size / 64);
    return static_cast<double>(std::clock() - begin);
  };
  cpu_time(1 << 14);
  CHECK(cpu_time(1 << 18) < 64 * cpu_time(1 << 14));
}

TEST_CASE("merges of what is no piece are an error; of two equal ones the first counts") {
  BpeParts parts;
  parts.add("a", "b");
  parts.add("b", "c");
  parts.merges.push_back({"a", "b"});
  const Vocabulary v = parts.make();
  CHECK(v.merges().size() == 2);
  CHECK(v.find_merge('a', 'b') == 0);
  CHECK(v.find_merge('b', 'c') == 1);
  CHECK(v.find_merge('b', 'a') == -1);
  for (const auto& [left, right] : {std::pair("a", "c"), {"xx", "b"}, {"a", "xx"}, {"a", ""}}) {
    BpeParts bad = parts;
    bad.merges.push_back({left, right});
    const auto result = bad.try_make(bad.settings());
    REQUIRE(!result);
    CHECK(result.error().code == nibble::Errc::malformed);
    CHECK(result.error().message.find("merge 2") != std::string::npos);
  }
  VocabularySettings settings = parts.settings();
  settings.pre = "no such";
  const auto result = parts.try_make(settings);
  REQUIRE(!result);
  CHECK(result.error().code == nibble::Errc::unsupported);
  CHECK(result.error().message.find("'no such'") != std::string::npos);
}

}  // namespace bpe_test
