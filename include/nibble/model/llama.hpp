// SPDX-License-Identifier: Apache-2.0
//
// The Llama architecture (Touvron et al. 2023): RMSNorm before each half of a layer, rotary
// positions, grouped-query attention, gated SiLU feed-forward, output tied to the embedding or not;
// biases of products, which models have that were converted to this architecture (Qwen, InternLM).
#pragma once

#include "nibble/graph/expr.hpp"
#include "nibble/model/config.hpp"
#include "nibble/model/gguf_config.hpp"
#include "nibble/model/slot.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// From tokens to logits (outputs, vocab_size). RopeStyle: GGUF files of this architecture store q
// and k for AdjacentPairs.
template <class RopeStyle = kernels::AdjacentPairs, class Dims>
constexpr auto llama(const Dims& d) {
  using namespace graph;
  using enum Slot;
  const Heads heads{d.n_heads, d.n_kv_heads, d.head_dim, inverse_sqrt(d.head_dim), Index{d.window}};
  const RopeAngles angles{d.rope_dim, d.rope_theta, d.rope_scale};

  const auto attention = rms_norm<attn_norm>(d.norm_eps) >>
                         fork(linear<attn_q, optional_slot(attn_q_bias)>(heads.width()),
                              linear<attn_k, optional_slot(attn_k_bias)>(heads.kv_width()),
                              linear<attn_v, optional_slot(attn_v_bias)>(heads.kv_width())) >>
                         rope<RopeStyle, optional_slot(rope_freqs)>(heads, angles) >>
                         cache_kv(heads) >> scores(heads) >> softmax(heads) >>
                         attend_values(heads) >>
                         linear<attn_output, optional_slot(attn_output_bias)>(d.dim);

  const auto feed_forward =
      rms_norm<ffn_norm>(d.norm_eps) >>
      fork(linear<ffn_gate, optional_slot(ffn_gate_bias)>(d.ffn_dim) >> silu(),
           linear<ffn_up, optional_slot(ffn_up_bias)>(d.ffn_dim)) >>
      multiply() >> linear<ffn_down, optional_slot(ffn_down_bias)>(d.dim);

  return embedding<token_embd>(d.dim, d.vocab_size) >>
         repeat(d.n_layers, residual(attention) >> residual(feed_forward)) >> output_rows() >>
         rms_norm<output_norm>(d.norm_eps) >> linear<tied_slot(output, token_embd)>(d.vocab_size);
}

struct Llama {
  using Config = ModelConfig;
  static constexpr std::string_view kName = "llama";

  static Result<Config> config(const io::Gguf& file) {
    NIBBLE_TRY(c, transformer_config(file, "attention.layer_norm_rms_epsilon"));
    NIBBLE_CHECK(read_rope_config(file, c));
    return c;
  }
  static constexpr auto expression(const Config& c) { return llama(c); }
};

}}  // namespace nibble::NIBBLE_ABI
