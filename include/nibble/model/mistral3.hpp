// SPDX-License-Identifier: Apache-2.0
//
// The Mistral 3 architecture (Ministral 3): Llama whose context is stretched by YaRN, with scores
// that grow with the position beyond the first context.
#pragma once

#include "nibble/model/decoder_config.hpp"
#include "nibble/model/llama.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct Mistral3 {
  using Config = DecoderConfig;
  static constexpr std::string_view kName = "mistral3";

  static Result<Config> config(const io::Gguf& file) {
    NIBBLE_TRY(c, llama_config(file));
    NIBBLE_TRY(scale, gguf_positive_or(file, "mistral3.attention.temperature_scale", 0.0f, true));
    c.temperature = {scale, c.n_original};
    return c;
  }
  template <class Dims>
  static auto expression(const Dims& c) {
    return llama(c);
  }
  template <DimsByReference Dims>
  static void expression(const Dims&&) = delete;
};

}}  // namespace nibble::NIBBLE_ABI
