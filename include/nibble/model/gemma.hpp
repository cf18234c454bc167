// SPDX-License-Identifier: Apache-2.0
//
// The expression that Gemma 2 and 3 share: Llama with scaled embeddings, GELU, norms of the results
// of both halves of a layer too, norms of heads or soft caps, windows in some layers.
#pragma once

#include "nibble/graph/expr.hpp"
#include "nibble/model/decoder_config.hpp"
#include "nibble/model/slot.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// The layers, from embeddings on.
template <class Heads>
auto gemma_layers(const DecoderConfig& d, const Heads& heads) {
  using namespace graph;
  using enum Slot;
  const auto attention =
      rms_norm<attn_norm>(d.norm_eps) >>
      fork(linear<attn_q>(heads.width()), linear<attn_k>(heads.kv_width()),
           linear<attn_v>(heads.kv_width())) >>
      when(d.has_head_norms, head_norm<attn_q_norm, attn_k_norm>(heads, d.norm_eps)) >>
      rope<kernels::HalfSplit>(heads, d.rope_angles()) >> cache_kv(heads) >> scores(heads) >>
      softmax(heads) >> attend_values(heads) >> linear<attn_output>(d.dim) >>
      in_place(rms_norm<post_attention_norm>(d.norm_eps));

  const auto feed_forward =
      rms_norm<ffn_norm>(d.norm_eps) >>
      fork(linear<ffn_gate>(d.ffn_dim) >> gelu_tanh(), linear<ffn_up>(d.ffn_dim)) >> multiply() >>
      linear<ffn_down>(d.dim) >> in_place(rms_norm<post_ffw_norm>(d.norm_eps));

  return embedding<token_embd>(d.dim, d.vocab_size, d.embedding_scale) >>
         repeat(d.n_layers, residual(attention) >> residual(feed_forward));
}

// From tokens to logits (outputs, vocab_size).
template <class Dims>
auto gemma(const Dims& d) {
  using namespace graph;
  using enum Slot;
  return gemma_layers(d, d.heads().with(SoftCap{d.attention_cap})) >> output_rows() >>
         rms_norm<output_norm>(d.norm_eps) >> linear<tied_slot(output, token_embd)>(d.vocab_size) >>
         cap_rows(d.logit_cap);
}

// What the files of both state: `period` is that of the windows, sizes_may_differ that of
// decoder_config().
inline Result<DecoderConfig> gemma_config(const io::Gguf& file, std::uint64_t period,
                                          bool sizes_may_differ = false) {
  NIBBLE_TRY(c, decoder_config(file, "attention.layer_norm_rms_epsilon", sizes_may_differ));
  c.embedding_scale = 1 / inverse_sqrt(c.dim);
  NIBBLE_TRY(windows, gguf_windows(file, c, period));
  NIBBLE_TRY(cap, gguf_positive_or(file, c.architecture + ".final_logit_softcapping", 0.0f, true));
  c.windows = std::move(windows);
  c.logit_cap = cap;
  return c;
}

// Files of the models of 27 billion parameters, which their number of layers tells, do not state
// that their scale of scores is another one.
inline void set_scale_of_27b(DecoderConfig& c, Index n_layers) {
  if (c.n_layers == n_layers && c.attention_scale == 0) {
    c.attention_scale = inverse_sqrt(c.dim / c.n_heads);
  }
}

}}  // namespace nibble::NIBBLE_ABI
