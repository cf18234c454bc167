// SPDX-License-Identifier: Apache-2.0
//
// Activations in 8 bits with a scale that is known before: rows of them, made from floats or by a
// norm; and functions of such rows by a table. The numbers: kernels/quantize_static.hpp.
#pragma once

#include "nibble/kernels/quantize_static.hpp"
#include "nibble/ops/matmul_input.hpp"
#include "nibble/ops/norm.hpp"
#include "nibble/ops/quantize_rows.hpp"
#include "nibble/quant/code_table.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

// Rows of codes that all have one scale, known before; it must be usable (quant::is_usable).
struct StaticRows {
  QuantizedRows<0> rows;
  quant::StaticScale scale;
};

// For products with I8Channel: ActivationScales::affine if the scale is unsigned.
inline kernels::MatmulInput matmul_input(const StaticRows& x) noexcept {
  kernels::MatmulInput input = matmul_input(x.rows);
  input.zero_point = x.scale.stored_zero();
  return input;
}

// out = x in 8 bits; x as in quantize_rows of quantize_rows.hpp. No overlap.
NIBBLE_LAZY void quantize_rows(Executor& executor, MatrixView<const float> x,
                               const StaticRows& out) noexcept {
  NIBBLE_ASSERT(x.extent(0) == out.rows.m && x.extent(1) == out.rows.k);
  NIBBLE_ASSERT(x.stride(1) == 1 || x.extent(1) <= 1);
  NIBBLE_ASSERT(quant::is_usable(out.scale));
  const auto quantize = simd::kernel<kernels::QuantizeRowStatic>();
  for_rows(executor, out.rows.m, out.rows.k, [&](Index row) {
    quantize(x.data() + row * x.stride(0), out.rows.k, out.scale, out.rows[row]);
  });
}

namespace detail {

template <class Kernel>
void static_norm(Executor& executor, MatrixView<const float> x, VectorView<const float> weight,
                 VectorView<const float> bias, float eps, const StaticRows& out) noexcept {
  const Index m = x.extent(0), k = x.extent(1);
  NIBBLE_ASSERT(k >= 1 && eps >= 0.0f && quant::is_usable(out.scale));
  NIBBLE_ASSERT(is_matrix_of_rows(x, m, k) && is_output(out.rows, m, k));
  kernels::NormArgs args;
  args.k = k;
  args.eps = eps;
  args.weight = operand(weight, k);
  args.bias = operand(bias, k);
  const auto kernel = simd::kernel<Kernel>();
  for_rows(executor, m, k, [&](Index row) {
    kernels::NormArgs of_row = args;
    of_row.x = x.data() + row * x.stride(0);
    kernel(of_row, out.scale, out.rows[row]);
  });
}

}  // namespace detail

// As in norm.hpp, with the codes that quantize_rows() of the norm's floats gives, bit for bit.
NIBBLE_LAZY void rms_norm(Executor& executor, MatrixView<const float> x,
                          VectorView<const float> weight, float eps,
                          const StaticRows& out) noexcept {
  detail::static_norm<kernels::RmsNormStatic>(executor, x, weight, {}, eps, out);
}
NIBBLE_LAZY void layer_norm(Executor& executor, MatrixView<const float> x,
                            VectorView<const float> weight, VectorView<const float> bias, float eps,
                            const StaticRows& out) noexcept {
  detail::static_norm<kernels::LayerNormStatic>(executor, x, weight, bias, eps, out);
}

// out = the function of `table`, element by element, of codes that have the scale the table was
// made for. out.scale must be table.to(); `out` may have the rows of `x`.
NIBBLE_LAZY void map_codes(Executor& executor, const quant::CodeTable& table, const StaticRows& x,
                           const StaticRows& out) noexcept {
  NIBBLE_ASSERT(x.rows.m == out.rows.m && x.rows.k == out.rows.k && out.scale == table.to());
  const auto map = simd::kernel<kernels::MapCodes>();
  for_rows(executor, out.rows.m, out.rows.k, [&](Index row) {
    const kernels::QuantizedRow from = x.rows[row];
    map(table.data(), from.codes, *from.scales, out.rows.k, out.scale.scale, out.rows[row]);
  });
}

}}}  // namespace nibble::NIBBLE_ABI::ops
