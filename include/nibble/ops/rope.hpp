// SPDX-License-Identifier: Apache-2.0
//
// Rotary position embedding of queries or keys, in place.
#pragma once

#include "nibble/kernels/pass.hpp"
#include "nibble/kernels/rope.hpp"
#include "nibble/ops/rope_table.hpp"
#include "nibble/ops/rows.hpp"
#include "nibble/ops/unit_rows.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

// Rotates the first rope_dim values of each head. `x` is (n_rows, n_heads * head_dim); the values
// of a row are contiguous. `cos` and `sin` are (n_positions, rope_dim / 2) from rope_table, also
// with contiguous values; row i of x uses their row position_of(i). Style: kernels::AdjacentPairs
// or kernels::HalfSplit. rope_dim <= head_dim. With kBack the rotation is the other way round: x is
// the gradient of what was rotated and becomes the gradient of what it was before.
template <class Style, bool kBack = false, class PositionOf>
void rope(Executor& executor, MatrixView<float> x, Index head_dim, MatrixView<const float> cos,
          MatrixView<const float> sin, PositionOf position_of) noexcept {
  const Index rope_dim = 2 * cos.extent(1);
  NIBBLE_ASSERT(head_dim >= 1 && rope_dim <= head_dim && x.extent(1) % head_dim == 0);
  NIBBLE_ASSERT(has_unit_rows(x));
  assert_rows_like(cos, sin);
  const auto run = simd::kernel<kernels::Rope<Style, kBack>>();
  for_rows(executor, x.extent(0), x.extent(1), [&](Index row) {
    const Index position = position_of(row);
    NIBBLE_ASSERT(position >= 0 && position < cos.extent(0));
    run(row_of(x, row), x.extent(1) / head_dim, head_dim, rope_dim, row_of(cos, position),
        row_of(sin, position));
  });
}

// The same, with one row of `cos` and `sin` for each row of x.
template <class Style, bool kBack = false>
void rope(Executor& executor, MatrixView<float> x, Index head_dim, MatrixView<const float> cos,
          MatrixView<const float> sin) noexcept {
  NIBBLE_ASSERT(cos.extent(0) == x.extent(0));
  rope<Style, kBack>(executor, x, head_dim, cos, sin, [](Index row) { return row; });
}

}}}  // namespace nibble::NIBBLE_ABI::ops
