// SPDX-License-Identifier: Apache-2.0
//
// What `format` of JSON Schema means for a string, as regular expressions (json_pattern.hpp).
#pragma once

#include <string_view>

#include "nibble/core/config.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace grammar {

// Empty for a format that is not known. Dates have the days that their months have, none February
// 29; times have no leap seconds (RFC 3339); addresses are those that people use (a part of RFC
// 5321, RFC 1123 and RFC 3986), of any length: one loop has one mask, a limit one for each count.
inline std::string_view pattern_of_format(std::string_view format) noexcept {
#define NIBBLE_DATE                                                                  \
  "\\d{4}-((0[13578]|1[02])-(0[1-9]|[12]\\d|3[01])|(0[469]|11)-(0[1-9]|[12]\\d|30)|" \
  "02-(0[1-9]|1\\d|2[0-8]))"
#define NIBBLE_TIME \
  "([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d{1,6})?(Z|[+-]([01]\\d|2[0-3]):[0-5]\\d)"
#define NIBBLE_LABEL "[A-Za-z0-9]+(-+[A-Za-z0-9]+)*"
#define NIBBLE_HOST NIBBLE_LABEL "(\\." NIBBLE_LABEL ")*"
  struct Format {
    std::string_view name, pattern;
  };
  static constexpr Format kFormats[] = {
      {"date", "^" NIBBLE_DATE "$"},
      {"time", "^" NIBBLE_TIME "$"},
      {"date-time", "^" NIBBLE_DATE "T" NIBBLE_TIME "$"},
      {"duration",
       "^P(\\d{1,4}W|(\\d{1,4}Y(\\d{1,4}M(\\d{1,4}D)?)?|\\d{1,4}M(\\d{1,4}D)?|\\d{1,4}D)"
       "(T(\\d{1,4}H(\\d{1,4}M(\\d{1,4}S)?)?|\\d{1,4}M(\\d{1,4}S)?|\\d{1,4}S))?|"
       "T(\\d{1,4}H(\\d{1,4}M(\\d{1,4}S)?)?|\\d{1,4}M(\\d{1,4}S)?|\\d{1,4}S))$"},
      {"uuid", "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$"},
      {"ipv4",
       "^((25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)\\.){3}(25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)$"},
      {"hostname", "^" NIBBLE_HOST "$"},
      {"email", "^[A-Za-z0-9_+-]+(\\.[A-Za-z0-9_+-]+)*@" NIBBLE_HOST "$"},
      {"uri", "^[A-Za-z][A-Za-z0-9+.-]*://" NIBBLE_HOST "(:\\d{1,4})?"
              "(/([A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*)*"
              "(\\?([A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?"
              "(#([A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?$"},
      {"json-pointer", "^(/([^~/]|~[01])*)*$"},
  };
#undef NIBBLE_DATE
#undef NIBBLE_TIME
#undef NIBBLE_LABEL
#undef NIBBLE_HOST
  for (const Format& known : kFormats)
    if (known.name == format) return known.pattern;
  return {};
}

}}}  // namespace nibble::NIBBLE_ABI::grammar
