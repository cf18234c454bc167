// SPDX-License-Identifier: Apache-2.0
//
// The Qwen 2 architecture (Qwen 2, 2.5, distillations of DeepSeek R1): Llama with rotation in
// halves and biases of q, k and v.
#pragma once

#include "nibble/model/decoder_config.hpp"
#include "nibble/model/llama.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct Qwen2 {
  using Config = DecoderConfig;
  static constexpr std::string_view kName = "qwen2";

  static Result<Config> config(const io::Gguf& file) {
    NIBBLE_TRY(c, llama_config(file));
    c.is_half_split = true;
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
