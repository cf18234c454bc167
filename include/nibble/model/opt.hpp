// SPDX-License-Identifier: Apache-2.0
//
// The OPT architecture (Zhang et al. 2022): learned positions, LayerNorm before each half of a
// layer, ReLU feed-forward, biases everywhere.
#pragma once

#include <string_view>

#include "nibble/graph/expr.hpp"
#include "nibble/model/config.hpp"
#include "nibble/model/gguf_config.hpp"
#include "nibble/model/slot.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// From tokens to logits (outputs, vocab_size).
template <class Dims>
constexpr auto opt(const Dims& d) {
  using namespace graph;
  using enum Slot;
  const Heads heads{d.n_heads, d.n_kv_heads, d.head_dim, inverse_sqrt(d.head_dim), Index{d.window}};

  const auto attention = layer_norm<attn_norm, attn_norm_bias>(d.norm_eps) >>
                         fork(linear<attn_q, attn_q_bias>(heads.width()),
                              linear<attn_k, attn_k_bias>(heads.kv_width()),
                              linear<attn_v, attn_v_bias>(heads.kv_width())) >>
                         cache_kv(heads) >> scores(heads) >> softmax(heads) >>
                         attend_values(heads) >> linear<attn_output, attn_output_bias>(d.dim);

  const auto feed_forward = layer_norm<ffn_norm, ffn_norm_bias>(d.norm_eps) >>
                            linear<ffn_up, ffn_up_bias>(d.ffn_dim) >> relu() >>
                            linear<ffn_down, ffn_down_bias>(d.dim);

  return fork(embedding<token_embd>(d.dim, d.vocab_size),
              position_embedding<position_embd>(d.dim, d.n_ctx)) >>
         sum() >> repeat(d.n_layers, residual(attention) >> residual(feed_forward)) >>
         output_rows() >> layer_norm<output_norm, output_norm_bias>(d.norm_eps) >>
         linear<tied_slot(output, token_embd)>(d.vocab_size);
}

struct Opt {
  using Config = ModelConfig;
  static constexpr std::string_view kName = "opt";

  static Result<Config> config(const io::Gguf& file) {
    return transformer_config(file, "attention.layer_norm_epsilon");
  }
  template <class Dims>
  static constexpr auto expression(const Dims& c) {
    return opt(c);
  }
};

}}  // namespace nibble::NIBBLE_ABI
