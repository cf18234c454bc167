// SPDX-License-Identifier: Apache-2.0
//
// Q4_0 weights of which many are zero, packed so that zeros take no codes. A matrix (n, k) is made
// from Q4_0 blocks: a zero is a weight that dequantizes to zero (code 8, or a block of scale 0), so
// no mask is needed beside the weights. The size of a packed matrix depends on where its zeros are;
// it is stated in its header, and in the header of a file's tensor.
//
//   Header   bytes, n, k and the magic number of the format, 64 bits each; then the offsets of the
//            panels (of 16 rows, as in packed.hpp) and of their end, 64 bits each. Panels start at
//            multiples of 64 bytes, one after the other. The matrix ends with kTailBytes zeros, so
//            that kernels may read whole vectors.
//   Step     32 weights of each of 16 rows: one block of Q4_0 per row.
//
// Q4_0Bitmask: one bit for each weight, and the codes of those that are not zero. 1.5 + 4 d bits a
// weight, if d of them are not zero (and 4 bytes for the ends of bit planes in 512 weights). A
// panel is its steps, one after the other:
//     scales  [16 rows] f16
//     masks   [2 halves][4 words] of 64 bits. Bit 4 g + q of word w of half h is the nibble g % 2
//             (0: the low one) of the byte 128 h + 32 q + 8 w + g / 2 of the step's codes in
//             packed.hpp: row 8 (q % 2) + 2 w + g / 8, weight 8 h + 4 (q / 2) + g / 2 % 4, plus 16
//             for a high nibble.
//     planes  [4 bits] of as many bits as the masks have, filled up to whole bytes: bit b of the
//             codes of the weights that are not zero, in the order of their bits in the masks. The
//             highest bit is inverted: the code of a zero, 8, then consists of zeros too.
//   So one bit-deposit instruction puts 64 weights' bits of a plane to their places, and a few
//   shifts of vectors join four planes to codes in the dense layout.
//
// Q4_0Blocks16x4: only blocks of 16 rows by 4 weights with any weight that is not zero are stored,
// and nothing of steps that have none. A panel is
//     entries  a 32-bit number of entries, then one for each step that is stored, 32 bits: 256 * its
//              number + the bits of its blocks: bit g for the weights 4 g … 4 g + 3. In the order
//              of the number of blocks, then of the step: loops over blocks then have the same
//              length many times in succession, which branch prediction needs.
//     records  from the next multiple of 32 bytes on, in the order of the entries: f16 scales [16
//              rows], then each block, 32 bytes: in byte 4 r + i the weight i of row r in the low,
//              of row r + 8 in the high half (codes as in Q4_0)
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>

#include "nibble/core/arena.hpp"
#include "nibble/core/result.hpp"
#include "nibble/quant/block.hpp"
#include "nibble/quant/packed_panel.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace quant {

struct Q4_0Bitmask {
  using Dense = Q4_0;
  static constexpr int kBits = 4;
  static constexpr int kLength = 32;
  static constexpr std::uint64_t kMagic = 0x6b73616d74696234;  // "4bitmask"
};
struct Q4_0Blocks16x4 {
  using Dense = Q4_0;
  static constexpr int kBits = 4;
  static constexpr int kLength = 32;
  static constexpr std::uint64_t kMagic = 0x34783631736b6c62;  // "blks16x4"
};

// Formats whose packed size depends on the weights.
template <class F>
concept SparseFormat = requires {
  typename F::Dense;
  { F::kMagic } -> std::convertible_to<std::uint64_t>;
};

namespace sparse {

NIBBLE_HIDDEN inline constexpr Index kStep = 32;        // weights of a row
NIBBLE_HIDDEN inline constexpr Index kScaleBytes = 32;  // of a step: 16 of f16
NIBBLE_HIDDEN inline constexpr Index kMaskBytes = 64;
NIBBLE_HIDDEN inline constexpr Index kBlockBytes = 32;  // of 16 rows by 4 weights
NIBBLE_HIDDEN inline constexpr Index kTailBytes = 64;
// Steps of a row that an entry of Q4_0Blocks16x4 can number.
NIBBLE_HIDDEN inline constexpr Index kMaxSteps = Index{1} << 24;
NIBBLE_HIDDEN inline constexpr std::size_t kWords = 4;  // of the header, before the offsets

template <class T>
T load(const std::byte* from) noexcept {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

// Bytes from the start of the matrix to its first panel.
constexpr std::size_t header_bytes(Index n) noexcept {
  return align_up((kWords + static_cast<std::size_t>(n_panels(n)) + 1) * 8, std::size_t{64});
}

// The codes and scales of a step: 8 and 0 for rows that do not exist; 8 in blocks of scale 0.
struct Step {
  std::uint8_t codes[kPanelRows][kStep];
  f16 scales[kPanelRows];

  Step(const Q4_0::Block* rows, Index n_rows, Index row_blocks, Index step) noexcept {
    std::memset(codes, 8, sizeof(codes));
    std::memset(scales, 0, sizeof(scales));
    for (Index r = 0; r < n_rows; ++r) {
      const Q4_0::Block& block = rows[r * row_blocks + step];
      if ((block.scale.bits & 0x7FFF) == 0) continue;
      scales[r] = block.scale;
      for (std::size_t i = 0; i < 16; ++i) {
        codes[r][i] = block.codes[i] & 15;
        codes[r][i + 16] = block.codes[i] >> 4;
      }
    }
  }
};

// The place of weight i of row r in the masks of a step.
struct MaskBit {
  std::size_t word;
  int bit;
};
constexpr MaskBit mask_bit(Index r, Index i) noexcept {
  const Index chunk = i % 16 / 4;
  const Index g = 8 * (r % 2) + 2 * (i % 4) + i / 16;
  return {static_cast<std::size_t>(4 * (chunk / 2) + r % 8 / 2),
          static_cast<int>(4 * g + 2 * (chunk % 2) + r / 8)};
}

// The masks of a step and its codes, those of zeros too, in the order of the masks' bits.
struct Masked {
  std::uint64_t masks[8] = {};
  std::uint8_t codes[8][64];  // the top bit of four inverted

  explicit Masked(const Step& step) noexcept {
    for (Index r = 0; r < kPanelRows; ++r) {
      for (Index i = 0; i < kStep; ++i) {
        const MaskBit at = mask_bit(r, i);
        const auto code = static_cast<std::uint8_t>(step.codes[r][i] ^ 8);
        codes[at.word][at.bit] = code;
        masks[at.word] |= std::uint64_t{code != 0} << at.bit;
      }
    }
  }
  Index n_codes() const noexcept {
    int n = 0;
    for (const std::uint64_t mask : masks) n += std::popcount(mask);
    return n;
  }
};

// The bits of four bits of a mask: how many, and the low bits of a number put to their places.
struct Deposits {
  std::uint8_t count = 0;
  std::uint8_t of[16] = {};
};
struct DepositTable {
  Deposits of[16];
  constexpr DepositTable() noexcept {
    for (unsigned mask = 0; mask < 16; ++mask) {
      of[mask].count = static_cast<std::uint8_t>(std::popcount(mask));
      for (unsigned bits = 0; bits < 16; ++bits) {
        unsigned from = bits, to = 0;
        for (unsigned place = 1; place < 16; place *= 2) {
          if ((mask & place) == 0) continue;
          if ((from & 1) != 0) to |= place;
          from /= 2;
        }
        of[mask].of[bits] = static_cast<std::uint8_t>(to);
      }
    }
  }
};
NIBBLE_HIDDEN inline constexpr DepositTable kDeposits;

// Bytes of a step of Q4_0Bitmask with n codes.
constexpr Index record_bytes(Index n_codes) noexcept {
  return kScaleBytes + kMaskBytes + 4 * ((n_codes + 7) / 8);
}
inline Index codes_of(const std::byte* record) noexcept {
  Index n = 0;
  for (Index w = 0; w < 8; ++w) {
    n += std::popcount(load<std::uint64_t>(record + kScaleBytes + 8 * w));
  }
  return n;
}

inline Index panel_bytes(Q4_0Bitmask, const Q4_0::Block* rows, Index n_rows, Index k) noexcept {
  Index bytes = 0;
  for (Index s = 0; s < k / kStep; ++s) {
    bytes += record_bytes(Masked(Step(rows, n_rows, k / kStep, s)).n_codes());
  }
  return bytes;
}

inline void pack_panel(Q4_0Bitmask, const Q4_0::Block* rows, Index n_rows, Index k,
                       std::byte* out) noexcept {
  for (Index s = 0; s < k / kStep; ++s) {
    const Step step(rows, n_rows, k / kStep, s);
    const Masked masked(step);
    const Index n_codes = masked.n_codes();
    std::memcpy(out, step.scales, sizeof(step.scales));
    std::memcpy(out + kScaleBytes, masked.masks, sizeof(masked.masks));
    std::byte* const planes = out + kScaleBytes + kMaskBytes;
    const Index plane_bytes = (n_codes + 7) / 8;
    std::memset(planes, 0, static_cast<std::size_t>(4 * plane_bytes));
    Index at = 0;
    for (std::size_t w = 0; w < 8; ++w) {
      for (int bit = 0; bit < 64; ++bit) {
        if ((masked.masks[w] >> bit & 1) == 0) continue;
        for (Index b = 0; b < 4; ++b) {
          if ((masked.codes[w][bit] >> b & 1) != 0) {
            planes[b * plane_bytes + at / 8] |= std::byte{1} << static_cast<int>(at % 8);
          }
        }
        ++at;
      }
    }
    out += record_bytes(n_codes);
  }
}

// The code of a weight of a step of Q4_0Bitmask.
inline int code_at(Q4_0Bitmask, const std::byte* record, Index n_codes, Index r, Index i) noexcept {
  const MaskBit place = mask_bit(r, i);
  Index at = 0;
  for (std::size_t w = 0; w < place.word; ++w) {
    at += std::popcount(load<std::uint64_t>(record + kScaleBytes + 8 * w));
  }
  const auto mask = load<std::uint64_t>(record + kScaleBytes + 8 * place.word);
  if ((mask >> place.bit & 1) == 0) return 8;
  at += std::popcount(mask & ((std::uint64_t{1} << place.bit) - 1));
  int code = 8;
  for (int b = 0; b < 4; ++b) {
    const std::byte byte =
        record[kScaleBytes + kMaskBytes + b * ((n_codes + 7) / 8) + at / 8];
    code ^= (std::to_integer<int>(byte) >> static_cast<int>(at % 8) & 1) << b;
  }
  return code;
}

// out (k) = a row of a panel of k weights.
inline void read_row(Q4_0Bitmask format, const std::byte* panel, Index k, Index r,
                     float* out) noexcept {
  for (Index s = 0; s < k / kStep; ++s) {
    const float scale = to_f32(load<f16>(panel + 2 * r));
    const Index n_codes = codes_of(panel);
    for (Index i = 0; i < kStep; ++i) {
      out[s * kStep + i] = scale * static_cast<float>(code_at(format, panel, n_codes, r, i) - 8);
    }
    panel += record_bytes(n_codes);
  }
}

// Whether the steps of a panel end where it ends. It reads no byte outside of the panel.
inline bool check_panel(Q4_0Bitmask, std::span<const std::byte> panel, Index k) noexcept {
  std::size_t at = 0;
  for (Index s = 0; s < k / kStep; ++s) {
    if (panel.size() - at < std::size_t{kScaleBytes + kMaskBytes}) return false;
    const auto bytes = static_cast<std::size_t>(record_bytes(codes_of(panel.data() + at)));
    if (bytes > panel.size() - at) return false;
    at += bytes;
  }
  return align_up(at, std::size_t{64}) == panel.size();
}

// ---- Blocks of 16 by 4 -------------------------------------------------------------------------

// For the bits of a step's blocks: where the blocks begin, in weights of a row.
struct BlockOffsets {
  std::uint8_t of[256][8] = {};
  constexpr BlockOffsets() noexcept {
    for (unsigned blocks = 0; blocks < 256; ++blocks) {
      int n = 0;
      for (unsigned g = 0; g < 8; ++g) {
        if ((blocks >> g & 1) != 0) of[blocks][n++] = static_cast<std::uint8_t>(4 * g);
      }
    }
  }
};
NIBBLE_HIDDEN inline constexpr BlockOffsets kBlockOffsets;

constexpr Index records_at(Index n_entries) noexcept {
  return static_cast<Index>(
      align_up(static_cast<std::size_t>(4 * (n_entries + 1)), std::size_t{32}));
}
constexpr Index record_bytes(std::uint32_t entry) noexcept {
  return kScaleBytes + kBlockBytes * std::popcount(entry & 0xFF);
}

// The blocks of a step that are not zero.
inline std::uint32_t blocks_of(const Step& step) noexcept {
  std::uint32_t blocks = 0;
  for (Index r = 0; r < kPanelRows; ++r) {
    for (Index i = 0; i < kStep; ++i) {
      blocks |= std::uint32_t{step.codes[r][i] != 8} << static_cast<int>(i / 4);
    }
  }
  return blocks;
}

inline Index panel_bytes(Q4_0Blocks16x4, const Q4_0::Block* rows, Index n_rows, Index k) noexcept {
  Index n_entries = 0, bytes = 0;
  for (Index s = 0; s < k / kStep; ++s) {
    const std::uint32_t blocks = blocks_of(Step(rows, n_rows, k / kStep, s));
    if (blocks == 0) continue;
    ++n_entries;
    bytes += record_bytes(blocks);
  }
  return records_at(n_entries) + bytes;
}

inline void pack_panel(Q4_0Blocks16x4, const Q4_0::Block* rows, Index n_rows, Index k,
                       std::byte* out) noexcept {
  // Sorted by counting: where the entries and the records with n blocks begin.
  Index entries[9] = {}, records[9] = {};
  for (Index s = 0; s < k / kStep; ++s) {
    ++entries[std::popcount(blocks_of(Step(rows, n_rows, k / kStep, s)))];
  }
  Index n_entries = 0, bytes = 0;
  for (Index n = 1; n <= 8; ++n) {
    const Index count = entries[n];
    entries[n] = n_entries;
    records[n] = bytes;
    n_entries += count;
    bytes += count * (kScaleBytes + n * kBlockBytes);
  }
  std::memset(out, 0, static_cast<std::size_t>(records_at(n_entries)));
  const auto total = static_cast<std::uint32_t>(n_entries);
  std::memcpy(out, &total, 4);
  for (Index s = 0; s < k / kStep; ++s) {
    const Step step(rows, n_rows, k / kStep, s);
    const std::uint32_t blocks = blocks_of(step);
    if (blocks == 0) continue;
    const int n = std::popcount(blocks);
    const std::uint32_t entry = static_cast<std::uint32_t>(s) << 8 | blocks;
    std::memcpy(out + 4 * (entries[n]++ + 1), &entry, 4);
    std::byte* at = out + records_at(n_entries) + records[n];
    records[n] += record_bytes(blocks);
    std::memcpy(at, step.scales, sizeof(step.scales));
    at += kScaleBytes;
    for (Index g = 0; g < 8; ++g) {
      if ((blocks >> g & 1) == 0) continue;
      for (Index r = 0; r < 8; ++r) {
        for (Index i = 0; i < 4; ++i) {
          at[4 * r + i] = static_cast<std::byte>(step.codes[r][4 * g + i] |
                                                 step.codes[r + 8][4 * g + i] << 4);
        }
      }
      at += kBlockBytes;
    }
  }
}

inline void read_row(Q4_0Blocks16x4, const std::byte* panel, Index k, Index r,
                     float* out) noexcept {
  for (Index i = 0; i < k; ++i) out[i] = 0;
  const auto n_entries = static_cast<Index>(load<std::uint32_t>(panel));
  const std::byte* record = panel + records_at(n_entries);
  for (Index e = 0; e < n_entries; ++e) {
    const auto entry = load<std::uint32_t>(panel + 4 * (e + 1));
    const float scale = to_f32(load<f16>(record + 2 * r));
    const std::byte* block = record + kScaleBytes;
    for (Index g = 0; g < 8; ++g) {
      if ((entry >> g & 1) == 0) continue;
      for (Index i = 0; i < 4; ++i) {
        const int both = std::to_integer<int>(block[4 * (r % 8) + i]);
        const int code = r < 8 ? both & 15 : both >> 4;
        out[static_cast<Index>(entry >> 8) * kStep + 4 * g + i] =
            scale * static_cast<float>(code - 8);
      }
      block += kBlockBytes;
    }
    record += record_bytes(entry);
  }
}

inline bool check_panel(Q4_0Blocks16x4, std::span<const std::byte> panel, Index k) noexcept {
  if (panel.size() < 4) return false;
  const auto n_entries = static_cast<Index>(load<std::uint32_t>(panel.data()));
  // Fewer than the steps of a row, so the sizes below do not overflow.
  if (n_entries > k / kStep) return false;
  if (static_cast<std::size_t>(records_at(n_entries)) > panel.size()) return false;
  Index bytes = records_at(n_entries);
  std::uint64_t before = 0;  // the last number of blocks, and the last step plus one
  for (Index e = 0; e < n_entries; ++e) {
    const auto entry = load<std::uint32_t>(panel.data() + 4 * (e + 1));
    const std::uint64_t step = entry >> 8;
    const std::uint64_t order =
        static_cast<std::uint64_t>(std::popcount(entry & 0xFF)) << 32 | (step + 1);
    if ((entry & 0xFF) == 0 || step >= static_cast<std::uint64_t>(k / kStep) || order <= before) {
      return false;
    }
    before = order;
    bytes += record_bytes(entry);
  }
  return align_up(static_cast<std::size_t>(bytes), std::size_t{64}) == panel.size();
}

inline Error unfit(const char* what, Index n, Index k) {
  return {Errc::malformed, std::string("a sparse matrix of ") + to_text(n) + " rows of " +
                               to_text(k) + " weights: " + what};
}

}  // namespace sparse

template <SparseFormat F>
struct Packed<F> {
  using Block = typename F::Dense::Block;
  static constexpr Index kStepLength = sparse::kStep;
  static constexpr Index n_steps(Index k) noexcept { return k / kStepLength; }
  // Whether there can be a matrix of this shape: rows are whole blocks.
  static constexpr bool has_shape(Index n, Index k) noexcept {
    return n >= 1 && k >= 1 && k % kStepLength == 0 && k / kStepLength <= sparse::kMaxSteps &&
           n <= kMaxBytes / k;
  }

  // ---- A packed matrix -------------------------------------------------------------------------

  // Its size in bytes, a multiple of 64. `data`: of check() or pack().
  static Index bytes(const std::byte* data) noexcept {
    return static_cast<Index>(sparse::load<std::uint64_t>(data));
  }
  static const std::byte* panel(const std::byte* data, Index p) noexcept {
    return data + sparse::load<std::uint64_t>(data + 8 * (static_cast<Index>(sparse::kWords) + p));
  }
  // Bytes of panel p.
  static Index panel_bytes(const std::byte* data, Index p) noexcept {
    return static_cast<Index>(panel(data, p + 1) - panel(data, p));
  }
  // out (k) = row `row`.
  static void row(const std::byte* data, Index k, Index row, float* out) noexcept {
    sparse::read_row(F{}, panel(data, row / kPanelRows), k, row % kPanelRows, out);
  }

  // Whether bytes that come from outside are a packed matrix (n, k): every size and offset that
  // kernels use, in time linear in their number. Codes and scales may be any. Errors: malformed.
  static Result<void> check(std::span<const std::byte> data, Index n, Index k) {
    if (!has_shape(n, k)) return sparse::unfit("there is no such shape", n, k);
    const std::size_t first = sparse::header_bytes(n);
    const auto tail = static_cast<std::size_t>(sparse::kTailBytes);
    if (data.size() < first + tail || data.size() % 64 != 0) {
      return sparse::unfit("its data are cut off", n, k);
    }
    const auto word = [&](std::size_t i) {
      return sparse::load<std::uint64_t>(data.data() + 8 * i);
    };
    if (word(3) != F::kMagic) return sparse::unfit("its data are of another format", n, k);
    if (word(0) != data.size() || word(1) != static_cast<std::uint64_t>(n) ||
        word(2) != static_cast<std::uint64_t>(k)) {
      return sparse::unfit("its header states another size", n, k);
    }
    std::size_t begin = first;
    for (std::size_t p = 0; p < static_cast<std::size_t>(n_panels(n)); ++p) {
      const std::uint64_t end = word(sparse::kWords + p + 1);
      if (word(sparse::kWords + p) != begin || end < begin || end > data.size() - tail ||
          !sparse::check_panel(F{}, data.subspan(begin, static_cast<std::size_t>(end) - begin),
                               k)) {
        return sparse::unfit(("panel " + to_text(p) + " is damaged").c_str(), n, k);
      }
      begin = static_cast<std::size_t>(end);
    }
    if (begin != data.size() - tail) return sparse::unfit("its data are too long", n, k);
    return ok();
  }

  // ---- Packing ---------------------------------------------------------------------------------

  // Bytes of `n` rows of k weights when packed, k / 32 blocks each. The shape must exist.
  static Index packed_bytes(const Block* rows, Index n, Index k) noexcept {
    Index total = static_cast<Index>(sparse::header_bytes(n)) + sparse::kTailBytes;
    for (Index p = 0; p < n_panels(n); ++p) total += bytes_of_panel(rows, n, k, p);
    return total;
  }
  // Packs them to `out`, aligned to 64 bytes: packed_bytes() bytes, each of which is written.
  static void pack(const Block* rows, Index n, Index k, std::byte* out) noexcept {
    const std::size_t first = sparse::header_bytes(n);
    std::memset(out, 0, first);
    std::uint64_t at = first;
    for (Index p = 0; p <= n_panels(n); ++p) {
      std::memcpy(out + 8 * (static_cast<Index>(sparse::kWords) + p), &at, 8);
      if (p == n_panels(n)) break;
      const Index bytes = bytes_of_panel(rows, n, k, p);
      std::memset(out + at + bytes - 64, 0, 64);  // what fills it up
      sparse::pack_panel(F{}, first_of(rows, k, p), rows_of(n, p), k, out + at);
      at += static_cast<std::uint64_t>(bytes);
    }
    std::memset(out + at, 0, static_cast<std::size_t>(sparse::kTailBytes));
    const std::uint64_t words[] = {at + static_cast<std::uint64_t>(sparse::kTailBytes),
                                   static_cast<std::uint64_t>(n), static_cast<std::uint64_t>(k),
                                   F::kMagic};
    std::memcpy(out, words, sizeof(words));
  }

 private:
  static const Block* first_of(const Block* rows, Index k, Index p) noexcept {
    return rows + p * kPanelRows * n_steps(k);
  }
  static Index rows_of(Index n, Index p) noexcept {
    return n - p * kPanelRows < kPanelRows ? n - p * kPanelRows : kPanelRows;
  }
  static Index bytes_of_panel(const Block* rows, Index n, Index k, Index p) noexcept {
    const Index bytes = sparse::panel_bytes(F{}, first_of(rows, k, p), rows_of(n, p), k);
    return static_cast<Index>(align_up(static_cast<std::size_t>(bytes), std::size_t{64}));
  }
};

}}}  // namespace nibble::NIBBLE_ABI::quant
