// SPDX-License-Identifier: Apache-2.0
//
// The gpt-oss architecture: experts with biases and a clamped gate, chosen before their softmax;
// an extra score for each query (sinks); a window in each second layer; rotation in halves, with
// YaRN whose ramp is not of whole pairs.
#pragma once

#include <string_view>
#include <utility>

#include "nibble/model/moe.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

namespace detail {

struct GptOssExperts : ExpertsOfLayer {
  static constexpr auto router_bias = Slot::ffn_gate_inp_bias;
  static constexpr auto gate_bias = Slot::ffn_gate_exps_bias;
  static constexpr auto up_bias = Slot::ffn_up_exps_bias;
  static constexpr auto down_bias = Slot::ffn_down_exps_bias;
};

}  // namespace detail

// From tokens to logits (outputs, vocab_size).
inline auto gpt_oss(const MoeConfig& d) {
  using namespace graph;
  using enum Slot;
  const auto heads = d.heads().with(Sinks<attn_sinks>{});
  const auto attention =
      rms_norm<attn_norm>(d.norm_eps) >> fork(linear<attn_q, attn_q_bias>(heads.width()),
                                              linear<attn_k, attn_k_bias>(heads.kv_width()),
                                              linear<attn_v, attn_v_bias>(heads.kv_width())) >>
      rope<kernels::HalfSplit>(heads, d.rope_angles()) >> cache_kv(heads) >> scores(heads) >>
      softmax(heads) >> attend_values(heads) >> linear<attn_output, attn_output_bias>(d.dim);
  const auto feed_forward =
      rms_norm<post_attention_norm>(d.norm_eps) >>
      nibble::detail::chosen_experts<nibble::detail::GptOssExperts, ClampedSwiglu>(d, d);
  return embedding<token_embd>(d.dim, d.vocab_size) >>
         repeat(d.n_layers, residual(attention) >> residual(feed_forward)) >> output_rows() >>
         rms_norm<output_norm>(d.norm_eps) >> linear<tied_slot(output, token_embd)>(d.vocab_size);
}
void gpt_oss(const MoeConfig&&) = delete;

struct GptOss {
  using Config = MoeConfig;
  static constexpr std::string_view kName = "gpt-oss";

  static Result<Config> config(const io::Gguf& file) {
    NIBBLE_TRY(base, decoder_config(file));
    Config c(std::move(base));
    NIBBLE_TRY(windows, gguf_windows(file, c, 2));
    c.windows = std::move(windows);
    c.yarn.has_whole_pairs = false;
    NIBBLE_CHECK(read_experts(file, {.scores = graph::RouterScores::softmax_of_chosen}, c));
    return c;
  }
  template <class Dims>
  static auto expression(const Dims& c) {
    return gpt_oss(c);
  }
  template <DimsByReference Dims>
  static void expression(const Dims&&) = delete;
};

}}  // namespace nibble::NIBBLE_ABI
