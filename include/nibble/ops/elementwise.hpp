// SPDX-License-Identifier: Apache-2.0
//
// Sums, products and dropout of matrices, element by element.
#pragma once

#include "nibble/kernels/dropout.hpp"
#include "nibble/kernels/elementwise.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/ops/rows.hpp"
#include "nibble/ops/unit_rows.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

// All matrices are (m, k), and the values of a row are contiguous; `out` may be one of the inputs.

// out = a + b: a residual connection.
NIBBLE_LAZY void add(Executor& executor, MatrixView<const float> a, MatrixView<const float> b,
                     MatrixView<float> out) noexcept {
  assert_rows_like(out, a);
  assert_rows_like(out, b);
  const auto run = simd::kernel<kernels::Add>();
  for_rows(executor, out.extent(0), out.extent(1), [&](Index row) {
    run(row_of(a, row), row_of(b, row), row_of(out, row), out.extent(1));
  });
}

// out = a * b.
NIBBLE_LAZY void multiply(Executor& executor, MatrixView<const float> a, MatrixView<const float> b,
                          MatrixView<float> out) noexcept {
  assert_rows_like(out, a);
  assert_rows_like(out, b);
  const auto run = simd::kernel<kernels::Multiply>();
  for_rows(executor, out.extent(0), out.extent(1), [&](Index row) {
    run(row_of(a, row), row_of(b, row), row_of(out, row), out.extent(1));
  });
}

// out = x * factor.
NIBBLE_LAZY void scale(Executor& executor, MatrixView<const float> x, float factor,
                       MatrixView<float> out) noexcept {
  assert_rows_like(out, x);
  const auto run = simd::kernel<kernels::Scale>();
  for_rows(executor, x.extent(0), x.extent(1),
           [&](Index row) { run(row_of(x, row), factor, row_of(out, row), x.extent(1)); });
}

// out = x with some elements dropped and the rest scaled up. Element (i, j) is number i * k + j of
// kernels/dropout.hpp, whatever the strides are. The default Dropout copies.
NIBBLE_LAZY void dropout(Executor& executor, MatrixView<const float> x,
                         const kernels::Dropout& dropout, MatrixView<float> out) noexcept {
  assert_rows_like(out, x);
  const Index k = x.extent(1);
  const auto run = simd::kernel<kernels::ApplyDropout>();
  for_rows(executor, x.extent(0), k,
           [&](Index row) { run(dropout, row * k, row_of(x, row), row_of(out, row), k); });
}

}}}  // namespace nibble::NIBBLE_ABI::ops
