// SPDX-License-Identifier: Apache-2.0
//
// A vocabulary of 512 hand-made pieces, and the bytes of GGUF files that contain vocabularies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/text/tokenizer.hpp"

namespace text_fixtures {

// Like nibble::text::Piece, but owns its text.
struct OwnedPiece {
  std::string text;
  float score;
  nibble::text::PieceType type;
};

inline std::vector<nibble::text::Piece> views(const std::vector<OwnedPiece>& pieces) {
  std::vector<nibble::text::Piece> out;
  for (const OwnedPiece& piece : pieces) out.push_back({piece.text, piece.score, piece.type});
  return out;
}

// <unk> <s> </s>, the 256 bytes, U+2581, letters, a few accented and wide characters, and prefixes
// of words, 512 pieces in all. Later pieces have lower scores.
inline std::vector<OwnedPiece> small_pieces() {
  using nibble::text::PieceType;
  std::vector<OwnedPiece> pieces = {{"<unk>", 0, PieceType::unknown},
                                    {"<s>", 0, PieceType::control},
                                    {"</s>", 0, PieceType::control}};
  for (int byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", static_cast<unsigned>(byte));
    pieces.push_back({name, 0, PieceType::byte});
  }
  std::set<std::string> seen;
  const auto add = [&](const std::string& text) {
    if (pieces.size() < 512 && seen.insert(text).second)
      pieces.push_back({text, -static_cast<float>(pieces.size() - 259), PieceType::normal});
  };
  for (const char* text : {"\xE2\x96\x81", "\xE2\x96\x81\xE2\x96\x81", "é", "ü", "你", "好", "🚀"})
    add(text);
  for (char c = 'a'; c <= 'z'; ++c) add(std::string(1, c));
  const char* const words[] = {
      "the",   "there", "then",   "turn",     "light",   "lights", "kitchen", "little", "living",
      "room",  "off",   "on",     "percent",  "play",    "please", "once",    "upon",   "time",
      "timer", "was",   "girl",   "named",    "lily",    "she",    "loved",   "banana", "bananas",
      "to",    "set",   "office", "tomorrow", "wake",    "me",     "minutes", "hours",  "alarm",
      "for",   "list",  "and",    "rice",     "tomatoes"};
  for (const char* word : words) {
    const std::string text = word;
    for (std::size_t n = 2; n <= text.size(); ++n) add(text.substr(0, n));
    for (std::size_t n = 1; n <= text.size(); ++n) add("\xE2\x96\x81" + text.substr(0, n));
  }
  return pieces;
}

inline nibble::text::Vocabulary small_vocabulary() {
  const std::vector<OwnedPiece> pieces = small_pieces();
  auto vocabulary = nibble::text::Vocabulary::make(views(pieces), {});
  return *std::move(vocabulary);
}

inline nibble::text::Tokenizer small_tokenizer() {
  return nibble::text::Tokenizer(small_vocabulary());
}

// A byte-level vocabulary: the token of each byte has its value; merges can be added.
struct BpeParts {
  std::vector<OwnedPiece> pieces;
  std::vector<std::pair<std::string, std::string>> merges;

  BpeParts() {
    for (int byte = 0; byte < 256; ++byte) {
      const char c = static_cast<char>(byte);
      pieces.push_back({"", 0, nibble::text::PieceType::normal});
      nibble::text::append_byte_characters(pieces.back().text, {&c, 1});
    }
  }
  // Adds this merge, and the piece that it makes.
  void add(const std::string& left, const std::string& right) {
    std::string both = left;
    both += right;
    pieces.push_back({both, 0, nibble::text::PieceType::normal});
    merges.emplace_back(left, right);
  }
  static nibble::text::VocabularySettings settings() {
    nibble::text::VocabularySettings settings;
    settings.kind = nibble::text::VocabularyKind::bpe;
    settings.pre = "gpt-2";
    settings.bos = settings.eos = settings.unk = nibble::text::kNoToken;
    return settings;
  }
  nibble::Result<nibble::text::Vocabulary> try_make(
      const nibble::text::VocabularySettings& settings) const {
    std::vector<nibble::text::TextMerge> views_of_merges;
    for (const auto& [left, right] : merges) views_of_merges.push_back({left, right});
    return nibble::text::Vocabulary::make(views(pieces), settings, views_of_merges);
  }
  nibble::text::Vocabulary make(
      const nibble::text::VocabularySettings& settings = BpeParts::settings()) const {
    auto vocabulary = try_make(settings);
    return *std::move(vocabulary);
  }
};

// Random texts over an alphabet of fragments, long enough for all kinds of merges.
inline std::string random_text(std::mt19937& random, std::size_t n_fragments) {
  static const std::vector<std::string> fragments = {" ",
                                                     "  ",
                                                     "a",
                                                     "n",
                                                     "ban",
                                                     "ana",
                                                     "the",
                                                     "li",
                                                     "ly",
                                                     "\n",
                                                     "\t",
                                                     "é",
                                                     "你",
                                                     "🚀",
                                                     "ß",
                                                     "\xCC\x81",
                                                     "0",
                                                     "<",
                                                     ">",
                                                     std::string("\0", 1),
                                                     "😶‍🌫️",
                                                     "\xFF",
                                                     "\xE2\x96",
                                                     "\xF0\x9F",
                                                     "\xC3",
                                                     "\x80",
                                                     "\xED\xA0\x80",
                                                     "\xC0\xAF",
                                                     "room",
                                                     "turn off"};
  std::string text;
  for (std::size_t i = 0; i < n_fragments; ++i) text += fragments[random() % fragments.size()];
  return text;
}

inline std::string random_bytes(std::mt19937& random, std::size_t n) {
  std::string text(n, '\0');
  for (char& c : text) c = static_cast<char>(random() & 255);
  return text;
}

// The result of a round trip through an SPM vocabulary: U+2581 becomes a space.
inline std::string spaces_for_u2581(std::string_view text) {
  using nibble::text::kSpmSpace;
  std::string out;
  for (std::size_t at; (at = text.find(kSpmSpace)) != text.npos;) {
    out.append(text.substr(0, at)).push_back(' ');
    text.remove_prefix(at + kSpmSpace.size());
  }
  return out.append(text);
}

}  // namespace text_fixtures
