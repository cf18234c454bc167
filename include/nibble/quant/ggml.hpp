// SPDX-License-Identifier: Apache-2.0
//
// Conversion between GGUF's tensor types and our formats.
#pragma once

#include <optional>
#include <string>

#include "nibble/core/result.hpp"
#include "nibble/io/ggml_type.hpp"
#include "nibble/quant/format.hpp"
#include "nibble/quant/packed.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace quant {

// Error: unsupported, for types that have no kernels here and for unknown ids.
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

// ---- Packed matrices ---------------------------------------------------------------------------

namespace detail {

struct PackedType {
  Format format;
  io::GgmlType type;
};
inline constexpr PackedType kPackedTypes[] = {
    {Format::f32, io::GgmlType::packed_f32},   {Format::f16, io::GgmlType::packed_f16},
    {Format::bf16, io::GgmlType::packed_bf16}, {Format::q8_0, io::GgmlType::packed_q8_0},
    {Format::q4_0, io::GgmlType::packed_q4_0}, {Format::q4_1, io::GgmlType::packed_q4_1}};

// Checks that the sizes used to check files are those of the layout.
template <class F>
constexpr bool has_sizes_of(io::GgmlType type) noexcept {
  const io::GgmlTypeTraits traits = io::type_traits(type);
  for (Index k : {1, 31, 32, 33, 64, 65, 128, 1000}) {
    const Index groups = (k + traits.block_size - 1) / traits.block_size;
    if (Packed<F>::panel_bytes(k) != groups * traits.type_size) return false;
  }
  return traits.panel_rows == kPanelRows;
}
static_assert(has_sizes_of<F32>(io::GgmlType::packed_f32));
static_assert(has_sizes_of<F16>(io::GgmlType::packed_f16));
static_assert(has_sizes_of<BF16>(io::GgmlType::packed_bf16));
static_assert(has_sizes_of<Q8_0>(io::GgmlType::packed_q8_0));
static_assert(has_sizes_of<Q4_0>(io::GgmlType::packed_q4_0));
static_assert(has_sizes_of<Q4_1>(io::GgmlType::packed_q4_1));

}  // namespace detail

// The format of a packed tensor (quant/packed.hpp), or nothing if the type is not packed.
constexpr std::optional<Format> packed_format_of(io::GgmlType type) noexcept {
  for (const detail::PackedType& packed : detail::kPackedTypes) {
    if (packed.type == type) return packed.format;
  }
  return {};
}

// The tensor type of a packed matrix. Error: unsupported, for formats that have none.
inline Result<io::GgmlType> packed_type_of(Format format) {
  for (const detail::PackedType& packed : detail::kPackedTypes) {
    if (packed.format == format) return packed.type;
  }
  return Error{Errc::unsupported,
               "no packed tensor type for weight format " + std::string(to_string(format))};
}

}}}  // namespace nibble::NIBBLE_ABI::quant
