// SPDX-License-Identifier: Apache-2.0
//
// A tensor of a GGUF file, and the limits of the format, which its reader and its writer share.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "nibble/core/result.hpp"
#include "nibble/core/text.hpp"
#include "nibble/io/ggml_type.hpp"
#include "nibble/io/tensor_bytes.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace io {

inline constexpr std::uint32_t kGgufMagic = 0x46554747;  // "GGUF"
inline constexpr std::uint32_t kGgufVersion = 3;         // the version that we write
inline constexpr std::uint32_t kGgufDefaultAlignment = 32;
inline constexpr std::uint32_t kGgufMinAlignment = 8;  // gguf.md: a multiple of 8
inline constexpr std::uint32_t kGgufMaxAlignment = 1u << 20;
inline constexpr std::size_t kGgufMaxDims = 4;
inline constexpr std::size_t kGgufMaxTensorName = 64;  // bytes
inline constexpr std::size_t kGgufMaxKey = 65535;      // bytes
NIBBLE_HIDDEN inline constexpr std::string_view kGgufAlignmentKey = "general.alignment";
// Of the keys of a part of a model.
NIBBLE_HIDDEN inline constexpr std::string_view kGgufSplitPrefix = "split.";

struct GgufTensor {
  std::string_view name;
  GgmlType type = GgmlType::f32;
  std::uint32_t n_dims = 0;                          // 0 to 4
  std::array<std::uint64_t, 4> dims = {1, 1, 1, 1};  // dims[0] is contiguous; missing ones are 1
  // Exactly tensor_bytes(type, dims) bytes inside the file. Aligned to at least kGgufMinAlignment,
  // and to Gguf::alignment() if the first byte of the file is (the case after Gguf::open, up to the
  // size of a page).
  // After Gguf::join: aligned in any way, and stored in the order of `swapped`.
  std::span<const std::byte> data;
  SwappedAxes swapped = {};

  std::uint64_t n_elements() const noexcept {
    return dims[0] * dims[1] * (type_traits(type).has_own_size ? 1 : dims[2] * dims[3]);
  }
};

namespace detail {

// gguf.md asks for a multiple of 8; we require a power of two and set the upper limit.
inline Result<void> check_gguf_alignment(std::uint64_t alignment) {
  if (!std::has_single_bit(alignment) || alignment < kGgufMinAlignment ||
      alignment > kGgufMaxAlignment) {
    return Error{Errc::malformed,
                 "alignment " + to_text(alignment) + " is not a power of two from 8 to 1048576"};
  }
  return ok();
}

inline Result<void> check_gguf_name(std::string_view name, std::size_t max_size, const char* what) {
  if (name.empty()) return Error{Errc::malformed, std::string(what) + " is empty"};
  if (name.size() > max_size) {
    return Error{Errc::malformed, std::string(what) + " " + quoted(name) + " has " +
                                      to_text(name.size()) + " bytes, more than " +
                                      to_text(max_size)};
  }
  return ok();
}

}  // namespace detail

}}}  // namespace nibble::NIBBLE_ABI::io
