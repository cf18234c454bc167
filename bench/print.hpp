// SPDX-License-Identifier: Apache-2.0
//
// Text of result files.
#pragma once

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <string>

namespace bench {

// A JSON string, including its quotes.
inline std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return out + '"';
}

// Appends what printf would print.
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
inline void
print(std::string& out, const char* format, ...) {
  va_list arguments, again;
  va_start(arguments, format);
  va_copy(again, arguments);
  const int n = std::vsnprintf(nullptr, 0, format, arguments);
  va_end(arguments);
  const std::size_t at = out.size();
  out.resize(at + static_cast<std::size_t>(std::max(n, 0)) + 1);
  std::vsnprintf(out.data() + at, out.size() - at, format, again);
  va_end(again);
  out.pop_back();
}

}  // namespace bench
