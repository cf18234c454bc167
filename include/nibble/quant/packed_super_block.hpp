// SPDX-License-Identifier: Apache-2.0
//
// The packed layout of super-blocks; packed.hpp describes it. Rows are whole super-blocks: the
// functions below round k up, but products read k activations up to the end of the last
// super-block.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "nibble/quant/levels.hpp"
#include "nibble/quant/packed_panel.hpp"
#include "nibble/quant/super_block.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace quant {

template <SuperBlockFormat Format>
struct Packed<Format> {
  using Block = typename Format::Block;
  static constexpr Index kLength = Format::kLength;
  static constexpr bool kHasMinimum = Format::kZeroPoint == ZeroPoint::minimum;
  static constexpr bool kFlipsTopBit = false;
  static constexpr bool kHasFewBits = Format::kBits < 4;
  static constexpr bool kIsSmall = OneOf<Format, Q2_0, Q1_0>;  // of 64 or 128 weights
  static constexpr Index kUpperChunks =                        // of a step
      Format::kBits < 3 ? 0 : Format::kBits - (kHasFewBits ? 2 : 4);
  // How far apart the weights are that share a byte of 4-bit codes, or 4 (or 2) bits of one.
  static constexpr Index kSharedByte = kIsSmall ? 4 : Format::kGroupLength == 16 ? 8 : 16;
  // Of small scales. (In IQ4_XS the upper bits of these are beside the f16 scale.)
  static constexpr Index kScaleChunks = LevelFormat<Format>          ? 1
                                        : Format::kGroupLength > 32  ? 0
                                        : kHasMinimum != kHasFewBits ? 3
                                                                     : 4;

  static constexpr Index kStepLength = 32;
  static constexpr Index kStepChunks = Format::kBits;
  static constexpr Index kGroupSteps = kLength / kStepLength;
  static constexpr Index kGroupLength = kLength;
  static constexpr Index kScaleOffset = kChunkBytes;  // of the small scales in a group
  static constexpr Index kCodeOffset = kScaleOffset + kScaleChunks * kChunkBytes;
  static constexpr Index kGroupChunks = 1 + kScaleChunks + kGroupSteps * kStepChunks;
  static constexpr Index kGroupBytes = kGroupChunks * kChunkBytes;

  static constexpr Index n_blocks(Index k) noexcept { return (k + kLength - 1) / kLength; }
  static constexpr Index n_groups(Index k) noexcept { return n_blocks(k); }
  static constexpr Index n_steps(Index k) noexcept { return n_blocks(k) * kGroupSteps; }
  static constexpr Index padded_k(Index k) noexcept { return n_groups(k) * kGroupLength; }
  static constexpr Index panel_bytes(Index k) noexcept { return n_groups(k) * kGroupBytes; }
  static constexpr Index bytes(Index n, Index k) noexcept { return n_panels(n) * panel_bytes(k); }

  // As for other blocks.
  static void pack_panel(const Block* rows, Index n_rows, Index k, std::byte* panel,
                         Index first_group = 0) noexcept {
    const Index row_blocks = n_blocks(k);
    if (n_rows < kPanelRows) {
      std::memset(panel + first_group * kGroupBytes, 0,
                  static_cast<std::size_t>((row_blocks - first_group) * kGroupBytes));
    }
    for (Index b = first_group; b < row_blocks; ++b) {
      std::byte* const group = panel + b * kGroupBytes;
      for (Index r = 0; r < n_rows; ++r) {
        std::uint32_t stored[kStoredWords][1];
        std::uint32_t chunks[std::size_t{kGroupChunks}][1];
        read_words(rows[r * row_blocks + b], stored);
        pack_words(stored, chunks);
        for (Index c = 0; c < kGroupChunks; ++c) {
          std::memcpy(group + c * kChunkBytes + 4 * r, chunks[c], 4);
        }
      }
    }
  }

  static Block unpack_block(const std::byte* panel, Index r, Index b) noexcept {
    const std::byte* const group = panel + b * kGroupBytes;
    std::uint32_t stored[kStoredWords][1];
    std::uint32_t chunks[std::size_t{kGroupChunks}][1];
    for (Index c = 0; c < kGroupChunks; ++c) {
      std::memcpy(chunks[c], group + c * kChunkBytes + 4 * r, 4);
    }
    unpack_words(chunks, stored);
    Block block;
    for (std::size_t i = 0; i < kStoredWords; ++i) {
      const std::size_t at = 4 * i;
      std::memcpy(reinterpret_cast<std::byte*>(&block) + at, stored[i],
                  (std::min)(sizeof(Block) - at, std::size_t{4}));
    }
    return block;
  }

  // ---- A block as 32-bit words -----------------------------------------------------------------
  // Of kRows rows at a time. The last word of some blocks has only two bytes, their scale.
  static constexpr std::size_t kStoredWords = (sizeof(Block) + 3) / 4;

  template <std::size_t kRows>
  static void pack_words(const std::uint32_t (&stored)[kStoredWords][kRows],
                         std::uint32_t (&chunks)[std::size_t{kGroupChunks}][kRows]) noexcept {
    if constexpr (LevelFormat<Format>) {  // words are chunks
      std::memcpy(chunks, stored, sizeof(chunks));
      return;
    }
    if constexpr (kIsSmall) {
      for (std::size_t r = 0; r < kRows; ++r) {
        chunks[0][r] = stored[0][r] & 0xFFFFu;
        for (std::size_t i = 0; i < 4; ++i) {
          const std::uint32_t codes = stored[i][r] >> 16 | stored[i + 1][r] << 16;
          chunks[1 + i][r] = ordered<true>(codes);
        }
      }
      return;
    }
    move_scales<true>(stored, chunks);
    for (std::size_t step = 0; step < std::size_t{kGroupSteps}; ++step) {
      std::uint32_t(*const to)[kRows] = chunks + kFirstCodes + step * kStepChunks;
      for (std::size_t r = 0; r < kRows; ++r) {
        std::uint32_t upper[2] = {};
        std::uint32_t codes[4] = {};
        for (std::size_t c = 0; c < 4; ++c) {
          const std::size_t low = word_of(c), high = low + kSharedByte / 4;
          const Place first = place_of(step, low), second = place_of(step, high);
          codes[c / kChunkParts] |=
              ((stored[first.word][r] >> first.shift & kCodeMask) |
               (stored[second.word][r] >> second.shift & kCodeMask) << kCodeBits)
              << c % kChunkParts * 4;
          if constexpr (kUpperChunks > 0) {
            const auto low_bits = stored[first.upper_word][r] >> first.upper_shift & kMask;
            const auto high_bits = stored[second.upper_word][r] >> second.upper_shift & kMask;
            upper[upper_chunk(c)] |= (low_bits << 4 | high_bits) << upper_shift(c);
          }
        }
        for (std::size_t i = 0; i < std::size_t{kUpperChunks}; ++i) to[i][r] = upper[i];
        for (std::size_t i = 0; i < 4 / kChunkParts; ++i) to[kUpperChunks + i][r] = codes[i];
      }
    }
  }

  template <std::size_t kRows>
  static void unpack_words(const std::uint32_t (&chunks)[std::size_t{kGroupChunks}][kRows],
                           std::uint32_t (&stored)[kStoredWords][kRows]) noexcept {
    if constexpr (LevelFormat<Format>) {
      std::memcpy(stored, chunks, sizeof(stored));
      return;
    }
    std::memset(stored, 0, sizeof(stored));
    if constexpr (kIsSmall) {
      for (std::size_t r = 0; r < kRows; ++r) {
        stored[0][r] = chunks[0][r];
        for (std::size_t i = 0; i < 4; ++i) {
          const std::uint32_t codes = ordered<false>(chunks[1 + i][r]);
          stored[i][r] |= codes << 16;
          stored[i + 1][r] |= codes >> 16;
        }
      }
      return;
    }
    move_scales<false>(chunks, stored);
    for (std::size_t step = 0; step < std::size_t{kGroupSteps}; ++step) {
      const std::uint32_t(*const from)[kRows] = chunks + kFirstCodes + step * kStepChunks;
      for (std::size_t r = 0; r < kRows; ++r) {
        for (std::size_t i = 0; i < 8; ++i) {
          const std::size_t c = i / 2, high = i % 2;
          const Place place = place_of(step, word_of(c) + high * std::size_t{kSharedByte / 4});
          const std::uint32_t both = from[kUpperChunks + c / kChunkParts][r] >> c % kChunkParts * 4;
          const std::uint32_t codes = both >> kCodeBits * high & kCodeMask;
          stored[place.word][r] |= codes << place.shift;
          if constexpr (kUpperChunks > 0) {
            const std::uint32_t bits = from[upper_chunk(c)][r] >> (4 - 4 * high + upper_shift(c));
            stored[place.upper_word][r] |= (bits & kMask) << place.upper_shift;
          }
        }
      }
    }
  }

  static void read_words(const Block& block, std::uint32_t (&words)[kStoredWords][1]) noexcept {
    words[kStoredWords - 1][0] = 0;
    std::memcpy(words, &block, sizeof(block));
  }

 private:
  // 16 codes of two bits, or 32 of one: those of weights 4 c … 4 c + 3 come to place c of the four
  // bytes, or back.
  template <bool kPacks>
  static constexpr std::uint32_t ordered(std::uint32_t x) noexcept {
    if constexpr (Format::kBits == 2) {  // a transposition undoes itself
      return exchange(exchange(x, 6, 0x00CC00CCu), 12, 0x0000F0F0u);
    } else if constexpr (kPacks) {
      x = exchange(exchange(x, 14, 0x0000CCCCu), 2, 0x0C0C0C0Cu);
      return exchange(exchange(x, 7, 0x00AA00AAu), 1, 0x22222222u);
    } else {
      x = exchange(exchange(x, 1, 0x22222222u), 7, 0x00AA00AAu);
      return exchange(exchange(x, 2, 0x0C0C0C0Cu), 14, 0x0000CCCCu);
    }
  }
  // Exchanges the bits of `mask` with those `distance` above them.
  static constexpr std::uint32_t exchange(std::uint32_t x, int distance,
                                          std::uint32_t mask) noexcept {
    const std::uint32_t differences = (x ^ x >> distance) & mask;
    return x ^ differences ^ differences << distance;
  }

  static constexpr std::size_t kFirstCodes = 1 + kScaleChunks;
  // Codes below the upper bits: a chunk of bytes has eight of 4 bits, or 16 of 2 bits.
  static constexpr std::size_t kChunkParts = kHasFewBits ? 2 : 1;
  static constexpr std::size_t kCodeBits = 4 / kChunkParts;
  static constexpr std::uint32_t kCodeMask = kHasFewBits ? 0x03030303u : 0x0F0F0F0Fu;
  static constexpr std::uint32_t kMask = kUpperChunks == 1 ? 0x01010101u : 0x03030303u;

  // Where the codes of weights 4 w … 4 w + 3 of a step are in the stored block.
  struct Place {
    std::size_t word;
    std::size_t shift;
    std::size_t upper_word;
    std::size_t upper_shift;
  };
  static constexpr Place place_of(std::size_t step, std::size_t w) noexcept {
    if constexpr (kHasFewBits) {
      constexpr std::size_t kFirst = offsetof(Block, codes) / 4 + 8 * kUpperChunks;
      return {kFirst + step / 4 * 8 + w, step % 4 * 2, w, step};
    } else if constexpr (kHasMinimum) {
      constexpr std::size_t kFirst = 4 + (Format::kBits - 4) * 8;
      return {kFirst + step / 2 * 8 + w, step % 2 * 4, 4 + w, step};
    } else {
      const std::size_t half = step / 4, part = step % 4;
      return {16 * half + part % 2 * 8 + w, part / 2 * 4, 32 + 8 * half + w, 2 * part};
    }
  }
  // Where the upper bits of chunk c of 4-bit codes are.
  static constexpr std::size_t upper_chunk(std::size_t c) noexcept { return c * kUpperChunks / 4; }
  static constexpr std::size_t upper_shift(std::size_t c) noexcept { return c * kUpperChunks % 4; }
  // Which four weights of a step are in the low halves of chunk c.
  static constexpr std::size_t word_of(std::size_t c) noexcept {
    return kSharedByte == 16 ? c : c / 2 * 4 + c % 2;
  }

  // Copies the scales, either way: exchanging two bytes undoes itself.
  template <bool kPacks, std::size_t kFrom, std::size_t kTo, std::size_t kRows>
  static void move_scales(const std::uint32_t (&from)[kFrom][kRows],
                          std::uint32_t (&to)[kTo][kRows]) noexcept {
    constexpr std::size_t kStored = offsetof(Block, scale) / 4;
    constexpr std::size_t kStoredSmall = [] {
      if constexpr (kScaleChunks > 0)
        return offsetof(Block, scales) / 4;
      else
        return std::size_t{0};
    }();
    for (std::size_t r = 0; r < kRows; ++r) {
      to[kPacks ? 0 : kStored][r] = from[kPacks ? kStored : 0][r];
      for (std::size_t i = 0; i < std::size_t{kScaleChunks}; ++i) {
        std::uint32_t word = from[(kPacks ? kStoredSmall : 1) + i][r];
        if constexpr (kSharedByte == 8) {
          word = (word & 0xFF0000FFu) | (word >> 8 & 0xFF00u) | (word & 0xFF00u) << 8;
        }
        to[(kPacks ? 1 : kStoredSmall) + i][r] = word;
      }
    }
  }
};

}}}  // namespace nibble::NIBBLE_ABI::quant
