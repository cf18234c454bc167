// SPDX-License-Identifier: Apache-2.0
//
// Numbers in the fingerprints of runs.
#pragma once

#include <cstddef>
#include <cstdio>
#include <string>

#include "nibble/core/config.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace train { namespace detail {

// A number as text from which it can be read back.
inline std::string exact_text(double x) {
  char text[32];
  const int n = std::snprintf(text, sizeof text, "%.17g", x);
  return std::string(text, static_cast<std::size_t>(n));
}

}}}}  // namespace nibble::NIBBLE_ABI::train::detail
