// SPDX-License-Identifier: Apache-2.0

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_SECOND_MOMENTS_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_SECOND_MOMENTS_INL_H_
#undef NIBBLE_KERNELS_SECOND_MOMENTS_INL_H_
#else
#define NIBBLE_KERNELS_SECOND_MOMENTS_INL_H_
#endif

#include <algorithm>
#include <cstring>

#include "hwy/highway.h"
#include "nibble/kernels/registers-inl.h"
#include "nibble/kernels/second_moments.hpp"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Columns of x come from copies, in which those of one row are neighbours of the next row's: rows
// of x are often a power of two apart, and would fight for the same cache lines.
template <>
struct Impl<kernels::AddSecondMoments> {
  using D = PanelTag<float>;
  static constexpr int kLanes = static_cast<int>(hn::MaxLanes(D()));
  static constexpr int kPanel = 16;
  static constexpr int kVectors = kPanel / kLanes;
  // Rows of a tile of sums: eight vectors hide the latency of additions.
  static constexpr int kTileRows = 8 / kVectors;
  static constexpr int kColumns = static_cast<int>(kernels::AddSecondMoments::kColumns);
  static constexpr Index kRowsInFloats = kernels::AddSecondMoments::kRowsInFloats;
  static constexpr Index kRows = 4 * kRowsInFloats;  // of a copy: 16 KiB and 8 KiB
  static_assert(kColumns % kTileRows == 0 && kTileRows * kVectors == 8);

  NIBBLE_LAZY static void run(const float* x, Index stride, Index m, Index k, Index first,
                              Index end, double* sums) {
    HWY_ALIGN float left[kRows * kColumns];
    HWY_ALIGN float right[kRows * kPanel];
    for (; first < end; first += kColumns) {
      const Index n_left = std::min<Index>(kColumns, end - first);
      for (Index row = 0; row < m; row += kRows) {
        const Index n = (std::min)(kRows, m - row);
        const float* const rows = x + row * stride;
        copy<kColumns>(rows + first, stride, n, n_left, left);
        for (Index column = first; column < k; column += kPanel) {
          const Index n_right = std::min<Index>(kPanel, k - column);
          copy<kPanel>(rows + column, stride, n, n_right, right);
          // Tiles that begin below the panel's last column have sums of the triangle.
          const Index n_rows = (std::min)(n_left, column + n_right - first);
          for (Index i = 0; i < n_rows; i += kTileRows) {
            add_tile(left + i, right, n,
                     {k, first + i, column, std::min<Index>(kTileRows, n_rows - i), n_right}, sums);
          }
        }
      }
    }
  }

 private:
  struct Place {
    Index k;
    Index row, column;  // of the sums
    Index n_rows, n_columns;
  };

  // n rows of n_columns, with zeros up to kWidth.
  template <int kWidth>
  static void copy(const float* x, Index stride, Index n, Index n_columns, float* out) {
    for (Index r = 0; r < n; ++r, x += stride, out += kWidth) {
      if (n_columns == kWidth) {
        std::memcpy(out, x, kWidth * sizeof(float));
        continue;
      }
      for (Index c = 0; c < kWidth; ++c) out[c] = c < n_columns ? x[c] : 0.0f;
    }
  }

  // Adds a tile over n rows of the copies; sums below the diagonal are left out.
  static void add_tile(const float* left, const float* right, Index n, const Place& at,
                       double* sums) {
    constexpr int kSize = kTileRows * kPanel;
    HWY_ALIGN float floats[kSize];
    HWY_ALIGN double doubles[kSize] = {};
    for (Index row = 0; row < n; row += kRowsInFloats) {
      add_rows(left + row * kColumns, right + row * kPanel, (std::min)(kRowsInFloats, n - row),
               floats);
      for (int i = 0; i < kSize; ++i) doubles[i] += static_cast<double>(floats[i]);
    }
    for (Index r = 0; r < at.n_rows; ++r) {
      const Index i = at.row + r;
      double* const out = sums + (i * at.k - i * (i - 1) / 2 - i);  // of column j at j
      const double* const row = doubles + r * kPanel;
      for (Index c = std::max<Index>(0, i - at.column); c < at.n_columns; ++c) {
        out[at.column + c] += row[c];
      }
    }
  }

  static void add_rows(const float* left, const float* right, Index n, float* out) {
    RegisterTile<D, kTileRows, kVectors> tile;
    tile.fill(hn::Zero(D()));
    for (Index r = 0; r < n; ++r, left += kColumns, right += kPanel) {
      RegisterTile<D, 1, kVectors> row;
      row.load(right, 0);
      HWY_UNROLL(8) for (int i = 0; i < kTileRows; ++i) {
        tile.multiply_add(i, hn::Set(D(), left[i]), row);
      }
    }
    tile.store(out, kPanel);
  }
};

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
