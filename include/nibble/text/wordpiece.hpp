// SPDX-License-Identifier: Apache-2.0
//
// BERT's WordPiece, for text without special tokens. The text is cleaned and cut into words; each
// is spelled by the longest piece that it begins with, then the longest for what follows, and so
// on. As in GGUF, the pieces that begin words have U+2581 before them, and others have nothing
// (instead of
// "##").
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/core/config.hpp"
#include "nibble/core/utf8.hpp"
#include "nibble/text/normalization.hpp"
#include "nibble/text/piece_trie.hpp"
#include "nibble/text/unicode.hpp"
#include "nibble/text/vocabulary.hpp"
#include "nibble/text/word_memory.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text {

// Encodes texts one after the other; the buffers are reused, and words are remembered.
class WordPieceEncoder {
 public:
  // `pieces` are those of the vocabulary that text may become; `expected` bytes are going to be
  // encoded.
  WordPieceEncoder(const Vocabulary& vocabulary, const PieceTrie& pieces, std::size_t expected)
      : vocabulary_(vocabulary), pieces_(pieces), memory_(expected) {}

  // Appends the ids of `text`, which may be any bytes; those that are no UTF-8 are dropped, as are
  // controls (without clean_text, neither is). A word that pieces cannot spell, or with more than
  // kMaxCharacters, is one unknown token. Time O(n).
  void encode(std::string_view text, std::vector<std::int32_t>& ids) {
    const VocabularySettings& settings = vocabulary_.settings();
    if (settings.strip_accents) text = normalizer_.decomposed(text);
    begin_word();
    for (Character c; (c = first_character(text)).size > 0; text.remove_prefix(c.size)) {
      if (settings.clean_text && is_dropped(c)) continue;
      if (settings.strip_accents && c.type == CharClass::mark) continue;
      const bool is_alone = is_sign(c) || (settings.split_chinese && is_chinese(c.code));
      if (is_alone || c.is_in(kSpaces)) end_word(ids);
      if (c.is_in(kSpaces)) continue;
      if (settings.lower_case && c.code == 0x130) {  // the only one that becomes two characters
        append('i');
        append(0x307);
      } else {
        append(settings.lower_case ? lower_case(c.code) : c.code);
      }
      if (is_alone) end_word(ids);
    }
    end_word(ids);
  }

 private:
  static constexpr std::size_t kMaxCharacters = 100;  // in a word

  static bool is_dropped(const Character& c) noexcept {
    if (c.code == 0xFFFD || c.code == 0xB || c.code == 0xC || c.code == 0x85) return true;
    return c.type == CharClass::other;
  }
  static bool is_sign(const Character& c) noexcept {
    return c.type == CharClass::punctuation || (c.type == CharClass::symbol && c.code < 0x80);
  }
  // The ranges of the original. (A misprint there leaves out U+2B820 to U+2B91F.)
  static bool is_chinese(char32_t c) noexcept {
    return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) ||
           (c >= 0x20000 && c <= 0x2A6DF) || (c >= 0x2A700 && c <= 0x2B81F) ||
           (c >= 0x2B920 && c <= 0x2CEAF) || (c >= 0xF900 && c <= 0xFAFF) ||
           (c >= 0x2F800 && c <= 0x2FA1F);
  }

  void begin_word() {
    word_.assign(kSpmSpace);
    n_characters_ = 0;
  }
  void append(char32_t code) {
    append_utf8(word_, code);
    ++n_characters_;
  }
  void end_word(std::vector<std::int32_t>& ids) {
    if (n_characters_ > kMaxCharacters) {
      ids.push_back(vocabulary_.unknown());
    } else if (n_characters_ > 0) {
      memory_.append(word_, ids, [&](std::string_view word) { spell(word, ids); });
    }
    begin_word();
  }

  void spell(std::string_view word, std::vector<std::int32_t>& ids) {
    const std::size_t n = ids.size();
    for (std::string_view rest = word; !rest.empty();) {
      // U+2581 inside a word is not the beginning of another.
      const bool may_match = rest.size() == word.size() || !rest.starts_with(kSpmSpace);
      const std::int32_t id = may_match ? pieces_.longest_prefix(vocabulary_, rest) : kNoToken;
      if (id == kNoToken) {
        ids.resize(n);
        ids.push_back(vocabulary_.unknown());
        return;
      }
      ids.push_back(id);
      rest.remove_prefix(vocabulary_.text(id).size());
    }
  }

  const Vocabulary& vocabulary_;
  const PieceTrie& pieces_;
  WordMemory memory_;
  Normalizer normalizer_;
  std::string word_;
  std::size_t n_characters_ = 0;  // in word_
};

}}}  // namespace nibble::NIBBLE_ABI::text
