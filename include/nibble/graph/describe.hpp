// SPDX-License-Identifier: Apache-2.0
//
// describe(expression): an expression, unfused or fused, as one line of text. For people who want
// to see what fuse() did, and for tests of that.
//
//   embedding(token_embd, 256) >> repeat(3, residual(rms_norm(attn_norm) >> ...) >> ...) >> ...
//
// A slot is shown by the to_string() that is found beside its type; without one, as a number. A
// program's own node needs a describe() beside its type.
#pragma once

#include <charconv>
#include <string>
#include <string_view>

#include "nibble/graph/experts.hpp"
#include "nibble/graph/pass.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

namespace detail {

inline std::string text_of(Index n) { return to_text(n); }
inline std::string text_of(float x) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof(text), x);
  return {text, end.ptr};
}

template <auto kSlot>
std::string slot_text() {
  if constexpr (kIsNone<kSlot>) {
    return "none";
  } else {
    constexpr auto kEnumerator = enumerator_of(kSlot);
    if constexpr (requires { std::string(to_string(kEnumerator)); }) {
      return std::string(to_string(kEnumerator));
    } else {
      return text_of(static_cast<Index>(kEnumerator));
    }
  }
}

// "weights" or "weights + bias".
template <auto kWeights, auto kBias>
std::string slots_text() {
  std::string text = slot_text<kWeights>();
  if constexpr (!kIsNone<kBias>) text += " + " + slot_text<kBias>();
  return text;
}

template <class Activation>
std::string activation_text() {
  using namespace kernels;
  if constexpr (std::is_same_v<Activation, Identity>) return "identity";
  if constexpr (std::is_same_v<Activation, Relu>) return "relu";
  if constexpr (std::is_same_v<Activation, Silu>) return "silu";
  if constexpr (std::is_same_v<Activation, GeluErf>) return "gelu_erf";
  if constexpr (std::is_same_v<Activation, GeluTanh>) return "gelu_tanh";
  if constexpr (std::is_same_v<Activation, Sigmoid>) return "sigmoid";
  if constexpr (std::is_same_v<Activation, Tanh>) return "tanh";
  if constexpr (std::is_same_v<Activation, Exp>) return "exp";
  if constexpr (std::is_same_v<Activation, Erf>) return "erf";
  if constexpr (requires { std::string(to_string(Activation{})); }) {
    return std::string(to_string(Activation{}));
  }
  return "activation";
}
// What an activation adds to a list of arguments: nothing for the identity.
template <class Activation>
std::string activation_argument() {
  if constexpr (std::is_same_v<Activation, kernels::Identity>) return "";
  return ", " + activation_text<Activation>();
}

// A number, or "per layer" if it differs by layer.
template <Index W>
std::string text_of(const Dim<W>& d) {
  if constexpr (W == kPerLayer) {
    return "per layer";
  } else {
    return text_of(Index{d});
  }
}
template <class T>
std::string text_of(const PerLayer<T>& x) {
  return x.is_uniform() ? text_of(x.at(-1)) : "per layer";
}

inline std::string joined(std::string_view separator, std::initializer_list<std::string> parts) {
  std::string text;
  bool first = true;
  for (const std::string& part : parts) {
    if (!first) text += separator;
    first = false;
    text += part;
  }
  return text;
}

template <class... Nodes>
std::string described(std::string_view separator, const std::tuple<Nodes...>& nodes) {
  return std::apply([&](const auto&... n) { return joined(separator, {describe(n)...}); }, nodes);
}

}  // namespace detail

// Takes what no other describe() takes.
template <Expr Node>
std::string describe(const Node&) {
  static_assert(detail::kNever<Node>,
                "nibble: a node of your own needs a describe() beside its type (Node = ...)");
  return {};
}

// ---- Composition -------------------------------------------------------------------------------

template <class... Nodes>
std::string describe(const Seq<Nodes...>& node) {
  return detail::described(" >> ", node.nodes);
}
template <class... Branches>
std::string describe(const Fork<Branches...>& node) {
  return "fork(" + detail::described(", ", node.branches) + ")";
}
template <class Body>
std::string describe(const Residual<Body>& node) {
  return "residual(" + describe(node.body) + ")";
}
template <class Body>
std::string describe(const InPlace<Body>& node) {
  return "in_place(" + describe(node.body) + ")";
}
template <class Body>
std::string describe(const When<Body>& node) {
  return "when(" +
         std::string(node.condition.is_uniform() ? node.condition.at(-1) ? "true" : "false"
                                                 : "per layer") +
         ", " + describe(node.body) + ")";
}
template <class Body, Index N>
std::string describe(const Repeat<Body, N>& node) {
  return "repeat(" + detail::text_of(Index{node.n}) + ", " + describe(node.body) + ")";
}

// ---- Leaves ------------------------------------------------------------------------------------

template <auto kSlot, Index W>
std::string describe(const Embedding<kSlot, W>& node) {
  return "embedding(" + detail::slot_text<kSlot>() + ", " + detail::text_of(node.width) +
         (node.scale != 1 ? ", scale " + detail::text_of(node.scale) : "") + ")";
}
template <auto kSlot, Index W>
std::string describe(const PositionEmbedding<kSlot, W>& node) {
  return "position_embedding(" + detail::slot_text<kSlot>() + ", " + detail::text_of(node.width) +
         ")";
}
template <auto kWeight>
std::string describe(const RmsNorm<kWeight>&) {
  return "rms_norm(" + detail::slot_text<kWeight>() + ")";
}
template <auto kWeight, auto kBias, class Activation, bool kDropout>
std::string describe(const LayerNorm<kWeight, kBias, Activation, kDropout>& node) {
  return "layer_norm(" + detail::slots_text<kWeight, kBias>() +
         detail::activation_argument<Activation>() +
         (kDropout ? ", dropout " + detail::text_of(node.dropout) : "") + ")";
}
template <auto kWeights, auto kBias, Index W, class Activation>
std::string describe(const Linear<kWeights, kBias, W, Activation>& node) {
  return "linear(" + detail::slots_text<kWeights, kBias>() + ", " + detail::text_of(node.width) +
         detail::activation_argument<Activation>() + ")";
}
template <class Activation>
std::string describe(const Activate<Activation>&) {
  return detail::activation_text<Activation>();
}
inline std::string describe(const Dropout& node) {
  return "dropout(" + detail::text_of(node.probability) + ")";
}
inline std::string describe(const Scale& node) {
  return "scale(" + detail::text_of(node.factor) + ")";
}
template <auto kSlot>
std::string describe(const AddRow<kSlot>&) {
  return "add_row(" + detail::slot_text<kSlot>() + ")";
}
inline std::string describe(const CapRows& node) {
  return "cap_rows(" + detail::text_of(node.cap) + ")";
}
inline std::string describe(const Square&) { return "square"; }
template <class Activation>
std::string describe(const Gate<Activation>&) {
  return "gate(" + detail::activation_text<Activation>() + ")";
}
inline std::string describe(const Multiply&) { return "multiply"; }
inline std::string describe(const Sum&) { return "sum"; }
template <Index... Ws>
std::string describe(const Split<Ws...>& node) {
  return std::apply(
      [](auto... w) { return "split(" + detail::joined(", ", {detail::text_of(w)...}) + ")"; },
      node.widths);
}

// ---- Attention ---------------------------------------------------------------------------------

inline std::string describe(const NoHook&) { return ""; }
inline std::string describe(const SoftCap& hook) {
  return ", soft cap " + detail::text_of(hook.cap);
}
inline std::string describe(const Alibi&) { return ", alibi"; }
template <auto kSlot>
std::string describe(const Sinks<kSlot>&) {
  return ", sinks " + detail::slot_text<kSlot>();
}

// Query heads / key and value heads, times their size, and then what differs from the usual.
template <Index H, Index G, Index D, class Hook>
std::string describe(const Heads<H, G, D, Hook>& heads) {
  using detail::text_of;
  std::string text =
      text_of(heads.n_heads) + "/" + text_of(heads.n_kv_heads) + " x " + text_of(heads.head_dim);
  if (!heads.window.is_uniform() || heads.window.at(-1) > 0) {
    text += ", window " + text_of(heads.window);
  }
  if (!heads.ahead.is_uniform() || heads.ahead.at(-1) > 0) text += ", both ways";
  if constexpr (requires { describe(heads.hook); }) {
    text += describe(heads.hook);
  } else {
    text += ", hook";
  }
  return text;
}
template <class Style, auto kFactors, class HeadsType>
std::string describe(const Rope<Style, kFactors, HeadsType>& node) {
  if constexpr (std::is_same_v<Style, EitherStyle>) {
    return node.style.is_half_split ? "rope(half_split)" : "rope(adjacent_pairs)";
  } else {
    return std::is_same_v<Style, kernels::AdjacentPairs> ? "rope(adjacent_pairs)"
           : std::is_same_v<Style, kernels::HalfSplit>   ? "rope(half_split)"
                                                         : "rope";
  }
}
inline std::string describe(const TemperQueries& node) {
  return "temper_queries(" + detail::text_of(node.temperature.scale) + ")";
}
template <auto kQ, auto kK, class HeadsType>
std::string describe(const HeadNorm<kQ, kK, HeadsType>&) {
  return "head_norm(" + detail::slot_text<kQ>() + ", " + detail::slot_text<kK>() + ")";
}
template <class HeadsType>
std::string describe(const CacheKv<HeadsType>&) {
  return "cache_kv";
}
template <class HeadsType>
std::string describe(const Scores<HeadsType>& node) {
  return "scores(" + describe(node.heads) + ")";
}
template <class HeadsType>
std::string describe(const Softmax<HeadsType>&) {
  return "softmax";
}
template <class HeadsType>
std::string describe(const AttendValues<HeadsType>&) {
  return "attend_values";
}

// ---- Rows and names ----------------------------------------------------------------------------

inline std::string describe(const OutputRows&) { return "output_rows"; }
inline std::string describe(const Pool& node) {
  return node.pooling == Pooling::mean    ? "pool(mean)"
         : node.pooling == Pooling::first ? "pool(first)"
                                          : "pool(last)";
}
template <Label... kNames>
std::string describe(const Tap<kNames...>&) {
  return "tap(" + detail::joined(", ", {std::string(kNames.view())...}) + ")";
}

// ---- What fuse() makes -------------------------------------------------------------------------

template <class HeadsType>
std::string describe(const Attend<HeadsType>& node) {
  return "attend(" + describe(node.heads) + ")";
}
template <class... Linears>
std::string describe(const LinearGroup<Linears...>& node) {
  return "linear_group(" + detail::described(", ", node.linears) + ")";
}
template <auto kGate, auto kGateBias, auto kUp, auto kUpBias, Index W, class Activation>
std::string describe(const GatedLinear<kGate, kGateBias, kUp, kUpBias, W, Activation>& node) {
  return "gated_linear(" + detail::slots_text<kGate, kGateBias>() + ", " +
         detail::slots_text<kUp, kUpBias>() + ", " + detail::text_of(node.width) +
         detail::activation_argument<Activation>() + ")";
}
template <class Slots, class Activation, Index W>
std::string describe(const Experts<Slots, Activation, W>& node) {
  return "experts(" + detail::slot_text<Slots::router>() + ", " +
         detail::text_of(node.routing.n_used) + " of " + detail::text_of(node.routing.n_experts) +
         ", " + detail::text_of(node.ffn_dim) + ", " + detail::text_of(node.width) +
         detail::activation_argument<Activation>() + ")";
}
inline std::string describe(const SigmoidRows&) { return "sigmoid_rows"; }
template <class Norm, class Products>
std::string describe(const NormInto<Norm, Products>& node) {
  return "norm_into(" + describe(node.norm) + ", " + describe(node.products) + ")";
}
template <class Prefix, class LinearType>
std::string describe(const ResidualInto<Prefix, LinearType>& node) {
  return "residual_into(" + describe(node.prefix) + ", " + describe(node.linear) + ")";
}

}}}  // namespace nibble::NIBBLE_ABI::graph
