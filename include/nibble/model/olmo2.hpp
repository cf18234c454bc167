// SPDX-License-Identifier: Apache-2.0
//
// The OLMo 2 architecture, and OLMo 3 with windows: norms of the results of both halves of a layer
// instead of their inputs; q and k normed as a whole; rotation in halves.
#pragma once

#include "nibble/graph/expr.hpp"
#include "nibble/model/decoder_config.hpp"
#include "nibble/model/slot.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// From tokens to logits (outputs, vocab_size).
template <class Dims>
auto olmo2(const Dims& d) {
  using namespace graph;
  using enum Slot;
  const auto heads = d.heads();
  const auto attention =
      fork(linear<attn_q>(heads.width()) >> in_place(rms_norm<attn_q_norm>(d.norm_eps)),
           linear<attn_k>(heads.kv_width()) >> in_place(rms_norm<attn_k_norm>(d.norm_eps)),
           linear<attn_v>(heads.kv_width())) >>
      rope<kernels::HalfSplit>(heads, d.rope_angles()) >> cache_kv(heads) >> scores(heads) >>
      softmax(heads) >> attend_values(heads) >> linear<attn_output>(d.dim) >>
      in_place(rms_norm<post_attention_norm>(d.norm_eps));

  const auto feed_forward =
      fork(linear<ffn_gate>(d.ffn_dim) >> silu(), linear<ffn_up>(d.ffn_dim)) >> multiply() >>
      linear<ffn_down>(d.dim) >> in_place(rms_norm<post_ffw_norm>(d.norm_eps));

  return embedding<token_embd>(d.dim, d.vocab_size) >>
         repeat(d.n_layers, residual(attention) >> residual(feed_forward)) >> output_rows() >>
         rms_norm<output_norm>(d.norm_eps) >> linear<tied_slot(output, token_embd)>(d.vocab_size);
}

struct Olmo2 {
  using Config = DecoderConfig;
  static constexpr std::string_view kName = "olmo2";

  static Result<Config> config(const io::Gguf& file) {
    NIBBLE_TRY(c, decoder_config(file));
    if (c.window == 0) return c;
    // The context is stretched in the layers without window.
    NIBBLE_TRY(base, gguf_positive_or(file, "olmo2.rope.freq_base_swa", c.rope_theta));
    NIBBLE_TRY(windows, gguf_windows(file, c, 4));
    c.windows = std::move(windows);
    set_window_rotation(c, base);
    return c;
  }
  template <class Dims>
  static auto expression(const Dims& c) {
    return olmo2(c);
  }
  template <DimsByReference Dims>
  static void expression(const Dims&&) = delete;
};

}}  // namespace nibble::NIBBLE_ABI
