// SPDX-License-Identifier: Apache-2.0
//
// Sums of the products of a matrix's columns: X^T X.
#pragma once

#include "nibble/simd/impl.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace kernels {

// For first <= i < end and i <= j < k: sum(i, j) += sum over the rows r of x[r][i] * x[r][j].
// x: (m, k), rows `stride` elements apart. sums: the upper triangle of a matrix (k, k), row by row,
// each from the diagonal on. No alignment is needed.
//
// Sums over kRowsInFloats rows are floats (a rounding or two for each row), and those are added as
// doubles: relative to the sum of |x[r][i] x[r][j]|, the error is at most
// kRowsInFloats * 2^-24 * (1 + 2^-18), unless products overflow or are too small to be normal
// numbers.
struct AddSecondMoments {
  static constexpr Index kRowsInFloats = 32;
  // Columns are copied in blocks of so many: `first` and `end` are best multiples of it, `end` also
  // k itself.
  static constexpr Index kColumns = 32;
  using Function = void(const float* x, Index stride, Index m, Index k, Index first, Index end,
                        double* sums);
};

}}}  // namespace nibble::NIBBLE_ABI::kernels
