// SPDX-License-Identifier: Apache-2.0
//
// The GPT-2 architecture (Radford et al. 2019): LayerNorm before each half of a layer, learned
// positions, q, k and v from one product, GELU (tanh form) feed-forward, biases everywhere.
#pragma once

#include "nibble/graph/expr.hpp"
#include "nibble/model/config.hpp"
#include "nibble/model/slot.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// From tokens to logits (outputs, vocab_size). The taps name every intermediate result.
template <class Dims>
constexpr auto gpt2(const Dims& d) {
  using namespace graph;
  using enum Slot;
  const Heads heads{d.n_heads, d.n_kv_heads, d.head_dim, inverse_sqrt(d.head_dim), d.window};
  const auto kv_width = d.n_kv_heads * d.head_dim;

  const auto attention = layer_norm<attn_norm, attn_norm_bias>(d.norm_eps) >> tap<"ln1">() >>
                         linear<attn_qkv, attn_qkv_bias>(heads.width() + kv_width + kv_width) >>
                         tap<"qkv">() >> split(heads.width(), kv_width, kv_width) >>
                         tap<"q", "k", "v">() >> cache_kv(heads) >> scores(heads) >> tap<"att">() >>
                         softmax(heads) >> tap<"attSm">() >> attend_values(heads) >> tap<"y">() >>
                         linear<attn_output, attn_output_bias>(d.dim) >> tap<"yProj">();

  const auto feed_forward = layer_norm<ffn_norm, ffn_norm_bias>(d.norm_eps) >> tap<"ln2">() >>
                            linear<ffn_up, ffn_up_bias>(d.ffn_dim) >> tap<"fc">() >> gelu_tanh() >>
                            tap<"gelu">() >> linear<ffn_down, ffn_down_bias>(d.dim) >> tap<"mlp">();

  return fork(embedding<token_embd>(d.dim) >> tap<"tok_emb">(),
              position_embedding<position_embd>(d.dim) >> tap<"pos_emb">()) >>
         sum() >> tap<"x">() >>
         repeat(d.n_layers, residual(attention) >> tap<"attnResid">() >> residual(feed_forward) >>
                                tap<"mlpResid">()) >>
         last_rows() >> layer_norm<output_norm, output_norm_bias>(d.norm_eps) >> tap<"ln_f">() >>
         linear<output>(d.vocab_size) >> tap<"lm_head">();
}

}}  // namespace nibble::NIBBLE_ABI
