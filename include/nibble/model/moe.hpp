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

// What there is of experts. Any model may have a table with the experts of each token
// (Slot::expert_of_token), in some layers or all: nothing is chosen there.
struct ExpertConfig {
  graph::Routing routing;
  Dim<> expert_ffn_dim;  // rows of the matrices of one expert
  Dim<> shared_ffn_dim;  // of the expert that all tokens use, where there is one
};

struct MoeConfig : DecoderConfig, ExpertConfig {
  MoeConfig() = default;
  MoeConfig(DecoderConfig c) noexcept : DecoderConfig(std::move(c)) {}  // NOLINT: those are one
};

namespace detail {

struct ExpertsOfLayer : graph::ExpertSlots<Slot::ffn_gate_inp, Slot::ffn_gate_exps,
                                           Slot::ffn_up_exps, Slot::ffn_down_exps> {
  static constexpr auto of_token = graph::optional_slot(Slot::expert_of_token);
};

template <class Slots = ExpertsOfLayer, class Activation = kernels::Silu>
auto chosen_experts(const ExpertConfig& e, const ModelConfig& d) {
  return graph::experts<Slots, Activation>(e.routing, e.expert_ffn_dim, d.dim, d.vocab_size);
}

// The expert that all tokens use, without a norm.
inline auto shared_expert(const ExpertConfig& e, const ModelConfig& d) {
  using namespace graph;
  using enum Slot;
  return fork(linear<ffn_gate_shexp>(e.shared_ffn_dim) >> silu(),
              linear<ffn_up_shexp>(e.shared_ffn_dim)) >>
         multiply() >> linear<ffn_down_shexp>(d.dim);
}

// Chosen experts, and one that all tokens use times the sigmoid of a product.
inline auto experts_and_gated(const ExpertConfig& e, const ModelConfig& d) {
  using namespace graph;
  return fork(chosen_experts(e, d),
              fork(shared_expert(e, d), linear<Slot::ffn_gate_inp_shexp>(Dim<>{1})) >>
                  sigmoid_rows()) >>
         sum();
}

}  // namespace detail

// Reads how rows of a model of these dimensions are sent to experts: <architecture>.expert_count
// and what belongs to it. The values that `defaults` has are those of files that do not state them.
// Errors: not_found, malformed (numbers that do not go together), unsupported (scores of another
// kind).
inline Result<ExpertConfig> expert_config(const io::Gguf& file, const ModelConfig& d,
                                          const graph::Routing& defaults) {
  const std::string arch = d.architecture + ".";
  ExpertConfig e;
  graph::Routing& r = e.routing = defaults;
  constexpr std::uint64_t kMost = ops::kMaxExperts;
  NIBBLE_TRY(n_experts, gguf_dim(file, arch + "expert_count", kMost));
  NIBBLE_TRY(n_used, gguf_dim(file, arch + "expert_used_count", kMost));
  NIBBLE_TRY(n_groups, gguf_dim_or(file, arch + "expert_group_count", kMost, 1));
  NIBBLE_TRY(n_used_groups, gguf_dim_or(file, arch + "expert_group_used_count", kMost, n_groups));
  NIBBLE_TRY(ffn_dim,
             gguf_dim_or(file, arch + "expert_feed_forward_length", kMaxDim, Index{d.ffn_dim}));
  NIBBLE_TRY(is_normalized, file.get_bool_or(arch + "expert_weights_norm", r.is_normalized));
  NIBBLE_TRY(scale, gguf_positive_or(file, arch + "expert_weights_scale", r.scale));
  r.n_experts = n_experts;
  r.n_used = n_used;
  r.n_groups = n_groups;
  r.n_used_groups = n_used_groups;
  r.is_normalized = is_normalized;
  r.scale = scale;
  e.expert_ffn_dim = ffn_dim;
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
  return e;
}
// The same for a configuration that has both. (Architectures write it as a statement.)
template <class C>
Result<void> read_experts(const io::Gguf& file, const graph::Routing& defaults, C& c) {
  NIBBLE_TRY(e, expert_config(file, c, defaults));
  static_cast<ExpertConfig&>(c) = e;
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

// The size of the expert that all tokens use. Errors: not_found, malformed.
inline Result<Index> gguf_shared_expert_dim(const io::Gguf& file, const ModelConfig& d) {
  return gguf_dim(file, d.architecture + ".expert_shared_feed_forward_length", kMaxDim);
}

// Experts alone.
inline auto llama_moe(const MoeConfig& d) {
  return llama_with(d, nibble::detail::chosen_experts(d, d));
}
void llama_moe(const MoeConfig&&) = delete;

// Experts and one that all tokens use.
inline auto llama_shared_moe(const MoeConfig& d) {
  using namespace graph;
  return llama_with(
      d, fork(nibble::detail::chosen_experts(d, d), nibble::detail::shared_expert(d, d)) >> sum());
}
void llama_shared_moe(const MoeConfig&&) = delete;

}}  // namespace nibble::NIBBLE_ABI
