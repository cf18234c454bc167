// SPDX-License-Identifier: Apache-2.0
//
// The formats of sparse matrices (sparse.hpp), and the panels of each: 16 rows, in steps of 32
// weights of each row. A panel is packed from rows of Q4_0, read row by row, and checked when it
// comes from outside.
//
// Q4_0Bitmask: one bit for each weight, and the codes of those that are not zero: 1.5 + 4 d bits a
// weight, if d of them are not zero (and a nibble for every second vector, see below). A panel is
// its steps, one after the other:
//     scales  [16 rows] f16
//     masks   [8 vectors] of 64 bits. A vector is four weights of each row: 2 j + h has the weights
//             16 h + 4 j … 16 h + 4 j + 3; its bit 4 r + i is for weight i of row r.
//     codes   [8 vectors]: the codes of the weights that are not zero in the order of their bits,
//             two in a byte, the low half first; each vector fills whole bytes. Codes are those of
//             Q4_0 with the top bit of four inverted: where bytes are expanded by a mask, zeros
//             become zero.
//
// Q4_0Blocks16x4: only blocks of 16 rows by 4 weights with any weight that is not zero are stored,
// and nothing of steps that have none. A panel is
//     entries  a 32-bit number of entries, then one for each step that is stored, 32 bits: 256
//              times its number + the bits of its blocks: bit g for the weights 4 g … 4 g + 3. In
//              the order of the number of blocks, then of the step: loops over blocks then have
//              the same length many times in succession, which branch prediction needs.
//     records  from the next multiple of 32 bytes on, in the order of the entries: f16 scales [16
//              rows], then each block, 32 bytes: in byte 4 r + i the weight i of row r in the low,
//              of row r + 8 in the high half (codes as in Q4_0)
//
// Q4_0TwoOfFour: for weights of which at most two of each four consecutive ones of a row (4 i … 4 i
// + 3) are not zero ("2:4"). 3.5 bits a weight. Products take a step's two-of-four codes as they
// are, and bring the activations to them: half as many multiplications as with dense weights. A
// panel is its steps:
//     scales     [16 rows] f16
//     positions  [16 rows][4 bytes]: bits 2 u … 2 u + 1 of byte b are those of the slot b of the
//                eight weights 8 u …; slots 0 and 1 are of the first four of them, 2 and 3 of the
//                last four; the position is the weight's number among the four
//     codes      [2][16 rows][4 bytes]: byte b of part p has the slot b of u = 2 p in its low half,
//                of u = 2 p + 1 in its high half. A slot without a weight has code 8.
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
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

struct Q4_0TwoOfFour {
  using Dense = Q4_0;
  static constexpr int kBits = 4;
  static constexpr int kLength = 32;
  static constexpr std::uint64_t kMagic = 0x3434666f32303471;  // "q402of44"
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
    for (f16& scale : scales) scale = {};
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
  std::size_t vector;
  int bit;
};
constexpr MaskBit mask_bit(Index r, Index i) noexcept {
  return {static_cast<std::size_t>(i % 16 / 4 * 2 + i / 16), static_cast<int>(4 * r + i % 4)};
}

constexpr Index code_bytes(std::uint64_t mask) noexcept { return (std::popcount(mask) + 1) / 2; }

// The masks of a step, and its codes in the order of their bits, those of zeros too.
struct Masked {
  std::uint64_t masks[8] = {};
  std::uint8_t codes[8][64];  // the top bit of four inverted

  explicit Masked(const Step& step) noexcept {
    for (Index r = 0; r < kPanelRows; ++r) {
      for (Index i = 0; i < kStep; ++i) {
        const MaskBit at = mask_bit(r, i);
        const auto code = static_cast<std::uint8_t>(step.codes[r][i] ^ 8);
        codes[at.vector][at.bit] = code;
        masks[at.vector] |= std::uint64_t{code != 0} << at.bit;
      }
    }
  }
  Index bytes() const noexcept {
    Index n = kScaleBytes + kMaskBytes;
    for (const std::uint64_t mask : masks) n += code_bytes(mask);
    return n;
  }
};

// For a mask of eight bits, how to put the bytes that follow each other to the places of its bits:
// the number of the byte for each place, or 128. `first`: that, then the number of bits, eight
// times; `second`: for the eight places above those. The sum of a `first` and a `second` is for 16.
struct ByteExpansions {
  alignas(64) std::uint8_t first[256][16] = {};
  alignas(64) std::uint8_t second[256][16] = {};
  constexpr ByteExpansions() noexcept {
    for (unsigned mask = 0; mask < 256; ++mask) {
      std::uint8_t n = 0;
      for (unsigned bit = 0; bit < 8; ++bit) {
        const bool is_set = (mask >> bit & 1) != 0;
        first[mask][bit] = second[mask][bit + 8] = is_set ? n : std::uint8_t{128};
        if (is_set) ++n;
      }
      for (unsigned bit = 8; bit < 16; ++bit) first[mask][bit] = n;
    }
  }
};
NIBBLE_HIDDEN inline constexpr ByteExpansions kByteExpansions;

inline std::uint64_t mask_of(const std::byte* record, std::size_t vector) noexcept {
  return load<std::uint64_t>(record + kScaleBytes + 8 * vector);
}
// Bytes of a step of Q4_0Bitmask.
inline Index record_bytes(const std::byte* record) noexcept {
  Index n = kScaleBytes + kMaskBytes;
  for (std::size_t v = 0; v < 8; ++v) n += code_bytes(mask_of(record, v));
  return n;
}

inline Index panel_bytes(Q4_0Bitmask, const Q4_0::Block* rows, Index n_rows, Index k) noexcept {
  Index bytes = 0;
  for (Index s = 0; s < k / kStep; ++s) bytes += Masked(Step(rows, n_rows, k / kStep, s)).bytes();
  return bytes;
}

inline void pack_panel(Q4_0Bitmask, const Q4_0::Block* rows, Index n_rows, Index k,
                       std::byte* out) noexcept {
  for (Index s = 0; s < k / kStep; ++s) {
    const Step step(rows, n_rows, k / kStep, s);
    const Masked masked(step);
    std::memcpy(out, step.scales, sizeof(step.scales));
    std::memcpy(out + kScaleBytes, masked.masks, sizeof(masked.masks));
    out += kScaleBytes + kMaskBytes;
    for (std::size_t v = 0; v < 8; ++v) {
      Index n = 0;
      for (int bit = 0; bit < 64; ++bit) {
        if ((masked.masks[v] >> bit & 1) == 0) continue;
        const std::uint8_t code = masked.codes[v][bit];
        if (n % 2 == 0) {
          out[n / 2] = static_cast<std::byte>(code);
        } else {
          out[n / 2] |= static_cast<std::byte>(code << 4);
        }
        ++n;
      }
      out += (n + 1) / 2;
    }
  }
}

// out (k) = a row of a panel of k weights.
inline void read_row(Q4_0Bitmask, const std::byte* panel, Index k, Index r, float* out) noexcept {
  for (Index s = 0; s < k / kStep; ++s) {
    const float scale = to_f32(load<f16>(panel + 2 * r));
    const std::byte* codes = panel + kScaleBytes + kMaskBytes;
    for (std::size_t v = 0; v < 8; ++v) {
      const std::uint64_t mask = mask_of(panel, v);
      const auto of_row = static_cast<unsigned>(mask >> 4 * r & 15);
      Index at = std::popcount(mask & ((std::uint64_t{1} << 4 * r) - 1));
      for (Index i = 0; i < 4; ++i) {
        int code = 8;
        if ((of_row >> i & 1) != 0) {
          code ^= std::to_integer<int>(codes[at / 2]) >> (at % 2 * 4) & 15;
          ++at;
        }
        const Index place = static_cast<Index>(v % 2) * 16 + static_cast<Index>(v / 2) * 4 + i;
        out[s * kStep + place] = scale * static_cast<float>(code - 8);
      }
      codes += code_bytes(mask);
    }
    panel = codes;
  }
}

// Whether the steps of a panel end where it ends. It reads no byte outside of the panel.
inline bool check_panel(Q4_0Bitmask, std::span<const std::byte> panel, Index k) noexcept {
  std::size_t at = 0;
  for (Index s = 0; s < k / kStep; ++s) {
    if (panel.size() - at < std::size_t{kScaleBytes + kMaskBytes}) return false;
    const auto bytes = static_cast<std::size_t>(record_bytes(panel.data() + at));
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
          at[4 * r + i] =
              static_cast<std::byte>(step.codes[r][4 * g + i] | step.codes[r + 8][4 * g + i] << 4);
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

// Whether no step has two entries. Those with n blocks, ends[n - 1] … ends[n] - 1, are in ascending
// order of their steps, so that the eight lists can be merged.
inline bool are_steps_distinct(const std::byte* panel, const Index (&ends)[9]) noexcept {
  const auto step_at = [&](Index e) { return load<std::uint32_t>(panel + 4 * (e + 1)) >> 8; };
  Index at[8];
  for (int n = 0; n < 8; ++n) at[n] = ends[n];
  for (Index left = ends[8]; left > 0; --left) {
    int least = -1;
    for (int n = 0; n < 8; ++n) {
      if (at[n] == ends[n + 1]) continue;
      if (least < 0 || step_at(at[n]) < step_at(at[least])) {
        least = n;
      } else if (step_at(at[n]) == step_at(at[least])) {
        return false;
      }
    }
    ++at[least];
  }
  return true;
}

inline bool check_panel(Q4_0Blocks16x4, std::span<const std::byte> panel, Index k) noexcept {
  if (panel.size() < 4) return false;
  const auto n_entries = static_cast<Index>(load<std::uint32_t>(panel.data()));
  // Fewer than the steps of a row, so the sizes below do not overflow.
  if (n_entries > k / kStep) return false;
  if (static_cast<std::size_t>(records_at(n_entries)) > panel.size()) return false;
  Index bytes = records_at(n_entries);
  Index ends[9] = {};        // of the entries with n blocks; they begin where those with n - 1 end
  std::uint64_t before = 0;  // the last number of blocks, and the last step plus one
  for (Index e = 0; e < n_entries; ++e) {
    const auto entry = load<std::uint32_t>(panel.data() + 4 * (e + 1));
    const std::uint64_t step = entry >> 8;
    const int n_blocks = std::popcount(entry & 0xFF);
    const std::uint64_t order = static_cast<std::uint64_t>(n_blocks) << 32 | (step + 1);
    if (n_blocks == 0 || step >= static_cast<std::uint64_t>(k / kStep) || order <= before) {
      return false;
    }
    before = order;
    ends[n_blocks] = e + 1;
    bytes += record_bytes(entry);
  }
  for (int n = 1; n <= 8; ++n) {
    if (ends[n] < ends[n - 1]) ends[n] = ends[n - 1];
  }
  if (!are_steps_distinct(panel.data(), ends)) return false;
  return align_up(static_cast<std::size_t>(bytes), std::size_t{64}) == panel.size();
}

// ---- Two of four -------------------------------------------------------------------------------

NIBBLE_HIDDEN inline constexpr Index kPositionBytes = 64;
NIBBLE_HIDDEN inline constexpr Index kHalfStepBytes = kScaleBytes + kPositionBytes + 128;

// Whether at most two of each four weights of a step are not zero.
inline bool is_two_of_four(const Step& step) noexcept {
  for (Index r = 0; r < kPanelRows; ++r) {
    for (Index i = 0; i < kStep; i += 4) {
      int n = 0;
      for (Index j = i; j < i + 4; ++j) n += step.codes[r][j] != 8 ? 1 : 0;
      if (n > 2) return false;
    }
  }
  return true;
}

constexpr Index panel_bytes(Q4_0TwoOfFour, const Q4_0::Block*, Index, Index k) noexcept {
  return k / kStep * kHalfStepBytes;
}

inline void pack_panel(Q4_0TwoOfFour, const Q4_0::Block* rows, Index n_rows, Index k,
                       std::byte* out) noexcept {
  for (Index s = 0; s < k / kStep; ++s, out += kHalfStepBytes) {
    const Step step(rows, n_rows, k / kStep, s);
    std::memcpy(out, step.scales, sizeof(step.scales));
    std::uint8_t* const positions = reinterpret_cast<std::uint8_t*>(out) + kScaleBytes;
    std::uint8_t* const codes = positions + kPositionBytes;
    std::memset(positions, 0, static_cast<std::size_t>(kPositionBytes));
    std::memset(codes, 0x88, 128);
    for (Index r = 0; r < kPanelRows; ++r) {
      for (Index i = 0; i < kStep; i += 4) {
        Index b = i % 8 / 2;
        const Index u = i / 8;
        const Index end = b + 2;
        for (Index j = 0; j < 4 && b < end; ++j) {
          const unsigned code = step.codes[r][i + j];
          if (code == 8) continue;
          positions[4 * r + b] = static_cast<std::uint8_t>(positions[4 * r + b] | j << 2 * u);
          std::uint8_t& both = codes[u / 2 * kChunkBytes + 4 * r + b];
          both = static_cast<std::uint8_t>(u % 2 == 0 ? (both & 0xF0u) | code
                                                      : (both & 0x0Fu) | code << 4);
          ++b;
        }
      }
    }
  }
}

inline void read_row(Q4_0TwoOfFour, const std::byte* panel, Index k, Index r, float* out) noexcept {
  for (Index i = 0; i < k; ++i) out[i] = 0;
  for (Index s = 0; s < k / kStep; ++s, panel += kHalfStepBytes) {
    const float scale = to_f32(load<f16>(panel + 2 * r));
    const auto* const positions = reinterpret_cast<const std::uint8_t*>(panel) + kScaleBytes;
    const std::uint8_t* const codes = positions + kPositionBytes;
    for (Index u = 0; u < 4; ++u) {
      for (Index b = 0; b < 4; ++b) {
        const int both = codes[u / 2 * kChunkBytes + 4 * r + b];
        const int code = (u % 2 == 0 ? both & 15 : both >> 4) - 8;
        const Index position = positions[4 * r + b] >> 2 * u & 3;
        out[s * kStep + 8 * u + b / 2 * 4 + position] += scale * static_cast<float>(code);
      }
    }
  }
}

inline bool check_panel(Q4_0TwoOfFour, std::span<const std::byte> panel, Index k) noexcept {
  return align_up(static_cast<std::size_t>(k / kStep * kHalfStepBytes), std::size_t{64}) ==
         panel.size();
}

inline Error unfit(const char* what, Index n, Index k) {
  return {Errc::malformed, std::string("a sparse matrix of ") + to_text(n) + " rows of " +
                               to_text(k) + " weights: " + what};
}

}  // namespace sparse

}}}  // namespace nibble::NIBBLE_ABI::quant
