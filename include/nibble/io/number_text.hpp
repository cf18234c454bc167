// SPDX-License-Identifier: Apache-2.0
//
// Numbers as text that reads as the same number again.
#pragma once

#include <cstddef>
#include <cstdio>
#include <string>
#include <string_view>

#include "nibble/core/scalar.hpp"
#include "nibble/core/text.hpp"
#include "nibble/io/json.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace io {

namespace detail {

// The fewest decimal digits that give this number again, without point, and the power of ten of the
// first. `number` is finite.
struct Digits {
  std::string digits;
  int exponent = 0;
};
inline Digits shortest_digits(double number) {
  Digits result;
  for (int precision = 0; precision < 17; ++precision) {
    char text[40];
    const int n = std::snprintf(text, sizeof text, "%.*e", precision, number);
    // Only digits are taken: what stands between them depends on the locale.
    const std::string_view all(text, static_cast<std::size_t>(n));
    const std::size_t e = all.find('e');
    result.digits.clear();
    for (const char c : all.substr(0, e)) {
      if (c >= '0' && c <= '9') result.digits += c;
    }
    const std::string_view power = all.substr(e + 2);
    result.exponent = 0;
    for (const char c : power) result.exponent = result.exponent * 10 + (c - '0');
    if (all[e + 1] == '-') result.exponent = -result.exponent;

    std::string again = result.digits;
    again.insert(1, ".0");
    if (result.digits.size() > 1) again.erase(2, 1);
    again += 'e' + to_text(result.exponent);
    const auto read = JsonReader(again).number();
    if (read && *read == (number < 0 ? -number : number)) break;
  }
  return result;
}

}  // namespace detail

// As Python writes a float (repr): the fewest digits that give the number again, whatever the
// locale.
inline std::string number_text(double number) {
  if (is_nan(number)) return "nan";
  if (!is_finite(number)) return number < 0 ? "-inf" : "inf";
  auto [digits, exponent] = detail::shortest_digits(number);
  const bool is_negative = number < 0 || (number == 0 && 1 / number < 0);
  std::string text;
  if (exponent < -4 || exponent >= 16) {
    text = digits.substr(0, 1);
    if (digits.size() > 1) text.append(".").append(digits, 1);
    char power[16];
    std::snprintf(power, sizeof power, "e%+03d", exponent);
    text += power;
  } else if (exponent < 0) {
    text = "0." + std::string(static_cast<std::size_t>(-exponent - 1), '0') + digits;
  } else {
    const auto whole = static_cast<std::size_t>(exponent) + 1;
    if (digits.size() < whole + 1) digits.append(whole + 1 - digits.size(), '0');
    text = digits.substr(0, whole) + '.' + digits.substr(whole);
  }
  return is_negative ? '-' + text : text;
}

}}}  // namespace nibble::NIBBLE_ABI::io
