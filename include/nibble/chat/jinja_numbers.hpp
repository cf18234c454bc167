// SPDX-License-Identifier: Apache-2.0
//
// Numbers from texts, as Python's int() and float() read them, and the filters of numbers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

#include "nibble/chat/jinja_arguments.hpp"
#include "nibble/core/libm.hpp"
#include "nibble/core/scalar.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace chat { namespace detail {

// Removes white space around a number and its sign. Returns whether that is a minus.
inline bool take_sign(std::string_view& text) noexcept {
  text = without_trailing_space(without_leading_space(text));
  const bool is_negative = text.starts_with('-');
  if (is_negative || text.starts_with('+')) text.remove_prefix(1);
  return is_negative;
}

// The value of a digit; 36 for what is none in any base.
constexpr int digit_value(char c) noexcept {
  return is_digit(c) ? c - '0' : lower(c) >= 'a' && lower(c) <= 'z' ? lower(c) - 'a' + 10 : 36;
}

// Python's int(text, base), for ASCII digits: with a sign, single underscores between digits, and
// the prefix of base 2, 8 or 16, which base 0 goes by. False if the text is no such number. `fits`:
// whether 64 bits hold it.
inline bool read_integer(std::string_view text, std::int64_t base, std::int64_t& value,
                         bool& fits) noexcept {
  const bool is_negative = take_sign(text);
  bool needs_zero = false;  // base 0: decimal numbers do not begin with a zero
  const char kind = text.size() > 1 && text[0] == '0' ? lower(text[1]) : '\0';
  const std::int64_t said = kind == 'b' ? 2 : kind == 'o' ? 8 : kind == 'x' ? 16 : 0;
  if (said != 0 && (base == said || base == 0)) {
    base = said;
    text.remove_prefix(2);
    if (text.starts_with('_')) text.remove_prefix(1);
  } else if (base == 0) {
    base = 10;
    needs_zero = text.starts_with('0');
  }
  if (base < 2 || base > 36) return false;
  const auto most = static_cast<std::uint64_t>(INT64_MAX) + (is_negative ? 1 : 0);
  const auto radix = static_cast<std::uint64_t>(base);
  std::uint64_t magnitude = 0;
  bool was_digit = false;
  fits = true;
  for (const char c : text) {
    if (c == '_' && was_digit) {
      was_digit = false;
      continue;
    }
    const int digit = digit_value(c);
    if (digit >= base || (needs_zero && digit != 0)) return false;
    was_digit = true;
    const auto next = static_cast<std::uint64_t>(digit);
    fits = fits && magnitude <= (most - next) / radix;
    if (fits) magnitude = magnitude * radix + next;
  }
  // (Modulo 2^64: right for the least integer, too.)
  value = static_cast<std::int64_t>(is_negative ? 0 - magnitude : magnitude);
  return was_digit;
}

// Takes digits from the front of a text; single underscores may stand between them.
inline std::string take_digits(std::string_view& text) {
  std::string digits;
  while (!text.empty()) {
    const bool is_gap = text[0] == '_' && !digits.empty() && text.size() > 1 && is_digit(text[1]);
    if (is_gap) text.remove_prefix(1);
    if (!is_digit(text[0])) break;
    digits += text[0];
    text.remove_prefix(1);
  }
  return digits;
}

// Python's float(text). False if the text is no such number.
inline bool read_number(std::string_view text, double& value) {
  constexpr double kInfinite = std::numeric_limits<double>::infinity();
  const bool is_negative = take_sign(text);
  std::string lowered(text.substr(0, 9));
  std::transform(lowered.begin(), lowered.end(), lowered.begin(), lower);
  const bool is_infinite = lowered == "inf" || lowered == "infinity";
  if (is_infinite || lowered == "nan") {
    value = is_infinite ? kInfinite : std::numeric_limits<double>::quiet_NaN();
    if (is_negative) value = -value;
    return true;
  }
  std::string whole = take_digits(text), decimals, power;
  if (text.starts_with('.')) {
    text.remove_prefix(1);
    decimals = take_digits(text);
  }
  if (whole.empty() && decimals.empty()) return false;
  if (text.starts_with('e') || text.starts_with('E')) {
    text.remove_prefix(1);
    power = text.starts_with('-') ? "e-" : "e";
    if (text.starts_with('-') || text.starts_with('+')) text.remove_prefix(1);
    const std::string digits = take_digits(text);
    if (digits.empty()) return false;
    power += digits;
  }
  if (!text.empty()) return false;
  whole.erase(0, whole.find_first_not_of('0'));  // JSON has no leading zeros
  if (whole.empty()) whole = "0";
  if (!decimals.empty()) whole += '.' + decimals;
  const auto number = io::JsonReader(whole + power).number();
  value = number ? *number : kInfinite;  // the one error that there can be: it is too large
  if (is_negative) value = -value;
  return true;
}

inline Result<Value> to_integer(double value) {
  if (!(value > -9.2e18 && value < 9.2e18)) return argument_error("the number is too large");
  return Value::integer(static_cast<std::int64_t>(value));
}

inline Result<Value> to_int(Budget& budget, const Value& input, const Arguments& arguments) {
  NIBBLE_TRY(bound, bind<2>(arguments, {"default", "base"}));
  NIBBLE_CHECK(budget.look_at(input.bytes()));
  if (input.is_undefined()) return undefined_error("the value");
  const Value otherwise = bound[0] == nullptr ? Value::integer(0) : *bound[0];
  if (input.is(Type::number))
    return is_nan(input.number()) ? otherwise : to_integer(input.number());
  if (input.is_number()) return Value::integer(input.integer());
  if (!input.is_string()) return otherwise;
  const bool has_base =
      bound[1] == nullptr || bound[1]->is(Type::integer) || bound[1]->is(Type::boolean);
  std::int64_t whole = 0;
  bool fits = true;
  if (has_base &&
      read_integer(input.bytes(), bound[1] == nullptr ? 10 : bound[1]->integer(), whole, fits)) {
    if (!fits) return argument_error("the number is too large");
    return Value::integer(whole);
  }
  double value = 0;  // "4.7" is 4
  return read_number(input.bytes(), value) && is_finite(value) ? to_integer(value) : otherwise;
}

inline Result<Value> to_float(Budget& budget, const Value& input, const Arguments& arguments) {
  NIBBLE_TRY(bound, bind<1>(arguments, {"default"}));
  NIBBLE_CHECK(budget.look_at(input.bytes()));
  if (input.is_undefined()) return undefined_error("the value");
  if (input.is_number()) return Value::number(input.number());
  double value = 0;
  if (input.is_string() && read_number(input.bytes(), value)) return Value::number(value);
  return bound[0] == nullptr ? Value::number(0) : *bound[0];
}

inline Result<Value> absolute(Budget&, const Value& input, const Arguments& arguments) {
  NIBBLE_TRY(bound, bind<0>(arguments, {}));
  static_cast<void>(bound);
  if (input.is(Type::number))
    return Value::number(input.number() < 0 ? -input.number() : input.number());
  if (!input.is_number()) return argument_error("takes a number");
  if (input.integer() == INT64_MIN) return argument_error("the number is too large");
  return Value::integer(input.integer() < 0 ? -input.integer() : input.integer());
}

// The nearest whole number; of two, the even one. Or the next lower, or the next higher.
inline double to_whole(double value, std::string_view method) noexcept {
  if (!(value > -4503599627370496.0 && value < 4503599627370496.0)) return value;  // 2^52
  const auto cut = static_cast<double>(static_cast<std::int64_t>(value));
  const double floor = cut > value ? cut - 1 : cut;
  if (method == "floor" || floor == value) return floor;
  if (method == "ceil") return floor + 1;
  const double rest = value - floor;
  if (rest != 0.5) return rest < 0.5 ? floor : floor + 1;
  return static_cast<std::int64_t>(floor) % 2 == 0 ? floor : floor + 1;
}

inline Result<Value> rounded(Budget&, const Value& input, const Arguments& arguments) {
  NIBBLE_TRY(bound, bind<2>(arguments, {"precision", "method"}));
  if (!input.is_number()) return argument_error("takes a number");
  NIBBLE_TRY(precision, integer_or(bound[0], 0));
  NIBBLE_TRY(method, text_or(bound[1], "common"));
  const std::string_view how = method.bytes();
  if (how != "common" && how != "floor" && how != "ceil")
    return argument_error("the method must be common, ceil or floor");
  if (precision < -20 || precision > 20) return argument_error("the precision is too large");
  if (!input.is(Type::number) && how == "common" && precision >= 0) return input;
  const double power = libm::pow(10, static_cast<double>(precision < 0 ? -precision : precision));
  const double scaled = precision < 0 ? input.number() / power : input.number() * power;
  const double whole = to_whole(scaled, how);
  return Value::number(precision < 0 ? whole * power : whole / power);
}

}}}}  // namespace nibble::NIBBLE_ABI::chat::detail
