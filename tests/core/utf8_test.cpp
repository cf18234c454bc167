// SPDX-License-Identifier: Apache-2.0
#include "nibble/core/utf8.hpp"

#include <cstdint>
#include <string>
#include <string_view>

#include "doctest/doctest.h"

namespace utf8_test {

using nibble::append_utf8;
using nibble::utf8_length;
using nibble::utf8_prefix;
using nibble::utf8_unfinished;

namespace {

// Encodes by the definition: shifts the bits into place.
std::string encode(std::uint32_t c) {
  const auto byte = [](std::uint32_t bits) { return static_cast<char>(bits); };
  if (c < 0x80) return {byte(c)};
  if (c < 0x800) return {byte(0xC0 | c >> 6), byte(0x80 | (c & 63))};
  if (c < 0x10000) return {byte(0xE0 | c >> 12), byte(0x80 | (c >> 6 & 63)), byte(0x80 | (c & 63))};
  return {byte(0xF0 | c >> 18), byte(0x80 | (c >> 12 & 63)), byte(0x80 | (c >> 6 & 63)),
          byte(0x80 | (c & 63))};
}

}  // namespace

TEST_CASE("every code point has its length, and each beginning of it is unfinished") {
  std::size_t wrong = 0;
  const std::string whole = "x";
  for (std::uint32_t c = 0; c <= 0x10FFFF; ++c) {
    const std::string text = encode(c);
    const bool surrogate = c >= 0xD800 && c <= 0xDFFF;
    if (utf8_length(text + "x") != (surrogate ? 0 : text.size())) ++wrong;
    if (utf8_unfinished(text) != 0) ++wrong;
    std::string appended = whole;
    append_utf8(appended, c);
    if (appended != whole + text) ++wrong;
    for (std::size_t n = 1; n < text.size() && !surrogate; ++n) {
      if (utf8_length(text.substr(0, n)) != 0) ++wrong;
      if (utf8_unfinished(whole + text.substr(0, n)) != n) ++wrong;
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("what is not UTF-8 has no length and waits for nothing") {
  for (const char* bad : {"\x80", "\xBF", "\xC0\xAF", "\xC1\xBF", "\xE0\x9F\x80", "\xED\xA0\x80",
                          "\xF0\x8F\x80\x80", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF"}) {
    CAPTURE(bad);
    CHECK(utf8_length(bad) == 0);
  }
  for (const char* done : {"", "a", "\x80", "\xC0", "\xE0\x9F", "\xED\xA0", "\xF4\x90", "\xF5"}) {
    CAPTURE(done);
    CHECK(utf8_unfinished(done) == 0);
  }
  CHECK(utf8_length("") == 0);
  CHECK(utf8_length(std::string_view("\0", 1)) == 1);
  CHECK(utf8_prefix("\xE2\x96").announced == 3);
  CHECK(utf8_prefix("\xE2\x96").present == 2);
  CHECK(utf8_prefix("\xE2(").present == 1);
}

}  // namespace utf8_test
