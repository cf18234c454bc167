// SPDX-License-Identifier: Apache-2.0
//
// The backward pass of activation functions, gates, products and soft caps of matrices. Errors:
// kernels/activation_back.hpp.
#pragma once

#include "nibble/kernels/activation_back.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/ops/rows.hpp"
#include "nibble/ops/unit_rows.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

// All matrices are (m, k), and the values of a row are contiguous. Results may be written over
// inputs, as the kernels say.

// Of y = Activation(x): dx = dy * Activation'(x).
template <class Activation>
void activate_back(Executor& executor, MatrixView<const float> x, MatrixView<const float> dy,
                   MatrixView<float> dx) noexcept {
  assert_rows_like(dx, x);
  assert_rows_like(dx, dy);
  const auto run = simd::kernel<kernels::ActivateBack<Activation>>();
  for_rows(executor, dx.extent(0), dx.extent(1),
           [&](Index row) { run(row_of(x, row), row_of(dy, row), row_of(dx, row), dx.extent(1)); });
}

// Of y = Activation(gate) * up: dgate = dy * up * Activation'(gate), dup = dy * Activation(gate).
template <class Activation>
void activate_gated_back(Executor& executor, MatrixView<const float> gate,
                         MatrixView<const float> up, MatrixView<const float> dy,
                         MatrixView<float> dgate, MatrixView<float> dup) noexcept {
  assert_rows_like(dgate, gate);
  assert_rows_like(dgate, up);
  assert_rows_like(dgate, dy);
  assert_rows_like(dgate, dup);
  const auto run = simd::kernel<kernels::ActivateGatedBack<Activation>>();
  for_rows(executor, dy.extent(0), dy.extent(1), [&](Index row) {
    run(row_of(gate, row), row_of(up, row), row_of(dy, row), row_of(dgate, row), row_of(dup, row),
        dy.extent(1));
  });
}

// Of y = a * b: da = dy * b, db = dy * a.
NIBBLE_LAZY void multiply_back(Executor& executor, MatrixView<const float> a,
                               MatrixView<const float> b, MatrixView<const float> dy,
                               MatrixView<float> da, MatrixView<float> db) noexcept {
  activate_gated_back<kernels::Identity>(executor, a, b, dy, da, db);
}

// Of y = cap * tanh(x / cap), from the output y: dx = dy * (1 - (y / cap)^2). cap > 0.
NIBBLE_LAZY void soft_cap_back(Executor& executor, MatrixView<const float> y, float cap,
                               MatrixView<const float> dy, MatrixView<float> dx) noexcept {
  assert_rows_like(dx, y);
  assert_rows_like(dx, dy);
  NIBBLE_ASSERT(cap > 0);
  const auto run = simd::kernel<kernels::SoftCapBack>();
  for_rows(executor, dx.extent(0), dx.extent(1), [&](Index row) {
    run(row_of(y, row), row_of(dy, row), 1 / cap, row_of(dx, row), dx.extent(1));
  });
}

}}}  // namespace nibble::NIBBLE_ABI::ops
