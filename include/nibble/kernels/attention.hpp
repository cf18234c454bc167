// SPDX-License-Identifier: Apache-2.0
//
// Attention over a key-value cache: the layout of the cache of one kv head, and the kernels that
// fill it and read it. Does not include Highway. ops/attention.hpp splits the work into these
// tasks.
//
// Online softmax: M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax" (2018);
// merging of partial results: "Flash-Decoding" (T. Dao et al., 2023).
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "nibble/core/float16.hpp"
#include "nibble/kernels/tuning.hpp"
#include "nibble/simd/impl.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace kernels {

// ---- Layout of one kv head's cache -------------------------------------------------------------
// The cache consists of tiles of 64 positions. A tile has all its keys, then all its values, so
// that one query reads memory sequentially, as fast as memory can be read. Keys and values of a
// tile are panels of 16 positions.
// Floats: a panel of keys has positions across the lanes, [head_dim][16]. The scores of 16
// positions are then sums of broadcast(q[d]) * vector, without horizontal sums, and 128-, 256- and
// 512-bit targets read the same bytes. bf16 has pairs of dimensions in a 32-bit lane, [head_dim /
// 2][16][2], so that a shift and a mask give its two floats; an odd head_dim is padded with one
// zero. A panel of values is row-major, [16][head_dim].
// 8-bit integers: the key and the value of a position are codes times one f32 scale each. The scale
// is the largest magnitude / 127. Panels of keys are [head_dim / 4][16 positions][4] and panels of
// values [4][head_dim][4 positions], as integer dot products need them, with head_dim padded with
// zeros to a multiple of 16. The scales of the panel's 16 positions follow.
// 4-bit codes: keys are 8-bit integers as above. Each group of 32 dimensions of a value has codes 0
// to 15, an f16 scale and an f16 minimum: x = minimum + scale * code. A panel of values is one of
// 8-bit integers whose groups of four bytes are paired: the low halves of the bytes are the first
// of the two, [2][head_dim][4 positions]. For each group of dimensions, the scales and then the
// minimums of the panel's 16 positions follow.
// Elements at positions that were never written may hold anything: they are never used.
inline constexpr Index kPanelPositions = 16;
// Positions of a tile; also how many scores of a row exist at the same time.
inline constexpr Index kAttentionTile = 64;

constexpr Index round_up(Index n, Index multiple) noexcept {
  return (n + multiple - 1) / multiple * multiple;
}

template <class T>
inline constexpr Index kKeyPair = 1;  // consecutive dimensions that are adjacent in memory
template <>
inline constexpr Index kKeyPair<bf16> = 2;

template <>
inline constexpr Index kKeyPair<std::int8_t> = 4;

// A byte of a cache of 4-bit codes: two codes of values, the first in the low half; or the bits of
// an 8-bit code of keys.
struct CodePair {
  std::uint8_t bits = 0;
};
static_assert(sizeof(CodePair) == 1);
// Whether keys are 8-bit codes.
template <class T>
inline constexpr bool kHasKeyCodes = std::is_same_v<T, std::int8_t> || std::is_same_v<T, CodePair>;
template <>
inline constexpr Index kKeyPair<CodePair> = 4;

// Dimensions that share a scale and a minimum, and how many such groups a head has.
inline constexpr Index kCodeGroup = 32;
constexpr Index code_groups(Index head_dim) noexcept {
  return (head_dim + kCodeGroup - 1) / kCodeGroup;
}

// Number of codes of a panel, of keys or of values.
constexpr Index code_panel_size(Index head_dim) noexcept {
  return kPanelPositions * round_up(head_dim, 16);
}

// Number of elements of one panel.
template <class T>
constexpr Index key_panel_size(Index head_dim) noexcept {
  if constexpr (kHasKeyCodes<T>) {
    return code_panel_size(head_dim) + kPanelPositions * static_cast<Index>(sizeof(float));
  } else {
    return kPanelPositions * round_up(head_dim, kKeyPair<T>);
  }
}
template <class T>
constexpr Index value_panel_size(Index head_dim) noexcept {
  if constexpr (std::is_same_v<T, CodePair>) {
    return code_panel_size(head_dim) / 2 +
           code_groups(head_dim) * 2 * kPanelPositions * static_cast<Index>(sizeof(f16));
  } else if constexpr (std::is_same_v<T, std::int8_t>) {
    return key_panel_size<T>(head_dim);
  } else {
    return kPanelPositions * head_dim;
  }
}

// Number of elements of one tile.
template <class T>
constexpr Index tile_size(Index head_dim) noexcept {
  return kAttentionTile / kPanelPositions *
         (key_panel_size<T>(head_dim) + value_panel_size<T>(head_dim));
}

// Offsets of the panels that contain `position`, of keys and of values.
template <class T>
constexpr Index key_panel(Index position, Index head_dim) noexcept {
  return position / kAttentionTile * tile_size<T>(head_dim) +
         position % kAttentionTile / kPanelPositions * key_panel_size<T>(head_dim);
}
template <class T>
constexpr Index value_panel(Index position, Index head_dim) noexcept {
  return position / kAttentionTile * tile_size<T>(head_dim) +
         kAttentionTile / kPanelPositions * key_panel_size<T>(head_dim) +
         position % kAttentionTile / kPanelPositions * value_panel_size<T>(head_dim);
}

// Offsets of dimension d of the key and of the value at `position`. (A CodePair has the values of
// two positions: its half is position / 4 % 2.)
template <class T>
constexpr Index key_offset(Index position, Index d, Index head_dim) noexcept {
  constexpr Index kPair = kKeyPair<T>;
  return key_panel<T>(position, head_dim) + d / kPair * (kPanelPositions * kPair) +
         position % kPanelPositions * kPair + d % kPair;
}
template <class T>
constexpr Index value_offset(Index position, Index d, Index head_dim) noexcept {
  const Index row = position % kPanelPositions;
  const Index panel = value_panel<T>(position, head_dim);
  if constexpr (std::is_same_v<T, std::int8_t>) {
    return panel + (row / 4 * round_up(head_dim, 16) + d) * 4 + row % 4;
  } else if constexpr (std::is_same_v<T, CodePair>) {
    return panel + (row / 8 * round_up(head_dim, 16) + d) * 4 + row % 4;
  } else {
    return panel + row * head_dim + d;
  }
}

// The scales of the positions of a panel of 8-bit integers.
inline float* panel_scales(std::int8_t* panel, Index head_dim) noexcept {
  return reinterpret_cast<float*>(panel + code_panel_size(head_dim));
}
inline const float* panel_scales(const std::int8_t* panel, Index head_dim) noexcept {
  return reinterpret_cast<const float*>(panel + code_panel_size(head_dim));
}

// The scales of a group of dimensions at the positions of a panel of 4-bit codes; the minimums are
// kPanelPositions elements after them.
inline f16* group_scales(CodePair* panel, Index group, Index head_dim) noexcept {
  return reinterpret_cast<f16*>(panel + code_panel_size(head_dim) / 2) +
         group * 2 * kPanelPositions;
}
inline const f16* group_scales(const CodePair* panel, Index group, Index head_dim) noexcept {
  return reinterpret_cast<const f16*>(panel + code_panel_size(head_dim) / 2) +
         group * 2 * kPanelPositions;
}

// Dimension d of the key and of the value at `position`, as f32. `cache` is the cache of one kv
// head.
template <class T>
float key_at(const T* cache, Index position, Index d, Index head_dim) noexcept {
  const T* const x = cache + key_offset<T>(position, d, head_dim);
  if constexpr (kHasKeyCodes<T>) {
    const auto* const panel =
        reinterpret_cast<const std::int8_t*>(cache + key_panel<T>(position, head_dim));
    return static_cast<float>(*reinterpret_cast<const std::int8_t*>(x)) *
           panel_scales(panel, head_dim)[position % kPanelPositions];
  } else {
    return to_f32(*x);
  }
}
template <class T>
float value_at(const T* cache, Index position, Index d, Index head_dim) noexcept {
  const T x = cache[value_offset<T>(position, d, head_dim)];
  if constexpr (std::is_same_v<T, CodePair>) {
    const T* const panel = cache + value_panel<T>(position, head_dim);
    const f16* const scale =
        group_scales(panel, d / kCodeGroup, head_dim) + position % kPanelPositions;
    const int code = x.bits >> (position / 4 % 2 * 4) & 15;
    return to_f32(scale[kPanelPositions]) + to_f32(*scale) * static_cast<float>(code);
  } else if constexpr (std::is_same_v<T, std::int8_t>) {
    const T* const panel = cache + value_panel<T>(position, head_dim);
    return static_cast<float>(x) * panel_scales(panel, head_dim)[position % kPanelPositions];
  } else {
    return to_f32(x);
  }
}

// ---- Pages -------------------------------------------------------------------------------------
// The cache of one kv head is an array of tiles. A page is the same tile of every layer and kv
// head: page p of a sequence's cache is tile p of each of these arrays. A table, for a sequence or
// a part of it, says which page holds which positions: positions [64 i, 64 i + 64) are in page
// pages[i].

// The page of positions [64 i, 64 i + 64). Without a table, page i.
constexpr Index page_of(const std::int32_t* pages, Index i) noexcept {
  return pages == nullptr ? i : Index{pages[i]};
}

// ---- Filling the cache -------------------------------------------------------------------------
// Writes keys and values of consecutive tokens of one kv head, rounded to T (to nearest, ties to
// even). 8-bit codes are those of x * (127 / max); all are 0 where max is below 2^-110.
template <class T>
struct StoreKeysValues {
  struct Args {
    const float* key = nullptr;    // (n_tokens, head_dim), rows key_stride elements apart
    const float* value = nullptr;  // (n_tokens, head_dim), rows value_stride elements apart
    Index key_stride = 0;
    Index value_stride = 0;
    Index n_tokens = 0;
    Index first_position = 0;
    Index head_dim = 0;
    T* cache = nullptr;                   // this kv head's tiles
    const std::int32_t* pages = nullptr;  // see page_of
  };
  using Function = void(const Args&);
};

// ---- Attention ---------------------------------------------------------------------------------
// How many query rows (tokens times heads of the group) a task should have: enough to use a tile of
// keys and values many times while it is in the cache nearest to the core.
inline constexpr Index kAttentionRows = 48;

// Tokens of one task: at least one, whatever the size of the group.
constexpr Index attention_tokens_per_task(Index group) noexcept {
  return std::max<Index>(1, kAttentionRows / group);
}

// Rows of one register tile.
inline constexpr Index kAttentionBlock = 4;

// Scratch of one task of n_rows query rows, in floats: the queries, one tile of scores, sums of
// values, and each row's maximum, correction and lanes of its sum of weights.
constexpr Index attention_scratch_floats(Index n_rows, Index head_dim) noexcept {
  const Index padded_dim = round_up(head_dim, 32);
  return round_up(n_rows, kAttentionBlock) * (2 * padded_dim + kAttentionTile + kPanelPositions) +
         2 * round_up(n_rows, 16);
}

// What happens to scores before their softmax, in this order: a soft cap, ALiBi, the program's own
// function. The defaults do nothing.
struct ScoreOptions {
  float soft_cap = 0;                   // score = soft_cap * tanh(score / soft_cap); 0: none
  const float* alibi_slopes = nullptr;  // (n_heads): score -= slope * |query's - key's position|
  const float* sink_logits = nullptr;   // (n_heads): an extra score of each query, without a value
  // Changes the scores of one query, at `position`, with the keys at first_key ... first_key + n -
  // 1. Some of these scores may be masked afterwards; until then they may be NaN.
  void (*function)(const void* data, Index head, Index position, Index first_key, Index n,
                   float* scores) = nullptr;
  const void* data = nullptr;

  constexpr bool changes_scores() const noexcept {
    return soft_cap != 0 || alibi_slopes != nullptr || function != nullptr;
  }
};

// One task: the queries of one kv head's group, of n_tokens consecutive tokens, against positions
// of the cache. Row t * group + g is head g of the group at token t. Tiles are read in the order of
// `tiles`, from slot first_slot to slot end_slot - 1. Of their positions, those in [begin, end)
// count:
//   score(row, j) = scale * q[row] . key[j],  j <= first_position + t + ahead, and with a window
//                                             also j > first_position + t - window
//   out[row] = sum_j softmax_j(score(row, j)) value[j]
// Scores, softmax and sums are in f32. With 8-bit and 4-bit codes, queries and weights are rounded
// to 16 bits, and the sums of their products with codes are exact. All query heads of the group
// share one pass over keys and values. If max and sum are given, out is not normalized and sinks
// are left out: it is a partial result of a range of slots, to be merged with those of the other
// ranges. A row that sees nothing of its range has the lowest float as its max, so that its out and
// sum count nothing in a merge.
//
// A row's result depends on is_prompt, but never on the other rows of the task. With is_prompt, a
// score is summed along head_dim in one chain; without it, in as many chains as `group` rows leave
// registers for.
template <class T>
struct Attend {
  struct Args {
    const float* q = nullptr;  // (n_tokens, group, head_dim), tokens q_stride elements apart
    Index q_stride = 0;
    Index n_tokens = 0;  // 1 unless is_prompt
    Index group = 0;
    Index head_dim = 0;
    const T* cache = nullptr;             // this kv head's tiles
    const std::int32_t* pages = nullptr;  // see page_of
    const std::int32_t* tiles = nullptr;  // slot s is the tile that starts at position 64 tiles[s],
                                          // ascending; null: at position 64 s
    Index first_slot = 0;
    Index end_slot = 0;
    Index begin = 0;
    Index end = 0;
    Index first_position = 0;  // of the first token
    Index window = 0;          // how many positions a query sees, up to its own; 0: all
    Index ahead = 0;           // how many more positions it sees, after its own
    bool is_prompt = false;
    float scale = 1;
    ScoreOptions scores;
    Index first_head = 0;  // index of the group's first head among all heads, for `scores`
    float* out = nullptr;  // (n_tokens, group, head_dim), tokens out_stride elements apart
    Index out_stride = 0;
    float* max = nullptr;      // (n_tokens * group), or null
    float* sum = nullptr;      // (n_tokens * group), or null
    float* scratch = nullptr;  // attention_scratch_floats(n_tokens * group, head_dim), aligned
    Tuning tuning = {};
  };
  using Function = void(const Args&);
};

// Merges the partial results of n_parts ranges of slots, for n_rows query rows.
struct MergeAttention {
  struct Args {
    const float* out = nullptr;  // (n_parts, part_rows, head_dim), unnormalized
    const float* max = nullptr;  // (n_parts, part_rows)
    const float* sum = nullptr;  // (n_parts, part_rows)
    Index n_parts = 0;
    Index part_rows = 0;  // rows from one part to the next; the first n_rows of each are merged
    Index n_rows = 0;
    Index head_dim = 0;
    const float* sink_logits = nullptr;  // (n_rows), or null: see ScoreOptions
    float* merged = nullptr;             // (n_rows, head_dim)
  };
  using Function = void(const Args&);
};

}}}  // namespace nibble::NIBBLE_ABI::kernels
