// SPDX-License-Identifier: Apache-2.0
//
// What SentencePiece, or a tokenizer.json that says the same in its own parts, does to a text
// before it is encoded: the table of the vocabulary replaces characters, spaces are merged or
// dropped where the vocabulary says so, and become U+2581; one may be put before the text.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>

#include "nibble/core/config.hpp"
#include "nibble/core/utf8.hpp"
#include "nibble/text/characters_map.hpp"
#include "nibble/text/unicode.hpp"
#include "nibble/text/vocabulary.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text {

// Appends `text` with U+2581 in place of spaces.
inline void append_escaped(std::string& out, std::string_view text) {
  for (std::size_t at; (at = text.find(' ')) != text.npos; text.remove_prefix(at + 1))
    out.append(text.substr(0, at)).append(kSpmSpace);
  out.append(text);
}

// Normalizes texts one after the other; the buffers are reused.
class SpmNormalizer {
 public:
  // `settings` must outlive the normalizer.
  explicit SpmNormalizer(const VocabularySettings& settings) noexcept
      : settings_(settings), map_(settings.characters_map) {}

  // The normalized text, valid until the next call. `space_prefix`: a space is wanted before it.
  // Bytes that are no UTF-8 become U+FFFD with unigram and where there is a table; else they stay.
  // Time O(n).
  std::string_view normalize(std::string_view text, bool space_prefix) {
    if (settings_.kind == VocabularyKind::unigram || !settings_.characters_map.empty())
      text = mapped(text);
    if (settings_.merges_spaces) text = without_ends(text);
    text_.clear();
    if (text.empty() && (settings_.merges_spaces || settings_.kind == VocabularyKind::unigram))
      return text_;
    const bool begins_with_space = text.starts_with(' ') || text.starts_with(kSpmSpace);
    if (space_prefix && !(settings_.prefix_unless_space && begins_with_space))
      text_.append(kSpmSpace);
    if (settings_.merges_spaces) {
      append_merged(text);
    } else {
      append_escaped(text_, text);
    }
    return text_;
  }

 private:
  // The text with the replacements of the table.
  std::string_view mapped(std::string_view text) {
    mapped_.clear();
    while (!text.empty()) {
      const CharactersMap::Match match = map_.find(text);
      std::string_view replacement = match.replacement;
      std::size_t size = match.size;
      if (size == 0) {
        size = utf8_length(text);
        replacement = size == 0 ? std::string_view("\xEF\xBF\xBD") : text.substr(0, size);
        size = (std::max)(size, std::size_t{1});
      }
      mapped_.append(replacement);
      text.remove_prefix(size);
    }
    return mapped_;
  }

  std::string_view without_ends(std::string_view text) const noexcept {
    const bool all = settings_.white_space != WhiteSpace::spaces;
    if (!settings_.keeps_last_space) {
      const std::size_t last = text.find_last_not_of(' ');
      text = all ? without_trailing_space(text) : text.substr(0, last + 1);  // npos + 1 is 0
    }
    if (!settings_.keeps_first_space) {
      const std::size_t n_spaces = (std::min)(text.find_first_not_of(' '), text.size());
      text = all ? without_leading_space(text) : text.substr(n_spaces);
    }
    return text;
  }

  void append_merged(std::string_view text) {
    const bool all = settings_.white_space == WhiteSpace::everywhere;
    bool is_behind_space = false;
    for (Character c; (c = first_character(text)).size > 0; text.remove_prefix(c.size)) {
      const bool is_space = c.code == ' ' || (all && c.is_in(kSpaces));
      if (!is_space) {
        // (A word that is cut out at white space may have the U+2581 that it begins with.)
        if (is_behind_space && !(all && c.code == 0x2581)) text_.append(kSpmSpace);
        text_.append(text.substr(0, c.size));
      }
      is_behind_space = is_space;
    }
    if (is_behind_space) text_.append(kSpmSpace);
  }

  const VocabularySettings& settings_;
  CharactersMap map_;
  std::string mapped_, text_;
};

}}}  // namespace nibble::NIBBLE_ABI::text
