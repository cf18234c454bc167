// SPDX-License-Identifier: Apache-2.0
//
// Tiles of the matrix product: some rows of activations times some vectors of packed weights. The
// sums of a tile stay in registers for the whole of k.

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_MATMUL_TILE_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_MATMUL_TILE_INL_H_
#undef NIBBLE_KERNELS_MATMUL_TILE_INL_H_
#else
#define NIBBLE_KERNELS_MATMUL_TILE_INL_H_
#endif

#include <algorithm>
#include <type_traits>

#include "hwy/highway.h"
#include "nibble/kernels/matmul_neon-inl.h"
#include "nibble/kernels/matmul_steps-inl.h"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// ---- Forms -------------------------------------------------------------------------------------
// A Form says what a tile multiplies: it is a weight format, with the activations that the format
// needs by default, or one of the types below.

// A block format, with one scale per row of activations.
template <class Format>
struct RowScaled {};

// bf16 weights and activations.
struct Bf16Dots {};

// I8Channel, with a zero point of the activations.
struct AffineChannel {};

template <class Form>
struct FormatOfForm {
  using Type = Form;
};
template <class Format>
struct FormatOfForm<RowScaled<Format>> {
  using Type = Format;
};
template <>
struct FormatOfForm<Bf16Dots> {
  using Type = quant::BF16;
};
template <>
struct FormatOfForm<AffineChannel> {
  using Type = quant::I8Channel;
};
template <class Form>
using PackedOf = quant::Packed<typename FormatOfForm<Form>::Type>;

// ---- Shapes ------------------------------------------------------------------------------------
// For many rows: kWideRows rows times kWideVectors vectors. For few rows (decode): up to
// kNarrowRows rows times a whole panel of kVectors vectors, so that a panel is read once and in
// order.
//
// Registers for block formats: rows * vectors sums in f32, as many integer sums within a block, and
// the weights and scales of a vector. Float formats have no integer sums.
//   AVX-512 (32):  4 * 2: 8 + 2 * 8 (two chains, see DotSum) + 2 * 2 + activation, mask
//   AVX2    (16):  4 * 1: 4 + 4 + 2 + activation, mask, scale, ones; narrow 2 * 2 the same
//   SSE     (16):  2 * 2, since a broadcast takes two operations; narrow 1 * 4: 4 + 4 + 2 + 2
//   NEON    (32):  4 * 2: 8, codes and inputs of 32 weights of one vector and row (8 + 2), one
//                  integer sum (3, see DotSum), a broadcast, mask, scales
//     with sdot    8 * 2: 16 + 8 + 2 + 1 + mask, scales; blocks of more than 32 weights keep the
//                  integer sums of all rows: 4 * 2
template <class Format>
inline constexpr bool kHasLongSteps = false;
template <quant::BlockFormat Format>
inline constexpr bool kHasLongSteps<Format> = quant::Packed<Format>::kStepLength > 32;
template <class Format>
struct TileShape {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
  static constexpr int kWideRows = 4, kWideVectors = 2, kNarrowRows = 4;
#elif HWY_TARGET == HWY_AVX2
  static constexpr int kWideRows = 4, kWideVectors = 1, kNarrowRows = 2;
#elif HWY_ARCH_X86
  static constexpr int kWideRows = 2, kWideVectors = 2, kNarrowRows = 1;
#elif NIBBLE_IS_NEON && NIBBLE_HAVE_DOTPROD
  static constexpr int kWideRows = kHasLongSteps<Format> ? 4 : 8;
  static constexpr int kWideVectors = 2, kNarrowRows = 2;
#else
  static constexpr int kWideRows = 4, kWideVectors = 2, kNarrowRows = 2;
#endif
};
template <class Format>
struct TileShape<RowScaled<Format>> : TileShape<Format> {};

// Sums of whole rows only, none of blocks. The tile is as high as needed to hide the latency of a
// dot product, and it reads weights and activations half as often as it multiplies them.
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL
template <>
struct TileShape<quant::I8Channel> {
  static constexpr int kWideRows = 8, kWideVectors = 2, kNarrowRows = 4;
};
#elif HWY_TARGET == HWY_AVX2
template <>  // 4 * 1 takes 1.07 times as long on a Zen 3, with a zero point 1.15 times
struct TileShape<quant::I8Channel> {
  static constexpr int kWideRows = 4, kWideVectors = 2, kNarrowRows = 2;
};
#endif
template <>
struct TileShape<AffineChannel> : TileShape<quant::I8Channel> {};
template <class T>
struct TileShape<quant::Float<T>> {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
  static constexpr int kWideRows = 8, kWideVectors = 2, kNarrowRows = 8;
#elif HWY_TARGET == HWY_AVX2
  // bf16 comes in pairs along k, which needs two more registers.
  static constexpr int kWideRows = sizeof(T) == 2 ? 4 : 6, kWideVectors = 2, kNarrowRows = 4;
#elif HWY_ARCH_X86
  static constexpr int kWideRows = 2, kWideVectors = 4, kNarrowRows = 2;
#else
  static constexpr int kWideRows = 6, kWideVectors = 4, kNarrowRows = 4;
#endif
};
template <>
struct TileShape<Bf16Dots> : TileShape<quant::BF16> {};  // needs as many registers

// ---- Tiles -------------------------------------------------------------------------------------
// tile(): computes the sums of kRows rows of `in` with kColumns vectors of weights and writes them
// to sums[row][kColumns * kLanes]. The vectors begin at lane `lane` of the panel at `weights`;
// where they are more than a panel, the rest is in the panels after it. Not inlined: one copy
// serves every epilogue.

#if !NIBBLE_IS_NEON  // which has its own
// Block formats: adds the products with n_steps steps to the sums. kRowScale: activations have one
// scale per row. complete_sums applies it when the sums are complete, so that a block costs one
// operation less.
template <bool kRowScale, int kRows, int kColumns, class Steps>
HWY_INLINE void add_steps(const kernels::MatmulInput& in, Index n_steps, Steps steps,
                          PanelPrefetcher prefetcher, Sums<kRows, kColumns>& sums) {
  constexpr int kLength = Steps::kLength;
  constexpr bool kTwoScales = Steps::kTwoScales;
  constexpr bool kTwoMinimums = kTwoScales && Steps::kHasMinimum;
  using Dot =
      std::conditional_t<kTwoScales, TwoScaleSum<Steps::kOffset>,
                         DotSum<Steps::kBits, !Steps::kHasMinimum, kLength, (kColumns > 1)>>;

  // Pointers that move along k, and strides between rows: few enough to stay in registers.
  const std::int8_t* HWY_RESTRICT x = in.codes;
  const float* HWY_RESTRICT x_scales = in.scales;
  const std::int32_t* HWY_RESTRICT code_sums = kTwoScales ? in.half_sums : in.code_sums;
  const Index x_stride = in.code_stride;
  const Index stride = in.n_blocks;
  const auto correction = [&](int r, int b) NIBBLE_ATTR {
    return correction_of<Steps::kOffset>(hn::Set(DI32(), code_sums[r * stride + b]));
  };
  for (Index left = n_steps; left > 0; left -= Steps::kGroup) {
    steps.start_group();
    for (int first = 0; first < Steps::kGroup; first += Steps::kTurn) {
      prefetcher.step<kPanelsOf<kColumns> * Steps::kTurnBytes>();
      HWY_UNROLL(2) for (int b = 0; b < Steps::kTurn; ++b) {
        // Only the blocks that k has, not the padding of the last group: inputs have no more.
        if (!Steps::kWholeGroups && first + b > 0 && left <= first + b) break;
        Dot dot[kRows][kColumns];
        [[maybe_unused]] Register<DI16> halves[kColumns];
        if constexpr (kTwoScales) {
          HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) {
            halves[c].set(steps.halves(first + b, b % 2 != 0, c));
          }
        }
        HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
          if constexpr (kTwoScales) {
            HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) {
              dot[r][c].start(halves[c].get(), code_sums[r * stride + b]);
            }
          } else {
            VI32 start = hn::Zero(DI32());
            if constexpr (Dot::kCorrection == Correction::at_start) start = correction(r, b);
            HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) { dot[r][c].start(start); }
          }
        }
        for (int part = 0; part < kLength / 32; ++part) {
          HWY_UNROLL(8) for (int j = 0; j < Steps::kChunks; ++j) {
            const int chunk = part * Steps::kChunks + j;
            const auto inputs_of = [&](int r, VI8& x_low, VI8& x_high) NIBBLE_ATTR {
              const std::int8_t* xr = x + r * x_stride + b * kLength + 4 * chunk;
              if constexpr (Steps::kHasPairs) xr += 4 * chunk / Steps::kApart * Steps::kApart;
              x_low = x_high = broadcast4(xr);
              if constexpr (Steps::kHasPairs) x_high = broadcast4(xr + Steps::kApart);
            };
            const auto add = [&](int r, int c, const CodePair& w, VI8 x_low,
                                 VI8 x_high) NIBBLE_ATTR {
              if constexpr (kTwoScales) {
                const VI16 scale = Dot::scale_of(halves[c].get(), j / 2);
                dot[r][c].add(w.low.get(), x_low, 2 * (j % 2), j / 2, scale);
                dot[r][c].add(w.high.get(), x_high, 2 * (j % 2) + 1, j / 2, scale);
              } else {
                dot[r][c].add(w.low.get(), x_low, !Steps::kHasPairs && j % 2 != 0);
                if constexpr (Steps::kHasPairs) dot[r][c].add(w.high.get(), x_high, true);
              }
            };
            // Inputs or weights stay in registers, whichever are fewer.
            if constexpr (kRows < kColumns) {
              Register<DI8> x_low[kRows], x_high[kRows];
              HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
                VI8 low, high;
                inputs_of(r, low, high);
                x_low[r].set(low);
                x_high[r].set(high);
              }
              HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) {
                CodePair w;
                steps.read(first + b, chunk, c, w);
                HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
                  add(r, c, w, x_low[r].get(), x_high[r].get());
                }
              }
            } else {
              CodePair w[kColumns];
              HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) {
                steps.read(first + b, chunk, c, w[c]);
              }
              HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
                VI8 low, high;
                inputs_of(r, low, high);
                HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) { add(r, c, w[c], low, high); }
              }
            }
            if constexpr (Steps::kBits == 5) {
              if (j % 2 != 0) {
                HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
                  HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) { dot[r][c].end_of_16(); }
                }
              }
            }
          }
          if constexpr (!kTwoScales) {
            HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
              HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) { dot[r][c].end_of_32(); }
            }
          }
        }
        HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) {
          const VF32 scale = steps.scale(first + b, c);
          if constexpr (kTwoMinimums) {
            const VF32 minimum = steps.minimum(first + b, c);
            const VI16 minimums = steps.minimums(first + b, b % 2 != 0, c);
            HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
              const VF32 total = with_minimums(dot[r][c].total(halves[c].get()), scale, minimum,
                                               minimums, code_sums[r * stride + b]);
              const VF32 x_scale = hn::Set(DF32(), x_scales[r * stride + b]);
              sums.set(r, c, hn::MulAdd(total, x_scale, sums.get(r, c)));
            }
            continue;
          }
          HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
            VF32 total;
            if constexpr (kTwoScales) {
              total = dot[r][c].total(halves[c].get());
            } else {
              VI32 integers = dot[r][c].total();
              if constexpr (Dot::kCorrection == Correction::at_end) {
                integers = hn::Add(integers, correction(r, b));
              }
              total = hn::ConvertTo(DF32(), integers);
            }
            VF32 factor = scale;
            if constexpr (!kRowScale) {
              factor = hn::Mul(scale, hn::Set(DF32(), x_scales[r * stride + b]));
            }
            sums.set(r, c, hn::MulAdd(total, factor, sums.get(r, c)));
          }
          if constexpr (Steps::kHasMinimum && !kTwoMinimums) {
            const VF32 minimum = steps.minimum(first + b, c);
            HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
              const Index i = r * stride + b;
              float x_sum;
              if constexpr (Steps::kHasInputSums) {
                x_sum = steps.input_sum(r, b);
              } else {
                x_sum = -0.125f * static_cast<float>(code_sums[i]);  // sum of the codes
                if constexpr (!kRowScale) x_sum *= x_scales[i];
              }
              sums.set(r, c, hn::MulAdd(minimum, hn::Set(DF32(), x_sum), sums.get(r, c)));
            }
          }
        }
      }
      x += Steps::kTurn * kLength;
      if constexpr (!kRowScale) x_scales += Steps::kTurn;
      code_sums += Steps::kTurn;
    }
    steps.end_group();
  }
}
#endif

template <class Format, bool kRowScale, int kRows, int kColumns>
HWY_INLINE void block_tile(const kernels::MatmulInput& in, Index k, const std::byte* weights,
                           int lane, PanelPrefetcher prefetcher, float* HWY_RESTRICT sums_out) {
  Sums<kRows, kColumns> sums;
  sums.fill(hn::Zero(DF32()));
  add_steps<kRowScale>(in, quant::Packed<Format>::n_steps(k),
                       PackedSteps<Format, kColumns>(weights, k, lane), prefetcher, sums);
  sums.store(sums_out, kColumns * kLanes);
}

// Adds to sums that are in memory.
template <int kRows, class Steps>
HWY_NOINLINE void wide_tile(const kernels::MatmulInput& in, Index n_steps,
                            const typename Steps::Step* steps, PanelPrefetcher prefetcher,
                            float* HWY_RESTRICT sums_inout) {
  constexpr int kColumns = Steps::kVectorsOfStep;
  HWY_ALIGN float input_sums[kRows][Steps::kMaxSteps];
  if constexpr (Steps::kHasMinimum && !Steps::kTwoScales) {
    for (int r = 0; r < kRows; ++r) {
      const Index first = r * in.n_blocks;
      sum_inputs(in.code_sums + first, in.scales + first, n_steps, input_sums[r]);
    }
  }
  Sums<kRows, kColumns> sums;
  sums.load(sums_inout, kColumns * kLanes);
  add_steps<false>(in, n_steps, Steps(steps, input_sums), prefetcher, sums);
  sums.store(sums_inout, kColumns * kLanes);
}

template <int kRows, int kColumns, quant::BlockFormat Format>
HWY_NOINLINE void tile(Format, const kernels::MatmulInput& in, Index k, const std::byte* weights,
                       int lane, PanelPrefetcher prefetcher, float* sums_out) {
  block_tile<Format, false, kRows, kColumns>(in, k, weights, lane, prefetcher, sums_out);
}
template <int kRows, int kColumns, class Format>
HWY_NOINLINE void tile(RowScaled<Format>, const kernels::MatmulInput& in, Index k,
                       const std::byte* weights, int lane, PanelPrefetcher prefetcher,
                       float* sums_out) {
  block_tile<Format, true, kRows, kColumns>(in, k, weights, lane, prefetcher, sums_out);
}

// One integer sum for the whole row; complete_sums scales it. kAffine: the input has a zero point.
template <bool kAffine, int kRows, int kColumns>
HWY_INLINE void channel_tile(const kernels::MatmulInput& in, Index k,
                             const std::byte* HWY_RESTRICT weights, int lane,
                             PanelPrefetcher prefetcher, float* HWY_RESTRICT sums_out) {
  using L = quant::Packed<quant::I8Channel>;
  using Dot = std::conditional_t<kAffine, FullRangeDotSum, DotSum<8, true, 0>>;
  constexpr int kChunks = static_cast<int>(L::kMultiple) / 4;  // per step
  const TileColumns columns(L::panel_bytes(k), lane);
  Dot dot[kRows][kColumns];
  HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
    VI32 start = hn::Zero(DI32());
    if constexpr (Dot::kCorrection == Correction::at_start) {
      start = hn::ShiftLeft<4>(hn::Set(DI32(), in.code_sums[r * in.n_blocks]));
    }
    HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) { dot[r][c].start(start); }
  }
  const std::byte* HWY_RESTRICT codes = weights + L::kCodeOffset;
  const std::int8_t* HWY_RESTRICT x = in.codes;
  const Index x_stride = in.code_stride;
  for (Index i = 0; i < k; i += L::kMultiple) {
    prefetcher.step<kPanelsOf<kColumns> * kChunks * quant::kChunkBytes>();
#if NIBBLE_IS_NEON
    HWY_UNROLL(2) for (int part = 0; part < kChunks / 4; ++part) {
      Register<DU8> w[kColumns][4];
      HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) {
        HWY_UNROLL(4) for (int j = 0; j < 4; ++j) {
          const std::byte* bytes =
              columns.template at<4>(codes + (4 * part + j) * quant::kChunkBytes, c);
          w[c][j].set(hn::LoadU(DU8(), reinterpret_cast<const std::uint8_t*>(bytes)));
        }
      }
      HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
        const VI8 xs = hn::LoadU(DI8(), x + r * x_stride + 16 * part);
        HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) {
          add_element<0>(dot[r][c], w[c][0].get(), xs, false);
          add_element<1>(dot[r][c], w[c][1].get(), xs, true);
          add_element<2>(dot[r][c], w[c][2].get(), xs, false);
          add_element<3>(dot[r][c], w[c][3].get(), xs, true);
        }
      }
    }
#else
    HWY_UNROLL(8) for (int j = 0; j < kChunks; ++j) {
      Register<DU8> w[kColumns];
      HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) {
        const std::byte* bytes = columns.template at<4>(codes + j * quant::kChunkBytes, c);
        w[c].set(hn::LoadU(DU8(), reinterpret_cast<const std::uint8_t*>(bytes)));
      }
      HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
        const VI8 xs = broadcast4(x + r * x_stride + 4 * j);
        HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) { dot[r][c].add(w[c].get(), xs, false); }
      }
    }
#endif
    codes += kChunks * quant::kChunkBytes;
    x += L::kMultiple;
  }
  Sums<kRows, kColumns> sums;
  HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) {
    const std::byte* scales = columns.template at<sizeof(float)>(weights, c);
    const VF32 scale = load_f32(reinterpret_cast<const float*>(scales));
    VI32 of_zero = hn::Zero(DI32());  // what the product would be if all inputs were zero
    if constexpr (kAffine) {
      const std::byte* code_sums = columns.template at<4>(weights + L::kSumOffset, c);
      of_zero = hn::Mul(hn::LoadU(DI32(), reinterpret_cast<const std::int32_t*>(code_sums)),
                        hn::Set(DI32(), in.zero_point));
    }
    HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
      VI32 total = dot[r][c].total();
      if constexpr (kAffine) total = hn::Sub(total, of_zero);
      sums.set(r, c, hn::Mul(hn::ConvertTo(DF32(), total), scale));
    }
  }
  sums.store(sums_out, kColumns * kLanes);
}

template <int kRows, int kColumns>
HWY_NOINLINE void tile(quant::I8Channel, const kernels::MatmulInput& in, Index k,
                       const std::byte* weights, int lane, PanelPrefetcher prefetcher,
                       float* sums_out) {
  channel_tile<false, kRows, kColumns>(in, k, weights, lane, prefetcher, sums_out);
}
template <int kRows, int kColumns>
HWY_NOINLINE void tile(AffineChannel, const kernels::MatmulInput& in, Index k,
                       const std::byte* weights, int lane, PanelPrefetcher prefetcher,
                       float* sums_out) {
  channel_tile<true, kRows, kColumns>(in, k, weights, lane, prefetcher, sums_out);
}

// How many rows of 16 lanes (of a panel) float formats read in one prefetching step.
inline constexpr Index kFloatSteps = 4;

// Adds the products of one input of each row with a vector of weights of each column. (Not a
// lambda: Clang 14 does not inline a lambda that is called twice.)
template <int kRows, int kColumns>
HWY_INLINE void add_products(Sums<kRows, kColumns>& sums,
                             const typename Sums<kRows, kColumns>::Row& w,
                             const float* HWY_RESTRICT x, Index stride) {
  HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
    sums.multiply_add(r, hn::Set(DF32(), x[r * stride]), w);
  }
}

template <int kRows, int kColumns, class T>
HWY_NOINLINE void tile(quant::Float<T>, const kernels::MatmulInput& in, Index k,
                       const std::byte* HWY_RESTRICT weights, int lane, PanelPrefetcher prefetcher,
                       float* HWY_RESTRICT sums_out) {
  using L = quant::Packed<quant::Float<T>>;
  constexpr Index kStepBytes =
      L::kPair * quant::kPanelRows * static_cast<Index>(sizeof(T));  // of a panel, per lane
  Sums<kRows, kColumns> sums;
  sums.fill(hn::Zero(DF32()));
  const TileColumns columns(L::panel_bytes(k), lane);
  const float* HWY_RESTRICT x = in.x;
  const Index stride = in.stride;
  using Weights = typename Sums<kRows, kColumns>::Row;
  // Adds step i from here. `whole`: the second weight of the pair exists too.
  const auto add_step = [&](Index i, bool whole) NIBBLE_ATTR {
    const std::byte* const row = weights + i * kStepBytes;
    Weights w;
    if constexpr (L::kPair == 2) {
      Weights w_odd;
      HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) {
        const std::byte* pairs = columns.template at<4>(row, c);
        const auto pair = hn::LoadU(DU32(), reinterpret_cast<const std::uint32_t*>(pairs));
        w.set(0, c, hn::BitCast(DF32(), hn::ShiftLeft<16>(pair)));
        w_odd.set(0, c, hn::BitCast(DF32(), hn::And(pair, hn::Set(DU32(), 0xFFFF0000u))));
      }
      add_products<kRows, kColumns>(sums, w, x + 2 * i, stride);
      if (whole) add_products<kRows, kColumns>(sums, w_odd, x + 2 * i + 1, stride);
    } else {
      HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) {
        const std::byte* values = columns.template at<sizeof(T)>(row, c);
        w.set(0, c, load_f32(reinterpret_cast<const T*>(values)));
      }
      add_products<kRows, kColumns>(sums, w, x + i, stride);
    }
  };
  Index left = k;
  for (; left >= kFloatSteps * L::kPair; left -= kFloatSteps * L::kPair) {
    prefetcher.step<kPanelsOf<kColumns> * kFloatSteps * kStepBytes>();
    HWY_UNROLL(4) for (Index i = 0; i < kFloatSteps; ++i) { add_step(i, true); }
    weights += kFloatSteps * kStepBytes;
    x += kFloatSteps * L::kPair;
  }
  for (Index i = 0; i * L::kPair < left; ++i) add_step(i, (i + 1) * L::kPair <= left);
  sums.store(sums_out, kColumns * kLanes);
}

#if NIBBLE_HAVE_BF16_DOTS
template <int kRows, int kColumns>
HWY_NOINLINE void tile(Bf16Dots, const kernels::MatmulInput& in, Index k,
                       const std::byte* HWY_RESTRICT weights, int lane, PanelPrefetcher prefetcher,
                       float* HWY_RESTRICT sums_out) {
  using L = quant::Packed<quant::BF16>;
  constexpr Index kPairBytes = 2 * quant::kPanelRows * 2;
  Sums<kRows, kColumns> sums;
  sums.fill(hn::Zero(DF32()));
  const TileColumns columns(L::panel_bytes(k), lane);
  const bf16* HWY_RESTRICT x = in.rounded;
  const Index x_stride = in.rounded_stride;
  const auto add_pair = [&](Index i) NIBBLE_ATTR {
    Register<DBf16> w[kColumns];
    HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) {
      const std::byte* pairs = columns.template at<4>(weights + i * kPairBytes, c);
      const auto bits = hn::LoadU(DU16(), reinterpret_cast<const std::uint16_t*>(pairs));
      w[c].set(hn::BitCast(DBf16(), bits));
    }
    HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
      const VBf16 pair = broadcast_pair(x + r * x_stride + 2 * i);
      HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) {
        sums.set(r, c, add_bf16_dot(sums.get(r, c), w[c].get(), pair));
      }
    }
  };
  Index left = L::padded_k(k) / 2;
  for (; left >= kFloatSteps; left -= kFloatSteps) {
    prefetcher.step<kPanelsOf<kColumns> * kFloatSteps * kPairBytes>();
    HWY_UNROLL(4) for (Index i = 0; i < kFloatSteps; ++i) { add_pair(i); }
    weights += kFloatSteps * kPairBytes;
    x += 2 * kFloatSteps;
  }
  for (Index i = 0; i < left; ++i) add_pair(i);
  sums.store(sums_out, kColumns * kLanes);
}
#endif

// ---- Complete sums -----------------------------------------------------------------------------
// What remains to be done with the sums of a tile: the multiplication by the scales, where each row
// of activations has one.

template <class Form>
inline constexpr bool kHasRowScales =
    std::is_same_v<Form, quant::I8Channel> || std::is_same_v<Form, AffineChannel>;
template <class Format>
inline constexpr bool kHasRowScales<RowScaled<Format>> = true;

template <class Form, int kRows, int kColumns>
HWY_INLINE void complete_sums(const kernels::MatmulInput& in, float* HWY_RESTRICT sums) {
  if constexpr (kHasRowScales<Form>) {
    for (int r = 0; r < kRows; ++r) {
      const VF32 scale = hn::Set(DF32(), in.row_scales[r]);
      for (int c = 0; c < kColumns; ++c, sums += kLanes) {
        hn::Store(hn::Mul(hn::Load(DF32(), sums), scale), DF32(), sums);
      }
    }
  }
}

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
