// SPDX-License-Identifier: Apache-2.0
#include "nibble/text/unigram.hpp"

#include <cstdint>
#include <cstring>
#include <ctime>
#include <map>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/text/tokenizer.hpp"
#include "nibble/text/tokenizer_json.hpp"
#include "nibble/text/write_vocabulary.hpp"

namespace unigram_test {

using namespace nibble::text;
using Ids = std::vector<std::int32_t>;

namespace {

// "<unk>" has the id 0.
Tokenizer tokenizer_of(const std::vector<Piece>& more, VocabularySettings settings = {}) {
  std::vector<Piece> pieces = {{"<unk>", 0, PieceType::unknown}};
  pieces.insert(pieces.end(), more.begin(), more.end());
  settings.kind = VocabularyKind::unigram;
  settings.bos = settings.eos = kNoToken;
  settings.unk = 0;
  auto vocabulary = Vocabulary::make(pieces, settings);
  REQUIRE(vocabulary);
  return Tokenizer(*std::move(vocabulary));
}

Ids encode(const Tokenizer& t, std::string_view text) {
  const auto ids = t.encode(text);
  REQUIRE(ids);
  return *ids;
}

VocabularySettings without_prefix() {
  VocabularySettings settings;
  settings.add_space_prefix = false;
  return settings;
}

// The greatest sum of scores of any way to spell `text` in letters a and b, by trying all.
double best_score(const std::map<std::string, float>& scores, const std::string& text) {
  std::vector<double> best(text.size() + 1, -1e9);
  best[0] = 0;
  for (std::size_t begin = 0; begin < text.size(); ++begin)
    for (std::size_t end = begin + 1; end <= text.size(); ++end) {
      const auto found = scores.find(text.substr(begin, end - begin));
      if (found != scores.end())
        best[end] = std::max(best[end], best[begin] + double{found->second});
    }
  return best.back();
}

// A table that replaces "A" by "a", "AB" by "xyz", and "\t" by a space. Its trie: the root's
// children are at 32 ^ byte.
std::string small_table() {
  std::vector<std::uint32_t> units(512);
  const auto set_node = [&](std::uint32_t place, std::uint32_t label, std::uint32_t children,
                            bool is_end) {
    units[place] = (place ^ children) << 10 | (is_end ? 0x100u : 0u) | label;
  };
  const std::string replacements("a\0xyz\0 \0", 8);
  units[0] = 32u << 10;
  set_node(32 ^ 'A', 'A', 256, true);
  units[256] = 0x80000000u | 0;
  set_node(256 ^ 'B', 'B', 128, true);
  units[128] = 0x80000000u | 2;
  set_node(32 ^ '\t', '\t', 192, true);
  units[192] = 0x80000000u | 6;
  const auto size = static_cast<std::uint32_t>(units.size() * sizeof(std::uint32_t));
  std::string table(sizeof size + size, '\0');
  std::memcpy(table.data(), &size, sizeof size);
  std::memcpy(table.data() + sizeof size, units.data(), size);
  return table + replacements;
}

}  // namespace

TEST_CASE("the way with the greatest sum of scores is taken") {
  const Tokenizer t = tokenizer_of({{"▁", -2, PieceType::normal},
                                    {"a", -1, PieceType::normal},
                                    {"b", -1, PieceType::normal},
                                    {"ab", -1.5, PieceType::normal},
                                    {"▁aba", -4.2f, PieceType::normal},
                                    {"aba", -2.6f, PieceType::normal}});
  CHECK(encode(t, "aba") == Ids{5});
  CHECK(encode(t, "abab") == Ids{1, 4, 4});  // -5 is better than -5.2
  CHECK(encode(t, "ab aba") == Ids{1, 4, 5});
  CHECK(encode(t, "") == Ids{});

  std::mt19937 random(3);
  for (int round = 0; round < 100; ++round) {
    std::map<std::string, float> scores = {{"a", -5.0f}, {"b", -5.0f}};
    for (int i = 0; i < 12; ++i) {
      std::string piece(2 + random() % 4, 'a');
      for (char& c : piece) c = "ab"[random() % 2];
      scores[piece] = -static_cast<float>(random() % 1000) / 64;
    }
    std::vector<Piece> pieces;
    for (const auto& [text, score] : scores) pieces.push_back({text, score, PieceType::normal});
    const Tokenizer tokenizer = tokenizer_of(pieces, without_prefix());
    std::string text(1 + random() % 30, 'a');
    for (char& c : text) c = "ab"[random() % 2];
    double sum = 0;
    for (const std::int32_t id : encode(tokenizer, text))
      sum += double{tokenizer.vocabulary().score(id)};
    CHECK(sum == best_score(scores, text));
    CHECK(tokenizer.decode(encode(tokenizer, text)) == text);
  }
}

TEST_CASE("characters that no piece spells: one unknown token, or bytes") {
  std::vector<Piece> pieces = {{"a", -1, PieceType::normal}, {"é", -3, PieceType::unused}};
  CHECK(encode(tokenizer_of(pieces, without_prefix()), "aéxyz你a\xFFz") == Ids{1, 2, 0, 1, 0});
  std::vector<std::string> names(256);
  for (std::size_t byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", static_cast<unsigned>(byte));
    names[byte] = name;
    pieces.push_back({names[byte], 0, PieceType::byte});
  }
  const Tokenizer t = tokenizer_of(pieces, without_prefix());
  CHECK(encode(t, "aß\n") == Ids{1, 3 + 0xC3, 3 + 0x9F, 3 + '\n'});
  CHECK(t.decode(encode(t, "aß你\xFF")) == "aß你\uFFFD");
}

TEST_CASE("an unknown character scores less than every piece, whatever their scores are") {
  const Tokenizer t = tokenizer_of(
      {{"a", 20, PieceType::normal}, {"ab", 25, PieceType::normal}, {"b", 20, PieceType::unused}},
      without_prefix());
  CHECK(t.vocabulary().least_score() == 20);
  CHECK(encode(t, "a?") == Ids{1, 0});
  // "a" and an unknown character: 20 + 20 - 10, more than 25.
  const Tokenizer u =
      tokenizer_of({{"a", 20, PieceType::normal}, {"a?", 25, PieceType::normal}}, without_prefix());
  CHECK(encode(u, "a?") == Ids{1, 0});
  // No piece has a score.
  const Tokenizer none = tokenizer_of({{"a", 20, PieceType::user_defined}}, without_prefix());
  CHECK(none.vocabulary().least_score() == 0);
  CHECK(encode(none, "ba") == Ids{0, 1});
}

TEST_CASE("spaces: kept, or merged and dropped at the ends") {
  const std::vector<Piece> pieces = {{"▁", -1, PieceType::normal}, {"a", -1, PieceType::normal}};
  VocabularySettings settings = without_prefix();
  CHECK(encode(tokenizer_of(pieces, settings), "  a  a ") == Ids{1, 1, 2, 1, 1, 2, 1});
  settings.merges_spaces = true;
  CHECK(encode(tokenizer_of(pieces, settings), "  a  a ") == Ids{2, 1, 2});
  settings.add_space_prefix = true;
  CHECK(encode(tokenizer_of(pieces, settings), "  a  a ") == Ids{1, 2, 1, 2});
  CHECK(encode(tokenizer_of(pieces, settings), "  ") == Ids{});
  settings.keeps_first_space = true;
  CHECK(encode(tokenizer_of(pieces, settings), "  a  a ") == Ids{1, 1, 2, 1, 2});
  settings.prefix_unless_space = true;
  CHECK(encode(tokenizer_of(pieces, settings), "  a  a ") == Ids{1, 2, 1, 2});
  settings.keeps_last_space = true;
  CHECK(encode(tokenizer_of(pieces, settings), "  a  a  ") == Ids{1, 2, 1, 2, 1});
  settings.merges_spaces = false;
  CHECK(encode(tokenizer_of(pieces, settings), " a") == Ids{1, 2});
  settings.prefix_unless_space = false;
  CHECK(encode(tokenizer_of(pieces, settings), " a") == Ids{1, 1, 2});
}

TEST_CASE("text is normalized by the vocabulary's table; a broken table changes nothing") {
  const std::vector<Piece> pieces = {{"▁", -1, PieceType::normal},
                                     {"a", -1, PieceType::normal},
                                     {"xyz", -1, PieceType::normal},
                                     {"B", -1, PieceType::normal}};
  VocabularySettings settings = without_prefix();
  settings.characters_map = small_table();
  const Tokenizer t = tokenizer_of(pieces, settings);
  CHECK(encode(t, "AaB") == Ids{2, 2, 4});
  CHECK(encode(t, "ABA\tA") == Ids{3, 2, 1, 2});
  CHECK(encode(t, "CA") == Ids{0, 2});

  // A replacement without end, or with a far one, is none.
  const std::string endless = small_table().substr(0, 4 + 512 * 4) + std::string(257, 'x');
  CHECK(CharactersMap(endless).find("A").size == 0);
  CHECK(CharactersMap(endless + '\0').find("A").size == 0);
  const std::string longest = endless.substr(0, endless.size() - 1) + '\0';
  CHECK(CharactersMap(longest).find("A").replacement == std::string(256, 'x'));

  std::mt19937 random(5);
  for (int i = 0; i < 2000; ++i) {
    settings.characters_map = small_table();
    for (int k = 0; k < 20; ++k) {
      const std::size_t at = random() % settings.characters_map.size();
      settings.characters_map[at] = static_cast<char>(random() & 255);
    }
    if (i % 4 == 0) settings.characters_map.resize(random() % settings.characters_map.size());
    CHECK(CharactersMap(settings.characters_map).find("ABA\t").size <= 4);
  }
  for (const std::size_t size : {0u, 3u, 4u, 5u, 20u}) {
    const std::string table = small_table().substr(0, size);
    CHECK(CharactersMap(table).find("A").size == 0);
  }
}

TEST_CASE("a megabyte of one letter") {
  const Tokenizer t = tokenizer_of({{"▁", -1, PieceType::normal},
                                    {"a", -1, PieceType::normal},
                                    {"aaaa", -1.5f, PieceType::normal}});
  const std::string text(std::size_t{1} << 20, 'a');
  CHECK(encode(t, text).size() == 1 + text.size() / 4);
}

TEST_CASE("tokenizer.json of a unigram model, and through GGUF") {
  const std::string json = R"({"added_tokens":[{"id":0,"content":"<unk>","special":true},
      {"id":1,"content":"</s>","special":true}],
      "normalizer":{"type":"Sequence","normalizers":[
        {"type":"Precompiled","precompiled_charsmap":"BAAAAAAAAAAAYQA="},
        {"type":"Replace","pattern":{"Regex":" {2,}"},"content":" "}]},
      "pre_tokenizer":{"type":"Metaspace","replacement":"▁","prepend_scheme":"always"},
      "post_processor":{"type":"TemplateProcessing","single":[{"Sequence":{"id":"A"}},
        {"SpecialToken":{"id":"</s>"}}]},
      "model":{"type":"Unigram","unk_id":0,"byte_fallback":false,
        "vocab":[["<unk>",0.0],["</s>",0],["▁",-2.5],["▁to",-3e0],["be",-4.25]]}})";
  auto vocabulary = read_tokenizer_json(json);
  REQUIRE(vocabulary);
  CHECK(vocabulary->score(4) == -4.25f);
  CHECK(vocabulary->type(0) == PieceType::unknown);
  CHECK(vocabulary->settings().merges_spaces);
  CHECK(vocabulary->settings().characters_map == std::string("\4\0\0\0\0\0\0\0\0a\0", 11));
  nibble::io::GgufWriter writer;
  write_vocabulary(*vocabulary, writer);
  const auto bytes = writer.to_bytes();
  REQUIRE(bytes);
  const auto file = nibble::io::Gguf::parse(*bytes, "made.gguf");
  REQUIRE(file);
  auto read = Vocabulary::from_gguf(*file);
  REQUIRE(read);
  CHECK(read->settings().characters_map == vocabulary->settings().characters_map);
  for (Vocabulary* v : {&*vocabulary, &*read}) {
    const Tokenizer t(std::move(*v));
    CHECK(encode(t, "to  be") == Ids{3, 2, 4, 1});
  }
}

}  // namespace unigram_test
