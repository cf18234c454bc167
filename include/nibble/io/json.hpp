// SPDX-License-Identifier: Apache-2.0
//
// A strict pull reader for JSON (RFC 8259) of a known shape, as in the headers of model files. The
// caller asks for what it expects next, so nesting is as deep as the caller's code and no input can
// make it deeper. Numbers are unsigned integers; nothing else is needed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "nibble/core/result.hpp"
#include "nibble/io/byte_reader.hpp"

namespace nibble::inline NIBBLE_ABI::io {

namespace detail {

// Bytes of the UTF-8 character at the front of `text`, 0 if it is malformed: cut off, overlong, a
// surrogate or beyond U+10FFFF (Unicode standard, table 3-7).
inline std::size_t utf8_length(std::string_view text) noexcept {
  const auto at = [&](std::size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
  };
  const auto continues = [&](std::size_t i) { return (at(i) & 0xc0) == 0x80; };
  const unsigned lead = at(0);
  const unsigned second = at(1);
  if (lead < 0x80) return text.empty() ? 0 : 1;
  if (lead >= 0xc2 && lead <= 0xdf) return continues(1) ? 2 : 0;
  if (lead >= 0xe0 && lead <= 0xef) {
    if ((lead == 0xe0 && second < 0xa0) || (lead == 0xed && second > 0x9f)) return 0;
    return continues(1) && continues(2) ? 3 : 0;
  }
  if (lead >= 0xf0 && lead <= 0xf4) {
    if ((lead == 0xf0 && second < 0x90) || (lead == 0xf4 && second > 0x8f)) return 0;
    return continues(1) && continues(2) && continues(3) ? 4 : 0;
  }
  return 0;
}

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

}  // namespace detail

// Every failure is Errc::malformed and names the byte. The text must outlive the reader.
class JsonReader {
 public:
  explicit JsonReader(std::string_view text) noexcept : text_(text) {}

  // Passes white space and then `c`, if that is what comes next.
  bool accept(char c) noexcept {
    skip_space();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  // True if only white space is left.
  bool at_end() noexcept {
    skip_space();
    return at_ == text_.size();
  }

  // An object: member(key) -> Status must read the value. Duplicate keys are the caller's to
  // reject.
  template <class Member>
  Status object(Member member) {
    return list('{', '}', [&]() -> Status {
      NIBBLE_TRY(key, string());
      NIBBLE_CHECK(expect(':'));
      return member(std::move(key));
    });
  }

  // An array: element() -> Status must read the value.
  template <class Element>
  Status array(Element element) {
    return list('[', ']', element);
  }

  // A string, unescaped; valid UTF-8.
  Result<std::string> string();

  // A number without sign, fraction and exponent that fits in 64 bits.
  Result<std::uint64_t> unsigned_integer();

  Error error(const std::string& what) const {
    return Error{Errc::malformed, "JSON at byte " + std::to_string(at_) + ": " + what};
  }

 private:
  void skip_space() noexcept {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r')) {
      ++at_;
    }
  }

  Status expect(char c) {
    if (!accept(c)) return error(std::string("expected '") + c + "'");
    return ok();
  }

  template <class Item>
  Status list(char open, char close, Item item) {
    NIBBLE_CHECK(expect(open));
    if (accept(close)) return ok();
    do {
      NIBBLE_CHECK(item());
    } while (accept(','));
    return expect(close);
  }

  Status escape(std::string& out);
  Result<std::uint32_t> hex4();

  std::string_view text_;
  std::size_t at_ = 0;
};

inline Result<std::string> JsonReader::string() {
  NIBBLE_CHECK(expect('"'));
  std::string out;
  while (at_ < text_.size()) {
    const char c = text_[at_];
    if (c == '"') {
      ++at_;
      return out;
    }
    if (c == '\\') {
      ++at_;
      NIBBLE_CHECK(escape(out));
      continue;
    }
    const std::size_t length = detail::utf8_length(text_.substr(at_, 4));
    if (length == 0) return error("a string that is not UTF-8");
    if (static_cast<unsigned char>(c) < 0x20) return error("a control character in a string");
    out.append(text_.substr(at_, length));
    at_ += length;
  }
  return error("a string without end");
}

// What follows a backslash.
inline Status JsonReader::escape(std::string& out) {
  if (at_ == text_.size()) return error("a string without end");
  switch (text_[at_++]) {
    case '"': out += '"'; return ok();
    case '\\': out += '\\'; return ok();
    case '/': out += '/'; return ok();
    case 'b': out += '\b'; return ok();
    case 'f': out += '\f'; return ok();
    case 'n': out += '\n'; return ok();
    case 'r': out += '\r'; return ok();
    case 't': out += '\t'; return ok();
    case 'u': break;
    default: return error("an unknown escape");
  }
  NIBBLE_TRY(first, hex4());
  if (first < 0xd800 || first > 0xdfff) {
    detail::append_utf8(out, first);
    return ok();
  }
  // Beyond the first 65536 a character is written as a high and a low surrogate.
  if (first > 0xdbff || text_.substr(at_, 2) != "\\u") return error("half a surrogate pair");
  at_ += 2;
  NIBBLE_TRY(second, hex4());
  if (second < 0xdc00 || second > 0xdfff) return error("half a surrogate pair");
  detail::append_utf8(out, 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00));
  return ok();
}

inline Result<std::uint32_t> JsonReader::hex4() {
  std::uint32_t value = 0;
  for (int i = 0; i < 4; ++i, ++at_) {
    const char c = at_ < text_.size() ? text_[at_] : '\0';
    std::uint32_t digit = 0;
    if (c >= '0' && c <= '9') {
      digit = static_cast<std::uint32_t>(c - '0');
    } else if (c >= 'a' && c <= 'f') {
      digit = static_cast<std::uint32_t>(c - 'a' + 10);
    } else if (c >= 'A' && c <= 'F') {
      digit = static_cast<std::uint32_t>(c - 'A' + 10);
    } else {
      return error("expected a hexadecimal digit");
    }
    value = value << 4 | digit;
  }
  return value;
}

inline Result<std::uint64_t> JsonReader::unsigned_integer() {
  skip_space();
  const std::size_t begin = at_;
  std::uint64_t value = 0;
  for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
    const auto digit = static_cast<std::uint64_t>(text_[at_] - '0');
    if (!checked_multiply(value, 10, value) || !checked_add(value, digit, value)) {
      return error("a number that does not fit in 64 bits");
    }
  }
  if (at_ == begin) return error("expected an unsigned integer");
  if (text_[begin] == '0' && at_ - begin > 1) return error("a number with a leading zero");
  return value;
}

}  // namespace nibble::inline NIBBLE_ABI::io
