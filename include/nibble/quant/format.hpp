// SPDX-License-Identifier: Apache-2.0
//
// The library's formats as run-time values, for what a file or a command line selects. visit_format
// maps a value to its type; rows of bytes are converted with checked sizes.
//
// A stored row of n weights is, in the byte order of the host (little-endian, as files are):
//   float formats    n elements
//   block formats    n / kLength Blocks
//   channel formats  the Header, then n codes
// Rows need no alignment. Consecutive rows of a float or block format may be treated as one row.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "nibble/core/libm.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/text.hpp"
#include "nibble/quant/block.hpp"
#include "nibble/quant/channel.hpp"
#include "nibble/quant/levels.hpp"
#include "nibble/quant/quantize.hpp"
#include "nibble/quant/sparse.hpp"
#include "nibble/quant/super_block.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace quant {

// The formats: one row for each, from which everything that lists formats is made. Those that GGUF
// has: the type, its name here (in io::GgmlType the same, and packed_<name> for the layout of
// quant/packed.hpp), and GGUF's number for "most matrices are in this format" (general.file_type;
// llama.cpp's llama_ftype).
#define NIBBLE_GGUF_FORMATS(row)                                                                \
  row(F32, f32, 0) row(F16, f16, 1) row(BF16, bf16, 32) row(Q8_0, q8_0, 7) row(Q4_0, q4_0, 2)   \
      row(Q4_1, q4_1, 3) row(Q5_0, q5_0, 8) row(Q5_1, q5_1, 9) row(Q4_K, q4_k, 15)              \
          row(Q5_K, q5_k, 17) row(Q6_K, q6_k, 18) row(Q3_H, q3_h, 1024) row(Q2_H, q2_h, 1024)   \
              row(Q2_K, q2_k, 10) row(Q3_K, q3_k, 12) row(TQ2_0, tq2_0, 37) row(Q2_0, q2_0, 41) \
                  row(Q1_0, q1_0, 40) row(IQ4_NL, iq4_nl, 25) row(IQ4_XS, iq4_xs, 30)           \
                      row(MXFP4, mxfp4, 38)
// Those that GGUF does not have.
#define NIBBLE_OTHER_FORMATS(row) row(I8Channel, i8_channel, _) row(U8Affine, u8_affine, _)
#define NIBBLE_FORMATS(row) NIBBLE_GGUF_FORMATS(row) NIBBLE_OTHER_FORMATS(row)
// Those of whole packed matrices with zeros left out (quant/sparse.hpp). They have no rows, so what
// is said about rows and about bits per weight does not apply, and kFormats does not list them.
#define NIBBLE_SPARSE_FORMATS(row)                                    \
  row(Q4_0Bitmask, q4_0_bitmask, _) row(Q4_0Blocks16x4, q4_0_16x4, _) \
      row(Q4_0TwoOfFour, q4_0_2of4, _)

enum class Format : std::uint8_t {
#define NIBBLE_ROW(Type, name, file_type) name,
  NIBBLE_FORMATS(NIBBLE_ROW) NIBBLE_SPARSE_FORMATS(NIBBLE_ROW)
#undef NIBBLE_ROW
};

NIBBLE_HIDDEN inline constexpr std::array kFormats = {
#define NIBBLE_ROW(Type, name, file_type) Format::name,
    NIBBLE_FORMATS(NIBBLE_ROW)
#undef NIBBLE_ROW
};

// Whether a format has rows: it is one of kFormats. Of those without (sparse formats, values that
// are no enumerator) the functions of this file say so; visit_format() must not be called with
// them.
constexpr bool has_rows(Format format) noexcept {
  for (const Format known : kFormats) {
    if (known == format) return true;
  }
  return false;
}

// Calls f(std::type_identity<F>{}) with the type F of a format that has rows. f must return the
// same type for all.
template <class Function>
constexpr decltype(auto) visit_format(Format format, Function&& f) {
  switch (format) {
#define NIBBLE_ROW(Type, name, file_type) \
  case Format::name: return f(std::type_identity<Type>{});
    NIBBLE_FORMATS(NIBBLE_ROW)
#undef NIBBLE_ROW
#define NIBBLE_ROW(Type, name, file_type) case Format::name:
    NIBBLE_SPARSE_FORMATS(NIBBLE_ROW)
#undef NIBBLE_ROW
    break;
  }
  NIBBLE_UNREACHABLE();  // no rows: a bug in the caller; files and names are checked
}

// The Format value of a type. A program's own format uses a value of its own, 128 or above:
//   template <> inline constexpr Format nibble::quant::kFormatOf<Mine> = Format{128};
template <class F>
inline constexpr Format kFormatOf = [] {
  for (const Format format : kFormats) {
    if (visit_format(format,
                     [](auto tag) { return std::is_same_v<typename decltype(tag)::type, F>; }))
      return format;
  }
  NIBBLE_UNREACHABLE();  // a type without a Format value does not compile
}();

#define NIBBLE_ROW(Type, name, file_type) \
  template <>                             \
  inline constexpr Format kFormatOf<Type> = Format::name;
NIBBLE_SPARSE_FORMATS(NIBBLE_ROW)
#undef NIBBLE_ROW

constexpr const char* to_string(Format format) noexcept {
  switch (format) {
#define NIBBLE_ROW(Type, name, file_type) \
  case Format::name: return #name;
    NIBBLE_FORMATS(NIBBLE_ROW) NIBBLE_SPARSE_FORMATS(NIBBLE_ROW)
#undef NIBBLE_ROW
  }
  return "unknown";
}

// The format with a given name, spelled as by to_string in any letter case. Error:
// invalid_argument.
Result<Format> format_from_name(std::string_view name);

// Storage of one weight in bits, including the scales of blocks but not the header of a channel.
template <class F>
constexpr double bits_per_weight() noexcept {
  if constexpr (BlockFormat<F>)
    return 8.0 * static_cast<double>(sizeof(typename F::Block)) / F::kLength;
  else
    return F::kBits;
}
// 0 for formats without rows: their size depends on the weights.
constexpr double bits_per_weight(Format format) noexcept {
  if (!has_rows(format)) return 0;
  return visit_format(format,
                      [](auto tag) { return bits_per_weight<typename decltype(tag)::type>(); });
}

// Error: unsupported, for a format without rows.
Result<void> check_has_rows(Format format);

// Bytes of a stored row of n weights. Errors: invalid_argument (n is not a whole number of blocks),
// limit (does not fit), unsupported (a format without rows).
template <class F>
Result<std::size_t> row_bytes(std::size_t n) {
  std::size_t header = 0;
  std::size_t unit = 1;
  if constexpr (BlockFormat<F>)
    unit = sizeof(typename F::Block);
  else if constexpr (ChannelFormat<F>)
    header = sizeof(typename F::Header);
  else
    unit = sizeof(typename F::Element);
  constexpr std::size_t kLength = F::kLength;
  if (n % kLength != 0) {
    return Error{
        Errc::invalid_argument,
        "a row of " + to_text(n) + " weights is no whole number of blocks of " + to_text(kLength)};
  }
  if (n / kLength > ((std::numeric_limits<std::size_t>::max)() - header) / unit) {
    return Error{Errc::limit, "a row of " + to_text(n) + " weights is too large"};
  }
  return header + n / kLength * unit;
}
Result<std::size_t> row_bytes(Format format, std::size_t n);

namespace detail {

template <class F>
Result<void> check_row(std::size_t n, std::size_t n_bytes) {
  NIBBLE_TRY(expected, row_bytes<F>(n));
  if (n_bytes != expected) {
    return Error{Errc::invalid_argument, "a row of " + to_text(n) + " weights takes " +
                                             to_text(expected) + " bytes, not " + to_text(n_bytes)};
  }
  return ok();
}
Result<void> check_row(Format format, std::size_t n, std::size_t n_bytes);

}  // namespace detail

// Converts a stored row to f32; out.size() is the number of weights. Errors: invalid_argument if
// the sizes do not match, limit and unsupported as for row_bytes.
template <class F>
Result<void> row_to_f32(std::span<const std::byte> row, std::span<float> out) {
  NIBBLE_CHECK(detail::check_row<F>(out.size(), row.size()));
  if constexpr (ChannelFormat<F>) {
    typename F::Header header;
    std::memcpy(&header, row.data(), sizeof(header));
    const auto codes = row.subspan(sizeof(header));
    for (std::size_t i = 0; i < out.size(); ++i) {
      out[i] = weight_of(header, static_cast<typename F::Code>(codes[i]));
    }
  } else if constexpr (BlockFormat<F>) {
    typename F::Block block;
    constexpr std::size_t kLength = F::kLength;
    for (std::size_t i = 0; i < out.size() / kLength; ++i) {
      std::memcpy(&block, row.data() + i * sizeof(block), sizeof(block));
      dequantize_block<F>(block, out.data() + i * kLength);
    }
  } else {
    typename F::Element element;
    for (std::size_t i = 0; i < out.size(); ++i) {
      std::memcpy(&element, row.data() + i * sizeof(element), sizeof(element));
      out[i] = to_f32(element);
    }
  }
  return ok();
}
Result<void> row_to_f32(Format format, std::span<const std::byte> row, std::span<float> out);

namespace detail {

// The weight of largest magnitude; a NaN counts as larger than any number.
inline std::size_t position_of_largest(std::span<const float> x) noexcept {
  std::size_t at = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (is_nan(static_cast<double>(x[i]))) return i;
    if (libm::fabs(x[i]) > libm::fabs(x[at])) at = i;
  }
  return at;
}

// Rounds x to the bytes of a stored row, whose size is right. Returns the position of a weight that
// the format cannot hold, or x.size() if there is none.
template <class F>
std::size_t round_row(std::span<const float> x, std::byte* row) noexcept {
  std::size_t bad = x.size();
  if constexpr (ChannelFormat<F>) {
    const typename F::Header header = fit<F>(x);
    std::memcpy(row, &header, sizeof(header));
    for (std::size_t i = 0; i < x.size(); ++i) {
      const bool fits = !is_nan(static_cast<double>(x[i])) && tamed(x[i]) == x[i];
      if (!fits && bad == x.size()) bad = i;
      row[sizeof(header) + i] = static_cast<std::byte>(code_of(header, x[i]));
    }
  } else if constexpr (BlockFormat<F>) {
    typename F::Block block;
    constexpr std::size_t kLength = F::kLength;
    for (std::size_t i = 0; i < x.size() / kLength; ++i) {
      const std::span<const float> weights = x.subspan(i * kLength, kLength);
      const bool fits = quantize_block<F>(weights.data(), block);
      if (!fits && bad == x.size()) bad = i * kLength + position_of_largest(weights);
      std::memcpy(row + i * sizeof(block), &block, sizeof(block));
    }
  } else {
    for (std::size_t i = 0; i < x.size(); ++i) {
      const auto element = round_to<typename F::Element>(x[i]);
      const bool fits =
          !is_finite(static_cast<double>(x[i])) || is_finite(static_cast<double>(to_f32(element)));
      if (!fits && bad == x.size()) bad = i;
      std::memcpy(row + i * sizeof(element), &element, sizeof(element));
    }
  }
  return bad;
}
std::size_t round_row(Format format, std::span<const float> x, std::byte* row) noexcept;

// Whether round_row() found no weight that does not fit.
Result<void> check_fits(std::span<const float> x, std::size_t bad, const char* format);

}  // namespace detail

// Rounds x to a stored row; row.size() must be row_bytes of x.size(). For a channel format, the
// header is fitted to this row. Errors: as for row_to_f32; limit if a weight is larger than the
// format can hold, and malformed if it is NaN and the format has none (the row is then the nearest
// that there is, see quantize.hpp).
template <class F>
Result<void> row_from_f32(std::span<const float> x, std::span<std::byte> row) {
  NIBBLE_CHECK(detail::check_row<F>(x.size(), row.size()));
  return detail::check_fits(x, detail::round_row<F>(x, row.data()), "this format");
}
Result<void> row_from_f32(Format format, std::span<const float> x, std::span<std::byte> row);

}}}  // namespace nibble::NIBBLE_ABI::quant

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/quant/format-inl.hpp"
#endif
