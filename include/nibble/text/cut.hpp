// SPDX-License-Identifier: Apache-2.0
//
// Cuts text into words: a list of cuts, each of which divides the pieces that the one before it
// left. Time is linear in the text.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "nibble/core/config.hpp"
#include "nibble/text/unicode.hpp"
#include "nibble/text/word_rules.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text {

// Cuts out runs of characters of one kind.
struct RunRules {
  int (*kind)(const Character& c) noexcept;  // 0: in no run
  std::uint8_t min = 1;
  std::uint8_t max = 0;      // 0: any number
  bool after_space = false;  // a run takes white space before it, one character: \s?
  bool after_blank = false;  // a run takes the space before it: " ?"
};

struct Cut {
  enum class Kind : std::uint8_t {
    words,
    runs,
    space_at_end,    // \s+$
    digit_groups,    // before digits whose number is a multiple of three: (?=(\d{3})+(?!\d))
    grouped_digits,  // digits in groups of three, not before letters: \d{1,3}(?=(?:\d{3})*\b)
  };
  Kind kind = Kind::words;
  WordRules words = {};
  RunRules runs = {nullptr};
};

namespace detail {

// The length of the run at the beginning of `text`, or 0.
inline std::size_t match_run(const RunRules& rules, std::string_view text) noexcept {
  Character c = first_character(text);
  std::size_t end = 0;
  if (rules.after_blank ? c.code == ' ' : rules.after_space && c.is_in(kSpaces)) {
    const Character next = first_character(text.substr(c.size));
    if (next.size > 0 && rules.kind(next) != 0) {
      end = c.size;
      c = next;
    }
  }
  if (c.size == 0) return 0;
  const int kind = rules.kind(c);
  if (kind == 0) return 0;
  std::size_t count = 0;
  do {
    end += c.size;
    ++count;
    c = first_character(text.substr(end));
  } while (count != rules.max && c.size > 0 && rules.kind(c) == kind);
  return count < rules.min ? 0 : end;
}

// The length of the first piece of `text`: the run at its beginning, or what comes before the first
// one.
inline std::size_t first_run(const RunRules& rules, std::string_view text) noexcept {
  if (const std::size_t n = match_run(rules, text); n > 0) return n;
  std::size_t end = 0;
  do {
    end += first_character(text.substr(end)).size;
  } while (end < text.size() && match_run(rules, text.substr(end)) == 0);
  return end;
}

// The length of the first `n` characters of `text`, which has them.
inline std::size_t size_of(std::size_t n, std::string_view text) noexcept {
  std::size_t end = 0;
  for (; n > 0; --n) end += first_character(text.substr(end)).size;
  return end;
}

// How many characters of `set` begin `text`. Sets `after` to what follows them.
inline std::size_t count_of(CharSet set, std::string_view text, Character& after) noexcept {
  std::size_t count = 0;
  for (; (after = first_character(text)).is_in(set); ++count) text.remove_prefix(after.size);
  return count;
}

// Whether `c`, after a digit, is in the same word: \b does not match between them.
inline bool is_in_word(const Character& c) noexcept {
  return c.is_in(kLetters | kMarks | kDigits | char_set(CharClass::letter_number)) ||
         (c.type == CharClass::number && c.code < 0x100) || c.code == '_';
}

// How many digits begin `text`, if they are to be grouped: if no letter follows them.
inline std::size_t groupable_digits(std::string_view text) noexcept {
  Character after;
  const std::size_t count = count_of(kDigits, text, after);
  return is_in_word(after) ? 0 : count;
}

}  // namespace detail

class WordCutter {
 public:
  static constexpr std::size_t kMaxCuts = 6;

  // At least one cut, at most kMaxCuts; they and the text must outlive the cutter.
  WordCutter(std::span<const Cut> cuts, std::string_view text) noexcept : cuts_(cuts) {
    NIBBLE_ASSERT(!cuts.empty() && cuts.size() <= kMaxCuts);
    levels_[0].rest = text;
  }

  // The next word; empty after the last one.
  std::string_view next() noexcept {
    // The innermost cut that has something left.
    std::size_t i = cuts_.size() - 1;
    for (; levels_[i].rest.empty(); --i)
      if (i == 0) return {};
    for (;; ++i) {
      std::string_view& rest = levels_[i].rest;
      const std::string_view piece = rest.substr(0, length_at(i));
      rest.remove_prefix(piece.size());
      if (i + 1 == cuts_.size()) return piece;
      levels_[i + 1] = {piece, 0};
    }
  }

 private:
  struct Level {
    std::string_view rest;      // of the piece that this cut divides
    std::size_t n_grouped = 0;  // digits at the beginning of the rest that are in groups of 3
  };

  // The length of the first piece of level i.
  std::size_t length_at(std::size_t i) noexcept {
    const Cut& cut = cuts_[i];
    Level& level = levels_[i];
    switch (cut.kind) {
      case Cut::Kind::words: return first_word(cut.words, level.rest);
      case Cut::Kind::runs: return detail::first_run(cut.runs, level.rest);
      case Cut::Kind::space_at_end: return length_before_last_space(level.rest);
      case Cut::Kind::digit_groups: return length_before_digits(level);
      case Cut::Kind::grouped_digits:
        if (level.n_grouped == 0) level.n_grouped = detail::groupable_digits(level.rest);
        return level.n_grouped == 0 ? length_before_groups(level.rest) : first_group(level);
    }
    return level.rest.size();
  }

  // Up to the next place that a multiple of three digits follows, or all of it. (Other characters
  // go with the digits before them: the expression matches only between.)
  static std::size_t length_before_digits(Level& level) noexcept {
    Character after;
    std::size_t end = 0;  // `n` digits follow it
    std::size_t n = level.n_grouped;
    if (n == 0) n = detail::count_of(kDigits, level.rest, after);
    for (;;) {
      const std::size_t n_before = n % 3 == 0 && end == 0 ? (std::min)(n, std::size_t{3}) : n % 3;
      level.n_grouped = n - n_before;
      if (level.n_grouped > 0) return end + detail::size_of(n_before, level.rest.substr(end));
      end += detail::size_of(n, level.rest.substr(end));
      if (end == level.rest.size()) return end;
      end += first_character(level.rest.substr(end)).size;  // no digit
      n = detail::count_of(kDigits, level.rest.substr(end), after);
    }
  }

  static std::size_t first_group(Level& level) noexcept {
    const std::size_t n = (level.n_grouped - 1) % 3 + 1;
    level.n_grouped -= n;
    return detail::size_of(n, level.rest);
  }

  // Up to the first digits that are to be grouped. Digits that are not are passed as a whole.
  static std::size_t length_before_groups(std::string_view text) noexcept {
    std::size_t end = 0;
    do {
      Character after;
      const std::size_t n = detail::count_of(kDigits, text.substr(end), after);
      end += detail::size_of(n == 0 ? 1 : n, text.substr(end));
    } while (end < text.size() && detail::groupable_digits(text.substr(end)) == 0);
    return end;
  }

  // Up to the white space at the end of `text`; all of it if that is everything or nothing.
  static std::size_t length_before_last_space(std::string_view text) noexcept {
    std::size_t end = 0, after_last = 0;  // the last character that is not white space
    for (Character c; (c = first_character(text.substr(end))).size > 0;) {
      end += c.size;
      if (!c.is_in(kSpaces)) after_last = end;
    }
    return after_last == 0 ? end : after_last;
  }

  std::span<const Cut> cuts_;
  std::array<Level, kMaxCuts> levels_;
};

}}}  // namespace nibble::NIBBLE_ABI::text
