// SPDX-License-Identifier: Apache-2.0
//
// The BLOOM architecture: no positions but ALiBi's (scores fall with the distance, in each head by
// another slope; Press et al. 2022), a LayerNorm behind the embedding, q, k and v from one product,
// GELU (tanh approximation), biases everywhere.
#pragma once

#include <cstddef>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/libm.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/graph/expr.hpp"
#include "nibble/model/decoder_config.hpp"
#include "nibble/model/slot.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct BloomConfig : DecoderConfig {
  std::vector<Scalar<float>> slopes;  // (n_heads)

  auto alibi_heads() const& noexcept { return heads().with(graph::Alibi{values(slopes)}); }
  void alibi_heads() const&& = delete;
};

// The slopes of n heads: of the largest power of two p in n, 2^(-8 i / p) for i = 1, ..., p; the
// other heads have every second one of 2p heads.
inline std::vector<Scalar<float>> alibi_slopes(std::size_t n) {
  std::size_t power = 1;
  while (2 * power <= n) power *= 2;
  std::vector<Scalar<float>> slopes;
  const auto slope = [](std::size_t i, std::size_t of) {
    return static_cast<float>(
        libm::pow(2.0, -8.0 * static_cast<double>(i) / static_cast<double>(of)));
  };
  for (std::size_t i = 1; i <= power; ++i) slopes.push_back({slope(i, power)});
  for (std::size_t i = 1; slopes.size() < n; i += 2) slopes.push_back({slope(i, 2 * power)});
  return slopes;
}

// From tokens to logits (outputs, vocab_size).
template <class Dims>
auto bloom(const Dims& d) {
  using namespace graph;
  using enum Slot;
  const auto heads = d.alibi_heads();

  const auto attention =
      layer_norm<attn_norm, attn_norm_bias>(d.norm_eps) >>
      linear<attn_qkv, attn_qkv_bias>(heads.width() + heads.kv_width() + heads.kv_width()) >>
      split(heads.width(), heads.kv_width(), heads.kv_width()) >> cache_kv(heads) >>
      scores(heads) >> softmax(heads) >> attend_values(heads) >>
      linear<attn_output, attn_output_bias>(d.dim);

  const auto feed_forward = layer_norm<ffn_norm, ffn_norm_bias>(d.norm_eps) >>
                            linear<ffn_up, ffn_up_bias>(d.ffn_dim) >> gelu_tanh() >>
                            linear<ffn_down, ffn_down_bias>(d.dim);

  return embedding<token_embd>(d.dim, d.vocab_size) >>
         layer_norm<token_embd_norm, token_embd_norm_bias>(d.norm_eps) >>
         repeat(d.n_layers, residual(attention) >> residual(feed_forward)) >> output_rows() >>
         layer_norm<output_norm, output_norm_bias>(d.norm_eps) >>
         linear<tied_slot(output, token_embd)>(d.vocab_size);
}

struct Bloom {
  using Config = BloomConfig;
  static constexpr std::string_view kName = "bloom";

  static Result<Config> config(const io::Gguf& file) {
    NIBBLE_TRY(base, decoder_config(file, "attention.layer_norm_epsilon"));
    const auto n_heads = static_cast<std::size_t>(Index{base.n_heads});
    return Config{{std::move(base)}, alibi_slopes(n_heads)};
  }
  template <class Dims>
  static auto expression(const Dims& c) {
    return bloom(c);
  }
  template <DimsByReference Dims>
  static void expression(const Dims&&) = delete;
};

}}  // namespace nibble::NIBBLE_ABI
