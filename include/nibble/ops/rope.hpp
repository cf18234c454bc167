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

// Turns the first rope_dim values of each head. `x` is (n_tokens, n_heads * head_dim) with the
// values of a row next to each other; `cos` and `sin` are (n_tokens, rope_dim / 2) of rope_table,
// rows likewise. Style: kernels::AdjacentPairs or kernels::HalfSplit. rope_dim <= head_dim.
template <class Style>
void rope(Executor& executor, MatrixView<float> x, Index head_dim, MatrixView<const float> cos,
          MatrixView<const float> sin) noexcept {
  const Index rope_dim = 2 * cos.extent(1);
  NIBBLE_ASSERT(head_dim >= 1 && rope_dim <= head_dim && x.extent(1) % head_dim == 0);
  NIBBLE_ASSERT(cos.extent(0) == x.extent(0) && has_unit_rows(x));
  assert_rows_like(cos, sin);
  const auto run = simd::kernel<kernels::Rope<Style>>();
  for_rows(executor, x.extent(0), x.extent(1), [&](Index row) {
    run(row_of(x, row), x.extent(1) / head_dim, head_dim, rope_dim, row_of(cos, row),
        row_of(sin, row));
  });
}

}}}  // namespace nibble::NIBBLE_ABI::ops
