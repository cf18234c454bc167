// SPDX-License-Identifier: Apache-2.0
//
// Strings as JSON writes them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "nibble/core/config.hpp"
#include "nibble/core/utf8.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace io {

// What stands for a byte that is no UTF-8, which JSON cannot hold: U+FFFD.
NIBBLE_HIDDEN inline constexpr std::string_view kReplacement = "\xef\xbf\xbd";

// How a character is written in a JSON string; empty if that is as it is. `only_ascii`: those
// beyond ASCII are escaped, too.
inline std::string json_escape(std::uint32_t code, bool only_ascii = false) {
  switch (code) {
    case '"': return "\\\"";
    case '\\': return "\\\\";
    case '\n': return "\\n";
    case '\r': return "\\r";
    case '\t': return "\\t";
    case '\b': return "\\b";
    case '\f': return "\\f";
    default: break;
  }
  const auto unit = [](std::uint32_t value) {
    std::string text = "\\u";
    for (int shift = 12; shift >= 0; shift -= 4) text += "0123456789abcdef"[value >> shift & 15];
    return text;
  };
  if (code < 0x20 || (code >= 0x7F && code < 0x10000 && only_ascii)) return unit(code);
  if (code < 0x10000 || !only_ascii) return "";
  return unit(0xD800 + ((code - 0x10000) >> 10)) + unit(0xDC00 + ((code - 0x10000) & 0x3FF));
}

// Any bytes as a JSON string, with its quotes. Those that are no UTF-8 become U+FFFD each.
inline std::string json_text(std::string_view text) {
  std::string out = "\"";
  while (!text.empty()) {
    const std::size_t length = utf8_length(text);
    const auto first = static_cast<unsigned char>(text[0]);
    if (const std::string escaped = json_escape(first); length == 1 && !escaped.empty()) {
      out += escaped;
    } else {
      out += length == 0 ? kReplacement : text.substr(0, length);
    }
    text.remove_prefix(length == 0 ? 1 : length);
  }
  return out + '"';
}

}}}  // namespace nibble::NIBBLE_ABI::io
