// SPDX-License-Identifier: Apache-2.0
//
// Sets of characters, and the byte sequences that spell them in UTF-8.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <vector>

#include "nibble/core/config.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace grammar {

inline constexpr std::uint32_t kLastCodePoint = 0x10FFFF;

struct CodeRange {
  std::uint32_t first = 0, last = 0;  // both belong to it
  friend constexpr bool operator==(const CodeRange&, const CodeRange&) noexcept = default;
};

// A set of Unicode characters. Surrogates (U+D800 to U+DFFF), which UTF-8 cannot spell, may be
// named in ranges; they never match.
class CodePoints {
 public:
  CodePoints() = default;
  CodePoints(std::initializer_list<CodeRange> ranges) {
    for (const CodeRange& range : ranges) add(range.first, range.last);
  }

  static CodePoints all() { return {{0, 0xD7FF}, {0xE000, kLastCodePoint}}; }

  // Adds first..last, as far as these are characters; nothing if last < first.
  void add(std::uint32_t first, std::uint32_t last) {
    last = (std::min)(last, kLastCodePoint);
    if (first > last) return;
    // What it touches becomes one range with it.
    auto begin = std::partition_point(ranges_.begin(), ranges_.end(),
                                      [&](const CodeRange& r) { return r.last + 1 < first; });
    auto end = begin;
    for (; end != ranges_.end() && end->first <= last + 1; ++end) {
      first = (std::min)(first, end->first);
      last = (std::max)(last, end->last);
    }
    if (begin == end) {
      ranges_.insert(begin, {first, last});
    } else {
      *begin = {first, last};
      ranges_.erase(begin + 1, end);
    }
  }
  void add(std::uint32_t c) { add(c, c); }
  void add(const CodePoints& other) {
    for (const CodeRange& range : other.ranges_) add(range.first, range.last);
  }

  CodePoints complement() const {
    CodePoints result;
    std::uint32_t next = 0;
    for (const CodeRange& range : ranges_) {
      if (range.first > next) result.ranges_.push_back({next, range.first - 1});
      next = range.last + 1;
    }
    if (next <= kLastCodePoint) result.ranges_.push_back({next, kLastCodePoint});
    return result.without_surrogates();
  }
  CodePoints intersect(const CodePoints& other) const {
    CodePoints both = complement();
    both.add(other.complement());
    return both.complement();
  }

  bool contains(std::uint32_t c) const noexcept {
    for (const CodeRange& range : ranges_)
      if (c >= range.first && c <= range.last) return true;
    return false;
  }
  // Whether no character matches.
  bool is_empty() const noexcept {
    for (const CodeRange& range : ranges_)
      if (range.first < 0xD800 || range.last > 0xDFFF) return false;
    return true;
  }
  // Ascending, apart from each other.
  std::span<const CodeRange> ranges() const noexcept { return ranges_; }

 private:
  CodePoints without_surrogates() const {
    CodePoints result;
    for (const CodeRange& range : ranges_) {
      if (range.first < 0xD800) {
        result.ranges_.push_back({range.first, (std::min)(range.last, std::uint32_t{0xD7FF})});
      }
      if (range.last > 0xDFFF) {
        result.ranges_.push_back({(std::max)(range.first, std::uint32_t{0xE000}), range.last});
      }
    }
    return result;
  }

  std::vector<CodeRange> ranges_;
};

struct ByteRange {
  std::uint8_t first = 0, last = 0;  // both belong to it
};

namespace detail {

template <class Function>
void for_each_utf8_of(std::uint32_t first, std::uint32_t last, Function& f) {
  for (const std::uint32_t end : {0x7Fu, 0x7FFu, 0xD7FFu, 0xDFFFu, 0xFFFFu}) {
    if (first <= end && end < last) {  // other lengths, and what is no character, apart
      for_each_utf8_of(first, end, f);
      return for_each_utf8_of(end + 1, last, f);
    }
  }
  if (first >= 0xD800 && first <= 0xDFFF) return;
  const int n = first < 0x80 ? 1 : first < 0x800 ? 2 : first < 0x10000 ? 3 : 4;
  for (int i = 1; i < n; ++i) {  // so that the last i bytes are free, or the others are fixed
    const std::uint32_t low = (std::uint32_t{1} << (6 * i)) - 1;
    if ((first & ~low) == (last & ~low)) continue;
    if ((first & low) != 0) {
      for_each_utf8_of(first, first | low, f);
      return for_each_utf8_of((first | low) + 1, last, f);
    }
    if ((last & low) != low) {
      for_each_utf8_of(first, (last & ~low) - 1, f);
      return for_each_utf8_of(last & ~low, last, f);
    }
  }
  ByteRange bytes[4];
  const std::uint32_t lead = n == 1 ? 0 : n == 2 ? 0xC0 : n == 3 ? 0xE0 : 0xF0;
  for (int i = 0; i < n; ++i) {
    const int shift = 6 * (n - 1 - i);
    const std::uint32_t mark = i == 0 ? lead : 0x80;
    const std::uint32_t bits = i == 0 ? 0xFF : 0x3F;
    bytes[i] = {static_cast<std::uint8_t>(mark | (first >> shift & bits)),
                static_cast<std::uint8_t>(mark | (last >> shift & bits))};
  }
  f(std::span<const ByteRange>(bytes, static_cast<std::size_t>(n)));
}

}  // namespace detail

// Calls f(std::span<const ByteRange>) for sequences of 1 to 4 byte ranges that together spell
// exactly the characters of the set in UTF-8: each character is spelled by one of them. The way to
// split ranges is Russ Cox's (RE2, "Regular Expression Matching in the Wild", 2010).
template <class Function>
void for_each_utf8(const CodePoints& set, Function f) {
  for (const CodeRange& range : set.ranges()) detail::for_each_utf8_of(range.first, range.last, f);
}

}}}  // namespace nibble::NIBBLE_ABI::grammar
