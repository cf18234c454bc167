// SPDX-License-Identifier: Apache-2.0
//
// Unicode's normal forms C (composed) and D (decomposed), and lower case. Bytes that are no UTF-8
// stay as they are.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/core/config.hpp"
#include "nibble/core/utf8.hpp"
#include "nibble/text/unicode.hpp"
#include "nibble/text/unicode_decompositions.hpp"
#include "nibble/text/unicode_marks_and_cases.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text {

namespace detail {

// The last entry of a sorted table of entries of `Width` numbers whose first number, shifted, is at
// most `code`; the table's end if there is none.
template <std::size_t Width, std::size_t Size>
const std::uint32_t* last_entry(const std::uint32_t (&table)[Size], char32_t code,
                                unsigned shift = 0) noexcept {
  std::size_t first = 0, end = Size / Width;
  while (first < end) {
    const std::size_t middle = first + (end - first) / 2;
    if (table[middle * Width] >> shift <= code) {
      first = middle + 1;
    } else {
      end = middle;
    }
  }
  return first == 0 ? table + Size : table + (first - 1) * Width;
}

// Hangul syllables are composed by arithmetic.
inline constexpr char32_t kHangul = 0xAC00, kLead = 0x1100, kVowel = 0x1161, kTail = 0x11A7;
inline constexpr char32_t kLeads = 19, kVowels = 21, kTails = 28;

// The canonical combining class: 0 for what does not move.
inline unsigned combining_class(char32_t code) noexcept {
  if (code < 0x300) return 0;
  const std::uint32_t* const entry = last_entry<1>(kCombiningRuns, code, 8);
  return *entry & 0xFF;
}

struct NormalCharacter {
  char32_t code;
  unsigned order;    // combining class
  bool raw = false;  // a byte that is no UTF-8
};

}  // namespace detail

// Works on one text after the other; the buffer is reused.
class Normalizer {
 public:
  // The normal form C of `text`. Valid until the next call; `text` itself if that is in the form.
  std::string_view compose(std::string_view text) {
    // All before U+0300 is composed, and is a starter.
    std::size_t begin = 0;
    while (begin < text.size() && static_cast<unsigned char>(text[begin]) < 0xCC) ++begin;
    if (begin == text.size()) return text;
    decompose(text);
    compose();
    return spell();
  }

  // The normal form D of `text`. Valid until the next call.
  std::string_view decomposed(std::string_view text) {
    decompose(text);
    return spell();
  }

 private:
  using Item = detail::NormalCharacter;

  void decompose(std::string_view text) {
    items_.clear();
    while (!text.empty()) {
      const std::size_t size = utf8_length(text);
      if (size == 0) {
        items_.push_back({static_cast<unsigned char>(text[0]), 0, true});
      } else {
        add(first_character(text).code);
      }
      text.remove_prefix((std::max)(size, std::size_t{1}));
    }
    sort_marks();
  }

  // Appends the decomposition of `code`: the first part of one may have another.
  void add(char32_t code) {
    using namespace detail;
    if (code >= kHangul && code < kHangul + kLeads * kVowels * kTails) {
      const char32_t i = code - kHangul;
      items_.push_back({kLead + i / (kVowels * kTails), 0});
      items_.push_back({kVowel + i / kTails % kVowels, 0});
      if (i % kTails != 0) items_.push_back({kTail + i % kTails, 0});
      return;
    }
    char32_t marks[8];  // the longest decomposition has four characters
    std::size_t n_marks = 0;
    for (const std::uint32_t* entry; code >= 0xC0; code = entry[1]) {
      entry = last_entry<3>(kDecompositions, code);
      if (entry == std::end(kDecompositions) || entry[0] != code) break;
      if (entry[2] != 0) marks[n_marks++] = entry[2];
    }
    items_.push_back({code, combining_class(code)});
    while (n_marks > 0) {
      --n_marks;
      items_.push_back({marks[n_marks], combining_class(marks[n_marks])});
    }
  }

  // Marks in a row are ordered by their classes.
  void sort_marks() {
    for (auto first = items_.begin(); first != items_.end();) {
      if (first->order == 0) {
        ++first;
        continue;
      }
      auto last = first;
      while (last != items_.end() && last->order != 0) ++last;
      std::stable_sort(first, last, [](const Item& a, const Item& b) { return a.order < b.order; });
      first = last;
    }
  }

  // Composes each mark with the starter before it, unless something of its class or a starter is
  // between them.
  void compose() {
    std::size_t n = 0, starter = kNone;
    unsigned last_order = 0;  // of what is between
    for (const Item& item : items_) {
      const bool is_next = starter != kNone && starter + 1 == n;
      const bool reaches = starter != kNone && !item.raw && (is_next || last_order < item.order);
      const char32_t both = reaches ? composition(items_[starter].code, item.code) : 0;
      if (both != 0) {
        items_[starter].code = both;
        continue;
      }
      if (item.order == 0) starter = item.raw ? kNone : n;
      last_order = item.order;
      items_[n++] = item;
    }
    items_.resize(n);
  }

  // What two characters are together; 0: they remain two.
  static char32_t composition(char32_t first, char32_t second) noexcept {
    using namespace detail;
    if (first >= kLead && first < kLead + kLeads && second >= kVowel && second < kVowel + kVowels)
      return kHangul + ((first - kLead) * kVowels + (second - kVowel)) * kTails;
    if (first >= kHangul && first < kHangul + kLeads * kVowels * kTails &&
        (first - kHangul) % kTails == 0 && second > kTail && second < kTail + kTails)
      return first + (second - kTail);
    return find_composition(first, second);
  }

  static char32_t find_composition(char32_t first, char32_t second) noexcept {
    using namespace detail;
    std::size_t begin = 0, end = std::size(kCompositions);
    while (begin < end) {
      const std::size_t middle = begin + (end - begin) / 2;
      const std::uint32_t* const entry = kDecompositions + kCompositions[middle] * 3;
      if (entry[1] == first && entry[2] == second) return entry[0];
      if (entry[1] < first || (entry[1] == first && entry[2] < second)) {
        begin = middle + 1;
      } else {
        end = middle;
      }
    }
    return 0;
  }

  std::string_view spell() {
    out_.clear();
    for (const Item& item : items_) {
      if (item.raw) {
        out_.push_back(static_cast<char>(item.code));
      } else {
        append_utf8(out_, item.code);
      }
    }
    return out_;
  }

  static constexpr std::size_t kNone = static_cast<std::size_t>(-1);

  std::vector<Item> items_;
  std::string out_;
};

// The lower case letter of `code`, where that is one character.
inline char32_t lower_case(char32_t code) noexcept {
  const std::uint32_t* const run = detail::last_entry<3>(detail::kLowerCaseRuns, code);
  if (run == std::end(detail::kLowerCaseRuns) || code > run[1] >> 1) return code;
  const bool each_second = (run[1] & 1) != 0;
  return each_second && (code - run[0]) % 2 != 0 ? code : code + run[2];
}

}}}  // namespace nibble::NIBBLE_ABI::text
