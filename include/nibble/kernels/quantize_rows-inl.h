// SPDX-License-Identifier: Apache-2.0

#if defined(NIBBLE_KERNELS_QUANTIZE_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_QUANTIZE_ROWS_INL_H_
#undef NIBBLE_KERNELS_QUANTIZE_ROWS_INL_H_
#else
#define NIBBLE_KERNELS_QUANTIZE_ROWS_INL_H_
#endif

#include <cstring>
#include <limits>

#include "hwy/highway.h"
#include "nibble/kernels/quantize_rows.hpp"

HWY_BEFORE_NAMESPACE();
namespace nibble::inline NIBBLE_ABI::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Quantization reads its row through a Source, so that what computes a row (a norm) needs not store
// it: at(d, i) is the vector of values from i on; at_n(d, i, n) is its first n lanes, then zeros.
struct RowInMemory {
  const float* x;

  template <class D>
  HWY_INLINE hn::Vec<D> at(D d, size_t i) const {
    return hn::LoadU(d, x + i);
  }
  template <class D>
  HWY_INLINE hn::Vec<D> at_n(D d, size_t i, size_t n) const {
    return hn::LoadN(d, x + i, n);
  }
};

namespace quantize_detail {

using kernels::QuantizedRow;

// At most 16 lanes, so that a block of 32 is whole vectors everywhere.
using DF = hn::CappedTag<float, 16>;
using DI = hn::RebindToSigned<DF>;
using VF = hn::Vec<DF>;
using VI = hn::Vec<DI>;
static_assert(hn::MaxLanes(DF()) >= 4, "nibble needs vectors of at least 4 floats");

struct MaxOf {
  template <class V>
  HWY_INLINE V operator()(V a, V b) const {
    return hn::Max(a, b);
  }
};
struct SumOf {
  template <class V>
  HWY_INLINE V operator()(V a, V b) const {
    return hn::Add(a, b);
  }
};

// All lanes of v, combined into four: lane i of every group of four.
template <class Op, class D>
HWY_INLINE auto fold_to_4(D d, hn::Vec<D> v) {
  if constexpr (hn::MaxLanes(d) <= 4) {
    return v;
  } else {
    const hn::Half<D> dh;
    return fold_to_4<Op>(dh, Op()(hn::LowerHalf(dh, v), hn::UpperHalf(dh, v)));
  }
}

// Four horizontal reductions at once: lane j of the result combines all lanes of argument j.
template <class Op, class D, class V>
HWY_INLINE auto reduce_4(D d, V a, V b, V c, V e) {
  const hn::RepartitionToWide<D> dw;
  // Per group of four lanes: a0|a2 b0|b2 a1|a3 b1|b3
  const V ab = Op()(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
  const V ce = Op()(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e));
  const auto abw = hn::BitCast(dw, ab), cew = hn::BitCast(dw, ce);
  return fold_to_4<Op>(d, Op()(hn::BitCast(d, hn::InterleaveLower(dw, abw, cew)),
                               hn::BitCast(d, hn::InterleaveUpper(dw, abw, cew))));
}

// |x| as its bits: ordered as integers like the absolute values, with infinity and then NaN above
// every finite number, so that a maximum never loses a NaN.
HWY_INLINE VI magnitude(VF x) { return hn::BitCast(DI(), hn::Abs(x)); }

inline constexpr std::int32_t kInfinityBits = 0x7F800000;

// The two factors for absmax bits; lanes that cannot be quantized get inverse 0.
template <class DI4, class D4 = hn::RebindToFloat<DI4>>
HWY_INLINE void factors(DI4 di, hn::Vec<DI4> absmax_bits, hn::Vec<D4>& scale,
                        hn::Vec<D4>& inverse) {
  const D4 d;
  constexpr float kTiny = 127.0f * std::numeric_limits<float>::min();
  const auto absmax = hn::BitCast(d, absmax_bits);
  const auto infinity = hn::Set(di, kInfinityBits);
  const auto finite = hn::RebindMask(d, hn::Lt(absmax_bits, infinity));
  // Not "absmax >= tiny": true for a NaN too.
  const auto usable = hn::Not(hn::Lt(absmax, hn::Set(d, kTiny)));
  const auto k127 = hn::Set(d, 127.0f);
  scale = hn::IfThenElseZero(usable, hn::Div(absmax, k127));
  inverse = hn::IfThenElseZero(hn::And(usable, finite), hn::Div(k127, absmax));
}

// Free functions, not lambdas: compilers do not inline those at -O2.
template <class Source>
HWY_INLINE VI encode_vector(const Source& source, size_t i, VF inverse) {
  return hn::NearestIntInRange(DI(), hn::Mul(source.at(DF(), i), inverse));
}

// Codes of the 32 values from i on. Returns vectors whose lanes add up to the sum of the codes.
template <class Source>
HWY_INLINE VI encode_32(const Source& source, size_t i, VF inverse, std::int8_t* codes) {
  constexpr size_t kLanes = hn::MaxLanes(DF());
  const hn::Repartition<std::int16_t, DI> d16;
  if constexpr (kLanes == 16) {
    const hn::Rebind<std::int8_t, decltype(d16)> d8;
    const VI a = encode_vector(source, i, inverse);
    const VI b = encode_vector(source, i + kLanes, inverse);
    hn::StoreU(hn::DemoteTo(d8, hn::OrderedDemote2To(d16, a, b)), d8, codes);
    return hn::Add(a, b);
  } else {
    const hn::Repartition<std::int8_t, DI> d8;
    VI sum = hn::Zero(DI());
    for (size_t at = 0; at < 32; at += 4 * kLanes) {
      const VI a = encode_vector(source, i + at, inverse);
      const VI b = encode_vector(source, i + at + kLanes, inverse);
      const VI c = encode_vector(source, i + at + 2 * kLanes, inverse);
      const VI e = encode_vector(source, i + at + 3 * kLanes, inverse);
      sum = hn::Add(sum, hn::Add(hn::Add(a, b), hn::Add(c, e)));
      hn::StoreU(hn::OrderedDemote2To(d8, hn::OrderedDemote2To(d16, a, b),
                                      hn::OrderedDemote2To(d16, c, e)),
                 d8, codes + at);
    }
    return sum;
  }
}

template <size_t kLength, class Source>
HWY_INLINE VI absmax_block(const Source& source, size_t i) {
  constexpr size_t kLanes = hn::MaxLanes(DF());
  VI max = magnitude(source.at(DF(), i));
  for (size_t at = kLanes; at < kLength; at += kLanes) {
    max = hn::Max(max, magnitude(source.at(DF(), i + at)));
  }
  return max;
}

template <size_t kLength, class Source>
HWY_INLINE VI encode_block(const Source& source, size_t i, float inverse, std::int8_t* codes) {
  const VF factor = hn::Set(DF(), inverse);
  VI sum = encode_32(source, i, factor, codes);
  for (size_t at = 32; at < kLength; at += 32) {
    sum = hn::Add(sum, encode_32(source, i + at, factor, codes + at));
  }
  return sum;
}

// Four whole blocks from value i on; their outputs start at out's first entries.
template <int kBlock, class Source>
HWY_INLINE void quantize_4_blocks(const Source& source, size_t i, QuantizedRow out) {
  const DI di;
  const hn::FixedTag<float, 4> d4;
  const hn::FixedTag<std::int32_t, 4> di4;
  constexpr size_t kLength = static_cast<size_t>(kBlock);

  const auto bits = reduce_4<MaxOf>(di, absmax_block<kLength>(source, i),
                                    absmax_block<kLength>(source, i + kLength),
                                    absmax_block<kLength>(source, i + 2 * kLength),
                                    absmax_block<kLength>(source, i + 3 * kLength));
  hn::Vec<decltype(d4)> scale, inverse;
  factors(di4, bits, scale, inverse);
  hn::StoreU(scale, d4, out.scales);
  HWY_ALIGN float inverses[4];
  hn::Store(inverse, d4, inverses);

  std::int8_t* const codes = out.codes;
  const VI sum0 = encode_block<kLength>(source, i, inverses[0], codes);
  const VI sum1 = encode_block<kLength>(source, i + kLength, inverses[1], codes + kLength);
  const VI sum2 = encode_block<kLength>(source, i + 2 * kLength, inverses[2], codes + 2 * kLength);
  const VI sum3 = encode_block<kLength>(source, i + 3 * kLength, inverses[3], codes + 3 * kLength);
  const auto sums = reduce_4<SumOf>(di, sum0, sum1, sum2, sum3);
  hn::StoreU(hn::Neg(hn::ShiftLeft<3>(sums)), di4, out.neg8sums);

  if (HWY_UNLIKELY(!hn::AllTrue(di4, hn::Lt(bits, hn::Set(di4, kInfinityBits))))) {
    HWY_ALIGN std::int32_t absmax_bits[4];
    hn::Store(bits, di4, absmax_bits);
    for (size_t block = 0; block < 4; ++block) {
      if (absmax_bits[block] < kInfinityBits) continue;
      std::memset(out.codes + block * kLength, 0, kLength);
      out.neg8sums[block] = 0;
    }
  }
}

// Up to `capacity` values of the source from i on, zeros after them.
template <class Source>
HWY_INLINE void copy_padded(const Source& source, size_t i, size_t n, float* HWY_RESTRICT to,
                            size_t capacity) {
  const DF d;
  for (size_t at = 0; at < capacity; at += hn::Lanes(d)) {
    const VF v = at + hn::Lanes(d) <= n ? source.at(d, i + at)
                 : at < n               ? source.at_n(d, i + at, n - at)
                                        : hn::Zero(d);
    hn::StoreU(v, d, to + at);
  }
}

template <class Source>
HWY_INLINE void quantize_whole_row(const Source& source, size_t k, QuantizedRow out) {
  const DF d;
  const DI di;
  const hn::FixedTag<float, 4> d4;
  const hn::FixedTag<std::int32_t, 4> di4;
  const size_t whole = k / 32 * 32;
  HWY_ALIGN float rest[32];
  copy_padded(source, whole, k - whole, rest, 32);

  const size_t lanes = hn::Lanes(d);
  VI max0 = hn::Zero(di), max1 = max0;  // two chains: the loads bound this, not the latency
  for (size_t i = 0; i < whole; i += 2 * lanes) {
    max0 = hn::Max(max0, magnitude(source.at(d, i)));
    max1 = hn::Max(max1, magnitude(source.at(d, i + lanes)));
  }
  for (size_t i = 0; i < 32; i += lanes) max0 = hn::Max(max0, magnitude(hn::LoadU(d, rest + i)));
  const auto bits = hn::Set(di4, hn::ReduceMax(di, hn::Max(max0, max1)));
  hn::Vec<decltype(d4)> scale, inverse;
  factors(di4, bits, scale, inverse);
  *out.scales = hn::GetLane(scale);
  if (HWY_UNLIKELY(hn::GetLane(bits) >= kInfinityBits)) {
    std::memset(out.codes, 0, k == whole ? whole : whole + 32);
    *out.neg8sums = 0;
    return;
  }

  const VF factor = hn::Set(d, hn::GetLane(inverse));
  VI sum = hn::Zero(di);
  for (size_t i = 0; i < whole; i += 32) {
    sum = hn::Add(sum, encode_32(source, i, factor, out.codes + i));
  }
  if (whole < k) sum = hn::Add(sum, encode_32(RowInMemory{rest}, 0, factor, out.codes + whole));
  *out.neg8sums = -8 * hn::ReduceSum(di, sum);
}

}  // namespace quantize_detail

// The k values of the source; see kernels::QuantizeRow.
template <int kBlock, class Source>
HWY_INLINE void quantize_row(const Source& source, size_t k, kernels::QuantizedRow out) {
  using namespace quantize_detail;
  if constexpr (kBlock == 0) {
    quantize_whole_row(source, k, out);
  } else {
    constexpr size_t kGroup = 4 * static_cast<size_t>(kBlock);
    size_t i = 0;
    for (; i + kGroup <= k; i += kGroup) {
      const size_t block = i / static_cast<size_t>(kBlock);
      quantize_4_blocks<kBlock>(source, i,
                                {out.codes + i, out.scales + block, out.neg8sums + block});
    }
    if (i == k) return;
    // The last group, padded with zeros; only its blocks that exist are written.
    HWY_ALIGN float values[kGroup];
    HWY_ALIGN std::int8_t codes[kGroup];
    float scales[4];
    std::int32_t neg8sums[4];
    copy_padded(source, i, k - i, values, kGroup);
    quantize_4_blocks<kBlock>(RowInMemory{values}, 0, {codes, scales, neg8sums});
    const size_t block = i / static_cast<size_t>(kBlock);
    const size_t n_blocks = (k - i + static_cast<size_t>(kBlock) - 1) / static_cast<size_t>(kBlock);
    std::memcpy(out.codes + i, codes, n_blocks * static_cast<size_t>(kBlock));
    std::memcpy(out.scales + block, scales, n_blocks * sizeof(float));
    std::memcpy(out.neg8sums + block, neg8sums, n_blocks * sizeof(std::int32_t));
  }
}

template <int kBlock>
struct Impl<kernels::QuantizeRow<kBlock>> {
  static void run(const float* x, Index k, kernels::QuantizedRow out) {
    quantize_row<kBlock>(RowInMemory{x}, static_cast<size_t>(k), out);
  }
};

}  // namespace nibble::inline NIBBLE_ABI::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
