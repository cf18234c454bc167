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
    set_scale_of_27b(c, 46);
    return c;
  }
  template <class Dims>
  static auto expression(const Dims& c) {
    return gemma(c);
  }
  template <DimsByReference Dims>
  static void expression(const Dims&&) = delete;
};

}}  // namespace nibble::NIBBLE_ABI
