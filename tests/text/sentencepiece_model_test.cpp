// SPDX-License-Identifier: Apache-2.0
#include "nibble/text/sentencepiece_model.hpp"

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "why.hpp"

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

std::string model(std::uint64_t kind = 2) {
  std::string all = piece("<unk>", 0, 2) + piece("<s>", 0, 3) + piece("</s>", 0, 3);
  for (unsigned byte = 0; byte < 256; ++byte) {
    const char* const digits = "0123456789ABCDEF";
    all += piece({'<', '0', 'x', digits[byte / 16], digits[byte % 16], '>'}, 0, 6);
  }
  all += piece("a", -1) + piece("b", -2) + piece("ab", -0.5f);
  // Settings, and fields that are not known here, of each wire type.
  all += bytes(2, number(3, kind) + number(41, 1) + number(42, 2) + number(43, ~std::uint64_t{0}) +
                      varint(7 << 3 | 1) + std::string(8, 'x') + bytes(9, "x"));
  return all + bytes(3, bytes(1, "identity") + number(3, 0));
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
  CHECK(added("{\"300\":{}}") != "");
  CHECK(added("[]") != "");
}
