// SPDX-License-Identifier: Apache-2.0
//
// The meaning of products and norms; see pass.hpp.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <tuple>

#include "nibble/graph/pass.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/ops/matmul.hpp"
#include "nibble/ops/matmul_input.hpp"
#include "nibble/ops/norm.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

// ---- Products ----------------------------------------------------------------------------------
// Nodes that read their rows as the input of products share the steps below: declare_products()
// declares the weights, make_outputs() allocates the results, input_kind() says which
// representations of the input the weights need, run_products() computes.

// Representations of a product's input: f32 rows; 8-bit codes in blocks.
struct InputKind {
  bool floats = false;
  bool codes = false;
  constexpr InputKind operator|(InputKind o) const noexcept {
    return {floats || o.floats, codes || o.codes};
  }
};

inline InputKind input_kind_of(const Weight& weight) noexcept {
  return {!weight.ops->takes_codes, weight.ops->takes_codes};
}

static_assert(kMaxGroup == ops::kMaxProducts);

class ProductList {
 public:
  // out = weights · input, finished by `finish`.
  void append(const Weight& weight, const kernels::MatmulInput& input, MatrixView<float> out,
              kernels::FinishTileFunction* finish, const kernels::EpilogueArgs& operands) noexcept {
    NIBBLE_ASSERT(n_ < ops::kMaxProducts);
    NIBBLE_ASSERT(out.extent(1) == weight.n && weight.n_experts == 1);
    ops::Product& p = products_[n_++];
    p.kernel = weight.ops->matmul();
    p.args = {};
    p.args.input = input;
    p.args.m = out.extent(0);
    p.args.weights = weight.data;
    p.args.n = weight.n;
    p.args.k = weight.k;
    p.args.end_panel = quant::n_panels(weight.n);
    p.args.out = out.data();
    p.args.out_stride = out.stride(0);
    p.args.finish = finish;
    p.args.epilogue = operands;
  }
  // Sets the second matrix of the last product.
  void set_gate(const Weight& gate) noexcept { products_[n_ - 1].args.gate = gate.data; }

  template <class Run>
  void run(const Run& run) const noexcept {
    ops::run(run.executor(), {products_, n_}, run.tuning());
  }

 private:
  ops::Product products_[ops::kMaxProducts];
  std::size_t n_ = 0;
};

template <class Activation, bool kBias, bool kResidual>
kernels::FinishTileFunction* finish_of() noexcept {
  using Epilogue = kernels::Epilogue<Activation, kBias, kResidual>;
  return simd::kernel<kernels::FinishTile<Epilogue>>();
}

template <auto kW, auto kB, Index W, class A, class Pass>
constexpr void declare_products(const Linear<kW, kB, W, A>& node, Pass& pass, Index k) noexcept {
  const Index n = pass.resolve(node.width);
  pass.template weight<kW>(n, k);
  pass.template weight<kB>(0, n);
}
template <auto kW, auto kB, Index W, class A, class Pass>
constexpr auto make_outputs(const Linear<kW, kB, W, A>& node, Pass& pass, Rows rows) noexcept {
  return pass.make(pass.resolve(node.width), rows);
}
template <class Run, auto kW, auto kB, Index W, class A>
InputKind input_kind(const Linear<kW, kB, W, A>&, const Run& run) noexcept {
  return input_kind_of(run.weight(kW));
}
// The bias in a slot; null if there is none.
template <auto kSlot, class Run>
const float* bias_of(const Run& run) noexcept {
  if constexpr (!kIsNone<kSlot>) {
    if (const Weight& bias = run.weight(kSlot)) return bias.vector();
  }
  return nullptr;
}
// kResidual: the result is added to what `out` holds.
template <bool kResidual = false, class Run, auto kW, auto kB, Index W, class A, class Out>
void append_product(const Linear<kW, kB, W, A>&, const Run& run, const kernels::MatmulInput& input,
                    const Out& out, ProductList& list) noexcept {
  const MatrixView<float> view = run.view(out);
  kernels::EpilogueArgs operands;
  if constexpr (kResidual) {
    operands.residual = view.data();
    operands.residual_stride = view.stride(0);
  }
  operands.bias = bias_of<kB>(run);
  kernels::FinishTileFunction* finish = nullptr;
  if constexpr (!kIsNone<kB>) {
    if (operands.bias != nullptr) finish = finish_of<A, true, kResidual>();
  }
  if (finish == nullptr) finish = finish_of<A, false, kResidual>();
  list.append(run.weight(kW), input, view, finish, operands);
}
template <class Run, auto kW, auto kB, Index W, class A, class Out>
void run_products(const Linear<kW, kB, W, A>& node, Run& run, const kernels::MatmulInput& input,
                  const Out& out) noexcept {
  ProductList list;
  append_product(node, run, input, out, list);
  list.run(run);
}

template <class... L, class Pass>
constexpr void declare_products(const LinearGroup<L...>& node, Pass& pass, Index k) noexcept {
  std::apply([&](const auto&... l) { (declare_products(l, pass, k), ...); }, node.linears);
}
template <class... L, class Pass>
constexpr auto make_outputs(const LinearGroup<L...>& node, Pass& pass, Rows rows) noexcept {
  return std::apply([&](const auto&... l) { return std::tuple{make_outputs(l, pass, rows)...}; },
                    node.linears);
}
template <class Run, class... L>
InputKind input_kind(const LinearGroup<L...>& node, const Run& run) noexcept {
  return std::apply([&](const auto&... l) { return (input_kind(l, run) | ...); }, node.linears);
}
template <class Run, class... L, class Out>
void run_products(const LinearGroup<L...>& node, Run& run, const kernels::MatmulInput& input,
                  const Out& out) noexcept {
  ProductList list;
  [&]<std::size_t... Is>(std::index_sequence<Is...>) {
    (append_product(std::get<Is>(node.linears), run, input, std::get<Is>(out), list), ...);
  }
  (std::index_sequence_for<L...>{});
  list.run(run);
}

template <auto kG, auto kGB, auto kU, auto kUB, Index W, class A, class Pass>
constexpr void declare_products(const GatedLinear<kG, kGB, kU, kUB, W, A>& node, Pass& pass,
                                Index k) noexcept {
  const Index n = pass.resolve(node.width);
  pass.template weight<kG>(n, k);
  pass.template weight<kGB>(0, n);
  pass.template weight<kU>(n, k);
  pass.template weight<kUB>(0, n);
}
template <auto kG, auto kGB, auto kU, auto kUB, Index W, class A, class Pass>
constexpr auto make_outputs(const GatedLinear<kG, kGB, kU, kUB, W, A>& node, Pass& pass,
                            Rows rows) noexcept {
  const auto width = pass.resolve(node.width);
  if (pass.resolve(node.up_width) != width) {
    pass.fail("multiply() or sum() of results whose widths differ");
  }
  return pass.make(width, rows);
}
template <class Run, auto kG, auto kGB, auto kU, auto kUB, Index W, class A>
InputKind input_kind(const GatedLinear<kG, kGB, kU, kUB, W, A>&, const Run& run) noexcept {
  return input_kind_of(run.weight(kG)) | input_kind_of(run.weight(kU));
}
template <class Run, auto kG, auto kGB, auto kU, auto kUB, Index W, class A, class Out>
void run_products(const GatedLinear<kG, kGB, kU, kUB, W, A>& node, Run& run,
                  const kernels::MatmulInput& input, const Out& out) noexcept {
  const Weight& gate = run.weight(kG);
  const Weight& up = run.weight(kU);
  const MatrixView<float> view = run.view(out);
  const float* const up_bias = bias_of<kUB>(run);
  ProductList list;
  if (gate.ops == up.ops && up_bias == nullptr && bias_of<kGB>(run) == nullptr) {
    list.append(up, input, view, simd::kernel<kernels::FinishGatedTile<A>>(), {});
    list.set_gate(gate);
  } else {  // with biases or in different formats: two products, one after the other
    run_products(Linear<kG, kGB, W, A>{{}, node.width}, run, input, out);
    kernels::EpilogueArgs operands;
    operands.bias = up_bias;
    operands.residual = view.data();
    operands.residual_stride = view.stride(0);
    list.append(up, input, view, simd::kernel<kernels::FinishTile<kernels::TimesResidual>>(),
                operands);
  }
  list.run(run);
}

// Memory for the quantized rows, if some weights need them.
template <class Pass>
constexpr Scratch quantized_scratch(Pass& pass, Index width, Rows rows) noexcept {
  if (!pass.limits().code_inputs) return {};
  // A layer that leaves the product out may have any width; elsewhere make() has refused it.
  if (width < 1 || width > kMaxBytes / 8 / (std::max)(pass.count(rows), Index{1})) {
    return pass.scratch(0);
  }
  return pass.scratch(ops::QuantizedRows<kActivationBlock>::bytes_needed(pass.count(rows), width));
}

template <class Run, class AnyValue>
auto quantized_rows(const Run& run, const Scratch& scratch, const AnyValue& like) noexcept {
  return ops::QuantizedRows<kActivationBlock>::over(run.memory(scratch), run.count_of(like),
                                                    like.width);
}

// The rows of x in the representations of `kind`.
template <class Run, class AnyValue>
kernels::MatmulInput product_input(Run& run, InputKind kind, const AnyValue& x,
                                   const Scratch& scratch) noexcept {
  const MatrixView<float> view = run.view(x);
  kernels::MatmulInput input;
  if (kind.codes) {
    const auto rows = quantized_rows(run, scratch, x);
    ops::quantize_rows(run.executor(), MatrixView<const float>(view), rows);
    input = ops::matmul_input(rows);
  }
  if (kind.floats) {
    input.x = view.data();
    input.stride = view.stride(0);
  }
  return input;
}

// The slots of the weights of a node's products, as numbers.
template <auto kW, auto kB, Index W, class A>
constexpr std::array<std::size_t, 1> slots_of(const Linear<kW, kB, W, A>&) noexcept {
  return {static_cast<std::size_t>(enumerator_of(kW))};
}
template <auto kG, auto kGB, auto kU, auto kUB, Index W, class A>
constexpr std::array<std::size_t, 2> slots_of(const GatedLinear<kG, kGB, kU, kUB, W, A>&) noexcept {
  return {static_cast<std::size_t>(enumerator_of(kG)), static_cast<std::size_t>(enumerator_of(kU))};
}
template <class... L>
constexpr std::array<std::size_t, sizeof...(L)> slots_of(const LinearGroup<L...>& node) noexcept {
  return std::apply(
      [](const auto&... l) { return std::array<std::size_t, sizeof...(L)>{slots_of(l)[0]...}; },
      node.linears);
}

// Shows the rows of x, which `node` multiplies, to the observer of products.
template <class Products, class Run, class AnyValue>
void observe_products(const Products& node, Run& run, const AnyValue& x) noexcept {
  if (!run.observes_products()) return;
  const auto slots = slots_of(node);
  run.observe_product(slots, MatrixView<const float>(run.view(x)));
}

// pass.step() for one output or for a tuple of outputs.
template <class Pass, class F, class Out, class... Values>
constexpr void step_to(Pass& pass, const F& compute, const Out& out,
                       const Values&... used) noexcept {
  if constexpr (requires { out.id; }) {
    pass.step(compute, used..., out);
  } else {
    std::apply([&](const auto&... o) { pass.step(compute, used..., o...); }, out);
  }
}

template <class Products, class Pass, Index W>
requires requires(const Products& p, Pass& pass) { declare_products(p, pass, Index{}); }
constexpr auto apply(const Products& node, Pass& pass, const Value<W>& x) noexcept {
  declare_products(node, pass, x.width);
  const auto out = make_outputs(node, pass, x.rows);
  const Scratch scratch = quantized_scratch(pass, x.width, x.rows);
  step_to(
      pass,
      [=](auto& run) {
        observe_products(node, run, x);
        run_products(node, run, product_input(run, input_kind(node, run), x, scratch), out);
      },
      out, x, scratch);
  return out;
}

template <class Prefix, class LinearType, class Pass, Index W>
constexpr auto apply(const ResidualInto<Prefix, LinearType>& node, Pass& pass,
                     const Value<W>& x) noexcept {
  const auto y = apply_body(node.prefix, pass, x);
  check_residual<W, decltype(node.linear.width)::kStatic>(pass, x, y,
                                                          pass.resolve(node.linear.width));
  declare_products(node.linear, pass, y.width);
  const Scratch scratch = quantized_scratch(pass, y.width, y.rows);
  pass.step(
      [=](auto& run) {
        observe_products(node.linear, run, y);
        ProductList list;
        append_product<true>(node.linear, run,
                             product_input(run, input_kind(node.linear, run), y, scratch), x, list);
        list.run(run);
      },
      x, y, scratch);
  return x;
}

// ---- Norms -------------------------------------------------------------------------------------

template <class Pass>
constexpr void check_probability(Pass& pass, float p) noexcept {
  if (!(p >= 0 && p < 1)) pass.fail("dropout(): a probability is from 0 to less than 1");
}
template <auto kW, class Pass>
constexpr void declare_norm(const RmsNorm<kW>&, Pass& pass, Index k) noexcept {
  pass.template weight<kW>(0, k);
}
template <auto kW, auto kB, class A, bool kDropout, class Pass>
constexpr void declare_norm(const LayerNorm<kW, kB, A, kDropout>& node, Pass& pass,
                            Index k) noexcept {
  if constexpr (kDropout) check_probability(pass, node.dropout);
  pass.template weight<kW>(0, k);
  pass.template weight<kB>(0, k);
}
template <auto kW, class Pass>
constexpr Index dropout_place(const RmsNorm<kW>&, Pass&) noexcept {
  return 0;
}
template <auto kW, auto kB, class A, bool kDropout, class Pass>
constexpr Index dropout_place(const LayerNorm<kW, kB, A, kDropout>&, Pass& pass) noexcept {
  return kDropout ? pass.place() : 0;
}

template <class Run, auto kW, Index W, class Out>
void norm_into(const RmsNorm<kW>& node, Run& run, const Value<W>& x, const Out& out,
               Index) noexcept {
  ops::rms_norm(run.executor(), MatrixView<const float>(run.view(x)), run.vector(kW), node.eps,
                out);
}
template <class Run, auto kW, auto kB, class A, bool kDropout, Index W, class Out>
void norm_into(const LayerNorm<kW, kB, A, kDropout>& node, Run& run, const Value<W>& x,
               const Out& out, [[maybe_unused]] Index place) noexcept {
  const MatrixView<const float> in = run.view(x);
  if constexpr (std::is_same_v<Out, MatrixView<float>>) {
    if constexpr (kDropout) {
      if (run.training()) {
        ops::layer_norm<A>(run.executor(), in, run.vector(kW), run.vector(kB), node.eps,
                           run.dropout(node.dropout, place), out);
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
  declare_norm(node, pass, x.width);
  const Index place = dropout_place(node, pass);
  const auto out = pass.make(x.width, x.rows);
  pass.step([=](auto& run) { norm_into(node, run, x, MatrixView<float>(run.view(out)), place); }, x,
            out);
  return out;
}

// A norm can write to the rows that it reads.
template <class Norm, class Pass, Index W>
requires kIsNorm<Norm>
constexpr auto apply(const InPlace<Norm>& node, Pass& pass, const Value<W>& x) noexcept {
  declare_norm(node.body, pass, x.width);
  const Index place = dropout_place(node.body, pass);
  pass.step([=](auto& run) { norm_into(node.body, run, x, MatrixView<float>(run.view(x)), place); },
            x);
  return x;
}

template <class Norm, class Products, class Pass, Index W>
constexpr auto apply(const NormInto<Norm, Products>& node, Pass& pass, const Value<W>& x) noexcept {
  declare_norm(node.norm, pass, x.width);
  declare_products(node.products, pass, x.width);
  const auto out = make_outputs(node.products, pass, x.rows);
  const Scratch scratch = quantized_scratch(pass, x.width, x.rows);
  Value<W> normed = x;
  normed.id = -1;
  if (pass.limits().float_inputs) normed = pass.make(x.width, x.rows);
  step_to(
      pass,
      [=](auto& run) {
        if (run.observes_products() && normed.id >= 0) {  // computed anew, so that nothing differs
          norm_into(node.norm, run, x, MatrixView<float>(run.view(normed)), 0);
          observe_products(node.products, run, normed);
        }
        const InputKind kind = input_kind(node.products, run);
        kernels::MatmulInput input;
        if (kind.floats) {
          norm_into(node.norm, run, x, MatrixView<float>(run.view(normed)), 0);
          input = product_input(run, kind, normed, scratch);
        } else {
          const auto rows = quantized_rows(run, scratch, x);
          norm_into(node.norm, run, x, rows, 0);
          input = ops::matmul_input(rows);
        }
        run_products(node.products, run, input, out);
      },
      out, x, scratch, normed);
  return out;
}

}}}  // namespace nibble::NIBBLE_ABI::graph
