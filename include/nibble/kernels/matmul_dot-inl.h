// SPDX-License-Identifier: Apache-2.0
//
// Vectors of the matrix product, and the integer sums of its 8-bit products on each kind of target.

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_MATMUL_DOT_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_MATMUL_DOT_INL_H_
#undef NIBBLE_KERNELS_MATMUL_DOT_INL_H_
#else
#define NIBBLE_KERNELS_MATMUL_DOT_INL_H_
#endif

#include <cstring>

#include "hwy/highway.h"
#include "nibble/kernels/float16-inl.h"
#include "nibble/kernels/matmul.hpp"
#include "nibble/kernels/registers-inl.h"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DF32 = PanelTag<float>;
using DI32 = hn::Repartition<std::int32_t, DF32>;
using DU32 = hn::Repartition<std::uint32_t, DF32>;
using DI16 = hn::Repartition<std::int16_t, DF32>;
using DU16 = hn::Repartition<std::uint16_t, DF32>;
using DU8 = hn::Repartition<std::uint8_t, DF32>;
using DI8 = hn::Repartition<std::int8_t, DF32>;
using VF32 = hn::Vec<DF32>;
using VI32 = hn::Vec<DI32>;
using VI16 = hn::Vec<DI16>;
using VU8 = hn::Vec<DU8>;
using VI8 = hn::Vec<DI8>;

// A panel is 16 lanes: kVectors vectors of kLanes.
inline constexpr int kLanes = static_cast<int>(hn::MaxLanes(DF32()));
inline constexpr int kVectors = 16 / kLanes;

// The sums of a tile.
template <int kRows, int kColumns>
using Sums = RegisterTile<DF32, kRows, kColumns>;

HWY_INLINE VI8 broadcast4(const std::int8_t* codes) {
  std::int32_t word;
  std::memcpy(&word, codes, 4);
  return hn::BitCast(DI8(), hn::Set(DI32(), word));
}

HWY_INLINE VF32 load_f32(const float* p) { return hn::LoadU(DF32(), p); }
// Subnormal numbers grow from the least one by steps as large as it is; all others have their
// exponent in the bits.
HWY_INLINE VF32 load_f32(const HalfE8M0* p) {
  const hn::Rebind<std::uint8_t, DF32> d8;
  const VI32 e = hn::PromoteTo(DI32(), hn::LoadU(d8, reinterpret_cast<const std::uint8_t*>(p)));
  const VI32 normal = hn::Sub(hn::ShiftLeft<23>(e), hn::Set(DI32(), 0x00800000));
  const VI32 subnormal = hn::Add(hn::ShiftLeft<21>(e), hn::Set(DI32(), 0x00200000));
  return hn::BitCast(DF32(), hn::Max(normal, subnormal));
}
template <class T>
HWY_INLINE VF32 load_f32(const T* p) {  // f16 or bf16
  const hn::Rebind<std::uint16_t, DF32> d16;
  return widen(T{}, DF32(), hn::LoadU(d16, reinterpret_cast<const std::uint16_t*>(p)));
}

HWY_INLINE VU8 low_nibbles(VU8 v) { return hn::And(v, hn::Set(DU8(), 0x0F)); }
HWY_INLINE VU8 high_nibbles(VU8 v) {
#if HWY_ARCH_X86
  // Not ShiftRight<4> of bytes: AVX-512 makes it a Galois-field product, on the ports that dot
  // products need. On a Zen 5 the two are equally fast.
  const hn::Repartition<std::uint16_t, DU8> du16;
  return low_nibbles(hn::BitCast(DU8(), hn::ShiftRight<4>(hn::BitCast(du16, v))));
#else
  return hn::ShiftRight<4>(v);
#endif
}

// The codes in the halves of bytes as products multiply them, and how many bits these have.
template <class Format>
inline constexpr int kDotBits = Format::kBits < 4 ? 4 : Format::kBits;
template <quant::LevelFormat Format>
inline constexpr int kDotBits<Format> = Format::kLevelBits;

template <class Format>
HWY_INLINE VU8 levels_of(VU8 codes) {
  if constexpr (quant::LevelFormat<Format>) {
    const VU8 levels = hn::LoadDup128(DU8(), quant::kStoredLevels<Format>.data());
    return hn::TableLookupBytes(levels, codes);
  } else {
    return codes;
  }
}
template <class Format>
HWY_INLINE VU8 low_codes(VU8 both) {
  return levels_of<Format>(low_nibbles(both));
}
template <class Format>
HWY_INLINE VU8 high_codes(VU8 both) {
  return levels_of<Format>(high_nibbles(both));
}

// ---- bf16 dot products -------------------------------------------------------------------------
// NIBBLE_HAVE_BF16_DOTS: one instruction adds pairs of bf16 products to f32. The target AVX3_DL
// does not include it, but some processors that run this target have it (Zen 4, Sapphire Rapids;
// not Ice Lake). Whether this processor has it is known only at run time: see
// kernels::TakesRoundedRows.
#undef NIBBLE_HAVE_BF16_DOTS
#undef NIBBLE_BF16_DOTS_BEYOND_TARGET
#if HWY_TARGET == HWY_AVX3_DL && HWY_ARCH_X86_64 && (HWY_COMPILER_GCC || HWY_COMPILER_CLANG)
#define NIBBLE_HAVE_BF16_DOTS 1
#define NIBBLE_BF16_DOTS_BEYOND_TARGET 1
#else
#if NIBBLE_HAVE_I8MM
#define NIBBLE_HAVE_BF16_DOTS 1
#else
#define NIBBLE_HAVE_BF16_DOTS HWY_NATIVE_DOT_BF16
#endif
#define NIBBLE_BF16_DOTS_BEYOND_TARGET 0
#endif

#if NIBBLE_HAVE_BF16_DOTS
using DBf16 = hn::Repartition<hwy::bfloat16_t, DF32>;
using VBf16 = hn::Vec<DBf16>;

HWY_INLINE VBf16 broadcast_pair(const bf16* x) {
  std::int32_t word;
  std::memcpy(&word, x, 4);
  return hn::BitCast(DBf16(), hn::Set(DI32(), word));
}

// sum + w[2i] * x[2i] + w[2i + 1] * x[2i + 1] in lane i: exact products, two additions rounded to
// nearest (ARM: to odd); subnormal numbers may count as zero.
HWY_INLINE VF32 add_bf16_dot(VF32 sum, VBf16 w, VBf16 x) {
#if NIBBLE_BF16_DOTS_BEYOND_TARGET
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum.raw) : "v"(w.raw), "v"(x.raw));
  return sum;
#elif NIBBLE_HAVE_I8MM
  const DU16 d16;
  return VF32(vbfdotq_f32(sum.raw, vreinterpretq_bf16_u16(hn::BitCast(d16, w).raw),
                          vreinterpretq_bf16_u16(hn::BitCast(d16, x).raw)));
#else
  VF32 unused = sum;
  return hn::ReorderWidenMulAccumulate(DF32(), w, x, sum, unused);
#endif
}
#endif

// ---- Sums of 8-bit products --------------------------------------------------------------------
// DotSum: the integer sum of one block's products for one vector of rows; with kLength = 0, of a
// whole row's products. add() is told which of its terms are odd, so that these can go to a second
// chain. Stored codes are unsigned. Those of a symmetric format have an offset of 8, 16 or 128, so
// that −offset * sum(x) must be added: at the start where that is free, at the end where it saves a
// register, or not at all where the target sums signed codes.
// (The constructors are written out because implicit ones lack the target's attributes, which ARM's
// vectors need.)
enum class Correction { at_start, at_end, none };

template <bool kSymmetric>
inline constexpr Correction kAtStartIf = kSymmetric ? Correction::at_start : Correction::none;

// -kOffset * sum(x), from -8 * sum(x) as MatmulInput has it.
template <int kOffset>
HWY_INLINE VI32 correction_of(VI32 code_sum) {
  if constexpr (kOffset > 8)
    return hn::ShiftLeft<(kOffset > 64 ? 4 : kOffset > 16 ? 2 : 1)>(code_sum);
  if constexpr (kOffset < 8) return hn::ShiftRight<(kOffset > 2 ? 1 : 3)>(code_sum);
  return code_sum;
}

// Unsigned times signed as one operation: VNNI's, or Highway's exact sequence.
// Latency 5, two per cycle: ten independent sums are needed. A tile of a block format has eight, so
// each sum is split into two chains, which are added at the end by an execution unit that has
// nothing else to do: Q4_0 goes from 73 to 76 % of the peak of a Zen 5. (Taller tiles also have
// more chains, but they spill registers or exceed the cache.) Tiles of one vector of columns wait
// for memory. The faster they process what is there, the further they run ahead of what has been
// fetched: with one chain they are 5 % faster.
template <int kBits, bool kSymmetric, int kLength, bool kManyColumns = true>
struct DotSum {
  HWY_INLINE DotSum() {}
  static constexpr Correction kCorrection = kAtStartIf<kSymmetric>;
  static constexpr bool kTwoChains =
      HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL && kLength > 0 && kManyColumns;
  Register<DI32> sum;
  Register<DI32> second;
  HWY_INLINE void start(VI32 first) {
    sum.set(first);
    if constexpr (kTwoChains) second.set(hn::Zero(DI32()));
  }
  HWY_INLINE void add(VU8 codes, VI8 x, bool odd) {
    if (kTwoChains && odd) {
      second.set(hn::SumOfMulQuadAccumulate(DI32(), codes, x, second.get()));
    } else {
      sum.set(hn::SumOfMulQuadAccumulate(DI32(), codes, x, sum.get()));
    }
  }
  HWY_INLINE void end_of_16() {}
  HWY_INLINE void end_of_32() {}
  HWY_INLINE VI32 total() const {
    if constexpr (kTwoChains) return hn::Add(sum.get(), second.get());
    return sum.get();
  }
};

#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3_DL && HWY_TARGET <= HWY_SSSE3
// A sum that grows one term at a time. Without this, GCC and Clang add the terms of a block as a
// tree, which needs all terms at once: they spill registers, and it takes 1.4 times as long.
template <class D>
HWY_INLINE void add_in_order(Register<D>& sum, hn::Vec<D> term) {
  hn::Vec<D> next = hn::Add(sum.get(), term);
#if HWY_COMPILER_GCC || HWY_COMPILER_CLANG
  asm("" : "+v"(next.raw));
#endif
  sum.set(next);
}

// maddubs sums pairs of products in saturating 16-bit integers. 4-bit codes: |pair| ≤ 2 * 15 * 127
// = 3810, so the sum of eight pairs (32 weights of a row) fits.
template <bool kSymmetric, bool kManyColumns>
struct DotSum<4, kSymmetric, 32, kManyColumns> {
  HWY_INLINE DotSum() {}
  static constexpr Correction kCorrection = kSymmetric ? Correction::at_end : Correction::none;
  Register<DI16> pairs;
  HWY_INLINE void start(VI32) { pairs.set(hn::Zero(DI16())); }
  HWY_INLINE void add(VU8 codes, VI8 x, bool) {
    add_in_order(pairs, hn::SatWidenMulPairwiseAdd(DI16(), codes, x));
  }
  HWY_INLINE void end_of_16() {}
  HWY_INLINE void end_of_32() {}
  HWY_INLINE VI32 total() const {
    return hn::WidenMulPairwiseAdd(DI32(), pairs.get(), hn::Set(DI16(), 1));
  }
};
// 5-bit codes: |pair| ≤ 2 * 31 * 127 = 7874, so the sum of four pairs, of 16 weights, fits.
template <bool kSymmetric, int kLength, bool kManyColumns>
struct DotSum<5, kSymmetric, kLength, kManyColumns> {
  HWY_INLINE DotSum() {}
  static constexpr Correction kCorrection = kAtStartIf<kSymmetric>;
  Register<DI16> pairs;
  Register<DI32> sum;
  HWY_INLINE void start(VI32 first) {
    sum.set(first);
    pairs.set(hn::Zero(DI16()));
  }
  HWY_INLINE void add(VU8 codes, VI8 x, bool) {
    add_in_order(pairs, hn::SatWidenMulPairwiseAdd(DI16(), codes, x));
  }
  HWY_INLINE void end_of_16() {
    const VI32 wide = hn::WidenMulPairwiseAdd(DI32(), pairs.get(), hn::Set(DI16(), 1));
    sum.set(hn::Add(sum.get(), wide));
    pairs.set(hn::Zero(DI16()));
  }
  HWY_INLINE void end_of_32() {}
  HWY_INLINE VI32 total() const { return sum.get(); }
};
template <bool kSymmetric, int kLength, bool kManyColumns>
struct DotSum<4, kSymmetric, kLength, kManyColumns> {
  HWY_INLINE DotSum() {}
  static constexpr Correction kCorrection = kAtStartIf<kSymmetric>;
  DotSum<4, kSymmetric, 32, kManyColumns> part;
  Register<DI32> sum;
  HWY_INLINE void start(VI32 first) {
    sum.set(first);
    part.start(first);
  }
  HWY_INLINE void add(VU8 codes, VI8 x, bool) { part.add(codes, x, false); }
  HWY_INLINE void end_of_16() {}
  HWY_INLINE void end_of_32() {
    sum.set(hn::Add(sum.get(), part.total()));
    part.start(sum.get());
  }
  HWY_INLINE VI32 total() const { return sum.get(); }
};
// Signed 8-bit codes as magnitude times signed activation: |pair| ≤ 2 * 128 * 127 = 32512 fits.
template <int kLength, bool kManyColumns>
struct DotSum<8, true, kLength, kManyColumns> {
  HWY_INLINE DotSum() {}
  static constexpr Correction kCorrection = Correction::none;
  Register<DI32> sum;
  HWY_INLINE void start(VI32 zero) { sum.set(zero); }
  HWY_INLINE void add(VU8 codes, VI8 x, bool) {
    const VI8 w = hn::BitCast(DI8(), hn::Xor(codes, hn::Set(DU8(), 0x80)));
    const VI8 signed_x = hn::IfNegativeThenNegOrUndefIfZero(w, x);
    const auto pairs = hn::SatWidenMulPairwiseAdd(DI16(), hn::BitCast(DU8(), hn::Abs(w)), signed_x);
    add_in_order(sum, hn::WidenMulPairwiseAdd(DI32(), pairs, hn::Set(DI16(), 1)));
  }
  HWY_INLINE void end_of_16() {}
  HWY_INLINE void end_of_32() {}
  HWY_INLINE VI32 total() const { return sum.get(); }
};
// The same for activations of -128 too, with weights that are not: the magnitude of the activation
// times the weight with its sign: |pair| ≤ 2 * 128 * 127 fits.
struct FullRangeDotSum {
  HWY_INLINE FullRangeDotSum() {}
  static constexpr Correction kCorrection = Correction::none;
  Register<DI32> sum;
  HWY_INLINE void start(VI32 zero) { sum.set(zero); }
  HWY_INLINE void add(VU8 codes, VI8 x, bool) {
    const VI8 w = hn::BitCast(DI8(), hn::Xor(codes, hn::Set(DU8(), 0x80)));
    const VI8 signed_w = hn::IfNegativeThenNegOrUndefIfZero(x, w);
    const auto pairs = hn::SatWidenMulPairwiseAdd(DI16(), hn::BitCast(DU8(), hn::Abs(x)), signed_w);
    add_in_order(sum, hn::WidenMulPairwiseAdd(DI32(), pairs, hn::Set(DI16(), 1)));
  }
  HWY_INLINE VI32 total() const { return sum.get(); }
};
#elif NIBBLE_HAVE_DOTPROD
// sdot multiplies signed by signed: 4- and 5-bit codes are non-negative either way.
template <int kBits, bool kSymmetric, int kLength, bool kManyColumns>
requires(kBits < 8) struct DotSum<kBits, kSymmetric, kLength, kManyColumns> {
  HWY_INLINE DotSum() {}
  static constexpr Correction kCorrection = kAtStartIf<kSymmetric>;
  Register<DI32> sum;
  HWY_INLINE void start(VI32 first) { sum.set(first); }
  HWY_INLINE void add(VU8 codes, VI8 x, bool) {
    sum.set(VI32(vdotq_s32(sum.get().raw, vreinterpretq_s8_u8(codes.raw), x.raw)));
  }
  template <int kLane>
  HWY_INLINE void add_lane(VU8 codes, VI8 x) {
    sum.set(VI32(vdotq_laneq_s32(sum.get().raw, vreinterpretq_s8_u8(codes.raw), x.raw, kLane)));
  }
  HWY_INLINE void end_of_16() {}
  HWY_INLINE void end_of_32() {}
  HWY_INLINE VI32 total() const { return sum.get(); }
};
#if NIBBLE_HAVE_I8MM
// usdot multiplies unsigned by signed.
template <bool kSymmetric, int kLength, bool kManyColumns>
struct DotSum<8, kSymmetric, kLength, kManyColumns> {
  HWY_INLINE DotSum() {}
  static constexpr Correction kCorrection = kAtStartIf<kSymmetric>;
  Register<DI32> sum;
  HWY_INLINE void start(VI32 first) { sum.set(first); }
  HWY_INLINE void add(VU8 codes, VI8 x, bool) {
    sum.set(VI32(vusdotq_s32(sum.get().raw, codes.raw, x.raw)));
  }
  template <int kLane>
  HWY_INLINE void add_lane(VU8 codes, VI8 x) {
    sum.set(VI32(vusdotq_laneq_s32(sum.get().raw, codes.raw, x.raw, kLane)));
  }
  HWY_INLINE void end_of_16() {}
  HWY_INLINE void end_of_32() {}
  HWY_INLINE VI32 total() const { return sum.get(); }
};
#else
// 8-bit codes are made signed. (Once for all rows of a tile, as compilers see.)
template <int kLength, bool kManyColumns>
struct DotSum<8, true, kLength, kManyColumns> {
  HWY_INLINE DotSum() {}
  static constexpr Correction kCorrection = Correction::none;
  Register<DI32> sum;
  HWY_INLINE void start(VI32 zero) { sum.set(zero); }
  HWY_INLINE void add(VU8 codes, VI8 x, bool) {
    sum.set(VI32(vdotq_s32(sum.get().raw, made_signed(codes), x.raw)));
  }
  template <int kLane>
  HWY_INLINE void add_lane(VU8 codes, VI8 x) {
    sum.set(VI32(vdotq_laneq_s32(sum.get().raw, made_signed(codes), x.raw, kLane)));
  }
  HWY_INLINE void end_of_16() {}
  HWY_INLINE void end_of_32() {}
  HWY_INLINE VI32 total() const { return sum.get(); }

 private:
  static HWY_INLINE int8x16_t made_signed(VU8 codes) {
    return vreinterpretq_s8_u8(veorq_u8(codes.raw, vdupq_n_u8(0x80)));
  }
};
#endif
#elif NIBBLE_IS_NEON
// Without dot products, products are added up in 16 bits as long as they fit: smlal multiplies and
// adds eight of them. `low` has the sums of the first two rows, four for each, `high` those of the
// others.
HWY_INLINE VI16 add_low_products(VI16 sum, int8x16_t a, VI8 b) {
  return VI16(vmlal_s8(sum.raw, vget_low_s8(a), vget_low_s8(b.raw)));
}
HWY_INLINE VI16 add_high_products(VI16 sum, int8x16_t a, VI8 b) {
#if HWY_ARCH_ARM_A64
  return VI16(vmlal_high_s8(sum.raw, a, b.raw));
#else
  return VI16(vmlal_s8(sum.raw, vget_high_s8(a), vget_high_s8(b.raw)));
#endif
}
HWY_INLINE VI16 add_pairs(VI16 low, VI16 high) {
#if HWY_ARCH_ARM_A64
  return VI16(vpaddq_s16(low.raw, high.raw));
#else
  return VI16(vcombine_s16(vpadd_s16(vget_low_s16(low.raw), vget_high_s16(low.raw)),
                           vpadd_s16(vget_low_s16(high.raw), vget_high_s16(high.raw))));
#endif
}
HWY_INLINE VI32 add_pairs(VI32 low, VI32 high) {
#if HWY_ARCH_ARM_A64
  return VI32(vpaddq_s32(low.raw, high.raw));
#else
  return VI32(vcombine_s32(vpadd_s32(vget_low_s32(low.raw), vget_high_s32(low.raw)),
                           vpadd_s32(vget_low_s32(high.raw), vget_high_s32(high.raw))));
#endif
}

// Codes of less than 8 bits: a lane has eight products of 32 weights, |sum| <= 8 * 31 * 127 =
// 31496; of 6-bit codes only four, since their sums are of 16 weights: 4 * 63 * 127 = 32004.
template <int kBits, bool kSymmetric, int kLength, bool kManyColumns>
requires(kBits < 8) struct DotSum<kBits, kSymmetric, kLength, kManyColumns> {
  HWY_INLINE DotSum() {}
  static constexpr Correction kCorrection = kAtStartIf<kSymmetric>;
  Register<DI16> low, high;
  Register<DI32> sum;
  HWY_INLINE void start(VI32 first) {
    sum.set(first);
    low.set(hn::Zero(DI16()));
    high.set(hn::Zero(DI16()));
  }
  HWY_INLINE void add(VU8 codes, VI8 x, bool) {
    const int8x16_t w = vreinterpretq_s8_u8(codes.raw);
    low.set(add_low_products(low.get(), w, x));
    high.set(add_high_products(high.get(), w, x));
  }
  HWY_INLINE void end_of_16() {}
  HWY_INLINE void end_of_32() {
    if constexpr (kLength > 32) start(total());
  }
  HWY_INLINE VI32 total() const {
    if constexpr (kBits == 4) {  // sixteen products fit as well: 16 * 15 * 127 = 30480
      return VI32(vpadalq_s16(sum.get().raw, add_pairs(low.get(), high.get()).raw));
    } else {
      const VI32 pairs =
          add_pairs(VI32(vpaddlq_s16(low.get().raw)), VI32(vpaddlq_s16(high.get().raw)));
      return hn::Add(sum.get(), pairs);
    }
  }
};
// Of signed 8-bit codes, two products fit: 2 * 128 * 127 = 32512. add() is called for an even term
// and an odd one in turn.
template <int kLength, bool kManyColumns>
struct DotSum<8, true, kLength, kManyColumns> {
  HWY_INLINE DotSum() {}
  static constexpr Correction kCorrection = Correction::none;
  Register<DI16> low_pair, high_pair;
  Register<DI32> low, high;
  HWY_INLINE void start(VI32 zero) {
    low.set(zero);
    high.set(zero);
  }
  HWY_INLINE void add(VU8 codes, VI8 x, bool odd) {
    const int8x16_t w = vreinterpretq_s8_u8(veorq_u8(codes.raw, vdupq_n_u8(0x80)));
    const VI16 zero = hn::Zero(DI16());
    low_pair.set(add_low_products(odd ? low_pair.get() : zero, w, x));
    high_pair.set(add_high_products(odd ? high_pair.get() : zero, w, x));
    if (odd) {
      low.set(VI32(vpadalq_s16(low.get().raw, low_pair.get().raw)));
      high.set(VI32(vpadalq_s16(high.get().raw, high_pair.get().raw)));
    }
  }
  HWY_INLINE void end_of_16() {}
  HWY_INLINE void end_of_32() {}
  HWY_INLINE VI32 total() const { return add_pairs(low.get(), high.get()); }
};
#elif HWY_ARCH_ARM
// sdot multiplies signed by signed: 4- and 5-bit codes are non-negative either way, 8-bit codes are
// made signed.
template <int kBits, bool kSymmetric, int kLength, bool kManyColumns>
requires(kBits < 8) struct DotSum<kBits, kSymmetric, kLength, kManyColumns> {
  HWY_INLINE DotSum() {}
  static constexpr Correction kCorrection = kAtStartIf<kSymmetric>;
  Register<DI32> sum;
  HWY_INLINE void start(VI32 first) { sum.set(first); }
  HWY_INLINE void add(VU8 codes, VI8 x, bool) {
    sum.set(hn::SumOfMulQuadAccumulate(DI32(), hn::BitCast(DI8(), codes), x, sum.get()));
  }
  HWY_INLINE void end_of_16() {}
  HWY_INLINE void end_of_32() {}
  HWY_INLINE VI32 total() const { return sum.get(); }
};
template <int kLength, bool kManyColumns>
struct DotSum<8, true, kLength, kManyColumns> {
  HWY_INLINE DotSum() {}
  static constexpr Correction kCorrection = Correction::none;
  Register<DI32> sum;
  HWY_INLINE void start(VI32 zero) { sum.set(zero); }
  HWY_INLINE void add(VU8 codes, VI8 x, bool) {
    const VI8 w = hn::BitCast(DI8(), hn::Xor(codes, hn::Set(DU8(), 0x80)));
    sum.set(hn::SumOfMulQuadAccumulate(DI32(), w, x, sum.get()));
  }
  HWY_INLINE void end_of_16() {}
  HWY_INLINE void end_of_32() {}
  HWY_INLINE VI32 total() const { return sum.get(); }
};
#endif

// The sum of a whole row's products of I8Channel for all activations in 8 bits.
#if !(HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3_DL && HWY_TARGET <= HWY_SSSE3)
using FullRangeDotSum = DotSum<8, true, 0>;
#endif

// ---- Two scales in 32 weights ------------------------------------------------------------------
// TwoScaleSum: the sum of 32 weights' products whose codes have an offset of kOffset (32, 4 or 0),
// where the first 16 and the last 16 weights have integer scales of their own. `scales` has both in
// each lane, as 16-bit numbers; `half_sums` is MatmulInput's. The total is an integer of at most
// 2 * 16 * 32 * 127 * 128 < 2^24, so it is exact in f32. add() is told which half its terms belong
// to, and which of the half's four it is.
template <int kOffset>
inline constexpr bool kAreFewBits = kOffset < 32;  // codes of two or three
#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3_DL && HWY_TARGET <= HWY_SSSE3
// 6 bits: |pair| ≤ 2 * 63 * 127 = 16002: two of them fit 16 bits. Few bits: |pair| ≤ 2 * 7 * 127 =
// 1778, all four fit. The scale is the factor of the operation that widens their sum.
template <int kOffset>
struct TwoScaleSum {
  HWY_INLINE TwoScaleSum() {}
  Register<DI16> pairs;
  Register<DI32> sum;
  // The scale of a half, twice in each lane.
  static HWY_INLINE VI16 scale_of(VI16 scales, int half) {
    return half == 0 ? hn::DupEven(scales) : hn::DupOdd(scales);
  }
  HWY_INLINE void start(VI16 scales, std::int32_t half_sums) {
    if constexpr (kOffset == 0) return sum.set(hn::Zero(DI32()));
    const VI16 sums = hn::BitCast(DI16(), hn::Set(DI32(), half_sums));
    sum.set(correction_of<kOffset>(hn::WidenMulPairwiseAdd(DI32(), scales, sums)));
  }
  HWY_INLINE void add(VU8 codes, VI8 x, int term, int, VI16 scale) {
    constexpr int kTerms = kAreFewBits<kOffset> ? 4 : 2;  // that are added up in 16 bits
    const VI16 products = hn::SatWidenMulPairwiseAdd(DI16(), codes, x);
    if (term % kTerms == 0) return pairs.set(products);
    if (term % kTerms < kTerms - 1) return add_in_order(pairs, products);
    add_in_order(sum, hn::WidenMulPairwiseAdd(DI32(), hn::Add(pairs.get(), products), scale));
  }
  HWY_INLINE VF32 total(VI16) const { return hn::ConvertTo(DF32(), sum.get()); }
};
#else
template <int kOffset>
struct TwoScaleSum {
  HWY_INLINE TwoScaleSum() {}
  DotSum<6, true, 32, false> first, second;
  static HWY_INLINE VI16 scale_of(VI16 scales, int) { return scales; }
  HWY_INLINE void start(VI16, std::int32_t half_sums) {
    if constexpr (kOffset == 0) {
      first.start(hn::Zero(DI32()));
      second.start(hn::Zero(DI32()));
    } else {
      first.start(
          correction_of<kOffset>(hn::Set(DI32(), static_cast<std::int16_t>(half_sums & 0xFFFF))));
      second.start(correction_of<kOffset>(hn::Set(DI32(), half_sums >> 16)));
    }
  }
  HWY_INLINE void add(VU8 codes, VI8 x, int, int half, VI16) {
    if (half == 0) {
      first.add(codes, x, false);
    } else {
      second.add(codes, x, false);
    }
  }
  // Of the first 16 weights, of the last.
  template <int kHalf>
  HWY_INLINE auto& half() {
    if constexpr (kHalf == 0) {
      return first;
    } else {
      return second;
    }
  }
  HWY_INLINE VF32 total(VI16 scales) const {
    if constexpr (kAreFewBits<kOffset>) {  // |sum| ≤ 16 * 7 * 127 fits 16 bits
      const VI16 sums = hn::OddEven(hn::BitCast(DI16(), hn::ShiftLeft<16>(second.total())),
                                    hn::BitCast(DI16(), first.total()));
      return hn::ConvertTo(DF32(), hn::WidenMulPairwiseAdd(DI32(), sums, scales));
    }
    const VI32 both = hn::BitCast(DI32(), scales);
    const VI32 scale0 = hn::ShiftRight<16>(hn::ShiftLeft<16>(both));
    const VI32 scale1 = hn::ShiftRight<16>(both);
    const DF32 d;
    const VF32 part = hn::Mul(hn::ConvertTo(d, second.total()), hn::ConvertTo(d, scale1));
    return hn::MulAdd(hn::ConvertTo(d, first.total()), hn::ConvertTo(d, scale0), part);
  }
};
#endif

// scale * total + minimum * (the sum of both halves' -8 * sum(x), times their integer minimums):
// 32 weights' products where both halves have minimums, too. The sum is an integer of at most
// 2 * 8 * 16 * 127 * 15 < 2^24.
HWY_INLINE VF32 with_minimums(VF32 total, VF32 scale, VF32 minimum, VI16 minimums,
                              std::int32_t half_sums) {
  const VI16 sums = hn::BitCast(DI16(), hn::Set(DI32(), half_sums));
  const VI32 products = hn::WidenMulPairwiseAdd(DI32(), sums, minimums);
  return hn::MulAdd(total, scale, hn::Mul(hn::ConvertTo(DF32(), products), minimum));
}

#if NIBBLE_IS_NEON
// ---- Inputs by element -------------------------------------------------------------------------
// 16 inputs of a row are one load. Dot products take four of them as an element of the vector;
// other products need them in all lanes.
template <int kElement, class Dot>
HWY_INLINE void add_element(Dot& dot, VU8 codes, VI8 x, bool odd) {
  if constexpr (requires { dot.template add_lane<kElement>(codes, x); }) {
    dot.template add_lane<kElement>(codes, x);
  } else {
    const VI32 four = hn::Broadcast<kElement>(hn::BitCast(DI32(), x));
    dot.add(codes, hn::BitCast(DI8(), four), odd);
  }
}
#endif

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
