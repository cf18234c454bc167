// SPDX-License-Identifier: Apache-2.0
//
// The meaning of each node; see pass.hpp.
#pragma once

#include <algorithm>
#include <cstring>
#include <span>
#include <tuple>

#include "nibble/graph/apply_attention.hpp"
#include "nibble/graph/apply_norms.hpp"
#include "nibble/graph/apply_products.hpp"
#include "nibble/graph/apply_recurrent.hpp"
#include "nibble/graph/expr.hpp"
#include "nibble/graph/pass.hpp"
#include "nibble/ops/activation.hpp"
#include "nibble/ops/elementwise.hpp"
#include "nibble/ops/rows.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

// ---- Mistakes ----------------------------------------------------------------------------------

// Takes what no other apply() takes.
template <Expr Node, class Pass, class In>
constexpr auto apply(const Node&, Pass&, const In&) noexcept {
  if constexpr (std::is_same_v<In, Start>) {
    static_assert(
        detail::kNever<Node>,
        "nibble: an expression starts with embedding() or position_embedding(), or a fork "
        "of them; this node (Node = ...) needs rows");
  } else {
    static_assert(
        detail::kNever<Node, In>,
        "nibble: this node (Node = ...) does not take what stands before it (In = ...): "
        "multiply() and sum() take a fork of two equal widths, rope() and cache_kv() "
        "(q, k, v), others one matrix; a node of your own needs an apply() beside its type");
  }
  return Value<>{};
}

// ---- Composition -------------------------------------------------------------------------------

// Applies the nodes from index kFirst on.
template <std::size_t kFirst = 0, class Nodes, class Pass, class In>
NIBBLE_COLD constexpr auto apply_from(const Nodes& nodes, Pass& pass, const In& in) noexcept {
  if constexpr (kFirst == std::tuple_size_v<Nodes>) {
    return in;
  } else {
    using This = std::tuple_element_t<kFirst, Nodes>;
    const auto out = apply(std::get<kFirst>(nodes), pass, in);
    if constexpr (!kIsInPlace<This> && requires { in.id == out.id; }) {
      if (in.id == out.id) {
        pass.fail("a node works in place and kIsInPlace does not say so");
      }
    }
    return apply_from<kFirst + 1>(nodes, pass, out);
  }
}
template <class... Nodes, class Pass, class In>
constexpr auto apply(const Seq<Nodes...>& node, Pass& pass, const In& in) noexcept {
  return apply_from(node.nodes, pass, in);
}

constexpr Start shared(Start start) noexcept { return start; }
template <Index W>
constexpr Value<W> shared(Value<W> x) noexcept {
  x.is_shared = true;
  return x;
}
template <class... Values>
constexpr auto shared(const std::tuple<Values...>& values) noexcept {
  return std::apply([](const auto&... x) { return std::tuple{shared(x)...}; }, values);
}

// Applies a body whose input is still needed afterwards: the body of a residual, or one branch of a
// fork.
template <class Body, class Pass, class In>
NIBBLE_COLD constexpr auto apply_body(const Body& body, Pass& pass, const In& x) noexcept {
  static_assert(!kChangesInput<Body>,
                "nibble: this residual or branch of a fork (Body = ...) begins with a node that "
                "works in place: it would change the rows that others still need");
  return apply(body, pass, shared(x));
}

template <class... Branches, class Pass, class In>
constexpr auto apply(const Fork<Branches...>& node, Pass& pass, const In& x) noexcept {
  return std::apply(
      [&](const auto&... b) { return std::tuple{apply_body(b, pass, x)...}; },  // in order
      node.branches);
}

template <class Body, class Pass, Index W>
constexpr auto apply(const Residual<Body>& node, Pass& pass, const Value<W>& x) noexcept {
  const auto y = apply_body(node.body, pass, x);
  if constexpr (requires { y.id; }) {
    check_residual<W, decltype(y.width)::kStatic>(pass, x, y, y.width);
    pass.step([=](auto& run) { ops::add(run.executor(), run.view(x), run.view(y), run.view(x)); },
              x, y);
  } else {
    static_assert(detail::kNever<Body>, "nibble: residual(): the body gives several results");
  }
  return x;
}

template <class Body, class Pass, Index W>
requires(!kIsNorm<Body>) constexpr auto apply(const InPlace<Body>& node, Pass& pass,
                                              const Value<W>& x) noexcept {
  const auto y = apply_body(node.body, pass, x);
  if constexpr (requires { y.id; }) {
    static_assert(detail::kMayBeEqual<W, decltype(y.width)::kStatic>,
                  "nibble: in_place(): the body gives rows of another width than it is given");
    if (y.width != x.width || y.rows != x.rows || y.id == x.id) {
      pass.fail("in_place(): the body does not give new rows like those that it is given");
    }
    pass.step([=](auto& run) { ops::copy_rows(run.executor(), run.view(y), run.view(x)); }, x, y);
  } else {
    static_assert(detail::kNever<Body>, "nibble: in_place(): the body gives several results");
  }
  return x;
}

template <class Body, class Pass, class In>
requires(!std::is_same_v<In, Start>) constexpr auto apply(const When<Body>& node, Pass& pass,
                                                          const In& x) noexcept {
  static_assert(
      kIsInPlace<Body>,
      "nibble: when(): the body works in place (residual, in_place, ...), so that there is "
      "something to pass on where it is left out");
  pass.when(pass.resolve(node.condition), [&] { apply(node.body, pass, x); });
  return x;
}

template <class Body, Index N, class Pass, Index W>
constexpr auto apply(const Repeat<Body, N>& node, Pass& pass, const Value<W>& x) noexcept {
  static_assert(
      kIsInPlace<Body>,
      "nibble: repeat(): the body works in place (residual, in_place, when, ...); a node of "
      "your own that does says so with kIsInPlace");
  static_assert(!kHasRepeat<Body>, "nibble: a repeat() within a repeat(): layers are one list");
  pass.repeat(node.n, x, [&] {
    const auto y = apply(node.body, pass, x);
    if (y.id != x.id) pass.fail("repeat(): the body does not give the rows that it is given");
  });
  return x;
}

// ---- Leaves ------------------------------------------------------------------------------------

// Looks up rows of a matrix: row i of `out` is row index_of(i) of the matrix, times `scale`. If
// index_of(i) is negative, row i is not written.
template <auto kSlot, class Run, class Out, class IndexOf>
void look_up(Run& run, const Out& out, float scale, const IndexOf& index_of) noexcept {
  const Weight& table = run.weight(kSlot);
  const MatrixView<float> rows = run.view(out);
  ops::for_rows(run.executor(), rows.extent(0), rows.extent(1), [&](Index i) {
    const Index index = index_of(i);
    if (index < 0) return;
    NIBBLE_ASSERT(index < table.n);
    float* const row = rows.data() + i * rows.stride(0);
    table.ops->row(table.data, table.n, table.k, index, row);
    if (scale == 1) return;
    for (Index j = 0; j < rows.extent(1); ++j) row[j] *= scale;
  });
}

template <auto kSlot, Index W, class Pass>
constexpr auto apply(const Embedding<kSlot, W>& node, Pass& pass, Start) noexcept {
  const auto out = pass.make(pass.resolve(node.width), Rows::all);
  pass.template weight_rows<kSlot>(node.n_rows, out.width, RowsOf::tokens);
  const float scale = node.scale, given_scale = node.given_scale;
  pass.step(
      [=](auto& run) {
        const Step& step = run.step_args();
        look_up<kSlot>(run, out, scale,
                       [&](Index i) { return Index{step.tokens[static_cast<std::size_t>(i)]}; });
        if (step.rows.data() == nullptr) return;
        const MatrixView<float> rows = run.view(out);
        for (Index i = 0; i < rows.extent(0); ++i) {
          if (step.tokens[static_cast<std::size_t>(i)] >= 0) continue;
          NIBBLE_ASSERT(step.rows.extent(1) == rows.extent(1));
          for (Index j = 0; j < rows.extent(1); ++j) rows(i, j) = step.rows(i, j) * given_scale;
        }
      },
      out);
  return out;
}

template <auto kSlot, Index W, class Pass>
constexpr auto apply(const PositionEmbedding<kSlot, W>& node, Pass& pass, Start) noexcept {
  const auto out = pass.make(pass.resolve(node.width), Rows::all);
  pass.template weight_rows<kSlot>(node.n_rows, out.width, RowsOf::positions);
  pass.max_positions(node.n_rows);
  pass.step(
      [=](auto& run) {
        look_up<kSlot>(run, out, 1, [&](Index i) { return run.step_args().position_of(i); });
      },
      out);
  return out;
}

template <class Activation, class Pass, Index W>
constexpr auto apply(const Activate<Activation>&, Pass& pass, const Value<W>& x) noexcept {
  const auto out = pass.make(x.width, x.rows);
  pass.step(
      [=](auto& run) { ops::activate<Activation>(run.executor(), run.view(x), run.view(out)); }, x,
      out);
  return out;
}

template <class Pass, Index W>
constexpr auto apply(const Scale& node, Pass& pass, const Value<W>& x) noexcept {
  const float factor = pass.resolve(node.factor);
  pass.step(
      [=](auto& run) {
        if (factor != 1) ops::scale(run.executor(), run.view(x), factor, run.view(x));
      },
      x);
  return x;
}

template <auto kSlot, class Pass, Index W>
constexpr auto apply(const AddRow<kSlot>&, Pass& pass, const Value<W>& x) noexcept {
  pass.template weight_rows<kSlot>(0, x.width, RowsOf::nothing);
  const Scratch scratch = pass.scratch(static_cast<std::size_t>(x.width) * sizeof(float));
  pass.step(
      [=](auto& run) {
        const Weight& table = run.weight(kSlot);
        if (!table) return;
        auto* const row = reinterpret_cast<float*>(run.memory(scratch).data());
        table.ops->row(table.data, table.n, table.k, 0, row);
        const MatrixView<float> rows = run.view(x);
        for (Index i = 0; i < rows.extent(0); ++i) {
          const MatrixView<float> to = rows.rows(i, 1);
          ops::add(run.executor(), to, MatrixView<const float>(row, 1, rows.extent(1)), to);
        }
      },
      x, scratch);
  return x;
}

template <class Pass, Index W>
constexpr auto apply(const CapRows& node, Pass& pass, const Value<W>& x) noexcept {
  const float cap = node.cap;
  pass.step(
      [=](auto& run) {
        if (cap != 0) ops::soft_cap(run.executor(), run.view(x), cap, run.view(x));
      },
      x);
  return x;
}

template <class Pass, Index W>
constexpr auto apply(const Square&, Pass& pass, const Value<W>& x) noexcept {
  pass.step(
      [=](auto& run) { ops::multiply(run.executor(), run.view(x), run.view(x), run.view(x)); }, x);
  return x;
}

template <class Pass, Index W>
constexpr auto apply(const Dropout& node, Pass& pass, const Value<W>& x) noexcept {
  const Index place = pass.place();
  check_probability(pass, node.probability);
  pass.step(
      [=](auto& run) {
        if (!run.training()) return;
        ops::dropout(run.executor(), run.view(x), run.dropout(node.probability, place),
                     run.view(x));
      },
      x);
  return x;
}

// Combines a pair of results element by element, into the first one.
template <class Pass, Index V, Index W, class F>
constexpr auto apply_pair(Pass& pass, const std::tuple<Value<V>, Value<W>>& pair,
                          F compute) noexcept {
  static_assert(detail::kMayBeEqual<V, W>,
                "nibble: multiply() or sum() of results whose widths differ");
  const auto x = std::get<0>(pair);
  const auto y = std::get<1>(pair);
  if (x.width != y.width) pass.fail("multiply() or sum() of results whose widths differ");
  if (x.rows != y.rows) pass.fail("multiply() or sum(): output_rows() in one of the two only");
  if (x.is_shared) {
    pass.fail("multiply() or sum() would write to the first of its pair, which others still need");
  }
  pass.step([=](auto& run) { compute(run.executor(), run.view(x), run.view(y), run.view(x)); }, x,
            y);
  return x;
}
template <class Pass, Index V, Index W>
constexpr auto apply(const Multiply&, Pass& pass,
                     const std::tuple<Value<V>, Value<W>>& pair) noexcept {
  return apply_pair(pass, pair, [](auto&&... args) { ops::multiply(args...); });
}
template <class Pass, Index V, Index W>
constexpr auto apply(const Sum&, Pass& pass, const std::tuple<Value<V>, Value<W>>& pair) noexcept {
  return apply_pair(pass, pair, [](auto&&... args) { ops::add(args...); });
}

template <class Activation, class Pass, Index V, Index W>
constexpr auto apply(const Gate<Activation>&, Pass& pass,
                     const std::tuple<Value<V>, Value<W>>& pair) noexcept {
  return apply_pair(pass, pair, [](auto&&... args) { ops::activate_gated<Activation>(args...); });
}

template <Index... Ws, class Pass, Index W>
constexpr auto apply(const Split<Ws...>& node, Pass& pass, const Value<W>& x) noexcept {
  static_assert(W < 0 || ((Ws < 0) || ...) || (Ws + ... + 0) == W,
                "nibble: split(): the widths do not add up to the columns that there are");
  return std::apply(
      [&](auto... widths) {
        Index column = x.column;
        const auto part = [&]<Index V>(Dim<V> width) {
          const Value<V> value = {x.id, x.rows, column, x.stride, width, x.is_shared};
          column += width;
          return value;
        };
        const auto parts = std::tuple{part(pass.resolve(widths))...};
        if (column - x.column != x.width) {
          pass.fail("split(): the widths do not add up to the columns that there are");
        }
        return parts;
      },
      node.widths);
}

// ---- Rows and names ----------------------------------------------------------------------------

template <class Pass, Index W>
constexpr auto apply(const OutputRows&, Pass& pass, const Value<W>& x) noexcept {
  const auto out = pass.make(x.width, Rows::outputs);
  pass.step(
      [=](auto& run) {
        const MatrixView<float> from = run.view(x), to = run.view(out);
        const bool is_chosen = x.rows == Rows::outputs;  // these are the output rows already
        for (Index i = 0; i < to.extent(0); ++i) {
          const Index row =
              is_chosen ? i : run.step_args().output_rows[static_cast<std::size_t>(i)];
          std::memcpy(to.data() + i * to.stride(0), from.data() + row * from.stride(0),
                      static_cast<std::size_t>(to.extent(1)) * sizeof(float));
        }
      },
      x, out);
  return out;
}

template <class Pass, Index W>
constexpr auto apply(const Pool& node, Pass& pass, const Value<W>& x) noexcept {
  if (x.rows != Rows::all) pass.fail("pool() after output_rows() or pool()");
  pass.both_ways();
  const auto out = pass.make(x.width, Rows::segments);
  const Pooling pooling = node.pooling;
  pass.step(
      [=](auto& run) {
        const MatrixView<const float> from = run.view(x);
        const MatrixView<float> to = run.view(out);
        for (Index i = 0; i < to.extent(0); ++i) {
          const Segment& s = run.step_args().segments[static_cast<std::size_t>(i)];
          const Index row = s.first_row + (pooling == Pooling::last ? s.n_rows - 1 : 0);
          const Index n = pooling == Pooling::mean ? s.n_rows : 1;
          for (Index j = 0; j < to.extent(1); ++j) {
            double sum = 0;
            for (Index k = 0; k < n; ++k) sum += static_cast<double>(from(row + k, j));
            to(i, j) = static_cast<float>(sum / static_cast<double>(n));
          }
        }
      },
      x, out);
  return out;
}

template <Label kName, class Pass, Index W>
constexpr auto apply(const Tap<kName>&, Pass& pass, const Value<W>& x) noexcept {
  pass.template observe<kName>(x);
  return x;
}
template <Label... kNames, class Pass, class... Values>
constexpr auto apply(const Tap<kNames...>&, Pass& pass,
                     const std::tuple<Values...>& values) noexcept {
  if constexpr (sizeof...(kNames) == sizeof...(Values)) {
    [&]<std::size_t... Is>(std::index_sequence<Is...>) {
      (pass.template observe<kNames>(std::get<Is>(values)), ...);
    }
    (std::index_sequence_for<Values...>{});
  } else {
    static_assert(detail::kNever<Tap<kNames...>>,
                  "nibble: tap(): another number of names than of results");
  }
  return values;
}

}}}  // namespace nibble::NIBBLE_ABI::graph
