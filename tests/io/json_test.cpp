// SPDX-License-Identifier: Apache-2.0
#include "nibble/io/json.hpp"

#include <cstdint>
#include <string>
#include <string_view>

#include "doctest/doctest.h"
#include "nibble/io/json_text.hpp"

namespace json_test {

using nibble::Errc;
using nibble::io::JsonReader;

namespace {

// The string that `text` encodes; "<error>" if it is rejected or if some text is left.
std::string string_of(std::string_view text) {
  JsonReader json(text);
  auto value = json.string();
  if (!value || !json.at_end()) return "<error>";
  return *value;
}

bool refuses_number(std::string_view text) {
  JsonReader json(text);
  const auto value = json.unsigned_integer();
  return !value || !json.at_end();
}

}  // namespace

TEST_CASE("strings: escapes, surrogate pairs, UTF-8") {
  CHECK(string_of(R"("abc")") == "abc");
  CHECK(string_of(R"( "" )") == "");
  CHECK(string_of(R"("\"\\\/\b\f\n\r\t")") == "\"\\/\b\f\n\r\t");
  CHECK(string_of(R"("\u0041\u00e9\u20AC")") == "A\xc3\xa9\xe2\x82\xac");
  CHECK(string_of(R"("\ud83d\ude00")") == "\xf0\x9f\x98\x80");
  CHECK(string_of(R"("\u0000")") == std::string(1, '\0'));
  CHECK(string_of("\"\xf0\x9f\x98\x80\xed\x9f\xbf\"") == "\xf0\x9f\x98\x80\xed\x9f\xbf");

  const std::string_view bad[] = {
      "\"",
      "\"abc",
      R"("\)",
      R"("\x")",
      R"("\u12")",
      R"("\u12g4")",
      R"("\ud83d")",
      R"("\ude00")",
      R"("\ud83dx")",
      R"("\ud83d\u0041")",
      "\"\n\"",
      "\"\xff\"",
      "\"\xc0\x80\"",
      "\"\xe2\x82\"",
      "\"\xed\xa0\x80\"",
      "\"\xc3\"",
      "\"\xe0\x80\x80\"",
      "\"\xf0\x80\x80\x80\"",
      "\"\xf4\x90\x80\x80\"",
      "\"\xf5\x80\x80\x80\"",
      "\"\x80\"",
      "abc",
      "'abc'",
      "",
  };
  for (const auto text : bad) {
    CAPTURE(text);
    CHECK(string_of(text) == "<error>");
  }
  // The string is cut at every position: the reader must never read beyond the end.
  const std::string_view whole = "\"\xf0\x9f\x98\x80\\ud83d\\ude00\"";
  for (std::size_t n = 0; n < whole.size(); ++n) {
    const std::string exact(whole.substr(0, n));
    CHECK(string_of(exact) == "<error>");
  }
}

TEST_CASE("numbers: unsigned integers of 64 bits and nothing else") {
  JsonReader json(" 0 , 18446744073709551615 ");
  CHECK(*json.unsigned_integer() == 0);
  CHECK(json.accept(','));
  CHECK(*json.unsigned_integer() == UINT64_MAX);
  CHECK(json.at_end());
  for (const char* text : {"18446744073709551616", "99999999999999999999999", "-1", "+1", "1.0",
                           "1e3", "01", "00", "", "x", "0x10", "1 2"}) {
    CAPTURE(text);
    CHECK(refuses_number(text));
  }
}

TEST_CASE("objects and arrays call back per item and stop at the first error") {
  std::string seen;
  JsonReader json(" { \"a\" : [ 1 , 2 ] , \"b\":[] }\n");
  const auto status = json.object([&](const std::string& key) -> nibble::Result<void> {
    seen += key;
    return json.array([&]() -> nibble::Result<void> {
      NIBBLE_TRY(value, json.unsigned_integer());
      seen += std::to_string(value);
      return nibble::ok();
    });
  });
  CHECK(status.has_value());
  CHECK(json.at_end());
  CHECK(seen == "a12b");

  for (const char* text : {"{", "{\"a\"", "{\"a\":", "{\"a\":1", "{\"a\":1,", "{\"a\":1,}", "{,}",
                           "{1:2}", "[]", "{\"a\" 1}", "{\"a\":1 \"b\":2}", "{\"a\":1]", ""}) {
    CAPTURE(text);
    JsonReader broken(text);
    const auto refused = broken.object([&](const std::string&) -> nibble::Result<void> {
      NIBBLE_CHECK([&]() -> nibble::Result<void> {
        NIBBLE_TRY(value, broken.unsigned_integer());
        (void)value;
        return nibble::ok();
      }());
      return nibble::ok();
    });
    REQUIRE(!refused);
    CHECK(refused.error().code == Errc::malformed);
  }
}

TEST_CASE("JSON strings are written so that they can be read") {
  using nibble::io::json_text;
  CHECK(json_text("") == "\"\"");
  CHECK(json_text("a\"\\\n\r\t\b\f\x1f\x7f/") == R"("a\"\\\n\r\t\b\f\u001f)"
                                                 "\x7f/\"");
  CHECK(json_text("\u00e9\U0001F600") == "\"\u00e9\U0001F600\"");
  CHECK(json_text("\xff\xe2\x82x\xed\xa0\x80") == "\"\uFFFD\uFFFD\uFFFDx\uFFFD\uFFFD\uFFFD\"");
  CHECK(nibble::io::json_escape(0xE9, true) == "\\u00e9");
  CHECK(nibble::io::json_escape(0x7F, true) == "\\u007f");
  CHECK(nibble::io::json_escape(0x1F600, true) == "\\ud83d\\ude00");
  std::string bytes;
  for (int i = 0; i < 128; ++i) bytes += static_cast<char>(i);
  const std::string text = json_text(bytes);
  nibble::io::JsonReader json(text);
  const auto read = json.string();
  REQUIRE(read);
  CHECK(*read == bytes);
}

}  // namespace json_test
