// SPDX-License-Identifier: Apache-2.0
//
// The GPT-NeoX architecture (Pythia): LayerNorm, q, k and v from one product, rotation in halves of
// a part of each head, GELU; attention and feed-forward side by side in most models; biases
// everywhere.
#pragma once

#include "nibble/graph/expr.hpp"
#include "nibble/model/decoder_config.hpp"
#include "nibble/model/slot.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct GptNeoxConfig : DecoderConfig {
  bool is_parallel = true;
};

// From tokens to logits (outputs, vocab_size).
template <class Dims>
auto gptneox(const Dims& d) {
  using namespace graph;
  using enum Slot;
  const auto heads = d.heads();
  const auto attention =
      layer_norm<attn_norm, attn_norm_bias>(d.norm_eps) >>
      linear<attn_qkv, attn_qkv_bias>(heads.width() + heads.kv_width() + heads.kv_width()) >>
      split(heads.width(), heads.kv_width(), heads.kv_width()) >>
      rope<kernels::HalfSplit>(heads, d.rope_angles()) >> cache_kv(heads) >> scores(heads) >>
      softmax(heads) >> attend_values(heads) >> linear<attn_output, attn_output_bias>(d.dim);

  const auto feed_forward = layer_norm<ffn_norm, ffn_norm_bias>(d.norm_eps) >>
                            linear<ffn_up, ffn_up_bias>(d.ffn_dim) >> gelu_erf() >>
                            linear<ffn_down, ffn_down_bias>(d.dim);

  return embedding<token_embd>(d.dim, d.vocab_size) >>
         repeat(d.n_layers,
                when(d.is_parallel, residual(fork(attention, feed_forward) >> sum())) >>
                    when(!d.is_parallel, residual(attention) >> residual(feed_forward))) >>
         output_rows() >> layer_norm<output_norm, output_norm_bias>(d.norm_eps) >>
         linear<tied_slot(output, token_embd)>(d.vocab_size);
}

struct GptNeox {
  using Config = GptNeoxConfig;
  static constexpr std::string_view kName = "gptneox";

  static Result<Config> config(const io::Gguf& file) {
    NIBBLE_TRY(base, decoder_config(file, "attention.layer_norm_epsilon"));
    NIBBLE_TRY(is_parallel, file.get_bool_or("gptneox.use_parallel_residual", true));
    return Config{{std::move(base)}, is_parallel};
  }
  template <class Dims>
  static auto expression(const Dims& c) {
    return gptneox(c);
  }
  template <DimsByReference Dims>
  static void expression(const Dims&&) = delete;
};

}}  // namespace nibble::NIBBLE_ABI
