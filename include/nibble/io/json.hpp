// SPDX-License-Identifier: Apache-2.0
//
// A strict pull parser for JSON (RFC 8259) whose structure is known in advance, as in the headers
// of model files. The caller asks for what it expects next: nesting is only as deep as the caller's
// code, and no input can make it deeper. Numbers are unsigned integers; nothing else is needed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "nibble/core/result.hpp"
#include "nibble/core/utf8.hpp"
#include "nibble/io/byte_reader.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace io {

// Every failure is Errc::malformed and gives the byte position. The text must outlive the reader.
class JsonReader {
 public:
  explicit JsonReader(std::string_view text) noexcept : text_(text) {}

  // Skips white space, then also `c` if it comes next. Returns whether it did.
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

  // An object: member(key) -> Result<void> must read the value. Rejecting duplicate keys is up to
  // the caller.
  template <class Member>
  Result<void> object(Member member) {
    return list('{', '}', [&]() -> Result<void> {
      NIBBLE_TRY(key, string());
      NIBBLE_CHECK(expect(':'));
      return member(std::move(key));
    });
  }

  // An array: element() -> Result<void> must read the value.
  template <class Element>
  Result<void> array(Element element) {
    return list('[', ']', element);
  }

  // A string, without its escapes; valid UTF-8.
  Result<std::string> string();

  // A number without sign, fraction or exponent that fits in 64 bits.
  Result<std::uint64_t> unsigned_integer();

  Error error(const std::string& what) const {
    return Error{Errc::malformed, "JSON at byte " + to_text(at_) + ": " + what};
  }

 private:
  void skip_space() noexcept {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r')) {
      ++at_;
    }
  }

  Result<void> expect(char c) {
    if (!accept(c)) return error(std::string("expected '") + c + "'");
    return ok();
  }

  template <class Item>
  Result<void> list(char open, char close, Item item) {
    NIBBLE_CHECK(expect(open));
    if (accept(close)) return ok();
    do {
      NIBBLE_CHECK(item());
    } while (accept(','));
    return expect(close);
  }

  Result<void> escape(std::string& out);
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
    const std::size_t length = utf8_length(text_.substr(at_, 4));
    if (length == 0) return error("a string that is not UTF-8");
    if (static_cast<unsigned char>(c) < 0x20) return error("a control character in a string");
    out.append(text_.substr(at_, length));
    at_ += length;
  }
  return error("a string without end");
}

// Reads what follows a backslash.
inline Result<void> JsonReader::escape(std::string& out) {
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
    append_utf8(out, first);
    return ok();
  }
  // Characters above U+FFFF are written as a high and a low surrogate.
  if (first > 0xdbff || text_.substr(at_, 2) != "\\u") return error("half a surrogate pair");
  at_ += 2;
  NIBBLE_TRY(second, hex4());
  if (second < 0xdc00 || second > 0xdfff) return error("half a surrogate pair");
  append_utf8(out, 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00));
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

}}}  // namespace nibble::NIBBLE_ABI::io
