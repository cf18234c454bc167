// SPDX-License-Identifier: Apache-2.0
//
// Attention over a cache of 8-bit integers with a scale for each position's key and value. Queries
// and weights are rounded to 16-bit integers, whose products with 8-bit codes are exact: the only
// loss is that of the cache. On targets with dot products of bytes, a 16-bit number is split into
// two parts of 8 bits.

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_ATTENTION_INT8_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_ATTENTION_INT8_INL_H_
#undef NIBBLE_KERNELS_ATTENTION_INT8_INL_H_
#else
#define NIBBLE_KERNELS_ATTENTION_INT8_INL_H_
#endif

#include <cstring>

#include "hwy/highway.h"
#include "nibble/kernels/attention_float-inl.h"
#include "nibble/kernels/math-inl.h"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace attention {

using DI16 = hn::Repartition<std::int16_t, D>;
using DI8 = hn::Repartition<std::int8_t, D>;
using DU8 = hn::Repartition<std::uint8_t, D>;
using VI = hn::Vec<DI>;

// ---- Numbers of 16 bits times codes of 8 -------------------------------------------------------
// 16 numbers x are stored as two "planes" of 16 bytes, each with four bytes for every four numbers:
//   VNNI, sdot  x = 256 high + low: 16 high parts; 16 low parts
//   elsewhere   8 even-numbered x; 8 odd-numbered x
inline constexpr Index kPlaneBytes = 16;

// VNNI multiplies unsigned by signed bytes. Queries therefore have signed parts, which are
// multiplied by codes + 128; weights have unsigned parts, which are multiplied by the codes. sdot
// multiplies signed bytes: all parts are signed.
enum class Kind { query, weight };
template <Kind kKind>
inline constexpr bool kHasSignedParts = kKind == Kind::query || NIBBLE_HAVE_DOTPROD;

// The largest number such that the sum of n products with codes, and 128 times the sum of n
// numbers, fit 32 bits with either sign: n * max < 2^24; and such that the high part fits 8 bits.
constexpr float max_number(Index n) {
  return static_cast<float>(std::min<Index>(32512, ((Index{1} << 24) - 1) / n));
}
// Scale factor from [-top, top] to [-max, max]; 0 if `top` is below 2^-100.
HWY_INLINE V to_numbers(float top, float max) {
  return hn::Set(D(), top >= 0x1p-100f ? max / top : 0);
}

HWY_INLINE VI broadcast4(const std::byte* p) {
  std::int32_t word;
  std::memcpy(&word, p, 4);
  return hn::Set(DI(), word);
}

#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL
inline constexpr bool kHasBytePlanes = true;
template <Kind kKind>
struct CodeVector {
  Register<DI> codes;
  HWY_INLINE CodeVector() {}
  HWY_INLINE void load(const std::int8_t* p) {
    VI loaded = hn::BitCast(DI(), hn::LoadU(DI8(), p));
    if constexpr (kKind == Kind::query) {
      loaded = hn::Xor(loaded, hn::BitCast(DI(), hn::Set(DU8(), 0x80)));
    }
    codes.set(loaded);
  }
  // The codes in one half of each byte. They are not negative: WideSum::start(0).
  template <int kHalf>
  HWY_INLINE void take_half(VI pairs) {
    codes.set(hn::And(hn::ShiftRight<4 * kHalf>(pairs), hn::Set(DI(), 0x0F0F0F0F)));
  }
};
template <Kind kKind>
struct WideSum {
  Register<DI> high, low;
  HWY_INLINE WideSum() {}
  HWY_INLINE void start(std::int32_t sum_of_numbers) {
    high.set(hn::Zero(DI()));
    low.set(hn::Set(DI(), kKind == Kind::query ? -128 * sum_of_numbers : 0));
  }
  HWY_INLINE void add(const CodeVector<kKind>& c, VI plane0, VI plane1) {
    high.set(dot(c.codes.get(), plane0, high.get()));
    low.set(dot(c.codes.get(), plane1, low.get()));
  }
  // The intermediate 32-bit sums may overflow, but the total does not.
  HWY_INLINE VI total() const { return hn::Add(hn::ShiftLeft<8>(high.get()), low.get()); }

 private:
  static HWY_INLINE VI dot(VI codes, VI x, VI sum) {
    const VI a = kKind == Kind::query ? codes : x;
    const VI b = kKind == Kind::query ? x : codes;
    return hn::SumOfMulQuadAccumulate(DI(), hn::BitCast(DU8(), a), hn::BitCast(DI8(), b), sum);
  }
};
#elif NIBBLE_HAVE_DOTPROD
inline constexpr bool kHasBytePlanes = true;
template <Kind>
struct CodeVector {
  Register<DI8> codes;
  HWY_INLINE CodeVector() {}
  HWY_INLINE void load(const std::int8_t* p) { codes.set(hn::LoadU(DI8(), p)); }
  template <int kHalf>
  HWY_INLINE void take_half(VI pairs) {
    const VI half = hn::And(hn::ShiftRight<4 * kHalf>(pairs), hn::Set(DI(), 0x0F0F0F0F));
    codes.set(hn::BitCast(DI8(), half));
  }
};
template <Kind kKind>
struct WideSum {
  Register<DI> high, low;
  HWY_INLINE WideSum() {}
  HWY_INLINE void start(std::int32_t) {
    high.set(hn::Zero(DI()));
    low.set(hn::Zero(DI()));
  }
  // The products with four numbers: element kElement of the planes.
  template <int kElement>
  HWY_INLINE void add_element(const CodeVector<kKind>& c, VI plane0, VI plane1) {
    high.set(dot<kElement>(c, plane0, high.get()));
    low.set(dot<kElement>(c, plane1, low.get()));
  }
  // Where the four numbers are in all elements.
  HWY_INLINE void add(const CodeVector<kKind>& c, VI plane0, VI plane1) {
    add_element<0>(c, plane0, plane1);
  }
  // The intermediate 32-bit sums may overflow, but the total does not.
  HWY_INLINE VI total() const { return hn::Add(hn::ShiftLeft<8>(high.get()), low.get()); }

 private:
  template <int kElement>
  static HWY_INLINE VI dot(const CodeVector<kKind>& c, VI x, VI sum) {
    return VI(vdotq_laneq_s32(sum.raw, c.codes.get().raw, vreinterpretq_s8_s32(x.raw), kElement));
  }
};
#else
inline constexpr bool kHasBytePlanes = false;
template <Kind>
struct CodeVector {
  Register<DI16> even, odd;
  HWY_INLINE CodeVector() {}
  HWY_INLINE void load(const std::int8_t* p) {
    const auto codes = hn::BitCast(DI16(), hn::LoadU(DI8(), p));
    even.set(hn::ShiftRight<8>(hn::ShiftLeft<8>(codes)));
    odd.set(hn::ShiftRight<8>(codes));
  }
  template <int kHalf>
  HWY_INLINE void take_half(VI pairs) {
    const auto low =
        hn::BitCast(DI16(), hn::And(hn::ShiftRight<4 * kHalf>(pairs), hn::Set(DI(), 0x0F0F0F0F)));
    even.set(hn::And(low, hn::Set(DI16(), 0xFF)));
    odd.set(hn::ShiftRight<8>(low));
  }
};
template <Kind kKind>
struct WideSum {
  Register<DI> sum;
  HWY_INLINE WideSum() {}
  HWY_INLINE void start(std::int32_t) { sum.set(hn::Zero(DI())); }
  HWY_INLINE void add(const CodeVector<kKind>& c, VI plane0, VI plane1) {
    const VI even = hn::WidenMulPairwiseAdd(DI(), c.even.get(), hn::BitCast(DI16(), plane0));
    const VI odd = hn::WidenMulPairwiseAdd(DI(), c.odd.get(), hn::BitCast(DI16(), plane1));
    sum.set(hn::Add(hn::Add(sum.get(), even), odd));
  }
  HWY_INLINE VI total() const { return sum.get(); }
};
#endif

// Writes 16 integers of 16 bits as two planes.
using Numbers = RegisterTile<DI, 1, static_cast<int>(kPanelPositions / kLanes)>;
template <Kind kKind>
HWY_INLINE void put_planes(const Numbers& x, std::byte* to) {
  const DI d;
  if constexpr (kHasBytePlanes) {
    const hn::RebindToUnsigned<decltype(d)> du;
    const hn::Rebind<std::uint8_t, decltype(d)> d8;
    auto* const bytes = reinterpret_cast<std::uint8_t*>(to);
    HWY_UNROLL(4) for (int v = 0; v < kPanelPositions / kLanes; ++v) {
      VI high;
      if constexpr (kHasSignedParts<kKind>) {
        high = hn::ShiftRight<8>(hn::Add(x.get(0, v), hn::Set(d, 128)));
      } else {
        high = hn::ShiftRight<8>(x.get(0, v));
      }
      hn::StoreU(hn::TruncateTo(d8, hn::BitCast(du, high)), d8, bytes + v * kLanes);
      hn::StoreU(hn::TruncateTo(d8, hn::BitCast(du, x.get(0, v))), d8,
                 bytes + kPlaneBytes + v * kLanes);
    }
  } else {
    const hn::Rebind<std::int16_t, decltype(d)> d16;
    HWY_ALIGN std::int16_t numbers[kPanelPositions];
    HWY_UNROLL(4) for (int v = 0; v < kPanelPositions / kLanes; ++v) {
      hn::StoreU(hn::DemoteTo(d16, x.get(0, v)), d16, numbers + v * kLanes);
    }
    std::int16_t planes[kPanelPositions];
    for (Index i = 0; i < kPanelPositions; ++i) planes[i % 2 * 8 + i / 2] = numbers[i];
    std::memcpy(to, planes, sizeof(planes));
  }
}

// The factor that turns the numbers of a row back into floats, and the sum of the numbers.
struct NumberScale {
  float scale;
  std::int32_t sum;
};
HWY_INLINE NumberScale scale_at(const std::byte* p) {
  NumberScale s;
  std::memcpy(&s, p, sizeof(s));
  return s;
}

// sums[r][j] += sum over 16 numbers of row r, at x + r * x_stride, times codes. The codes for
// numbers 4 i to 4 i + 3 are at codes + i * code_stride + j * vector_stride.
template <Kind kKind, int kRows, int kVectors>
HWY_INLINE void add_products_of_16(const std::byte* HWY_RESTRICT x, Index x_stride,
                                   const std::int8_t* HWY_RESTRICT codes, Index code_stride,
                                   Index vector_stride, WideSum<kKind> (&sums)[kRows][kVectors],
                                   Prefetcher& prefetcher) {
#if NIBBLE_HAVE_DOTPROD
  // Planes are a load each, whose elements the dot products take by number.
  prefetcher.step<3 * kVectors * kLanes * 4>();  // see below
  CodeVector<kKind> c[4][kVectors];
  HWY_UNROLL(4) for (Index i = 0; i < 4; ++i) {
    HWY_UNROLL(2) for (int j = 0; j < kVectors; ++j) {
      c[i][j].load(codes + i * code_stride + j * vector_stride);
    }
  }
  HWY_UNROLL(4) for (int r = 0; r < kRows; ++r) {
    const auto* const planes = reinterpret_cast<const std::int8_t*>(x + r * x_stride);
    const VI plane0 = hn::BitCast(DI(), hn::LoadU(DI8(), planes));
    const VI plane1 = hn::BitCast(DI(), hn::LoadU(DI8(), planes + kPlaneBytes));
    HWY_UNROLL(2) for (int j = 0; j < kVectors; ++j) {
      sums[r][j].template add_element<0>(c[0][j], plane0, plane1);
      sums[r][j].template add_element<1>(c[1][j], plane0, plane1);
      sums[r][j].template add_element<2>(c[2][j], plane0, plane1);
      sums[r][j].template add_element<3>(c[3][j], plane0, plane1);
    }
  }
#else
  HWY_UNROLL(4) for (Index i = 0; i < 4; ++i) {
    // The softmax fetches the last quarter of what is read, and the scales.
    if (i < 3) prefetcher.step<kVectors * kLanes * 4>();
    CodeVector<kKind> c[kVectors];
    HWY_UNROLL(2) for (int j = 0; j < kVectors; ++j) {
      c[j].load(codes + i * code_stride + j * vector_stride);
    }
    HWY_UNROLL(4) for (int r = 0; r < kRows; ++r) {
      const VI plane0 = broadcast4(x + r * x_stride + i * 4);
      const VI plane1 = broadcast4(x + r * x_stride + i * 4 + kPlaneBytes);
      HWY_UNROLL(2) for (int j = 0; j < kVectors; ++j) sums[r][j].add(c[j], plane0, plane1);
    }
  }
#endif
}

// Register tiles: 4 rows times 2 vectors times 2 sums, or times 1 sum where there are 16 registers
// and a sum takes one. The same tile is used for data from memory and in L1.
// (Decode from memory on a Zen 5: 80 % of the read bandwidth. The dot products of two bytes take
// two thirds of the time that memory takes, the softmax a sixth. Weights of one byte would halve
// the time of the dot products, but lose the small weights of a tile, however many of them there
// are.)
inline constexpr int kCodeVectors = 2;

// ---- Queries -----------------------------------------------------------------------------------
// The numbers of a row, 16 at a time, then their NumberScale, in the space of head_dim floats
// rounded up to 32.

constexpr Index query_stride(Index head_dim) {
  return kernels::round_up(head_dim, 32) * static_cast<Index>(sizeof(float));
}
constexpr Index query_scale_at(Index head_dim) {
  return kernels::round_up(head_dim, 16) / 16 * 2 * kPlaneBytes;
}

NIBBLE_LAZY HWY_INLINE float largest_magnitude(const float* HWY_RESTRICT x, Index n) {
  const D d;
  V tops = hn::Zero(d);
  for (Index i = 0; i < n; i += kLanes) {
    tops = hn::Max(tops, hn::Abs(hn::LoadN(d, x + i, static_cast<size_t>(n - i))));
  }
  return hn::ReduceMax(d, tops);
}

NIBBLE_LAZY HWY_INLINE void put_query(const std::int8_t*, const float* HWY_RESTRICT q, float scale,
                                      Index head_dim, Index r, Index, float* HWY_RESTRICT block) {
  std::byte* const to = reinterpret_cast<std::byte*>(block) + r * query_stride(head_dim);
  const float max = largest_magnitude(q, head_dim);
  const float most = max_number(head_dim);
  const V inverse = to_numbers(max, most);
  VI sum = hn::Zero(DI());
  for (Index i = 0; i < head_dim; i += kPanelPositions) {
    Numbers x;
    HWY_UNROLL(4) for (int v = 0; v < kPanelPositions / kLanes; ++v) {
      const Index from = (std::min)(i + v * kLanes, head_dim);
      const V part = hn::LoadN(D(), q + from, static_cast<size_t>(head_dim - from));
      x.set(0, v, nearest(D(), hn::Mul(part, inverse)));
      sum = hn::Add(sum, x.get(0, v));
    }
    put_planes<Kind::query>(x, to + i * 2);
  }
  const NumberScale s{max / most * scale, hn::ReduceSum(DI(), sum)};
  std::memcpy(to + query_scale_at(head_dim), &s, sizeof(s));
}

// ---- Scores ------------------------------------------------------------------------------------

template <int kRows>
HWY_INLINE void score_rows(const float* queries, const std::int8_t* keys, Index lo, Index hi,
                           Index head_dim, float* scores, bool, Prefetcher& prefetcher) {
  const D d;
  const auto* const x = reinterpret_cast<const std::byte*>(queries);
  const Index x_stride = query_stride(head_dim);
  const Index panel_size = kernels::key_panel_size<std::int8_t>(head_dim);
  // The two vectors are two panels or parts of one; a tile has an even number of panels and of
  // vectors.
  constexpr Index kStep = kCodeVectors * kLanes;
  const Index vector_stride = kLanes == kPanelPositions ? panel_size : 4 * kLanes;
  for (Index p = lo / kStep * kStep; p < hi; p += kStep) {
    WideSum<Kind::query> sums[kRows][kCodeVectors];
    HWY_UNROLL(4) for (int r = 0; r < kRows; ++r) {
      const NumberScale s = scale_at(x + r * x_stride + query_scale_at(head_dim));
      HWY_UNROLL(2) for (int j = 0; j < kCodeVectors; ++j) sums[r][j].start(s.sum);
    }
    const std::int8_t* const panel = keys + p / kPanelPositions * panel_size;
    const std::int8_t* const codes = panel + p % kPanelPositions * 4;
    for (Index i = 0; i < head_dim; i += 16) {
      add_products_of_16(x + i * 2, x_stride, codes + i * kPanelPositions, kPanelPositions * 4,
                         vector_stride, sums, prefetcher);
    }
    HWY_UNROLL(2) for (int j = 0; j < kCodeVectors; ++j) {
      const Index at = p + j * kLanes;
      const std::int8_t* const its_panel = keys + at / kPanelPositions * panel_size;
      const V scale = load(kernels::panel_scales(its_panel, head_dim) + at % kPanelPositions);
      HWY_UNROLL(4) for (int r = 0; r < kRows; ++r) {
        const NumberScale s = scale_at(x + r * x_stride + query_scale_at(head_dim));
        const V sum = hn::ConvertTo(d, sums[r][j].total());
        hn::StoreU(hn::Mul(hn::Mul(sum, hn::Set(d, s.scale)), scale), d,
                   scores + r * kAttentionTile + at);
      }
    }
  }
}

// ---- Sums of values ----------------------------------------------------------------------------
// The exponentials of 16 positions, times the scales of their values, become numbers, in the first
// half of the space of the 16 floats. The factor for the whole row is stored after its first 16
// numbers.
inline constexpr Index kWeightBlockBytes = kPanelPositions * static_cast<Index>(sizeof(float));
inline constexpr Index kWeightScaleAt = 2 * kPlaneBytes;

template <std::same_as<std::int8_t> T>
class Weights<T> {
 public:
  HWY_INLINE Weights(const std::int8_t* values, Index head_dim, int n_rows)
      : values_(values),
        head_dim_(head_dim),
        panel_size_(kernels::value_panel_size<std::int8_t>(head_dim)),
        fetched_per_row_((2 * kernels::code_panel_size(head_dim) + 8 * kPanelPositions * 4) /
                         n_rows) {
    top_.set(hn::Zero(D()));
  }

  HWY_INLINE V of(V e, int r, Index p, const Seen& seen) {
    const std::int8_t* const panel = values_ + p / kPanelPositions * panel_size_;
    const V scale = load(kernels::panel_scales(panel, head_dim_) + p % kPanelPositions);
    V weight = hn::Mul(e, scale);
    // A select, not arithmetic: the scale of a position that is not seen may be NaN.
    if (!seen.all(r)) weight = hn::IfThenElseZero(seen.mask(r, p), weight);
    top_.set(hn::Max(top_.get(), weight));
    return weight;
  }

  HWY_INLINE void end_row(int r, Prefetcher& prefetcher) {
    for (Index i = 0; i < fetched_per_row_; i += 256) prefetcher.step<256>();
    max_[r] = hn::ReduceMax(D(), top_.get());
    top_.set(hn::Zero(D()));
  }

  HWY_INLINE void finish(float* weights, int n_rows, const Seen& seen) const {
    const float most = max_number(kAttentionTile);
    for (int r = 0; r < n_rows; ++r) {
      const V inverse = to_numbers(max_[r], most);
      float* const row = weights + r * kAttentionTile;
      for (Index p = seen.begin; p < seen.end; p += kPanelPositions) {
        Numbers x;
        HWY_UNROLL(4) for (int v = 0; v < kPanelPositions / kLanes; ++v) {
          x.set(0, v, nearest(D(), hn::Mul(load(row + p + v * kLanes), inverse)));
        }
        put_planes<Kind::weight>(x, reinterpret_cast<std::byte*>(row + p));
      }
      const float scale = max_[r] / most;
      std::memcpy(reinterpret_cast<std::byte*>(row + seen.begin) + kWeightScaleAt, &scale,
                  sizeof(scale));
    }
  }

 private:
  const std::int8_t* values_;
  Index head_dim_;
  Index panel_size_;
  Index fetched_per_row_;  // bytes
  Register<D> top_;
  float max_[kMaxRows];
};

// Computes two vectors of sums at a time. The rows of `sums` are padded to 32; what is computed
// beyond head_dim is never used.
template <int kRows>
HWY_INLINE void value_rows(const float* weights, const std::int8_t* values, Index lo, Index hi,
                           Index head_dim, const float* correction, float* sums, Index sums_stride,
                           bool, Prefetcher& prefetcher) {
  const D d;
  const Index first = lo / kPanelPositions, end = (hi + kPanelPositions - 1) / kPanelPositions;
  const auto* const x = reinterpret_cast<const std::byte*>(weights + first * kPanelPositions);
  constexpr Index kStride = kAttentionTile * static_cast<Index>(sizeof(float));
  const Index padded_dim = kernels::round_up(head_dim, 16);
  const Index panel_size = kernels::value_panel_size<std::int8_t>(head_dim);
  for (Index i = 0; i < head_dim; i += kCodeVectors * kLanes) {
    WideSum<Kind::weight> products[kRows][kCodeVectors];
    HWY_UNROLL(4) for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(2) for (int j = 0; j < kCodeVectors; ++j) products[r][j].start(0);
    }
    for (Index panel = first; panel < end; ++panel) {
      add_products_of_16(x + (panel - first) * kWeightBlockBytes, kStride,
                         values + panel * panel_size + i * 4, padded_dim * 4, kLanes * 4, products,
                         prefetcher);
    }
    HWY_UNROLL(4) for (int r = 0; r < kRows; ++r) {
      float scale;
      std::memcpy(&scale, x + r * kStride + kWeightScaleAt, sizeof(scale));
      HWY_UNROLL(2) for (int j = 0; j < kCodeVectors; ++j) {
        float* const at = sums + r * sums_stride + i + j * kLanes;
        const V before = hn::Mul(load(at), hn::Set(d, correction[r]));
        const V product = hn::ConvertTo(d, products[r][j].total());
        hn::StoreU(hn::MulAdd(product, hn::Set(d, scale), before), d, at);
      }
    }
  }
}

// ---- Filling the cache -------------------------------------------------------------------------

// Writes head_dim codes in groups of `group`, `stride` bytes from one group to the next, and zeros
// after them up to a multiple of 16. Returns the scale.
NIBBLE_LAZY HWY_INLINE float put_codes(const float* HWY_RESTRICT x, Index head_dim, Index group,
                                       Index stride, std::int8_t* HWY_RESTRICT to) {
  const D d;
  const float max = largest_magnitude(x, head_dim);
  const bool is_zero = !(max >= 0x1p-110f);
  const V inverse = hn::Set(d, is_zero ? 0 : 127 / max);
  for (Index i = 0; i < kernels::round_up(head_dim, 16); i += kLanes) {
    const Index from = (std::min)(i, head_dim);
    const V part = hn::LoadN(d, x + from, static_cast<size_t>(head_dim - from));
    HWY_ALIGN std::int32_t codes[kLanes];
    hn::Store(nearest(d, hn::Mul(part, inverse)), DI(), codes);
    for (Index j = 0; j < kLanes; ++j) {
      to[(i + j) / group * stride + (i + j) % group] = static_cast<std::int8_t>(codes[j]);
    }
  }
  return is_zero ? 0 : max / 127;
}

// Writes a key to the panel of its position.
NIBBLE_LAZY HWY_INLINE void store_key(const float* HWY_RESTRICT key, Index position, Index head_dim,
                                      std::int8_t* HWY_RESTRICT panel) {
  const Index lane = position % kPanelPositions;
  kernels::panel_scales(panel, head_dim)[lane] =
      put_codes(key, head_dim, 4, kPanelPositions * 4, panel + lane * 4);
}

NIBBLE_LAZY HWY_INLINE void store_key_value(const float* HWY_RESTRICT key,
                                            const float* HWY_RESTRICT value, Index position,
                                            Index head_dim, std::int8_t* HWY_RESTRICT cache) {
  using T = std::int8_t;
  T* const values = cache + kernels::value_panel<T>(position, head_dim);
  store_key(key, position, head_dim, cache + kernels::key_panel<T>(position, head_dim));
  kernels::panel_scales(values, head_dim)[position % kPanelPositions] =
      put_codes(value, head_dim, 1, 4, cache + kernels::value_offset<T>(position, 0, head_dim));
}

}}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE::attention
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
