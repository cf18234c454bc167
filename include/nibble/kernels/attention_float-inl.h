// SPDX-License-Identifier: Apache-2.0
//
// Attention over a cache of f32, f16 or bf16: scores, sums of values and filling the cache. All
// arithmetic is in f32.

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_ATTENTION_FLOAT_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_ATTENTION_FLOAT_INL_H_
#undef NIBBLE_KERNELS_ATTENTION_FLOAT_INL_H_
#else
#define NIBBLE_KERNELS_ATTENTION_FLOAT_INL_H_
#endif

#include "hwy/highway.h"
#include "nibble/kernels/attention_vec-inl.h"
#include "nibble/kernels/float16-inl.h"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace attention {

// Register tiles: kRows query rows times kWide vectors of positions (scores) or of dimensions (sums
// of values). 32 registers hold 4 * 4 sums and their operands; 16 hold 4 * 2 or 2 * 4. A fused
// multiply-add has a latency of 4 cycles, two per cycle: 8 independent sums are needed.
#if (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3) || HWY_ARCH_ARM_A64
template <int kRows>
inline constexpr int kWide = 4;
#else
template <int kRows>
inline constexpr int kWide = kRows <= 2 ? 4 : 2;
#endif
// Keys that come from memory are read from few panels at a time, so that the addresses are close to
// each other. Where that leaves few sums, each sum is split into kSplits chains that take turns.
// (For 16-bit keys one panel would be enough, but then the loads of queries are the bottleneck.)
// Blocks of kMaxRows rows, of which prompts consist, use one chain everywhere: a score must not
// depend on where the block is in its task.
template <int kRows, class T>
inline constexpr int kStreamVectors = kLanes < kPanelPositions
                                          ? std::min<int>(kPanelPositions / kLanes, kWide<kRows>)
                                          : (sizeof(T) == 2 || kRows == kMaxRows ? 2 : 1);
template <int kRows, class T>
inline constexpr int kSplits = (std::max)(1, (std::min)(4, 8 / (kRows * kStreamVectors<kRows, T>)));
static_assert(kSplits<kMaxRows, float> == 1 && kSplits<kMaxRows, f16> == 1);

// ---- Elements to f32 ---------------------------------------------------------------------------

template <class T>
HWY_INLINE V load(const T* p) {  // f16 or bf16
  return widen(T{}, D(), hn::LoadU(DU16(), reinterpret_cast<const std::uint16_t*>(p)));
}
// The first n < kLanes elements; the memory after them is not accessed.
NIBBLE_LAZY HWY_INLINE V load_n(const float* p, size_t n) { return hn::LoadN(D(), p, n); }
template <class T>
HWY_INLINE V load_n(const T* p, size_t n) {
  return widen(T{}, D(), hn::LoadN(DU16(), reinterpret_cast<const std::uint16_t*>(p), n));
}

// ---- Queries -----------------------------------------------------------------------------------

// Writes row r of a block of queries for a cache of T: q times the scale. The block at `block` is
// (head_dim, block_rows) floats.
template <class T>
HWY_INLINE void put_query(const T*, const float* HWY_RESTRICT q, float scale, Index head_dim,
                          Index r, Index block_rows, float* HWY_RESTRICT block) {
  float* to = block + r;
  for (Index i = 0; i < head_dim; ++i, to += block_rows) *to = q[i] * scale;
}

// ---- Scores ------------------------------------------------------------------------------------

HWY_INLINE hn::Vec<DU> load_pairs(const bf16* p) {
  return hn::LoadU(DU(), reinterpret_cast<const std::uint32_t*>(p));
}
HWY_INLINE V even_of(hn::Vec<DU> pairs) { return hn::BitCast(D(), hn::ShiftLeft<16>(pairs)); }
HWY_INLINE V odd_of(hn::Vec<DU> pairs) {
  return hn::BitCast(D(), hn::And(pairs, hn::Set(DU(), 0xFFFF0000u)));
}

// Adds the products of one dimension (bf16: two; kOne: only the first of the two) to `sums`:
// kVectors vectors of positions, vector j at keys + j * stride, times kRows queries at q.
template <int kRows, int kVectors, bool kOne, class T>
HWY_INLINE void score_step(const float* HWY_RESTRICT q, const T* HWY_RESTRICT keys, Index stride,
                           RegisterTile<D, kRows, kVectors>& sums) {
  const D d;
  typename RegisterTile<D, kRows, kVectors>::Row even, odd;
  HWY_UNROLL(4) for (int j = 0; j < kVectors; ++j) {
    if constexpr (kKeyPair<T> == 1) {
      even.set(0, j, load(keys + j * stride));
    } else {
      const auto pairs = load_pairs(keys + j * stride);
      even.set(0, j, even_of(pairs));
      odd.set(0, j, odd_of(pairs));
    }
  }
  HWY_UNROLL(4) for (int r = 0; r < kRows; ++r) {
    sums.multiply_add(r, hn::Set(d, q[r]), even);
    if constexpr (kKeyPair<T> == 2 && !kOne) {
      sums.multiply_add(r, hn::Set(d, q[kRows + r]), odd);
    }
  }
}

// scores[r][j * kLanes + lane] = sum_d q[d][r] * key[d], for kRows rows and kVectors vectors of
// positions. Vector j is at keys + j * stride. q: (head_dim, kRows); scores: (kRows,
// kAttentionTile).
template <int kRows, int kVectors, int kSplit, class T>
HWY_INLINE void score_block(const float* HWY_RESTRICT q, const T* HWY_RESTRICT keys, Index stride,
                            Index head_dim, float* HWY_RESTRICT scores, Prefetcher& prefetcher) {
  constexpr Index kPair = kKeyPair<T>;
  constexpr Index kStep = kPair * kPanelPositions;
  constexpr Index kStepBytes = kVectors * kLanes * kPair * static_cast<Index>(sizeof(T));
  const D d;
  RegisterTile<D, kRows, kVectors> sums[kSplit];
  HWY_UNROLL(4) for (int s = 0; s < kSplit; ++s) sums[s].fill(hn::Zero(d));
  Index left = head_dim / kPair;
  for (; left >= kSplit; left -= kSplit) {
    prefetcher.step<kSplit * kStepBytes>();
    HWY_UNROLL(4) for (int s = 0; s < kSplit; ++s) {
      score_step<kRows, kVectors, false>(q, keys, stride, sums[s]);
      q += kPair * kRows;
      keys += kStep;
    }
  }
  for (; left > 0; --left) {
    score_step<kRows, kVectors, false>(q, keys, stride, sums[0]);
    q += kPair * kRows;
    keys += kStep;
  }
  if (head_dim % kPair != 0) score_step<kRows, kVectors, true>(q, keys, stride, sums[0]);
  HWY_UNROLL(4) for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(4) for (int j = 0; j < kVectors; ++j) {
      V sum = sums[0].get(r, j);
      HWY_UNROLL(4) for (int s = 1; s < kSplit; ++s) sum = hn::Add(sum, sums[s].get(r, j));
      hn::StoreU(sum, d, scores + r * kAttentionTile + j * kLanes);
    }
  }
}

// Computes the scores of kRows rows for the panels that hold positions [lo, hi) of the tile whose
// keys are at `keys`, and perhaps for some panels beyond them. is_stream: the keys come from
// memory.
template <int kRows, class T>
HWY_INLINE void score_rows(const float* q, const T* keys, Index lo, Index hi, Index head_dim,
                           float* scores, [[maybe_unused]] bool is_stream, Prefetcher& prefetcher) {
  // The vectors of a step are several panels, or parts of one panel.
  const Index panel_size = kernels::key_panel_size<T>(head_dim);
  const Index stride = kLanes == kPanelPositions ? panel_size : kLanes * kKeyPair<T>;
  constexpr int kVectors = kStreamVectors<kRows, T>;
  Index p = lo / kPanelPositions * kPanelPositions;
  if constexpr (kRows == kMaxRows && kLanes == kPanelPositions) {
    constexpr int kAll = kWide<kRows>;
    for (; !is_stream && hi - p > (kAll - 1) * kLanes; p += kAll * kLanes) {
      score_block<kRows, kAll, 1>(q, keys + p / kPanelPositions * panel_size, stride, head_dim,
                                  scores + p, prefetcher);
    }
  }
  for (; p < hi; p += kVectors * kLanes) {
    // Do not go beyond the tile; rather compute some panel twice.
    const Index from = (std::min)(p, kAttentionTile - kVectors * kLanes);
    const T* const panel = keys + from / kPanelPositions * panel_size;
    score_block<kRows, kVectors, kSplits<kRows, T>>(q, panel + from % kPanelPositions * kKeyPair<T>,
                                                    stride, head_dim, scores + from, prefetcher);
  }
}

// ---- Sums of values ----------------------------------------------------------------------------

// With float caches, the weights are the exponentials themselves.
template <class T>
struct Weights {
  HWY_INLINE Weights(const T*, Index, int) {}
  HWY_INLINE V of(V e, int, Index, const Seen&) const { return e; }
  HWY_INLINE void end_row(int, Prefetcher&) {}
  HWY_INLINE void finish(float*, int, const Seen&) const {}
};

// sums[r][...] = sums[r][...] * correction[r] + sum_p weights[r][p] * values[p][...] for p in [lo,
// hi) and kVectors vectors of dimensions. kPartial: only the first n lanes of the only vector. A
// null `correction` means 1.
template <int kRows, int kVectors, bool kPartial, class T>
HWY_INLINE void value_block(const float* HWY_RESTRICT weights, const T* HWY_RESTRICT values,
                            Index lo, Index hi, Index head_dim, size_t n,
                            const float* HWY_RESTRICT correction, float* HWY_RESTRICT sums,
                            Index sums_stride, Prefetcher& prefetcher) {
  constexpr Index kStepBytes = kVectors * kLanes * static_cast<Index>(sizeof(T));
  const D d;
  RegisterTile<D, kRows, kVectors> acc;
  acc.load(sums, sums_stride);
  if (correction != nullptr) {
    HWY_UNROLL(4) for (int r = 0; r < kRows; ++r) {
      const V c = hn::Set(d, correction[r]);
      HWY_UNROLL(4) for (int j = 0; j < kVectors; ++j) acc.set(r, j, hn::Mul(c, acc.get(r, j)));
    }
  }
  for (Index p = lo; p < hi; ++p) {
    prefetcher.step<kStepBytes>();
    typename RegisterTile<D, kRows, kVectors>::Row value;
    HWY_UNROLL(4) for (int j = 0; j < kVectors; ++j) {
      if constexpr (kPartial) {
        value.set(0, j, load_n(values + p * head_dim, n));
      } else {
        value.set(0, j, load(values + p * head_dim + j * kLanes));
      }
    }
    HWY_UNROLL(4) for (int r = 0; r < kRows; ++r) {
      acc.multiply_add(r, hn::Set(d, weights[r * kAttentionTile + p]), value);
    }
  }
  acc.store(sums, sums_stride);
}

// How many positions are added at once if their values come from memory: not more than what has
// been fetched ahead, because each pass over them, for some vectors of dimensions, reads only a
// part of it.
inline constexpr Index kStreamPositions = 16;

// Adds the values at positions [lo, hi) of the tile whose values are at `values` to all sums of
// kRows rows. The rows of `sums` are padded to whole panels, so that vectors never go beyond a row.
template <int kRows, class T>
HWY_INLINE void value_rows(const float* weights, const T* values, Index lo, Index hi,
                           Index head_dim, const float* correction, float* sums, Index sums_stride,
                           bool is_stream, Prefetcher& prefetcher) {
  constexpr int kVectors = kWide<kRows>;
  for (Index p = lo; p < hi; correction = nullptr) {
    const Index end = is_stream ? (std::min)(hi, kernels::round_up(p + 1, kStreamPositions)) : hi;
    Index i = 0;
    for (; i + kVectors * kLanes <= head_dim; i += kVectors * kLanes) {
      value_block<kRows, kVectors, false>(weights, values + i, p, end, head_dim, 0, correction,
                                          sums + i, sums_stride, prefetcher);
    }
    for (; i + kLanes <= head_dim; i += kLanes) {
      value_block<kRows, 1, false>(weights, values + i, p, end, head_dim, 0, correction, sums + i,
                                   sums_stride, prefetcher);
    }
    if (i < head_dim) {
      value_block<kRows, 1, true>(weights, values + i, p, end, head_dim,
                                  static_cast<size_t>(head_dim - i), correction, sums + i,
                                  sums_stride, prefetcher);
    }
    p = end;
  }
}

// ---- Filling the cache -------------------------------------------------------------------------

// Rounds to nearest, ties to even, to the same bits as core/float16.hpp.
HWY_INLINE void convert(float x, float& out) { out = x; }
HWY_INLINE void convert(float x, f16& out) { out = to_f16(x); }
HWY_INLINE void convert(float x, bf16& out) { out = to_bf16(x); }

NIBBLE_LAZY HWY_INLINE void convert_vector(const float* HWY_RESTRICT x, float* HWY_RESTRICT out) {
  hn::StoreU(load(x), D(), out);
}
NIBBLE_LAZY HWY_INLINE void convert_vector(const float* HWY_RESTRICT x, f16* HWY_RESTRICT out) {
#if (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2) || HWY_ARCH_ARM_A64
  const hn::Rebind<hwy::float16_t, D> d16;
  hn::StoreU(hn::DemoteTo(d16, load(x)), d16, reinterpret_cast<hwy::float16_t*>(out));
#else  // no such instruction
  for (Index i = 0; i < kLanes; ++i) convert(x[i], out[i]);
#endif
}
NIBBLE_LAZY HWY_INLINE void convert_vector(const float* HWY_RESTRICT x, bf16* HWY_RESTRICT out) {
  hn::StoreU(round_to_bf16(D(), load(x)), DU16(), reinterpret_cast<std::uint16_t*>(out));
}

// Writes one key and one value at `position`.
template <class T>
HWY_INLINE void store_key_value(const float* HWY_RESTRICT key, const float* HWY_RESTRICT value,
                                Index position, Index head_dim, T* HWY_RESTRICT cache) {
  constexpr Index kPair = kKeyPair<T>;
  constexpr Index kPairStep = kPair * kPanelPositions;
  T* const row = cache + kernels::value_offset<T>(position, 0, head_dim);
  T* const column = cache + kernels::key_offset<T>(position, 0, head_dim);
  Index i = 0;
  for (; i + kLanes <= head_dim; i += kLanes) {
    convert_vector(value + i, row + i);
    HWY_ALIGN T keys[kLanes];
    convert_vector(key + i, keys);
    for (Index j = 0; j < kLanes; ++j) column[(i + j) / kPair * kPairStep + j % kPair] = keys[j];
  }
  for (; i < head_dim; ++i) {
    convert(value[i], row[i]);
    convert(key[i], column[i / kPair * kPairStep + i % kPair]);
  }
  if (head_dim % kPair != 0) convert(0, column[i / kPair * kPairStep + i % kPair]);
}

}}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE::attention
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
