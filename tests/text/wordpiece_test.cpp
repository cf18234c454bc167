// SPDX-License-Identifier: Apache-2.0
#include "nibble/text/wordpiece.hpp"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/text/tokenizer.hpp"
#include "nibble/text/tokenizer_json.hpp"
#include "nibble/text/write_vocabulary.hpp"

namespace wordpiece_test {

using namespace nibble::text;
using Ids = std::vector<std::int32_t>;

namespace {

// [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, then these.
constexpr std::string_view kPieces[] = {"▁un", "aff", "able", "▁a",    "▁hello", "▁,",
                                        "▁你", "▁$",  "s",    "▁é",    "▁▁",     "▁i\u0307",
                                        "▁x",  "▁AB", "▁ab",  "\u0327"};
enum : std::int32_t {
  un = 4,
  aff,
  able,
  a,
  hello,
  comma,
  ni,
  dollar,
  s,
  e_acute,
  bar,
  i_dot,
  x,
  upper_ab,
  lower_ab,
  cedilla
};

Tokenizer tokenizer_of(bool lower_case, bool strip_accents) {
  std::vector<Piece> pieces = {{"[PAD]", 0, PieceType::control},
                               {"[UNK]", 0, PieceType::unknown},
                               {"[CLS]", 0, PieceType::control},
                               {"[SEP]", 0, PieceType::control}};
  for (const std::string_view piece : kPieces) pieces.push_back({piece, 0, PieceType::normal});
  VocabularySettings settings;
  settings.kind = VocabularyKind::wordpiece;
  settings.pad = 0;
  settings.unk = 1;
  settings.bos = 2;
  settings.eos = 3;
  settings.add_eos = true;
  settings.lower_case = lower_case;
  settings.strip_accents = strip_accents;
  auto vocabulary = Vocabulary::make(pieces, settings);
  REQUIRE(vocabulary);
  return Tokenizer(*std::move(vocabulary));
}

Ids encode(const Tokenizer& t, std::string_view text) {
  const auto ids = t.encode(text, {.add_bos = false, .add_eos = false});
  REQUIRE(ids);
  return *ids;
}

}  // namespace

TEST_CASE("words are spelled by the longest pieces; what cannot be spelled is unknown") {
  const Tokenizer t = tokenizer_of(true, true);
  CHECK(encode(t, "unaffable") == Ids{un, aff, able});
  CHECK(encode(t, "hello") == Ids{hello});
  CHECK(encode(t, "  Hello\n\tUNaffable ") == Ids{hello, un, aff, able});
  CHECK(encode(t, "unaffablex") == Ids{1});
  CHECK(encode(t, "aff") == Ids{1});  // no piece for the beginning of a word
  CHECK(encode(t, "un a x") == Ids{un, a, x});
  CHECK(encode(t, "") == Ids{});
  CHECK(encode(t, " \n") == Ids{});
  CHECK(*t.encode("hello") == Ids{2, hello, 3});
  // U+2581 inside a word is not the beginning of another one.
  CHECK(encode(t, "un▁a") == Ids{1});
  CHECK(encode(t, "▁") == Ids{bar});
}

TEST_CASE("signs and Chinese characters are words; controls are dropped") {
  const Tokenizer t = tokenizer_of(true, true);
  CHECK(encode(t, "hello,hello$") == Ids{hello, comma, hello, dollar});
  CHECK(encode(t, "你你x") == Ids{ni, ni, x});
  CHECK(encode(t, "un\u00ADaff\u200B\u0007ab\uFFFDle\x0B") == Ids{un, aff, able});
  CHECK(encode(t,
               "un\xFF\xE4\xBD"
               "affs") == Ids{un, aff, s});
  CHECK(encode(t, "a\u00A0a\u3000a") == Ids{a, a, a});
}

TEST_CASE("case and accents go where the vocabulary says so") {
  CHECK(encode(tokenizer_of(true, true), "HÉLLO hello ÀÁ") == Ids{hello, hello, 1});
  CHECK(encode(tokenizer_of(true, true), "Á AB") == Ids{a, lower_ab});
  CHECK(encode(tokenizer_of(true, false), "É é AB") == Ids{e_acute, e_acute, lower_ab});
  CHECK(encode(tokenizer_of(true, false), "\u0130") == Ids{i_dot});
  CHECK(encode(tokenizer_of(false, false), "AB ab É") == Ids{upper_ab, lower_ab, 1});
  CHECK(encode(tokenizer_of(false, true), "AB un\u0327s") == Ids{upper_ab, un, s});
  CHECK(encode(tokenizer_of(false, false), "un\u0327s") == Ids{un, cedilla, s});
}

TEST_CASE("a word with more than a hundred characters is unknown") {
  const Tokenizer t = tokenizer_of(true, true);
  std::string word = "un";
  while (word.size() < 100) word += 's';
  CHECK(encode(t, word).size() == 99);
  CHECK(encode(t, word + "s") == Ids{1});
  CHECK(encode(t, std::string(1 << 20, 'q')) == Ids{1});
}

TEST_CASE("without an unknown token there is no vocabulary") {
  VocabularySettings settings;
  settings.kind = VocabularyKind::wordpiece;
  settings.bos = settings.eos = settings.unk = kNoToken;
  const std::vector<Piece> pieces = {{"▁a", 0, PieceType::normal}};
  const auto vocabulary = Vocabulary::make(pieces, settings);
  REQUIRE(!vocabulary);
  CHECK(vocabulary.error().code == nibble::Errc::malformed);
}

TEST_CASE("decoding puts spaces between words") {
  const Tokenizer t = tokenizer_of(true, true);
  CHECK(t.decode(*t.encode("Unaffable, hello x")) == "unaffable , hello x");
}

TEST_CASE("tokenizer.json of BERT, and through GGUF") {
  const std::string json = R"({"added_tokens":[{"id":0,"content":"[UNK]","special":true},
      {"id":1,"content":"[CLS]","special":true},{"id":2,"content":"[SEP]","special":true}],
      "normalizer":{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,
        "strip_accents":null,"lowercase":true},
      "pre_tokenizer":{"type":"BertPreTokenizer"},
      "post_processor":{"type":"BertProcessing","sep":["[SEP]",2],"cls":["[CLS]",1]},
      "model":{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##",
        "max_input_chars_per_word":100,
        "vocab":{"[UNK]":0,"[CLS]":1,"[SEP]":2,"un":3,"##aff":4,"[":5,"]":6,"##":7}}})";
  auto vocabulary = read_tokenizer_json(json, R"({"mask_token":"[SEP]"})");
  REQUIRE(vocabulary);
  CHECK(vocabulary->text(0) == "[UNK]");
  CHECK(vocabulary->text(3) == "▁un");
  CHECK(vocabulary->text(4) == "aff");
  CHECK(vocabulary->text(5) == "▁[");
  CHECK(vocabulary->settings().mask == 2);
  CHECK(vocabulary->settings().strip_accents);
  nibble::io::GgufWriter writer;
  write_vocabulary(*vocabulary, writer);
  const auto bytes = writer.to_bytes();
  REQUIRE(bytes);
  const auto file = nibble::io::Gguf::parse(*bytes, "made.gguf");
  REQUIRE(file);
  auto read = Vocabulary::from_gguf(*file);
  REQUIRE(read);
  for (Vocabulary* v : {&*vocabulary, &*read}) {
    const Tokenizer t(std::move(*v));
    CHECK(*t.encode("ÚNaff [un") == Ids{1, 3, 4, 5, 3, 2});
    CHECK(*t.encode("q") == Ids{1, 0, 2});
  }
}

}  // namespace wordpiece_test
