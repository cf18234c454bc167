// SPDX-License-Identifier: Apache-2.0
//
// Any vocabulary, text and ids: nothing crashes, and results that must agree do. The first byte of
// the input selects options, the second the kind of vocabulary. Then come pieces (type, score,
// length, text) until a type above 6, then merges (two positions of pieces) for BPE until one is
// beyond the pieces, then the text.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iterator>
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

// The characters that byte-level BPE writes for bytes.
const std::vector<std::string>& byte_characters() {
  static const std::vector<std::string> characters = [] {
    std::vector<std::string> out(256);
    for (std::size_t i = 0; i < 256; ++i) {
      const char byte = static_cast<char>(i);
      append_byte_characters(out[i], {&byte, 1});
    }
    return out;
  }();
  return characters;
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
    if (!t.vocabulary().is_byte_level()) {
      for (std::size_t at; (at = expected.find(kSpmSpace)) != expected.npos;)
        expected.replace(at, kSpmSpace.size(), " ");
    }
    require(decoded == expected);
  }
  StreamDecoder stream(t);
  std::string streamed;
  for (const std::int32_t id : *ids) streamed += stream.push(id);
  streamed += stream.flush();
  require(streamed == decoded);
}

// The kind, the pre-tokenizer and the flags that the byte `choice` selects.
VocabularySettings settings_of(unsigned choice) {
  VocabularySettings settings;
  if (choice < std::size(detail::kPreTokenizers)) {
    settings.kind = VocabularyKind::bpe;
    settings.pre = detail::kPreTokenizers[choice].name;
  } else if (choice >= 192) {
    settings.kind = choice < 224 ? VocabularyKind::wordpiece : VocabularyKind::unigram;
  }
  settings.ignore_merges = settings.lower_case = settings.merges_spaces = (choice & 1) != 0;
  settings.strip_accents = settings.prefix_once = settings.keeps_first_space = (choice & 2) != 0;
  settings.prefix_unless_space = settings.splits_spaces = (choice & 4) != 0;
  settings.clean_text = settings.fuse_unknown = (choice & 8) != 0;
  if (settings.merges_spaces) settings.white_space = static_cast<WhiteSpace>(choice / 16 % 3);
  return settings;
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
  VocabularySettings settings = settings_of(take());
  const bool is_bpe = settings.kind == VocabularyKind::bpe;
  const bool is_byte_level = is_bpe && find_pre_tokenizer(settings.pre)->byte_level;

  std::vector<Piece> pieces;
  if (complete) {
    pieces = {{"<unk>", 0, PieceType::unknown},
              {"<s>", 0, PieceType::control},
              {"</s>", 0, PieceType::control},
              {kSpmSpace, -1, PieceType::normal}};
    for (const std::string& name : is_byte_level ? byte_characters() : byte_names())
      pieces.push_back({name, 0, is_byte_level ? PieceType::normal : PieceType::byte});
  }
  bool lossless = complete && (is_bpe || settings.kind == VocabularyKind::spm);
  for (unsigned type; (type = take()) <= 6;) {
    const float score = static_cast<float>(static_cast<int>(take()) - 128);
    const std::string_view text = input.substr(0, take() % 16);
    input.remove_prefix(text.size());
    pieces.push_back({text, score, static_cast<PieceType>(type)});
    // What makes a round trip lossy: pieces that replace those of the complete set, and special
    // tokens, after which a space is added.
    lossless = lossless && (type == 1 || type == 5) && !text.empty() && text[0] != '<';
  }
  for (Piece& piece : pieces) piece.strip_after = piece.strip_before = (choice & 4) != 0;
  settings.add_space_prefix = (choice & 2) != 0;
  if ((choice & 8) != 0) settings.unk = kNoToken;
  if ((choice & 16) != 0) settings.bos = settings.eos = kNoToken;
  settings.compose = (choice & 128) != 0;
  lossless = lossless && !settings.compose;
  if (!is_byte_level)
    lossless = lossless && !settings.merges_spaces && !settings.prefix_unless_space;

  std::vector<TextMerge> merges;
  std::vector<std::string> unions;
  unions.reserve(256);
  while (is_bpe && unions.size() < 256) {
    const std::size_t left = take(), right = take();
    if (left >= pieces.size() || right >= pieces.size()) break;
    merges.push_back({pieces[left].text, pieces[right].text});
    std::string both(pieces[left].text);
    unions.push_back(both.append(pieces[right].text));
    pieces.push_back({unions.back(), 0, PieceType::normal});
  }

  auto vocabulary = Vocabulary::make(pieces, settings, merges);
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
