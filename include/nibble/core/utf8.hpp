// SPDX-License-Identifier: Apache-2.0
//
// UTF-8 as the Unicode standard defines it (table 3-7: no overlong forms, no surrogates, nothing
// above U+10FFFF). The input may be any bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "nibble/core/config.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// The character at the beginning of a byte string, which may be incomplete.
struct Utf8Prefix {
  std::size_t announced = 0;  // length in bytes that the first byte announces; 0: none
  std::size_t present = 0;    // how many of these bytes are there, each one valid at its position
};

constexpr Utf8Prefix utf8_prefix(std::string_view bytes) noexcept {
  if (bytes.empty()) return {};
  const auto at = [&](std::size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const unsigned lead = at(0);
  // The second byte has a narrower range where the full range would allow forbidden characters.
  unsigned low = 0x80, high = 0xBF;
  Utf8Prefix prefix;
  if (lead < 0x80) return {1, 1};
  if (lead < 0xC2) return {};
  if (lead < 0xE0) {
    prefix.announced = 2;
  } else if (lead < 0xF0) {
    prefix.announced = 3;
    if (lead == 0xE0) low = 0xA0;   // overlong
    if (lead == 0xED) high = 0x9F;  // surrogates
  } else if (lead < 0xF5) {
    prefix.announced = 4;
    if (lead == 0xF0) low = 0x90;   // overlong
    if (lead == 0xF4) high = 0x8F;  // above U+10FFFF
  } else {
    return {};
  }
  prefix.present = 1;
  while (prefix.present < prefix.announced && prefix.present < bytes.size()) {
    const unsigned next = at(prefix.present);
    if (next < low || next > high) break;
    low = 0x80;
    high = 0xBF;
    ++prefix.present;
  }
  return prefix;
}

// Length in bytes of the character at the beginning of `bytes`; 0 when there is no whole character.
constexpr std::size_t utf8_length(std::string_view bytes) noexcept {
  const Utf8Prefix prefix = utf8_prefix(bytes);
  return prefix.announced == prefix.present ? prefix.announced : 0;
}

// Appends the character `c`, which is at most U+10FFFF.
inline void append_utf8(std::string& out, std::uint32_t c) {
  const auto put = [&](std::uint32_t byte) { out += static_cast<char>(byte); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xc0 | c >> 6);
    put(0x80 | (c & 0x3f));
  } else if (c < 0x10000) {
    put(0xe0 | c >> 12);
    put(0x80 | (c >> 6 & 0x3f));
    put(0x80 | (c & 0x3f));
  } else {
    put(0xf0 | c >> 18);
    put(0x80 | (c >> 12 & 0x3f));
    put(0x80 | (c >> 6 & 0x3f));
    put(0x80 | (c & 0x3f));
  }
}

// How many bytes at the end of `bytes` (0 to 3) begin a character that more bytes could complete.
constexpr std::size_t utf8_unfinished(std::string_view bytes) noexcept {
  for (std::size_t n = 1; n <= 3 && n <= bytes.size(); ++n) {
    const Utf8Prefix prefix = utf8_prefix(bytes.substr(bytes.size() - n));
    if (prefix.present == n && prefix.announced > n) return n;
  }
  return 0;
}

}}  // namespace nibble::NIBBLE_ABI
