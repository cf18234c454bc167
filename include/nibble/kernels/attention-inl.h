// SPDX-License-Identifier: Apache-2.0

#if defined(NIBBLE_KERNELS_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_ATTENTION_INL_H_
#undef NIBBLE_KERNELS_ATTENTION_INL_H_
#else
#define NIBBLE_KERNELS_ATTENTION_INL_H_
#endif

#include <limits>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "nibble/kernels/attention.hpp"
#include "nibble/kernels/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble::inline NIBBLE_ABI::HWY_NAMESPACE {
namespace attention {
namespace hn = hwy::HWY_NAMESPACE;

using kernels::kAttentionTile;
using kernels::kKeyPair;
using kernels::kPanelPositions;

using D = hn::CappedTag<float, kPanelPositions>;  // a vector is a panel or a fraction of one
using V = hn::Vec<D>;
using DI = hn::RebindToSigned<D>;
using DU = hn::RebindToUnsigned<D>;
using DU16 = hn::Rebind<std::uint16_t, D>;
inline constexpr Index kLanes = HWY_MAX_LANES_D(D);

// Register tiles: kMaxRows query rows times kWide vectors of positions (scores) or of dimensions
// (sums of values). 32 registers hold 4 * 4 sums and their operands, 16 hold 4 * 2 or 2 * 4. The
// latency of a fused multiply-add, 4 cycles at 2 a cycle, asks for 8 sums.
inline constexpr int kMaxRows = 4;
#if (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3) || HWY_ARCH_ARM_A64
template <int kRows>
inline constexpr int kWide = 4;
#else
template <int kRows>
inline constexpr int kWide = kRows <= 2 ? 4 : 2;
#endif

// ---- Elements to f32 ---------------------------------------------------------------------------

HWY_INLINE V load(const float* p) { return hn::LoadU(D(), p); }
HWY_INLINE V load(const f16* p) {
  const hn::Rebind<hwy::float16_t, D> d16;
  return hn::PromoteTo(D(), hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(p)));
}
HWY_INLINE V load(const bf16* p) {
  const auto bits = hn::LoadU(DU16(), reinterpret_cast<const std::uint16_t*>(p));
  return hn::BitCast(D(), hn::ShiftLeft<16>(hn::PromoteTo(DU(), bits)));
}
// The first n < kLanes elements; the memory behind them is not touched.
HWY_INLINE V load_n(const float* p, size_t n) { return hn::LoadN(D(), p, n); }
HWY_INLINE V load_n(const f16* p, size_t n) {
  const hn::Rebind<hwy::float16_t, D> d16;
  const auto bits = hn::LoadN(DU16(), reinterpret_cast<const std::uint16_t*>(p), n);
  return hn::PromoteTo(D(), hn::BitCast(d16, bits));
}
HWY_INLINE V load_n(const bf16* p, size_t n) {
  const auto bits = hn::LoadN(DU16(), reinterpret_cast<const std::uint16_t*>(p), n);
  return hn::BitCast(D(), hn::ShiftLeft<16>(hn::PromoteTo(DU(), bits)));
}

// The first n elements, or a whole vector if there are that many.
HWY_INLINE V load_up_to(const float* p, Index n) {
  return n >= kLanes ? load(p) : load_n(p, static_cast<size_t>(n));
}
HWY_INLINE void store_up_to(V v, Index n, float* p) {
  if (n >= kLanes) {
    hn::StoreU(v, D(), p);
  } else {
    hn::StoreN(v, D(), p, static_cast<size_t>(n));
  }
}

// ---- Fetching ahead ----------------------------------------------------------------------------
// While a tile's keys are multiplied its values are fetched, and during those the next tile's keys,
// one for one: the hardware's own prefetchers stop at every page and do not know what comes next.

template <Index kBytes>
HWY_INLINE void fetch(const std::byte* ahead, Index step) {
  HWY_UNROLL(4) for (Index i = 0; i < kBytes; i += 64) hwy::Prefetch(ahead + step * kBytes + i);
}

// ---- Scores ------------------------------------------------------------------------------------

HWY_INLINE hn::Vec<DU> load_pairs(const bf16* p) {
  return hn::LoadU(DU(), reinterpret_cast<const std::uint32_t*>(p));
}
HWY_INLINE V even_of(hn::Vec<DU> pairs) { return hn::BitCast(D(), hn::ShiftLeft<16>(pairs)); }
HWY_INLINE V odd_of(hn::Vec<DU> pairs) {
  return hn::BitCast(D(), hn::And(pairs, hn::Set(DU(), 0xFFFF0000u)));
}

// scores[r][j * kLanes + lane] = sum_d q[d][r] * key[d] of kRows rows against kVectors vectors of
// positions, vector j at keys + offsets[j]. q: (head_dim, kRows); scores: (kRows, kAttentionTile).
template <int kRows, int kVectors, bool kFetch, class T>
HWY_INLINE void score_block(const float* HWY_RESTRICT q, const T* HWY_RESTRICT keys,
                            const Index* HWY_RESTRICT offsets, Index head_dim,
                            float* HWY_RESTRICT scores, const std::byte* ahead) {
  constexpr Index kPair = kKeyPair<T>;
  constexpr Index kStepBytes = kVectors * kLanes * kPair * static_cast<Index>(sizeof(T));
  const D d;
  V sums[kRows][kVectors];
  HWY_UNROLL(4) for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(4) for (int j = 0; j < kVectors; ++j) sums[r][j] = hn::Zero(d);
  }
  const T* k[kVectors];
  HWY_UNROLL(4) for (int j = 0; j < kVectors; ++j) k[j] = keys + offsets[j];

  for (Index i = 0; i < head_dim / kPair; ++i) {
    if constexpr (kFetch) fetch<kStepBytes>(ahead, i);
    V even[kVectors];
    V odd[kVectors];
    HWY_UNROLL(4) for (int j = 0; j < kVectors; ++j) {
      const T* const key = k[j] + i * kPair * kPanelPositions;
      if constexpr (kPair == 1) {
        even[j] = load(key);
      } else {
        const auto pairs = load_pairs(key);
        even[j] = even_of(pairs);
        odd[j] = odd_of(pairs);
      }
    }
    HWY_UNROLL(4) for (int r = 0; r < kRows; ++r) {
      const V x = hn::Set(d, q[i * kPair * kRows + r]);
      HWY_UNROLL(4) for (int j = 0; j < kVectors; ++j) {
        sums[r][j] = hn::MulAdd(x, even[j], sums[r][j]);
      }
      if constexpr (kPair == 2) {
        const V y = hn::Set(d, q[(i * kPair + 1) * kRows + r]);
        HWY_UNROLL(4) for (int j = 0; j < kVectors; ++j) {
          sums[r][j] = hn::MulAdd(y, odd[j], sums[r][j]);
        }
      }
    }
  }
  if constexpr (kPair == 2) {
    if (head_dim % 2 != 0) {
      HWY_UNROLL(4) for (int j = 0; j < kVectors; ++j) {
        const V even = even_of(load_pairs(k[j] + (head_dim - 1) * kPanelPositions));
        HWY_UNROLL(4) for (int r = 0; r < kRows; ++r) {
          const V x = hn::Set(d, q[(head_dim - 1) * kRows + r]);
          sums[r][j] = hn::MulAdd(x, even, sums[r][j]);
        }
      }
    }
  }
  HWY_UNROLL(4) for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(4) for (int j = 0; j < kVectors; ++j) {
      hn::StoreU(sums[r][j], d, scores + r * kAttentionTile + j * kLanes);
    }
  }
}

// Scores of kRows rows for the vectors that hold positions [lo, hi) of the tile at `keys`.
template <int kRows, bool kFetch, class T>
HWY_INLINE void score_rows(const float* q, const T* keys, Index lo, Index hi, Index head_dim,
                           float* scores, const std::byte* ahead) {
  constexpr int kVectors = kWide<kRows>;
  Index p = lo / kLanes * kLanes;
  for (; hi - p > (kVectors - 1) * kLanes; p += kVectors * kLanes) {
    Index offsets[kVectors];
    for (int j = 0; j < kVectors; ++j) {
      offsets[j] = kernels::key_offset<T>(p + j * kLanes, 0, head_dim);
    }
    score_block<kRows, kVectors, kFetch>(q, keys, offsets, head_dim, scores + p, ahead);
    ahead += kVectors * kLanes * head_dim * static_cast<Index>(sizeof(T));
  }
  for (; p < hi; p += kLanes) {
    const Index offset = kernels::key_offset<T>(p, 0, head_dim);
    score_block<kRows, 1, false>(q, keys, &offset, head_dim, scores + p, ahead);
  }
}

// ---- Softmax -----------------------------------------------------------------------------------

// Lanes of the vector at position p that are in [lo, hi).
HWY_INLINE hn::Mask<D> seen_mask(Index p, Index lo, Index hi) {
  const DI di;
  const auto position = hn::Iota(di, static_cast<std::int32_t>(p));
  const auto from = hn::Set(di, static_cast<std::int32_t>(lo));
  const auto to = hn::Set(di, static_cast<std::int32_t>(hi));
  return hn::RebindMask(D(), hn::And(hn::Ge(position, from), hn::Lt(position, to)));
}

// What a row has seen so far.
struct RowState {
  float max = std::numeric_limits<float>::lowest();
  float sum = 0;
};

// Turns the scores of one row into exp(score - max) for positions [lo, hi) of the tile and into
// zeros for the rest of [block_lo, block_hi). Returns what earlier sums must be multiplied with. A
// row that has not seen anything yet has the lowest number as its maximum and exp(0) = 1 for what
// it does not see; the first score that it sees, or the merge, multiplies that with 0.
HWY_INLINE float softmax_row(float* HWY_RESTRICT scores, Index lo, Index hi, Index block_lo,
                             Index block_hi, RowState& state) {
  const D d;
  const Index first = block_lo / kLanes * kLanes;
  const bool all_seen = lo <= first && hi >= kernels::round_up(block_hi, kLanes);
  V tops = hn::Set(d, state.max);
  if (all_seen) {
    for (Index p = first; p < block_hi; p += kLanes) tops = hn::Max(tops, load(scores + p));
  } else {
    // A select, not arithmetic: what is not seen may be NaN.
    const V lowest = hn::Set(d, std::numeric_limits<float>::lowest());
    for (Index p = first; p < block_hi; p += kLanes) {
      const V x = hn::IfThenElse(seen_mask(p, lo, hi), load(scores + p), lowest);
      hn::StoreU(x, d, scores + p);
      tops = hn::Max(tops, x);
    }
  }
  const float max = hn::ReduceMax(d, tops);
  const V shift = hn::Set(d, max);
  V sums = hn::Zero(d);
  for (Index p = first; p < block_hi; p += kLanes) {
    const V e = exp_nonpositive(D(), hn::Sub(load(scores + p), shift));
    sums = hn::Add(sums, e);
    hn::StoreU(e, d, scores + p);
  }
  const float correction = hn::GetLane(exp_nonpositive(D(), hn::Set(d, state.max - max)));
  state.sum = state.sum * correction + hn::ReduceSum(d, sums);
  state.max = max;
  return correction;
}

// ---- Sums of values ----------------------------------------------------------------------------

// sums[r][...] = sums[r][...] * correction[r] + sum_p weights[r][p] * values[p][...] for p in
// [lo, hi) and kVectors vectors of dimensions; kPartial: of the only vector, the first n lanes.
template <int kRows, int kVectors, bool kPartial, bool kFetch, class T>
HWY_INLINE void value_block(const float* HWY_RESTRICT weights, const T* HWY_RESTRICT values,
                            Index lo, Index hi, Index head_dim, size_t n,
                            const float* HWY_RESTRICT correction, float* HWY_RESTRICT sums,
                            Index sums_stride, const std::byte* ahead) {
  constexpr Index kStepBytes = kVectors * kLanes * static_cast<Index>(sizeof(T));
  const D d;
  V acc[kRows][kVectors];
  HWY_UNROLL(4) for (int r = 0; r < kRows; ++r) {
    const V c = hn::Set(d, correction[r]);
    HWY_UNROLL(4) for (int j = 0; j < kVectors; ++j) {
      acc[r][j] = hn::Mul(c, hn::LoadU(d, sums + r * sums_stride + j * kLanes));
    }
  }
  for (Index p = lo; p < hi; ++p) {
    if constexpr (kFetch) fetch<kStepBytes>(ahead, p - lo);
    V value[kVectors];
    HWY_UNROLL(4) for (int j = 0; j < kVectors; ++j) {
      if constexpr (kPartial) {
        value[j] = load_n(values + p * head_dim, n);
      } else {
        value[j] = load(values + p * head_dim + j * kLanes);
      }
    }
    HWY_UNROLL(4) for (int r = 0; r < kRows; ++r) {
      const V w = hn::Set(d, weights[r * kAttentionTile + p]);
      HWY_UNROLL(4) for (int j = 0; j < kVectors; ++j) {
        acc[r][j] = hn::MulAdd(w, value[j], acc[r][j]);
      }
    }
  }
  HWY_UNROLL(4) for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(4) for (int j = 0; j < kVectors; ++j) {
      hn::StoreU(acc[r][j], d, sums + r * sums_stride + j * kLanes);
    }
  }
}

// All dimensions. The rows of `sums` are padded to whole panels, so that vectors never leave them.
template <int kRows, bool kFetch, class T>
HWY_INLINE void value_rows(const float* weights, const T* values, Index lo, Index hi,
                           Index head_dim, const float* correction, float* sums, Index sums_stride,
                           const std::byte* ahead) {
  constexpr int kVectors = kWide<kRows>;
  Index i = 0;
  for (; i + kVectors * kLanes <= head_dim; i += kVectors * kLanes) {
    value_block<kRows, kVectors, false, kFetch>(weights, values + i, lo, hi, head_dim, 0,
                                                correction, sums + i, sums_stride, ahead);
    ahead += (hi - lo) * kVectors * kLanes * static_cast<Index>(sizeof(T));
  }
  for (; i + kLanes <= head_dim; i += kLanes) {
    value_block<kRows, 1, false, kFetch>(weights, values + i, lo, hi, head_dim, 0, correction,
                                         sums + i, sums_stride, ahead);
    ahead += (hi - lo) * kLanes * static_cast<Index>(sizeof(T));
  }
  if (i < head_dim) {
    value_block<kRows, 1, true, false>(weights, values + i, lo, hi, head_dim,
                                       static_cast<size_t>(head_dim - i), correction, sums + i,
                                       sums_stride, ahead);
  }
}

// ---- A task ------------------------------------------------------------------------------------

// Rows are worked on in blocks of up to kMaxRows, all blocks of a task for each tile of positions.
template <class T>
class Task {
 public:
  using Args = typename kernels::Attend<T>::Args;

  HWY_INLINE explicit Task(const Args& args)
      : a_(args),
        n_rows_(args.n_tokens * args.group),
        padded_dim_(kernels::round_up(args.head_dim, kPanelPositions)) {
    state_ = reinterpret_cast<RowState*>(a_.scratch);
    correction_ = a_.scratch + 2 * kernels::round_up(n_rows_, kPanelPositions);
    scores_ = correction_ + kernels::round_up(n_rows_, kPanelPositions);
    sums_ = scores_ + n_rows_ * kAttentionTile;
    queries_ = sums_ + n_rows_ * padded_dim_;
  }

  HWY_INLINE void run() {
    start();
    for (tile_ = a_.begin / kAttentionTile * kAttentionTile; tile_ < a_.end;
         tile_ += kAttentionTile) {
      for (Index row = 0; row < n_rows_; row += kMaxRows) score(row);
      for (Index row = 0; row < n_rows_; row += kMaxRows) add_values(row);
    }
    finish();
  }

 private:
  HWY_INLINE Index rows_at(Index row) const { return std::min<Index>(kMaxRows, n_rows_ - row); }

  // Positions of the tile, relative to it, that a row sees.
  HWY_INLINE Index seen_from(Index row) const {
    Index lo = a_.begin;
    if (a_.window > 0) lo = std::max(lo, a_.first_position + row / a_.group + 1 - a_.window);
    return std::clamp<Index>(lo - tile_, 0, kAttentionTile);
  }
  HWY_INLINE Index seen_to(Index row) const {
    const Index hi = std::min(a_.end, a_.first_position + row / a_.group + 1);
    return std::clamp<Index>(hi - tile_, 0, kAttentionTile);
  }

  // Queries, times the scale, with the rows of a block next to each other: (head_dim, block rows).
  HWY_INLINE void start() {
    for (Index row = 0; row < n_rows_; ++row) {
      const Index r = row % kMaxRows;
      const Index block_rows = rows_at(row - r);
      const float* const q = a_.q + row / a_.group * a_.q_stride + row % a_.group * a_.head_dim;
      float* to = queries_ + (row - r) * a_.head_dim + r;
      for (Index i = 0; i < a_.head_dim; ++i, to += block_rows) *to = q[i] * a_.scale;
      state_[row] = RowState();
    }
    for (Index i = 0; i < n_rows_ * padded_dim_; i += kLanes) {
      hn::StoreU(hn::Zero(D()), D(), sums_ + i);
    }
  }

  HWY_INLINE void score(Index row) {
    const Index n = rows_at(row);
    const Index lo = seen_from(row);
    const Index hi = seen_to(row + n - 1);
    if (lo >= hi) return;
    if (n == kMaxRows) {
      row == 0 ? score_rows_at<4, true>(row, lo, hi) : score_rows_at<4, false>(row, lo, hi);
    } else if (n == 3) {
      score_rows_at<3, true>(row, lo, hi);
    } else if (n == 2) {
      score_rows_at<2, true>(row, lo, hi);
    } else {
      score_rows_at<1, true>(row, lo, hi);
    }
    for (Index r = row; r < row + n; ++r) {
      correction_[r] =
          softmax_row(scores_ + r * kAttentionTile, seen_from(r), seen_to(r), lo, hi, state_[r]);
    }
  }
  template <int kRows, bool kFetch>
  HWY_INLINE void score_rows_at(Index row, Index lo, Index hi) {
    score_rows<kRows, kFetch>(queries_ + row * a_.head_dim, keys_at(tile_), lo, hi, a_.head_dim,
                              scores_ + row * kAttentionTile,
                              reinterpret_cast<const std::byte*>(values_at(tile_ + lo)));
  }

  HWY_INLINE void add_values(Index row) {
    const Index n = rows_at(row);
    const Index lo = seen_from(row);
    const Index hi = seen_to(row + n - 1);
    if (lo >= hi) return;
    if (n == kMaxRows) {
      row == 0 ? value_rows_at<4, true>(row, lo, hi) : value_rows_at<4, false>(row, lo, hi);
    } else if (n == 3) {
      value_rows_at<3, true>(row, lo, hi);
    } else if (n == 2) {
      value_rows_at<2, true>(row, lo, hi);
    } else {
      value_rows_at<1, true>(row, lo, hi);
    }
  }
  template <int kRows, bool kFetch>
  HWY_INLINE void value_rows_at(Index row, Index lo, Index hi) {
    // The last tile has nothing to fetch: its own keys are near.
    const Index next = tile_ + kAttentionTile < a_.end ? tile_ + kAttentionTile : tile_;
    value_rows<kRows, kFetch>(scores_ + row * kAttentionTile, values_at(tile_), lo, hi, a_.head_dim,
                              correction_ + row, sums_ + row * padded_dim_, padded_dim_,
                              reinterpret_cast<const std::byte*>(keys_at(next)));
  }

  HWY_INLINE void finish() {
    for (Index row = 0; row < n_rows_; ++row) {
      float* const out = a_.out + row / a_.group * a_.out_stride + row % a_.group * a_.head_dim;
      const float* const sums = sums_ + row * padded_dim_;
      const float factor = a_.max == nullptr ? 1 / state_[row].sum : 1;
      for (Index i = 0; i < a_.head_dim; i += kLanes) {
        store_up_to(hn::Mul(load(sums + i), hn::Set(D(), factor)), a_.head_dim - i, out + i);
      }
      if (a_.max != nullptr) {
        a_.max[row] = state_[row].max;
        a_.sum[row] = state_[row].sum;
      }
    }
  }

  HWY_INLINE const T* keys_at(Index tile) const {
    return a_.keys + kernels::key_offset<T>(tile, 0, a_.head_dim);
  }
  HWY_INLINE const T* values_at(Index position) const { return a_.values + position * a_.head_dim; }

  const Args& a_;
  Index n_rows_;
  Index padded_dim_;
  Index tile_ = 0;
  RowState* state_;    // (n_rows)
  float* correction_;  // (n_rows)
  float* scores_;      // (n_rows, kAttentionTile)
  float* sums_;        // (n_rows, padded_dim)
  float* queries_;     // blocks of (head_dim, rows of the block)
};

// ---- Partial results ---------------------------------------------------------------------------

HWY_INLINE void merge(const kernels::MergeAttention::Args& a) {
  const D d;
  for (Index row = 0; row < a.n_rows; ++row) {
    float max = std::numeric_limits<float>::lowest();
    for (Index p = 0; p < a.n_parts; ++p) max = std::max(max, a.max[p * a.part_rows + row]);
    float* const merged = a.merged + row * a.head_dim;
    float sum = 0;
    for (Index p = 0; p < a.n_parts; ++p) {
      const Index part = p * a.part_rows + row;
      const float weight = hn::GetLane(exp_nonpositive(d, hn::Set(d, a.max[part] - max)));
      sum += weight * a.sum[part];
      const float* const out = a.out + part * a.head_dim;
      for (Index i = 0; i < a.head_dim; i += kLanes) {
        const Index n = a.head_dim - i;
        const V before = p == 0 ? hn::Zero(d) : load_up_to(merged + i, n);
        const V x = load_up_to(out + i, n);
        store_up_to(hn::MulAdd(hn::Set(d, weight), x, before), n, merged + i);
      }
    }
    const V factor = hn::Set(d, 1 / sum);
    for (Index i = 0; i < a.head_dim; i += kLanes) {
      const Index n = a.head_dim - i;
      store_up_to(hn::Mul(load_up_to(merged + i, n), factor), n, merged + i);
    }
  }
}

// ---- Filling the cache -------------------------------------------------------------------------

// Rounding to nearest, ties to even, as core/float16.hpp does it to the bit.
HWY_INLINE void convert(float x, float& out) { out = x; }
HWY_INLINE void convert(float x, f16& out) { out = to_f16(x); }
HWY_INLINE void convert(float x, bf16& out) { out = to_bf16(x); }

HWY_INLINE void convert_vector(const float* HWY_RESTRICT x, float* HWY_RESTRICT out) {
  hn::StoreU(load(x), D(), out);
}
HWY_INLINE void convert_vector(const float* HWY_RESTRICT x, f16* HWY_RESTRICT out) {
#if (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2) || HWY_ARCH_ARM_A64
  const hn::Rebind<hwy::float16_t, D> d16;
  hn::StoreU(hn::DemoteTo(d16, load(x)), d16, reinterpret_cast<hwy::float16_t*>(out));
#else  // no such instruction
  for (Index i = 0; i < kLanes; ++i) convert(x[i], out[i]);
#endif
}
HWY_INLINE void convert_vector(const float* HWY_RESTRICT x, bf16* HWY_RESTRICT out) {
  const DU du;
  const V v = load(x);
  const auto bits = hn::BitCast(du, v);
  const auto upper = hn::ShiftRight<16>(bits);
  const auto half = hn::Add(hn::Set(du, 0x7FFF), hn::And(upper, hn::Set(du, 1)));
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, half));
  const auto quiet_nan = hn::Or(upper, hn::Set(du, 64));
  const auto result = hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(v)), quiet_nan, rounded);
  hn::StoreU(hn::TruncateTo(DU16(), result), DU16(), reinterpret_cast<std::uint16_t*>(out));
}

template <class T>
HWY_INLINE void store_keys_values(const typename kernels::StoreKeysValues<T>::Args& a) {
  constexpr Index kPair = kKeyPair<T>;
  constexpr Index kPairStep = kPair * kPanelPositions;
  for (Index t = 0; t < a.n_tokens; ++t) {
    const float* const key = a.key + t * a.key_stride;
    const float* const value = a.value + t * a.value_stride;
    T* const row = a.values + (a.first_position + t) * a.head_dim;
    T* const column = a.keys + kernels::key_offset<T>(a.first_position + t, 0, a.head_dim);
    Index i = 0;
    for (; i + kLanes <= a.head_dim; i += kLanes) {
      convert_vector(value + i, row + i);
      HWY_ALIGN T keys[kLanes];
      convert_vector(key + i, keys);
      for (Index j = 0; j < kLanes; ++j) {
        column[(i + j) / kPair * kPairStep + j % kPair] = keys[j];
      }
    }
    for (; i < a.head_dim; ++i) {
      convert(value[i], row[i]);
      convert(key[i], column[i / kPair * kPairStep + i % kPair]);
    }
    if (a.head_dim % kPair != 0) convert(0, column[i / kPair * kPairStep + i % kPair]);
  }
}

}  // namespace attention

template <class T>
struct Impl<kernels::Attend<T>> {
  static void run(const typename kernels::Attend<T>::Args& a) { attention::Task<T>(a).run(); }
};

template <>
struct Impl<kernels::MergeAttention> {
  static void run(const kernels::MergeAttention::Args& a) { attention::merge(a); }
};

template <class T>
struct Impl<kernels::StoreKeysValues<T>> {
  static void run(const typename kernels::StoreKeysValues<T>::Args& a) {
    attention::store_keys_values<T>(a);
  }
};

}  // namespace nibble::inline NIBBLE_ABI::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
