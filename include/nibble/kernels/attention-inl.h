// SPDX-License-Identifier: Apache-2.0

#if defined(NIBBLE_KERNELS_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_ATTENTION_INL_H_
#undef NIBBLE_KERNELS_ATTENTION_INL_H_
#else
#define NIBBLE_KERNELS_ATTENTION_INL_H_
#endif

#include <limits>

#include "hwy/highway.h"
#include "nibble/kernels/attention.hpp"

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

// exp(x) for x <= 0: 2^n * e^r, |r| <= ln(2) / 2, Taylor to r^7 (remainder r^8 / 8! < 6e-9).
// Below the logarithm of the smallest normal number the result is 0. NaN stays NaN.
HWY_INLINE V exp_of_nonpositive(V x) {
  const D d;
  const DI di;
  const auto tiny = hn::Lt(x, hn::Set(d, -87.33654f));
  const V clamped = hn::IfThenElse(tiny, hn::Zero(d), x);
  const V n = hn::Round(hn::Mul(clamped, hn::Set(d, 1.44269504f)));
  // ln(2) in two parts: n * the first is exact for the 8 bits of n
  V r = hn::NegMulAdd(n, hn::Set(d, 0.693359375f), clamped);
  r = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4f), r);
  V e = hn::Set(d, 1.0f / 5040);
  e = hn::MulAdd(e, r, hn::Set(d, 1.0f / 720));
  e = hn::MulAdd(e, r, hn::Set(d, 1.0f / 120));
  e = hn::MulAdd(e, r, hn::Set(d, 1.0f / 24));
  e = hn::MulAdd(e, r, hn::Set(d, 1.0f / 6));
  e = hn::MulAdd(e, r, hn::Set(d, 0.5f));
  e = hn::MulAdd(e, r, hn::Set(d, 1.0f));
  e = hn::MulAdd(e, r, hn::Set(d, 1.0f));
  const auto exponent = hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, n), hn::Set(di, 127)));
  return hn::IfThenZeroElse(tiny, hn::Mul(e, hn::BitCast(d, exponent)));
}

// ---- Scores ------------------------------------------------------------------------------------

// scores[r * kAttentionTile + j * kLanes + lane] = sum_d q[d][r] * key[d] of kRows rows against the
// kVectors vectors of positions that begin at `keys`, which are `step` elements apart.
// q: (head_dim, kRows).
template <int kRows, int kVectors, class T>
HWY_INLINE void score_block(const float* HWY_RESTRICT q, const T* HWY_RESTRICT keys,
                            const Index* HWY_RESTRICT offsets, Index head_dim,
                            float* HWY_RESTRICT scores) {
  const D d;
  V sums[kRows][kVectors];
  HWY_UNROLL(4) for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(4) for (int j = 0; j < kVectors; ++j) sums[r][j] = hn::Zero(d);
  }
  const T* k[kVectors];
  HWY_UNROLL(4) for (int j = 0; j < kVectors; ++j) k[j] = keys + offsets[j];

  if constexpr (kKeyPair<T> == 1) {
    for (Index i = 0; i < head_dim; ++i) {
      V key[kVectors];
      HWY_UNROLL(4) for (int j = 0; j < kVectors; ++j) key[j] = load(k[j] + i * kPanelPositions);
      HWY_UNROLL(4) for (int r = 0; r < kRows; ++r) {
        const V x = hn::Set(d, q[i * kRows + r]);
        HWY_UNROLL(4) for (int j = 0; j < kVectors; ++j) {
          sums[r][j] = hn::MulAdd(x, key[j], sums[r][j]);
        }
      }
    }
  } else {  // bf16: the even dimension is the lower half of each 32-bit lane
    const DU du;
    const auto upper = hn::Set(du, 0xFFFF0000u);
    for (Index i = 0; i < head_dim / 2; ++i) {
      V even[kVectors];
      V odd[kVectors];
      HWY_UNROLL(4) for (int j = 0; j < kVectors; ++j) {
        const auto pair =
            hn::LoadU(du, reinterpret_cast<const std::uint32_t*>(k[j] + i * 2 * kPanelPositions));
        even[j] = hn::BitCast(d, hn::ShiftLeft<16>(pair));
        odd[j] = hn::BitCast(d, hn::And(pair, upper));
      }
      HWY_UNROLL(4) for (int r = 0; r < kRows; ++r) {
        const V x = hn::Set(d, q[2 * i * kRows + r]);
        const V y = hn::Set(d, q[(2 * i + 1) * kRows + r]);
        HWY_UNROLL(4) for (int j = 0; j < kVectors; ++j) {
          sums[r][j] = hn::MulAdd(x, even[j], sums[r][j]);
          sums[r][j] = hn::MulAdd(y, odd[j], sums[r][j]);
        }
      }
    }
    if (head_dim % 2 != 0) {
      const Index i = head_dim / 2;
      HWY_UNROLL(4) for (int j = 0; j < kVectors; ++j) {
        const auto pair =
            hn::LoadU(du, reinterpret_cast<const std::uint32_t*>(k[j] + i * 2 * kPanelPositions));
        const V even = hn::BitCast(d, hn::ShiftLeft<16>(pair));
        HWY_UNROLL(4) for (int r = 0; r < kRows; ++r) {
          sums[r][j] = hn::MulAdd(hn::Set(d, q[2 * i * kRows + r]), even, sums[r][j]);
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

// Scores of kRows rows for the panels that hold positions [lo, hi) of the tile at `keys`.
template <int kRows, class T>
HWY_INLINE void score_rows(const float* q, const T* keys, Index lo, Index hi, Index head_dim,
                           float* scores) {
  constexpr int kVectors = kWide<kRows>;
  const auto offset = [head_dim](Index position)
                          HWY_ATTR { return kernels::key_offset<T>(position, 0, head_dim); };
  Index p = lo / kLanes * kLanes;
  for (; hi - p > (kVectors - 1) * kLanes; p += kVectors * kLanes) {
    Index offsets[kVectors];
    for (int j = 0; j < kVectors; ++j) offsets[j] = offset(p + j * kLanes);
    score_block<kRows, kVectors>(q, keys, offsets, head_dim, scores + p);
  }
  for (; p < hi; p += kLanes) {
    const Index one = offset(p);
    score_block<kRows, 1>(q, keys, &one, head_dim, scores + p);
  }
}

// ---- Softmax -----------------------------------------------------------------------------------

// Turns the scores of one row into exp(score - max) for positions [lo, hi) of the tile and zeros
// for the others of [block_lo, block_hi), and updates the running maximum and sum.
HWY_INLINE void softmax_row(float* HWY_RESTRICT scores, Index lo, Index hi, Index block_lo,
                            Index block_hi, float& max, float& sum, float& correction) {
  const D d;
  const DI di;
  const Index first = block_lo / kLanes * kLanes;
  const V lowest = hn::Set(d, std::numeric_limits<float>::lowest());
  // All lanes of all vectors are seen: no masks.
  const bool whole = lo <= first && hi >= kernels::round_up(block_hi, kLanes);
  const auto from = hn::Set(di, static_cast<std::int32_t>(lo));
  const auto to = hn::Set(di, static_cast<std::int32_t>(hi));
  const auto seen = [&](Index p) HWY_ATTR {
    const auto position = hn::Iota(di, static_cast<std::int32_t>(p));
    return hn::RebindMask(d, hn::And(hn::Ge(position, from), hn::Lt(position, to)));
  };

  V tops = hn::Set(d, max);
  if (whole) {
    for (Index p = first; p < block_hi; p += kLanes) tops = hn::Max(tops, load(scores + p));
  } else {
    // A select, not arithmetic: what is not seen may be NaN.
    for (Index p = first; p < block_hi; p += kLanes) {
      tops = hn::Max(tops, hn::IfThenElse(seen(p), load(scores + p), lowest));
    }
  }
  const float new_max = hn::ReduceMax(d, tops);
  const V shift = hn::Set(d, new_max);
  V sums = hn::Zero(d);
  for (Index p = first; p < block_hi; p += kLanes) {
    V e = exp_of_nonpositive(hn::Sub(load(scores + p), shift));
    if (!whole) e = hn::IfThenElseZero(seen(p), e);
    sums = hn::Add(sums, e);
    hn::StoreU(e, d, scores + p);
  }
  correction = hn::GetLane(exp_of_nonpositive(hn::Set(d, max - new_max)));
  sum = sum * correction + hn::ReduceSum(d, sums);
  max = new_max;
}

// ---- Sums of values ----------------------------------------------------------------------------

// sums[r][...] = sums[r][...] * correction[r] + sum_p weight[r][p] * values[p][...] for p in
// [lo, hi) and kVectors vectors of dimensions; kPartial: the first `n` lanes of one vector.
template <int kRows, int kVectors, bool kPartial, class T>
HWY_INLINE void value_block(const float* HWY_RESTRICT weights, const T* HWY_RESTRICT values,
                            Index lo, Index hi, Index head_dim, size_t n,
                            const float* HWY_RESTRICT correction, float* HWY_RESTRICT sums,
                            Index sums_stride) {
  const D d;
  V acc[kRows][kVectors];
  HWY_UNROLL(4) for (int r = 0; r < kRows; ++r) {
    const V c = hn::Set(d, correction[r]);
    HWY_UNROLL(4) for (int j = 0; j < kVectors; ++j) {
      acc[r][j] = hn::Mul(c, hn::LoadU(d, sums + r * sums_stride + j * kLanes));
    }
  }
  for (Index p = lo; p < hi; ++p) {
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
template <int kRows, class T>
HWY_INLINE void value_rows(const float* weights, const T* values, Index lo, Index hi,
                           Index head_dim, const float* correction, float* sums,
                           Index sums_stride) {
  constexpr int kVectors = kWide<kRows>;
  Index i = 0;
  for (; i + kVectors * kLanes <= head_dim; i += kVectors * kLanes) {
    value_block<kRows, kVectors, false>(weights, values + i, lo, hi, head_dim, 0, correction,
                                        sums + i, sums_stride);
  }
  for (; i + kLanes <= head_dim; i += kLanes) {
    value_block<kRows, 1, false>(weights, values + i, lo, hi, head_dim, 0, correction, sums + i,
                                 sums_stride);
  }
  if (i < head_dim) {
    value_block<kRows, 1, true>(weights, values + i, lo, hi, head_dim,
                                static_cast<size_t>(head_dim - i), correction, sums + i,
                                sums_stride);
  }
}

// ---- A task ------------------------------------------------------------------------------------

// Calls f.operator()<rows>(first_row) for blocks of rows that cover [0, n_rows).
template <class F>
HWY_INLINE void for_each_row_block(Index n_rows, F&& f) {
  Index row = 0;
  for (; row + kMaxRows <= n_rows; row += kMaxRows) f.template operator()<kMaxRows>(row);
  switch (n_rows - row) {
    case 3: f.template operator()<3>(row); break;
    case 2: f.template operator()<2>(row); break;
    case 1: f.template operator()<1>(row); break;
    default: break;
  }
}

template <class T>
HWY_INLINE void attend(const typename kernels::Attend<T>::Args& a) {
  const Index n_rows = a.n_tokens * a.group;
  const Index head_dim = a.head_dim;
  const Index padded_dim = kernels::round_up(head_dim, kPanelPositions);
  const Index padded_rows = kernels::round_up(n_rows, kPanelPositions);
  float* const max = a.scratch;
  float* const sum = max + padded_rows;
  float* const correction = sum + padded_rows;
  float* const scores = correction + padded_rows;        // (n_rows, kAttentionTile)
  float* const sums = scores + n_rows * kAttentionTile;  // (n_rows, padded_dim)
  float* const queries = sums + n_rows * padded_dim;     // blocks of (head_dim, block's rows)

  for (Index row = 0; row < n_rows; ++row) {
    max[row] = std::numeric_limits<float>::lowest();
    sum[row] = 0;
  }
  for (Index i = 0; i < n_rows * padded_dim; ++i) sums[i] = 0;
  for_each_row_block(n_rows, [&]<int kRows>(Index row) HWY_ATTR {
    float* const block = queries + row * head_dim;
    for (int r = 0; r < kRows; ++r) {
      const Index token = (row + r) / a.group;
      const float* const q = a.q + token * a.q_stride + (row + r) % a.group * head_dim;
      for (Index i = 0; i < head_dim; ++i) block[i * kRows + r] = q[i] * a.scale;
    }
  });

  for (Index tile = a.begin / kAttentionTile * kAttentionTile; tile < a.end;
       tile += kAttentionTile) {
    // Positions of the tile, relative to it, that a row sees.
    const auto seen_from = [&](Index row) HWY_ATTR {
      Index lo = a.begin;
      if (a.window > 0) lo = std::max(lo, a.first_position + row / a.group + 1 - a.window);
      return std::clamp<Index>(lo - tile, 0, kAttentionTile);
    };
    const auto seen_to = [&](Index row) HWY_ATTR {
      const Index hi = std::min(a.end, a.first_position + row / a.group + 1);
      return std::clamp<Index>(hi - tile, 0, kAttentionTile);
    };
    for_each_row_block(n_rows, [&]<int kRows>(Index row) HWY_ATTR {
      const Index lo = seen_from(row);
      const Index hi = seen_to(row + kRows - 1);
      if (lo >= hi) return;
      float* const block = scores + row * kAttentionTile;
      score_rows<kRows>(queries + row * head_dim,
                        a.keys + kernels::key_offset<T>(tile, 0, head_dim), lo, hi, head_dim,
                        block);
      for (int r = 0; r < kRows; ++r) {
        softmax_row(block + r * kAttentionTile, seen_from(row + r), seen_to(row + r), lo, hi,
                    max[row + r], sum[row + r], correction[row + r]);
      }
    });
    for_each_row_block(n_rows, [&]<int kRows>(Index row) HWY_ATTR {
      const Index lo = seen_from(row);
      const Index hi = seen_to(row + kRows - 1);
      if (lo >= hi) return;
      value_rows<kRows>(scores + row * kAttentionTile, a.values + tile * head_dim, lo, hi, head_dim,
                        correction + row, sums + row * padded_dim, padded_dim);
    });
  }

  for (Index row = 0; row < n_rows; ++row) {
    float* const out = a.out + row / a.group * a.out_stride + row % a.group * head_dim;
    const float* const from = sums + row * padded_dim;
    const float factor = a.max == nullptr ? 1 / sum[row] : 1;
    for (Index i = 0; i < head_dim; ++i) out[i] = from[i] * factor;
    if (a.max != nullptr) {
      a.max[row] = max[row];
      a.sum[row] = sum[row];
    }
  }
}

HWY_INLINE void merge(const kernels::MergeAttention::Args& a) {
  const D d;
  for (Index row = 0; row < a.n_rows; ++row) {
    float max = std::numeric_limits<float>::lowest();
    for (Index p = 0; p < a.n_parts; ++p) max = std::max(max, a.max[p * a.part_rows + row]);
    float sum = 0;
    float* const merged = a.merged + row * a.head_dim;
    for (Index i = 0; i < a.head_dim; ++i) merged[i] = 0;
    for (Index p = 0; p < a.n_parts; ++p) {
      const Index part_row = p * a.part_rows + row;
      const float weight = hn::GetLane(exp_of_nonpositive(hn::Set(d, a.max[part_row] - max)));
      sum += weight * a.sum[part_row];
      const float* const out = a.out + part_row * a.head_dim;
      for (Index i = 0; i < a.head_dim; ++i) merged[i] += weight * out[i];
    }
    for (Index i = 0; i < a.head_dim; ++i) merged[i] /= sum;
  }
}

// ---- Filling the cache -------------------------------------------------------------------------

HWY_INLINE void convert(float x, float& out) { out = x; }
HWY_INLINE void convert(float x, f16& out) { out = to_f16(x); }
HWY_INLINE void convert(float x, bf16& out) { out = to_bf16(x); }

template <class T>
HWY_INLINE void store_keys_values(const typename kernels::StoreKeysValues<T>::Args& a) {
  for (Index t = 0; t < a.n_tokens; ++t) {
    const Index position = a.first_position + t;
    const float* const key = a.key + t * a.key_stride;
    const float* const value = a.value + t * a.value_stride;
    T* const row = a.values + position * a.head_dim;
    for (Index i = 0; i < a.head_dim; ++i) {
      convert(key[i], a.keys[kernels::key_offset<T>(position, i, a.head_dim)]);
      convert(value[i], row[i]);
    }
    if (a.head_dim % kKeyPair<T> != 0) {
      convert(0, a.keys[kernels::key_offset<T>(position, a.head_dim, a.head_dim)]);
    }
  }
}

}  // namespace attention

template <class T>
struct Impl<kernels::Attend<T>> {
  static void run(const typename kernels::Attend<T>::Args& a) { attention::attend<T>(a); }
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
