// SPDX-License-Identifier: Apache-2.0
//
// The meaning of the nodes of across_layers.hpp; see pass.hpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <tuple>

#include "nibble/graph/across_layers.hpp"
#include "nibble/graph/apply_attention.hpp"
#include "nibble/graph/pass.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/ops/elementwise.hpp"
#include "nibble/ops/norm.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

template <class Side, class Body, class Pass>
constexpr auto apply(const Beside<Side, Body>& node, Pass& pass, Start) noexcept {
  Value<> side;
  pass.in_every_range([&] {
    pass.when(node.is_used, [&] {
      const auto made = apply(node.side, pass, Start{});
      side = {made.id, made.rows, made.column, made.stride, Dim<>{Index{made.width}}};
    });
  });
  pass.set_beside(side);
  const auto out = apply(node.body, pass, Start{});
  pass.step([](auto&) {}, side);  // it lives until here: all layers read it
  return out;
}

template <auto kTable, auto kNorm, class Pass, Index W>
constexpr auto apply(const LayerInputs<kTable, kNorm>& node, Pass& pass,
                     const Value<W>& x) noexcept {
  if (x.rows != Rows::all) pass.fail("layer_inputs() after output_rows() or pool()");
  if (x.is_shared) pass.fail("layer_inputs() would write to rows that others still need");
  if (node.width < 1 || x.width % node.width != 0) {
    pass.fail("layer_inputs(): columns that are not for whole layers");
  }
  pass.template weight_rows<kTable>(node.n_tokens, x.width, RowsOf::tokens);
  pass.template weight<kNorm>(0, node.width);
  const Scratch row_of_table =
      pass.scratch(static_cast<std::size_t>((std::max)(Index{x.width}, Index{0})) * sizeof(float));
  pass.step(
      [=](auto& run) {
        const MatrixView<float> rows = run.view(x);
        ops::rms_norm_heads(run.executor(), rows, node.width, run.vector(kNorm), node.eps);
        const Weight& table = run.weight(kTable);
        auto* const of_token = reinterpret_cast<float*>(run.memory(row_of_table).data());
        for (Index i = 0; i < rows.extent(0); ++i) {
          const Index token = run.step_args().tokens[static_cast<std::size_t>(i)];
          table.ops->row(table.data, table.n, table.k, token < 0 ? 0 : token, of_token);
          float* const row = &rows(i, 0);
          for (Index j = 0; j < rows.extent(1); ++j) {
            row[j] = node.norm_scale * row[j] + node.table_scale * of_token[j];
          }
        }
      },
      x, row_of_table);
  return x;
}

template <class Pass, Index W>
constexpr auto apply(const TimesLayerInput&, Pass& pass, const Value<W>& x) noexcept {
  const Value<> side = pass.beside();
  const Index width = x.width;
  if (side.id < 0 || side.rows != x.rows || (pass.layer() + 1) * width > side.width) {
    pass.fail("times_layer_input() without a side that has columns for this layer, beside()");
  }
  if (x.is_shared) pass.fail("times_layer_input() would write to rows that others still need");
  pass.step(
      [=](auto& run) {
        Value<> own = side;
        own.column += run.layer() * width;
        own.width = Dim<>{width};
        ops::multiply(run.executor(), run.view(x), run.view(own), run.view(x));
      },
      x, side);
  return x;
}

template <class H, class Pass, Index W>
constexpr auto apply(const ShareKv<H>& node, Pass& pass, const Value<W>& q) noexcept {
  const ops::AttentionShape shape = checked_shape(node.heads, pass, q);
  pass.shares_cache(pass.resolve(node.layer), shape.n_kv_heads, shape.head_dim);
  return q;
}

template <class H, class Pass, Index Q, Index K>
constexpr auto apply(const ValueNorm<H>& node, Pass& pass, const Qkv<Q, K>& qkv) noexcept {
  check_widths(node.heads, qkv, pass);
  const auto v = std::get<2>(qkv);
  if (v.is_shared) pass.fail("value_norm() would write to rows that others still need");
  const Index head_dim = pass.resolve(node.heads.head_dim);
  const float eps = node.eps;
  pass.step([=](auto& run) { ops::rms_norm_heads(run.executor(), run.view(v), head_dim, {}, eps); },
            std::get<0>(qkv), std::get<1>(qkv), v);
  return qkv;
}

template <auto kSlot, class Pass, Index W>
constexpr auto apply(const ScaleBy<kSlot>&, Pass& pass, const Value<W>& x) noexcept {
  pass.template weight<kSlot>(0, 1);
  pass.step(
      [=](auto& run) {
        const VectorView<const float> factor = run.vector(kSlot);
        if (factor.data() == nullptr) return;
        ops::scale(run.executor(), run.view(x), factor(0), run.view(x));
      },
      x);
  return x;
}

}}}  // namespace nibble::NIBBLE_ABI::graph
