// SPDX-License-Identifier: Apache-2.0
//
// The Granite 4 hybrid architecture (dense): Mamba-2 in most layers, attention, perhaps without
// rotation, in the others; the factors of Granite.
#pragma once

#include "nibble/graph/expr.hpp"
#include "nibble/graph/recurrent.hpp"
#include "nibble/model/granite.hpp"
#include "nibble/model/hybrid_config.hpp"
#include "nibble/model/slot.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// From tokens to logits (outputs, vocab_size).
template <class Dims>
auto granite_hybrid(const Dims& d) {
  using namespace graph;
  using enum Slot;
  const auto heads = d.heads();
  const kernels::DeltaHeads& delta = d.delta_heads;
  const Dim<> inner{delta.value_width()}, n_heads{delta.n_heads};
  const Dim<> mixed{delta.value_width() + 2 * delta.key_width()};

  const auto recurrent =
      rms_norm<attn_norm>(d.norm_eps) >> linear<ssm_in>(Dim<>{inner + mixed + n_heads}) >>
      split(inner, mixed, n_heads) >>
      mamba2<ssm_conv1d, optional_slot(ssm_conv1d_bias), ssm_a, ssm_d, ssm_dt_bias, ssm_norm>(
          delta, d.n_taps, d.recurrent_eps) >>
      linear<ssm_out>(d.dim);
  const auto attention = rms_norm<attn_norm>(d.norm_eps) >>
                         fork(linear<attn_q>(heads.width()), linear<attn_k>(heads.kv_width()),
                              linear<attn_v>(heads.kv_width())) >>
                         rope<kernels::AdjacentPairs>(heads, d.rope_angles()) >> cache_kv(heads) >>
                         scores(heads) >> softmax(heads) >> attend_values(heads) >>
                         linear<attn_output>(d.dim);
  const auto feed_forward =
      rms_norm<ffn_norm>(d.norm_eps) >>
      fork(linear<ffn_gate>(d.ffn_width()) >> silu(), linear<ffn_up>(d.ffn_width())) >>
      multiply() >> linear<ffn_down>(d.dim);

  return embedding<token_embd>(d.dim, d.vocab_size, d.embedding_scale, d.given_scale) >>
         repeat(d.n_layers, when(per_layer(d.are_recurrent), residual(recurrent)) >>
                                when(per_layer(d.have_attention), residual(attention)) >>
                                residual(feed_forward)) >>
         output_rows() >> rms_norm<output_norm>(d.norm_eps) >>
         linear<tied_slot(output, token_embd)>(d.vocab_size) >> scale(d.logit_scale);
}

struct GraniteHybrid {
  using Config = HybridConfig;
  static constexpr std::string_view kName = "granitehybrid";

  static Result<Config> config(const io::Gguf& file) {
    NIBBLE_TRY(c, hybrid_config(file));
    NIBBLE_CHECK(read_delta_config(file, c));
    if (c.delta_heads.n_key_heads != 1) {
      return Error{Errc::unsupported, file.name() + ": Mamba-2 with " +
                                          to_text(c.delta_heads.n_key_heads) +
                                          " groups of heads; one is known"};
    }
    if (c.are_recurrent.empty()) set_recurrent_layers(c, [](Index) { return false; });
    NIBBLE_CHECK(read_granite_factors(file, c));
    return c;
  }
  template <class Dims>
  static auto expression(const Dims& c) {
    return granite_hybrid(c);
  }
  template <DimsByReference Dims>
  static void expression(const Dims&&) = delete;
};

}}  // namespace nibble::NIBBLE_ABI
