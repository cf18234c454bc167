// SPDX-License-Identifier: Apache-2.0
//
// The Qwen 3.5 architecture (also Qwen 3.6): in three of four layers a gated delta net, in the
// fourth attention whose result has a gate; then a feed-forward part, or experts (qwen35moe.hpp).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "nibble/graph/expr.hpp"
#include "nibble/graph/recurrent.hpp"
#include "nibble/model/hybrid_config.hpp"
#include "nibble/model/slot.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// From tokens to logits (outputs, vocab_size). feed_forward: the second half of a layer, behind its
// norm.
template <class Dims, class FeedForward>
auto qwen35_with(const Dims& d, const FeedForward& feed_forward) {
  using namespace graph;
  using enum Slot;
  const auto heads = d.heads();
  const kernels::DeltaHeads& delta = d.delta_heads;
  const Dim<> qkv_width{2 * delta.key_width() + delta.value_width()};
  const Dim<> value_width{delta.value_width()}, n_heads{delta.n_heads};

  const auto linear_attention =
      rms_norm<attn_norm>(d.norm_eps) >>
      fork(linear<attn_qkv>(qkv_width), linear<attn_gate>(value_width), linear<ssm_alpha>(n_heads),
           linear<ssm_beta>(n_heads)) >>
      delta_net<ssm_conv1d, ssm_a, ssm_dt_bias, ssm_norm>(delta, d.n_taps, d.recurrent_eps) >>
      linear<ssm_out>(d.dim);
  const auto attention =
      rms_norm<attn_norm>(d.norm_eps) >>
      fork(linear<attn_q>(Dim<>{2 * heads.width()}), linear<attn_k>(heads.kv_width()),
           linear<attn_v>(heads.kv_width())) >>
      gated_attention(heads, head_norm<attn_q_norm, attn_k_norm>(heads, d.norm_eps) >>
                                 rope<kernels::HalfSplit>(heads, d.rope_angles()) >>
                                 cache_kv(heads) >> scores(heads) >> softmax(heads) >>
                                 attend_values(heads)) >>
      linear<attn_output>(d.dim);
  return embedding<token_embd>(d.dim, d.vocab_size) >>
         repeat(d.n_layers,
                when(per_layer(d.are_recurrent), residual(linear_attention)) >>
                    when(per_layer(d.have_attention), residual(attention)) >>
                    residual(rms_norm<post_attention_norm>(d.norm_eps) >> feed_forward)) >>
         output_rows() >> rms_norm<output_norm>(d.norm_eps) >>
         linear<tied_slot(output, token_embd)>(d.vocab_size);
}

// The configuration of both. Errors: those of hybrid_config() and read_delta_config(), malformed.
inline Result<HybridConfig> qwen35_config(const io::Gguf& file) {
  NIBBLE_TRY(c, hybrid_config(file));
  NIBBLE_CHECK(read_delta_config(file, c));
  // The last layers may be others, which guess tokens after the next one. They do not run.
  const std::string guessing = c.architecture + ".nextn_predict_layers";
  NIBBLE_TRY(n_guessing, file.get_u64_or(guessing, 0));
  if (n_guessing >= static_cast<std::uint64_t>(Index{c.n_layers})) {
    return Error{Errc::malformed, file.name() + ": key '" + guessing + "': " + to_text(n_guessing) +
                                      " of " + to_text(Index{c.n_layers}) + " layers"};
  }
  c.n_layers = Index{c.n_layers} - static_cast<Index>(n_guessing);
  if (!c.are_recurrent.empty()) return c;
  std::uint64_t interval = 4;
  const std::string key = c.architecture + ".full_attention_interval";
  if (file.find(key) != nullptr) {
    NIBBLE_TRY(stated, gguf_dim(file, key, kMaxLayers));
    interval = static_cast<std::uint64_t>(stated);
  }
  set_recurrent_layers(
      c, [&](Index layer) { return (static_cast<std::uint64_t>(layer) + 1) % interval != 0; });
  return c;
}

struct Qwen35 {
  using Config = HybridConfig;
  static constexpr std::string_view kName = "qwen35";

  static Result<Config> config(const io::Gguf& file) { return qwen35_config(file); }
  template <class Dims>
  static auto expression(const Dims& c) {
    using namespace graph;
    using enum Slot;
    return qwen35_with(
        c, fork(linear<ffn_gate>(c.ffn_width()) >> silu(), linear<ffn_up>(c.ffn_width())) >>
               multiply() >> linear<ffn_down>(c.dim));
  }
  template <DimsByReference Dims>
  static void expression(const Dims&&) = delete;
};

}}  // namespace nibble::NIBBLE_ABI
