// SPDX-License-Identifier: Apache-2.0

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_GEMM_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_GEMM_INL_H_
#undef NIBBLE_KERNELS_GEMM_INL_H_
#else
#define NIBBLE_KERNELS_GEMM_INL_H_
#endif

#include <algorithm>

#include "hwy/highway.h"
#include "nibble/kernels/gemm.hpp"
#include "nibble/kernels/pack-inl.h"
#include "nibble/kernels/prefetch-inl.h"
#include "nibble/kernels/registers-inl.h"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

namespace gemm_detail {

using kernels::GemmOperand;
using kernels::kGemmPanel;
using DF = PanelTag<float>;
using VF = hn::Vec<DF>;
inline constexpr Index kLanes = static_cast<Index>(hn::MaxLanes(DF()));

// A tile is kTileRows rows times kTileVectors vectors of C. Registers: one for each sum, one for
// each vector of B, and one for a value of A (none where an instruction can broadcast it).
//   AVX-512 (32): 12 * 2 + 2 + 1
//   AVX2    (16): 6 * 2 + 2 + 1
//   SSE     (16): 6 * 2 + 2 + 1, and the product before it is added
//   NEON    (32): 6 * 4 + 4 + 2
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
inline constexpr int kTileRows = 12, kTileVectors = 2;
#elif HWY_ARCH_X86
inline constexpr int kTileRows = 6, kTileVectors = 2;
#else
inline constexpr int kTileRows = 6, kTileVectors = 4;
#endif
inline constexpr Index kTileColumns = kTileVectors * kLanes;
static_assert(kernels::kGemmRowUnit % kTileRows == 0);
static_assert(kernels::kGemmColumnUnit % kTileColumns == 0);

// Packed rows of A: tiles of kTileRows rows, one after the other. Where the rows of A are
// contiguous, those of a tile are kGemmRowStride apart. Where its columns are, a tile has its
// kTileRows values of each k next to each other, padded to whole vectors. Both are copies, and a
// broadcast reads one as fast as the other.
inline constexpr Index kColumnStep = (kTileRows + kLanes - 1) / kLanes * kLanes;
static_assert(3 * kColumnStep <= 4 * kTileRows);
template <bool kByColumns>
inline constexpr Index kTileFloats =
    (kByColumns ? kColumnStep : Index{kTileRows}) * kernels::kGemmRowStride;
template <bool kByColumns>
inline constexpr Index kStepOfK = kByColumns ? kColumnStep : 1;
template <bool kByColumns>
inline constexpr Index kStepOfRow = kByColumns ? 1 : kernels::kGemmRowStride;

HWY_INLINE void pack_rows(const GemmOperand& a, Index m, Index k, float* HWY_RESTRICT out) {
  const Index end = (m + kTileRows - 1) / kTileRows * kTileRows;
  for (Index row = 0; row < m; ++row) {
    std::copy_n(a.data + row * a.stride, k, out + row * kernels::kGemmRowStride);
  }
  for (Index row = m; row < end; ++row) std::fill_n(out + row * kernels::kGemmRowStride, k, 0.0f);
}

// Copies whole vectors: aligned stores, and more values than a tile has. The columns of `a` are
// often a power of two apart, so that few of them fit in L1 at the same time: they are fetched into
// L2.
HWY_INLINE void pack_columns(const GemmOperand& a, Index m, Index k, float* HWY_RESTRICT out) {
  const DF d;
  for (Index i = 0; i < k; ++i) {
    const float* const from = a.data + i * a.stride;
    for (Index j = 0; j < m; j += 16) prefetch<2>(from, static_cast<size_t>(16 * a.stride + j));
    float* to = out + i * kColumnStep;
    Index row = 0;
    for (; row + kColumnStep <= m; row += kTileRows, to += kTileFloats<true>) {
      HWY_UNROLL(4) for (Index j = 0; j < kColumnStep; j += kLanes) {
        hn::StoreU(hn::LoadU(d, from + row + j), d, to + j);
      }
    }
    for (; row < m; row += kTileRows, to += kTileFloats<true>) {
      HWY_UNROLL(4) for (Index j = 0; j < kColumnStep; j += kLanes) {
        const Index left = HWY_MAX(m - row - j, 0);
        const VF v = hn::LoadN(d, from + row + HWY_MIN(j, m - row), static_cast<size_t>(left));
        hn::StoreU(v, d, to + j);
      }
    }
  }
}

// Packs one panel of up to 16 columns, each of which is contiguous.
HWY_INLINE void pack_panel_of_columns(const GemmOperand& b, Index k, Index n,
                                      float* HWY_RESTRICT panel) {
  Index i = 0;
  if (n == kGemmPanel) {
    const size_t stride = static_cast<size_t>(b.stride) * sizeof(float);
    for (; i + 4 <= k; i += 4) {
      pack_detail::transpose(reinterpret_cast<const uint8_t*>(b.data + i), stride,
                             [&](size_t word, size_t first, pack_detail::VW words) NIBBLE_ATTR {
                               float* const to =
                                   panel + (i + static_cast<Index>(word)) * kGemmPanel + first;
                               pack_detail::store(words, reinterpret_cast<uint8_t*>(to));
                             });
    }
  }
  for (; i < k; ++i) {
    for (Index j = 0; j < kGemmPanel; ++j) {
      panel[i * kGemmPanel + j] = j < n ? b.data[j * b.stride + i] : 0.0f;
    }
  }
}

// Packs kPanels panels of rows, all of whose columns exist, side by side: what is read is longer
// than a cache line, and asked for ahead.
template <Index kPanels>
HWY_INLINE void pack_whole_panels(const GemmOperand& b, Index k, float* HWY_RESTRICT panels) {
  constexpr Index kAhead = 8;
  const DF d;
  for (Index i = 0; i < k; ++i) {
    const float* const from = b.data + i * b.stride;
    HWY_UNROLL(4) for (Index p = 0; p < kPanels; ++p) {
      prefetch(from, static_cast<size_t>(kAhead * b.stride + p * kGemmPanel));
      HWY_UNROLL(4) for (Index j = 0; j < kGemmPanel; j += kLanes) {
        const VF v = hn::LoadU(d, from + p * kGemmPanel + j);
        hn::StoreU(v, d, panels + p * k * kGemmPanel + i * kGemmPanel + j);
      }
    }
  }
}

// Packs one panel of rows that has n columns, perhaps none.
HWY_INLINE void pack_part_of_panel(const GemmOperand& b, Index k, Index n,
                                   float* HWY_RESTRICT panel) {
  for (Index i = 0; i < k; ++i, panel += kGemmPanel) {
    std::copy_n(b.data + i * b.stride, n, panel);
    std::fill_n(panel + n, kGemmPanel - n, 0.0f);
  }
}

// Sums the products of a tile over k and stores them in `c`, or adds them to it. `b`: kTileColumns
// columns of panels, from any lane of the first one on. Not inlined: its loop is to have all the
// registers.
template <bool kByColumns>
HWY_NOINLINE void tile(const float* HWY_RESTRICT a, const float* HWY_RESTRICT b, Index k,
                       Index panel_floats, float* HWY_RESTRICT c, Index c_stride, bool adds) {
  using Sums = RegisterTile<DF, kTileRows, kTileVectors>;
  const DF d;
  // C is used only at the end; it may be on its way while the sums are made.
  for (int r = 0; r < kTileRows; ++r) {
    prefetch(c, static_cast<size_t>(r * c_stride));
    prefetch(c, static_cast<size_t>(r * c_stride + kTileColumns - 1));
  }
  Sums sums;
  HWY_UNROLL(16) for (int r = 0; r < kTileRows; ++r) {
    HWY_UNROLL(4) for (int v = 0; v < kTileVectors; ++v) { sums.set(r, v, hn::Zero(d)); }
  }
  const auto add_step = [&](Index i) NIBBLE_ATTR {
    typename Sums::Row row;
    HWY_UNROLL(4) for (int v = 0; v < kTileVectors; ++v) {
      const float* const panel = b + v * kLanes / kGemmPanel * panel_floats;
      row.set(0, v, hn::LoadU(d, panel + i * kGemmPanel + v * kLanes % kGemmPanel));
    }
    HWY_UNROLL(16) for (int r = 0; r < kTileRows; ++r) {
      const float x = a[i * kStepOfK<kByColumns> + r * kStepOfRow<kByColumns>];
      sums.multiply_add(r, hn::Set(d, x), row);
    }
  };
  Index left = k;
  for (; left >= 4; left -= 4) {
    HWY_UNROLL(4) for (Index i = 0; i < 4; ++i) { add_step(i); }
    a += 4 * kStepOfK<kByColumns>;
    b += 4 * kGemmPanel;
  }
  for (Index i = 0; i < left; ++i) add_step(i);
  HWY_UNROLL(16) for (int r = 0; r < kTileRows; ++r) {
    HWY_UNROLL(4) for (int v = 0; v < kTileVectors; ++v) {
      float* const to = c + r * c_stride + v * kLanes;
      VF sum = sums.get(r, v);
      if (adds) sum = hn::Add(hn::LoadU(d, to), sum);
      hn::StoreU(sum, d, to);
    }
  }
}

// The part of a tile that is in the matrix: n_rows rows and n_columns columns.
HWY_INLINE void put_part(const float* HWY_RESTRICT sums, Index n_rows, Index n_columns,
                         float* HWY_RESTRICT c, Index c_stride, bool adds) {
  for (Index r = 0; r < n_rows; ++r) {
    for (Index j = 0; j < n_columns; ++j) {
      const float sum = sums[r * kTileColumns + j];
      float& to = c[r * c_stride + j];
      to = adds ? to + sum : sum;
    }
  }
}

// Adds one block of k for all tiles. `args.rows` are packed; `panels` are those of the block, which
// begin with column 0.
template <bool kByColumns>
HWY_INLINE void add_block(const kernels::GemmArgs& args, const float* panels, Index k, bool adds) {
  HWY_ALIGN float part[kTileRows * kTileColumns];
  const Index panel_floats = k * kGemmPanel;
  for (Index column = args.first_column; column < args.end_column; column += kTileColumns) {
    const float* const b = panels + column / kGemmPanel * panel_floats + column % kGemmPanel;
    const Index n = HWY_MIN(args.end_column - column, kTileColumns);
    const float* a = args.rows;
    for (Index row = 0; row < args.m; row += kTileRows, a += kTileFloats<kByColumns>) {
      const Index m = HWY_MIN(args.m - row, Index{kTileRows});
      float* const c = args.c + row * args.c_stride + column;
      if (m == kTileRows && n == kTileColumns) {
        tile<kByColumns>(a, b, k, panel_floats, c, args.c_stride, adds);
      } else {
        tile<kByColumns>(a, b, k, panel_floats, part, kTileColumns, false);
        put_part(part, m, n, c, args.c_stride, adds);
      }
    }
  }
}

}  // namespace gemm_detail

template <>
struct Impl<kernels::PackGemmPanels> {
  static void run(const kernels::GemmOperand& b, Index k, Index n, float* panels) {
    using namespace gemm_detail;
    constexpr Index kUnit = kernels::kGemmColumnUnit;
    const Index end = (n + kUnit - 1) / kUnit * kUnit;
    Index column = 0;
    if (!b.by_columns) {
      for (; column + 4 * kGemmPanel <= n; column += 4 * kGemmPanel) {
        pack_whole_panels<4>(b.from(0, column), k, panels + column * k);
      }
    }
    for (; column < end; column += kGemmPanel) {
      const Index columns = HWY_MIN(HWY_MAX(n - column, 0), kGemmPanel);
      const GemmOperand at = b.from(0, HWY_MIN(column, n));
      if (b.by_columns) {
        pack_panel_of_columns(at, k, columns, panels + column * k);
      } else if (columns == kGemmPanel) {
        pack_whole_panels<1>(at, k, panels + column * k);
      } else {
        pack_part_of_panel(at, k, columns, panels + column * k);
      }
    }
  }
};

template <>
struct Impl<kernels::GemmRows> {
  static void run(const kernels::GemmArgs& args) {
    using namespace gemm_detail;
    const float* panels = args.panels;
    for (Index i = 0; i < args.k; i += args.k_block, panels += args.n_columns * args.k_block) {
      const Index k = HWY_MIN(args.k_block, args.k - i);
      const GemmOperand a = args.a.from(0, i);
      const bool adds = args.adds || i > 0;
      if (a.by_columns) {
        pack_columns(a, args.m, k, args.rows);
        add_block<true>(args, panels, k, adds);
      } else {
        pack_rows(a, args.m, k, args.rows);
        add_block<false>(args, panels, k, adds);
      }
    }
  }
};

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
