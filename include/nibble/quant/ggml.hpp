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

namespace detail {

// What GGUF calls a format.
struct GgufNames {
  Format format;
  io::GgmlType type;
  io::GgmlType packed_type;
  std::uint32_t file_type;
};
NIBBLE_HIDDEN inline constexpr GgufNames kGgufNames[] = {
#define NIBBLE_ROW(Type, name, file_type) \
  {Format::name, io::GgmlType::name, io::GgmlType::packed_##name, file_type},
    NIBBLE_GGUF_FORMATS(NIBBLE_ROW)
#undef NIBBLE_ROW
};
// The tensor types of sparse formats.
struct SparseNames {
  Format format;
  io::GgmlType packed_type;
};
NIBBLE_HIDDEN inline constexpr SparseNames kSparseNames[] = {
#define NIBBLE_ROW(Type, name, file_type) {Format::name, io::GgmlType::packed_##name},
    NIBBLE_SPARSE_FORMATS(NIBBLE_ROW)
#undef NIBBLE_ROW
};
constexpr const GgufNames* gguf_names(Format format) noexcept {
  for (const GgufNames& names : kGgufNames) {
    if (names.format == format) return &names;
  }
  return nullptr;
}
inline Error no_gguf_type(const char* kind, Format format) {
  return {Errc::unsupported,
          kind + std::string(" for weight format ") + std::string(to_string(format))};
}

template <class F>
constexpr bool has_sizes_of(io::GgmlType type) noexcept {
  const io::GgmlTypeTraits traits = io::type_traits(type);
  for (Index k : {1, 31, 32, 33, 64, 65, 128, 1000}) {
    const Index groups = (k + traits.block_size - 1) / traits.block_size;
    if (Packed<F>::panel_bytes(k) != groups * traits.type_size) return false;
  }
  return traits.panel_rows == kPanelRows;
}
#define NIBBLE_ROW(Type, name, file_type) \
  static_assert(has_sizes_of<Type>(io::GgmlType::packed_##name));
NIBBLE_GGUF_FORMATS(NIBBLE_ROW)
#undef NIBBLE_ROW

}  // namespace detail

// Error: unsupported, for types that are only read (quant/read_only.hpp), packed ones, those that
// hold no weights, and unknown ids.
inline Result<Format> format_of(io::GgmlType type) {
  for (const detail::GgufNames& names : detail::kGgufNames) {
    if (names.type == type) return names.format;
  }
  const io::GgmlTypeTraits traits = io::type_traits(type);
  if (traits.panel_rows != 0) {
    return Error{Errc::unsupported, std::string(traits.name) +
                                        ": the file was made by quantize --packed, which cannot "
                                        "be undone; convert the file that it was made from"};
  }
  std::string known;
  for (const detail::GgufNames& names : detail::kGgufNames) {
    known += (known.empty() ? "" : ", ") + std::string(io::type_traits(names.type).name);
  }
  const std::string name =
      io::is_known(type) ? std::string(traits.name) : to_text(static_cast<std::uint32_t>(type));
  return Error{Errc::unsupported, "type " + name + " is no format of weights; those are " + known};
}

// Error: unsupported, for the per-channel formats, which GGUF does not have.
inline Result<io::GgmlType> ggml_type_of(Format format) {
  if (const auto* const names = detail::gguf_names(format)) return names->type;
  return detail::no_gguf_type("GGUF has no tensor type", format);
}

// GGUF's number for "most matrices are in `format`" (general.file_type). Error: as ggml_type_of.
inline Result<std::uint32_t> gguf_file_type(Format format) {
  if (const auto* const names = detail::gguf_names(format)) return names->file_type;
  return detail::no_gguf_type("GGUF has no tensor type", format);
}

// The format of a packed tensor (quant/packed.hpp), or nothing if the tensor is not packed.
constexpr std::optional<Format> packed_format_of(io::GgmlType type) noexcept {
  for (const detail::GgufNames& names : detail::kGgufNames) {
    if (names.packed_type == type) return names.format;
  }
  for (const detail::SparseNames& names : detail::kSparseNames) {
    if (names.packed_type == type) return names.format;
  }
  return {};
}

// The tensor type of a packed matrix. Error: unsupported, for formats that have none.
inline Result<io::GgmlType> packed_type_of(Format format) {
  if (const auto* const names = detail::gguf_names(format)) return names->packed_type;
  for (const detail::SparseNames& names : detail::kSparseNames) {
    if (names.format == format) return names.packed_type;
  }
  return detail::no_gguf_type("no packed tensor type", format);
}

}}}  // namespace nibble::NIBBLE_ABI::quant
