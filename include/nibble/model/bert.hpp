// SPDX-License-Identifier: Apache-2.0
//
// The BERT architecture (Devlin et al. 2019; MiniLM, BGE, mxbai, E5), an encoder: learned
// positions, attention to all of the text, LayerNorm after each half of a layer, GELU, biases
// everywhere.
#pragma once

#include <utility>

#include "nibble/graph/expr.hpp"
#include "nibble/model/encoder.hpp"
#include "nibble/model/encoder_config.hpp"
#include "nibble/model/slot.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// From tokens to one row for each text (texts, dim).
template <class Dims>
auto bert(const Dims& d) {
  using namespace graph;
  using enum Slot;
  const auto heads = d.heads();
  const auto attention = fork(linear<attn_q, attn_q_bias>(heads.width()),
                              linear<attn_k, attn_k_bias>(heads.kv_width()),
                              linear<attn_v, attn_v_bias>(heads.kv_width())) >>
                         cache_kv(heads) >> scores(heads) >> softmax(heads) >>
                         attend_values(heads) >> linear<attn_output, attn_output_bias>(d.dim);

  const auto feed_forward = linear<ffn_up, ffn_up_bias>(d.ffn_dim) >> gelu_erf() >>
                            linear<ffn_down, ffn_down_bias>(d.dim);

  return encoder(d,
                 fork(embedding<token_embd>(d.dim, d.vocab_size),
                      position_embedding<position_embd>(d.dim, d.n_ctx)) >>
                     sum(),
                 attention, feed_forward);
}

struct Bert {
  using Config = EncoderConfig;
  static constexpr std::string_view kName = "bert";

  static Result<Config> config(const io::Gguf& file) {
    NIBBLE_TRY(base, transformer_config(file, "attention.layer_norm_epsilon"));
    return encoder_config(file, DecoderConfig(std::move(base)));
  }
  template <class Dims>
  static auto expression(const Dims& c) {
    return bert(c);
  }
  template <DimsByReference Dims>
  static void expression(const Dims&&) = delete;
};

}}  // namespace nibble::NIBBLE_ABI
