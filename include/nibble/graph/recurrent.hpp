// SPDX-License-Identifier: Apache-2.0
//
// Nodes of recurrent layers, whose sequences keep a state instead of keys and values, and of the
// attention between such layers; apply_recurrent.hpp defines what they mean. What a row gives, and
// the state after it, does not depend on how the rows before it were cut into steps, nor on the
// kind of its segment: what differs between the rows of a prompt and generated ones comes from
// products and attention alone.
#pragma once

#include <string>

#include "nibble/core/text.hpp"
#include "nibble/graph/expr.hpp"
#include "nibble/kernels/delta_rule.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

// ---- Nodes -------------------------------------------------------------------------------------

// (before, after, x), 3 * width columns: after * conv(before * x), where conv is a causal
// convolution of each channel; taps (width, n_taps), the newest last.
template <auto kTaps, Index W>
struct ShortConv : Node {
  [[no_unique_address]] Dim<W> width;
  Index n_taps;
};
template <auto kTaps, Index W>
constexpr auto short_conv(Dim<W> width, Index n_taps) {
  return ShortConv<kTaps, W>{{}, width, n_taps};
}

// A gated delta net, of four results (queries and keys and values, z, alpha, beta): the first is
// convolved, with SiLU; queries and keys get length 1; each head goes on by the delta rule
// (kernels/delta_rule.hpp) with decays exp(a * softplus(alpha + dt)) and betas sigmoid(beta); its
// results become SiLU(z) * RMSNorm of them. kTaps (width, n_taps); kA and kDt (n_heads); kNorm
// (value_dim).
template <auto kTaps, auto kA, auto kDt, auto kNorm>
struct DeltaNet : Node {
  kernels::DeltaHeads heads;
  Index n_taps;
  float eps;
};
template <auto kTaps, auto kA, auto kDt, auto kNorm>
constexpr auto delta_net(const kernels::DeltaHeads& heads, Index n_taps, float eps) {
  return DeltaNet<kTaps, kA, kDt, kNorm>{{}, heads, n_taps, eps};
}

// A Mamba-2 layer, of three results (z, x and keys and queries, dt): the second is convolved, with
// SiLU; each head goes on by the decayed sum (kernels/delta_rule.hpp) with betas softplus(dt) and
// decays exp(a * beta), all of them with the same keys and queries; its result is that plus d * x,
// and becomes RMSNorm(SiLU(z) * all of them). kTaps (width, n_taps); kA and kD (n_heads, 1); kDt
// (n_heads); kNorm (width of z).
template <auto kTaps, auto kConvBias, auto kA, auto kD, auto kDt, auto kNorm>
struct Mamba2 : Node {
  kernels::DeltaHeads heads;
  Index n_taps;
  float eps;
};
template <auto kTaps, auto kConvBias, auto kA, auto kD, auto kDt, auto kNorm>
constexpr auto mamba2(const kernels::DeltaHeads& heads, Index n_taps, float eps) {
  return Mamba2<kTaps, kConvBias, kA, kD, kDt, kNorm>{{}, heads, n_taps, eps};
}

// Attention whose result is multiplied by sigmoid(gate). The first result of its (q, k, v) has, for
// each head, its q and then its gate; `body` is the attention of (q, k, v).
template <class HeadsType, Expr Body>
struct GatedAttention : Node {
  HeadsType heads;
  Body body;
  constexpr GatedAttention(const HeadsType& h, const Body& b) : heads(h), body(b) {}
};
template <class HeadsType, Expr Body>
constexpr auto gated_attention(const HeadsType& heads, const Body& body) {
  return GatedAttention<HeadsType, Body>(heads, body);
}
template <class HeadsType, Expr Body>
NIBBLE_COLD constexpr auto fuse(const GatedAttention<HeadsType, Body>& node) {
  return gated_attention(node.heads, fuse(node.body));
}

template <auto kTaps, Index W>
std::string describe(const ShortConv<kTaps, W>& node) {
  return "short_conv(" + to_text(node.n_taps) + ")";
}
template <auto kTaps, auto kA, auto kDt, auto kNorm>
std::string describe(const DeltaNet<kTaps, kA, kDt, kNorm>& node) {
  return "delta_net(" + to_text(node.heads.n_heads) + "/" + to_text(node.heads.n_key_heads) + ")";
}
template <auto kTaps, auto kConvBias, auto kA, auto kD, auto kDt, auto kNorm>
std::string describe(const Mamba2<kTaps, kConvBias, kA, kD, kDt, kNorm>& node) {
  return "mamba2(" + to_text(node.heads.n_heads) + ")";
}
template <class HeadsType, Expr Body>
std::string describe(const GatedAttention<HeadsType, Body>& node) {
  return "gated_attention(" + describe(node.body) + ")";
}

}}}  // namespace nibble::NIBBLE_ABI::graph
