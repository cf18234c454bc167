// SPDX-License-Identifier: Apache-2.0
//
// Dates as text: what templates ask strftime_now() for, in English whatever the locale.
#pragma once

#include <cstddef>
#include <cstdio>
#include <ctime>
#include <string>
#include <string_view>

#include "nibble/core/result.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace chat {

// The time of the machine's clock where it is.
inline std::tm local_time_now() noexcept {
  const std::time_t now = std::time(nullptr);
  std::tm result{};
#if defined(_WIN32)
  localtime_s(&result, &now);
#else
  localtime_r(&now, &result);
#endif
  return result;
}

// C's strftime, with '-' for a number without padding. Errors: unsupported (rare conversions).
inline Result<std::string> date_text(std::string_view format, const std::tm& time) {
  constexpr const char* kDays[] = {"Sunday",   "Monday", "Tuesday", "Wednesday",
                                   "Thursday", "Friday", "Saturday"};
  constexpr const char* kMonths[] = {"January",   "February", "March",    "April",
                                     "May",       "June",     "July",     "August",
                                     "September", "October",  "November", "December"};
  const std::string_view day = kDays[static_cast<unsigned>(time.tm_wday) % 7];
  const std::string_view month = kMonths[static_cast<unsigned>(time.tm_mon) % 12];
  const int hour12 = time.tm_hour % 12 == 0 ? 12 : time.tm_hour % 12;
  std::string out;
  for (std::size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%') {
      out += format[i];
      continue;
    }
    const bool is_padded = format.substr(i + 1, 1) != "-";
    i += is_padded ? 1 : 2;
    const auto number = [&](int value, int width) {
      char text[16];
      std::snprintf(text, sizeof text, "%0*d", is_padded ? width : 1, value);
      out += text;
    };
    switch (i < format.size() ? format[i] : '\0') {
      case 'Y': number(time.tm_year + 1900, 4); break;
      case 'y': number(time.tm_year % 100, 2); break;
      case 'm': number(time.tm_mon + 1, 2); break;
      case 'd': number(time.tm_mday, 2); break;
      case 'j': number(time.tm_yday + 1, 3); break;
      case 'H': number(time.tm_hour, 2); break;
      case 'I': number(hour12, 2); break;
      case 'M': number(time.tm_min, 2); break;
      case 'S': number(time.tm_sec, 2); break;
      case 'p': out += time.tm_hour < 12 ? "AM" : "PM"; break;
      case 'A': out += day; break;
      case 'a': out += day.substr(0, 3); break;
      case 'B': out += month; break;
      case 'b': out += month.substr(0, 3); break;
      case '%': out += '%'; break;
      default:
        return Error{Errc::unsupported,
                     "the date format '" + printable(format.substr(0, 80)) + "' is not supported"};
    }
  }
  return out;
}

}}}  // namespace nibble::NIBBLE_ABI::chat
