// SPDX-License-Identifier: Apache-2.0
//
// The packed layout of a weight matrix (n, k): one layout for all instruction sets. Rows are
// interleaved in panels of 16, one row per 32-bit lane. So 512-, 256- and 128-bit vectors read the
// same bytes, and a product broadcasts activations instead of summing across lanes.
//
//   Block formats   A panel is a sequence of groups along k. A group is as many blocks as make its
//                   scales fill a cache line (two for 16-bit scales):
//                     scales    [block][16 rows]
//                     minimums  [block][16 rows]           (formats that have them)
//                     codes     [block][chunk][16 rows][4 bytes]
//                   Chunk c holds bytes 4c … 4c+3 of each row's GGUF block: packing moves 32-bit
//                   words and computes nothing, except that signed 8-bit codes have their top bit
//                   flipped: all codes are unsigned then (offset 8 or 128), as dot-product
//                   instructions want them; and that fifth (or third) bits, which are the first
//                   chunk of their block, are ordered as below.
//   Super-blocks    A group is one super-block of each row:
//                     scales    [16 rows][4 bytes]         the f16 scale, and the minimum or zeros
//                     scales    [chunk][16 rows][4 bytes]  the small ones, as in GGUF's block. Of
//                               formats with groups of 16 weights, the two bytes in the middle of
//                               each chunk are exchanged: of Q6_K chunk c has those of the groups
//                               4c, 4c + 2, 4c + 1, 4c + 3. Of IQ4_XS the bits that are missing
//                               here stand in the first chunk in the place of the minimum
//                     codes     [step][chunk][16 rows][4 bytes]
//                   A step is 32 weights: first the chunks with bits above the fourth, one for each
//                   such bit; then four with 4-bit codes, as in a block of 32. (Groups of 16: in
//                   which weights 8 apart share a byte, so that a chunk has one scale.) Codes of 2
//                   and 3 bits: two chunks take the place of four. What would be bits 0, 1 and 4, 5
//                   of the first (third) is bits 0, 1 and 2, 3 of the first (second); that of the
//                   second (fourth) follows above. Third bits are upper bits. Q2_0: byte i of a
//                   chunk has weights i, 4 + i, 8 + i, 12 + i of 16, from the lowest bits on;
//                   Q1_0: bit c of byte i is weight 4 c + i of the step.
//   Upper bits      A chunk with n bits above the fourth for each weight goes with 4 / n chunks of
//                   4-bit codes: with the bytes of the first in bits 4 … of its bytes for the low
//                   halves, in bits 0 … for the high halves; of the next n bits further up. So a
//                   shift and a mask extract them for a vector.
//   I8Channel       A panel is
//                     scales    [16 rows]                   f32, one for the whole row
//                     sums      [16 rows]                   32-bit integers, of the row's codes
//                     codes     [chunk][16 rows][4 bytes]
//                   with the top bit of codes flipped too. (The sums are for inputs with a zero
//                   point.) k is filled up to a multiple of 32 with zero weights.
//   f32, f16        [k][16 rows]
//   bf16            [k / 2][16 rows][2]: pairs along k per 32-bit lane, as dot products want them
//
// Rows beyond n and blocks beyond k are zero weights. Every panel starts at a multiple of 64 bytes
// after the first; the matrix itself should also be 64-byte aligned.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "nibble/core/arena.hpp"
#include "nibble/quant/block.hpp"
#include "nibble/quant/channel.hpp"
#include "nibble/quant/packed_panel.hpp"
#include "nibble/quant/packed_super_block.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace quant {

namespace detail {

// Fifth bits in the order of GGUF (bit j: weight j) to the order of upper bits: bit 4 c + i goes to
// 8 i + 4 + c, bit 16 + 4 c + i to 8 i + c. Each step exchanges bits that are `distance` apart; the
// steps backwards undo it.
constexpr std::uint32_t exchange_bits(std::uint32_t x, int distance, std::uint32_t mask) noexcept {
  const std::uint32_t differences = (x ^ (x >> distance)) & mask;
  return x ^ differences ^ (differences << distance);
}
constexpr std::uint32_t pack_fifth_bits(std::uint32_t x) noexcept {
  x = x << 16 | x >> 16;
  x = exchange_bits(x, 3, 0x0A0A0A0Au);  // transposes the 4 by 4 bits of each half
  x = exchange_bits(x, 6, 0x00CC00CCu);
  x = exchange_bits(x, 8, 0x0000FF00u);  // the groups of four bits of the two halves alternate
  return exchange_bits(x, 4, 0x00F000F0u);
}
constexpr std::uint32_t unpack_fifth_bits(std::uint32_t x) noexcept {
  x = exchange_bits(x, 4, 0x00F000F0u);
  x = exchange_bits(x, 8, 0x0000FF00u);
  x = exchange_bits(x, 6, 0x00CC00CCu);
  x = exchange_bits(x, 3, 0x0A0A0A0Au);
  return x << 16 | x >> 16;
}

}  // namespace detail

template <BlockFormat Format>
struct Packed<Format> {  // super-blocks: packed_super_block.hpp
  using Block = typename Format::Block;
  using Scale = typename Format::Scale;
  static constexpr Index kLength = Format::kLength;
  static constexpr bool kHasMinimum = Format::kZeroPoint == ZeroPoint::minimum;
  static constexpr Index kBlockCodeBytes = kLength * Format::kBits / 8;  // of one row
  static constexpr Index kChunks = kBlockCodeBytes / 4;                  // per block
  static constexpr Index kUpperChunks = Format::kBits == 5 || Format::kBits == 3 ? 1 : 0;
  static constexpr Index kSharedByte = kLength / 2;  // as for super-blocks
  static constexpr bool kFlipsTopBit =
      Format::kBits == 8 && Format::kZeroPoint == ZeroPoint::symmetric;

  static constexpr Index kScaleRowBytes = kPanelRows * static_cast<Index>(sizeof(Scale));
  static constexpr Index kGroupBlocks = kScaleRowBytes >= 64 ? 1 : 64 / kScaleRowBytes;
  static constexpr Index kGroupLength = kGroupBlocks * kLength;  // weights of one row
  static constexpr Index kMinimumOffset = kGroupBlocks * kScaleRowBytes;
  static constexpr Index kCodeOffset = kMinimumOffset * (kHasMinimum ? 2 : 1);
  static constexpr Index kGroupBytes = kCodeOffset + kGroupBlocks * kChunks * kChunkBytes;
  static_assert(kGroupBytes % 64 == 0);
  // Also for a program's own format: products take 32 weights at a time and sum a block in 32 bits.
  static_assert(kLength > 0 && kLength % 32 == 0 && kLength <= 1 << 16);
  static_assert((Format::kBits >= 2 && Format::kBits <= 5) || Format::kBits == 8);
  static_assert(Format::kBits == 4 || Format::kBits == 8 || kLength == 32);
  // A block is its scale, perhaps its minimum, and its codes: what has more is no such format.
  static_assert(
      sizeof(Block) == (kHasMinimum ? 2 : 1) * sizeof(Scale) + kBlockCodeBytes,
      "nibble: a block format of a program's own is a scale, perhaps a minimum, and codes");

  // What products go through step by step: weights of a row with one scale, and their chunks.
  static constexpr Index kStepLength = kLength;
  static constexpr Index kStepChunks = kChunks;
  static constexpr Index kGroupSteps = kGroupBlocks;
  static constexpr Index n_steps(Index k) noexcept { return n_blocks(k); }

  // Blocks of one row; k may end inside the last one.
  static constexpr Index n_blocks(Index k) noexcept { return (k + kLength - 1) / kLength; }
  static constexpr Index n_groups(Index k) noexcept {
    return (k + kGroupLength - 1) / kGroupLength;
  }
  // k rounded up to whole groups, as the layout stores it.
  static constexpr Index padded_k(Index k) noexcept { return n_groups(k) * kGroupLength; }
  static constexpr Index panel_bytes(Index k) noexcept { return n_groups(k) * kGroupBytes; }
  static constexpr Index bytes(Index n, Index k) noexcept { return n_panels(n) * panel_bytes(k); }

  // Packs one panel from the blocks of `n_rows` ≤ 16 rows, with n_blocks(k) blocks each: all
  // groups, or those from `first_group` on.
  static void pack_panel(const Block* rows, Index n_rows, Index k, std::byte* panel,
                         Index first_group = 0) noexcept {
    const Index row_blocks = n_blocks(k);
    if (n_rows < kPanelRows || row_blocks % kGroupBlocks != 0) {
      fill_with_zero_weights(first_group, n_groups(k), panel);
    }
    // Takes a run of blocks of each row at a time. They are read contiguously and written to a part
    // of the panel that stays in L1 until all rows are in it. This takes half the time of going
    // block by block across the rows.
    constexpr Index kRun = 32;
    for (Index first = first_group * kGroupBlocks; first < row_blocks; first += kRun) {
      const Index end = (std::min)(row_blocks, first + kRun);
      for (Index r = 0; r < n_rows; ++r) {
        for (Index b = first; b < end; ++b) pack_block(rows[r * row_blocks + b], r, b, panel);
      }
    }
  }

  // The inverse for one block: block b of row r of a panel.
  static Block unpack_block(const std::byte* panel, Index r, Index b) noexcept {
    Block block;
    const std::byte* const group = panel + b / kGroupBlocks * kGroupBytes;
    const Index in_group = b % kGroupBlocks;
    const Index lane = in_group * kScaleRowBytes + r * static_cast<Index>(sizeof(Scale));
    std::memcpy(&block.scale, group + lane, sizeof(Scale));
    if constexpr (kHasMinimum) {
      std::memcpy(&block.minimum, group + kMinimumOffset + lane, sizeof(Scale));
    }
    const std::byte* const codes = group + kCodeOffset + in_group * kChunks * kChunkBytes;
    for (Index c = 0; c < kChunks; ++c) {
      std::uint32_t word;
      std::memcpy(&word, codes + c * kChunkBytes + r * 4, 4);
      if constexpr (kFlipsTopBit) word ^= 0x80808080u;
      if (c < kUpperChunks) word = detail::unpack_fifth_bits(word);
      std::memcpy(block.codes.data() + 4 * c, &word, 4);
    }
    return block;
  }

 private:
  static void pack_block(const Block& block, Index r, Index b, std::byte* panel) noexcept {
    std::byte* const group = panel + b / kGroupBlocks * kGroupBytes;
    const Index in_group = b % kGroupBlocks;
    const Index lane = in_group * kScaleRowBytes + r * static_cast<Index>(sizeof(Scale));
    std::memcpy(group + lane, &block.scale, sizeof(Scale));
    if constexpr (kHasMinimum) {
      std::memcpy(group + kMinimumOffset + lane, &block.minimum, sizeof(Scale));
    }
    std::byte* const codes = group + kCodeOffset + in_group * kChunks * kChunkBytes;
    for (Index c = 0; c < kChunks; ++c) {
      std::uint32_t word;
      std::memcpy(&word, block.codes.data() + 4 * c, 4);
      if constexpr (kFlipsTopBit) word ^= 0x80808080u;
      if (c < kUpperChunks) word = detail::pack_fifth_bits(word);
      std::memcpy(codes + c * kChunkBytes + r * 4, &word, 4);
    }
  }

  // A zero weight of 8 bits has code 128. Its scale is zero too, so any code would do, but this one
  // keeps integer sums small.
  static void fill_with_zero_weights(Index first_group, Index end_group,
                                     std::byte* panel) noexcept {
    for (Index g = first_group; g < end_group; ++g) {
      std::byte* const group = panel + g * kGroupBytes;
      std::memset(group, 0, static_cast<std::size_t>(kCodeOffset));
      std::memset(group + kCodeOffset, kFlipsTopBit ? 0x80 : 0,
                  static_cast<std::size_t>(kGroupBytes - kCodeOffset));
    }
  }
};

template <class T>
struct Packed<Float<T>> {
  static constexpr Index kPair = std::is_same_v<T, bf16> ? 2 : 1;  // values along k per lane
  static constexpr Index padded_k(Index k) noexcept { return (k + kPair - 1) / kPair * kPair; }
  static constexpr Index panel_bytes(Index k) noexcept {
    return static_cast<Index>(
        align_up(static_cast<std::size_t>(padded_k(k) * kPanelRows) * sizeof(T), std::size_t{64}));
  }
  static constexpr Index bytes(Index n, Index k) noexcept { return n_panels(n) * panel_bytes(k); }

  // Packs one panel from `n_rows` ≤ 16 rows of k weights each: all weights, or those from `first`
  // on, which must be a multiple of kPair. `rows` need not be aligned.
  static void pack_panel(const void* rows, Index n_rows, Index k, std::byte* panel,
                         Index first = 0) noexcept {
    const auto weight_bytes = k * kPanelRows * static_cast<Index>(sizeof(T));
    if (n_rows < kPanelRows || weight_bytes != panel_bytes(k)) {
      std::memset(panel + offset(0, first), 0,
                  static_cast<std::size_t>(panel_bytes(k) - offset(0, first)));
    }
    const auto* const source = static_cast<const std::byte*>(rows);
    for (Index r = 0; r < n_rows; ++r) {
      for (Index i = first; i < k; ++i) {
        std::memcpy(panel + offset(r, i), source + (r * k + i) * static_cast<Index>(sizeof(T)),
                    sizeof(T));
      }
    }
  }

  static T weight(const std::byte* panel, Index r, Index i) noexcept {
    T value;
    std::memcpy(&value, panel + offset(r, i), sizeof(T));
    return value;
  }

 private:
  static constexpr Index offset(Index r, Index i) noexcept {
    return ((i / kPair * kPanelRows + r) * kPair + i % kPair) * static_cast<Index>(sizeof(T));
  }
};

template <>
struct Packed<I8Channel> {
  static constexpr Index kMultiple = 32;  // number of weights of a row that products take at a time
  static constexpr Index kSumOffset = kPanelRows * static_cast<Index>(sizeof(float));
  static constexpr Index kCodeOffset = 2 * kSumOffset;
  // The longest rows for products: |sum of codes| <= 2^17 * 128 * 127 < 2^31. (The sum of the
  // unsigned codes may be larger; it is corrected modulo 2^32.)
  static constexpr Index kMaxK = Index{1} << 17;
  // With a zero point: |sum of code * (input's code - zero point)| <= 2^16 * 127 * 255 < 2^31.
  static constexpr Index kMaxAffineK = Index{1} << 16;

  static constexpr Index padded_k(Index k) noexcept {
    return (k + kMultiple - 1) / kMultiple * kMultiple;
  }
  static constexpr Index panel_bytes(Index k) noexcept {
    return kCodeOffset + padded_k(k) * kPanelRows;
  }
  static constexpr Index bytes(Index n, Index k) noexcept { return n_panels(n) * panel_bytes(k); }

  // Packs one panel from `n_rows` ≤ 16 stored rows (format.hpp), each a Header and k codes. `rows`
  // need not be aligned.
  static void pack_panel(const void* rows, Index n_rows, Index k, std::byte* panel) noexcept {
    std::memset(panel, 0, static_cast<std::size_t>(kCodeOffset));
    std::memset(panel + kCodeOffset, 0x80, static_cast<std::size_t>(padded_k(k) * kPanelRows));
    const auto* row = static_cast<const std::byte*>(rows);
    for (Index r = 0; r < n_rows; ++r) {
      std::memcpy(panel + r * 4, row, sizeof(I8Channel::Header));
      row += sizeof(I8Channel::Header);
      std::int32_t sum = 0;
      for (Index i = 0; i < k; ++i) {
        sum += static_cast<std::int8_t>(row[i]);
        panel[offset(r, i)] = row[i] ^ std::byte{0x80};
      }
      std::memcpy(panel + kSumOffset + r * 4, &sum, sizeof(sum));
      row += k;
    }
  }

  static I8Channel::Header header(const std::byte* panel, Index r) noexcept {
    I8Channel::Header header;
    std::memcpy(&header, panel + r * 4, sizeof(header));
    return header;
  }
  static std::int32_t code_sum(const std::byte* panel, Index r) noexcept {
    std::int32_t sum;
    std::memcpy(&sum, panel + kSumOffset + r * 4, sizeof(sum));
    return sum;
  }
  static std::int8_t code(const std::byte* panel, Index r, Index i) noexcept {
    return static_cast<std::int8_t>(panel[offset(r, i)] ^ std::byte{0x80});
  }

 private:
  static constexpr Index offset(Index r, Index i) noexcept {
    return kCodeOffset + (i / 4 * kPanelRows + r) * 4 + i % 4;
  }
};

// A packed matrix in memory: n rows (outputs) of k weights.
template <class Format>
struct PackedMatrix {
  const std::byte* data = nullptr;  // Packed<Format>::bytes(n, k), 64-byte aligned
  Index n = 0;
  Index k = 0;

  const std::byte* panel(Index p) const noexcept {
    return data + p * Packed<Format>::panel_bytes(k);
  }
};

}}}  // namespace nibble::NIBBLE_ABI::quant
