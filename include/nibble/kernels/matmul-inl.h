// SPDX-License-Identifier: Apache-2.0
//
// The matrix product: the loop over tiles, and what is done with their sums.

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_MATMUL_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_MATMUL_INL_H_
#undef NIBBLE_KERNELS_MATMUL_INL_H_
#else
#define NIBBLE_KERNELS_MATMUL_INL_H_
#endif

#include "hwy/highway.h"
#if !NIBBLE_IS_LEVEL
#include "nibble/kernels/activation-inl.h"
#endif
#include "nibble/kernels/matmul_pairs-inl.h"
#include "nibble/kernels/matmul_tile-inl.h"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#if NIBBLE_IS_LEVEL
// Levels compute only sums; the functions of the base finish them.
using HWY_NAMESPACE::Outputs;
#else

// ---- Epilogues ---------------------------------------------------------------------------------

// The kLanes outputs of one vector: (row, column), (row, column + 1) … The first `count` of them
// are columns of the matrix; the rest is never stored. The type is in this namespace so that
// argument-dependent lookup finds a program's `finish` here although it is declared later.
struct Outputs {
  Index row;
  Index column;
  size_t count;
};

template <class Activation, bool kBias, bool kResidual>
HWY_INLINE VF32 finish(kernels::Epilogue<Activation, kBias, kResidual>, DF32 d, VF32 v,
                       const kernels::EpilogueArgs& args, Outputs at) {
  if constexpr (kBias) v = hn::Add(v, hn::LoadN(d, args.bias + at.column, at.count));
  v = activate(Activation{}, d, v);
  if constexpr (kResidual) {
    const float* row = args.residual + at.row * args.residual_stride;
    v = hn::Add(v, hn::LoadN(d, row + at.column, at.count));
  }
  return v;
}

HWY_INLINE VF32 finish(kernels::TimesResidual, DF32 d, VF32 v, const kernels::EpilogueArgs& args,
                       Outputs at) {
  if (args.bias != nullptr) v = hn::Add(v, hn::LoadN(d, args.bias + at.column, at.count));
  const float* row = args.residual + at.row * args.residual_stride;
  return hn::Mul(v, hn::LoadN(d, row + at.column, at.count));
}

// ---- The end of a tile -------------------------------------------------------------------------

// Calls store(index into sums, outputs) for each vector of a tile's outputs.
template <class Store>
HWY_INLINE void for_each_vector(const kernels::MatmulArgs& args, const kernels::TileAt& tile,
                                const Store& store) {
  for (int r = 0; r < tile.n_rows; ++r) {
    for (int c = 0; c < tile.n_vectors; ++c) {
      const Index column = tile.column + c * kLanes;
      if (column >= args.n) break;
      store((r * tile.n_vectors + c) * kLanes,
            Outputs{tile.row + r, column, static_cast<size_t>(HWY_MIN(args.n - column, kLanes))});
    }
  }
}

// Nearly all vectors are whole, and stored plainly: f32 products of many rows with k = 128 took 1.1
// times as long with masked stores on a Zen 3.
HWY_INLINE void store_outputs(VF32 v, const kernels::MatmulArgs& args, Outputs at) {
  float* const to = args.out + at.row * args.out_stride + at.column;
  if (HWY_LIKELY(at.count == size_t{kLanes})) {
    hn::StoreU(v, DF32(), to);
  } else {
    hn::StoreN(v, DF32(), to, at.count);
  }
}

template <class Epilogue>
struct Impl<kernels::FinishTile<Epilogue>> {
  static void run(const kernels::MatmulArgs& args, const float* HWY_RESTRICT sums, const float*,
                  const kernels::TileAt& tile) {
    for_each_vector(args, tile, [&](int i, Outputs at) NIBBLE_ATTR {
      const VF32 v = finish(Epilogue{}, DF32(), hn::Load(DF32(), sums + i), args.epilogue, at);
      store_outputs(v, args, at);
    });
  }
};

template <class Activation>
struct Impl<kernels::FinishGatedTile<Activation>> {
  static void run(const kernels::MatmulArgs& args, const float* HWY_RESTRICT sums,
                  const float* HWY_RESTRICT gate, const kernels::TileAt& tile) {
    for_each_vector(args, tile, [&](int i, Outputs at) NIBBLE_ATTR {
      const VF32 g = activate(Activation{}, DF32(), hn::Load(DF32(), gate + i));
      const VF32 v = hn::Mul(g, hn::Load(DF32(), sums + i));
      store_outputs(v, args, at);
    });
  }
};

#endif  // NIBBLE_IS_LEVEL

// ---- The walk over tiles -----------------------------------------------------------------------

// How many bytes of a panel a tile reads in one prefetching step.
template <class Form>
constexpr Index step_bytes() {
  using L = PackedOf<Form>;
  using Format = typename FormatOfForm<Form>::Type;
  if constexpr (quant::BlockFormat<Format>) {
    return PackedSteps<Format, 1>::kTurnBytes;
  } else if constexpr (std::is_same_v<Format, quant::I8Channel>) {
    return L::kMultiple * quant::kPanelRows;
  } else {
    return kFloatSteps * L::kPair * quant::kPanelRows * Format::kBits / 8;
  }
}

// kNarrow: few rows, whole panels (see TileShape and PanelPrefetcher).
template <class Form, int kRows, int kColumns, bool kNarrow>
HWY_INLINE void compute_tile(const kernels::MatmulArgs& args, Index row, Index column) {
  using Shape = TileShape<Form>;
  HWY_ALIGN float sums[kRows * kColumns * kLanes];
  HWY_ALIGN float gate[kRows * kColumns * kLanes];
  const auto input = args.input.rows_from(row);
  const Index panel_bytes = PackedOf<Form>::panel_bytes(args.k);
  const Index panel = column / quant::kPanelRows;
  const int lane = static_cast<int>(column % quant::kPanelRows);
  constexpr int kPanels = kPanelsOf<kColumns>;
  const Index next_panel = panel + kPanels;
  const auto compute = [&](const std::byte* matrix, float* out) NIBBLE_ATTR {
    const std::byte* const weights = matrix + panel * panel_bytes;
    PanelPrefetcher prefetcher;
    const Tuning& tuning = args.tuning;
    prefetcher.into = kNarrow ? tuning.weights : tuning.many_rows;
    if (kNarrow) {
      if (tuning.weights != Fetch::none) prefetcher.next = weights + tuning.weights_distance;
    } else if (tuning.many_rows != Fetch::none && lane == 0 && next_panel < args.end_panel) {
      // Once per panel, none after the last.
      // The tiles of a column each fetch an equal part of the panels that come next, and half as
      // much again: some fetches get lost, and fetching each line only once gave 67 % of the peak
      // with Q4_0 instead of 76 %.
      const Index n_tiles = (args.m + Shape::kWideRows - 1) / Shape::kWideRows;
      const Index part = kPanels * panel_bytes / n_tiles;
      const Index tile_index = (row + Shape::kWideRows - 1) / Shape::kWideRows;
      prefetcher.next = matrix + next_panel * panel_bytes + tile_index * part;
      prefetcher.share = (3 * kPanels * step_bytes<Form>() / (2 * n_tiles) + 63) / 64 * 64;
    }
    tile<kRows, kColumns>(Form{}, input, args.k, weights, lane, prefetcher, out);
    complete_sums<Form, kRows, kColumns>(input, out);
  };
  if constexpr (!kNarrow) {
    // The outputs are on their way while the sums are made. (f32, many rows, on a Zen 3: 1.25 times
    // the rate at k = 128, 1.03 times at k = 512.)
    for (Index r = row; r < row + kRows; ++r) {
      prefetch(args.out, static_cast<size_t>(r * args.out_stride + column));
    }
  }
  compute(args.weights, sums);
  if (args.gate != nullptr) compute(args.gate, gate);
  args.finish(args, sums, gate, {row, column, kRows, kColumns});
}

template <class Form, int kMaxRows, int kColumns, bool kNarrow>
HWY_INLINE void for_each_row_tile(const kernels::MatmulArgs& args, Index column) {
  Index row = 0;
  if constexpr (kMaxRows == 4) {
    // A tile of one row has too few sums to hide the latency of a dot product. So 5 rows are 3 + 2,
    // not 4 + 1, and 3 rows are not 2 + 1 (1.26 times the rate). 6 rows as 3 + 3 gain nothing.
    for (; args.m - row >= 4 && args.m - row != 5; row += 4) {
      compute_tile<Form, 4, kColumns, kNarrow>(args, row, column);
    }
    if (args.m - row >= 3) {
      compute_tile<Form, 3, kColumns, kNarrow>(args, row, column);
      row += 3;
    }
  } else {
    for (; row + kMaxRows <= args.m; row += kMaxRows) {
      compute_tile<Form, kMaxRows, kColumns, kNarrow>(args, row, column);
    }
  }
  if constexpr (kMaxRows > 4) {
    for (; row + 4 <= args.m; row += 4) {
      compute_tile<Form, 4, kColumns, kNarrow>(args, row, column);
    }
  }
  if constexpr (kMaxRows > 2) {
    for (; row + 2 <= args.m; row += 2) {
      compute_tile<Form, 2, kColumns, kNarrow>(args, row, column);
    }
  }
  if constexpr (kMaxRows > 1) {
    for (; row < args.m; ++row) {
      compute_tile<Form, 1, kColumns, kNarrow>(args, row, column);
    }
  }
}

// ---- Widened tiles -----------------------------------------------------------------------------
// Codes that take many operations to unpack are widened once for many rows. A part of k at a time,
// so that it stays in L1; sums are in memory between parts. Results are those of other tiles, bit
// for bit: the order of the sums is the same.
template <class Form>
inline constexpr bool kWidens = false;
template <quant::BlockFormat Format>
inline constexpr bool kWidens<Format> =
    quant::SuperBlockFormat<Format> || quant::LevelFormat<Format> || Format::kBits == 5 ||
    Format::kBits < 4;

// What the tiles of a part fetch: the part that comes next, a share by each (see PanelPrefetcher).
struct NextPart {
  const std::byte* at = nullptr;  // in the first of kPanels panels; null: nothing to fetch
  Index bytes = 0;                // of each panel
  Index panel_bytes = 0;
  Fetch into = Fetch::none;

  template <int kPanels>
  HWY_INLINE PanelPrefetcher for_tile(Index tile, Index n_tiles, Index turns) const {
    PanelPrefetcher prefetcher;
    if (at == nullptr || into == Fetch::none) return prefetcher;
    const Index n_turns = (n_tiles + kPanels - 1) / kPanels * turns;
    prefetcher.into = into;
    prefetcher.share = ((bytes + n_turns - 1) / n_turns + 63) / 64 * 64;
    prefetcher.next = at + tile % kPanels * panel_bytes + tile / kPanels * turns * prefetcher.share;
    return prefetcher;
  }
};

// Adds the products of m rows with the n_steps steps that follow the first `step` of k.
template <int kMaxRows, class Steps>
HWY_INLINE void add_wide_part(const kernels::MatmulInput& input, Index m, Index step, int n_steps,
                              const typename Steps::Step* steps, const NextPart& next,
                              float* HWY_RESTRICT sums) {
  constexpr int kColumns = Steps::kVectorsOfStep;
  const Index n_tiles = (m + kMaxRows - 1) / kMaxRows, turns = (n_steps + 1) / 2;
  Index row = 0;
  const auto add = [&]<int kRows>(std::integral_constant<int, kRows>) NIBBLE_ATTR {
    kernels::MatmulInput in = input.rows_from(row);
    in.codes += step * Steps::kLength;
    in.scales += step;
    in.code_sums += step;
    if (in.half_sums != nullptr) in.half_sums += step;
    const PanelPrefetcher prefetcher =
        next.template for_tile<kPanelsOf<kColumns>>(row / kMaxRows, n_tiles, turns);
    wide_tile<kRows, Steps>(in, n_steps, steps, prefetcher, sums + row * (kColumns * kLanes));
    row += kRows;
  };
  if constexpr (kMaxRows > 4) {
    while (m - row >= 8) add(std::integral_constant<int, 8>());
    while (m - row >= 4) add(std::integral_constant<int, 4>());
  }
  if constexpr (kMaxRows == 4) {  // 5 rows are 3 + 2, as in for_each_row_tile
    while (m - row >= 4 && m - row != 5) add(std::integral_constant<int, 4>());
    if (m - row >= 3) add(std::integral_constant<int, 3>());
  }
  while (m - row >= 2) add(std::integral_constant<int, 2>());
  if (m - row == 1) add(std::integral_constant<int, 1>());
}

template <class Format, int kColumns>
HWY_NOINLINE void compute_wide_tiles(const kernels::MatmulArgs& args, Index column) {
  using L = quant::Packed<Format>;
  using Steps = WideStepsOf<Format, kColumns>;
  constexpr int kTileRows = TileShape<Format>::kWideRows;
  constexpr Index kMaxRows = 64;  // whose sums are in memory
  constexpr int kPanels = kPanelsOf<kColumns>;
  typename Steps::Step steps[Steps::kMaxSteps];
  HWY_ALIGN float sums[2][kMaxRows * kColumns * kLanes];
  const Index panel_bytes = L::panel_bytes(args.k);
  const Index panel = column / quant::kPanelRows;
  const int lane = static_cast<int>(column % quant::kPanelRows);
  const bool is_first = lane == 0;  // of the columns of a panel
  const bool is_last = lane + kColumns * kLanes >= int{quant::kPanelRows};
  const auto n_steps = static_cast<int>(L::n_steps(args.k));
  NextPart next;
  next.bytes = L::kGroupBytes * Steps::kMaxSteps / L::kGroupSteps;
  next.panel_bytes = panel_bytes;
  next.into = args.tuning.many_rows;
  for (Index row = 0; row < args.m; row += kMaxRows) {
    const Index m = HWY_MIN(kMaxRows, args.m - row);
    const auto input = args.input.rows_from(row);
    const auto compute = [&](const std::byte* matrix, float* out) NIBBLE_ATTR {
      std::fill_n(out, m * kColumns * kLanes, 0.0f);
      const std::byte* weights = matrix + panel * panel_bytes;
      for (int step = 0; step < n_steps; step += Steps::kMaxSteps) {
        const int n = HWY_MIN(Steps::kMaxSteps, n_steps - step);
        widen_steps<Format, kColumns>(weights, args.k, lane, n, steps);
        weights += next.bytes;
        next.at = is_first ? weights : nullptr;
        if (step + n == n_steps) {
          const bool has_more = is_last && panel + 2 * kPanels <= args.end_panel;
          next.at = has_more ? matrix + (panel + kPanels) * panel_bytes : nullptr;
        }
        add_wide_part<kTileRows, Steps>(input, m, step, n, steps, next, out);
      }
    };
    compute(args.weights, sums[0]);
    if (args.gate != nullptr) compute(args.gate, sums[1]);
    args.finish(args, sums[0], sums[1], {row, column, static_cast<int>(m), kColumns});
  }
}

template <class Form>
HWY_NOINLINE void for_each_tile(const kernels::MatmulArgs& args) {
  using Shape = TileShape<Form>;
  Index column = args.first_panel * quant::kPanelRows;
  const Index end = args.end_panel * quant::kPanelRows;
  // Where the alternative is to widen: several narrow tiles, one after the other on each panel.
  constexpr Index kMaxNarrow = (kWidens<Form> ? 2 : 1) * Shape::kNarrowRows;
  const auto narrow_tiles = [&] NIBBLE_ATTR {
    for (; column < end; column += quant::kPanelRows) {
      for_each_row_tile<Form, Shape::kNarrowRows, kVectors, true>(args, column);
    }
  };
  if (args.m <= kMaxNarrow) return narrow_tiles();
#if NIBBLE_HAVE_I8MM
  if constexpr (kMultipliesPairs<Form>) {
    if (args.m >= 8) return compute_pairs<Form>(args);
  }
#endif
  constexpr int kWideVectors = Shape::kWideVectors;
  constexpr Index kWideColumns = kWideVectors * kLanes;
  if constexpr (kWidens<Form>) {
    for (; column + kWideColumns <= end; column += kWideColumns) {
      compute_wide_tiles<Form, kWideVectors>(args, column);
    }
    return narrow_tiles();  // the last panel of an odd number
  }
  for (; column + kWideColumns <= end; column += kWideColumns) {
    for_each_row_tile<Form, Shape::kWideRows, kWideVectors, false>(args, column);
  }
  if constexpr (kWideVectors > kVectors) {  // the last panel of an odd number
    for (; column < end; column += quant::kPanelRows) {
      for_each_row_tile<Form, Shape::kWideRows, kVectors, false>(args, column);
    }
  }
}

// Levels add instructions for products of 8-bit integers, some for those of bf16; they have no
// other products.
template <class Format>
concept MultipliedHere =
    !NIBBLE_IS_LEVEL || quant::BlockFormat<Format> || std::is_same_v<Format, quant::I8Channel> ||
    (NIBBLE_HAVE_BF16_DOTS == 1 && std::is_same_v<Format, quant::BF16>);

template <MultipliedHere Format, kernels::ActivationScales kScales>
struct Impl<kernels::Matmul<Format, kScales>> {
  static_assert(kernels::kHasProducts<Format, kScales>,
                "nibble: activations with one scale for each row are for formats with one scale in "
                "a block, and those with a zero point for I8Channel");
  static void run(const kernels::MatmulArgs& args) {
#if NIBBLE_HAVE_BF16_DOTS
    if constexpr (std::is_same_v<Format, quant::BF16>) {
      if (args.input.rounded != nullptr) return for_each_tile<Bf16Dots>(args);
    }
#endif
    if constexpr (kScales == kernels::ActivationScales::affine) {
      for_each_tile<AffineChannel>(args);
    } else if constexpr (kScales == kernels::ActivationScales::per_row &&
                         quant::BlockFormat<Format>) {
      for_each_tile<RowScaled<Format>>(args);
    } else {
      for_each_tile<Format>(args);
    }
  }
};

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
