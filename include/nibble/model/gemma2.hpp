// SPDX-License-Identifier: Apache-2.0
//
// The Gemma 2 architecture: soft caps of scores and logits, a window in each second layer.
#pragma once

#include "nibble/model/decoder_config.hpp"
#include "nibble/model/gemma.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct Gemma2 {
  using Config = DecoderConfig;
  static constexpr std::string_view kName = "gemma2";

  static Result<Config> config(const io::Gguf& file) {
    NIBBLE_TRY(c, gemma_config(file, 2));
    NIBBLE_TRY(cap, gguf_positive_or(file, "gemma2.attn_logit_softcapping", 50.0f, true));
    c.attention_cap = cap;
    if (file.find("gemma2.final_logit_softcapping") == nullptr) c.logit_cap = 30;
    // Files of the model of 27 billion parameters do not state that its scale is another one.
    if (c.n_layers == 46 && c.attention_scale == 0) {
      c.attention_scale = inverse_sqrt(c.dim / c.n_heads);
    }
    return c;
  }
  template <class Dims>
  static auto expression(const Dims& c) { return gemma(c); }
  template <DimsByReference Dims>
  static void expression(const Dims&&) = delete;
};

}}  // namespace nibble::NIBBLE_ABI
