// SPDX-License-Identifier: Apache-2.0
//
// The Phi architecture (Phi 1, 1.5 and 2): one LayerNorm before attention and feed-forward, which
// are side by side, rotation in halves of a part of each head, GELU (tanh approximation), biases
// everywhere, also of the logits.
#pragma once

#include <string_view>

#include "nibble/graph/expr.hpp"
#include "nibble/model/decoder_config.hpp"
#include "nibble/model/slot.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// From tokens to logits (outputs, vocab_size).
template <class Dims>
auto phi2(const Dims& d) {
  using namespace graph;
  using enum Slot;
  const auto heads = d.heads();

  const auto attention = fork(linear<attn_q, attn_q_bias>(heads.width()),
                              linear<attn_k, attn_k_bias>(heads.kv_width()),
                              linear<attn_v, attn_v_bias>(heads.kv_width())) >>
                         rope<kernels::HalfSplit>(heads, d.rope_angles()) >> cache_kv(heads) >>
                         scores(heads) >> softmax(heads) >> attend_values(heads) >>
                         linear<attn_output, attn_output_bias>(d.dim);

  const auto feed_forward = linear<ffn_up, ffn_up_bias>(d.ffn_dim) >> gelu_tanh() >>
                            linear<ffn_down, ffn_down_bias>(d.dim);

  return embedding<token_embd>(d.dim, d.vocab_size) >>
         repeat(d.n_layers, residual(layer_norm<attn_norm, attn_norm_bias>(d.norm_eps) >>
                                     fork(attention, feed_forward) >> sum())) >>
         output_rows() >> layer_norm<output_norm, output_norm_bias>(d.norm_eps) >>
         linear<output, output_bias>(d.vocab_size);
}

struct Phi2 {
  using Config = DecoderConfig;
  static constexpr std::string_view kName = "phi2";

  static Result<Config> config(const io::Gguf& file) {
    return decoder_config(file, "attention.layer_norm_epsilon");
  }
  template <class Dims>
  static auto expression(const Dims& c) {
    return phi2(c);
  }
  template <DimsByReference Dims>
  static void expression(const Dims&&) = delete;
};

}}  // namespace nibble::NIBBLE_ABI
