// SPDX-License-Identifier: Apache-2.0
//
// Rows of 8-bit weights with one scale for each row, as they come to a store of weights: codes in
// [-127, 127] and the scales in arrays of their own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "nibble/graph/weights.hpp"
#include "nibble/quant/format.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace detail {

// The format that codes of channels are computed with: I8Channel; without kernels for it f16, or
// f32 where f16 is not there or does not hold the weights. Error: unsupported.
inline Result<quant::Format> channel_format(graph::FormatTable formats,
                                            std::span<const float> scales) {
  using enum quant::Format;
  constexpr float kLargestF16 = 65504.0f;
  if (graph::find(formats, i8_channel) != nullptr) return i8_channel;
  bool fits = true;
  for (const float scale : scales) fits = fits && scale * 127.0f <= kLargestF16;
  if (fits && graph::find(formats, f16) != nullptr) return f16;
  if (graph::find(formats, f32) != nullptr) return f32;
  return Error{
      Errc::unsupported,
      "8-bit weights with a scale for each row need the format i8_channel, or f16 or f32 to "
      "be converted to; this program has none of them"};
}

// Checks the sizes of codes and scales, the scales, and the range of the input.
inline Result<void> check_channels(const graph::Weight& w, std::size_t n_codes,
                                   std::span<const float> scales) {
  const bool has_shape = w.n >= 1 && w.k >= 1 && w.n_experts >= 1 && w.n <= kMaxBytes / w.n_experts;
  const std::size_t n_rows = has_shape ? static_cast<std::size_t>(w.n * w.n_experts) : 1;
  if (!has_shape || n_codes / n_rows != static_cast<std::size_t>(w.k) || n_codes % n_rows != 0) {
    return Error{Errc::invalid_argument, to_text(n_codes) + " codes are not " +
                                             graph::shape_text(w.n, w.k, w.n_experts) + " weights"};
  }
  NIBBLE_CHECK(graph::check_row_input(w.k, w.input));
  if (scales.size() != n_rows) {
    return Error{Errc::invalid_argument, to_text(scales.size()) + " scales for " + to_text(n_rows) +
                                             " rows of 8-bit weights"};
  }
  for (std::size_t i = 0; i < scales.size(); ++i) {
    if (scales[i] >= 0.0f && is_finite(static_cast<double>(scales[i] * 127.0f))) continue;
    return Error{Errc::invalid_argument, "the scale of row " + to_text(i) + " is " +
                                             to_text(static_cast<double>(scales[i])) +
                                             "; it must be at least 0, and 127 times it finite"};
  }
  return ok();
}

inline Error code_error(Index row) {
  return {Errc::malformed,
          "row " + to_text(row) +
              " of a matrix of 8-bit weights has a code of -128; they are from -127 to 127"};
}

// Writes a row of codes as a stored row of `format` (quant/format.hpp): i8_channel, f16 or f32.
// False if a code is -128. weights: (k) floats of scratch memory.
inline bool store_channel(quant::Format format, std::span<const std::byte> codes, float scale,
                          std::span<float> weights, std::byte* out) noexcept {
  bool is_right = true;
  for (const std::byte code : codes) is_right = is_right && code != std::byte{0x80};
  if (!is_right) return false;
  if (format == quant::Format::i8_channel) {
    const quant::I8Channel::Header header{scale};
    std::memcpy(out, &header, sizeof(header));
    std::memcpy(out + sizeof(header), codes.data(), codes.size());
    return true;
  }
  for (std::size_t i = 0; i < codes.size(); ++i) {
    weights[i] =
        quant::weight_of(quant::I8Channel::Header{scale}, static_cast<std::int8_t>(codes[i]));
  }
  quant::detail::round_row(format, weights, out);
  return true;
}

}}}  // namespace nibble::NIBBLE_ABI::detail
