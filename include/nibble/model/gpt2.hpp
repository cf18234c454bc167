// SPDX-License-Identifier: Apache-2.0
//
// The GPT-2 architecture (Radford et al. 2019): LayerNorm before each half of a layer, learned
// positions, q, k and v from one product, GELU (tanh approximation) feed-forward, biases
// everywhere.
#pragma once

#include "nibble/graph/expr.hpp"
#include "nibble/model/config.hpp"
#include "nibble/model/gguf_config.hpp"
#include "nibble/model/slot.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// From tokens to logits (outputs, vocab_size). The taps name every intermediate result.
template <class Dims>
constexpr auto gpt2(const Dims& d) {
  using namespace graph;
  using enum Slot;
  const Heads heads{d.n_heads, d.n_kv_heads, d.head_dim, inverse_sqrt(d.head_dim), Index{d.window}};

  const auto attention =
      layer_norm<attn_norm, attn_norm_bias>(d.norm_eps) >> tap<"ln1">() >>
      linear<attn_qkv, attn_qkv_bias>(heads.width() + heads.kv_width() + heads.kv_width()) >>
      tap<"qkv">() >> split(heads.width(), heads.kv_width(), heads.kv_width()) >>
      tap<"q", "k", "v">() >> cache_kv(heads) >> scores(heads) >> tap<"att">() >> softmax(heads) >>
      tap<"attSm">() >> attend_values(heads) >> tap<"y">() >>
      linear<attn_output, attn_output_bias>(d.dim) >> tap<"yProj">();

  const auto feed_forward = layer_norm<ffn_norm, ffn_norm_bias>(d.norm_eps) >> tap<"ln2">() >>
                            linear<ffn_up, ffn_up_bias>(d.ffn_dim) >> tap<"fc">() >> gelu_tanh() >>
                            tap<"gelu">() >> linear<ffn_down, ffn_down_bias>(d.dim) >> tap<"mlp">();

  return fork(embedding<token_embd>(d.dim, d.vocab_size) >> tap<"tok_emb">(),
              position_embedding<position_embd>(d.dim, d.n_ctx) >> tap<"pos_emb">()) >>
         sum() >> tap<"x">() >>
         repeat(d.n_layers, residual(attention) >> tap<"attnResid">() >> residual(feed_forward) >>
                                tap<"mlpResid">()) >>
         output_rows() >> layer_norm<output_norm, output_norm_bias>(d.norm_eps) >> tap<"ln_f">() >>
         linear<tied_slot(output, token_embd)>(d.vocab_size) >> tap<"lm_head">();
}

struct Gpt2 {
  using Config = ModelConfig;
  static constexpr std::string_view kName = "gpt2";

  static Result<Config> config(const io::Gguf& file) {
    return transformer_config(file, "attention.layer_norm_epsilon");
  }
  template <class Dims>
  static constexpr auto expression(const Dims& c) {
    return gpt2(c);
  }
};

}}  // namespace nibble::NIBBLE_ABI
