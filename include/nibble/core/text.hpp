// SPDX-License-Identifier: Apache-2.0
//
// String concatenation and number formatting for messages. The functions of namespace std for this
// are templates: the linker keeps one copy for all translation units of a program, possibly the
// copy that was compiled for a better machine than the one it runs on. The functions here are in a
// namespace that names the compiler flags, and all of nibble's code finds this `+` of strings
// before std's.
#pragma once

#include <cstdio>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "nibble/core/config.hpp"
#include "nibble/core/utf8.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

NIBBLE_COLD inline std::string operator+(std::string&& a, const std::string& b) {
  a.append(b);
  return std::move(a);
}
NIBBLE_COLD inline std::string operator+(std::string&& a, std::string&& b) {
  a.append(b);
  return std::move(a);
}
NIBBLE_COLD inline std::string operator+(std::string&& a, const char* b) {
  a.append(b);
  return std::move(a);
}
NIBBLE_COLD inline std::string operator+(std::string&& a, char b) {
  a.push_back(b);
  return std::move(a);
}
NIBBLE_COLD inline std::string operator+(const std::string& a, const std::string& b) {
  std::string joined;
  joined.reserve(a.size() + b.size());
  joined.append(a).append(b);
  return joined;
}
// (Not b.insert(0, a): GCC 12 takes it for an overlapping copy.)
NIBBLE_COLD inline std::string operator+(const std::string& a, std::string&& b) {
  std::string joined;
  joined.append(a).append(b);
  return joined;
}
NIBBLE_COLD inline std::string operator+(const std::string& a, const char* b) {
  std::string joined;
  joined.append(a).append(b);
  return joined;
}
NIBBLE_COLD inline std::string operator+(const std::string& a, char b) {
  std::string joined;
  joined.append(a).push_back(b);
  return joined;
}
NIBBLE_COLD inline std::string operator+(const char* a, const std::string& b) {
  std::string joined;
  joined.append(a).append(b);
  return joined;
}
NIBBLE_COLD inline std::string operator+(const char* a, std::string&& b) {
  std::string joined;
  joined.append(a).append(b);
  return joined;
}

// A path, or a name from a file, as messages show it: control characters, which a terminal would
// obey, marks that turn the direction of writing, and bytes that are no UTF-8 become '?'.
inline std::string printable(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const std::size_t length = utf8_length(text);
    unsigned code = static_cast<unsigned char>(text[0]);
    if (length > 1) code &= 0x7fu >> length;
    for (std::size_t i = 1; i < length; ++i) {
      code = code << 6 | (static_cast<unsigned char>(text[i]) & 0x3fu);
    }
    const bool is_hidden = length == 0 || code < 0x20 || (code >= 0x7f && code < 0xa0) ||
                           (code >= 0x2028 && code <= 0x202e) ||  // new lines, directions
                           (code >= 0x2066 && code <= 0x2069);    // directions
    if (is_hidden) {
      out.push_back('?');
    } else {
      out.append(text.data(), length);
    }
    text.remove_prefix(length == 0 ? 1 : length);
  }
  return out;
}

// Formatted like printf's %g: "1e-05".
NIBBLE_COLD inline std::string to_text(double number) {
  char text[32];
  const int n = std::snprintf(text, sizeof text, "%g", number);
  return std::string(text, static_cast<std::size_t>(n));
}
// In place of std::to_string, whose table of digits is a symbol that pins a plug-in in memory (see
// NIBBLE_HIDDEN).
NIBBLE_COLD inline std::string to_text(long long number) {
  char text[32];
  const int n = std::snprintf(text, sizeof text, "%lld", number);
  return std::string(text, static_cast<std::size_t>(n));
}
NIBBLE_COLD inline std::string to_text(unsigned long long number) {
  char text[32];
  const int n = std::snprintf(text, sizeof text, "%llu", number);
  return std::string(text, static_cast<std::size_t>(n));
}
template <class Integer>
requires std::is_integral_v<Integer> std::string to_text(Integer number) {
  if constexpr (std::is_signed_v<Integer>)
    return to_text(static_cast<long long>(number));
  else
    return to_text(static_cast<unsigned long long>(number));
}

// Whether a text is `lower_case` in any case of its ASCII letters.
constexpr bool equals_ignoring_case(std::string_view text, std::string_view lower_case) noexcept {
  if (text.size() != lower_case.size()) return false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if ((c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c) != lower_case[i]) return false;
  }
  return true;
}

}}  // namespace nibble::NIBBLE_ABI
