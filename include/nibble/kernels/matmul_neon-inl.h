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
    return Steps::kHasPairs && kAreNeighbours ? 4 * j + 4 * j / Steps::kApart * Steps::kApart
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
  if constexpr (requires { dot.template half<kHalf>(); }) {
    return dot.template half<kHalf>();
  } else {
    return dot;
  }
}

template <int kChunk, class Steps, class Dot>
HWY_INLINE void add_chunk(const Inputs<Steps>& x, const CodePair (&w)[Steps::kChunks], Dot& dot) {
  using X = Inputs<Steps>;
  auto& sum = sum_of_half<kChunk / 2>(dot);
  const bool is_odd = !Steps::kHasPairs && kChunk % 2 != 0;
  x.template add_to<X::low(kChunk)>(sum, w[kChunk].low.get(), is_odd);
  if constexpr (Steps::kHasPairs) {
    x.template add_to<X::high(kChunk)>(sum, w[kChunk].high.get(), true);
  }
}
template <class Steps, class Dot, int... kChunks>
HWY_INLINE void add_chunks(const Inputs<Steps>& x, const CodePair (&w)[Steps::kChunks], Dot& dot,
                           std::integer_sequence<int, kChunks...>) {
  (add_chunk<kChunks>(x, w, dot), ...);
}

// Compilers compute early what is used late, and keep what several columns use, until no registers
// are left. What these return is not known before, and what follows is not done before.
template <class T>
HWY_INLINE void pin(const T*& p) {
#if HWY_COMPILER_GCC || HWY_COMPILER_CLANG
  asm volatile("" : "+r"(p));
#endif
}
HWY_INLINE VF32 pinned(VF32 v) {
#if HWY_COMPILER_GCC || HWY_COMPILER_CLANG
  asm volatile("" : "+w"(v.raw));
#endif
  return v;
}
HWY_INLINE void forget_loads() {
#if HWY_COMPILER_GCC || HWY_COMPILER_CLANG
  asm volatile("" ::: "memory");
#endif
}

// Numbers of one block, row after row. (Together with those of the inputs, the addresses of all
// rows would take more registers than there are.)
template <class D>
class RowNumbers {
  using T = hn::TFromD<D>;

 public:
  HWY_INLINE RowNumbers(const T* first, Index stride) : next_(first), stride_(stride) {}

  // That of the next row, in all lanes.
  HWY_INLINE hn::Vec<D> take() {
#if HWY_ARCH_ARM_A64 && (HWY_COMPILER_GCC || HWY_COMPILER_CLANG)
    hn::Vec<D> lanes;
    asm volatile("ld1r {%0.4s}, [%1], %2"
                 : "=w"(lanes.raw), "+r"(next_)
                 : "r"(stride_ * static_cast<Index>(sizeof(T))), "m"(*next_));
#else
    const hn::Vec<D> lanes = hn::Set(D(), *next_);
    next_ += stride_;
#endif
    return lanes;
  }

 private:
  const T* next_;
  Index stride_;
};

// Where the inputs of a tile are, for the present turn.
template <int kRows>
struct Rows {
  const std::int8_t* codes[kRows];
  const float* scales;            // or null, if rows have one scale each
  const std::int32_t* code_sums;  // or half_sums
  Index stride;                   // of scales and sums

  template <bool kRowScale>
  HWY_INLINE void next(Index length, Index n_blocks) {
    HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) codes[r] += length;
    if constexpr (!kRowScale) scales += n_blocks;
    code_sums += n_blocks;
  }
};

// Adds the products of kRows rows with one step: `step` of its group, block b of the turn.
template <bool kRowScale, int kRows, int kColumns, class Steps>
class Block {
  static constexpr int kParts = Steps::kLength / 32;
  static constexpr bool kTwoMinimums = Steps::kTwoScales && Steps::kHasMinimum;
  using Dot =
      std::conditional_t<Steps::kTwoScales, TwoScaleSum<Steps::kOffset>,
                         DotSum<Steps::kBits, !Steps::kHasMinimum, Steps::kLength, (kColumns > 1)>>;
  static constexpr bool kHasCorrection = [] {
    if constexpr (Steps::kTwoScales) {
      return false;  // it has its own
    } else {
      return Dot::kCorrection == Correction::at_start;
    }
  }();
  using X = Inputs<Steps>;
  using Codes = CodePair[Steps::kChunks];
  using Chunks = std::make_integer_sequence<int, Steps::kChunks>;
  // Whether inputs stay in registers for all columns. (Without dot products each of their elements
  // becomes a vector.)
  static constexpr bool kKeepsInputs = kParts == 1 && kRows <= (NIBBLE_HAVE_DOTPROD ? 2 : 1);

 public:
  HWY_INLINE Block(Rows<kRows>& rows, Steps& steps, int step, int b)
      : rows_(rows), steps_(steps), step_(step), b_(b) {}

  HWY_INLINE void add_to(Sums<kRows, kColumns>& sums) {
    Row kept[kKeepsInputs ? kRows : 1];
    if constexpr (kKeepsInputs) {
      Numbers numbers = first_numbers();
      HWY_UNROLL(2) for (int r = 0; r < kRows; ++r) read_row(r, numbers, kept[r]);
    }
    HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) {
      forget_loads();
      Column column;
      read_scales(c, column);
      if constexpr (kParts == 1) {
        add_column(c, column, kept, sums);
      } else {
        add_long_column(c, column, sums);
      }
    }
  }

 private:
  // What depends on the column: scales.
  struct Column {
    Register<DF32> scale, minimum;
    Register<DI16> halves, minimums;
    HWY_INLINE Column() {}
  };
  // What depends on the row: inputs, the correction of the integer sums, the scale.
  struct Row {
    X x;
    Register<DI32> correction;
    Register<DF32> scale;
    HWY_INLINE Row() {}
  };
  struct Numbers {
    RowNumbers<DI32> code_sums;
    RowNumbers<DF32> scales;
  };

  HWY_INLINE Numbers first_numbers() const {
    return {{rows_.code_sums + b_, rows_.stride},
            {kRowScale ? nullptr : rows_.scales + b_, rows_.stride}};
  }
  HWY_INLINE void read_row(int r, Numbers& numbers, Row& row) const {
    load(r, 0, row.x);
    row.correction.set(correction(numbers));
    row.scale.set(scale(numbers));
  }

  template <int kKept>
  HWY_INLINE void add_column(int c, const Column& column, const Row (&kept)[kKept],
                             Sums<kRows, kColumns>& sums) {
    Codes w;
    read(0, c, w);
    Numbers numbers = first_numbers();
    HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
      Row row;
      if constexpr (kKeepsInputs) {
        row = kept[r];
      } else {
        pin(rows_.codes[r]);
        read_row(r, numbers, row);
      }
      Dot dot;
      start(r, column, row.correction.get(), dot);
      add_chunks(row.x, w, dot, Chunks());
      finish(r, c, column, dot, row.scale.get(), sums);
      if constexpr (!kKeepsInputs) sums.set(r, c, pinned(sums.get(r, c)));
    }
  }

  HWY_INLINE void add_long_column(int c, const Column& column, Sums<kRows, kColumns>& sums) {
    Numbers numbers = first_numbers();
    Dot dots[kRows];
    HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) start(r, column, correction(numbers), dots[r]);
    for (int part = 0; part < kParts; ++part) {
      Codes w;
      read(part, c, w);
      HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
        X x;
        load(r, part, x);
        add_chunks(x, w, dots[r], Chunks());
        dots[r].end_of_32();
      }
    }
    HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
      finish(r, c, column, dots[r], scale(numbers), sums);
    }
  }

  HWY_INLINE void load(int r, int part, X& x) const {
    x.load(rows_.codes[r] + b_ * Steps::kLength + X::first_of(part));
  }

  HWY_INLINE void read(int part, int c, Codes& w) const {
    HWY_UNROLL(8) for (int j = 0; j < Steps::kChunks; ++j) {
      steps_.read(step_, part * Steps::kChunks + j, c, w[j]);
    }
  }

  HWY_INLINE void read_scales(int c, Column& column) const {
    column.scale.set(steps_.scale(step_, c));
    if constexpr (Steps::kHasMinimum) column.minimum.set(steps_.minimum(step_, c));
    if constexpr (Steps::kTwoScales) column.halves.set(steps_.halves(step_, b_ % 2 != 0, c));
    if constexpr (kTwoMinimums) column.minimums.set(steps_.minimums(step_, b_ % 2 != 0, c));
  }

  HWY_INLINE VI32 correction(Numbers& numbers) const {
    if constexpr (kHasCorrection) {
      return correction_of<Steps::kOffset>(numbers.code_sums.take());
    } else {
      return hn::Zero(DI32());
    }
  }
  HWY_INLINE VF32 scale(Numbers& numbers) const {
    return kRowScale ? hn::Zero(DF32()) : numbers.scales.take();
  }

  HWY_INLINE void start(int r, const Column& column, VI32 correction, Dot& dot) const {
    if constexpr (Steps::kTwoScales) {
      dot.start(column.halves.get(), rows_.code_sums[r * rows_.stride + b_]);
    } else {
      dot.start(correction);
    }
  }

  HWY_INLINE void finish(int r, int c, const Column& column, const Dot& dot, VF32 x_scale,
                         Sums<kRows, kColumns>& sums) const {
    VF32 total;
    if constexpr (Steps::kTwoScales) {
      total = dot.total(column.halves.get());
    } else {
      total = hn::ConvertTo(DF32(), dot.total());
    }
    const VF32 scale = column.scale.get();
    if constexpr (kTwoMinimums) {
      total = with_minimums(total, scale, column.minimum.get(), column.minimums.get(),
                            rows_.code_sums[r * rows_.stride + b_]);
      return sums.set(r, c, hn::MulAdd(total, x_scale, sums.get(r, c)));
    }
    const VF32 factor = kRowScale ? scale : hn::Mul(scale, x_scale);
    VF32 sum = hn::MulAdd(total, factor, sums.get(r, c));
    if constexpr (Steps::kHasMinimum && !kTwoMinimums) {
      sum = hn::MulAdd(column.minimum.get(), hn::Set(DF32(), input_sum(r)), sum);
    }
    sums.set(r, c, sum);
  }

  HWY_INLINE float input_sum(int r) const {
    if constexpr (Steps::kHasInputSums) {
      return steps_.input_sum(r, b_);
    } else {
      const Index at = r * rows_.stride + b_;
      const float codes = -0.125f * static_cast<float>(rows_.code_sums[at]);
      return kRowScale ? codes : codes * rows_.scales[at];
    }
  }

  Rows<kRows>& rows_;
  Steps& steps_;
  const int step_, b_;
};

}  // namespace neon

// See matmul_tile-inl.h.
template <bool kRowScale, int kRows, int kColumns, class Steps>
HWY_INLINE void add_steps(const kernels::MatmulInput& in, Index n_steps, Steps steps,
                          PanelPrefetcher prefetcher, Sums<kRows, kColumns>& sums) {
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
        neon::Block<kRowScale, kRows, kColumns, Steps>(rows, steps, first + b, b).add_to(sums);
      }
      rows.template next<kRowScale>(Steps::kTurn * Steps::kLength, Steps::kTurn);
    }
    steps.end_group();
  }
}

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // NIBBLE_IS_NEON
#endif  // per-target include guard
