// SPDX-License-Identifier: Apache-2.0
//
// A strict pull parser for JSON (RFC 8259) whose structure is known in advance, as in the headers
// of model files. The caller asks for what it expects next: nesting is only as deep as the caller's
// code, and no input can make it deeper. (For parts of unknown structure: json_value.hpp.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "nibble/core/libm.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
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

  // The next character that is no white space; NUL at the end.
  char peek() noexcept {
    skip_space();
    return at_ == text_.size() ? '\0' : text_[at_];
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

  // Any number: the nearest double, or a neighbour of it if there are more than 15 digits. An error
  // if it is too large for a double.
  Result<double> number();

  Result<bool> boolean();

  // Passes over `null` if that comes next. Returns whether it did.
  bool accept_null() noexcept { return accept_word("null"); }

  // Passes over a value of any kind, in which at most kMaxDepth objects and arrays are open.
  static constexpr int kMaxDepth = 64;
  Result<void> skip(int depth = 0);
  // The text of a value of any kind, as it is written: 1 and 1.0 differ.
  Result<std::string_view> raw() {
    skip_space();
    const std::size_t begin = at_;
    NIBBLE_CHECK(skip());
    return text_.substr(begin, at_ - begin);
  }

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

  bool accept_word(std::string_view word) noexcept {
    skip_space();
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  // Passes over decimal digits and appends them to a number: value = value * 10 + digit. Digits
  // that no longer fit count in `dropped` instead. Returns how many there were.
  std::size_t digits(std::uint64_t& value, int& dropped) noexcept;

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

inline std::size_t JsonReader::digits(std::uint64_t& value, int& dropped) noexcept {
  constexpr std::uint64_t kMostDigits = 99'999'999'999'999'999;  // one more and it may not fit
  const std::size_t begin = at_;
  for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
    if (value > kMostDigits) {
      ++dropped;
    } else {
      value = value * 10 + static_cast<std::uint64_t>(text_[at_] - '0');
    }
  }
  return at_ - begin;
}

inline Result<double> JsonReader::number() {
  const bool is_negative = accept('-');
  const std::size_t begin = at_;
  std::uint64_t significand = 0;
  int dropped = 0;
  const std::size_t n_digits = digits(significand, dropped);
  if (n_digits == 0) return error("expected a number");
  if (text_[begin] == '0' && n_digits > 1) return error("a number with a leading zero");
  std::int64_t exponent = dropped;
  const auto next_is = [&](char c) { return at_ < text_.size() && text_[at_] == c; };
  if (next_is('.')) {
    ++at_;
    dropped = 0;
    const std::size_t n_decimals = digits(significand, dropped);
    if (n_decimals == 0) return error("a number without digits after its point");
    exponent += dropped - static_cast<std::int64_t>(n_decimals);
  }
  if (next_is('e') || next_is('E')) {
    ++at_;
    const bool is_small = next_is('-');
    if (is_small || next_is('+')) ++at_;
    std::uint64_t power = 0;
    int ignored = 0;
    if (digits(power, ignored) == 0) return error("a number without digits in its exponent");
    const auto limited = static_cast<std::int64_t>(power < 100'000 ? power : 100'000);
    exponent += is_small ? -limited : limited;
  }
  // Powers of ten up to 10^22 are exact, so that usual numbers are rounded once.
  double value = static_cast<double>(significand);
  while (exponent != 0 && value != 0 && is_finite(value)) {
    const std::int64_t step = exponent < -22 ? -22 : exponent > 22 ? 22 : exponent;
    const double power = libm::pow(10, static_cast<double>(step < 0 ? -step : step));
    value = step < 0 ? value / power : value * power;
    exponent -= step;
  }
  if (!is_finite(value)) return error("a number that is too large");
  return is_negative ? -value : value;
}

inline Result<bool> JsonReader::boolean() {
  if (accept_word("true")) return true;
  if (accept_word("false")) return false;
  return error("expected true or false");
}

inline Result<void> JsonReader::skip(int depth) {
  if (depth >= kMaxDepth && (peek() == '{' || peek() == '[')) return error("nested too deeply");
  switch (peek()) {
    case '{': return object([&](const std::string&) { return skip(depth + 1); });
    case '[': return array([&] { return skip(depth + 1); });
    case '"': NIBBLE_CHECK(string()); return ok();
    case 't':
    case 'f': NIBBLE_CHECK(boolean()); return ok();
    case 'n':
      if (accept_null()) return ok();
      break;
    default: break;
  }
  NIBBLE_CHECK(number());
  return ok();
}

}}}  // namespace nibble::NIBBLE_ABI::io
