// SPDX-License-Identifier: Apache-2.0
#include "nibble/text/vocabulary.hpp"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/io/gguf_writer.hpp"
#include "text_fixtures.hpp"

namespace vocabulary_test {

using namespace nibble::text;
using nibble::Errc;
using nibble::io::Gguf;
using nibble::io::GgufWriter;
using text_fixtures::OwnedPiece;

namespace {

// The small vocabulary as a file; a test can change its parts before it is written.
struct File {
  std::vector<std::string> tokens;
  std::vector<float> scores;
  std::vector<std::int32_t> types;
  GgufWriter writer;

  File() {
    for (const OwnedPiece& piece : text_fixtures::small_pieces()) {
      tokens.push_back(piece.text);
      scores.push_back(piece.score);
      types.push_back(static_cast<std::int32_t>(piece.type));
    }
    writer.set("tokenizer.ggml.model", std::string_view("llama"));
  }

  nibble::Result<Vocabulary> read(const std::string& without = "") {
    if (without != "tokens") writer.set_array("tokenizer.ggml.tokens", tokens);
    if (without != "scores") writer.set_array("tokenizer.ggml.scores", scores);
    if (without != "token_type") writer.set_array("tokenizer.ggml.token_type", types);
    const auto bytes = writer.to_bytes();
    REQUIRE(bytes);
    const auto file = Gguf::parse(*bytes, "made.gguf");
    REQUIRE(file);
    return Vocabulary::from_gguf(*file);
  }
};

void check_error(const nibble::Result<Vocabulary>& result, Errc code, const std::string& part) {
  CAPTURE(part);
  REQUIRE(!result);
  CHECK(result.error().code == code);
  CAPTURE(result.error().message);
  CHECK(result.error().message.find(part) != std::string::npos);
}

}  // namespace

TEST_CASE("a vocabulary keeps its pieces and finds them by their text") {
  const auto pieces = text_fixtures::small_pieces();
  REQUIRE(pieces.size() == 512);
  const Vocabulary v = text_fixtures::small_vocabulary();
  REQUIRE(v.size() == 512);
  for (std::int32_t id = 0; id < 512; ++id) {
    const OwnedPiece& piece = pieces[static_cast<std::size_t>(id)];
    CHECK(v.text(id) == piece.text);
    CHECK(v.score(id) == piece.score);
    CHECK(v.type(id) == piece.type);
    CHECK(v.find(piece.text) == id);
  }
  CHECK(v.find("") == kNoToken);
  CHECK(v.find("thex") == kNoToken);
  CHECK(v.find(std::string(10000, 'a')) == kNoToken);
  CHECK(!v.contains(-1));
  CHECK(!v.contains(512));
  for (int byte = 0; byte < 256; ++byte) {
    CHECK(v.byte_token(static_cast<unsigned char>(byte)) == 3 + byte);
    CHECK(v.byte_value(3 + byte) == byte);
  }
  CHECK(v.ends_generation(2));
  CHECK(!v.ends_generation(1));
  CHECK(!v.ends_generation(kNoToken));
}

TEST_CASE("a hundred thousand random pieces are all found, and nothing else is") {
  std::mt19937 random(1);
  std::vector<std::string> texts;
  for (int i = 0; i < 100000; ++i) {
    texts.push_back("x");
    texts.back() += std::to_string(i);
    texts.back() += text_fixtures::random_bytes(random, random() % 20);
  }
  std::vector<Piece> pieces;
  for (const std::string& text : texts) pieces.push_back({text, 0, PieceType::normal});
  const auto v = Vocabulary::make(pieces, {});
  REQUIRE(v);
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    wrong += v->find(texts[i]) != static_cast<std::int32_t>(i);
    texts[i][0] = 'y';
    wrong += v->find(texts[i]) != kNoToken;
  }
  CHECK(wrong == 0);
}

TEST_CASE("a file made of colliding pieces is refused instead of slowing everything down") {
  std::vector<std::string> texts;
  for (std::size_t i = 0; texts.size() < 1000; ++i) {
    std::string text = std::to_string(i);
    if (detail::hash_of(text) % 2048 == 0) texts.push_back(text);
  }
  std::vector<Piece> pieces;
  for (const std::string& text : texts) pieces.push_back({text, 0, PieceType::normal});
  check_error(Vocabulary::make(pieces, {}), Errc::limit, "collide");
  pieces.resize(400);  // few enough for linear search
  const auto v = Vocabulary::make(pieces, {});
  REQUIRE(v);
  for (std::size_t i = 0; i < pieces.size(); ++i)
    CHECK(v->find(texts[i]) == static_cast<std::int32_t>(i));
}

TEST_CASE("two pieces with the same hash are told apart") {
  // 16 bytes are hashed in two steps, so the second half can cancel the difference of the first.
  const auto after_first_half = [](std::uint64_t half) {
    const std::uint64_t mixed = (0x9E3779B97F4A7C15u ^ 16u ^ half) * 0xD6E8FEB86659FD93u;
    return mixed ^ mixed >> 32;
  };
  const auto text_of = [](std::uint64_t first, std::uint64_t second) {
    std::string text(16, ' ');
    std::memcpy(text.data(), &first, 8);
    std::memcpy(text.data() + 8, &second, 8);
    return text;
  };
  const std::string a = text_of(1, 0);
  const std::string b = text_of(2, after_first_half(1) ^ after_first_half(2));
  REQUIRE(a != b);
  REQUIRE(detail::hash_of(a) == detail::hash_of(b));
  const std::vector<Piece> pieces = {
      {a, 0, PieceType::normal}, {b, 0, PieceType::normal}, {"c", 0, PieceType::normal}};
  const auto v = Vocabulary::make(pieces, {});
  REQUIRE(v);
  CHECK(v->find(a) == 0);
  CHECK(v->find(b) == 1);
}

TEST_CASE("equal texts: the last id is encoded, every id keeps its text") {
  auto pieces = text_fixtures::small_pieces();
  pieces.push_back({"the", -1, PieceType::normal});
  const auto v = Vocabulary::make(text_fixtures::views(pieces), {});
  REQUIRE(v);
  CHECK(v->find("the") == 512);
  CHECK(v->text(512) == "the");
}

TEST_CASE("a byte without a byte piece is spelled by itself or not at all") {
  auto pieces = text_fixtures::small_pieces();
  pieces[3 + 'a'] = {"moved-a", 0, PieceType::normal};
  pieces[3 + 0x01] = {"moved-1", 0, PieceType::normal};
  pieces.push_back({"\x01", 0, PieceType::control});  // must not become the spelling of its byte
  const auto v = Vocabulary::make(text_fixtures::views(pieces), {});
  REQUIRE(v);
  CHECK(v->byte_token('a') == v->find("a"));
  CHECK(v->byte_token(1) == kNoToken);
  VocabularySettings no_unknown;
  no_unknown.unk = kNoToken;
  check_error(Vocabulary::make(text_fixtures::views(pieces), no_unknown), Errc::malformed,
              "neither all 256 byte pieces nor an unknown token");
}

TEST_CASE("tokens that the field knows as ends are control tokens that end generation") {
  auto pieces = text_fixtures::small_pieces();
  pieces.push_back({"<|end|>", 0, PieceType::normal});
  const auto v = Vocabulary::make(text_fixtures::views(pieces), {});
  REQUIRE(v);
  CHECK(v->ends_generation(512));
  CHECK(v->type(512) == PieceType::control);
}

TEST_CASE("a file gives the same vocabulary, with GGUF's defaults where it is silent") {
  const auto v = File().read();
  REQUIRE(v);
  const Vocabulary small = text_fixtures::small_vocabulary();
  REQUIRE(v->size() == small.size());
  for (std::int32_t id = 0; small.contains(id); ++id) {
    CHECK(v->text(id) == small.text(id));
    CHECK(v->score(id) == small.score(id));
    CHECK(v->type(id) == small.type(id));
  }
  const VocabularySettings& s = v->settings();
  CHECK(s.bos == 1);
  CHECK(s.eos == 2);
  CHECK(s.unk == 0);
  CHECK(s.eot == kNoToken);
  CHECK(s.add_bos);
  CHECK(!s.add_eos);
  CHECK(s.add_space_prefix);
  for (std::int32_t id = 0; v->contains(id); ++id) CHECK(!v->strips_after(id));
}

TEST_CASE("a file's own settings are read, whatever integer type they have") {
  File file;
  file.writer.set("tokenizer.ggml.bos_token_id", std::uint32_t{7});
  file.writer.set("tokenizer.ggml.eos_token_id", std::int64_t{8});
  file.writer.set("tokenizer.ggml.eot_token_id", std::uint8_t{9});
  file.writer.set("tokenizer.ggml.padding_token_id", std::uint32_t{0xFFFFFFFF});
  file.writer.set("tokenizer.ggml.eom_token_id", std::int32_t{-1});
  file.writer.set("tokenizer.ggml.add_bos_token", false);
  file.writer.set("tokenizer.ggml.add_eos_token", true);
  file.writer.set("tokenizer.ggml.add_space_prefix", false);
  file.writer.set("general.name", std::string_view("My Phi-3 mini"));
  const auto v = file.read();
  REQUIRE(v);
  const VocabularySettings& s = v->settings();
  CHECK(s.bos == 7);
  CHECK(s.eos == 8);
  CHECK(s.eot == 9);
  CHECK(s.pad == kNoToken);
  CHECK(s.eom == kNoToken);
  CHECK(!s.add_bos);
  CHECK(s.add_eos);
  CHECK(!s.add_space_prefix);
  CHECK(v->strips_after(2));
  CHECK(!v->strips_after(1));    // "<s>"
  CHECK(!v->strips_after(300));  // ordinary text
  CHECK(v->ends_generation(8));
  CHECK(v->ends_generation(9));
}

TEST_CASE("tokens end an answer by the names that other programs know, whatever else is the end") {
  const auto with = [](const std::vector<std::string>& names) {
    File file;
    file.writer.set("tokenizer.ggml.eos_token_id", std::int32_t{500});
    for (std::size_t i = 0; i < names.size(); ++i) file.tokens[300 + i] = names[i];
    auto v = file.read();
    REQUIRE(v);
    return *std::move(v);
  };
  const Vocabulary plain = with({});
  CHECK(plain.ends_generation(500));
  CHECK(plain.text(2) == "</s>");
  CHECK(plain.ends_generation(2));
  CHECK(!plain.ends_generation(300));
  const std::vector<std::string> names = {"<eos>",
                                          "[EOS]",
                                          "<EOT>",
                                          "_<EOT>",
                                          "[EOT]",
                                          "<|eot_id|>",
                                          "<|eom_id|>",
                                          "<|im_end|>",
                                          "<|end|>",
                                          "<|return|>",
                                          "<end_of_turn>",
                                          "<|endoftext|>",
                                          "<|flush|>",
                                          "<|fim_pad|>",
                                          "<|file_sep|>",
                                          "<|end_of_text|>",
                                          "<|repo_name|>",
                                          "<end_of_utterance>",
                                          "<｜end▁of▁sentence｜>"};
  const Vocabulary all = with(names);
  for (std::int32_t id = 300; id < 300 + static_cast<std::int32_t>(names.size()); ++id) {
    CAPTURE(all.text(id));
    CHECK(all.ends_generation(id));
    CHECK(all.type(id) == PieceType::control);
  }
  CHECK(!all.ends_generation(1));
  // Where <|end|> ends only a part of an answer, it is none of them.
  for (const auto& [a, b] :
       {std::pair("<|return|>", "<|call|>"), std::pair("<|calls|>", "<|flush|>")}) {
    const Vocabulary parts = with({"<|end|>", a, b});
    CHECK(!parts.ends_generation(300));
    CHECK(parts.type(300) == PieceType::normal);
    CHECK(parts.ends_generation(301));
    CHECK(parts.ends_generation(302));
  }
  CHECK(!with({"<|tool_response>"}).ends_generation(2));
}

// Fine-tuned models have them: a pad token that was added, embeddings that were not.
TEST_CASE("ids of special tokens beyond the vocabulary give way to the defaults") {
  File file;
  file.writer.set("tokenizer.ggml.padding_token_id", 512u);
  file.writer.set("tokenizer.ggml.bos_token_id", 512u);
  file.writer.set("tokenizer.ggml.eos_token_id", -2);
  file.writer.set("tokenizer.ggml.unknown_token_id", std::uint64_t{1} << 32);
  file.writer.set("tokenizer.ggml.eot_token_id", std::numeric_limits<std::int64_t>::min());
  file.writer.set("tokenizer.ggml.eom_token_id", std::numeric_limits<std::uint64_t>::max() / 2);
  const auto v = file.read();
  REQUIRE(v);
  CHECK(v->settings().pad == kNoToken);
  CHECK(v->settings().bos == 1);
  CHECK(v->settings().eos == 2);
  CHECK(v->settings().unk == 0);
  CHECK(v->settings().eot == kNoToken);
  CHECK(v->settings().eom == kNoToken);
  CHECK(v->settings().add_bos);
  CHECK(v->ends_generation(2));
  file.writer.set("tokenizer.ggml.padding_token_id", 511u);  // the last one is inside
  REQUIRE(file.read());
  CHECK(file.read()->settings().pad == 511);

  File tiny;  // the defaults themselves are beyond it
  tiny.tokens = {"<unk>", "a"};
  tiny.scores = {0, 0};
  tiny.types = {2, 1};
  tiny.writer.set("tokenizer.ggml.bos_token_id", 7);
  const auto two = tiny.read();
  REQUIRE(two);
  CHECK(two->settings().unk == 0);
  CHECK(two->settings().bos == 1);
  CHECK(two->settings().eos == kNoToken);
}

TEST_CASE("without types, bytes and special tokens are known by how they are written") {
  File file;
  file.tokens[300] = "<0x0G>";  // not a byte
  file.tokens[301] = "<pad>";
  file.writer.set("tokenizer.ggml.padding_token_id", 301);
  file.writer.set("tokenizer.ggml.eot_token_id", 302);  // written like ordinary text
  const auto v = file.read("token_type");
  REQUIRE(v);
  const Vocabulary small = text_fixtures::small_vocabulary();
  for (std::int32_t id = 0; small.contains(id); ++id) {
    CAPTURE(id);
    if (id >= 300 && id <= 302) continue;
    CHECK(v->type(id) == small.type(id));
    CHECK(v->score(id) == small.score(id));
  }
  CHECK(v->type(0) == PieceType::unknown);
  CHECK(v->type(1) == PieceType::control);
  CHECK(v->type(300) == PieceType::normal);
  CHECK(v->type(301) == PieceType::control);
  CHECK(v->type(302) == PieceType::normal);
  CHECK(v->byte_token('\n') == small.byte_token('\n'));
}

TEST_CASE("without scores all are equal") {
  const auto v = File().read("scores");
  REQUIRE(v);
  CHECK(v->score(300) == 0);
  CHECK(v->type(300) == text_fixtures::small_vocabulary().type(300));
}

TEST_CASE("a malformed vocabulary is an error that says what is wrong") {
  const auto with = [](const std::function<void(File&)>& change) {
    File file;
    change(file);
    return file.read();
  };
  const float inf = std::numeric_limits<float>::infinity();
  check_error(File().read("tokens"), Errc::not_found, "tokenizer.ggml.tokens");
  check_error(with([](File& f) { f.scores.pop_back(); }), Errc::malformed, "511 scores");
  check_error(with([](File& f) { f.types.push_back(1); }), Errc::malformed, "513 types");
  check_error(with([](File& f) { f.tokens.pop_back(); }), Errc::malformed, "511 tokens");
  check_error(with([&](File& f) { f.scores[300] = inf; }), Errc::malformed, "piece 300");
  check_error(with([&](File& f) { f.scores[300] = inf - inf; }), Errc::malformed, "piece 300");
  check_error(with([](File& f) { f.types[300] = 7; }), Errc::malformed, "piece 300");
  check_error(with([](File& f) { f.types[300] = -1; }), Errc::malformed, "piece 300");
  check_error(with([](File& f) { f.types[300] = 257; }), Errc::malformed, "piece 300");
  check_error(with([](File& f) { f.types[300] = 6; }), Errc::malformed, "not written <0xNN>");
  for (const char* bad : {"<0x0G>", "<0x 1>", "<0x0>", "<0x001>", "(0x01>", "<0x01)", ""})
    check_error(with([&](File& f) { f.tokens[4] = bad; }), Errc::malformed, "piece 4");
  check_error(with([](File& f) { f.tokens[300] = std::string(4097, 'a'); }), Errc::limit,
              "piece 300");
  check_error(with([](File& f) {
                f.tokens.clear();
                f.scores.clear();
                f.types.clear();
              }),
              Errc::malformed, "no pieces");
  check_error(
      with([](File& f) { f.writer.set("tokenizer.ggml.eot_token_id", std::string_view("2")); }),
      Errc::malformed, "eot_token_id");
  check_error(with([](File& f) { f.writer.set("tokenizer.ggml.add_bos_token", 1); }),
              Errc::malformed, "add_bos_token");
  check_error(with([](File& f) { f.writer.set("tokenizer.ggml.model", std::string_view("rwkv")); }),
              Errc::unsupported, "rwkv");
  check_error(with([](File& f) { f.writer.set("tokenizer.ggml.model", std::string_view("gpt2")); }),
              Errc::not_found, "tokenizer.ggml.merges");
  check_error(with([](File& f) { f.writer.set("tokenizer.ggml.model", 3); }), Errc::malformed,
              "tokenizer.ggml.model");

  std::vector<Piece> two(2, Piece{"a", 0, PieceType::normal});
  check_error(Vocabulary::make(two, {}), Errc::malformed, "eos token is 2");

  GgufWriter swapped;
  swapped.set("tokenizer.ggml.model", std::string_view("llama"));
  swapped.set_array("tokenizer.ggml.tokens", std::vector<float>(3, 0.0f));
  const auto bytes = swapped.to_bytes();
  REQUIRE(bytes);
  const auto file = Gguf::parse(*bytes, "made.gguf");
  REQUIRE(file);
  check_error(Vocabulary::from_gguf(*file), Errc::malformed, "tokenizer.ggml.tokens");
}

}  // namespace vocabulary_test
