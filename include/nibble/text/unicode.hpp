// SPDX-License-Identifier: Apache-2.0
//
// The characters of a text, with what Unicode says about them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "nibble/core/config.hpp"
#include "nibble/core/utf8.hpp"
#include "nibble/text/unicode_classes.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text {

// General categories, where they matter; white space is a class of its own.
enum class CharClass : std::uint8_t {
  other,  // controls, formats, private use
  unassigned,
  space,  // the property White_Space
  upper,
  lower,
  title,
  modifier,
  letter,  // without case
  mark,    // nonspacing
  spacing_mark,
  digit,  // decimal
  letter_number,
  number,  // other numbers
  punctuation,
  symbol,
  none,  // no character: the end of the text
};

// A set of classes, one bit each.
using CharSet = std::uint32_t;
template <class... Classes>
constexpr CharSet char_set(Classes... classes) noexcept {
  return (... | (CharSet{1} << static_cast<unsigned>(classes)));
}
inline constexpr CharSet kCharacters = char_set(CharClass::none) - 1;  // all of them
inline constexpr CharSet kSpaces = char_set(CharClass::space);
inline constexpr CharSet kUncased =
    char_set(CharClass::modifier, CharClass::letter, CharClass::mark, CharClass::spacing_mark);
inline constexpr CharSet kMarks = char_set(CharClass::mark, CharClass::spacing_mark);
inline constexpr CharSet kCased = char_set(CharClass::upper, CharClass::lower, CharClass::title);
inline constexpr CharSet kLetters = (kCased | kUncased) & ~kMarks;
inline constexpr CharSet kDigits = char_set(CharClass::digit);
inline constexpr CharSet kNumbers = kDigits | char_set(CharClass::letter_number, CharClass::number);
inline constexpr CharSet kSigns = char_set(CharClass::punctuation, CharClass::symbol);

namespace detail {

constexpr CharClass search_class(char32_t code) noexcept {
  std::size_t first = 0, end = std::size(kClassRuns);  // the first run begins with 0
  while (end - first > 1) {
    const std::size_t middle = first + (end - first) / 2;
    (kClassRuns[middle] >> 4 <= code ? first : end) = middle;
  }
  return static_cast<CharClass>(kClassRuns[first] & 15);
}

NIBBLE_HIDDEN inline constexpr std::array<CharClass, 128> kAsciiClasses = [] {
  std::array<CharClass, 128> classes{};
  for (char32_t code = 0; code < 128; ++code) classes[code] = search_class(code);
  return classes;
}();

}  // namespace detail

constexpr CharClass class_of(char32_t code) noexcept {
  return code < 128 ? detail::kAsciiClasses[code] : detail::search_class(code);
}

struct Character {
  char32_t code = 0;
  std::uint32_t size = 0;  // in bytes
  CharClass type = CharClass::none;

  constexpr bool is_in(CharSet set) const noexcept {
    return (set >> static_cast<unsigned>(type) & 1) != 0;
  }
  constexpr bool is_newline() const noexcept { return code == '\n' || code == '\r'; }
};

namespace detail {

// The first character of `text`, which begins with a byte beyond ASCII.
NIBBLE_COLD inline Character decode_character(std::string_view text) noexcept {
  const std::size_t size = utf8_length(text);
  if (size == 0) return {0xFFFD, 1, CharClass::symbol};
  char32_t code = static_cast<unsigned char>(text[0]) & (0x7Fu >> size);
  for (std::size_t i = 1; i < size; ++i)
    code = code << 6 | (static_cast<unsigned char>(text[i]) & 0x3Fu);
  return {code, static_cast<std::uint32_t>(size), search_class(code)};
}

}  // namespace detail

// The first character of `text`. A byte that is no UTF-8 counts as U+FFFD; an empty text has a
// character of no class and no size.
inline Character first_character(std::string_view text) noexcept {
  if (text.empty()) return {};
  const auto lead = static_cast<unsigned char>(text[0]);
  if (lead < 0x80) return {lead, 1, detail::kAsciiClasses[lead]};
  return detail::decode_character(text);
}

// `text` without the white space at its beginning, or at its end.
inline std::string_view without_leading_space(std::string_view text) noexcept {
  for (Character c; (c = first_character(text)).is_in(kSpaces);) text.remove_prefix(c.size);
  return text;
}
inline std::string_view without_trailing_space(std::string_view text) noexcept {
  while (!text.empty()) {
    std::size_t size = 1;  // of the last character: its first byte is no continuation
    while (size < 4 && size < text.size() && (text[text.size() - size] & 0xC0) == 0x80) ++size;
    const Character c = first_character(text.substr(text.size() - size));
    if (c.size != size || !c.is_in(kSpaces)) break;
    text.remove_suffix(size);
  }
  return text;
}

}}}  // namespace nibble::NIBBLE_ABI::text
