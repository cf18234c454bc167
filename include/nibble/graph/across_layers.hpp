// SPDX-License-Identifier: Apache-2.0
//
// Nodes of models whose layers have more than their rows in common (Gemma 4): an input of each
// layer besides its rows, keys and values of an earlier layer; and what else only such models have.
// apply_across_layers.hpp says what they mean.
//
//   beside(true, embedding<...>(...) >> linear<...>(...) >> layer_inputs<...>(...),
//          embedding<...>(...) >> repeat(n, ... >> times_layer_input() >> ...)) >> output_rows()
#pragma once

#include <string>
#include <type_traits>

#include "nibble/core/text.hpp"
#include "nibble/graph/expr.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

// `body`, whose nodes can read the rows that `side` gives. Both are starts of a model. A run of
// some layers only computes `side`, too, of its tokens. If is_used is false, there is no side.
template <Expr Side, Expr Body>
struct Beside : Node {
  bool is_used;
  Side side;
  Body body;
  constexpr Beside(bool u, const Side& s, const Body& b) : is_used(u), side(s), body(b) {}
};
template <Expr Side, Expr Body>
constexpr auto beside(bool is_used, const Side& side, const Body& body) {
  return Beside<Side, Body>(is_used, side, body);
}
template <Expr Side, Expr Body>
NIBBLE_COLD constexpr auto fuse(const Beside<Side, Body>& node) {
  return beside(node.is_used, fuse(node.side), fuse(node.body));
}
template <class Side, class Body>
inline constexpr bool kHasRepeat<Beside<Side, Body>> = kHasRepeat<Body>;

// The inputs of all layers, those of a layer in `width` columns, in place: norm_scale * RMSNorm of
// each layer's columns + table_scale * the token's row of a table; rows that are no tokens have row
// 0. kTable (n_tokens, columns of x); kNorm (width).
template <auto kTable, auto kNorm>
struct LayerInputs : Node {
  Index width;
  Index n_tokens;
  float eps;
  float norm_scale;
  float table_scale;
};
template <auto kTable, auto kNorm>
constexpr auto layer_inputs(Index width, Index n_tokens, float eps, float norm_scale,
                            float table_scale) {
  return LayerInputs<kTable, kNorm>{{}, width, n_tokens, eps, norm_scale, table_scale};
}
template <auto kTable, auto kNorm>
inline constexpr bool kIsInPlace<LayerInputs<kTable, kNorm>> = true;

// x * the input of this layer, in place: as many columns of the side as x has.
struct TimesLayerInput : Node {};
constexpr auto times_layer_input() { return TimesLayerInput{}; }
template <>
inline constexpr bool kIsInPlace<TimesLayerInput> = true;

// Passes a q on: the attention behind it reads what an earlier layer stores, which each layer
// names.
template <class HeadsType>
struct ShareKv : Node {
  HeadsType heads;
  PerLayer<Index> layer;
};
template <class HeadsType>
constexpr auto share_kv(const HeadsType& heads, PerLayer<Index> layer) {
  return ShareKv<HeadsType>{{}, heads, layer};
}
template <class HeadsType>
inline constexpr bool kIsInPlace<ShareKv<HeadsType>> = true;

// RMSNorm without weights of each head of v of a (q, k, v), in place.
template <class HeadsType>
struct ValueNorm : Node {
  HeadsType heads;
  float eps;
};
template <class HeadsType>
constexpr auto value_norm(const HeadsType& heads, float eps) {
  return ValueNorm<HeadsType>{{}, heads, eps};
}
template <class HeadsType>
inline constexpr bool kIsInPlace<ValueNorm<HeadsType>> = true;

// x times the one weight of a slot, in place.
template <auto kSlot>
struct ScaleBy : Node {};
template <auto kSlot>
constexpr auto scale_by() {
  return ScaleBy<kSlot>{};
}
template <auto kSlot>
inline constexpr bool kIsInPlace<ScaleBy<kSlot>> = true;

template <class Side, class Body>
std::string describe(const Beside<Side, Body>& node) {
  return (node.is_used ? "beside(" + describe(node.side) + ", " : "alone(") + describe(node.body) +
         ")";
}
template <auto kTable, auto kNorm>
std::string describe(const LayerInputs<kTable, kNorm>& node) {
  return "layer_inputs(" + to_text(node.width) + ")";
}
inline std::string describe(const TimesLayerInput&) { return "times_layer_input"; }
template <class HeadsType>
std::string describe(const ShareKv<HeadsType>&) {
  return "share_kv";
}
template <class HeadsType>
std::string describe(const ValueNorm<HeadsType>&) {
  return "value_norm";
}
template <auto kSlot>
std::string describe(const ScaleBy<kSlot>&) {
  return "scale_by";
}

}}}  // namespace nibble::NIBBLE_ABI::graph
