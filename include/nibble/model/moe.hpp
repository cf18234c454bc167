// SPDX-License-Identifier: Apache-2.0
//
// Decoders whose feed-forward parts are mixtures of experts: what they have in common.
#pragma once

#include <string>
#include <utility>

#include "nibble/graph/apply_experts.hpp"
#include "nibble/graph/experts.hpp"
#include "nibble/graph/expr.hpp"
#include "nibble/model/decoder_config.hpp"
#include "nibble/model/llama.hpp"
#include "nibble/model/slot.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct MoeConfig : DecoderConfig {
  MoeConfig() = default;
  MoeConfig(DecoderConfig c) noexcept : DecoderConfig(std::move(c)) {}  // NOLINT: those are one

  graph::Routing routing;
  Dim<> expert_ffn_dim;  // rows of the matrices of one expert
  Dim<> shared_ffn_dim;  // of the expert that all tokens use, where there is one
};

namespace detail {

struct ExpertsOfLayer : graph::ExpertSlots<Slot::ffn_gate_inp, Slot::ffn_gate_exps,
                                           Slot::ffn_up_exps, Slot::ffn_down_exps> {};

// The expert that all tokens use, without a norm.
inline auto shared_expert(const MoeConfig& d) {
  using namespace graph;
  using enum Slot;
  return fork(linear<ffn_gate_shexp>(d.shared_ffn_dim) >> silu(),
              linear<ffn_up_shexp>(d.shared_ffn_dim)) >>
         multiply() >> linear<ffn_down_shexp>(d.dim);
}

}  // namespace detail

// Reads how rows are sent to experts: <architecture>.expert_count and what belongs to it. The
// values that `defaults` has are those of files that do not state them. Errors: not_found,
// malformed (numbers that do not go together), unsupported (scores of another kind).
inline Result<void> read_experts(const io::Gguf& file, const graph::Routing& defaults,
                                 MoeConfig& c) {
  const std::string arch = c.architecture + ".";
  graph::Routing& r = c.routing = defaults;
  constexpr std::uint64_t kMost = ops::kMaxExperts;
  NIBBLE_TRY(n_experts, gguf_dim(file, arch + "expert_count", kMost));
  NIBBLE_TRY(n_used, gguf_dim(file, arch + "expert_used_count", kMost));
  NIBBLE_TRY(n_groups, gguf_dim_or(file, arch + "expert_group_count", kMost, 1));
  NIBBLE_TRY(n_used_groups, gguf_dim_or(file, arch + "expert_group_used_count", kMost, n_groups));
  NIBBLE_TRY(ffn_dim,
             gguf_dim_or(file, arch + "expert_feed_forward_length", kMaxDim, Index{c.ffn_dim}));
  NIBBLE_TRY(is_normalized, file.get_bool_or(arch + "expert_weights_norm", r.is_normalized));
  NIBBLE_TRY(scale, gguf_positive_or(file, arch + "expert_weights_scale", r.scale));
  r.n_experts = n_experts;
  r.n_used = n_used;
  r.n_groups = n_groups;
  r.n_used_groups = n_used_groups;
  r.is_normalized = is_normalized;
  r.scale = scale;
  c.expert_ffn_dim = ffn_dim;
  if (file.find(arch + "expert_gating_func") != nullptr) {
    NIBBLE_TRY(kind, file.get_u64(arch + "expert_gating_func"));
    constexpr graph::RouterScores kKinds[] = {graph::RouterScores::softmax,
                                              graph::RouterScores::sigmoid,
                                              graph::RouterScores::softmax_of_chosen};
    if (kind < 1 || kind > 3) {
      return Error{Errc::unsupported, file.name() + ": key '" + arch + "expert_gating_func': " +
                                          to_text(kind) + " is not 1, 2 or 3"};
    }
    r.scores = kKinds[kind - 1];
  }
  if (const char* const error = ops::routing_error(r)) {
    return Error{Errc::malformed, file.name() + ": " + to_text(n_used) + " of " +
                                      to_text(n_experts) + " experts, " + to_text(n_used_groups) +
                                      " of " + to_text(n_groups) + " groups: " + error};
  }
  return ok();
}

// Llama's layers with `feed_forward` instead of their second half, from tokens to logits (outputs,
// vocab_size).
template <class FeedForward>
auto llama_with(const MoeConfig& d, const FeedForward& feed_forward) {
  using namespace graph;
  using enum Slot;
  const auto heads = d.layer_heads();
  const auto attention =
      nibble::detail::llama_attention(d, heads, nibble::detail::layer_widths(d, heads));
  return embedding<token_embd>(d.dim, d.vocab_size, d.embedding_scale, d.given_scale) >>
         repeat(d.n_layers, residual(attention) >>
                                residual(rms_norm<ffn_norm>(d.norm_eps) >> feed_forward) >>
                                tap<"layer">()) >>
         output_rows() >> rms_norm<output_norm>(d.norm_eps) >>
         linear<tied_slot(output, token_embd)>(d.vocab_size) >> scale(d.logit_scale);
}

// Reads the size of the expert that all tokens use. Errors: not_found, malformed.
inline Result<void> read_shared_expert(const io::Gguf& file, MoeConfig& c) {
  NIBBLE_TRY(dim, gguf_dim(file, c.architecture + ".expert_shared_feed_forward_length", kMaxDim));
  c.shared_ffn_dim = dim;
  return ok();
}

// Experts alone.
inline auto llama_moe(const MoeConfig& d) {
  return llama_with(
      d, graph::experts<nibble::detail::ExpertsOfLayer>(d.routing, d.expert_ffn_dim, d.dim));
}
void llama_moe(const MoeConfig&&) = delete;

// Experts and one that all tokens use.
inline auto llama_shared_moe(const MoeConfig& d) {
  using namespace graph;
  return llama_with(
      d, fork(experts<nibble::detail::ExpertsOfLayer>(d.routing, d.expert_ffn_dim, d.dim),
              nibble::detail::shared_expert(d)) >>
             sum());
}
void llama_shared_moe(const MoeConfig&&) = delete;

}}  // namespace nibble::NIBBLE_ABI
