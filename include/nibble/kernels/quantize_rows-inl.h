// SPDX-License-Identifier: Apache-2.0

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_QUANTIZE_ROWS_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_QUANTIZE_ROWS_INL_H_
#undef NIBBLE_KERNELS_QUANTIZE_ROWS_INL_H_
#else
#define NIBBLE_KERNELS_QUANTIZE_ROWS_INL_H_
#endif

#include <cstring>
#include <limits>

#include "hwy/highway.h"
#include "nibble/core/scalar.hpp"
#include "nibble/kernels/math-inl.h"
#include "nibble/kernels/prefetch-inl.h"
#include "nibble/kernels/quantize_rows.hpp"
#include "nibble/kernels/registers-inl.h"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

namespace quantize_detail {

using kernels::QuantizedRow;
// At most 16 lanes, so that a block of 32 is a whole number of vectors on every target.
using DF = PanelTag<float>;
using DI = hn::RebindToSigned<DF>;
using VF = hn::Vec<DF>;
using VI = hn::Vec<DI>;
static_assert(hn::MaxLanes(DF()) >= 4, "nibble needs vectors of at least 4 floats");

// Quantization reads its row through a Source, so that code that computes a row (a norm) need not
// store it. A Source has these members; they return the values from index i on.
//   first(i, chain)   called once for each i; a source that also computes sums adds to one of four
//                     independent sums, number `chain`
//   first_n(i, n)     the same for the last n values, fewer than a vector; zeros after them
//   again(i)          called later, any number of times
//   fetch(i)          prefetches what first() will read; i may be beyond the row, where the next
//                     row may be
struct RowInMemory {
  const float* x;

  HWY_INLINE VF first(size_t i, size_t) const { return again(i); }
  HWY_INLINE VF first_n(size_t i, size_t n) const { return hn::LoadN(DF(), x + i, n); }
  HWY_INLINE VF again(size_t i) const { return hn::LoadU(DF(), x + i); }
  HWY_INLINE void fetch(size_t i) const { prefetch(x, i); }
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
// Of both 16-bit halves of each lane.
struct SumOfHalves {
  template <class V>
  HWY_INLINE V operator()(V a, V b) const {
    const hn::DFromV<V> d;
    const hn::Repartition<std::int16_t, hn::DFromV<V>> d16;
    return hn::BitCast(d, hn::Add(hn::BitCast(d16, a), hn::BitCast(d16, b)));
  }
};

// A matrix with one vector per row, and as many rows as a vector has lanes.
inline constexpr size_t kQuantLanes = hn::MaxLanes(DF());
struct Rows {
  HWY_ALIGN std::int32_t values[kQuantLanes * kQuantLanes];

  HWY_INLINE VI load(size_t row) const { return hn::Load(DI(), values + row * kQuantLanes); }
  HWY_INLINE void store(size_t row, VI v) { hn::Store(v, DI(), values + row * kQuantLanes); }
};

// Reduces four rows to one vector: in each group of four lanes, lane j combines the group's lanes
// of row `row + j`.
template <class Op, class D, class V = hn::Vec<D>>
HWY_INLINE V reduce_4_rows(D d, const Rows& rows, size_t row) {
  const hn::RepartitionToWide<D> dw;
  const V a = rows.load(row), b = rows.load(row + 1);
  const V c = rows.load(row + 2), e = rows.load(row + 3);
  // Per group of four lanes: a0|a2 b0|b2 a1|a3 b1|b3
  const V ab = Op()(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
  const V ce = Op()(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e));
  const auto abw = hn::BitCast(dw, ab), cew = hn::BitCast(dw, ce);
  return Op()(hn::BitCast(d, hn::InterleaveLower(dw, abw, cew)),
              hn::BitCast(d, hn::InterleaveUpper(dw, abw, cew)));
}

// Reduces all lanes of all rows in log2(kQuantLanes) steps: lane j of the result combines the lanes
// of row j.
template <class Op, class D, class V = hn::Vec<D>>
HWY_INLINE V reduce_rows([[maybe_unused]] D d, const Rows& rows) {
  const V v0 = reduce_4_rows<Op>(d, rows, 0);
  if constexpr (kQuantLanes == 4) {
    return v0;
  } else if constexpr (kQuantLanes == 8) {
    const V v1 = reduce_4_rows<Op>(d, rows, 4);
    return Op()(hn::ConcatLowerLower(d, v1, v0), hn::ConcatUpperUpper(d, v1, v0));
  } else {
    const V v1 = reduce_4_rows<Op>(d, rows, 4), v2 = reduce_4_rows<Op>(d, rows, 8);
    const V v3 = reduce_4_rows<Op>(d, rows, 12);
    const V even = Op()(hn::ConcatLowerLower(d, v2, v0), hn::ConcatUpperUpper(d, v2, v0));
    const V odd = Op()(hn::ConcatLowerLower(d, v3, v1), hn::ConcatUpperUpper(d, v3, v1));
    return Op()(hn::InterleaveEvenBlocks(d, even, odd), hn::InterleaveOddBlocks(d, even, odd));
  }
}

// |x| as its bits. As integers, they are ordered like the absolute values, with infinity and then
// NaN above every finite number, so that a maximum never loses a NaN.
HWY_INLINE VI magnitude(VF x) { return hn::BitCast(DI(), hn::Abs(x)); }

inline constexpr std::int32_t kInfinityBits = 0x7F800000;

// The scale and its inverse for absmax bits; lanes that cannot be quantized get inverse 0.
template <class DI4, class D4 = hn::RebindToFloat<DI4>>
HWY_INLINE void factors(DI4 di, hn::Vec<DI4> absmax_bits, hn::Vec<D4>& scale,
                        hn::Vec<D4>& inverse) {
  const D4 d;
  constexpr float kTiny = 127.0f * (std::numeric_limits<float>::min)();
  const auto absmax = hn::BitCast(d, absmax_bits);
  const auto infinity = hn::Set(di, kInfinityBits);
  const auto finite = hn::RebindMask(d, hn::Lt(absmax_bits, infinity));
  // Unlike "absmax >= tiny", this is true for NaN too.
  const auto usable = hn::Not(hn::Lt(absmax, hn::Set(d, kTiny)));
  const auto k127 = hn::Set(d, 127.0f);
  scale = hn::IfThenElseZero(usable, hn::Div(absmax, k127));
  inverse = hn::IfThenElseZero(hn::And(usable, finite), hn::Div(k127, absmax));
}

// Free functions, not lambdas: compilers do not inline those at -O2.
template <class Source>
HWY_INLINE VI encode_vector(const Source& source, size_t i, VF inverse) {
  return nearest(DF(), hn::Mul(source.again(i), inverse));
}

// For each group of four bytes, where it is in the result of x86's packing instructions
// (store_bytes).
struct UnmixedOrder {
  HWY_ALIGN std::int32_t order[hn::MaxLanes(DI())];

  constexpr UnmixedOrder() : order() {
    constexpr std::int32_t kBlocks = hn::MaxLanes(DI()) / 4;
    for (std::int32_t i = 0; i < 4 * kBlocks; ++i) order[i] = i % kBlocks * 4 + i / kBlocks;
  }
};
NIBBLE_HIDDEN inline constexpr UnmixedOrder kUnmixed;

#if HWY_ARCH_X86
// Stores bytes that x86's packing instructions made of four vectors. They pack within 128-bit
// blocks, so that the vectors alternate every four bytes. One permutation at the end costs less
// than one in each OrderedDemote2To.
HWY_INLINE void store_mixed(hn::Vec<hn::Repartition<std::int8_t, DI>> mixed, std::int8_t* codes) {
  using D8 = hn::Repartition<std::int8_t, DI>;
  const DI d;
  if constexpr (hn::MaxLanes(d) == 4) {
    hn::StoreU(mixed, D8(), codes);
  } else {
    hn::StoreU(hn::BitCast(D8(), hn::TableLookupLanes(hn::BitCast(d, mixed),
                                                      hn::SetTableIndices(d, kUnmixed.order))),
               D8(), codes);
  }
}
#endif

// Stores the lanes of a, b, c and e, in this order, as bytes.
HWY_INLINE void store_bytes(VI a, VI b, VI c, VI e, std::int8_t* codes) {
  const DI d;
  const hn::Repartition<std::int16_t, decltype(d)> d16;
  const hn::Repartition<std::int8_t, decltype(d)> d8;
#if HWY_ARCH_X86
  store_mixed(
      hn::ReorderDemote2To(d8, hn::ReorderDemote2To(d16, a, b), hn::ReorderDemote2To(d16, c, e)),
      codes);
#else
  hn::StoreU(
      hn::OrderedDemote2To(d8, hn::OrderedDemote2To(d16, a, b), hn::OrderedDemote2To(d16, c, e)),
      d8, codes);
#endif
}

// Encodes four vectors: the first two with one factor, the last two with another. Adds the codes of
// each vector to a sum; sums may be the same variable.
template <class Source>
HWY_INLINE void encode_4_vectors(const Source& source, size_t i, VF inverse0, VF inverse1,
                                 std::int8_t* codes, VI& sum0, VI& sum1, VI& sum2, VI& sum3) {
  const VI a = encode_vector(source, i, inverse0);
  const VI b = encode_vector(source, i + kQuantLanes, inverse0);
  const VI c = encode_vector(source, i + 2 * kQuantLanes, inverse1);
  const VI e = encode_vector(source, i + 3 * kQuantLanes, inverse1);
  sum0 = hn::Add(sum0, a);
  sum1 = hn::Add(sum1, b);
  sum2 = hn::Add(sum2, c);
  sum3 = hn::Add(sum3, e);
  store_bytes(a, b, c, e, codes);
}

// Encodes 32 values with one factor and the next 32 with another. Each sum gets vectors whose lanes
// add up to the sum of the codes of 16 values; sums may be the same variable.
template <class Source>
HWY_INLINE void encode_64(const Source& source, size_t i, float inverse0, float inverse1,
                          std::int8_t* codes, VI& sum0, VI& sum1, VI& sum2, VI& sum3) {
  constexpr size_t kStep = 4 * kQuantLanes;
  const VF factor0 = hn::Set(DF(), inverse0), factor1 = hn::Set(DF(), inverse1);
  if constexpr (kStep == 64) {
    encode_4_vectors(source, i, factor0, factor1, codes, sum0, sum1, sum2, sum3);
  } else if constexpr (kStep == 32) {
    encode_4_vectors(source, i, factor0, factor0, codes, sum0, sum0, sum1, sum1);
    encode_4_vectors(source, i + 32, factor1, factor1, codes + 32, sum2, sum2, sum3, sum3);
  } else {
    encode_4_vectors(source, i, factor0, factor0, codes, sum0, sum0, sum0, sum0);
    encode_4_vectors(source, i + 16, factor0, factor0, codes + 16, sum1, sum1, sum1, sum1);
    encode_4_vectors(source, i + 32, factor1, factor1, codes + 32, sum2, sum2, sum2, sum2);
    encode_4_vectors(source, i + 48, factor1, factor1, codes + 48, sum3, sum3, sum3, sum3);
  }
}

// The largest magnitudes of 32 values and of the next 32, per lane.
template <class Source>
HWY_INLINE void absmax_64(Source& source, size_t i, VI& max0, VI& max1) {
  for (size_t at = 0; at < 32; at += 2 * kQuantLanes) {
    const VF a = source.first(i + at, 0), b = source.first(i + at + kQuantLanes, 1);
    const VF c = source.first(i + at + 32, 2), e = source.first(i + at + 32 + kQuantLanes, 3);
    max0 = hn::Max(max0, hn::Max(magnitude(a), magnitude(b)));
    max1 = hn::Max(max1, hn::Max(magnitude(c), magnitude(e)));
  }
}

// Blocks are processed in steps of 64 values. For up to kChunk values, first all scales are
// computed, then all codes. Between the two, the processor waits for a reduction and a division;
// with chunks of 512 values, that wait was a third of the time. What is read again is still in the
// L1 cache, and while codes are made, the next chunk, which may be in the next row, is fetched.
inline constexpr size_t kChunk = 2048;
template <int kBlock>
inline constexpr size_t kBlocksPerStep = kBlock == 32 ? 2 : 1;

HWY_INLINE size_t at_most(size_t n, size_t limit) { return n < limit ? n : limit; }

template <class D, class T>
HWY_INLINE void store_some(D d, hn::Vec<D> v, T* to, size_t n) {
  if (n == kQuantLanes) {
    hn::StoreU(v, d, to);
  } else {
    hn::StoreN(v, d, to, n);
  }
}

// Computes the scales and inverse scales of at most kQuantLanes whole blocks. Returns whether all
// are finite.
template <int kBlock, class Source>
HWY_INLINE bool find_scales(Source& source, size_t i, size_t n_blocks, float* scales,
                            float* inverses) {
  const DI di;
  constexpr size_t kLength = static_cast<size_t>(kBlock), kStep = kBlocksPerStep<kBlock>;
  Rows rows;
  for (size_t block = 0; block < n_blocks; block += kStep) {
    VI max0 = hn::Zero(di), max1 = max0;
    for (size_t at = 0; at < kStep * kLength; at += 64) {
      absmax_64(source, i + block * kLength + at, max0, max1);
    }
    if constexpr (kStep == 2) {
      rows.store(block, max0);
      rows.store(block + 1, max1);
    } else {
      rows.store(block, hn::Max(max0, max1));
    }
  }
  for (size_t block = n_blocks; block < kQuantLanes; ++block) rows.store(block, hn::Zero(di));
  const VI bits = reduce_rows<MaxOf>(di, rows);
  VF scale, inverse;
  factors(di, bits, scale, inverse);
  hn::Store(inverse, DF(), inverses);
  store_some(DF(), scale, scales, n_blocks);
  return hn::AllTrue(di, hn::Lt(bits, hn::Set(di, kInfinityBits)));
}

// In each lane the sums of two halves of a block as 16-bit numbers: at most 16 * 127 each.
HWY_INLINE VI both_halves(VI first, VI second) {
  return hn::Or(hn::And(first, hn::Set(DI(), 0xFFFF)), hn::ShiftLeft<16>(second));
}

// Computes the codes and code sums of at most kQuantLanes whole blocks.
template <int kBlock, class Source>
HWY_INLINE void encode_blocks(const Source& source, size_t i, size_t n_blocks,
                              const float* inverses, QuantizedRow out) {
  const DI di;
  constexpr size_t kLength = static_cast<size_t>(kBlock), kStep = kBlocksPerStep<kBlock>;
  Rows rows;
  for (size_t block = 0; block < n_blocks; block += kStep) {
    VI sum0 = hn::Zero(di), sum1 = sum0, sum2 = sum0, sum3 = sum0;
    const float inverse0 = inverses[block], inverse1 = inverses[block + kStep - 1];
    const size_t first = block * kLength;
    for (size_t at = 0; at < kStep * kLength; at += 64) {
      for (size_t line = 0; line < 64; line += 16) {
        source.fetch(i + first + at + line + kChunk);
      }
      encode_64(source, i + first + at, inverse0, inverse1, out.codes + first + at, sum0, sum1,
                sum2, sum3);
    }
    if constexpr (kStep == 2) {
      rows.store(block, both_halves(sum0, sum1));
      rows.store(block + 1, both_halves(sum2, sum3));
    } else {
      rows.store(block, hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3)));
    }
  }
  for (size_t block = n_blocks; block < kQuantLanes; ++block) rows.store(block, hn::Zero(di));
  if constexpr (kStep == 2) {
    const hn::Repartition<std::int16_t, DI> d16;
    const auto halves = hn::BitCast(d16, reduce_rows<SumOfHalves>(di, rows));
    const VI sums = hn::WidenMulPairwiseAdd(di, halves, hn::Set(d16, -8));
    store_some(di, sums, out.code_sums, n_blocks);
    if (out.half_sums != nullptr) {
      const VI half_sums = hn::BitCast(di, hn::Neg(hn::ShiftLeft<3>(halves)));
      store_some(di, half_sums, out.half_sums, n_blocks);
    }
  } else {
    const VI sums = hn::Neg(hn::ShiftLeft<3>(reduce_rows<SumOf>(di, rows)));
    store_some(di, sums, out.code_sums, n_blocks);
  }
}

// Quantizes n_blocks whole blocks from value i on: at most kChunk values, and whole steps. Their
// outputs start at the first entries of `out`.
template <int kBlock, class Source>
HWY_INLINE void quantize_blocks(Source& source, size_t i, size_t n_blocks, QuantizedRow out) {
  constexpr size_t kLength = static_cast<size_t>(kBlock);
  HWY_ALIGN float inverses[kChunk / kLength];
  bool finite = true;
  for (size_t block = 0; block < n_blocks; block += kQuantLanes) {
    const size_t n = at_most(n_blocks - block, kQuantLanes), at = block * kLength;
    finite &= find_scales<kBlock>(source, i + at, n, out.scales + block, inverses + block);
  }
  for (size_t block = 0; block < n_blocks; block += kQuantLanes) {
    const size_t n = at_most(n_blocks - block, kQuantLanes), at = block * kLength;
    encode_blocks<kBlock>(source, i + at, n, inverses + block, out.from(block, kLength));
  }
  if (HWY_LIKELY(finite)) return;
  for (size_t block = 0; block < n_blocks; ++block) {
    if (out.scales[block] <= kFloatMax) continue;
    std::memset(out.codes + block * kLength, 0, kLength);
    out.code_sums[block] = 0;
    if (out.half_sums != nullptr) out.half_sums[block] = 0;
  }
}

// Copies the last n values of the row, from i on, to `to`, and zeros up to `capacity`.
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
  const size_t whole = k / 64 * 64;
  const size_t rest_padded = (k - whole + 31) / 32 * 32;

  VI max0 = hn::Zero(di), max1 = max0, max2 = max0, max3 = max0;
  for (size_t i = 0; i < whole; i += 4 * kQuantLanes) {
    max0 = hn::Max(max0, magnitude(source.first(i, 0)));
    max1 = hn::Max(max1, magnitude(source.first(i + kQuantLanes, 1)));
    max2 = hn::Max(max2, magnitude(source.first(i + 2 * kQuantLanes, 2)));
    max3 = hn::Max(max3, magnitude(source.first(i + 3 * kQuantLanes, 3)));
  }
  HWY_ALIGN float rest[64];
  take_rest(source, whole, k - whole, rest, 64);
  RowInMemory rest_source{rest};
  absmax_64(rest_source, 0, max0, max1);
  max0 = hn::Max(hn::Max(max0, max1), hn::Max(max2, max3));
  const auto bits = hn::Set(di4, hn::ReduceMax(di, max0));
  hn::Vec<decltype(d4)> scale, inverse_of_all;
  factors(di4, bits, scale, inverse_of_all);
  *out.scales = hn::GetLane(scale);
  if (HWY_UNLIKELY(hn::GetLane(bits) >= kInfinityBits)) {
    std::memset(out.codes, 0, whole + rest_padded);
    *out.code_sums = 0;
    return;
  }

  const float inverse = hn::GetLane(inverse_of_all);
  VI sum0 = hn::Zero(di), sum1 = sum0;
  for (size_t i = 0; i < whole; i += 64) {
    encode_64(source, i, inverse, inverse, out.codes + i, sum0, sum0, sum1, sum1);
  }
  HWY_ALIGN std::int8_t rest_codes[64];
  encode_64(rest_source, 0, inverse, inverse, rest_codes, sum0, sum0, sum1, sum1);
  std::memcpy(out.codes + whole, rest_codes, rest_padded);
  *out.code_sums = -8 * hn::ReduceSum(di, hn::Add(sum0, sum1));
}

}  // namespace quantize_detail

// Quantizes the k values of the source; see kernels::QuantizeRow.
template <int kBlock, class Source>
HWY_INLINE void quantize_row(Source& source, size_t k, kernels::QuantizedRow out) {
  using namespace quantize_detail;
  if constexpr (kBlock == 0) {
    quantize_whole_row(source, k, out);
  } else {
    constexpr size_t kLength = static_cast<size_t>(kBlock), kStep = kBlocksPerStep<kBlock>;
    const size_t whole = k / (kStep * kLength) * kStep;  // blocks
    size_t block = 0;
    while (block < whole) {
      const size_t n = at_most(whole - block, kChunk / kLength), i = block * kLength;
      quantize_blocks<kBlock>(source, i, n, out.from(block, kLength));
      block += n;
    }
    const size_t i = block * kLength;
    if (i == k) return;
    // The last step, padded with zeros; only its blocks that exist are written.
    HWY_ALIGN float values[kStep * kLength];
    HWY_ALIGN std::int8_t codes[kStep * kLength];
    float scales[kStep];
    std::int32_t code_sums[kStep], half_sums[kStep];
    take_rest(source, i, k - i, values, kStep * kLength);
    RowInMemory rest{values};
    quantize_blocks<kBlock>(rest, 0, kStep, {codes, scales, code_sums, half_sums});
    const size_t n_blocks = (k - i + kLength - 1) / kLength;
    std::memcpy(out.codes + i, codes, n_blocks * kLength);
    std::memcpy(out.scales + block, scales, n_blocks * sizeof(float));
    std::memcpy(out.code_sums + block, code_sums, n_blocks * sizeof(std::int32_t));
    if (kBlock == 32 && out.half_sums != nullptr) {
      std::memcpy(out.half_sums + block, half_sums, n_blocks * sizeof(std::int32_t));
    }
  }
}

template <int kBlock>
struct Impl<kernels::QuantizeRow<kBlock>> {
  static void run(const float* x, Index k, kernels::QuantizedRow out) {
    quantize_detail::RowInMemory source{x};
    quantize_row<kBlock>(source, static_cast<size_t>(k), out);
  }
};

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
