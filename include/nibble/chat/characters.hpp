// SPDX-License-Identifier: Apache-2.0
//
// The characters of UTF-8 text, as templates see them: strings are counted, cut and stripped by
// characters. A byte that is no UTF-8 counts as one character.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "nibble/core/config.hpp"
#include "nibble/core/utf8.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace chat {

struct Character {
  std::uint32_t code = 0xFFFD;  // of a byte that is no UTF-8: the replacement character
  std::size_t size = 1;         // in bytes
};

// `text` must not be empty.
constexpr Character first_character(std::string_view text) noexcept {
  const auto at = [&](std::size_t i) { return std::uint32_t{static_cast<unsigned char>(text[i])}; };
  const auto more = [&](std::size_t i) { return at(i) & 0x3F; };
  switch (utf8_length(text.substr(0, 4))) {
    case 1: return {at(0), 1};
    case 2: return {(at(0) & 0x1F) << 6 | more(1), 2};
    case 3: return {(at(0) & 0x0F) << 12 | more(1) << 6 | more(2), 3};
    case 4: return {(at(0) & 0x07) << 18 | more(1) << 12 | more(2) << 6 | more(3), 4};
    default: return {};
  }
}

constexpr Character last_character(std::string_view text) noexcept {
  for (std::size_t n = 1; n <= 4 && n <= text.size(); ++n) {
    const Character c = first_character(text.substr(text.size() - n));
    if (c.size == n && (n > 1 || c.code < 0x80)) return c;
  }
  return {};
}

constexpr bool is_ascii(char c) noexcept { return static_cast<unsigned char>(c) < 0x80; }

// Where in the text the character with this index begins; its end if there are not so many.
constexpr std::size_t offset_of_character(std::string_view text, std::size_t index) noexcept {
  std::size_t at = 0;
  for (; index > 0 && at < text.size(); --index)
    at += is_ascii(text[at]) ? 1 : first_character(text.substr(at)).size;
  return at;
}

constexpr std::size_t count_characters(std::string_view text) noexcept {
  std::size_t n = 0;
  for (std::size_t at = 0; at < text.size(); ++n)
    at += is_ascii(text[at]) ? 1 : first_character(text.substr(at)).size;
  return n;
}

// White space as Python's str.isspace and the \s of its regular expressions have it.
constexpr bool is_space(std::uint32_t c) noexcept {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

constexpr std::string_view without_leading_space(std::string_view text) noexcept {
  while (!text.empty() && is_space(first_character(text).code))
    text.remove_prefix(first_character(text).size);
  return text;
}
constexpr std::string_view without_trailing_space(std::string_view text) noexcept {
  while (!text.empty() && is_space(last_character(text).code))
    text.remove_suffix(last_character(text).size);
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
