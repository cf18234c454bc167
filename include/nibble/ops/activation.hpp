// SPDX-License-Identifier: Apache-2.0
//
// Activation functions of matrices, alone and as the gate of a gated feed-forward layer. Which
// functions there are and how exact they are: kernels/activation.hpp.
#pragma once

#include "nibble/kernels/activation.hpp"
#include "nibble/kernels/elementwise.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/ops/rows.hpp"
#include "nibble/ops/unit_rows.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

// out = Activation(x). Both (m, k); the values of a row are contiguous; `out` may be `x`.
template <class Activation>
void activate(Executor& executor, MatrixView<const float> x, MatrixView<float> out) noexcept {
  assert_rows_like(out, x);
  const auto run = simd::kernel<kernels::Activate<Activation>>();
  for_rows(executor, x.extent(0), x.extent(1),
           [&](Index row) { run(row_of(x, row), row_of(out, row), x.extent(1)); });
}

// out = Activation(gate) * up. All (m, k); the values of a row are contiguous; `out` may be `gate`
// or `up`.
template <class Activation>
void activate_gated(Executor& executor, MatrixView<const float> gate, MatrixView<const float> up,
                    MatrixView<float> out) noexcept {
  assert_rows_like(out, gate);
  assert_rows_like(out, up);
  const auto run = simd::kernel<kernels::ActivateGated<Activation>>();
  for_rows(executor, out.extent(0), out.extent(1), [&](Index row) {
    run(row_of(gate, row), row_of(up, row), row_of(out, row), out.extent(1));
  });
}

// out = cap * tanh(x / cap).
NIBBLE_LAZY void soft_cap(Executor& executor, MatrixView<const float> x, float cap,
                          MatrixView<float> out) noexcept {
  assert_rows_like(out, x);
  const auto scale = simd::kernel<kernels::Scale>();
  const auto tanh = simd::kernel<kernels::Activate<kernels::Tanh>>();
  for_rows(executor, x.extent(0), x.extent(1), [&](Index row) {
    scale(row_of(x, row), 1 / cap, row_of(out, row), x.extent(1));
    tanh(row_of(out, row), row_of(out, row), x.extent(1));
    scale(row_of(out, row), cap, row_of(out, row), x.extent(1));
  });
}

NIBBLE_LAZY void silu(Executor& executor, MatrixView<const float> x,
                      MatrixView<float> out) noexcept {
  activate<kernels::Silu>(executor, x, out);
}
NIBBLE_LAZY void gelu(Executor& executor, MatrixView<const float> x,
                      MatrixView<float> out) noexcept {
  activate<kernels::GeluErf>(executor, x, out);
}
NIBBLE_LAZY void gelu_tanh(Executor& executor, MatrixView<const float> x,
                           MatrixView<float> out) noexcept {
  activate<kernels::GeluTanh>(executor, x, out);
}
NIBBLE_LAZY void relu(Executor& executor, MatrixView<const float> x,
                      MatrixView<float> out) noexcept {
  activate<kernels::Relu>(executor, x, out);
}

}}}  // namespace nibble::NIBBLE_ABI::ops
