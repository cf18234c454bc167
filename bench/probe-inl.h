// SPDX-License-Identifier: Apache-2.0
//
// A NIBBLE_USER_KERNELS file: probes for the limits of a target. Independent of nibble's own
// kernels, which are measured against these limits.

#if defined(BENCH_PROBE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BENCH_PROBE_INL_H_
#undef BENCH_PROBE_INL_H_
#else
#define BENCH_PROBE_INL_H_
#endif

#include <atomic>

#include "bench/arithmetic.hpp"
#include "hwy/cache_control.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

namespace probe {

// The vector widths that nibble's kernels use.
using DF = hn::CappedTag<float, 16>;
using DI = hn::Repartition<std::int32_t, DF>;
using D16 = hn::Repartition<std::int16_t, DF>;
using DBf = hn::Repartition<hwy::bfloat16_t, DF>;
using DS8 = hn::Repartition<std::int8_t, DF>;
using DU = hn::Repartition<std::uint8_t, DF>;
using VF = hn::Vec<DF>;
using VI = hn::Vec<DI>;
using V16 = hn::Vec<D16>;

// Rows and columns of independent sums. Latency is 4 to 5 cycles at two operations per cycle, so
// there should be enough sums for that, as far as the registers also hold the operands and
// temporaries.
template <int kR, int kC>
struct Tile {
  static constexpr int kRows = kR, kColumns = kC;
};
#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3
using F32Tile = Tile<5, 2>;  // 16 registers: some operands come from memory
#else
using F32Tile = Tile<4, 3>;  // 32 registers
#endif
using DotTile = Tile<4, 3>;
using SequenceTile = Tile<4, 1>;  // only an integer addition depends on the previous one

template <class D>
HWY_INLINE double sum_lanes(D d, hn::Vec<D> v) {
  HWY_ALIGN hn::TFromD<D> lanes[HWY_MAX_LANES_D(D)];
  hn::Store(v, d, lanes);
  double sum = 0;
  for (std::size_t i = 0; i < hn::Lanes(d); ++i) sum += static_cast<double>(lanes[i]);
  return sum;
}

// One cell of the tile: add() multiplies vectors of DX and DW and accumulates the products. No
// member initializers: an implicit constructor would be compiled without the target's instructions.
struct F32Cell : F32Tile {
  using DX = DF;
  using DW = DF;
  VF sum;
  HWY_INLINE void start() { sum = hn::Zero(DF()); }
  HWY_INLINE void add(VF x, VF w) { sum = hn::MulAdd(x, w, sum); }
  HWY_INLINE void every_8_steps() {}
  HWY_INLINE double total() const { return sum_lanes(DF(), sum); }
};

#if HWY_TARGET == HWY_AVX3_ZEN4 || HWY_TARGET == HWY_AVX3_SPR || HWY_TARGET == HWY_AVX10_2 || \
    HWY_TARGET == HWY_NEON_BF16
struct Bf16Cell : DotTile {
  using DX = DBf;
  using DW = DBf;
  VF sum;
  VF rest;  // stays zero if one instruction does it all
  HWY_INLINE void start() {
    sum = hn::Zero(DF());
    rest = hn::Zero(DF());
  }
  HWY_INLINE void add(hn::Vec<DBf> x, hn::Vec<DBf> w) {
    sum = hn::ReorderWidenMulAccumulate(DF(), x, w, sum, rest);
  }
  HWY_INLINE void every_8_steps() {}
  HWY_INLINE double total() const { return sum_lanes(DF(), sum) + sum_lanes(DF(), rest); }
};
#else
using Bf16Cell = F32Cell;
#endif

#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3_DL
using Int16Tile = SequenceTile;  // pmaddwd, paddd
#else
using Int16Tile = DotTile;   // vpdpwssd
#endif
struct Int16Cell : Int16Tile {
  using DX = D16;
  using DW = D16;
  VI sum;
  VI rest;  // stays zero if one instruction does it all
  HWY_INLINE void start() {
    sum = hn::Zero(DI());
    rest = hn::Zero(DI());
  }
  HWY_INLINE void add(V16 x, V16 w) { sum = hn::ReorderWidenMulAccumulate(DI(), x, w, sum, rest); }
  HWY_INLINE void every_8_steps() {}
  HWY_INLINE double total() const { return sum_lanes(DI(), sum) + sum_lanes(DI(), rest); }
};

#if HWY_ARCH_X86 && HWY_TARGET <= HWY_SSSE3 && HWY_TARGET > HWY_AVX3_DL
// No dot product: pmaddubsw into 16 bits, which hold two products of 7 by 8 bits; pmaddwd with ones
// into 32 bits; paddd. The conversion of one operand to 7 bits is not counted: it is done once for
// many products, or is the kernel's problem.
struct Int8Cell : SequenceTile {
  using DX = DS8;
  using DW = DU;
  VI sum;
  HWY_INLINE void start() { sum = hn::Zero(DI()); }
  HWY_INLINE void add(hn::Vec<DS8> x, hn::Vec<DU> w) {
    const V16 pairs = hn::SatWidenMulPairwiseAdd(D16(), w, x);
    sum = hn::Add(sum, hn::WidenMulPairwiseAdd(DI(), pairs, hn::Set(D16(), 1)));
  }
  HWY_INLINE void every_8_steps() {}
  HWY_INLINE double total() const { return sum_lanes(DI(), sum); }
};
// Products of 4 by 8 bits: eight sums of pairs fit in 16 bits before they are widened.
struct Int4Cell : SequenceTile {
  using DX = DS8;
  using DW = DU;
  VI sum;
  V16 pairs;
  HWY_INLINE void start() {
    sum = hn::Zero(DI());
    pairs = hn::Zero(D16());
  }
  HWY_INLINE void add(hn::Vec<DS8> x, hn::Vec<DU> w) {
    pairs = hn::Add(pairs, hn::SatWidenMulPairwiseAdd(D16(), w, x));
  }
  HWY_INLINE void every_8_steps() {
    sum = hn::Add(sum, hn::WidenMulPairwiseAdd(DI(), pairs, hn::Set(D16(), 1)));
    pairs = hn::Zero(D16());
  }
  HWY_INLINE double total() const { return sum_lanes(DI(), sum); }
};
#elif HWY_ARCH_X86 && HWY_TARGET > HWY_SSSE3
using Int8Cell = Int16Cell;  // SSE2 has only pmaddwd
using Int4Cell = Int16Cell;
#else
struct Int8Cell : DotTile {
  using DX = DS8;
#if HWY_ARCH_ARM
  using DW = DS8;  // sdot
#else
  using DW = DU;  // vpdpbusd
#endif
  VI sum;
  HWY_INLINE void start() { sum = hn::Zero(DI()); }
  HWY_INLINE void add(hn::Vec<DX> x, hn::Vec<DW> w) {
    sum = hn::SumOfMulQuadAccumulate(DI(), w, x, sum);
  }
  HWY_INLINE void every_8_steps() {}
  HWY_INLINE double total() const { return sum_lanes(DI(), sum); }
};
using Int4Cell = Int8Cell;
#endif

template <class D>
HWY_INLINE hn::TFromD<D> one(D) {
  if constexpr (std::is_same_v<hn::TFromD<D>, hwy::bfloat16_t>) {
    return hwy::BF16FromF32(1.0f);
  } else {
    return hn::TFromD<D>{1};
  }
}

// The cell for a kind of arithmetic.
template <bench::Arithmetic kind>
struct CellOf {
  using Type = F32Cell;
};
template <>
struct CellOf<bench::Arithmetic::bf16> {
  using Type = Bf16Cell;
};
template <>
struct CellOf<bench::Arithmetic::int16> {
  using Type = Int16Cell;
};
template <>
struct CellOf<bench::Arithmetic::int8> {
  using Type = Int8Cell;
};
template <>
struct CellOf<bench::Arithmetic::int4> {
  using Type = Int4Cell;
};

}  // namespace probe

template <bench::Arithmetic kind, bool kWide>
struct Impl<bench::MultiplyAdd<kind, kWide>> {
  using Cell = typename probe::CellOf<kind>::Type;
  using DX = typename Cell::DX;
  using DW = typename Cell::DW;

  static bench::Products run(const std::uint32_t* zeros) {
    constexpr int kRows = Cell::kRows, kColumns = Cell::kColumns * (kWide ? 2 : 1);
    const hn::Repartition<std::uint32_t, DX> du;
    // To the compiler, all operands differ and each step has other columns, so it must multiply
    // each pair every time.
    const auto x = hn::BitCast(du, hn::Set(DX(), probe::one(DX())));
    const auto w = hn::BitCast(du, hn::Set(DW(), probe::one(DW())));
    hn::Vec<DX> xs[kRows];
    hn::Vec<DW> ws[kColumns];
    Cell cells[kRows][kColumns];
    HWY_UNROLL(6) for (int r = 0; r < kRows; ++r) {
      xs[r] = hn::BitCast(DX(), hn::Xor(x, hn::Set(du, zeros[r])));
      HWY_UNROLL(6) for (int c = 0; c < kColumns; ++c) cells[r][c].start();
    }
    HWY_UNROLL(6) for (int c = 0; c < kColumns; ++c) {
      ws[c] = hn::BitCast(DW(), hn::Xor(w, hn::Set(du, zeros[kRows + c])));
    }
    const auto change = hn::Set(du, zeros[kRows + kColumns]);
    for (int step = 0; step < bench::kSteps; step += 8) {
      for (int s = 0; s < 8; ++s) {
        HWY_UNROLL(6) for (int r = 0; r < kRows; ++r) {
          HWY_UNROLL(6) for (int c = 0; c < kColumns; ++c) cells[r][c].add(xs[r], ws[c]);
        }
        HWY_UNROLL(6) for (int c = 0; c < kColumns; ++c) {
          ws[c] = hn::BitCast(DW(), hn::Add(hn::BitCast(du, ws[c]), change));
        }
      }
      HWY_UNROLL(6) for (int r = 0; r < kRows; ++r) {
        HWY_UNROLL(6) for (int c = 0; c < kColumns; ++c) cells[r][c].every_8_steps();
      }
    }
    double sum = 0;
    HWY_UNROLL(6) for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(6) for (int c = 0; c < kColumns; ++c) sum += cells[r][c].total();
    }
    const auto n = static_cast<double>(hn::Lanes(DX())) * (bench::kSteps * kRows * kColumns);
    return {n, sum};
  }
};

template <>
struct Impl<bench::ReadMemory> {
  static std::uint32_t run(const std::byte* from, std::size_t bytes, int times, std::size_t ahead,
                           bool four_streams) {
    using D = hn::Repartition<std::uint32_t, probe::DF>;
    using V = hn::Vec<D>;
    const D d;
    const std::size_t lanes = hn::Lanes(d);
    const auto* const words = reinterpret_cast<const std::uint32_t*>(from);
    // A step reads four pairs of vectors: adjacent ones, or one pair from each quarter of the
    // memory.
    const std::size_t n = bytes / sizeof(std::uint32_t) / (four_streams ? 4 : 1);
    const std::size_t step = four_streams ? 2 * lanes : 8 * lanes;
    const std::size_t apart = four_streams ? n : 2 * lanes;
    const std::size_t further = ahead / sizeof(std::uint32_t);
    // One sum per load of a step: with two loads per sum the compiler could change their order.
    V s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0;
    for (int t = 0; t < times; ++t) {
      for (std::size_t i = 0; i < n; i += step) {
        const std::uint32_t* const p = words + i;
        if (ahead != 0) {
          for (std::size_t pair = 0; pair < 4; ++pair) {
            hwy::Prefetch(p + pair * apart + further);
            if (lanes > 8) hwy::Prefetch(p + pair * apart + further + lanes);
          }
        }
        s0 = hn::Add(s0, hn::Load(d, p));
        s1 = hn::Add(s1, hn::Load(d, p + lanes));
        s2 = hn::Add(s2, hn::Load(d, p + apart));
        s3 = hn::Add(s3, hn::Load(d, p + apart + lanes));
        s4 = hn::Add(s4, hn::Load(d, p + 2 * apart));
        s5 = hn::Add(s5, hn::Load(d, p + 2 * apart + lanes));
        s6 = hn::Add(s6, hn::Load(d, p + 3 * apart));
        s7 = hn::Add(s7, hn::Load(d, p + 3 * apart + lanes));
      }
      std::atomic_signal_fence(std::memory_order_seq_cst);  // values must be read again
    }
    const V low = hn::Add(hn::Add(s0, s1), hn::Add(s2, s3));
    return hn::ReduceSum(d, hn::Add(low, hn::Add(hn::Add(s4, s5), hn::Add(s6, s7))));
  }
};

template <>
struct Impl<bench::CopyMemory> {
  static void run(const std::byte* from, std::byte* to, std::size_t bytes, int times) {
    using D = hn::Repartition<std::uint32_t, probe::DF>;
    const D d;
    const std::size_t lanes = hn::Lanes(d);
    const auto* const in = reinterpret_cast<const std::uint32_t*>(from);
    auto* const out = reinterpret_cast<std::uint32_t*>(to);
    const std::size_t n = bytes / sizeof(std::uint32_t);
    for (int t = 0; t < times; ++t) {
      for (std::size_t i = 0; i < n; i += 4 * lanes) {
        const auto a = hn::Load(d, in + i), b = hn::Load(d, in + i + lanes);
        const auto c = hn::Load(d, in + i + 2 * lanes), e = hn::Load(d, in + i + 3 * lanes);
        hn::Store(a, d, out + i);
        hn::Store(b, d, out + i + lanes);
        hn::Store(c, d, out + i + 2 * lanes);
        hn::Store(e, d, out + i + 3 * lanes);
      }
      std::atomic_signal_fence(std::memory_order_seq_cst);
    }
  }
};

template <>
struct Impl<bench::UpdateMemory> {
  static void run(std::byte* at, std::size_t bytes, int times) {
    using D = hn::Repartition<std::uint32_t, probe::DF>;
    const D d;
    const std::size_t lanes = hn::Lanes(d);
    auto* const words = reinterpret_cast<std::uint32_t*>(at);
    const std::size_t n = bytes / sizeof(std::uint32_t);
    const auto one = hn::Set(d, 1);
    for (int t = 0; t < times; ++t) {
      for (std::size_t i = 0; i < n; i += 2 * lanes) {
        const auto a = hn::Load(d, words + i), b = hn::Load(d, words + i + lanes);
        hn::Store(hn::Add(a, one), d, words + i);
        hn::Store(hn::Add(b, one), d, words + i + lanes);
      }
      std::atomic_signal_fence(std::memory_order_seq_cst);
    }
  }
};

}}}  // namespace nibble::NIBBLE_ABI::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
