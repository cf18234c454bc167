// SPDX-License-Identifier: Apache-2.0
//
// The tensor types of GGUF: their ids in files, and the elements and bytes per block. All types
// known to us are listed, including those without kernels, so that a file with them can be read,
// listed and copied.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "nibble/core/result.hpp"
#include "nibble/io/byte_reader.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace io {

// Values are the ids of ggml (ggml.h, enum ggml_type); ids that ggml has withdrawn are absent.
enum class GgmlType : std::uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q8_1 = 9,
  q2_k = 10,
  q3_k = 11,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  q8_k = 15,
  iq2_xxs = 16,
  iq2_xs = 17,
  iq3_xxs = 18,
  iq1_s = 19,
  iq4_nl = 20,
  iq3_s = 21,
  iq2_s = 22,
  iq4_xs = 23,
  i8 = 24,
  i16 = 25,
  i32 = 26,
  i64 = 27,
  f64 = 28,
  iq1_m = 29,
  bf16 = 30,
  tq1_0 = 34,
  tq2_0 = 35,
  mxfp4 = 39,
  nvfp4 = 40,
  q1_0 = 41,
  q2_0 = 42,
  // nibble's own ("nb" in the upper half): matrices in the packed layout of quant/packed.hpp. dims
  // are those of the matrix, (k, n).
  packed_f32 = 0x6e620000,
  packed_f16 = 0x6e620001,
  packed_bf16 = 0x6e620002,
  packed_q8_0 = 0x6e620003,
  packed_q4_0 = 0x6e620004,
  packed_q4_1 = 0x6e620005,
  packed_q5_0 = 0x6e620006,
  packed_q5_1 = 0x6e620007,
  packed_q4_k = 0x6e620008,
  packed_q5_k = 0x6e620009,
  packed_q6_k = 0x6e62000a,
  packed_q3_h = 0x6e62000b,
  packed_q2_h = 0x6e62000c,
  packed_q2_k = 0x6e620010,
  packed_q3_k = 0x6e620011,
  packed_tq2_0 = 0x6e620012,
  packed_iq4_nl = 0x6e620020,
  packed_iq4_xs = 0x6e620021,
  packed_mxfp4 = 0x6e620022,
  packed_q2_0 = 0x6e620013,
  packed_q1_0 = 0x6e620014,
  // Block formats of nibble's own, row by row (quant/block.hpp).
  q3_h = 0x6e620200,
  q2_h = 0x6e620201,
  // Packed with zeros left out (quant/sparse.hpp), so that the size depends on the weights: dims
  // are (k, n, number of 64 bytes).
  packed_q4_0_bitmask = 0x6e620100,
  packed_q4_0_16x4 = 0x6e620101,
  packed_q4_0_2of4 = 0x6e620102,
};

// The range of ids that belong to nibble.
inline constexpr std::uint32_t kFirstNibbleType = 0x6e620000;
inline constexpr std::uint32_t kLastNibbleType = 0x6e62ffff;

struct GgmlTypeTraits {
  const char* name;          // as ggml's tools print it
  std::uint32_t block_size;  // elements of a row per block; 0 for an id that we do not know
  std::uint32_t type_size;   // bytes per block
  // Packed types only: the number of interleaved rows. A block is then a group of all these rows.
  // Incomplete groups at the end of the rows and of the matrix are padded.
  std::uint32_t panel_rows = 0;
  // Whether dims[2] states the size, in units of type_size. block_size is then what divides rows.
  bool has_own_size = false;
};

constexpr GgmlTypeTraits type_traits(GgmlType type) noexcept {
  switch (type) {
    case GgmlType::f32: return {"F32", 1, 4};
    case GgmlType::f16: return {"F16", 1, 2};
    case GgmlType::q4_0: return {"Q4_0", 32, 18};
    case GgmlType::q4_1: return {"Q4_1", 32, 20};
    case GgmlType::q5_0: return {"Q5_0", 32, 22};
    case GgmlType::q5_1: return {"Q5_1", 32, 24};
    case GgmlType::q8_0: return {"Q8_0", 32, 34};
    case GgmlType::q8_1: return {"Q8_1", 32, 36};
    case GgmlType::q2_k: return {"Q2_K", 256, 84};
    case GgmlType::q3_k: return {"Q3_K", 256, 110};
    case GgmlType::q4_k: return {"Q4_K", 256, 144};
    case GgmlType::q5_k: return {"Q5_K", 256, 176};
    case GgmlType::q6_k: return {"Q6_K", 256, 210};
    case GgmlType::q8_k: return {"Q8_K", 256, 292};
    case GgmlType::iq2_xxs: return {"IQ2_XXS", 256, 66};
    case GgmlType::iq2_xs: return {"IQ2_XS", 256, 74};
    case GgmlType::iq3_xxs: return {"IQ3_XXS", 256, 98};
    case GgmlType::iq1_s: return {"IQ1_S", 256, 50};
    case GgmlType::iq4_nl: return {"IQ4_NL", 32, 18};
    case GgmlType::iq3_s: return {"IQ3_S", 256, 110};
    case GgmlType::iq2_s: return {"IQ2_S", 256, 82};
    case GgmlType::iq4_xs: return {"IQ4_XS", 256, 136};
    case GgmlType::i8: return {"I8", 1, 1};
    case GgmlType::i16: return {"I16", 1, 2};
    case GgmlType::i32: return {"I32", 1, 4};
    case GgmlType::i64: return {"I64", 1, 8};
    case GgmlType::f64: return {"F64", 1, 8};
    case GgmlType::iq1_m: return {"IQ1_M", 256, 56};
    case GgmlType::bf16: return {"BF16", 1, 2};
    case GgmlType::tq1_0: return {"TQ1_0", 256, 54};
    case GgmlType::tq2_0: return {"TQ2_0", 256, 66};
    case GgmlType::mxfp4: return {"MXFP4", 32, 17};
    case GgmlType::nvfp4: return {"NVFP4", 64, 36};
    case GgmlType::q1_0: return {"Q1_0", 128, 18};
    case GgmlType::q2_0: return {"Q2_0", 64, 18};
    case GgmlType::packed_f32: return {"packed F32", 1, 64, 16};
    case GgmlType::packed_f16: return {"packed F16", 2, 64, 16};
    case GgmlType::packed_bf16: return {"packed BF16", 2, 64, 16};
    case GgmlType::packed_q8_0: return {"packed Q8_0", 64, 1088, 16};
    case GgmlType::packed_q4_0: return {"packed Q4_0", 64, 576, 16};
    case GgmlType::packed_q4_1: return {"packed Q4_1", 64, 640, 16};
    case GgmlType::packed_q5_0: return {"packed Q5_0", 64, 704, 16};
    case GgmlType::packed_q5_1: return {"packed Q5_1", 64, 768, 16};
    case GgmlType::packed_q4_k: return {"packed Q4_K", 256, 2304, 16};
    case GgmlType::packed_q5_k: return {"packed Q5_K", 256, 2816, 16};
    case GgmlType::packed_q6_k: return {"packed Q6_K", 256, 3392, 16};
    case GgmlType::packed_q3_h: return {"packed Q3_H", 64, 448, 16};
    case GgmlType::packed_q2_h: return {"packed Q2_H", 64, 320, 16};
    case GgmlType::packed_q2_k: return {"packed Q2_K", 256, 1344, 16};
    case GgmlType::packed_q3_k: return {"packed Q3_K", 256, 1792, 16};
    case GgmlType::packed_tq2_0: return {"packed TQ2_0", 256, 1088, 16};
    case GgmlType::packed_iq4_nl: return {"packed IQ4_NL", 64, 576, 16};
    case GgmlType::packed_iq4_xs: return {"packed IQ4_XS", 256, 2176, 16};
    case GgmlType::packed_mxfp4: return {"packed MXFP4", 128, 1088, 16};
    case GgmlType::packed_q2_0: return {"packed Q2_0", 64, 320, 16};
    case GgmlType::packed_q1_0: return {"packed Q1_0", 128, 320, 16};
    case GgmlType::q3_h: return {"Q3_H", 32, 14};
    case GgmlType::q2_h: return {"Q2_H", 32, 10};
    case GgmlType::packed_q4_0_bitmask: return {"packed Q4_0 bitmask", 32, 64, 16, true};
    case GgmlType::packed_q4_0_16x4: return {"packed Q4_0 16x4", 32, 64, 16, true};
    case GgmlType::packed_q4_0_2of4: return {"packed Q4_0 2:4", 32, 64, 16, true};
  }
  return {"unknown", 0, 0};
}

// True for the types listed above. Check an id from a file with this before any other use.
constexpr bool is_known(GgmlType type) noexcept { return type_traits(type).block_size != 0; }

// The name of a type that ggml no longer has; null for other ids.
constexpr const char* withdrawn_name(std::uint32_t id) noexcept {
  switch (id) {
    case 4: return "Q4_2";
    case 5: return "Q4_3";
    case 31: return "Q4_0_4_4";
    case 32: return "Q4_0_4_8";
    case 33: return "Q4_0_8_8";
    case 36: return "IQ4_NL_4_4";
    case 37: return "IQ4_NL_4_8";
    case 38: return "IQ4_NL_8_8";
    default: return nullptr;
  }
}

// Bytes of a row of `n` elements. Errors: unsupported (unknown or packed type), malformed (n is
// zero or not a multiple of the block size), limit (does not fit in 64 bits).
inline Result<std::uint64_t> row_bytes(GgmlType type, std::uint64_t n) {
  const GgmlTypeTraits traits = type_traits(type);
  if (traits.block_size == 0) {
    const auto id = static_cast<std::uint32_t>(type);
    const bool ours = id >= kFirstNibbleType && id <= kLastNibbleType;
    if (const char* const name = withdrawn_name(id)) {
      return Error{Errc::unsupported,
                   std::string(name) + " (tensor type " + to_text(id) +
                       ") was withdrawn from GGUF; convert the model's original again"};
    }
    return Error{Errc::unsupported,
                 "tensor type " + to_text(id) +
                     (ours ? " is of another version of nibble; convert the model's original with "
                             "this one's quantize --packed"
                           : " is unknown")};
  }
  if (traits.panel_rows != 0) {
    return Error{Errc::unsupported, std::string(traits.name) + " has no rows of its own"};
  }
  if (n == 0 || n % traits.block_size != 0) {
    return Error{Errc::malformed, "a row of " + to_text(n) + " elements is no whole number of " +
                                      traits.name + " blocks of " + to_text(traits.block_size)};
  }
  std::uint64_t bytes = 0;
  if (!checked_multiply(n / traits.block_size, traits.type_size, bytes)) {
    return Error{Errc::limit, "a row of " + to_text(n) + " elements overflows 64 bits"};
  }
  return bytes;
}

namespace detail {

inline Result<std::uint64_t> packed_bytes(const GgmlTypeTraits& traits,
                                          std::span<const std::uint64_t> dims) {
  if (traits.has_own_size) {
    std::uint64_t bytes = 0, n_elements = 0;
    if (dims.size() < 3 || dims[0] == 0 || dims[1] == 0 || dims[2] == 0 ||
        dims[0] % traits.block_size != 0 || (dims.size() > 3 && dims[3] != 1)) {
      return Error{Errc::malformed,
                   std::string(traits.name) + ": dimensions that are not (k, n, size)"};
    }
    if (!checked_multiply(dims[2], traits.type_size, bytes) ||
        !checked_multiply(dims[0], dims[1], n_elements)) {
      return Error{Errc::limit, "the size in bytes or elements overflows 64 bits"};
    }
    return bytes;
  }
  std::uint64_t sizes[3] = {1, 1, 1};  // k, n, and how many matrices
  for (std::size_t i = 0; i < dims.size(); ++i) {
    if (dims[i] == 0 || (i >= 3 && dims[i] != 1)) {
      return Error{Errc::malformed, std::string(traits.name) + ": dimension " + to_text(i) +
                                        " is " + to_text(dims[i])};
    }
    if (i < 3) sizes[i] = dims[i];
  }
  std::uint64_t bytes = 0;
  if (!checked_multiply((sizes[0] - 1) / traits.block_size + 1, traits.type_size, bytes) ||
      !checked_multiply(bytes, (sizes[1] - 1) / traits.panel_rows + 1, bytes) ||
      !checked_multiply(bytes, sizes[2], bytes)) {
    return Error{Errc::limit, "the size in bytes overflows 64 bits"};
  }
  return bytes;
}

}  // namespace detail

// Bytes of a tensor. dims[0] is the contiguous dimension; empty dims mean a scalar. Errors: as for
// row_bytes, and malformed if any dimension is zero.
inline Result<std::uint64_t> tensor_bytes(GgmlType type, std::span<const std::uint64_t> dims) {
  if (type_traits(type).panel_rows != 0) return detail::packed_bytes(type_traits(type), dims);
  NIBBLE_TRY(bytes, row_bytes(type, dims.empty() ? 1 : dims[0]));
  for (std::size_t i = 1; i < dims.size(); ++i) {
    if (dims[i] == 0) {
      return Error{Errc::malformed, "dimension " + to_text(i) + " is zero"};
    }
    if (!checked_multiply(bytes, dims[i], bytes)) {
      return Error{Errc::limit, "the size in bytes overflows 64 bits"};
    }
  }
  return bytes;
}

}}}  // namespace nibble::NIBBLE_ABI::io
