// SPDX-License-Identifier: Apache-2.0
//
// Byte-level BPE writes each byte of a piece as one character: printable ones stand for themselves,
// the others, space among them, for the next free characters from U+0100 on ("Ġ" is a space).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "nibble/core/config.hpp"
#include "nibble/core/utf8.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text {

namespace detail {

constexpr bool is_printable_byte(std::size_t byte) noexcept {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

NIBBLE_HIDDEN inline constexpr std::array<std::uint16_t, 256> kByteCharacters = [] {
  std::array<std::uint16_t, 256> characters{};
  std::uint16_t free = 0x100;
  for (std::size_t byte = 0; byte < 256; ++byte)
    characters[byte] = is_printable_byte(byte) ? static_cast<std::uint16_t>(byte) : free++;
  return characters;
}();

// The byte of each character from U+0100 on.
NIBBLE_HIDDEN inline constexpr std::array<unsigned char, 68> kBytesOfCharacters = [] {
  std::array<unsigned char, 68> bytes{};
  for (std::size_t byte = 0; byte < 256; ++byte)
    if (!is_printable_byte(byte))
      bytes[kByteCharacters[byte] - std::size_t{0x100}] = static_cast<unsigned char>(byte);
  return bytes;
}();

}  // namespace detail

// Appends the characters of these bytes: at most two bytes for each.
inline void append_byte_characters(std::string& out, std::string_view bytes) {
  for (const char byte : bytes)
    append_utf8(out, detail::kByteCharacters[static_cast<unsigned char>(byte)]);
}

// Appends the bytes that the characters of `piece` stand for. What stands for no byte remains.
inline void append_bytes(std::string& out, std::string_view piece) {
  for (std::size_t i = 0; i < piece.size(); ++i) {
    const std::size_t lead = static_cast<unsigned char>(piece[i]);
    if (lead >= 0xC2 && lead <= 0xC5 && utf8_length(piece.substr(i, 2)) == 2) {
      const std::size_t code =
          (lead & 0x1F) << 6 | (static_cast<unsigned char>(piece[i + 1]) & 0x3F);
      const std::size_t past = code - 0x100;
      if (code < 0x100 ? detail::is_printable_byte(code)
                       : past < detail::kBytesOfCharacters.size()) {
        out.push_back(static_cast<char>(code < 0x100 ? code : detail::kBytesOfCharacters[past]));
        ++i;
        continue;
      }
    }
    out.push_back(piece[i]);
  }
}

}}}  // namespace nibble::NIBBLE_ABI::text
