// SPDX-License-Identifier: Apache-2.0
//
// The meaning of norms; see pass.hpp.
#pragma once

#include <cstddef>
#include <span>
#include <type_traits>

#include "nibble/graph/apply_products.hpp"
#include "nibble/graph/pass.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/ops/norm.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

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
        // Where some matrices read floats, codes are made of these; otherwise by the norm itself,
        // also beside factors that read floats: what rows have no factors must not differ.
        const bool has_floats = needs_floats(node.products, run);
        const auto make_floats = [&] {
          norm_into(node.norm, run, x, MatrixView<float>(run.view(normed)), 0);
        };
        if (has_floats) make_floats();
        const auto make = [&](const InputForm& form) {
          const bool is_floats = form.kind == InputKind::floats;
          if (is_floats && !has_floats) make_floats();
          if (is_floats || has_floats) return product_input(run, form, normed, scratch);
          const auto fill = [&](const auto& rows) { norm_into(node.norm, run, x, rows, 0); };
          const auto memory = run.memory(scratch);
          return with_rounded_rows(run, form, x, scratch,
                                   code_input(form, memory, run.count_of(x), x.width, fill));
        };
        ProductInputs inputs(make);
        run_products(node.products, run, inputs, out);
      },
      out, x, scratch, normed);
  return out;
}

}}}  // namespace nibble::NIBBLE_ABI::graph
