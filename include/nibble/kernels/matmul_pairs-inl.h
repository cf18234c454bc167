// SPDX-License-Identifier: Apache-2.0
//
// Products of many rows with block formats on NEON with i8mm. Its instructions multiply two rows of
// weights by two rows of inputs, eight numbers long, and add the four products to four lanes. The
// rows of inputs are therefore brought together in pairs, once for some columns, and a part of k at
// a time, so that they stay in L1; sums are in memory between parts. Results are those of other
// tiles, bit for bit: the order of the sums is the same.

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_MATMUL_PAIRS_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_MATMUL_PAIRS_INL_H_
#undef NIBBLE_KERNELS_MATMUL_PAIRS_INL_H_
#else
#define NIBBLE_KERNELS_MATMUL_PAIRS_INL_H_
#endif

#include <algorithm>
#include <type_traits>

#include "hwy/highway.h"
#include "nibble/kernels/matmul_tile-inl.h"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#if NIBBLE_HAVE_I8MM
// Whether a form has such products: formats whose codes are unpacked by a mask, a shift, and at
// most a table.
template <class Form>
inline constexpr bool kMultipliesPairs = false;
template <quant::BlockFormat Format>
inline constexpr bool kMultipliesPairs<Format> =
    !quant::SuperBlockFormat<Format> && (Format::kBits == 4 || Format::kBits == 8) &&
    Format::kLength == 32 && Format::kZeroPoint == quant::ZeroPoint::symmetric;
template <class Format>
inline constexpr bool kMultipliesPairs<RowScaled<Format>> = kMultipliesPairs<Format>;

namespace pairs {

inline constexpr int kMaxRows = 32;   // whose inputs are in pairs at a time
inline constexpr int kMaxPanels = 4;  // that use them
inline constexpr int kMaxSteps = 8;
inline constexpr int kMaxPairs = kMaxRows / 2;

// The inputs of two rows for 32 weights.
struct PairOfBlocks {
  alignas(16) std::int8_t codes[4][2][8];  // of eight inputs: row; input
  std::int32_t corrections[2][4];          // of the integer sums, for two rows of weights each
  float scales[4];                         // row 0, row 1, row 0, row 1; corrections, too
};

// The inputs of all pairs for a step are together: [step][pair].
using Inputs = PairOfBlocks[kMaxSteps * kMaxPairs];

// Those of n_steps steps from `first` on, of m rows, filled up with zeros to n_pairs pairs.
template <int kBits>
HWY_NOINLINE void put_inputs(const kernels::MatmulInput& in, Index m, Index n_pairs, Index first,
                             int n_steps, PairOfBlocks* HWY_RESTRICT out) {
  for (Index step = first; step < first + n_steps; ++step) {
    for (Index row = 0; row < 2 * n_pairs; row += 2, ++out) {
      for (Index r = 0; r < 2; ++r) {
        const bool exists = row + r < m;
        const Index at = exists ? (row + r) * in.n_blocks + step : 0;
        const std::int8_t* const codes =
            in.codes + (exists ? (row + r) * in.code_stride + 32 * step : 0);
        for (Index i = 0; i < 4; ++i) {
          const int8x8_t x = exists ? vld1_s8(codes + 8 * i) : vdup_n_s8(0);
          vst1_s8(out->codes[i][r], x);
        }
        const std::int32_t sum = exists ? in.code_sums[at] * (1 << (kBits - 4)) : 0;
        const float scale = exists && in.scales != nullptr ? in.scales[at] : 0.0f;
        for (Index i = r; i < 4; i += 2) {
          out->corrections[0][i] = out->corrections[1][i] = sum;
          out->scales[i] = scale;
        }
      }
    }
  }
}

// Rows 0 and 1 of a vector of weights, and rows 2 and 3, for a step: eight weights of both rows
// each.
template <class Format>
class Codes {
 public:
  HWY_INLINE Codes() {}

  template <class Steps>
  HWY_INLINE void read(const Steps& steps, int step) {
    constexpr int kPairsOfChunks = Steps::kChunks / 2;
    HWY_UNROLL(4) for (int i = 0; i < kPairsOfChunks; ++i) {
      const DU32 d;
      const auto even = hn::BitCast(d, steps.chunk(step, 2 * i, 0));
      const auto odd = hn::BitCast(d, steps.chunk(step, 2 * i + 1, 0));
      put(0, i, hn::BitCast(DU8(), hn::InterleaveWholeLower(d, even, odd)));
      put(1, i, hn::BitCast(DU8(), hn::InterleaveWholeUpper(d, even, odd)));
    }
  }
  // Adds the products of half `half` with inputs 8 i to 8 i + 7 of two rows.
  HWY_INLINE VI32 add_to(VI32 sum, int half, int i, VI8 x) const {
    const VU8 w = codes_[half][i].get();
    if constexpr (kDotBits<Format> == 8) {
      return VI32(vusmmlaq_s32(sum.raw, w.raw, x.raw));
    } else {
      return VI32(vmmlaq_s32(sum.raw, vreinterpretq_s8_u8(w.raw), x.raw));
    }
  }

 private:
  HWY_INLINE void put(int half, int i, VU8 both) {
    if constexpr (Format::kBits == 8) {
      codes_[half][i].set(both);
    } else {
      codes_[half][i].set(low_codes<Format>(both));
      codes_[half][i + 2].set(high_codes<Format>(both));
    }
  }

  Register<DU8> codes_[2][4];
};

// Adds the products of kPairs pairs with one vector of weights, for n_steps steps, to sums in
// memory: row 2 p of `sums` has those of pair p with rows 0 and 1 of the weights (0 and 0, 0 and 1,
// 1 and 0, 1 and 1: weights and inputs), row 2 p + 1 those with rows 2 and 3.
template <class Format, bool kRowScale, int kPairs>
HWY_NOINLINE void add_tile(const PairOfBlocks* x, Index n_pairs, Index n_steps,
                           PackedSteps<Format, 1> steps, PanelPrefetcher prefetcher,
                           float* HWY_RESTRICT sums_inout, Index stride) {
  using Steps = PackedSteps<Format, 1>;
  RegisterTile<DF32, kPairs, 2> sums;
  HWY_UNROLL(8) for (int p = 0; p < kPairs; ++p) {
    sums.set(p, 0, hn::Load(DF32(), sums_inout + 2 * p * stride));
    sums.set(p, 1, hn::Load(DF32(), sums_inout + (2 * p + 1) * stride));
  }
  for (Index left = n_steps; left > 0; left -= Steps::kGroup) {
    prefetcher.step<quant::Packed<Format>::kGroupBytes / kVectors>();
    HWY_UNROLL(2) for (int step = 0; step < Steps::kGroup; ++step) {
      if (step > 0 && left <= step) break;
      Codes<Format> codes;
      codes.read(steps, step);
      const VF32 scale = steps.scale(step, 0);
      const VF32 scales[2] = {hn::InterleaveWholeLower(DF32(), scale, scale),
                              hn::InterleaveWholeUpper(DF32(), scale, scale)};
      HWY_UNROLL(8) for (int p = 0; p < kPairs; ++p) {
        neon::pin(x);
        VI32 a = hn::LoadU(DI32(), x[p].corrections[0]);
        VI32 b = hn::LoadU(DI32(), x[p].corrections[1]);
        HWY_UNROLL(4) for (int i = 0; i < 4; ++i) {
          const VI8 inputs = hn::LoadU(DI8(), x[p].codes[i][0]);
          a = codes.add_to(a, 0, i, inputs);
          b = codes.add_to(b, 1, i, inputs);
        }
        VF32 factors[2] = {scales[0], scales[1]};
        if constexpr (!kRowScale) {
          const VF32 x_scales = hn::LoadU(DF32(), x[p].scales);
          factors[0] = hn::Mul(scales[0], x_scales);
          factors[1] = hn::Mul(scales[1], x_scales);
        }
        const VF32 first = hn::MulAdd(hn::ConvertTo(DF32(), a), factors[0], sums.get(p, 0));
        const VF32 second = hn::MulAdd(hn::ConvertTo(DF32(), b), factors[1], sums.get(p, 1));
        sums.set(p, 0, neon::pinned(first));
        sums.set(p, 1, neon::pinned(second));
      }
      x += n_pairs;
    }
    steps.end_group();
  }
  HWY_UNROLL(8) for (int p = 0; p < kPairs; ++p) {
    hn::Store(sums.get(p, 0), DF32(), sums_inout + 2 * p * stride);
    hn::Store(sums.get(p, 1), DF32(), sums_inout + (2 * p + 1) * stride);
  }
}

// The sums of n_rows rows as other tiles have them.
template <bool kRowScale>
HWY_INLINE void order_sums(const kernels::MatmulInput& in, Index n_rows, Index stride,
                           float* HWY_RESTRICT sums) {
  const DF32 d;
  for (Index row = 0; row < n_rows; row += 2) {
    float* const even = sums + row * stride;
    float* const odd = even + stride;
    VF32 scale = hn::Set(d, 1.0f), odd_scale = scale;
    if constexpr (kRowScale) {
      scale = hn::Set(d, in.row_scales[row]);
      odd_scale = hn::Set(d, row + 1 < n_rows ? in.row_scales[row + 1] : 0.0f);
    }
    for (Index i = 0; i < stride; i += kLanes) {
      const VF32 a = hn::Load(d, even + i), b = hn::Load(d, odd + i);
      VF32 first = hn::ConcatEven(d, b, a), second = hn::ConcatOdd(d, b, a);
      if constexpr (kRowScale) {
        first = hn::Mul(first, scale);
        second = hn::Mul(second, odd_scale);
      }
      hn::Store(first, d, even + i);
      hn::Store(second, d, odd + i);
    }
  }
}

// The products of the panels [first_panel, end_panel) with m rows from `row` on: at most kMaxPanels
// and kMaxRows.
template <class Format, bool kRowScale>
HWY_NOINLINE void compute(const kernels::MatmulArgs& args, Index row, Index m, Index first_panel,
                          Index end_panel) {
  using L = quant::Packed<Format>;
  using Steps = PackedSteps<Format, 1>;
  Inputs inputs;
  HWY_ALIGN float sums[2][kMaxRows * kMaxPanels * quant::kPanelRows];
  const auto input = args.input.rows_from(row);
  const Index n_pairs = (m + 3) / 4 * 2;
  const Index stride = (end_panel - first_panel) * quant::kPanelRows;
  const Index panel_bytes = L::panel_bytes(args.k);
  const Index n_steps = L::n_steps(args.k);
  constexpr Index kPartBytes = L::kGroupBytes * kMaxSteps / L::kGroupSteps;
  const auto add_panel = [&](const std::byte* weights, int n, bool has_next,
                             float* out) NIBBLE_ATTR {
    for (int c = 0; c < kVectors; ++c) {
      PanelPrefetcher prefetcher;
      prefetcher.into = args.tuning.many_rows;
      if (has_next && prefetcher.into != Fetch::none) {  // a share of the panel that comes next
        prefetcher.next = weights + panel_bytes + c * (kPartBytes / kVectors);
      }
      const Steps steps(weights, args.k, c * kLanes);
      Index pair = 0;
      const auto add = [&]<int kPairs>(std::integral_constant<int, kPairs>) NIBBLE_ATTR {
        add_tile<Format, kRowScale, kPairs>(inputs + pair, n_pairs, n, steps, prefetcher,
                                            out + 2 * pair * stride + c * kLanes, stride);
        prefetcher.next = nullptr;
        pair += kPairs;
      };
      while (n_pairs - pair >= 8) add(std::integral_constant<int, 8>());
      while (pair < n_pairs) add(std::integral_constant<int, 2>());
    }
  };
  const auto compute = [&](const std::byte* matrix, float* out) NIBBLE_ATTR {
    std::fill_n(out, 2 * n_pairs * stride, 0.0f);
    for (Index step = 0; step < n_steps; step += kMaxSteps) {
      const auto n = static_cast<int>(HWY_MIN(Index{kMaxSteps}, n_steps - step));
      put_inputs<kDotBits<Format>>(input, m, n_pairs, step, n, inputs);
      for (Index panel = first_panel; panel < end_panel; ++panel) {
        add_panel(matrix + panel * panel_bytes + step / kMaxSteps * kPartBytes, n,
                  panel + 1 < args.end_panel, out + (panel - first_panel) * quant::kPanelRows);
      }
    }
    order_sums<kRowScale>(input, m, stride, out);
  };
  compute(args.weights, sums[0]);
  if (args.gate != nullptr) compute(args.gate, sums[1]);
  args.finish(args, sums[0], sums[1],
              {row, first_panel * quant::kPanelRows, static_cast<int>(m),
               static_cast<int>(end_panel - first_panel) * kVectors});
}

}  // namespace pairs

template <class Form>
HWY_NOINLINE void compute_pairs(const kernels::MatmulArgs& args) {
  using Format = typename FormatOfForm<Form>::Type;
  constexpr bool kRowScale = !std::is_same_v<Form, Format>;
  for (Index panel = args.first_panel; panel < args.end_panel; panel += pairs::kMaxPanels) {
    const Index end = HWY_MIN(panel + pairs::kMaxPanels, args.end_panel);
    for (Index row = 0; row < args.m; row += pairs::kMaxRows) {
      const Index m = HWY_MIN(Index{pairs::kMaxRows}, args.m - row);
      pairs::compute<Format, kRowScale>(args, row, m, panel, end);
    }
  }
}
#endif

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
