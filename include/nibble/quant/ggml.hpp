// SPDX-License-Identifier: Apache-2.0
//
// Which of our formats a tensor type of GGUF is, and back.
#pragma once

#include <string>

#include "nibble/core/result.hpp"
#include "nibble/io/ggml_type.hpp"
#include "nibble/quant/format.hpp"

namespace nibble::inline NIBBLE_ABI::quant {

// Error: unsupported, for the types that have no kernels here, and for unknown ids.
inline Result<Format> format_of(io::GgmlType type) {
  switch (type) {
    case io::GgmlType::f32: return Format::f32;
    case io::GgmlType::f16: return Format::f16;
    case io::GgmlType::bf16: return Format::bf16;
    case io::GgmlType::q8_0: return Format::q8_0;
    case io::GgmlType::q4_0: return Format::q4_0;
    case io::GgmlType::q4_1: return Format::q4_1;
    default: break;
  }
  const std::string name = io::is_known(type) ? io::type_traits(type).name
                                              : std::to_string(static_cast<std::uint32_t>(type));
  return Error{Errc::unsupported, "no weight format for tensor type " + name};
}

// Error: unsupported, for the per-channel formats, which GGUF does not have.
inline Result<io::GgmlType> ggml_type_of(Format format) {
  switch (format) {
    case Format::f32: return io::GgmlType::f32;
    case Format::f16: return io::GgmlType::f16;
    case Format::bf16: return io::GgmlType::bf16;
    case Format::q8_0: return io::GgmlType::q8_0;
    case Format::q4_0: return io::GgmlType::q4_0;
    case Format::q4_1: return io::GgmlType::q4_1;
    case Format::i8_channel:
    case Format::u8_affine: break;
  }
  return Error{Errc::unsupported,
               "GGUF has no tensor type for weight format " + std::string(to_string(format))};
}

}  // namespace nibble::inline NIBBLE_ABI::quant
