// SPDX-License-Identifier: Apache-2.0
//
// The Qwen 3 architecture (dense): Llama with rotation in halves and an RMSNorm of each head of q
// and k before it.
#pragma once

#include "nibble/model/decoder_config.hpp"
#include "nibble/model/llama.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct Qwen3 {
  using Config = DecoderConfig;
  static constexpr std::string_view kName = "qwen3";

  static Result<Config> config(const io::Gguf& file) {
    NIBBLE_TRY(c, llama_config(file));
    c.is_half_split = true;
    c.has_head_norms = true;
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
