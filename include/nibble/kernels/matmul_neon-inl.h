// SPDX-License-Identifier: Apache-2.0
//
// Products with block formats on NEON. The codes of a vector of columns are unpacked once for all
// rows of a tile: those of 32 weights fill eight registers. The rows follow one after the other, so
// that the integer sums of only one exist at a time, beside the tile's sums in f32. A row's inputs
// are two registers, whose elements dot products take by number.

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_MATMUL_NEON_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_MATMUL_NEON_INL_H_
#undef NIBBLE_KERNELS_MATMUL_NEON_INL_H_
#else
#define NIBBLE_KERNELS_MATMUL_NEON_INL_H_
#endif

#include <type_traits>
#include <utility>

#include "hwy/highway.h"
#include "nibble/kernels/matmul_steps-inl.h"

#if NIBBLE_IS_NEON

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

namespace neon {

// The inputs of a row for 32 weights.
template <class Steps>
class Inputs {
  // Whether the two vectors are next to each other in memory. Otherwise the first is for the low
  // halves of the bytes of all chunks, the second for the high halves.
  static constexpr bool kAreNeighbours = Steps::kApart < 16;

 public:
  // Where they begin in their block, for part p of it.
  static constexpr int first_of(int part) { return (kAreNeighbours ? 32 : 16) * part; }
  // The place, in the two vectors, of what the low halves of chunk j are multiplied by.
  static constexpr int low(int j) {
    return Steps::kBits < 8 && kAreNeighbours ? 4 * j + 4 * j / Steps::kApart * Steps::kApart
                                              : 4 * j;
  }
  static constexpr int high(int j) { return low(j) + (kAreNeighbours ? Steps::kApart : 16); }

  HWY_INLINE Inputs() {}
  HWY_INLINE void load(const std::int8_t* p) {
    vectors_[0].set(hn::LoadU(DI8(), p));
    vectors_[1].set(hn::LoadU(DI8(), p + (kAreNeighbours ? 16 : Steps::kApart)));
  }
  template <int kPlace, class Dot>
  HWY_INLINE void add_to(Dot& dot, VU8 codes, bool odd) const {
    add_element<kPlace % 16 / 4>(dot, codes, vectors_[kPlace / 16].get(), odd);
  }

 private:
  Register<DI8> vectors_[2];
};

// The sum of the integers of half kHalf of 32 weights, where halves have sums of their own.
template <int kHalf, class Dot>
HWY_INLINE auto& sum_of_half(Dot& dot) {
  if constexpr (std::is_same_v<Dot, TwoScaleSum>) {
    return dot.template half<kHalf>();
  } else {
    return dot;
  }
}

template <int kChunk, class Steps, class Dot, int kN>
HWY_INLINE void add_chunk(const Inputs<Steps>& x, const CodePair (&w)[kN][Steps::kChunks],
                          Dot (&dots)[kN]) {
  using X = Inputs<Steps>;
  constexpr bool kIsOdd = Steps::kBits == 8 && kChunk % 2 != 0;
  HWY_UNROLL(4) for (int c = 0; c < kN; ++c) {
    auto& sum = sum_of_half<kChunk / 2>(dots[c]);
    x.template add_to<X::low(kChunk)>(sum, w[c][kChunk].low.get(), kIsOdd);
    if constexpr (Steps::kBits < 8) {
      x.template add_to<X::high(kChunk)>(sum, w[c][kChunk].high.get(), true);
    }
  }
}
template <class Steps, class Dot, int kN, int... kChunks>
HWY_INLINE void add_chunks(const Inputs<Steps>& x, const CodePair (&w)[kN][Steps::kChunks],
                           Dot (&dots)[kN], std::integer_sequence<int, kChunks...>) {
  (add_chunk<kChunks>(x, w, dots), ...);
}

// *p in all lanes; then p moves to the next row.
HWY_INLINE VI32 take(const std::int32_t*& p, Index stride) {
#if HWY_ARCH_ARM_A64 && (HWY_COMPILER_GCC || HWY_COMPILER_CLANG)
  int32x4_t lanes;
  asm("ld1r {%0.4s}, [%1], %2"
      : "=w"(lanes), "+r"(p)
      : "r"(stride * Index{sizeof(std::int32_t)}), "m"(*p));
  return VI32(lanes);
#else
  const VI32 lanes = hn::Set(DI32(), *p);
  p += stride;
  return lanes;
#endif
}

// Compilers keep what several columns read, the inputs of all rows, in registers until there are
// none left. After this they read it again.
HWY_INLINE void forget_loads() {
#if HWY_COMPILER_GCC || HWY_COMPILER_CLANG
  asm volatile("" ::: "memory");
#endif
}

// Where the inputs of a tile are, for the present turn.
template <int kRows>
struct Rows {
  const std::int8_t* HWY_RESTRICT codes[kRows];
  const float* HWY_RESTRICT scales;
  const std::int32_t* HWY_RESTRICT code_sums;  // or half_sums
  Index stride;                                // of scales and sums

  HWY_INLINE void next(Index length, Index n_blocks) {
    HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) codes[r] += length;
    scales += n_blocks;
    code_sums += n_blocks;
  }
};

// The sums of kRows rows with kN vectors, from vector `column` on, for one step.
template <bool kRowScale, int kRows, int kColumns, int kN, class Steps>
class Block {
  static constexpr bool kTwoScales = Steps::kTwoScales;
  static constexpr int kParts = Steps::kLength / 32;
  using Dot =
      std::conditional_t<kTwoScales, TwoScaleSum,
                         DotSum<Steps::kBits, !Steps::kHasMinimum, Steps::kLength, (kColumns > 1)>>;
  using X = Inputs<Steps>;

 public:
  HWY_INLINE Block(const Rows<kRows>& rows, Steps& steps, int step, int b, int column)
      : rows_(rows), steps_(steps), step_(step), b_(b), column_(column) {}

  HWY_INLINE void add_to(Sums<kRows, kColumns>& sums) {
    if constexpr (kRows > 2) forget_loads();
    read_scales();
    const std::int32_t* sum = rows_.code_sums + b_;
    if constexpr (kParts == 1) {
      CodePair w[kN][Steps::kChunks];
      read(0, w);
      HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
        Dot dots[kN];
        start(r, sum, dots);
        add(r, 0, w, dots);
        finish(r, dots, sums);
      }
    } else {
      Dot dots[kRows][kN];
      HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) start(r, sum, dots[r]);
      for (int part = 0; part < kParts; ++part) {
        CodePair w[kN][Steps::kChunks];
        read(part, w);
        HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
          add(r, part, w, dots[r]);
          HWY_UNROLL(4) for (int c = 0; c < kN; ++c) dots[r][c].end_of_32();
        }
      }
      HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) finish(r, dots[r], sums);
    }
  }

 private:
  HWY_INLINE void read(int part, CodePair (&w)[kN][Steps::kChunks]) {
    HWY_UNROLL(4) for (int c = 0; c < kN; ++c) {
      HWY_UNROLL(8) for (int j = 0; j < Steps::kChunks; ++j) {
        steps_.read(step_, part * Steps::kChunks + j, column_ + c, w[c][j]);
      }
    }
  }

  HWY_INLINE void read_scales() {
    HWY_UNROLL(4) for (int c = 0; c < kN; ++c) {
      scales_[c].set(steps_.scale(step_, column_ + c));
      if constexpr (Steps::kHasMinimum) minimums_[c].set(steps_.minimum(step_, column_ + c));
      if constexpr (kTwoScales) halves_[c].set(steps_.halves(step_, b_ % 2 != 0, column_ + c));
    }
  }

  HWY_INLINE void start(int r, const std::int32_t*& sum, Dot (&dots)[kN]) const {
    if constexpr (kTwoScales) {
      const std::int32_t both = rows_.code_sums[r * rows_.stride + b_];
      HWY_UNROLL(4) for (int c = 0; c < kN; ++c) dots[c].start(halves_[c].get(), both);
    } else {
      VI32 first = hn::Zero(DI32());
      if constexpr (Dot::kCorrection == Correction::at_start) {
        if constexpr (kRows > 2) {
          first = take(sum, rows_.stride);
        } else {
          first = hn::Set(DI32(), sum[r * rows_.stride]);
        }
        if constexpr (Steps::kBits > 4) first = hn::ShiftLeft<Steps::kBits - 4>(first);
      }
      HWY_UNROLL(4) for (int c = 0; c < kN; ++c) dots[c].start(first);
    }
  }

  HWY_INLINE void add(int r, int part, const CodePair (&w)[kN][Steps::kChunks],
                      Dot (&dots)[kN]) const {
    X x;
    x.load(rows_.codes[r] + b_ * Steps::kLength + X::first_of(part));
    add_chunks(x, w, dots, std::make_integer_sequence<int, Steps::kChunks>());
  }

  HWY_INLINE void finish(int r, const Dot (&dots)[kN], Sums<kRows, kColumns>& sums) const {
    const Index at = r * rows_.stride + b_;
    HWY_UNROLL(4) for (int c = 0; c < kN; ++c) {
      VF32 total;
      if constexpr (kTwoScales) {
        total = dots[c].total(halves_[c].get());
      } else {
        total = hn::ConvertTo(DF32(), dots[c].total());
      }
      VF32 factor = scales_[c].get();
      if constexpr (!kRowScale) factor = hn::Mul(factor, hn::Set(DF32(), rows_.scales[at]));
      VF32 sum = hn::MulAdd(total, factor, sums.get(r, column_ + c));
      if constexpr (Steps::kHasMinimum) {
        sum = hn::MulAdd(minimums_[c].get(), hn::Set(DF32(), input_sum(r, at)), sum);
      }
      sums.set(r, column_ + c, sum);
    }
  }

  HWY_INLINE float input_sum(int r, Index at) const {
    if constexpr (Steps::kHasInputSums) {
      return steps_.input_sum(r, b_);
    } else {
      const float codes = -0.125f * static_cast<float>(rows_.code_sums[at]);
      return kRowScale ? codes : codes * rows_.scales[at];
    }
  }

  const Rows<kRows>& rows_;
  Steps& steps_;
  const int step_, b_, column_;
  Register<DF32> scales_[kN], minimums_[kN];
  Register<DI16> halves_[kN];
};

// How many vectors share a row's inputs. Without dot products, elements of the inputs are made
// vectors, once for all of them; with dot products and few rows, neighbouring vectors of codes are
// one load of two registers.
template <int kRows, int kColumns, class Steps>
inline constexpr int kVectorsAtOnce =
    kColumns % 2 == 0 && kRows* kColumns <= 8 && Steps::kLength == 32 && Steps::kBits < 8 ? 2 : 1;

}  // namespace neon

// See matmul_tile-inl.h.
template <bool kRowScale, int kRows, int kColumns, class Steps>
HWY_INLINE void add_steps(const kernels::MatmulInput& in, Index n_steps, Steps steps,
                          PanelPrefetcher prefetcher, Sums<kRows, kColumns>& sums) {
  constexpr int kLength = Steps::kLength;
  constexpr int kN = neon::kVectorsAtOnce<kRows, kColumns, Steps>;
  neon::Rows<kRows> rows;
  HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) rows.codes[r] = in.codes + r * in.code_stride;
  rows.scales = in.scales;
  rows.code_sums = Steps::kTwoScales ? in.half_sums : in.code_sums;
  rows.stride = in.n_blocks;
  for (Index left = n_steps; left > 0; left -= Steps::kGroup) {
    steps.start_group();
    for (int first = 0; first < Steps::kGroup; first += Steps::kTurn) {
      prefetcher.step<kPanelsOf<kColumns> * Steps::kTurnBytes>();
      HWY_UNROLL(2) for (int b = 0; b < Steps::kTurn; ++b) {
        // Only the blocks that k has, not the padding of the last group: inputs have no more.
        if (!Steps::kWholeGroups && first + b > 0 && left <= first + b) break;
        HWY_UNROLL(8) for (int c = 0; c < kColumns; c += kN) {
          neon::Block<kRowScale, kRows, kColumns, kN, Steps>(rows, steps, first + b, b, c)
              .add_to(sums);
        }
      }
      rows.next(Steps::kTurn * kLength, Steps::kTurn);
    }
    steps.end_group();
  }
}

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // NIBBLE_IS_NEON
#endif  // per-target include guard
