// SPDX-License-Identifier: Apache-2.0
//
// Attention over a cache whose values are 4-bit codes, with a scale and a minimum for each 32
// dimensions. Keys are 8-bit integers (attention_int8-inl.h). As there, weights are rounded to
// 16-bit integers, and the sums of their products with codes are exact. For a group of dimensions,
//   sum of w x = sum of (w scale) code + sum of w minimum.
// Why keys keep 8 bits: some of their dimensions are large at all positions (J. Hooper et al.,
// "KVQuant", 2024), and 4 bits then lose the others. Measured on stories260K, chunks of 128:
// perplexity 4.08 of F32 becomes 4.09 with 4-bit values and 5.72 with 4-bit keys.

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_ATTENTION_INT4_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_ATTENTION_INT4_INL_H_
#undef NIBBLE_KERNELS_ATTENTION_INT4_INL_H_
#else
#define NIBBLE_KERNELS_ATTENTION_INT4_INL_H_
#endif

#include <cstring>

#include "hwy/highway.h"
#include "nibble/kernels/attention_float-inl.h"
#include "nibble/kernels/attention_int8-inl.h"
#include "nibble/kernels/math-inl.h"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace attention {

using kernels::CodePair;
using kernels::kCodeGroup;

// sums[r][j] += sum over 4 numbers of row r, at x + r * x_stride, times one half of pairs[j].
template <int kHalf, Kind kKind, int kRows, int kVectors>
HWY_INLINE void add_products_of_half(const std::byte* HWY_RESTRICT x, Index x_stride,
                                     const RegisterTile<DI, 1, kVectors>& pairs,
                                     WideSum<kKind> (&sums)[kRows][kVectors]) {
  CodeVector<kKind> c[kVectors];
  HWY_UNROLL(2) for (int j = 0; j < kVectors; ++j) c[j].template take_half<kHalf>(pairs.get(0, j));
  HWY_UNROLL(4) for (int r = 0; r < kRows; ++r) {
    const VI plane0 = broadcast4(x + r * x_stride);
    const VI plane1 = broadcast4(x + r * x_stride + kPlaneBytes);
    HWY_UNROLL(2) for (int j = 0; j < kVectors; ++j) sums[r][j].add(c[j], plane0, plane1);
  }
}

// sums[r][j] += sum over 16 numbers of row r, at x + r * x_stride, times codes. The pairs of codes
// for numbers 8 i to 8 i + 7 are at pairs + i * pair_stride + j * vector_stride.
template <Kind kKind, int kRows, int kVectors>
HWY_INLINE void add_products_of_16(const std::byte* HWY_RESTRICT x, Index x_stride,
                                   const CodePair* HWY_RESTRICT pairs, Index pair_stride,
                                   Index vector_stride, WideSum<kKind> (&sums)[kRows][kVectors],
                                   Prefetcher& prefetcher) {
  HWY_UNROLL(2) for (Index i = 0; i < 2; ++i) {
    prefetcher.step<kVectors * kLanes * 4>();
    RegisterTile<DI, 1, kVectors> loaded;
    HWY_UNROLL(2) for (int j = 0; j < kVectors; ++j) {
      const CodePair* const from = pairs + i * pair_stride + j * vector_stride;
      const auto bytes = hn::LoadU(DU8(), reinterpret_cast<const std::uint8_t*>(from));
      loaded.set(0, j, hn::BitCast(DI(), bytes));
    }
    add_products_of_half<0>(x + i * 8, x_stride, loaded, sums);
    add_products_of_half<1>(x + i * 8 + 4, x_stride, loaded, sums);
  }
}

// ---- Keys --------------------------------------------------------------------------------------

NIBBLE_LAZY HWY_INLINE void put_query(const CodePair*, const float* HWY_RESTRICT q, float scale,
                                      Index head_dim, Index r, Index rows,
                                      float* HWY_RESTRICT block) {
  put_query(static_cast<const std::int8_t*>(nullptr), q, scale, head_dim, r, rows, block);
}
template <int kRows>
HWY_INLINE void score_rows(const float* queries, const CodePair* keys, Index lo, Index hi,
                           Index head_dim, float* scores, bool is_stream, Prefetcher& prefetcher) {
  score_rows<kRows>(queries, reinterpret_cast<const std::int8_t*>(keys), lo, hi, head_dim, scores,
                    is_stream, prefetcher);
}

// ---- Sums of values ----------------------------------------------------------------------------

// The weights are the exponentials themselves, and 0 at positions that are not seen.
template <std::same_as<CodePair> T>
class Weights<T> {
 public:
  // The softmax fetches what the products do not: of keys the last quarter and the scales, of
  // values the scales and minimums.
  HWY_INLINE Weights(const CodePair*, Index head_dim, int n_rows)
      : fetched_per_row_((kernels::code_panel_size(head_dim) +
                          (1 + kernels::code_groups(head_dim)) * 4 * kAttentionTile) /
                         n_rows) {}

  HWY_INLINE V of(V e, int r, Index p, const Seen& seen) {
    return seen.all(r) ? e : hn::IfThenElseZero(seen.mask(r, p), e);
  }
  HWY_INLINE void end_row(int, Prefetcher& prefetcher) {
    for (Index i = 0; i < fetched_per_row_; i += 256) prefetcher.step<256>();
  }
  HWY_INLINE void finish(float*, int, const Seen&) const {}

 private:
  Index fetched_per_row_;  // bytes
};

// The weights of a row for one group of dimensions.
struct GroupWeights {
  alignas(64) std::byte numbers[kAttentionTile * 2];  // weights times scales, as planes
  float scale;                                        // of the numbers
  float offset;                                       // sum of weights times minimums

  static constexpr Index kPanelBytes = kPanelPositions * 2;
};

// The scales and minimums of a group of dimensions at the positions of a tile, as floats.
struct GroupScales {
  alignas(64) float scales[kAttentionTile];
  alignas(64) float minimums[kAttentionTile];

  // values: the panels of the tile, of which [first, end) are read.
  HWY_INLINE void read(const CodePair* values, Index first, Index end, Index group,
                       Index head_dim) {
    const Index panel_size = kernels::value_panel_size<CodePair>(head_dim);
    for (Index panel = first; panel < end; ++panel) {
      const f16* const from = kernels::group_scales(values + panel * panel_size, group, head_dim);
      for (Index i = 0; i < kPanelPositions; i += kLanes) {
        hn::StoreU(load(from + i), D(), scales + panel * kPanelPositions + i);
        hn::StoreU(load(from + kPanelPositions + i), D(), minimums + panel * kPanelPositions + i);
      }
    }
  }
};

// weights: (kAttentionTile), of which panels [first, end) are read.
HWY_INLINE void put_weights(const float* HWY_RESTRICT weights, const GroupScales& group,
                            Index first, Index end, GroupWeights& out) {
  const D d;
  V top = hn::Zero(d);
  V offsets = hn::Zero(d);
  HWY_ALIGN float products[kAttentionTile];
  for (Index p = first * kPanelPositions; p < end * kPanelPositions; p += kLanes) {
    const V weight = load(weights + p);
    // A select, not arithmetic: scales of positions that are not seen may be NaN.
    const auto is_seen = hn::Gt(weight, hn::Zero(d));
    const V product = hn::IfThenElseZero(is_seen, hn::Mul(weight, load(group.scales + p)));
    const V minimum = hn::IfThenElseZero(is_seen, load(group.minimums + p));
    offsets = hn::MulAdd(weight, minimum, offsets);
    top = hn::Max(top, product);
    hn::StoreU(product, d, products + p);
  }
  const float max = hn::ReduceMax(d, top);
  const float most = max_number(kAttentionTile);
  const V inverse = to_numbers(max, most);
  for (Index panel = first; panel < end; ++panel) {
    Numbers x;
    HWY_UNROLL(4) for (int v = 0; v < kPanelPositions / kLanes; ++v) {
      const V product = load(products + panel * kPanelPositions + v * kLanes);
      x.set(0, v, nearest(d, hn::Mul(product, inverse)));
    }
    put_planes<Kind::weight>(x, out.numbers + panel * GroupWeights::kPanelBytes);
  }
  out.scale = max / most;
  out.offset = hn::ReduceSum(d, offsets);
}

// Computes two vectors of sums at a time. The rows of `sums` are padded to 32; what is computed
// beyond head_dim is never used.
template <int kRows>
HWY_INLINE void value_rows(const float* weights, const CodePair* values, Index lo, Index hi,
                           Index head_dim, const float* correction, float* sums, Index sums_stride,
                           bool, Prefetcher& prefetcher) {
  const D d;
  const Index first = lo / kPanelPositions, end = (hi + kPanelPositions - 1) / kPanelPositions;
  const Index padded_dim = kernels::round_up(head_dim, 16);
  const Index panel_size = kernels::value_panel_size<CodePair>(head_dim);
  GroupScales scales;
  GroupWeights rows[kRows];
  for (Index i = 0; i < head_dim; i += kCodeVectors * kLanes) {
    if (i % kCodeGroup == 0) {
      scales.read(values, first, end, i / kCodeGroup, head_dim);
      for (int r = 0; r < kRows; ++r) {
        put_weights(weights + r * kAttentionTile, scales, first, end, rows[r]);
      }
    }
    WideSum<Kind::weight> products[kRows][kCodeVectors];
    HWY_UNROLL(4) for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(2) for (int j = 0; j < kCodeVectors; ++j) products[r][j].start(0);
    }
    for (Index panel = first; panel < end; ++panel) {
      add_products_of_16(rows[0].numbers + panel * GroupWeights::kPanelBytes,
                         Index{sizeof(GroupWeights)}, values + panel * panel_size + i * 4,
                         padded_dim * 4, kLanes * 4, products, prefetcher);
    }
    HWY_UNROLL(4) for (int r = 0; r < kRows; ++r) {
      const V scale = hn::Set(d, rows[r].scale);
      const V offset = hn::Set(d, rows[r].offset);
      HWY_UNROLL(2) for (int j = 0; j < kCodeVectors; ++j) {
        float* const at = sums + r * sums_stride + i + j * kLanes;
        const V before = hn::MulAdd(load(at), hn::Set(d, correction[r]), offset);
        const V product = hn::ConvertTo(d, products[r][j].total());
        hn::StoreU(hn::MulAdd(product, scale, before), d, at);
      }
    }
  }
}

// ---- Filling the cache -------------------------------------------------------------------------

// Computes the codes of n <= kCodeGroup elements, zeros after them, and stores the scale and the
// minimum at `scale` and kPanelPositions after it.
NIBBLE_LAZY HWY_INLINE void make_codes(const float* HWY_RESTRICT x, Index n, f16* scale,
                                       std::uint8_t (&codes)[kCodeGroup]) {
  float min = x[0], max = x[0];
  for (Index i = 1; i < n; ++i) {
    min = smaller(min, x[i]);
    max = larger(max, x[i]);
  }
  // Codes are of what the cache will have, the rounded scale and minimum. If that is rounded to more
  // than the greatest element, the step would be below 0: sums are only right for others.
  const f16 minimum = to_f16(min);
  const f16 step = to_f16(larger(max - to_f32(minimum), 0.0f) / 15);
  scale[0] = step;
  scale[kPanelPositions] = minimum;
  const float offset = to_f32(minimum);
  const float inverse = step.bits == 0 ? 0 : 1 / to_f32(step);
  const D d;
  for (Index i = 0; i < kCodeGroup; i += kLanes) {
    const Index from = (std::min)(i, n);
    const V part = hn::LoadN(d, x + from, static_cast<size_t>(n - from));
    const V steps = hn::Mul(hn::Sub(part, hn::Set(d, offset)), hn::Set(d, inverse));
    HWY_ALIGN std::int32_t whole[kLanes];
    hn::Store(nearest(d, hn::Clamp(steps, hn::Zero(d), hn::Set(d, 15))), DI(), whole);
    for (Index j = 0; j < kLanes; ++j) {
      codes[i + j] = i + j < n ? static_cast<std::uint8_t>(whole[j] & 15) : 0;
    }
  }
}

NIBBLE_LAZY HWY_INLINE void store_key_value(const float* HWY_RESTRICT key,
                                            const float* HWY_RESTRICT value, Index position,
                                            Index head_dim, CodePair* HWY_RESTRICT cache) {
  using T = CodePair;
  store_key(key, position, head_dim,
            reinterpret_cast<std::int8_t*>(cache + kernels::key_panel<T>(position, head_dim)));
  T* const values = cache + kernels::value_panel<T>(position, head_dim);
  T* const to = cache + kernels::value_offset<T>(position, 0, head_dim);
  const int shift = position / 4 % 2 == 0 ? 0 : 4;  // of the half that this position has
  for (Index i = 0; i < head_dim; i += kCodeGroup) {
    const Index n = (std::min)(kCodeGroup, head_dim - i);
    f16* const scales = kernels::group_scales(values, i / kCodeGroup, head_dim);
    std::uint8_t codes[kCodeGroup];
    make_codes(value + i, n, scales + position % kPanelPositions, codes);
    for (Index j = 0; j < kernels::round_up(n, 16); ++j) {
      std::uint8_t& bits = to[(i + j) * 4].bits;
      bits = static_cast<std::uint8_t>((bits & (0xF0 >> shift)) | codes[j] << shift);
    }
  }
}

}}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE::attention
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
