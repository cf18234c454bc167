// SPDX-License-Identifier: Apache-2.0
//
// The characters of UTF-8 text, as templates see them: strings are counted, cut and stripped by
// characters. A byte that is no UTF-8 counts as one character.
#pragma once

#include <cstddef>
#include <string_view>

#include "nibble/core/config.hpp"
#include "nibble/core/utf8.hpp"
#include "nibble/text/unicode.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace chat {

using text::Character;
using text::first_character;

inline Character last_character(std::string_view text) noexcept {
  for (std::size_t n = 1; n <= 4 && n <= text.size(); ++n) {
    const std::string_view end = text.substr(text.size() - n);
    if (utf8_length(end) == n) return first_character(end);
  }
  return first_character(text.empty() ? text : text.substr(text.size() - 1));
}

constexpr bool is_ascii(char c) noexcept { return static_cast<unsigned char>(c) < 0x80; }

// How many bytes the first character of a text takes.
constexpr std::size_t first_size(std::string_view text) noexcept {
  const std::size_t size = is_ascii(text[0]) ? 1 : utf8_length(text.substr(0, 4));
  return size == 0 ? 1 : size;
}

// Where in the text the character with this index begins; its end if there are not so many.
constexpr std::size_t offset_of_character(std::string_view text, std::size_t index) noexcept {
  std::size_t at = 0;
  for (; index > 0 && at < text.size(); --index) at += first_size(text.substr(at));
  return at;
}

constexpr std::size_t count_characters(std::string_view text) noexcept {
  std::size_t n = 0;
  for (std::size_t at = 0; at < text.size(); ++n) at += first_size(text.substr(at));
  return n;
}

// White space as Python's str.isspace and the \s of its regular expressions have it.
inline bool is_space(const Character& c) noexcept {
  return c.is_in(text::kSpaces) || (c.code >= 0x1C && c.code <= 0x1F);
}
// Python's str.isprintable.
inline bool is_printable(const Character& c) noexcept {
  using text::CharClass;
  return c.code == ' ' ||
         !c.is_in(text::char_set(CharClass::other, CharClass::unassigned, CharClass::space));
}

inline std::string_view without_leading_space(std::string_view text) noexcept {
  while (!text.empty()) {
    const Character c = first_character(text);
    if (!is_space(c)) break;
    text.remove_prefix(c.size);
  }
  return text;
}
inline std::string_view without_trailing_space(std::string_view text) noexcept {
  while (!text.empty()) {
    const Character c = last_character(text);
    if (!is_space(c)) break;
    text.remove_suffix(c.size);
  }
  return text;
}

// Letters beyond ASCII keep their case.
constexpr char lower(char c) noexcept {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
}
constexpr char upper(char c) noexcept {
  return c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c;
}
constexpr bool is_digit(char c) noexcept { return c >= '0' && c <= '9'; }
// Part of a name or word. All characters beyond ASCII are taken for letters.
constexpr bool is_word(char c) noexcept {
  return lower(c) != upper(c) || is_digit(c) || c == '_' || static_cast<unsigned char>(c) >= 0x80;
}

}}}  // namespace nibble::NIBBLE_ABI::chat
