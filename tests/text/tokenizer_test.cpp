// SPDX-License-Identifier: Apache-2.0
#include "nibble/text/tokenizer.hpp"

#include <algorithm>
#include <cstdint>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "test_data.hpp"
#include "text_fixtures.hpp"

namespace tokenizer_test {

using namespace nibble::text;
using text_fixtures::small_tokenizer;
using Ids = std::vector<std::int32_t>;

namespace {

constexpr EncodeOptions kBare = {.add_bos = false, .add_eos = false};

Ids encode(const Tokenizer& t, std::string_view text, const EncodeOptions& options = kBare) {
  auto ids = t.encode(text, options);
  REQUIRE(ids);
  return *std::move(ids);
}

Tokenizer tokenizer_of(const std::string& path) {
  const auto file = nibble::io::Gguf::open(path);
  REQUIRE(file);
  auto tokenizer = Tokenizer::from_gguf(*file);
  REQUIRE(tokenizer);
  return *std::move(tokenizer);
}

// The small vocabulary plus "<|user|>" (control) and the user-defined "[sep]" and " [pad]".
Tokenizer chat_tokenizer(const VocabularySettings& settings = {}, bool strip_after = false) {
  auto pieces = text_fixtures::small_pieces();
  pieces.push_back({"<|user|>", 0, PieceType::control});     // 512
  pieces.push_back({"[sep]", 0, PieceType::user_defined});   // 513
  pieces.push_back({" [pad]", 0, PieceType::user_defined});  // 514
  auto views = text_fixtures::views(pieces);
  for (const std::size_t i : {512u, 513u}) views[i].strip_after = strip_after;
  auto vocabulary = Vocabulary::make(views, settings);
  REQUIRE(vocabulary);
  return Tokenizer(*std::move(vocabulary));
}

void check_round_trips(const Tokenizer& t, std::uint32_t seed) {
  std::mt19937 random(seed);
  for (int i = 0; i < 500; ++i) {
    const std::string text = text_fixtures::spaces_for_u2581(
        i % 2 != 0 ? text_fixtures::random_text(random, random() % 30)
                   : text_fixtures::random_bytes(random, random() % 60));
    CHECK(t.decode(encode(t, text)) == text);
    CHECK(t.decode(encode(t, text, {.add_bos = true, .add_eos = true})) == text);
  }
}

}  // namespace

TEST_CASE("a vocabulary made by hand: words, spaces, bytes") {
  const Tokenizer t = small_tokenizer();
  const auto id = [&](const char* piece) { return t.vocabulary().find(piece); };
  CHECK(encode(t, "") == Ids{});
  CHECK(encode(t, "the kitchen") == Ids{id("▁the"), id("▁kitchen")});
  CHECK(encode(t, " the") == Ids{id("▁▁"), id("the")});
  CHECK(encode(t, "bananas") == Ids{id("▁bananas")});
  CHECK(encode(t, "é你ß") == Ids{id("▁"), id("é"), id("你"), 3 + 0xC3, 3 + 0x9F});
  CHECK(encode(t, std::string_view("\0\n", 2)) == Ids{id("▁"), 3, 3 + '\n'});
  CHECK(encode(t, "\xE4\xBD") == Ids{id("▁"), 3 + 0xE4, 3 + 0xBD});
  // An incomplete character does not swallow what follows it.
  CHECK(encode(t, "\xC3 the") == Ids{id("▁"), 3 + 0xC3, id("▁the")});
  CHECK(t.piece(id("▁the")) == "▁the");
  CHECK(t.piece(-1) == "");
  CHECK(t.piece(512) == "");
  CHECK(t.decode(Ids{-1, 512, id("▁the"), 1 << 30}) == "the");
}

TEST_CASE("BOS and EOS come as the file asks or as the caller says") {
  const Tokenizer t = small_tokenizer();
  const std::int32_t the = t.vocabulary().find("▁the");
  CHECK(encode(t, "the", {}) == Ids{1, the});
  CHECK(encode(t, "", {}) == Ids{1});
  CHECK(encode(t, "the", {.add_bos = false}) == Ids{the});
  CHECK(encode(t, "the", {.add_eos = true}) == Ids{1, the, 2});

  Ids ids = {42};
  CHECK(t.encode("the", {.add_bos = false}, ids));
  CHECK(ids == Ids{42, the});

  const Tokenizer none = chat_tokenizer({.bos = kNoToken, .eos = kNoToken});
  CHECK(encode(none, "the", {}) == Ids{the});
  for (const EncodeOptions& options : {EncodeOptions{.add_bos = true}, {.add_eos = true}}) {
    const auto status = none.encode("the", options, ids);
    REQUIRE(!status);
    CHECK(status.error().code == nibble::Errc::invalid_argument);
    CHECK(ids == Ids{42, the});
  }
}

TEST_CASE("user-defined tokens are always read, control tokens only where allowed") {
  const Tokenizer t = chat_tokenizer();
  const auto id = [&](const char* piece) { return t.vocabulary().find(piece); };
  const EncodeOptions parse = {.add_bos = false, .parse_special = true};
  CHECK(encode(t, "<|user|>the[sep]the", parse) == Ids{512, id("▁the"), 513, id("▁the")});
  CHECK(encode(t, "<s><|user|>", parse) == Ids{1, 512});
  CHECK(encode(t, "the[sep]") == Ids{id("▁the"), 513});
  for (const std::int32_t token : encode(t, "<|user|>the<s></s><unk>")) {
    CHECK(token != 512);
    CHECK(token > 2);
  }
  CHECK(t.decode(encode(t, "<|user|>the<s>")) == "<|user|>the<s>");
  CHECK(t.decode(Ids{1, 512, id("▁the"), 2}) == "the");
  CHECK(t.decode(Ids{1, 512, id("▁the"), 2}, {.show_special = true}) == "<s><|user|>the</s>");
  CHECK(t.decode(Ids{id("▁the")}, {.at_start = false}) == " the");
  // The space belongs to the token; it is not the one that encoding adds.
  CHECK(t.decode(encode(t, " [pad]")) == " [pad]");
}

TEST_CASE("without a space prefix nothing is added and nothing taken away") {
  const Tokenizer t = chat_tokenizer({.add_space_prefix = false});
  const auto id = [&](const char* piece) { return t.vocabulary().find(piece); };
  CHECK(encode(t, "the") == Ids{id("the")});
  CHECK(encode(t, " the") == Ids{id("▁the")});
  CHECK(t.decode(Ids{id("▁the")}) == " the");
  check_round_trips(t, 5);
}

TEST_CASE("Phi-3 drops white space after special tokens") {
  const Tokenizer t = chat_tokenizer({}, true);
  const std::int32_t the = t.vocabulary().find("▁the");
  const EncodeOptions parse = {.add_bos = false, .parse_special = true};
  CHECK(encode(t, "<|user|>\n the", parse) == Ids{512, the});
  CHECK(encode(t, "<|user|> \t\r\n", parse) == Ids{512});
  CHECK(encode(t, "[sep] the") == Ids{513, the});
  CHECK(encode(t, "<s>\n", parse) == Ids{1, t.vocabulary().find("▁"), 3 + '\n'});
}

TEST_CASE("any bytes come back as they were") { check_round_trips(small_tokenizer(), 2); }

TEST_CASE("a megabyte of the beginnings of special tokens") {
  const Tokenizer t = chat_tokenizer();
  std::string text;
  while (text.size() < std::size_t{1} << 20) text += "<|user|[se";
  const Ids ids = encode(t, text, {.add_bos = false, .parse_special = true});
  CHECK(t.decode(ids) == text);
  text.clear();
  while (text.size() < std::size_t{1} << 18) text += "[sep]";
  CHECK(encode(t, text) == Ids(text.size() / 5, 513));
}

TEST_CASE("vocabularies of models: the expected ids of llama.cpp, and back") {
  for (const char* name : {"ggml-vocab-llama-spm", "ggml-vocab-phi-3", "ggml-vocab-gpt-2",
                           "ggml-vocab-llama-bpe", "ggml-vocab-starcoder"}) {
    const auto path = test::data_path(std::string("tokenizers/") + name + ".gguf");
    if (!path) return;
    CAPTURE(name);
    const Tokenizer t = tokenizer_of(*path);

    const std::string separator = "\n__ggml_vocab_test__\n";
    const std::string all = test::read_text(*path + ".inp");
    std::vector<std::string> texts;
    for (std::size_t at = 0; at < all.size();) {
      const std::size_t end = std::min(all.find(separator, at), all.size());
      texts.push_back(all.substr(at, end - at));
      at = end + separator.size();
    }
    std::vector<Ids> expected;
    std::istringstream lines(test::read_text(*path + ".out"));
    for (std::string line; std::getline(lines, line);) {
      std::istringstream numbers(line);
      expected.emplace_back();
      for (std::int32_t number; numbers >> number;) expected.back().push_back(number);
    }
    REQUIRE(texts.size() > 40);
    REQUIRE(texts.size() == expected.size());
    for (std::size_t i = 0; i < texts.size(); ++i) {
      CAPTURE(texts[i]);
      CHECK(encode(t, texts[i]) == expected[i]);
      CHECK(t.decode(expected[i]) == texts[i]);
    }
    bool spells_all = true;  // starcoder has no tokens for bytes that UTF-8 never has
    for (int byte = 0; byte < 256; ++byte)
      spells_all &= t.vocabulary().byte_token(static_cast<unsigned char>(byte)) != kNoToken;
    if (spells_all) check_round_trips(t, 17);
  }
}

TEST_CASE("phi-3: a chat prompt") {
  const auto path = test::data_path("tokenizers/ggml-vocab-phi-3.gguf");
  if (!path) return;
  const Tokenizer t = tokenizer_of(*path);
  CHECK(encode(t, "<|user|>\nHello world<|end|>\n<|assistant|>\n", {.parse_special = true}) ==
        Ids{1, 32010, 15043, 3186, 32007, 32001});
  CHECK(encode(t, "Hello</s> world") == Ids{15043, 2, 3186});  // "</s>" is user-defined there
  CHECK(t.vocabulary().ends_generation(32000));
  CHECK(t.vocabulary().ends_generation(32007));
  CHECK(!t.vocabulary().ends_generation(32001));
}

TEST_CASE("stories260K: the ids of its README") {
  const auto path = test::data_path("models/stories260K/stories260K.gguf");
  if (!path) return;
  const Tokenizer t = tokenizer_of(*path);
  const std::string text =
      "Once upon a time, there was a little girl named Lily. She loved to play";
  const Ids ids = {1,   403, 407, 261, 378, 432, 383, 286, 261, 376, 298,
                   315, 421, 395, 317, 426, 338, 401, 396, 267, 337};
  CHECK(encode(t, text, {}) == ids);
  CHECK(t.decode(ids) == text);
}

TEST_CASE("home commands: every utterance and its call come back") {
  const auto path = test::data_path("models/home-commands/home-commands-f16.gguf");
  if (!path) return;
  const Tokenizer t = tokenizer_of(*path);
  const auto tsv = test::data_path("models/home-commands/test_2000.tsv");
  std::istringstream lines(test::read_text(*tsv));
  std::size_t n = 0, n_ids = 0, n_bytes = 0;
  for (std::string line; std::getline(lines, line); ++n) {
    const std::size_t tab = line.find('\t');
    REQUIRE(tab != line.npos);
    for (const std::string& text : {line.substr(0, tab) + "\n", line.substr(tab + 1)}) {
      const Ids ids = encode(t, text);
      CHECK(t.decode(ids) == text);
      n_ids += ids.size();
      n_bytes += text.size();
    }
  }
  CHECK(n == 2000);
  CHECK(n_ids * 2 < n_bytes);  // words became pieces, not only bytes
}

}  // namespace tokenizer_test
