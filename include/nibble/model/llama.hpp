// SPDX-License-Identifier: Apache-2.0
//
// The Llama architecture (Touvron et al. 2023): RMSNorm before each half of a layer, rotary
// positions, grouped-query attention, gated SiLU feed-forward, output tied to the embedding or not;
// biases of products, which models have that were converted to this architecture (Qwen, InternLM).
//
// Many later models differ from it in numbers and in a few parts that may be there or not. They
// share its expression, so that it is compiled once: see DecoderConfig, and qwen2.hpp, qwen3.hpp,
// mistral3.hpp, smollm3.hpp, granite.hpp.
#pragma once

#include <string_view>
#include <type_traits>

#include "nibble/graph/expr.hpp"
#include "nibble/model/config.hpp"
#include "nibble/model/decoder_config.hpp"
#include "nibble/model/slot.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

namespace detail {

// q, k and v of Llama, made ready for attention.
template <class Dims, class Heads>
constexpr auto positioned(const Dims& d, const Heads& heads) {
  using namespace graph;
  using enum Slot;
  if constexpr (std::is_base_of_v<DecoderConfig, Dims>) {
    return when(d.has_head_norms, head_norm<attn_q_norm, attn_k_norm>(heads, d.norm_eps)) >>
           rope<EitherStyle, optional_slot(rope_freqs)>(heads, d.rope_angles(),
                                                        {d.is_half_split}) >>
           temper_queries(d.temperature);
  } else {  // GGUF files of this architecture store q and k for AdjacentPairs
    return rope<kernels::AdjacentPairs, optional_slot(rope_freqs)>(
        heads, RopeAngles{d.rope_dim, d.rope_theta, d.rope_scale});
  }
}

// The widths of a layer's products, which a configuration may have for each layer.
template <class Q, class Kv, class Ffn>
struct LayerWidths {
  [[no_unique_address]] Q q;
  [[no_unique_address]] Kv kv;
  [[no_unique_address]] Ffn ffn;
};
template <class Dims, class Heads>
constexpr auto layer_widths(const Dims& d, const Heads& heads) {
  if constexpr (std::is_base_of_v<DecoderConfig, Dims>) {
    return LayerWidths<Dim<kPerLayer>, Dim<kPerLayer>, Dim<kPerLayer>>{d.q_width(), d.kv_width(),
                                                                       d.ffn_width()};
  } else {
    return LayerWidths<decltype(heads.width()), decltype(heads.kv_width()),
                       decltype(Dim(d.ffn_dim))>{heads.width(), heads.kv_width(), d.ffn_dim};
  }
}

// Attention, from the norm before it to the product after it.
template <class Dims, class Heads, class Widths>
constexpr auto llama_attention(const Dims& d, const Heads& heads, const Widths& widths) {
  using namespace graph;
  using enum Slot;
  return rms_norm<attn_norm>(d.norm_eps) >>
         fork(linear<attn_q, optional_slot(attn_q_bias)>(widths.q),
              linear<attn_k, optional_slot(attn_k_bias)>(widths.kv),
              linear<attn_v, optional_slot(attn_v_bias)>(widths.kv)) >>
         tap<"q", "k", "v">() >> positioned(d, heads) >> cache_kv(heads) >> scores(heads) >>
         softmax(heads) >> attend_values(heads) >>
         linear<attn_output, optional_slot(attn_output_bias)>(d.dim);
}

}  // namespace detail

// The layers, from embeddings on. Dims: DecoderConfig; or the dimensions of a fixed model, a type
// with those members of ModelConfig that are used here, which is plain Llama.
template <class Dims>
constexpr auto llama_layers(const Dims& d) {
  using namespace graph;
  using enum Slot;
  constexpr bool kIsPlain = !std::is_base_of_v<DecoderConfig, Dims>;
  const auto heads = [&] {
    if constexpr (kIsPlain) {
      return Heads(d.n_heads, d.n_kv_heads, d.head_dim, inverse_sqrt(d.head_dim), Index{d.window});
    } else {
      return d.layer_heads();
    }
  }();
  const auto widths = nibble::detail::layer_widths(d, heads);

  const auto attention = nibble::detail::llama_attention(d, heads, widths);
  const auto feed_forward =
      rms_norm<ffn_norm>(d.norm_eps) >>
      fork(linear<ffn_gate, optional_slot(ffn_gate_bias)>(widths.ffn) >> silu(),
           linear<ffn_up, optional_slot(ffn_up_bias)>(widths.ffn)) >>
      multiply() >> linear<ffn_down, optional_slot(ffn_down_bias)>(d.dim);

  const auto layers =
      repeat(d.n_layers, residual(attention) >> residual(feed_forward) >> tap<"layer">());
  if constexpr (kIsPlain) {
    return embedding<token_embd>(d.dim, d.vocab_size) >> layers;
  } else {
    return embedding<token_embd>(d.dim, d.vocab_size, d.embedding_scale, d.given_scale) >> layers;
  }
}

// From tokens to logits (outputs, vocab_size).
template <class Dims>
constexpr auto llama(const Dims& d) {
  using namespace graph;
  using enum Slot;
  const auto logits = llama_layers(d) >> output_rows() >> rms_norm<output_norm>(d.norm_eps) >>
                      linear<tied_slot(output, token_embd)>(d.vocab_size);
  if constexpr (std::is_base_of_v<DecoderConfig, Dims>) {
    return logits >> scale(d.logit_scale);
  } else {
    return logits;
  }
}

struct Llama {
  using Config = DecoderConfig;
  static constexpr std::string_view kName = "llama";

  static Result<Config> config(const io::Gguf& file) { return llama_config(file); }
  template <class Dims>
  static auto expression(const Dims& c) {
    return llama(c);
  }
  template <DimsByReference Dims>
  static void expression(const Dims&&) = delete;
};

}}  // namespace nibble::NIBBLE_ABI
