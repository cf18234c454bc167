// SPDX-License-Identifier: Apache-2.0
//
// 8-bit weights with one scale for each row, as files have them: the codes of a matrix
// "<name>.weight" in a tensor of type I8, and beside it
//   <name>.scales        F32 (n): weight = scale of the row * code, codes in [-127, 127]
//   <name>.input_scale   F32 (1), optional: the scale of the product's input, if it is known;
//                        otherwise each row of the input gets one of its own
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
#include "nibble/io/gguf.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/model/slot.hpp"
#include "nibble/quant/static_scale.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace detail {

// What a file has beside a tensor of codes.
struct ChannelTensors {
  std::vector<Scalar<float>> scales;
  quant::StaticScale input;
  std::array<const io::GgufTensor*, 3> tensors = {};  // those that exist
};

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

// general.file_type of a file whose types say it themselves (llama.cpp's LLAMA_FTYPE_GUESSED).
inline constexpr std::uint32_t kUnstatedFileType = 1024;

// Adds what stands beside the codes of `weight`, which has n_rows rows, to a writer: `scales` are
// those of the rows, or what io::GgufWriter asks for them; `input` must live until writing ends.
template <class Scales>
void add_channel_tensors(io::GgufWriter& writer, std::string_view weight, std::uint64_t n_rows,
                         const Scales& scales, const quant::StaticScale& input) {
  const std::uint64_t rows[] = {n_rows}, one[] = {1};
  writer.add_tensor(name_beside(weight, "scales"), io::GgmlType::f32, rows, scales);
  if (!input) return;
  writer.add_tensor(name_beside(weight, "input_scale"), io::GgmlType::f32, one,
                    std::as_bytes(std::span(&input.scale, 1)));
  if (!input.is_unsigned) return;
  writer.add_tensor(name_beside(weight, "input_zero"), io::GgmlType::i32, one,
                    std::as_bytes(std::span(&input.zero_point, 1)));
}

}}}  // namespace nibble::NIBBLE_ABI::detail
