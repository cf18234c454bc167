// SPDX-License-Identifier: Apache-2.0
//
// Any vocabulary, text and ids: nothing crashes, and results that must agree do. The first byte of
// the input selects options. Then come pieces (type, score, length, text) until a type above 6,
// then the text.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/text/stream_decoder.hpp"
#include "nibble/text/tokenizer.hpp"

using namespace nibble::text;

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

// The 256 byte pieces and U+2581, so that every text can be spelled.
const std::vector<std::string>& byte_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> out;
    const char* hex = "0123456789ABCDEF";
    for (int i = 0; i < 256; ++i)
      out.push_back(std::string("<0x") + hex[i >> 4] + hex[i & 15] + ">");
    return out;
  }();
  return names;
}

void use(const Tokenizer& t, std::string_view text, bool lossless, EncodeOptions options) {
  const auto ids = t.encode(text, options);
  if (!ids) return;
  for (const std::int32_t id : *ids) {
    require(t.vocabulary().contains(id));
    if (!options.parse_special && id != t.vocabulary().settings().unk &&
        t.vocabulary().type(id) == PieceType::control)
      require(id == t.vocabulary().settings().bos || id == t.vocabulary().settings().eos);
  }
  const std::string decoded = t.decode(*ids);
  if (lossless) {
    std::string expected(text);
    for (std::size_t at; (at = expected.find(kSpmSpace)) != expected.npos;)
      expected.replace(at, kSpmSpace.size(), " ");
    require(decoded == expected);
  }
  StreamDecoder stream(t);
  std::string streamed;
  for (const std::int32_t id : *ids) streamed += stream.push(id);
  streamed += stream.flush();
  require(streamed == decoded);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string_view input(reinterpret_cast<const char*>(data), size);
  const auto take = [&input]() -> unsigned {
    if (input.empty()) return 255;
    const unsigned byte = static_cast<unsigned char>(input[0]);
    input.remove_prefix(1);
    return byte;
  };
  const unsigned choice = take();
  const bool complete = (choice & 1) != 0;

  std::vector<Piece> pieces;
  if (complete) {
    pieces = {{"<unk>", 0, PieceType::unknown},
              {"<s>", 0, PieceType::control},
              {"</s>", 0, PieceType::control},
              {kSpmSpace, -1, PieceType::normal}};
    for (const std::string& name : byte_names()) pieces.push_back({name, 0, PieceType::byte});
  }
  bool lossless = complete;
  for (unsigned type; (type = take()) <= 6;) {
    const float score = static_cast<float>(static_cast<int>(take()) - 128);
    const std::string_view text = input.substr(0, take() % 16);
    input.remove_prefix(text.size());
    pieces.push_back({text, score, static_cast<PieceType>(type)});
    // What makes a round trip lossy: pieces that replace those of the complete set, and special
    // tokens, after which a space is added.
    lossless = lossless && (type == 1 || type == 5) && !text.empty() && text[0] != '<';
  }
  VocabularySettings settings;
  settings.add_space_prefix = (choice & 2) != 0;
  for (Piece& piece : pieces) piece.strip_after = (choice & 4) != 0;
  if ((choice & 8) != 0) settings.unk = kNoToken;
  if ((choice & 16) != 0) settings.bos = settings.eos = kNoToken;

  auto vocabulary = Vocabulary::make(pieces, settings);
  if (!vocabulary) return 0;
  const Tokenizer t(*std::move(vocabulary));
  use(t, input, lossless, {});
  use(t, input, lossless && input.find('<') == input.npos,
      {.add_bos = true, .add_eos = true, .parse_special = true});

  // Ids that no text encodes to.
  std::vector<std::int32_t> ids;
  for (const char c : input) ids.push_back(static_cast<signed char>(c) * 3);
  const DecodeOptions options = {.show_special = (choice & 32) != 0,
                                 .at_start = (choice & 64) != 0};
  StreamDecoder stream(t, options);
  std::string streamed;
  for (const std::int32_t id : ids) streamed += stream.push(id);
  streamed += stream.flush();
  require(streamed == t.decode(ids, options));
  return 0;
}
