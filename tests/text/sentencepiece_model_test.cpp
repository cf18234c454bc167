// SPDX-License-Identifier: Apache-2.0
#include "nibble/text/sentencepiece_model.hpp"

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/text/tokenizer.hpp"
#include "nibble/text/write_vocabulary.hpp"
#include "why.hpp"

namespace sentencepiece_model_test {

using namespace nibble;
using namespace nibble::text;

namespace {

// Protocol Buffers, as far as these files use them.
std::string varint(std::uint64_t value) {
  std::string out;
  for (; value >= 128; value >>= 7) out += static_cast<char>(value % 128 + 128);
  return out + static_cast<char>(value);
}
std::string number(std::uint64_t field, std::uint64_t value) {
  return varint(field << 3) + varint(value);
}
std::string bytes(std::uint64_t field, const std::string& text) {
  return varint(field << 3 | 2) + varint(text.size()) + text;
}
std::string piece(const std::string& text, float score, std::uint64_t type = 1) {
  std::string bits(sizeof score, '\0');
  std::memcpy(bits.data(), &score, sizeof score);
  const std::string content = bytes(1, text) + varint(2 << 3 | 5) + bits;
  return bytes(1, type == 1 ? content : content + number(3, type));
}

// Replaces "A" by "a" and a tab by a space. The root's children are at 32 ^ byte.
std::string table() {
  std::vector<std::uint32_t> units(512);
  units[0] = 32u << 10;
  const auto add = [&](std::uint32_t byte, std::uint32_t children, std::uint32_t replacement) {
    units[32 ^ byte] = (32 ^ byte ^ children) << 10 | 0x100 | byte;
    units[children] = 0x80000000u | replacement;
  };
  add('A', 256, 0);
  add('\t', 192, 2);
  const auto size = static_cast<std::uint32_t>(units.size() * sizeof(std::uint32_t));
  std::string out(sizeof size + size, '\0');
  std::memcpy(out.data(), &size, sizeof size);
  std::memcpy(out.data() + sizeof size, units.data(), size);
  return out + std::string("a\0 \0", 4);
}

// The normalizer of Llama's models.
const std::string kIdentity = bytes(1, "identity") + number(3, 0) + number(4, 0);

std::string model(std::uint64_t kind = 2, const std::string& normalizer = kIdentity,
                  const std::string& trainer = "") {
  std::string all = piece("<unk>", 0, 2) + piece("<s>", 0, 3) + piece("</s>", 0, 3);
  for (unsigned byte = 0; byte < 256; ++byte) {
    const char* const digits = "0123456789ABCDEF";
    all += piece({'<', '0', 'x', digits[byte / 16], digits[byte % 16], '>'}, 0, 6);
  }
  all += piece("a", -1) + piece("b", -2) + piece("ab", -0.5f);
  // Settings, and fields that are not known here, of each wire type.
  all += bytes(2, number(3, kind) + number(41, 1) + number(42, 2) + number(43, ~std::uint64_t{0}) +
                      varint(7 << 3 | 1) + std::string(8, 'x') + bytes(9, "x") + trainer);
  return all + bytes(3, normalizer);
}

using Ids = std::vector<std::int32_t>;

// The ids of 256 byte pieces are their values + 3.
enum : std::int32_t { a = 259, b, ab, space, space_a };
Ids encode(std::uint64_t kind, const std::string& normalizer, const std::string& text) {
  // (Pieces may stand anywhere in a file.)
  const std::string more = piece("\u2581", -3) + piece("\u2581a", -2.5f);
  auto vocabulary = read_sentencepiece_model(model(kind, normalizer) + more);
  REQUIRE_MESSAGE(vocabulary, test::why(vocabulary));
  const auto of = [&](Vocabulary v) {
    const auto ids = Tokenizer(std::move(v)).encode(text, {.add_bos = false});
    REQUIRE_MESSAGE(ids, test::why(ids));
    return *ids;
  };
  io::GgufWriter writer;
  write_vocabulary(*vocabulary, writer);
  const auto written = writer.to_bytes();
  REQUIRE_MESSAGE(written, test::why(written));
  const auto file = io::Gguf::parse(*written, "made.gguf");
  REQUIRE_MESSAGE(file, test::why(file));
  auto read = Vocabulary::from_gguf(*file);
  REQUIRE_MESSAGE(read, test::why(read));
  const Ids ids = of(*std::move(vocabulary));
  CHECK(of(*std::move(read)) == ids);
  return ids;
}

}  // namespace

TEST_CASE("a SentencePiece model: pieces, settings, added tokens") {
  const auto vocabulary = read_sentencepiece_model(
      model(), R"({"add_bos_token":true,"add_eos_token":true,"bos_token":{"content":"<s>"},)"
               R"("added_tokens_decoder":{"0":{"content":"<unk>","special":true},)"
               R"("264":{"content":"<|end|>","special":true},"263":{"content":"tool"}}})");
  REQUIRE_MESSAGE(vocabulary, test::why(vocabulary));
  CHECK(vocabulary->size() == 265);
  CHECK(vocabulary->text(261) == "ab");
  CHECK(vocabulary->score(261) == -0.5f);
  CHECK(vocabulary->type(0) == PieceType::unknown);
  CHECK(vocabulary->type(1) == PieceType::control);
  CHECK(vocabulary->type(259) == PieceType::normal);
  CHECK(vocabulary->byte_token(0xAF) == 3 + 0xAF);
  CHECK(vocabulary->text(262) == "[PAD262]");
  CHECK(vocabulary->type(262) == PieceType::unused);
  CHECK(vocabulary->text(263) == "tool");
  CHECK(vocabulary->type(263) == PieceType::user_defined);
  CHECK(vocabulary->type(264) == PieceType::control);
  const VocabularySettings& settings = vocabulary->settings();
  CHECK(settings.kind == VocabularyKind::spm);
  CHECK(settings.bos == 1);
  CHECK(settings.eos == 2);
  CHECK(settings.unk == 0);
  CHECK(settings.pad == kNoToken);
  CHECK(settings.add_bos);
  CHECK(settings.add_eos);
  CHECK_FALSE(settings.add_space_prefix);
}

TEST_CASE("text is normalized as the model says, with both kinds, also through GGUF") {
  for (const std::uint64_t kind : {std::uint64_t{1}, std::uint64_t{2}}) {
    CAPTURE(kind);
    // As they are by default: spaces are merged, and one is put before the text.
    const std::string usual = bytes(2, table());
    CHECK(encode(kind, usual, "a  \tAb ") == Ids{space_a, space, ab});
    CHECK(encode(kind, usual, "  A") == Ids{space_a});
    CHECK(encode(kind, usual, " \t ") == Ids{});
    CHECK(encode(kind, usual, "A\xFF") == Ids{space_a, 3 + 0xEF, 3 + 0xBF, 3 + 0xBD});
    CHECK(encode(kind, "", "a  b ") == Ids{space_a, space, b});
    CHECK(encode(kind, bytes(2, table()) + number(3, 0), " \ta") == Ids{a});
    CHECK(encode(kind, number(4, 0), " a  b ") == Ids{space, space_a, space, space, b, space});
    CHECK(encode(kind, kIdentity, "  ab\tA") == Ids{space, space, ab, 3 + '\t', 3 + 'A'});
  }
}

TEST_CASE("unknown characters in a row are one token, where there are no byte pieces") {
  const std::string pieces = piece("<unk>", 0, 2) + piece("a", -1) + piece("b", -2);
  for (const std::uint64_t kind : {std::uint64_t{1}, std::uint64_t{2}}) {
    auto vocabulary = read_sentencepiece_model(
        pieces +
        bytes(2, number(3, kind) + number(41, ~std::uint64_t{0}) + number(42, ~std::uint64_t{0})) +
        bytes(3, kIdentity));
    REQUIRE_MESSAGE(vocabulary, test::why(vocabulary));
    const auto ids = Tokenizer(*std::move(vocabulary)).encode("xyazb");
    REQUIRE_MESSAGE(ids, test::why(ids));
    CHECK(*ids == Ids{0, 1, 0, 2});
  }
}

TEST_CASE("tokenizer_config.json names the tokens with a role") {
  const auto vocabulary = read_sentencepiece_model(
      model(), R"({"eos_token":"<|end|>","pad_token":{"content":"<unk>"},"bos_token":"none",)"
               R"("add_bos_token":null,"add_eos_token":true,"added_tokens_decoder":)"
               R"({"262":{"content":"<|end|>","special":true}}})");
  REQUIRE_MESSAGE(vocabulary, test::why(vocabulary));
  CHECK(vocabulary->settings().eos == 262);
  CHECK(vocabulary->settings().bos == 1);
  CHECK(vocabulary->settings().pad == 0);
  CHECK(vocabulary->settings().add_bos);
  CHECK(vocabulary->settings().add_eos);
}

TEST_CASE("what is no SentencePiece model is an error") {
  const auto error = [](const std::string& file, const std::string& config = "") {
    const auto vocabulary = read_sentencepiece_model(file, config);
    return vocabulary ? "" : vocabulary.error().message;
  };
  CHECK(error(model()) == "");
  CHECK_FALSE(error("").empty());
  CHECK(error("PK") == "the vocabulary has no pieces");
  CHECK(error(std::string(20, '\xff')) == "not a SentencePiece model");
  CHECK(error(piece("a", 0, 9)) == "a piece of type 9");
  CHECK(error(model(3)).starts_with("a SentencePiece model of kind 3"));
  const std::string whole = model();
  int n_good = 0;
  for (std::size_t n = 0; n < whole.size(); ++n)
    n_good += error(whole.substr(0, n)).empty() ? 1 : 0;
  CHECK(n_good <= 264);  // between two fields: pieces are missing
  const auto added = [&](const std::string& tokens) {
    return error(model(), "{\"added_tokens_decoder\":" + tokens + "}");
  };
  CHECK(added("{\"3000000000\":{\"content\":\"x\"}}") != "");
  CHECK(added("{\"x\":{\"content\":\"x\"}}") != "");
  CHECK(added("{\"12abc\":{\"content\":\"x\"}}") != "");
  CHECK(added("{\"12\":{\"content\":\"x\"}}") == "");
  CHECK(added("{\"300\":{}}") != "");
  CHECK(added("[]") != "");
  const auto has = [](const std::string& text, const char* part) {
    return text.find(part) != text.npos;
  };
  CHECK(has(error(model(), R"({"add_bos_token":"yes"})"), "tokenizer_config.json"));
  CHECK(error(model(), "{} {}") != "");
  CHECK(has(error(model(1, number(5, 0))), "escape_whitespaces"));
  CHECK(has(error(model(1, "", number(24, 1))), "treat_whitespace_as_suffix"));
}

}  // namespace sentencepiece_model_test
