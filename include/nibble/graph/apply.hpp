// SPDX-License-Identifier: Apache-2.0
//
// What each node means. apply(node, pass, input) walks an expression; the pass decides what the
// walk does: a Planner (plan.hpp) records how long each result lives, a Runner (run.hpp) computes
// it. Because both take the same walk, a plan cannot differ from what runs.
//
// A pass offers
//   make(width, rows)        a new matrix of f32 rows
//   scratch(bytes)           untyped memory for the next step
//   step(f, used...)         f(runner) reads and writes the values named; each step ends the
//                            lifetime of what no later step names
//   repeat(n, body)          body, n times, with the weights of layer 0, 1, …
//   observe<name>(value)     shows a value to whoever watches
//   count(rows), limits()    how many rows at most
// and FormatTypes, the weight formats it compiles.
#pragma once

#include <span>
#include <tuple>

#include "nibble/graph/expr.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/ops/activation.hpp"
#include "nibble/ops/attention.hpp"
#include "nibble/ops/attention_steps.hpp"
#include "nibble/ops/elementwise.hpp"
#include "nibble/ops/embedding.hpp"
#include "nibble/ops/matmul.hpp"
#include "nibble/ops/matmul_input.hpp"
#include "nibble/ops/norm.hpp"
#include "nibble/ops/rope.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

// How many rows a value has: one for each token of a run, or one for each output wanted of it.
enum class Rows : unsigned char { tokens, outputs };

// A matrix of f32 rows, or some columns of one: (rows, width) at `column` of rows `stride` long.
template <Index W = kDynamic>
struct Value {
  int id = -1;
  Rows rows = Rows::tokens;
  Index column = 0;
  Index stride = 0;
  [[no_unique_address]] Dim<W> width;
  bool last_rows_only = false;  // the value has a row per token, but only the outputs' are meant
};

struct Scratch {
  int id = -1;
};

// The input of a model's first node: the tokens of the run.
struct Start {};

// ---- Products ----------------------------------------------------------------------------------
// Nodes that read their rows as the input of products share the steps below: outputs() allocates,
// wants() says which form of the input the weights need, add() lists the products.

struct InputForms {
  bool floats = false;
  bool blocks = false;
  constexpr InputForms operator|(InputForms o) const noexcept {
    return {floats || o.floats, blocks || o.blocks};
  }
};

// The length of the blocks that activations are quantized in; block formats have the same.
inline constexpr int kActivationBlock = 32;

static_assert(kMaxGroup == ops::kMaxProducts);

class ProductList {
 public:
  void add(const ops::Product& product) noexcept {
    NIBBLE_ASSERT(n_ < ops::kMaxProducts);
    products_[n_++] = product;
  }
  std::span<const ops::Product> products() const noexcept { return {products_, n_}; }

 private:
  ops::Product products_[ops::kMaxProducts];
  std::size_t n_ = 0;
};

template <class Run, auto kSlot>
InputForms wants_of(const Run& run) noexcept {
  InputForms forms;
  Run::FormatTypes::visit(run.weight(kSlot).format, [&]<class F>(F) {
    forms = {!quant::BlockFormat<F>, quant::BlockFormat<F>};
  });
  return forms;
}

template <class Pass, auto kW, auto kB, Index W, class A>
constexpr auto outputs(const Linear<kW, kB, W, A>& node, Pass& pass, Rows rows) noexcept {
  return pass.make(node.width, rows);
}
template <class Run, auto kW, auto kB, Index W, class A>
InputForms wants(const Linear<kW, kB, W, A>&, const Run& run) noexcept {
  return wants_of<Run, kW>(run);
}
// `residual`: null, or rows that are added to the result.
template <bool kResidual = false, class Run, auto kW, auto kB, Index W, class A, class Out>
void add(const Linear<kW, kB, W, A>&, const Run& run, const kernels::MatmulInput& input,
         const Out& out, ProductList& list) noexcept {
  const Weight& weight = run.weight(kW);
  const MatrixView<float> view = run.view(out);
  kernels::EpilogueArgs args;
  if constexpr (kResidual) {
    args.residual = view.data();
    args.residual_stride = view.stride(0);
  }
  Run::FormatTypes::visit(weight.format, [&]<class F>(F) {
    if constexpr (!kIsNone<kB>) {
      if (const Weight& bias = run.weight(kB)) {
        args.bias = bias.vector();
        list.add(ops::product<F, kernels::Epilogue<A, true, kResidual>>(
            input, weight.template matrix<F>(), view, args));
        return;
      }
    }
    list.add(ops::product<F, kernels::Epilogue<A, false, kResidual>>(
        input, weight.template matrix<F>(), view, args));
  });
}

template <class Pass, class... L>
constexpr auto outputs(const LinearGroup<L...>& node, Pass& pass, Rows rows) noexcept {
  return std::apply([&](const auto&... l) { return std::tuple{outputs(l, pass, rows)...}; },
                    node.linears);
}
template <class Run, class... L>
InputForms wants(const LinearGroup<L...>& node, const Run& run) noexcept {
  return std::apply([&](const auto&... l) { return (wants(l, run) | ...); }, node.linears);
}
template <class Run, class... L, class Out>
void add(const LinearGroup<L...>& node, const Run& run, const kernels::MatmulInput& input,
         const Out& out, ProductList& list) noexcept {
  [&]<std::size_t... I>(std::index_sequence<I...>) {
    (add(std::get<I>(node.linears), run, input, std::get<I>(out), list), ...);
  }
  (std::index_sequence_for<L...>{});
}

template <class Pass, auto kG, auto kU, Index W, class A>
constexpr auto outputs(const GatedLinear<kG, kU, W, A>& node, Pass& pass, Rows rows) noexcept {
  return pass.make(node.width, rows);
}
template <class Run, auto kG, auto kU, Index W, class A>
InputForms wants(const GatedLinear<kG, kU, W, A>&, const Run& run) noexcept {
  return wants_of<Run, kG>(run);
}
template <class Run, auto kG, auto kU, Index W, class A, class Out>
void add(const GatedLinear<kG, kU, W, A>&, const Run& run, const kernels::MatmulInput& input,
         const Out& out, ProductList& list) noexcept {
  const Weight& gate = run.weight(kG);
  const Weight& up = run.weight(kU);
  NIBBLE_ASSERT(gate.format == up.format);
  Run::FormatTypes::visit(gate.format, [&]<class F>(F) {
    list.add(ops::gated_product<F, A>(input, gate.template matrix<F>(), up.template matrix<F>(),
                                      run.view(out)));
  });
}

// Memory for the quantized form of rows, if any format needs one.
template <class Pass, Index W>
constexpr Scratch quantized_scratch(Pass& pass, Dim<W> width, Rows rows) noexcept {
  if constexpr (Pass::FormatTypes::kHasBlocks) {
    return pass.scratch(
        ops::QuantizedRows<kActivationBlock>::bytes_needed(pass.count(rows), width));
  } else {
    return {};
  }
}

template <class Run, class AnyValue>
auto quantized_rows(const Run& run, const Scratch& scratch, const AnyValue& like) noexcept {
  return ops::QuantizedRows<kActivationBlock>::over(run.memory(scratch), run.count_of(like),
                                                    like.width);
}

template <class Run, class AnyValue>
kernels::MatmulInput product_input(Run& run, InputForms forms, const AnyValue& x,
                                   const Scratch& scratch) noexcept {
  const MatrixView<float> view = run.view(x);
  kernels::MatmulInput input;
  if constexpr (Run::FormatTypes::kHasBlocks) {
    if (forms.blocks) {
      const auto rows = quantized_rows(run, scratch, x);
      ops::quantize_rows(run.executor(), MatrixView<const float>(view), rows);
      input = ops::matmul_input(rows);
    }
  }
  if (forms.floats) {
    input.x = view.data();
    input.stride = view.stride(0);
  }
  return input;
}

template <class Products, class Pass, Index W>
requires requires(const Products& p, Pass& pass) { outputs(p, pass, Rows::tokens); }
constexpr auto apply(const Products& node, Pass& pass, const Value<W>& x) noexcept {
  const auto out = outputs(node, pass, x.rows);
  const Scratch scratch = quantized_scratch(pass, x.width, x.rows);
  const auto compute = [=](auto& run) {
    ProductList list;
    add(node, run, product_input(run, wants(node, run), x, scratch), out, list);
    ops::run(run.executor(), list.products());
  };
  if constexpr (requires { out.id; }) {
    pass.step(compute, x, scratch, out);
  } else {
    std::apply([&](const auto&... o) { pass.step(compute, x, scratch, o...); }, out);
  }
  return out;
}

// ---- Norms -------------------------------------------------------------------------------------

template <class Run, auto kW, Index W, class Out>
void norm_into(const RmsNorm<kW>& node, Run& run, const Value<W>& x, const Out& out) noexcept {
  ops::rms_norm(run.executor(), MatrixView<const float>(run.view(x)), run.vector(kW), node.eps,
                out);
}
template <class Run, auto kW, auto kB, class A, bool kDropout, Index W, class Out>
void norm_into(const LayerNorm<kW, kB, A, kDropout>& node, Run& run, const Value<W>& x,
               const Out& out) noexcept {
  const MatrixView<const float> in = run.view(x);
  if constexpr (std::is_same_v<Out, MatrixView<float>>) {
    if constexpr (kDropout) {
      if (run.training()) {
        ops::layer_norm<A>(run.executor(), in, run.vector(kW), run.vector(kB), node.eps,
                           run.dropout(node.dropout), out);
        return;
      }
    }
    ops::layer_norm<A>(run.executor(), in, run.vector(kW), run.vector(kB), node.eps, out);
  } else {
    ops::layer_norm(run.executor(), in, run.vector(kW), run.vector(kB), node.eps, out);
  }
}

template <class Norm>
inline constexpr bool kIsNorm = false;
template <auto kW>
inline constexpr bool kIsNorm<RmsNorm<kW>> = true;
template <auto kW, auto kB, class A, bool kDropout>
inline constexpr bool kIsNorm<LayerNorm<kW, kB, A, kDropout>> = true;

template <class Norm, class Pass, Index W>
requires kIsNorm<Norm>
constexpr auto apply(const Norm& node, Pass& pass, const Value<W>& x) noexcept {
  const auto out = pass.make(x.width, x.rows);
  pass.step([=](auto& run) { norm_into(node, run, x, run.view(out)); }, x, out);
  return out;
}

template <class Norm, class Products, class Pass, Index W>
constexpr auto apply(const NormInto<Norm, Products>& node, Pass& pass, const Value<W>& x) noexcept {
  const auto out = outputs(node.products, pass, x.rows);
  const Scratch scratch = quantized_scratch(pass, x.width, x.rows);
  Value<W> normed;
  if constexpr (Pass::FormatTypes::kHasFloats) normed = pass.make(x.width, x.rows);
  const auto compute = [=](auto& run) {
    using Run = std::remove_cvref_t<decltype(run)>;
    const InputForms forms = wants(node.products, run);
    kernels::MatmulInput input;
    if constexpr (Run::FormatTypes::kHasFloats) {
      if (forms.floats) {
        norm_into(node.norm, run, x, run.view(normed));
        input = product_input(run, forms, normed, scratch);
      }
    }
    if constexpr (Run::FormatTypes::kHasBlocks) {
      if (!forms.floats) {
        const auto rows = quantized_rows(run, scratch, x);
        norm_into(node.norm, run, x, rows);
        input = ops::matmul_input(rows);
      }
    }
    ProductList list;
    add(node.products, run, input, out, list);
    ops::run(run.executor(), list.products());
  };
  if constexpr (requires { out.id; }) {
    pass.step(compute, x, scratch, normed, out);
  } else {
    std::apply([&](const auto&... o) { pass.step(compute, x, scratch, normed, o...); }, out);
  }
  return out;
}

// ---- Composition -------------------------------------------------------------------------------

// The nodes from the kFirst-th on.
template <std::size_t kFirst = 0, class Nodes, class Pass, class In>
constexpr auto apply_from(const Nodes& nodes, Pass& pass, const In& in) noexcept {
  if constexpr (kFirst == std::tuple_size_v<Nodes>) {
    return in;
  } else {
    return apply_from<kFirst + 1>(nodes, pass, apply(std::get<kFirst>(nodes), pass, in));
  }
}
template <class... Nodes, class Pass, class In>
constexpr auto apply(const Seq<Nodes...>& node, Pass& pass, const In& in) noexcept {
  return apply_from(node.nodes, pass, in);
}

template <class... Branches, class Pass, class In>
constexpr auto apply(const Fork<Branches...>& node, Pass& pass, const In& x) noexcept {
  return std::apply([&](const auto&... b) { return std::tuple{apply(b, pass, x)...}; },  // in order
                    node.branches);
}

template <class Body, class Pass, Index W>
constexpr auto apply(const Residual<Body>& node, Pass& pass, const Value<W>& x) noexcept {
  const auto y = apply(node.body, pass, x);
  pass.step([=](auto& run) { ops::add(run.executor(), run.view(x), run.view(y), run.view(x)); }, x,
            y);
  return x;
}

template <class Prefix, class LinearType, class Pass, Index W>
constexpr auto apply(const ResidualInto<Prefix, LinearType>& node, Pass& pass,
                     const Value<W>& x) noexcept {
  const auto y = apply(node.prefix, pass, x);
  NIBBLE_ASSERT(y.id != x.id);
  const Scratch scratch = quantized_scratch(pass, y.width, y.rows);
  pass.step(
      [=](auto& run) {
        ProductList list;
        add<true>(node.linear, run, product_input(run, wants(node.linear, run), y, scratch), x,
                  list);
        ops::run(run.executor(), list.products());
      },
      x, y, scratch);
  return x;
}

template <class Body, Index N, class Pass, Index W>
constexpr auto apply(const Repeat<Body, N>& node, Pass& pass, const Value<W>& x) noexcept {
  pass.repeat(node.n, [&] {
    [[maybe_unused]] const auto y = apply(node.body, pass, x);
    NIBBLE_ASSERT(y.id == x.id);  // the body works in place
  });
  return x;
}

// ---- Leaves ------------------------------------------------------------------------------------

// look_up(run, matrix, out): rows of the weight in `kSlot`, whatever its format.
template <auto kSlot, class Width, class Pass, class LookUp>
constexpr auto apply_embedding(const Width& width, Pass& pass, LookUp look_up) noexcept {
  const auto out = pass.make(width, Rows::tokens);
  pass.step(
      [=](auto& run) {
        const Weight& weight = run.weight(kSlot);
        std::remove_cvref_t<decltype(run)>::FormatTypes::visit(weight.format, [&]<class F>(F) {
          look_up(run, weight.template matrix<F>(), run.view(out));
        });
      },
      out);
  return out;
}

template <auto kSlot, Index W, class Pass>
constexpr auto apply(const Embedding<kSlot, W>& node, Pass& pass, Start) noexcept {
  return apply_embedding<kSlot>(node.width, pass,
                                [](auto& run, const auto& matrix, const auto& out) {
                                  ops::embedding(run.executor(), matrix, run.tokens(), out);
                                });
}

template <auto kSlot, Index W, class Pass>
constexpr auto apply(const PositionEmbedding<kSlot, W>& node, Pass& pass, Start) noexcept {
  return apply_embedding<kSlot>(
      node.width, pass, [](auto& run, const auto& matrix, const auto& out) {
        ops::embedding_range(run.executor(), matrix, run.first_position(), out);
      });
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
constexpr auto apply(const Dropout& node, Pass& pass, const Value<W>& x) noexcept {
  pass.step(
      [=](auto& run) {
        if (run.training()) {
          ops::dropout(run.executor(), run.view(x), run.dropout(node.probability), run.view(x));
        }
      },
      x);
  return x;
}

template <class Pass, Index W>
constexpr auto apply(const Multiply&, Pass& pass,
                     const std::tuple<Value<W>, Value<W>>& pair) noexcept {
  const Value<W> x = std::get<0>(pair), y = std::get<1>(pair);
  pass.step(
      [=](auto& run) { ops::multiply(run.executor(), run.view(x), run.view(y), run.view(x)); }, x,
      y);
  return x;
}
template <class Pass, Index W>
constexpr auto apply(const Sum&, Pass& pass, const std::tuple<Value<W>, Value<W>>& pair) noexcept {
  const Value<W> x = std::get<0>(pair), y = std::get<1>(pair);
  pass.step([=](auto& run) { ops::add(run.executor(), run.view(x), run.view(y), run.view(x)); }, x,
            y);
  return x;
}

template <Index... Ws, class Pass, Index W>
constexpr auto apply(const Split<Ws...>& node, Pass&, const Value<W>& x) noexcept {
  return std::apply(
      [&](auto... widths) {
        Index column = x.column;
        const auto part = [&]<Index V>(Dim<V> width) {
          Value<V> value{x.id, x.rows, column, x.stride, width};
          column += width;
          return value;
        };
        return std::tuple{part(widths)...};
      },
      node.widths);
}

// ---- Attention ---------------------------------------------------------------------------------

template <Index H, Index G, Index D>
constexpr ops::AttentionShape shape_of(const Heads<H, G, D>& heads) noexcept {
  return {heads.n_heads, heads.n_kv_heads, heads.head_dim, heads.scale, heads.window, 0, {}};
}

template <class Style, class H, class Pass, Index Q, Index K>
constexpr auto apply(const Rope<Style, H>& node, Pass& pass,
                     const std::tuple<Value<Q>, Value<K>, Value<K>>& qkv) noexcept {
  const auto q = std::get<0>(qkv);
  const auto k = std::get<1>(qkv);
  const Index head_dim = node.heads.head_dim;
  pass.step([=](auto& run) { run.template rotate<Style>(run.view(q), run.view(k), head_dim); }, q,
            k, std::get<2>(qkv));
  return qkv;
}

template <class H, class Pass, Index Q, Index K>
constexpr auto apply(const CacheKv<H>&, Pass& pass,
                     const std::tuple<Value<Q>, Value<K>, Value<K>>& qkv) noexcept {
  const auto k = std::get<1>(qkv);
  const auto v = std::get<2>(qkv);
  pass.step(
      [=](auto& run) {
        run.cache().append(run.executor(), run.layer(), run.first_position(), run.view(k),
                           run.view(v));
      },
      std::get<0>(qkv), k, v);
  return std::get<0>(qkv);
}

template <class H, class Pass, Index W>
constexpr auto apply(const Attend<H>& node, Pass& pass, const Value<W>& q) noexcept {
  const auto out = pass.make(node.heads.width(), q.rows);
  const ops::AttentionShape shape = shape_of(node.heads);
  const Scratch scratch =
      pass.scratch(ops::attention_scratch_bytes(shape, {.n_workers = pass.limits().max_workers,
                                                        .max_rows = pass.limits().max_tokens,
                                                        .n_positions = pass.limits().n_positions}));
  pass.step(
      [=](auto& run) {
        ops::attention(run.executor(), run.view(q), run.cache(), run.layer(), shape,
                       run.first_position(), run.view(out), run.memory(scratch));
      },
      q, out, scratch);
  return out;
}

template <class H, class Pass, Index W>
constexpr auto apply(const Scores<H>& node, Pass& pass, const Value<W>& q) noexcept {
  // (rows, heads * positions): for each head a row of n_positions scores.
  const auto out = pass.make(Dim<>{node.heads.n_heads * pass.limits().n_positions}, q.rows);
  const ops::AttentionShape shape = shape_of(node.heads);
  pass.step(
      [=](auto& run) {
        const ops::Segment all = ops::single_segment(run.view(q).extent(0), run.first_position());
        ops::attention_scores(run.view(q), run.cache(), run.layer(), shape, {&all, 1},
                              run.view(out));
      },
      q, out);
  return out;
}
template <class H, class Pass, Index W>
constexpr auto apply(const Softmax<H>& node, Pass& pass, const Value<W>& s) noexcept {
  const ops::AttentionShape shape = shape_of(node.heads);
  pass.step([=](auto& run) { ops::attention_softmax(run.view(s), shape); }, s);
  return s;
}
template <class H, class Pass, Index W>
constexpr auto apply(const AttendValues<H>& node, Pass& pass, const Value<W>& s) noexcept {
  const auto out = pass.make(node.heads.width(), s.rows);
  const ops::AttentionShape shape = shape_of(node.heads);
  pass.step(
      [=](auto& run) {
        ops::attention_values(run.view(s), run.cache(), run.layer(), shape, run.first_position(),
                              run.view(out));
      },
      s, out);
  return out;
}

// ---- Rows and names ----------------------------------------------------------------------------

template <class Pass, Index W>
constexpr auto apply(const LastRows&, Pass&, const Value<W>& x) noexcept {
  Value<W> last = x;
  // Rows that are there for the outputs only are the last ones already.
  last.last_rows_only = x.last_rows_only || x.rows == Rows::tokens;
  last.rows = Rows::outputs;
  return last;
}

template <Label kName, class Pass, Index W>
constexpr auto apply(const Tap<kName>&, Pass& pass, const Value<W>& x) noexcept {
  pass.template observe<kName>(x);
  return x;
}
template <Label... kNames, class Pass, class... Values>
constexpr auto apply(const Tap<kNames...>&, Pass& pass,
                     const std::tuple<Values...>& values) noexcept {
  [&]<std::size_t... I>(std::index_sequence<I...>) {
    (pass.template observe<kNames>(std::get<I>(values)), ...);
  }
  (std::index_sequence_for<Values...>{});
  return values;
}

}}}  // namespace nibble::NIBBLE_ABI::graph
