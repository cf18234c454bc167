// SPDX-License-Identifier: Apache-2.0
//
// Fusion as rewriting: fuse(expression) returns an expression that computes the same with fewer
// passes over memory. Each rule is an overload of combine(), for two or three neighbours in a
// sequence. describe() shows the result.
//
//   linear >> activation                      the activation becomes the product's epilogue
//   fork(linear >> act, linear) >> multiply   one gated product
//   fork(linear, linear, ...)                 one parallel step over a shared input
//   norm >> products                          the norm writes the products' 8-bit input
//   scores >> softmax >> attend_values        online softmax, no matrix of scores
//   layer_norm >> activation >> dropout       one pass
//   residual(... >> linear)                   the product adds to the rows of the residual
#pragma once

#include "nibble/graph/expr.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

// ---- Rules for neighbours ----------------------------------------------------------------------

template <auto kW, auto kB, Index W, class Activation>
constexpr auto combine(const Linear<kW, kB, W, kernels::Identity>& linear,
                       const Activate<Activation>&) {
  return Linear<kW, kB, W, Activation>{{}, linear.width};
}

template <auto kW, auto kB, class Activation>
constexpr auto combine(const LayerNorm<kW, kB, kernels::Identity, false>& norm,
                       const Activate<Activation>&) {
  return LayerNorm<kW, kB, Activation, false>{{}, norm.eps};
}

template <auto kW, auto kB, class Activation>
constexpr auto combine(const LayerNorm<kW, kB, Activation, false>& norm, const Dropout& drop) {
  return LayerNorm<kW, kB, Activation, true>{{}, norm.eps, drop.probability};
}

template <auto kGate, auto kGateBias, auto kUp, auto kUpBias, Index W, class Activation>
constexpr auto combine(const LinearGroup<Linear<kGate, kGateBias, W, Activation>,
                                         Linear<kUp, kUpBias, W, kernels::Identity>>& group,
                       const Multiply&) {
  return GatedLinear<kGate, kGateBias, kUp, kUpBias, W, Activation>{
      {}, std::get<0>(group.linears).width, std::get<1>(group.linears).width};
}

template <class H>
constexpr auto combine(const Scores<H>& s, const Softmax<H>&, const AttendValues<H>&) {
  return Attend<H>{{}, s.heads};
}

// Nodes that read their rows only as the input of products.
template <class T>
inline constexpr bool kIsProducts = false;
template <auto kW, auto kB, Index W, class A>
inline constexpr bool kIsProducts<Linear<kW, kB, W, A>> = true;
template <class... L>
inline constexpr bool kIsProducts<LinearGroup<L...>> = true;
template <auto kG, auto kGB, auto kU, auto kUB, Index W, class A>
inline constexpr bool kIsProducts<GatedLinear<kG, kGB, kU, kUB, W, A>> = true;

template <auto kW, Expr Products>
requires kIsProducts<Products>
constexpr auto combine(const RmsNorm<kW>& norm, const Products& products) {
  return NormInto<RmsNorm<kW>, Products>(norm, products);
}
template <auto kW, auto kB, Expr Products>
requires kIsProducts<Products>
constexpr auto combine(const LayerNorm<kW, kB>& norm, const Products& products) {
  return NormInto<LayerNorm<kW, kB>, Products>(norm, products);
}
// A norm is combined with a group before the group becomes a gated product.
template <Expr Norm, Expr Products, Expr Next>
requires requires(Products p, Next n) { combine(p, n); }
constexpr auto combine(const NormInto<Norm, Products>& node, const Next& next) {
  const auto products = combine(node.products, next);
  return NormInto<Norm, std::remove_const_t<decltype(products)>>(node.norm, products);
}

// ---- Rewriting ---------------------------------------------------------------------------------

template <class... Nodes>
NIBBLE_COLD constexpr auto fuse(const Seq<Nodes...>& seq);

// A leaf is not changed.
template <Expr T>
NIBBLE_COLD constexpr auto fuse(const T& leaf) {
  return leaf;
}

template <class T>
inline constexpr bool kIsLinear = false;
template <auto kW, auto kB, Index W, class A>
inline constexpr bool kIsLinear<Linear<kW, kB, W, A>> = true;

template <class... Branches>
NIBBLE_COLD constexpr auto fuse(const Fork<Branches...>& node) {
  return std::apply(
      [](const auto&... branches) {
        const auto fused = std::tuple(fuse(branches)...);
        return std::apply(
            []<class... F>(const F&... f) {
              if constexpr ((kIsLinear<F> && ...) && sizeof...(F) <= kMaxGroup) {
                return LinearGroup<F...>(std::tuple<F...>(f...));
              } else {
                return Fork<F...>(std::tuple<F...>(f...));
              }
            },
            fused);
      },
      node.branches);
}

template <class Body, Index N>
NIBBLE_COLD constexpr auto fuse(const Repeat<Body, N>& node) {
  const auto body = fuse(node.body);
  return Repeat<std::remove_const_t<decltype(body)>, N>(body, node.n);
}

namespace detail {

// Pushes the nodes from index kFirst on.
template <std::size_t kFirst = 0, class Done, class Nodes>
NIBBLE_COLD constexpr auto push_all(const Done& done, const Nodes& nodes);

template <std::size_t... Is, class Tuple>
constexpr auto first_of(const Tuple& t, std::index_sequence<Is...>) {
  return std::tuple(std::get<Is>(t)...);
}
template <std::size_t kDropped, class... T>
constexpr auto drop_last(const std::tuple<T...>& t) {
  return first_of(t, std::make_index_sequence<sizeof...(T) - kDropped>{});
}
template <std::size_t kFromEnd, class... T>
constexpr const auto& from_end(const std::tuple<T...>& t) {
  return std::get<sizeof...(T) - 1 - kFromEnd>(t);
}

// Appends a fused node to the nodes before it, combining as long as a rule applies.
template <class... T, Expr Next>
NIBBLE_COLD constexpr auto push(const std::tuple<T...>& done, const Next& next) {
  constexpr std::size_t n = sizeof...(T);
  if constexpr (n >= 2) {
    if constexpr (requires { combine(from_end<1>(done), from_end<0>(done), next); }) {
      return push(drop_last<2>(done), combine(from_end<1>(done), from_end<0>(done), next));
    } else if constexpr (requires { combine(from_end<0>(done), next); }) {
      return push(drop_last<1>(done), combine(from_end<0>(done), next));
    } else {
      return std::tuple_cat(done, std::tuple<Next>(next));
    }
  } else if constexpr (n == 1) {
    if constexpr (requires { combine(from_end<0>(done), next); }) {
      return push(drop_last<1>(done), combine(from_end<0>(done), next));
    } else {
      return std::tuple_cat(done, std::tuple<Next>(next));
    }
  } else {
    return std::tuple<Next>(next);
  }
}
// Names must not prevent a rule, so they are removed.
template <class... T, Label... kNames>
NIBBLE_COLD constexpr auto push(const std::tuple<T...>& done, const Tap<kNames...>&) {
  return done;
}
// A sequence within a sequence is flattened.
template <class... T, class... Nodes>
NIBBLE_COLD constexpr auto push(const std::tuple<T...>& done, const Seq<Nodes...>& seq) {
  return push_all(done, seq.nodes);
}

template <std::size_t kFirst, class Done, class Nodes>
NIBBLE_COLD constexpr auto push_all(const Done& done, const Nodes& nodes) {
  if constexpr (kFirst == std::tuple_size_v<Nodes>) {
    return done;
  } else {
    return push_all<kFirst + 1>(push(done, fuse(std::get<kFirst>(nodes))), nodes);
  }
}

}  // namespace detail

template <class... Nodes>
NIBBLE_COLD constexpr auto fuse(const Seq<Nodes...>& seq) {
  const auto nodes = detail::push_all(std::tuple<>{}, seq.nodes);
  if constexpr (std::tuple_size_v<std::remove_const_t<decltype(nodes)>> == 1) {
    return std::get<0>(nodes);
  } else {
    return make_seq(nodes);
  }
}

template <class Body>
NIBBLE_COLD constexpr auto fuse(const When<Body>& node) {
  const auto body = fuse(node.body);
  return When<std::remove_const_t<decltype(body)>>(body, node.condition);
}

template <class Body>
NIBBLE_COLD constexpr auto fuse(const InPlace<Body>& node) {
  const auto body = fuse(node.body);
  return InPlace<std::remove_const_t<decltype(body)>>(body);
}

template <class Body>
NIBBLE_COLD constexpr auto fuse(const Residual<Body>& node) {
  const auto body = fuse(node.body);
  using Fused = std::remove_const_t<decltype(body)>;
  if constexpr (requires { body.nodes; }) {
    const auto& last = detail::from_end<0>(body.nodes);
    using Last = std::remove_cvref_t<decltype(last)>;
    const auto prefix = make_seq(detail::drop_last<1>(body.nodes));
    using Prefix = std::remove_const_t<decltype(prefix)>;
    if constexpr (kIsLinear<Last> && !kIsInPlace<Prefix>) {
      return ResidualInto<Prefix, Last>(prefix, last);
    } else {
      return Residual<Fused>(body);
    }
  } else {
    return Residual<Fused>(body);
  }
}

}}}  // namespace nibble::NIBBLE_ABI::graph
