// SPDX-License-Identifier: Apache-2.0
//
// The table with which SentencePiece normalizes text ("precompiled charsmap"): byte strings and
// what replaces them, in a double-array trie. It is a number of bytes (32 bits), that many bytes of
// the trie's units of 32 bits, then the replacements, each with a NUL behind it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "nibble/core/config.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text {

// The table may be any bytes: what is wrong in it is not replaced.
class CharactersMap {
 public:
  // Longer replacements are wrong; those of real tables have some dozens of bytes.
  static constexpr std::size_t kMaxReplacement = 256;

  CharactersMap() = default;
  // `table` must outlive the map.
  explicit CharactersMap(std::string_view table) noexcept {
    std::uint32_t size = 0;
    if (table.size() < sizeof size) return;
    std::memcpy(&size, table.data(), sizeof size);
    table.remove_prefix(sizeof size);
    if (size > table.size()) return;
    units_ = table.substr(0, size / sizeof(std::uint32_t) * sizeof(std::uint32_t));
    replacements_ = table.substr(size);
  }

  struct Match {
    std::size_t size = 0;  // 0: nothing is replaced
    std::string_view replacement;
  };

  // The longest string of the table that `text` begins with.
  Match find(std::string_view text) const noexcept {
    Match longest;
    std::uint32_t place = 0, unit = 0;
    if (!read(place, unit)) return longest;
    place ^= offset_of(unit);
    for (std::size_t i = 0; i < text.size(); ++i) {
      const auto byte = static_cast<unsigned char>(text[i]);
      place ^= byte;
      // A unit that is a value, or has another label, is no child.
      if (byte == 0 || !read(place, unit) || (unit & 0x800000FF) != byte) break;
      place ^= offset_of(unit);
      std::uint32_t value = 0;
      if ((unit >> 8 & 1) == 0 || !read(place, value)) continue;
      const std::size_t begin = value & 0x7FFFFFFF;
      if (begin >= replacements_.size()) continue;
      const std::string_view replacement = replacements_.substr(begin, kMaxReplacement + 1);
      const std::size_t size = replacement.find('\0');
      if (size != replacement.npos) longest = {i + 1, replacement.substr(0, size)};
    }
    return longest;
  }

 private:
  bool read(std::uint32_t place, std::uint32_t& unit) const noexcept {
    const std::size_t at = std::size_t{place} * sizeof unit;
    if (at >= units_.size()) return false;
    std::memcpy(&unit, units_.data() + at, sizeof unit);
    return true;
  }
  static std::uint32_t offset_of(std::uint32_t unit) noexcept {
    return (unit >> 10) << ((unit & 0x200) >> 6);
  }

  std::string_view units_, replacements_;
};

}}}  // namespace nibble::NIBBLE_ABI::text
