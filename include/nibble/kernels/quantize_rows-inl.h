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

namespace quantize_detail {

using kernels::QuantizedRow;
// At most 16 lanes, so that a block of 32 is whole vectors everywhere.
using DF = hn::CappedTag<float, 16>;
using DI = hn::RebindToSigned<DF>;
using VF = hn::Vec<DF>;
using VI = hn::Vec<DI>;
static_assert(hn::MaxLanes(DF()) >= 4, "nibble needs vectors of at least 4 floats");

// Quantization reads its row through a Source, so that what computes a row (a norm) needs not store
// it. A Source has these members; they return the values from index i on.
//   kInMemory         reading a value again is only a load
//   first(i, chain)   called once for each i; a source that sums on the way adds to one of four
//                     independent sums, `chain`
//   first_n(i, n)     the same for the last n values, n less than a vector; zeros after them
//   again(i)          later, any number of times
struct RowInMemory {
  static constexpr bool kInMemory = true;
  const float* x;

  HWY_INLINE VF first(size_t i, size_t) const { return again(i); }
  HWY_INLINE VF first_n(size_t i, size_t n) const { return hn::LoadN(DF(), x + i, n); }
  HWY_INLINE VF again(size_t i) const { return hn::LoadU(DF(), x + i); }
};

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
  const auto scaled = hn::Mul(source.again(i), inverse);
#if HWY_ARCH_X86
  return hn::NearestIntInRange(DI(), scaled);
#else
  return hn::NearestInt(scaled);  // Highway 1.3 has the cheaper form for x86 only
#endif
}

// Where the groups of four bytes are that store_bytes gets from x86's packing instructions.
struct UnmixedOrder {
  HWY_ALIGN std::int32_t order[hn::MaxLanes(DI())];

  constexpr UnmixedOrder() : order() {
    constexpr std::int32_t kBlocks = hn::MaxLanes(DI()) / 4;
    for (std::int32_t i = 0; i < 4 * kBlocks; ++i) order[i] = i % kBlocks * 4 + i / kBlocks;
  }
};
inline constexpr UnmixedOrder kUnmixed;

// The lanes of a, b, c and e, in this order, as bytes.
HWY_INLINE void store_bytes(VI a, VI b, VI c, VI e, std::int8_t* codes) {
  const hn::Repartition<std::int16_t, DI> d16;
  const hn::Repartition<std::int8_t, DI> d8;
#if HWY_ARCH_X86
  // x86 packs within 128-bit blocks, so that the four vectors alternate every four bytes; one
  // permutation at the end costs less than the one in each OrderedDemote2To.
  const auto mixed =
      hn::ReorderDemote2To(d8, hn::ReorderDemote2To(d16, a, b), hn::ReorderDemote2To(d16, c, e));
  if constexpr (hn::MaxLanes(DI()) == 4) {
    hn::StoreU(mixed, d8, codes);
  } else {
    hn::StoreU(hn::BitCast(d8, hn::TableLookupLanes(hn::BitCast(DI(), mixed),
                                                    hn::SetTableIndices(DI(), kUnmixed.order))),
               d8, codes);
  }
#else
  hn::StoreU(
      hn::OrderedDemote2To(d8, hn::OrderedDemote2To(d16, a, b), hn::OrderedDemote2To(d16, c, e)),
      d8, codes);
#endif
}

// Codes of four vectors: of two with one factor and of two with another. Adds to each sum vectors
// whose lanes add up to the sum of the codes; both sums may be the same variable.
template <class Source>
HWY_INLINE void encode_4_vectors(const Source& source, size_t i, VF inverse0, VF inverse1,
                                 std::int8_t* codes, VI& sum0, VI& sum1) {
  constexpr size_t kLanes = hn::MaxLanes(DF());
  const VI a = encode_vector(source, i, inverse0);
  const VI b = encode_vector(source, i + kLanes, inverse0);
  const VI c = encode_vector(source, i + 2 * kLanes, inverse1);
  const VI e = encode_vector(source, i + 3 * kLanes, inverse1);
  sum0 = hn::Add(sum0, hn::Add(a, b));
  sum1 = hn::Add(sum1, hn::Add(c, e));
  store_bytes(a, b, c, e, codes);
}

// The same for 32 values with one factor and the next 32 with another.
template <class Source>
HWY_INLINE void encode_64(const Source& source, size_t i, float inverse0, float inverse1,
                          std::int8_t* codes, VI& sum0, VI& sum1) {
  constexpr size_t kStep = 4 * hn::MaxLanes(DF());
  const VF factor0 = hn::Set(DF(), inverse0), factor1 = hn::Set(DF(), inverse1);
  if constexpr (kStep == 64) {
    encode_4_vectors(source, i, factor0, factor1, codes, sum0, sum1);
  } else {
    for (size_t at = 0; at < 32; at += kStep) {
      encode_4_vectors(source, i + at, factor0, factor0, codes + at, sum0, sum0);
    }
    for (size_t at = 32; at < 64; at += kStep) {
      encode_4_vectors(source, i + at, factor1, factor1, codes + at, sum1, sum1);
    }
  }
}

// Codes of four blocks. The result has the sum of each block's.
template <size_t kLength, class Source>
HWY_INLINE auto encode_4_blocks(const Source& source, size_t i, const float* inverses,
                                std::int8_t* codes) {
  const DI di;
  VI sum0 = hn::Zero(di), sum1 = sum0, sum2 = sum0, sum3 = sum0;
  if constexpr (kLength == 32) {
    encode_64(source, i, inverses[0], inverses[1], codes, sum0, sum1);
    encode_64(source, i + 64, inverses[2], inverses[3], codes + 64, sum2, sum3);
  } else {
    for (size_t at = 0; at < kLength; at += 64) {
      const size_t at0 = at, at1 = at + kLength, at2 = at + 2 * kLength, at3 = at + 3 * kLength;
      encode_64(source, i + at0, inverses[0], inverses[0], codes + at0, sum0, sum0);
      encode_64(source, i + at1, inverses[1], inverses[1], codes + at1, sum1, sum1);
      encode_64(source, i + at2, inverses[2], inverses[2], codes + at2, sum2, sum2);
      encode_64(source, i + at3, inverses[3], inverses[3], codes + at3, sum3, sum3);
    }
  }
  return reduce_4<SumOf>(di, sum0, sum1, sum2, sum3);
}

// |values| of a block; those that are computed also go to `values`.
template <size_t kLength, class Source>
HWY_INLINE VI absmax_block(Source& source, size_t i, size_t chain, float* values) {
  VI max = hn::Zero(DI());
  for (size_t at = 0; at < kLength; at += hn::MaxLanes(DF())) {
    const VF v = source.first(i + at, chain);
    if constexpr (!Source::kInMemory) hn::Store(v, DF(), values + at);
    max = hn::Max(max, magnitude(v));
  }
  return max;
}

// Four whole blocks from value i on; their outputs start at out's first entries.
template <int kBlock, class Source>
HWY_INLINE void quantize_4_blocks(Source& source, size_t i, QuantizedRow out) {
  const DI di;
  const hn::FixedTag<float, 4> d4;
  const hn::FixedTag<std::int32_t, 4> di4;
  constexpr size_t kLength = static_cast<size_t>(kBlock);

  // What is computed waits here, in the L1 cache, until its factor is known.
  HWY_ALIGN float values[Source::kInMemory ? 1 : 4 * kLength];
  constexpr size_t kNext = Source::kInMemory ? 0 : kLength;
  const VI max0 = absmax_block<kLength>(source, i, 0, values);
  const VI max1 = absmax_block<kLength>(source, i + kLength, 1, values + kNext);
  const VI max2 = absmax_block<kLength>(source, i + 2 * kLength, 2, values + 2 * kNext);
  const VI max3 = absmax_block<kLength>(source, i + 3 * kLength, 3, values + 3 * kNext);
  const auto bits = reduce_4<MaxOf>(di, max0, max1, max2, max3);
  hn::Vec<decltype(d4)> scale, inverse;
  factors(di4, bits, scale, inverse);
  hn::StoreU(scale, d4, out.scales);
  HWY_ALIGN float inverses[4];
  hn::Store(inverse, d4, inverses);

  hn::Vec<decltype(di4)> sums;
  if constexpr (Source::kInMemory) {
    sums = encode_4_blocks<kLength>(source, i, inverses, out.codes);
  } else {
    sums = encode_4_blocks<kLength>(RowInMemory{values}, 0, inverses, out.codes);
  }
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

// The last n values of the row, from i on, and zeros up to `capacity`.
template <class Source>
HWY_INLINE void take_rest(Source& source, size_t i, size_t n, float* HWY_RESTRICT to,
                          size_t capacity) {
  const DF d;
  for (size_t at = 0; at < capacity; at += hn::Lanes(d)) {
    VF v = hn::Zero(d);
    if (at + hn::Lanes(d) <= n) {
      v = source.first(i + at, 0);
    } else if (at < n) {
      v = source.first_n(i + at, n - at);
    }
    hn::Store(v, d, to + at);
  }
}

template <class Source>
HWY_INLINE void quantize_whole_row(Source& source, size_t k, QuantizedRow out) {
  const DI di;
  const hn::FixedTag<float, 4> d4;
  const hn::FixedTag<std::int32_t, 4> di4;
  constexpr size_t kLanes = hn::MaxLanes(DF());
  const size_t whole = k / 64 * 64;
  const size_t rest_padded = (k - whole + 31) / 32 * 32;

  VI max0 = hn::Zero(di), max1 = max0, max2 = max0, max3 = max0;
  for (size_t i = 0; i < whole; i += 4 * kLanes) {
    max0 = hn::Max(max0, magnitude(source.first(i, 0)));
    max1 = hn::Max(max1, magnitude(source.first(i + kLanes, 1)));
    max2 = hn::Max(max2, magnitude(source.first(i + 2 * kLanes, 2)));
    max3 = hn::Max(max3, magnitude(source.first(i + 3 * kLanes, 3)));
  }
  HWY_ALIGN float rest[64];
  take_rest(source, whole, k - whole, rest, 64);
  RowInMemory rest_source{rest};
  max0 = hn::Max(max0, absmax_block<64>(rest_source, 0, 0, nullptr));
  max0 = hn::Max(hn::Max(max0, max1), hn::Max(max2, max3));
  const auto bits = hn::Set(di4, hn::ReduceMax(di, max0));
  hn::Vec<decltype(d4)> scale, inverse_of_all;
  factors(di4, bits, scale, inverse_of_all);
  *out.scales = hn::GetLane(scale);
  if (HWY_UNLIKELY(hn::GetLane(bits) >= kInfinityBits)) {
    std::memset(out.codes, 0, whole + rest_padded);
    *out.neg8sums = 0;
    return;
  }

  const float inverse = hn::GetLane(inverse_of_all);
  VI sum0 = hn::Zero(di), sum1 = sum0;
  for (size_t i = 0; i < whole; i += 64) {
    encode_64(source, i, inverse, inverse, out.codes + i, sum0, sum1);
  }
  HWY_ALIGN std::int8_t rest_codes[64];
  encode_64(rest_source, 0, inverse, inverse, rest_codes, sum0, sum1);
  std::memcpy(out.codes + whole, rest_codes, rest_padded);
  *out.neg8sums = -8 * hn::ReduceSum(di, hn::Add(sum0, sum1));
}

}  // namespace quantize_detail

// The k values of the source; see kernels::QuantizeRow.
template <int kBlock, class Source>
HWY_INLINE void quantize_row(Source& source, size_t k, kernels::QuantizedRow out) {
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
    take_rest(source, i, k - i, values, kGroup);
    RowInMemory rest{values};
    quantize_4_blocks<kBlock>(rest, 0, {codes, scales, neg8sums});
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
    quantize_detail::RowInMemory source{x};
    quantize_row<kBlock>(source, static_cast<size_t>(k), out);
  }
};

}  // namespace nibble::inline NIBBLE_ABI::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
