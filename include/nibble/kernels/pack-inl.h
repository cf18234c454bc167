// SPDX-License-Identifier: Apache-2.0

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_PACK_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_PACK_INL_H_
#undef NIBBLE_KERNELS_PACK_INL_H_
#else
#define NIBBLE_KERNELS_PACK_INL_H_
#endif

#include <cstddef>
#include <cstring>

#include "hwy/highway.h"
#include "nibble/kernels/pack.hpp"
#include "nibble/kernels/registers-inl.h"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

namespace pack_detail {

// Packing is a transposition of 32-bit words, 16 rows by 4 words at a time; each column of words
// gives 64 bytes. One vector has 4, 8 or 16 rows.
using DW = PanelTag<uint32_t>;
using VW = hn::Vec<DW>;
inline constexpr size_t kLanes = hn::MaxLanes(DW());
static_assert(kLanes == 4 || kLanes == 8 || kLanes == 16);

// Four words of every fourth row, from `row` on: row 4 i is in the i-th 16 bytes of the vector.
template <class D>
HWY_INLINE hn::Vec<D> every_fourth_row(D d, const uint8_t* row, size_t stride) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    return hn::LoadU(d, reinterpret_cast<const uint32_t*>(row));
  } else {
    const hn::Half<D> half;
    const auto low = every_fourth_row(half, row, stride);
    return hn::Combine(d, every_fourth_row(half, row + hn::MaxLanes(D()) / 2 * stride, stride),
                       low);
  }
}

// Calls put(c, first, words) with word c = 0 … 3 of the rows first … first + kLanes − 1. `rows`
// points to 16 bytes of the first row; the next row is `stride` bytes further.
template <class Put>
HWY_INLINE void transpose(const uint8_t* rows, size_t stride, Put put) {
  const DW d;
  for (size_t first = 0; first < size_t{quant::kPanelRows}; first += kLanes) {
    const uint8_t* const at = rows + first * stride;
    const VW a = every_fourth_row(d, at, stride);
    const VW b = every_fourth_row(d, at + stride, stride);
    const VW c = every_fourth_row(d, at + 2 * stride, stride);
    const VW e = every_fourth_row(d, at + 3 * stride, stride);
    const VW ac01 = hn::InterleaveLower(d, a, c), ac23 = hn::InterleaveUpper(d, a, c);
    const VW be01 = hn::InterleaveLower(d, b, e), be23 = hn::InterleaveUpper(d, b, e);
    put(size_t{0}, first, hn::InterleaveLower(d, ac01, be01));
    put(size_t{1}, first, hn::InterleaveUpper(d, ac01, be01));
    put(size_t{2}, first, hn::InterleaveLower(d, ac23, be23));
    put(size_t{3}, first, hn::InterleaveUpper(d, ac23, be23));
  }
}

HWY_INLINE void store(VW words, uint8_t* to) {
  hn::StoreU(words, DW(), reinterpret_cast<uint32_t*>(to));
}

// Copies 16 values of T, one from each row, to a row of 16. The rows are `stride` bytes apart.
template <class T>
HWY_INLINE void gather(const uint8_t* from, size_t stride, uint8_t* to) {
  for (size_t r = 0; r < size_t{quant::kPanelRows}; ++r) {
    std::memcpy(to + r * sizeof(T), from + r * stride, sizeof(T));
  }
}

// Packs the whole groups of a panel of 16 rows; returns how many there are.
template <class Format>
HWY_INLINE Index pack_groups(const typename Format::Block* rows, Index k, std::byte* panel) {
  using L = quant::Packed<Format>;
  using Block = typename Format::Block;
  const Index n_groups = L::n_blocks(k) / L::kGroupBlocks;
  const size_t stride = static_cast<size_t>(L::n_blocks(k)) * sizeof(Block);
  for (Index g = 0; g < n_groups; ++g) {
    auto* const group = reinterpret_cast<uint8_t*>(panel + g * L::kGroupBytes);
    for (Index b = 0; b < L::kGroupBlocks; ++b) {
      const auto* const block = reinterpret_cast<const uint8_t*>(rows + g * L::kGroupBlocks + b);
      uint8_t* const scales = group + b * L::kScaleRowBytes;
      gather<typename Format::Scale>(block + offsetof(Block, scale), stride, scales);
      if constexpr (L::kHasMinimum) {
        gather<typename Format::Scale>(block + offsetof(Block, minimum), stride,
                                       scales + L::kMinimumOffset);
      }
      uint8_t* const codes = group + L::kCodeOffset + b * L::kChunks * quant::kChunkBytes;
      for (size_t r = 0; L::kUpperChunks > 0 && r < size_t{quant::kPanelRows}; ++r) {
        std::uint32_t word;
        std::memcpy(&word, block + offsetof(Block, codes) + r * stride, 4);
        word = quant::detail::pack_fifth_bits(word);
        std::memcpy(codes + 4 * r, &word, 4);
      }
      constexpr Index kWholeChunks = (L::kChunks - L::kUpperChunks) / 4 * 4;  // transposed
      for (Index chunk = L::kUpperChunks + kWholeChunks; chunk < L::kChunks; ++chunk) {
        for (size_t r = 0; r < size_t{quant::kPanelRows}; ++r) {
          std::memcpy(codes + chunk * quant::kChunkBytes + 4 * r,
                      block + offsetof(Block, codes) + 4 * chunk + r * stride, 4);
        }
      }
      for (Index chunk = L::kUpperChunks; chunk < L::kUpperChunks + kWholeChunks; chunk += 4) {
        transpose(block + offsetof(Block, codes) + 4 * chunk, stride,
                  [&](size_t c, size_t first, VW words) NIBBLE_ATTR {
                    if constexpr (L::kFlipsTopBit) {
                      words = hn::Xor(words, hn::Set(DW(), 0x80808080u));
                    }
                    store(words, codes + (static_cast<size_t>(chunk) + c) * quant::kChunkBytes +
                                     4 * first);
                  });
      }
    }
  }
  return n_groups;
}

// The same for super-blocks: the words of 16 blocks are transposed, then rearranged.
template <quant::SuperBlockFormat Format>
HWY_INLINE Index pack_super_blocks(const typename Format::Block* rows, Index k, std::byte* panel) {
  using L = quant::Packed<Format>;
  using Block = typename Format::Block;
  constexpr size_t kWhole = sizeof(Block) / 16 * 4;  // words that are transposed
  const Index n_groups = L::n_blocks(k);
  const size_t stride = static_cast<size_t>(n_groups) * sizeof(Block);
  HWY_ALIGN std::uint32_t words[L::kStoredWords][quant::kPanelRows] = {};
  HWY_ALIGN std::uint32_t chunks[L::kGroupChunks][quant::kPanelRows];
  for (Index g = 0; g < n_groups; ++g) {
    const auto* const block = reinterpret_cast<const uint8_t*>(rows + g);
    for (size_t word = 0; word < kWhole; word += 4) {
      transpose(block + 4 * word, stride, [&](size_t c, size_t first, VW v) NIBBLE_ATTR {
        store(v, reinterpret_cast<uint8_t*>(words[word + c] + first));
      });
    }
    for (size_t word = kWhole; word < L::kStoredWords; ++word) {
      const size_t left = sizeof(Block) - 4 * word;  // the last word may be half of one
      for (size_t r = 0; r < size_t{quant::kPanelRows}; ++r) {
        std::memcpy(words[word] + r, block + 4 * word + r * stride, left < 4 ? left : 4);
      }
    }
    L::pack_words(words, chunks);
    std::memcpy(panel + g * L::kGroupBytes, chunks, sizeof(chunks));
  }
  return n_groups;
}

// Packs a panel of 16 rows of elements as far as each row has whole steps of 16 bytes; returns how
// many weights of each row were packed.
template <class T>
HWY_INLINE Index pack_elements(const std::byte* rows, Index k, std::byte* panel) {
  constexpr Index kStep = 16 / static_cast<Index>(sizeof(T));
  const auto* const from = reinterpret_cast<const uint8_t*>(rows);
  auto* const to = reinterpret_cast<uint8_t*>(panel);
  const size_t stride = static_cast<size_t>(k) * sizeof(T);
  Index i = 0;
  for (; i + kStep <= k; i += kStep) {
    const size_t at = static_cast<size_t>(i) * sizeof(T);
    transpose(from + at, stride, [&](size_t c, size_t first, VW words) NIBBLE_ATTR {
      uint8_t* const line = to + at * quant::kPanelRows + c * quant::kChunkBytes;
      if constexpr (sizeof(T) == 2 && quant::Packed<quant::Float<T>>::kPair == 1) {
        // A word holds two weights of one row; in the panel, each of the two belongs to another row
        // of 16.
        const hn::Rebind<uint16_t, DW> half;
        auto* const even = reinterpret_cast<uint16_t*>(line) + first;
        hn::StoreU(hn::TruncateTo(half, words), half, even);
        hn::StoreU(hn::TruncateTo(half, hn::ShiftRight<16>(words)), half, even + quant::kPanelRows);
      } else {
        store(words, line + 4 * first);
      }
    });
  }
  return i;
}

}  // namespace pack_detail

template <class Format>
struct Impl<kernels::PackPanel<Format>> {
  static void run(const std::byte* rows, Index n_rows, Index k, std::byte* panel) {
    using L = quant::Packed<Format>;
    Index done = 0;
    if constexpr (quant::BlockFormat<Format>) {
      const auto* const blocks = reinterpret_cast<const typename Format::Block*>(rows);
      if (n_rows == quant::kPanelRows) {
        if constexpr (quant::SuperBlockFormat<Format>) {
          done = pack_detail::pack_super_blocks<Format>(blocks, k, panel);
        } else {
          done = pack_detail::pack_groups<Format>(blocks, k, panel);
        }
      }
      if (done < L::n_groups(k)) L::pack_panel(blocks, n_rows, k, panel, done);
    } else if constexpr (quant::ChannelFormat<Format>) {
      L::pack_panel(rows, n_rows, k, panel);
    } else {
      using T = typename Format::Element;
      if (n_rows == quant::kPanelRows) done = pack_detail::pack_elements<T>(rows, k, panel);
      if (done < k) L::pack_panel(rows, n_rows, k, panel, done);
    }
  }
};

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
