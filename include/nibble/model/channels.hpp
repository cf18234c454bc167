// SPDX-License-Identifier: Apache-2.0
//
// 8-bit weights with one scale for each row, as files have them: the codes of a matrix
// "<name>.weight" in a tensor of type I8, and beside it
//   <name>.scales        F32 (n): weight = scale of the row * code, codes in [-127, 127]
//   <name>.input_scale   F32 (1), optional: the range of the product's input, which is then
//   quantized
//                        with it; otherwise each row of the input gets a scale of its own
//   <name>.input_zero    I32 (1), optional: the input's codes are unsigned, with this zero point
// docs/static-int8.md describes them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/core/scalar.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/quant/format.hpp"
#include "nibble/quant/static_scale.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace detail {

// ---- For a store of weights --------------------------------------------------------------------

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

// Checks the sizes of codes, scales and the range of the input.
inline Result<void> check_channels(const graph::Weight& w, std::size_t n_codes,
                                   std::span<const float> scales) {
  using L = quant::Packed<quant::I8Channel>;
  const bool has_shape = w.n >= 1 && w.k >= 1 && w.n_experts >= 1 && w.n <= kMaxBytes / w.n_experts;
  const std::size_t n_rows = has_shape ? static_cast<std::size_t>(w.n * w.n_experts) : 1;
  if (!has_shape || n_codes / n_rows != static_cast<std::size_t>(w.k) || n_codes % n_rows != 0) {
    return Error{Errc::invalid_argument, to_text(n_codes) + " codes are not " +
                                             graph::shape_text(w.n, w.k, w.n_experts) + " weights"};
  }
  const Index longest = w.input.is_unsigned ? L::kMaxAffineK : L::kMaxK;
  if (w.k > longest) {
    return Error{Errc::limit, "rows of " + to_text(w.k) + " 8-bit weights; sums of more than " +
                                  to_text(longest) + " products might not fit 32 bits"};
  }
  if (scales.size() != n_rows) {
    return Error{Errc::invalid_argument, to_text(scales.size()) + " scales for " + to_text(n_rows) +
                                             " rows of 8-bit weights"};
  }
  for (std::size_t i = 0; i < scales.size(); ++i) {
    // The largest weight must be finite too.
    if (scales[i] >= 0.0f && is_finite(static_cast<double>(scales[i] * 127.0f))) continue;
    return Error{Errc::invalid_argument, "the scale of row " + to_text(i) + " is " +
                                             to_text(static_cast<double>(scales[i])) +
                                             "; it must be finite and at least 0"};
  }
  if ((w.input.scale != 0.0f || is_nan(static_cast<double>(w.input.scale)) ||
       w.input.is_unsigned) &&
      !quant::is_usable(w.input)) {
    return Error{Errc::invalid_argument,
                 "an input scale of " + to_text(static_cast<double>(w.input.scale)) +
                     " with zero point " + to_text(w.input.zero_point) +
                     "; the scale must be positive and finite, the zero point from 0 to 255"};
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

// ---- In a file ---------------------------------------------------------------------------------

// What a file has beside a tensor of codes.
struct ChannelTensors {
  std::vector<Scalar<float>> scales;
  quant::StaticScale input;
  std::array<const io::GgufTensor*, 3> tensors = {};  // those that exist
};

// The name of a tensor beside "<name>.weight": "<name>.scales".
inline std::string name_beside(std::string_view weight, std::string_view what) {
  constexpr std::string_view kEnd = ".weight";
  if (weight.ends_with(kEnd)) weight.remove_suffix(kEnd.size());
  return std::string(weight) + "." + std::string(what);
}

// Reads the tensors beside `weight`, which has n_rows rows in all. Errors: not_found (no scales),
// malformed (another type or size; an input scale or zero point out of range).
inline Result<ChannelTensors> read_channel_tensors(const io::Gguf& file, std::string_view weight,
                                                   std::size_t n_rows) {
  ChannelTensors found;
  std::size_t n_found = 0;
  const auto find = [&](const char* what, io::GgmlType type,
                        std::size_t n) -> Result<const io::GgufTensor*> {
    const std::string name = name_beside(weight, what);
    const io::GgufTensor* const tensor = file.find_tensor(name);
    if (tensor == nullptr) return tensor;
    if (tensor->type != type || tensor->n_elements() != n || tensor->swapped.any()) {
      return Error{Errc::malformed, file.name() + ": tensor " + io::quoted(name) + ": " +
                                        to_text(tensor->n_elements()) + " elements of type " +
                                        io::type_traits(tensor->type).name + ", expected " +
                                        to_text(n) + " of " + io::type_traits(type).name};
    }
    found.tensors[n_found++] = tensor;
    return tensor;
  };
  NIBBLE_TRY(scales, find("scales", io::GgmlType::f32, n_rows));
  if (scales == nullptr) {
    return Error{Errc::not_found, file.name() + ": tensor " + io::quoted(weight) +
                                      " is of type I8, but there is no " +
                                      io::quoted(name_beside(weight, "scales")) +
                                      " with the scales of its rows"};
  }
  found.scales.resize(n_rows);
  std::memcpy(found.scales.data(), scales->data.data(), n_rows * sizeof(float));
  NIBBLE_TRY(input_scale, find("input_scale", io::GgmlType::f32, 1));
  NIBBLE_TRY(input_zero, find("input_zero", io::GgmlType::i32, 1));
  if (input_scale != nullptr) {
    std::memcpy(&found.input.scale, input_scale->data.data(), sizeof(float));
  }
  if (input_zero != nullptr) {
    std::memcpy(&found.input.zero_point, input_zero->data.data(), sizeof(std::int32_t));
    found.input.is_unsigned = true;
  }
  // A file that has one of them means an input with a known range.
  if ((input_scale != nullptr || input_zero != nullptr) && !quant::is_usable(found.input)) {
    return Error{Errc::malformed,
                 file.name() + ": the input of tensor " + io::quoted(weight) + ": scale " +
                     to_text(static_cast<double>(found.input.scale)) + ", zero point " +
                     to_text(found.input.zero_point) +
                     "; the scale must be positive and finite, the zero point from 0 to 255"};
  }
  return found;
}

}}}  // namespace nibble::NIBBLE_ABI::detail
