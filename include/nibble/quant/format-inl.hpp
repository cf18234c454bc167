// SPDX-License-Identifier: Apache-2.0
//
// Functions of formats that are known at run time. Included by format.hpp.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/text.hpp"
#include "nibble/quant/format.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace quant {

NIBBLE_INLINE Result<Format> format_from_name(std::string_view name) {
  std::string known;
  for (const Format format : kFormats) {
    const std::string_view candidate = to_string(format);
    if (equals_ignoring_case(name, candidate)) return format;
    known += known.empty() ? "" : ", ";
    known += candidate;
  }
  return Error{Errc::invalid_argument, "no such weight format; known are " + known};
}

NIBBLE_INLINE Result<void> check_has_rows(Format format) {
  if (has_rows(format)) return ok();
  return Error{Errc::unsupported, std::string("format ") + to_string(format) +
                                      " has no rows: it is for whole packed matrices"};
}

NIBBLE_INLINE Result<std::size_t> row_bytes(Format format, std::size_t n) {
  NIBBLE_CHECK(check_has_rows(format));
  return visit_format(format, [n](auto tag) { return row_bytes<typename decltype(tag)::type>(n); });
}

NIBBLE_INLINE Result<void> detail::check_row(Format format, std::size_t n, std::size_t n_bytes) {
  NIBBLE_CHECK(check_has_rows(format));
  return visit_format(
      format, [&](auto tag) { return check_row<typename decltype(tag)::type>(n, n_bytes); });
}

NIBBLE_INLINE Result<void> row_to_f32(Format format, std::span<const std::byte> row,
                                      std::span<float> out) {
  NIBBLE_CHECK(check_has_rows(format));
  return visit_format(format,
                      [&](auto tag) { return row_to_f32<typename decltype(tag)::type>(row, out); });
}

NIBBLE_INLINE std::size_t detail::round_row(Format format, std::span<const float> x,
                                            std::byte* row) noexcept {
  return visit_format(format,
                      [&](auto tag) { return round_row<typename decltype(tag)::type>(x, row); });
}

NIBBLE_INLINE Result<void> detail::check_fits(std::span<const float> x, std::size_t bad,
                                              const char* format) {
  if (bad == x.size()) return ok();
  const std::string where = "weight " + to_text(bad);
  const auto value = static_cast<double>(x[bad]);
  if (is_nan(value)) return Error{Errc::malformed, where + " is not a number"};
  return Error{Errc::limit, where + ", " + to_text(value) + ", is too large for " + format};
}

NIBBLE_INLINE Result<void> row_from_f32(Format format, std::span<const float> x,
                                        std::span<std::byte> row) {
  NIBBLE_CHECK(detail::check_row(format, x.size(), row.size()));
  return detail::check_fits(x, detail::round_row(format, x, row.data()), to_string(format));
}

}}}  // namespace nibble::NIBBLE_ABI::quant
