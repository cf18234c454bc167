// SPDX-License-Identifier: Apache-2.0
//
// Numbers that are read back exactly: in the fingerprints of runs, and in JSON.
#pragma once

#include <cstdio>
#include <string>
#include <string_view>

#include "nibble/core/config.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace train { namespace detail {

// A finite number as printf writes it, with a '.' in place of the point that the locale has, which
// can take several bytes.
inline std::string with_point(std::string_view printed) {
  std::string out;
  for (const char c : printed) {
    if ((c >= '0' && c <= '9') || c == '-' || c == '+' || c == 'e') {
      out += c;
    } else if (out.find('.') == out.npos) {
      out += '.';
    }
  }
  return out;
}

// A finite number with so many digits that it can be read back: 9 are enough for a float.
inline std::string exact_text(double x, int n_digits = 17) {
  char text[48];
  std::snprintf(text, sizeof text, "%.*g", n_digits, x);
  return with_point(text);
}

}}}}  // namespace nibble::NIBBLE_ABI::train::detail
