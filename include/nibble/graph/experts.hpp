// SPDX-License-Identifier: Apache-2.0
//
// Nodes of mixture-of-experts layers; apply_experts.hpp says what they mean.
//
//   struct Mine : graph::ExpertSlots<Slot::router, Slot::gate, Slot::up, Slot::down> {};
//   residual(rms_norm<Slot::norm>(eps) >> experts<Mine>(routing, d.expert_dim, d.dim))
#pragma once

#include "nibble/graph/expr.hpp"
#include "nibble/ops/route.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

using ops::RouterScores;
using ops::Routing;

// The slots of the weights of experts. A type derived from it hides those that it has, too.
template <auto kRouter, auto kGate, auto kUp, auto kDown>
struct ExpertSlots {
  static constexpr auto router = kRouter;     // (n_experts, k)
  static constexpr auto gate = kGate;         // n_experts matrices (ffn_dim, k)
  static constexpr auto up = kUp;             // the same
  static constexpr auto down = kDown;         // n_experts matrices (width, ffn_dim)
  static constexpr auto router_bias = kNone;  // (n_experts)
  static constexpr auto choice_bias = kNone;  // (n_experts), for the choice of experts alone
  static constexpr auto scale = kNone;        // (n_experts), factors of what experts count
  static constexpr auto gate_bias = kNone;    // n_experts vectors (ffn_dim)
  static constexpr auto up_bias = kNone;      // the same
  static constexpr auto down_bias = kNone;    // n_experts vectors (width)
  // The experts of each token: a table (n_tokens, n_used) of their numbers. The router then decides
  // only how much they count; a row that is no token uses those that it chooses. It may be missing.
  static constexpr auto of_token = kNone;
};

// gpt-oss: gate * sigmoid(1.702 gate) * (up + 1), the gate at most 7, up from -7 to 7.
struct ClampedSwiglu {
  friend const char* to_string(ClampedSwiglu) noexcept { return "clamped_swiglu"; }
  static constexpr float kSlope = 1.702f;
  static constexpr float kLimit = 7;
};

// Of rows x, or of a pair (r, x): r is then what the router reads. Each row is multiplied by the
// matrices of the experts that the router chooses for it: the sum of
// weight * down · (Activation(gate · x + bias) * (up · x + bias)) + bias over them. Rows are
// grouped by expert, so that the matrices of an expert are read once in a step, and those of
// experts that no row uses not at all.
template <class Slots, class Activation, Index W>
struct Experts : Node {
  Routing routing;
  Dim<> ffn_dim;
  [[no_unique_address]] Dim<W> width;
  Index n_tokens = 0;  // rows of ExpertSlots::of_token; 0: not checked
};
template <class Slots, class Activation = kernels::Silu, Index W>
constexpr auto experts(const Routing& routing, Dim<> ffn_dim, Dim<W> width, Index n_tokens = 0) {
  return Experts<Slots, Activation, W>{{}, routing, ffn_dim, width, n_tokens};
}

// x * sigmoid(s) of a pair (rows x, one number s for each), written to x: how much an expert counts
// that all rows share.
struct SigmoidRows : Node {};
constexpr auto sigmoid_rows() { return SigmoidRows{}; }

}}}  // namespace nibble::NIBBLE_ABI::graph
