// SPDX-License-Identifier: Apache-2.0
//
// The LFM2 architecture (Liquid AI, 2025): in most layers a gated short convolution, in the others
// attention with norms of each head of q and k; then a feed-forward part, or experts (lfm2moe.hpp).
#pragma once

#include "nibble/graph/expr.hpp"
#include "nibble/graph/recurrent.hpp"
#include "nibble/model/hybrid_config.hpp"
#include "nibble/model/slot.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// From tokens to logits (outputs, vocab_size). feed_forward: the second half of a layer, which
// changes its rows in place.
template <class Dims, class FeedForward>
auto lfm2_with(const Dims& d, const FeedForward& feed_forward) {
  using namespace graph;
  using enum Slot;
  const auto heads = d.heads();
  const auto convolution =
      rms_norm<attn_norm>(d.norm_eps) >> linear<shortconv_in_proj>(Dim<>{3 * Index{d.dim}}) >>
      short_conv<shortconv_conv>(d.dim, d.n_taps) >> linear<shortconv_out_proj>(d.dim);
  const auto attention = rms_norm<attn_norm>(d.norm_eps) >>
                         fork(linear<attn_q>(heads.width()), linear<attn_k>(heads.kv_width()),
                              linear<attn_v>(heads.kv_width())) >>
                         head_norm<attn_q_norm, attn_k_norm>(heads, d.norm_eps) >>
                         rope<kernels::HalfSplit>(heads, d.rope_angles()) >> cache_kv(heads) >>
                         scores(heads) >> softmax(heads) >> attend_values(heads) >>
                         linear<attn_output>(d.dim);
  return embedding<token_embd>(d.dim, d.vocab_size) >>
         repeat(d.n_layers, when(per_layer(d.are_recurrent), residual(convolution)) >>
                                when(per_layer(d.have_attention), residual(attention)) >>
                                feed_forward) >>
         output_rows() >> rms_norm<token_embd_norm>(d.norm_eps) >>
         linear<tied_slot(output, token_embd)>(d.vocab_size);
}

// The dense second half of a layer.
template <class Dims>
auto lfm2_feed_forward(const Dims& d) {
  using namespace graph;
  using enum Slot;
  return residual(rms_norm<ffn_norm>(d.norm_eps) >>
                  fork(linear<ffn_gate>(d.ffn_width()) >> silu(), linear<ffn_up>(d.ffn_width())) >>
                  multiply() >> linear<ffn_down>(d.dim));
}

// The configuration of both. Errors: those of hybrid_config() and gguf_conv_taps().
inline Result<HybridConfig> lfm2_config(const io::Gguf& file) {
  NIBBLE_TRY(c, hybrid_config(file));
  NIBBLE_TRY(n_taps, gguf_conv_taps(file, c.architecture + ".shortconv.l_cache"));
  c.n_taps = n_taps;
  if (c.are_recurrent.empty()) set_recurrent_layers(c, [](Index) { return false; });
  return c;
}

struct Lfm2 {
  using Config = HybridConfig;
  static constexpr std::string_view kName = "lfm2";

  static Result<Config> config(const io::Gguf& file) { return lfm2_config(file); }
  template <class Dims>
  static auto expression(const Dims& c) {
    return lfm2_with(c, lfm2_feed_forward(c));
  }
  template <DimsByReference Dims>
  static void expression(const Dims&&) = delete;
};

}}  // namespace nibble::NIBBLE_ABI
