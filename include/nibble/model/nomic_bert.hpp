// SPDX-License-Identifier: Apache-2.0
//
// The Nomic BERT architecture (nomic-embed-text 1 and 1.5): BERT with rotary positions in halves,
// q, k and v from one product, gated SiLU feed-forward, without biases of products.
#pragma once

#include <utility>

#include "nibble/graph/expr.hpp"
#include "nibble/model/encoder.hpp"
#include "nibble/model/encoder_config.hpp"
#include "nibble/model/slot.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// From tokens to one row for each text (texts, dim).
template <class Dims>
auto nomic_bert(const Dims& d) {
  using namespace graph;
  using enum Slot;
  const auto heads = d.heads();
  const auto attention = linear<attn_qkv>(heads.width() + heads.kv_width() + heads.kv_width()) >>
                         split(heads.width(), heads.kv_width(), heads.kv_width()) >>
                         rope<kernels::HalfSplit>(heads, d.rope_angles()) >> cache_kv(heads) >>
                         scores(heads) >> softmax(heads) >> attend_values(heads) >>
                         linear<attn_output>(d.dim);

  const auto feed_forward =
      fork(linear<ffn_gate>(d.ffn_dim) >> silu(), linear<ffn_up>(d.ffn_dim)) >> multiply() >>
      linear<ffn_down>(d.dim);

  return encoder(d, embedding<token_embd>(d.dim, d.vocab_size), attention, feed_forward);
}

struct NomicBert {
  using Config = EncoderConfig;
  static constexpr std::string_view kName = "nomic-bert";

  static Result<Config> config(const io::Gguf& file) {
    NIBBLE_TRY(base, decoder_config(file, "attention.layer_norm_epsilon"));
    return encoder_config(file, std::move(base));
  }
  template <class Dims>
  static auto expression(const Dims& c) {
    return nomic_bert(c);
  }
  template <DimsByReference Dims>
  static void expression(const Dims&&) = delete;
};

}}  // namespace nibble::NIBBLE_ABI
