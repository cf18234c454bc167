// SPDX-License-Identifier: Apache-2.0
//
// Matrix products with sparse weights (quant/sparse.hpp).
//
// Few rows of activations: a tile goes through a panel once and expands each step for itself. Many:
// a part of a panel is expanded for all of them, so that it stays in L1, and sums are in memory
// between parts. The order of the sums is the same.

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_MATMUL_SPARSE_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_MATMUL_SPARSE_INL_H_
#undef NIBBLE_KERNELS_MATMUL_SPARSE_INL_H_
#else
#define NIBBLE_KERNELS_MATMUL_SPARSE_INL_H_
#endif

#include "hwy/highway.h"
#include "nibble/kernels/matmul_blocks16x4-inl.h"
#include "nibble/kernels/matmul_masked-inl.h"
#include "nibble/kernels/matmul_two_of_four-inl.h"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// ---- The walk over panels ----------------------------------------------------------------------

// As high as fits the registers beside a whole panel: TileShape's narrow tiles.
template <class Format, int kRows>
HWY_INLINE void compute_sparse_tile(const kernels::MatmulArgs& args, Index row, Index panel) {
  using L = quant::Packed<Format>;
  HWY_ALIGN float sums[2][kRows * quant::kPanelRows];
  const auto input = args.input.rows_from(row);
  const auto compute = [&](const std::byte* matrix, float* out) NIBBLE_ATTR {
    const sparse_detail::StreamPrefetcher prefetcher{
        args.tuning.weights, args.tuning.weights_distance,
        SparsePanel<Format>::lines_of_step(L::panel_bytes(matrix, panel), args.k)};
    SparsePanel<Format>::template sums_of_rows<kRows>(input, args.k, L::panel(matrix, panel),
                                                      prefetcher, out);
  };
  compute(args.weights, sums[0]);
  if (args.gate != nullptr) compute(args.gate, sums[1]);
  args.finish(args, sums[0], sums[1], {row, panel * quant::kPanelRows, kRows, kVectors});
}

template <class Format, int kMaxRows>
HWY_NOINLINE void compute_sparse_rows(const kernels::MatmulArgs& args, Index panel) {
  using L = quant::Packed<Format>;
  constexpr Index kMaxSums = 64;  // rows whose sums are in memory
  HWY_ALIGN float sums[2][kMaxSums * quant::kPanelRows];
  for (Index row = 0; row < args.m; row += kMaxSums) {
    const Index m = HWY_MIN(kMaxSums, args.m - row);
    const auto input = args.input.rows_from(row);
    const auto compute = [&](const std::byte* matrix, float* out) NIBBLE_ATTR {
      const sparse_detail::StreamPrefetcher prefetcher{
          args.tuning.many_rows, args.tuning.weights_distance,
          SparsePanel<Format>::lines_of_step(L::panel_bytes(matrix, panel), args.k)};
      SparsePanel<Format>::template sums_of_many<kMaxRows>(
          input, m, args.k, L::panel(matrix, panel), prefetcher, out);
    };
    compute(args.weights, sums[0]);
    if (args.gate != nullptr) compute(args.gate, sums[1]);
    args.finish(args, sums[0], sums[1],
                {row, panel * quant::kPanelRows, static_cast<int>(m), kVectors});
  }
}

template <quant::SparseFormat Format>
struct Impl<kernels::Matmul<Format>> {
  static void run(const kernels::MatmulArgs& args) {
    constexpr int kMaxRows = TileShape<Format>::kNarrowRows;
    for (Index panel = args.first_panel; panel < args.end_panel; ++panel) {
      if (args.m > kMaxRows) {
        compute_sparse_rows<Format, kMaxRows>(args, panel);
        continue;
      }
      Index row = 0;
      if constexpr (kMaxRows >= 4) {
        for (; args.m - row >= 4; row += 4) compute_sparse_tile<Format, 4>(args, row, panel);
      }
      if constexpr (kMaxRows >= 2) {
        for (; args.m - row >= 2; row += 2) compute_sparse_tile<Format, 2>(args, row, panel);
      }
      for (; row < args.m; ++row) compute_sparse_tile<Format, 1>(args, row, panel);
    }
  }
};

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
