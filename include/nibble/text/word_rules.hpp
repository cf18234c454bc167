// SPDX-License-Identifier: Apache-2.0
//
// Cuts text into words as the regular expressions of byte-level BPE do, without an engine for them.
// The expressions of most families are one list of alternatives with small differences; WordRules
// holds the differences. Time is linear in the text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "nibble/core/config.hpp"
#include "nibble/text/unicode.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text {

// The alternatives in their order. Where several match, the first is taken. The defaults are those
// of Llama 3:
//   (?i:'s|'t|'re|'ve|'m|'ll|'d) | [^\r\n\p{L}\p{N}]?\p{L}+ | \p{N}{1,3} |
//   ?[^\s\p{L}\p{N}]+[\r\n]* | \s*[\r\n]+ | \s+(?!\S) | \s+
struct WordRules {
  // 's 't 're 've 'm 'll 'd: as words, or at the end of a word.
  enum class Contractions : std::uint8_t { none, lower_case, any_case, ending };
  enum class Words : std::uint8_t {
    plain,  // letters in any order
    cased,  // upper case letters, then lower case ones; those without case may be in both
    joined  // with marks after letters, over single spaces
  };
  enum class Newlines : std::uint8_t { none, up_to_last };
  enum class Tail : std::uint8_t { none, newlines, newlines_and_slashes, one_newline_or_slash };

  Contractions contractions = Contractions::any_case;
  Words words = Words::plain;
  CharSet letters = kLetters;
  // A word may begin with one of these, but not with a newline; or with nothing but a space.
  CharSet before_word = kCharacters & ~(kLetters | kNumbers);
  bool only_space_before_word = false;
  bool ascii_sign_before_word = false;  // the first alternative is [!-/:-@\[-`{-~][A-Za-z]+
  bool space_before_number = false;
  std::uint8_t max_digits = 3;  // in a number; 255: any
  CharSet signs = kCharacters & ~(kLetters | kNumbers | kSpaces);
  Tail after_signs = Tail::newlines;
  Newlines newlines = Newlines::up_to_last;
};

namespace detail {

// What the regular expressions call [A-Za-z].
constexpr bool is_ascii_letter(char32_t c) noexcept {
  return (c | 0x20) >= 'a' && (c | 0x20) <= 'z';
}

// Finds the words of a text, one at a time. All positions and lengths are in bytes.
class WordMatcher {
 public:
  WordMatcher(const WordRules& rules, std::string_view text) noexcept
      : rules_(rules), text_(text) {}

  // The length of the alternative that matches at the beginning of the text; 0 if none does.
  std::size_t match() const noexcept {
    const Character first = at(0);
    std::size_t n = 0;
    if (rules_.ascii_sign_before_word && (n = ascii_word(first)) > 0) return n;
    if (rules_.contractions == WordRules::Contractions::lower_case ||
        rules_.contractions == WordRules::Contractions::any_case) {
      if ((n = contraction(0)) > 0) return n;
    }
    if ((n = letters(first)) > 0) return n;
    if ((n = number(first)) > 0) return n;
    if ((n = signs(first)) > 0) return n;
    return first.is_in(kSpaces) ? spaces() : 0;
  }

 private:
  Character at(std::size_t i) const noexcept { return first_character(text_.substr(i)); }

  // The end of the run of characters of `set` that begins at `i`.
  std::size_t run(std::size_t i, CharSet set, std::size_t max = std::size_t(-1)) const noexcept {
    for (Character c; max > 0 && (c = at(i)).is_in(set); --max) i += c.size;
    return i;
  }

  std::size_t ascii_word(const Character& first) const noexcept {
    if (first.code <= ' ' || first.code >= 0x7F || !first.is_in(kSigns)) return 0;
    std::size_t i = 1;
    while (i < text_.size() && is_ascii_letter(static_cast<unsigned char>(text_[i]))) ++i;
    return i > 1 ? i : 0;
  }

  // The length of the contraction at `i`. Without regard to case, U+017F is an s.
  std::size_t contraction(std::size_t i) const noexcept {
    if (i == text_.size() || text_[i] != '\'') return 0;
    const bool any_case = rules_.contractions != WordRules::Contractions::lower_case;
    const auto letter = [&](std::size_t k) {
      const char c = i + k < text_.size() ? text_[i + k] : '\0';
      return any_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
    };
    const char a = letter(1), b = letter(2);
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return 3;
    return any_case && text_.substr(i + 1, 2) == "\xC5\xBF" ? 3 : 0;
  }

  std::size_t letters(const Character& first) const noexcept {
    const bool may_precede = rules_.only_space_before_word
                                 ? first.code == ' '
                                 : first.is_in(rules_.before_word) && !first.is_newline();
    const std::size_t after = may_precede ? first.size : 0;
    std::size_t end = 0;
    switch (rules_.words) {
      case WordRules::Words::plain: {
        // (A character that is both is a letter: what follows it decides nothing.)
        const std::size_t begin = first.is_in(rules_.letters) ? 0 : after;
        end = run(begin, rules_.letters);
        return end > begin ? end : 0;
      }
      case WordRules::Words::joined: {
        end = joined_letters(after);
        return end > after ? end : 0;
      }
      case WordRules::Words::cased: break;
    }
    const bool may_begin = first.is_in(kCased | kUncased);
    if (may_precede) end = with_lower_case(after);
    if (end == 0 && may_begin) end = with_lower_case(0);
    // Without a lower case letter: a word of the others.
    if (end == 0 && may_precede && (end = run(after, kUpper)) == after) end = 0;
    if (end == 0 && may_begin) end = run(0, kUpper);
    if (end > 0 && rules_.contractions == WordRules::Contractions::ending) end += contraction(end);
    return end;
  }

  // The end of [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+ at `i`, or 0: upper case
  // is given back until something follows it that may be lower case.
  std::size_t with_lower_case(std::size_t i) const noexcept {
    std::size_t last = 0;
    Character c;
    for (; (c = at(i)).is_in(kUpper); i += c.size)
      if (c.is_in(kUncased)) last = i + c.size;
    return c.type == CharClass::lower ? run(i, kLower) : last;
  }

  // The end of (?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+ at `i`; `i` if there is none.
  std::size_t joined_letters(std::size_t i) const noexcept {
    for (Character c = at(i); c.is_in(kLetters);) {
      i = run(i + c.size, kMarks);
      c = at(i);
      if (c.code != ' ') continue;
      c = at(i + 1);
      if (c.is_in(kLetters)) ++i;
    }
    return i;
  }

  std::size_t number(const Character& first) const noexcept {
    const std::size_t begin = rules_.space_before_number && first.code == ' ' ? 1 : 0;
    const std::size_t max = rules_.max_digits == 255 ? std::size_t(-1) : rules_.max_digits;
    const std::size_t end = run(begin, kNumbers, max);
    return end > begin ? end : 0;
  }

  std::size_t signs(const Character& first) const noexcept {
    const std::size_t begin = first.code == ' ' ? 1 : 0;
    std::size_t end = begin;
    for (Character c; (c = at(end)).is_in(rules_.signs);) end += c.size;
    if (end == begin) return 0;
    const auto is_next = [&](bool slash) {
      if (end == text_.size()) return false;
      return text_[end] == '\r' || text_[end] == '\n' || (slash && text_[end] == '/');
    };
    switch (rules_.after_signs) {
      case WordRules::Tail::none: break;
      case WordRules::Tail::newlines:
        while (is_next(false)) ++end;
        break;
      case WordRules::Tail::newlines_and_slashes:
        while (is_next(true)) ++end;
        break;
      case WordRules::Tail::one_newline_or_slash: end += is_next(true); break;
    }
    return end;
  }

  // White space at the beginning, of which there is some.
  std::size_t spaces() const noexcept {
    std::size_t end = 0, last = 0, after_newline = 0;
    for (Character c; (c = at(end)).is_in(kSpaces);) {
      last = end;
      end += c.size;
      if (c.is_newline()) after_newline = end;
    }
    if (rules_.newlines == WordRules::Newlines::up_to_last && after_newline > 0)
      return after_newline;
    // The last one belongs to what follows, if it is not alone.
    return end == text_.size() || last == 0 ? end : last;
  }

  static constexpr CharSet kUpper = (kCased | kUncased) & ~char_set(CharClass::lower);
  static constexpr CharSet kLower = kUncased | char_set(CharClass::lower);

  const WordRules& rules_;
  std::string_view text_;
};

}  // namespace detail

// The length of the first word of `text`, which is not empty. What no alternative matches is a word
// of its own, up to where one does.
inline std::size_t first_word(const WordRules& rules, std::string_view text) noexcept {
  if (const std::size_t n = detail::WordMatcher(rules, text).match(); n > 0) return n;
  std::size_t end = 0;
  do {
    end += first_character(text.substr(end)).size;
  } while (end < text.size() && detail::WordMatcher(rules, text.substr(end)).match() == 0);
  return end;
}

}}}  // namespace nibble::NIBBLE_ABI::text
