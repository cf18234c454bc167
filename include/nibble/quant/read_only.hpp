// SPDX-License-Identifier: Apache-2.0
//
// Types of GGUF that are read exactly, but have no kernels, or none in most programs: a model's
// weights in them are converted to the nearest of nibble's formats when it is loaded, if the
// program has none that holds the same weights. The nearest is the smallest that adds little to the
// error that the weights have already; where it is said, it adds none.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>

#include "nibble/core/exact_math.hpp"
#include "nibble/core/result.hpp"
#include "nibble/io/ggml_type.hpp"
#include "nibble/quant/codebooks.hpp"
#include "nibble/quant/format.hpp"
#include "nibble/quant/ggml.hpp"

NIBBLE_EXACT_MATH_BEGIN
namespace nibble { inline namespace NIBBLE_ABI { namespace quant {

namespace detail {

// ---- Reading one block -------------------------------------------------------------------------

struct BlockBytes {
  const std::uint8_t* at;

  int operator[](std::size_t i) const noexcept { return at[i]; }
  std::uint32_t u32_at(std::size_t i) const noexcept { return half(i) | half(i + 2) << 16; }
  std::uint32_t half(std::size_t i) const noexcept { return at[i] | std::uint32_t{at[i + 1]} << 8; }
  float f16_at(std::size_t i) const noexcept {
    return to_f32(f16{static_cast<std::uint16_t>(half(i))});
  }
};

// A block of one of nibble's formats.
template <class F>
void read_format(BlockBytes b, float* out) noexcept {
  typename F::Block block;
  std::memcpy(&block, b.at, sizeof(block));
  dequantize_block<F>(block, out);
}

// Eight magnitudes of a codebook of 2-bit levels, times `scale` and the signs.
inline void read_iq2_entry(std::uint32_t entry, int signs, float scale, float* out) noexcept {
  constexpr float kMagnitudes[4] = {8, 25, 43, 0};
  for (int i = 0; i < 8; ++i) {
    const float value = scale * kMagnitudes[entry >> 2 * i & 3];
    out[i] = (signs >> i & 1) != 0 ? -value : value;
  }
}
// Seven signs, and an eighth that makes the number of negative ones even.
inline int eight_signs(std::uint32_t seven) noexcept {
  std::uint32_t parity = seven ^ seven >> 4;
  parity ^= parity >> 2;
  parity ^= parity >> 1;
  return static_cast<int>(seven | (parity & 1) << 7);
}

inline void read_iq2_xxs(BlockBytes b, float* out) noexcept {
  const float d = b.f16_at(0);
  for (std::size_t g = 0; g < 8; ++g) {
    const std::uint32_t rest = b.u32_at(2 + 8 * g + 4);
    const float scale = d * (0.5f + static_cast<float>(rest >> 28)) * 0.25f;
    for (std::size_t j = 0; j < 4; ++j) {
      read_iq2_entry(kCodebookIq2Xxs[b[2 + 8 * g + j]], eight_signs(rest >> 7 * j & 127), scale,
                     out + 32 * g + 8 * j);
    }
  }
}

inline void read_iq2_xs(BlockBytes b, float* out) noexcept {
  const float d = b.f16_at(0);
  for (std::size_t j = 0; j < 32; ++j) {
    const std::uint32_t code = b.half(2 + 2 * j);
    const int scale = b[66 + j / 4] >> j / 2 % 2 * 4 & 15;
    read_iq2_entry(kCodebookIq2Xs[code & 511], eight_signs(code >> 9),
                   d * (0.5f + static_cast<float>(scale)) * 0.25f, out + 8 * j);
  }
}

inline void read_iq2_s(BlockBytes b, float* out) noexcept {
  const float d = b.f16_at(0);
  for (std::size_t j = 0; j < 32; ++j) {
    const int code = b[2 + j] | (b[66 + j / 4] >> j % 4 * 2 & 3) << 8;
    const int scale = b[74 + j / 4] >> j / 2 % 2 * 4 & 15;
    read_iq2_entry(kCodebookIq2S[code], b[34 + j], d * (0.5f + static_cast<float>(scale)) * 0.25f,
                   out + 8 * j);
  }
}

inline void read_iq3_xxs(BlockBytes b, float* out) noexcept {
  constexpr float kMagnitudes[8] = {4, 12, 20, 28, 36, 44, 52, 62};
  const float d = b.f16_at(0);
  for (std::size_t i = 0; i < 256; ++i) {
    const std::uint32_t rest = b.u32_at(66 + i / 32 * 4);
    const float scale = d * (0.5f + static_cast<float>(rest >> 28)) * 0.5f;
    const int level = kCodebookIq3Xxs[b[2 + i / 4]] >> 3 * (i % 4) & 7;
    const int signs = eight_signs(rest >> 7 * (i / 8 % 4) & 127);
    const float value = scale * kMagnitudes[level];
    out[i] = (signs >> i % 8 & 1) != 0 ? -value : value;
  }
}

inline void read_iq3_s(BlockBytes b, float* out) noexcept {
  const float d = b.f16_at(0);
  for (std::size_t i = 0; i < 256; ++i) {
    const int scale = b[106 + i / 64] >> i / 32 % 2 * 4 & 15;
    const int code = b[2 + i / 4] | (b[66 + i / 32] >> i / 4 % 8 & 1) << 8;
    const int level = kCodebookIq3S[code] >> 3 * (i % 4) & 7;
    const float value = d * static_cast<float>(1 + 2 * scale) * static_cast<float>(2 * level + 1);
    out[i] = (b[74 + i / 8] >> i % 8 & 1) != 0 ? -value : value;
  }
}

// Eight of -1, 0, 1, shifted by an eighth.
inline void read_iq1_entry(int code, bool down, float scale, float* out) noexcept {
  const int entry = kCodebookIq1[code];
  const float shift = down ? -0.125f : 0.125f;
  for (int i = 0; i < 8; ++i) {
    out[i] = scale * (static_cast<float>((entry >> 2 * i & 3) - 1) + shift);
  }
}

inline void read_iq1_s(BlockBytes b, float* out) noexcept {
  const float d = b.f16_at(0);
  for (std::size_t j = 0; j < 32; ++j) {
    const int upper = static_cast<int>(b.half(34 + j / 4 * 2));
    const int code = b[2 + j] | (upper >> 3 * (j % 4) & 7) << 8;
    read_iq1_entry(code, upper >> 15 != 0, d * static_cast<float>(2 * (upper >> 12 & 7) + 1),
                   out + 8 * j);
  }
}

// The f16 scale is in the top bits of the four halves with small scales.
inline void read_iq1_m(BlockBytes b, float* out) noexcept {
  std::uint32_t bits = 0;
  for (std::size_t i = 0; i < 4; ++i) bits |= b.half(48 + 2 * i) >> 12 << 4 * i;
  const float d = to_f32(f16{static_cast<std::uint16_t>(bits)});
  for (std::size_t j = 0; j < 32; ++j) {
    const int upper = b[32 + j / 2] >> j % 2 * 4;
    const std::uint32_t scale = b.half(48 + j / 8 * 2) >> 3 * (j / 2 % 4) & 7;
    read_iq1_entry(b[j] | (upper & 7) << 8, (upper & 8) != 0, d * static_cast<float>(2 * scale + 1),
                   out + 8 * j);
  }
}

inline float mxfp4_scale(BlockBytes b) noexcept { return to_f32(HalfE8M0{b.at[0]}); }

// Four groups of 16, each with half of an 8-bit float without sign: 4 bits of exponent, 3 of
// mantissa.
inline void read_nvfp4(BlockBytes b, float* out) noexcept {
  for (std::size_t g = 0; g < 4; ++g) {
    const int exponent = b[g] >> 3 & 15, mantissa = b[g] & 7;
    const auto power = static_cast<std::uint32_t>(exponent == 0 ? 117 : 116 + exponent) << 23;
    const float unit = __builtin_bit_cast(float, power);  // half of the mantissa's last place
    const bool is_zero = b[g] == 0 || b[g] == 127;
    const int steps = is_zero ? 0 : exponent == 0 ? mantissa : 8 + mantissa;
    read_levels(b.at + 4 + 8 * g, 8, kFp4Levels, unit * static_cast<float>(steps), out + 16 * g);
  }
}

// Five of -1, 0, 1 in a byte, as a fraction of 256 in base 3.
inline void read_tq1_0(BlockBytes b, float* out) noexcept {
  constexpr int kPowers[5] = {1, 3, 9, 27, 81};
  const float d = b.f16_at(52);
  const auto read = [&](std::size_t first, std::size_t n_bytes, std::size_t n_digits) {
    for (std::size_t digit = 0; digit < n_digits; ++digit) {
      for (std::size_t j = 0; j < n_bytes; ++j) {
        const int rest = b[first + j] * kPowers[digit] & 255;
        *out++ = d * static_cast<float>((rest * 3 >> 8) - 1);
      }
    }
  };
  read(0, 32, 5);
  read(32, 16, 5);
  read(48, 4, 4);
}

// ---- All of them -------------------------------------------------------------------------------

// The scale of a block whose weights are small integers times it.
template <std::size_t kAt>
float f16_scale(BlockBytes b) noexcept {
  return b.f16_at(kAt);
}

}  // namespace detail

struct ReadOnlyType {
  io::GgmlType type;
  Format nearest;        // for rows that are whole super-blocks
  Format nearest_short;  // for others
  void (*read)(detail::BlockBytes block, float* out);
  // Where all weights of a block are integers times one scale that `nearest` can hold: that scale.
  float (*scale)(detail::BlockBytes block) = nullptr;
  // A format that holds all weights of this type as they are; not every program has it.
  std::optional<Format> exact = {};

  Format nearest_for(std::size_t k) const noexcept {
    return k % 256 == 0 ? nearest : nearest_short;
  }
};

NIBBLE_HIDDEN inline constexpr ReadOnlyType kReadOnlyTypes[] = {
    {io::GgmlType::q2_k, Format::q4_k, Format::q4_k, detail::read_format<Q2_K>, nullptr,
     Format::q2_k},
    {io::GgmlType::q3_k, Format::q4_k, Format::q4_k, detail::read_format<Q3_K>, nullptr,
     Format::q3_k},
    {io::GgmlType::iq1_s, Format::q4_k, Format::q4_k, detail::read_iq1_s},
    {io::GgmlType::iq1_m, Format::q4_k, Format::q4_k, detail::read_iq1_m},
    {io::GgmlType::iq2_xxs, Format::q4_k, Format::q4_k, detail::read_iq2_xxs},
    {io::GgmlType::iq2_xs, Format::q4_k, Format::q4_k, detail::read_iq2_xs},
    {io::GgmlType::iq2_s, Format::q4_k, Format::q4_k, detail::read_iq2_s},
    {io::GgmlType::iq3_xxs, Format::q4_k, Format::q4_k, detail::read_iq3_xxs},
    {io::GgmlType::iq3_s, Format::q4_k, Format::q4_k, detail::read_iq3_s},
    {io::GgmlType::iq4_nl, Format::q5_k, Format::q5_0, detail::read_format<IQ4_NL>, nullptr,
     Format::iq4_nl},
    {io::GgmlType::iq4_xs, Format::q5_k, Format::q5_k, detail::read_format<IQ4_XS>, nullptr,
     Format::iq4_xs},
    {io::GgmlType::nvfp4, Format::q6_k, Format::q8_0, detail::read_nvfp4},
    // These become exactly the same weights.
    {io::GgmlType::mxfp4, Format::q5_0, Format::q5_0, detail::read_format<MXFP4>,
     detail::mxfp4_scale, Format::mxfp4},
    {io::GgmlType::tq1_0, Format::q4_0, Format::q4_0, detail::read_tq1_0, detail::f16_scale<52>,
     Format::tq2_0},
    {io::GgmlType::tq2_0, Format::q4_0, Format::q4_0, detail::read_format<TQ2_0>,
     detail::f16_scale<64>, Format::tq2_0},
    {io::GgmlType::q1_0, Format::q4_0, Format::q4_0, detail::read_format<Q1_0>,
     detail::f16_scale<0>, Format::q1_0},
    {io::GgmlType::q2_0, Format::q4_0, Format::q4_0, detail::read_format<Q2_0>,
     detail::f16_scale<0>, Format::q2_0},
};

// Null for types that every program has as formats, and for those that hold no weights.
constexpr const ReadOnlyType* read_only_type(io::GgmlType type) noexcept {
  for (const ReadOnlyType& other : kReadOnlyTypes) {
    if (other.type == type) return &other;
  }
  return nullptr;
}

// A row of whole blocks as f32.
inline void read_row(const ReadOnlyType& from, const std::byte* row,
                     std::span<float> out) noexcept {
  const io::GgmlTypeTraits traits = io::type_traits(from.type);
  const auto* block = reinterpret_cast<const std::uint8_t*>(row);
  for (std::size_t i = 0; i < out.size(); i += traits.block_size) {
    from.read({block}, out.data() + i);
    block += traits.type_size;
  }
}

// A stored row of weights of any type that is read, as f32. Errors: unsupported (as format_of),
// otherwise as for the row_to_f32 of a format.
inline Result<void> row_to_f32(io::GgmlType type, std::span<const std::byte> row,
                               std::span<float> out) {
  const ReadOnlyType* const from = read_only_type(type);
  if (from == nullptr) {
    NIBBLE_TRY(format, format_of(type));
    return row_to_f32(format, row, out);
  }
  if (out.empty() && row.empty()) return ok();
  NIBBLE_TRY(bytes, io::row_bytes(type, out.size()));
  if (bytes != row.size()) {
    return Error{Errc::invalid_argument, "a row of " + to_text(out.size()) + " weights takes " +
                                             to_text(bytes) + " bytes, not " + to_text(row.size())};
  }
  read_row(*from, row.data(), out);
  return ok();
}

namespace detail {

// Rounds 32 weights that are integers times `scale` to a block with this scale. Returns false if
// they are not, or if the block cannot hold the scale.
template <class F>
bool round_exactly(const float* x, float scale, std::byte* out) noexcept {
  constexpr int kOffset = 1 << (F::kBits - 1);
  typename F::Block block;
  block.scale = to_f16(scale);
  if (!(scale != 0.0f) || to_f32(block.scale) != scale) return false;
  std::uint8_t codes[32];
  for (int i = 0; i < 32; ++i) {
    const float quotient = x[i] / scale;
    if (!(quotient >= -kOffset && quotient < kOffset)) return false;
    codes[i] = static_cast<std::uint8_t>(static_cast<int>(quotient) + kOffset);
  }
  pack_codes<F>(codes, block);
  std::memcpy(out, &block, sizeof(block));
  return true;
}

inline std::size_t first_not_finite(std::span<const float> x) noexcept {
  std::size_t i = 0;
  while (i < x.size() && is_finite(static_cast<double>(x[i]))) ++i;
  return i;
}

}  // namespace detail

// Converts a row to its nearest format. `scratch`: as many floats as the row has weights; it gets
// them. Returns the position of a weight that is not a finite number or that the format cannot
// hold, or scratch.size() if there is none.
inline std::size_t read_row_as(const ReadOnlyType& from, Format to, const std::byte* row,
                               std::span<float> scratch, std::byte* out) noexcept {
  read_row(from, row, scratch);
  if (from.scale == nullptr || to != from.nearest) {
    return (std::min)(detail::round_row(to, scratch, out), detail::first_not_finite(scratch));
  }
  std::size_t bad = detail::first_not_finite(scratch);
  const io::GgmlTypeTraits traits = io::type_traits(from.type);
  for (std::size_t i = 0; i < scratch.size(); i += 32) {
    const auto* const block =
        reinterpret_cast<const std::uint8_t*>(row) + i / traits.block_size * traits.type_size;
    const float scale = from.scale({block});
    const std::span<const float> x = scratch.subspan(i, 32);
    std::byte* const to_block =
        out + i / 32 * (to == Format::q4_0 ? sizeof(Q4_0::Block) : sizeof(Q5_0::Block));
    const bool is_exact = to == Format::q4_0
                              ? detail::round_exactly<Q4_0>(x.data(), scale, to_block)
                              : detail::round_exactly<Q5_0>(x.data(), scale, to_block);
    if (is_exact) continue;
    const std::size_t at = detail::round_row(to, x, to_block);
    if (at < x.size()) bad = (std::min)(bad, i + at);
  }
  return bad;
}

}}}  // namespace nibble::NIBBLE_ABI::quant
NIBBLE_EXACT_MATH_END
