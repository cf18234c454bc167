// SPDX-License-Identifier: Apache-2.0
//
// The Phi 3 architecture (Phi 3, 3.5, 4 mini): Llama with q, k, v as one product, gate and up as
// one product, rotation in halves and perhaps of a part of each head; longrope: the frequencies'
// divisors depend on the size of the context.
#pragma once

#include "nibble/graph/expr.hpp"
#include "nibble/model/decoder_config.hpp"
#include "nibble/model/slot.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// From tokens to logits (outputs, vocab_size).
template <class Dims>
auto phi3(const Dims& d) {
  using namespace graph;
  using enum Slot;
  const auto heads = d.heads();
  const auto attention =
      rms_norm<attn_norm>(d.norm_eps) >>
      linear<attn_qkv>(heads.width() + heads.kv_width() + heads.kv_width()) >>
      split(heads.width(), heads.kv_width(), heads.kv_width()) >>
      rope<kernels::HalfSplit, context_slots(rope_factors_short, rope_factors_long)>(
          heads, d.rope_angles()) >>
      cache_kv(heads) >> scores(heads) >> softmax(heads) >> attend_values(heads) >>
      linear<attn_output>(d.dim);

  const auto feed_forward = rms_norm<ffn_norm>(d.norm_eps) >>
                            linear<ffn_up>(d.ffn_dim + d.ffn_dim) >> split(d.ffn_dim, d.ffn_dim) >>
                            silu_gate() >> linear<ffn_down>(d.dim);

  return embedding<token_embd>(d.dim, d.vocab_size) >>
         repeat(d.n_layers, residual(attention) >> residual(feed_forward)) >> output_rows() >>
         rms_norm<output_norm>(d.norm_eps) >> linear<tied_slot(output, token_embd)>(d.vocab_size);
}

struct Phi3 {
  using Config = DecoderConfig;
  static constexpr std::string_view kName = "phi3";

  static Result<Config> config(const io::Gguf& file) { return decoder_config(file); }
  template <class Dims>
  static auto expression(const Dims& c) {
    return phi3(c);
  }
  template <DimsByReference Dims>
  static void expression(const Dims&&) = delete;
};

}}  // namespace nibble::NIBBLE_ABI
