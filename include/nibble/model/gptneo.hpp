// SPDX-License-Identifier: Apache-2.0
//
// The GPT-Neo architecture: GPT-2 with q, k and v apart and without biases, scores that are not
// scaled, and a window in each second layer.
#pragma once

#include <string_view>
#include <utility>

#include "nibble/graph/expr.hpp"
#include "nibble/model/decoder_config.hpp"
#include "nibble/model/slot.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// From tokens to logits (outputs, vocab_size).
template <class Dims>
auto gptneo(const Dims& d) {
  using namespace graph;
  using enum Slot;
  const auto heads = d.heads();

  const auto attention = layer_norm<attn_norm, attn_norm_bias>(d.norm_eps) >>
                         fork(linear<attn_q>(heads.width()), linear<attn_k>(heads.kv_width()),
                              linear<attn_v>(heads.kv_width())) >>
                         cache_kv(heads) >> scores(heads) >> softmax(heads) >>
                         attend_values(heads) >> linear<attn_output, attn_output_bias>(d.dim);

  const auto feed_forward = layer_norm<ffn_norm, ffn_norm_bias>(d.norm_eps) >>
                            linear<ffn_up, ffn_up_bias>(d.ffn_dim) >> gelu_tanh() >>
                            linear<ffn_down, ffn_down_bias>(d.dim);

  return fork(embedding<token_embd>(d.dim, d.vocab_size),
              position_embedding<position_embd>(d.dim, d.n_ctx)) >>
         sum() >> repeat(d.n_layers, residual(attention) >> residual(feed_forward)) >>
         output_rows() >> layer_norm<output_norm, output_norm_bias>(d.norm_eps) >>
         linear<tied_slot(output, token_embd)>(d.vocab_size);
}

struct GptNeo {
  using Config = DecoderConfig;
  static constexpr std::string_view kName = "gptneo";

  static Result<Config> config(const io::Gguf& file) {
    NIBBLE_TRY(c, decoder_config(file, "attention.layer_norm_epsilon"));
    if (file.find("gptneo.attention.scale") == nullptr) c.attention_scale = 1;
    NIBBLE_TRY(windows, gguf_windows(file, c, 0));
    c.windows = std::move(windows);
    return c;
  }
  template <class Dims>
  static auto expression(const Dims& c) {
    return gptneo(c);
  }
  template <DimsByReference Dims>
  static void expression(const Dims&&) = delete;
};

}}  // namespace nibble::NIBBLE_ABI
