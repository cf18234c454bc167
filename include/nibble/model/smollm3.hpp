// SPDX-License-Identifier: Apache-2.0
//
// The SmolLM 3 architecture: Llama without rotation in each fourth layer.
#pragma once

#include "nibble/model/decoder_config.hpp"
#include "nibble/model/llama.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct SmolLm3 {
  using Config = DecoderConfig;
  static constexpr std::string_view kName = "smollm3";

  static Result<Config> config(const io::Gguf& file) {
    NIBBLE_TRY(c, llama_config(file));
    for (Index layer = 0; layer < c.n_layers; ++layer) {
      c.rope_dims.push_back({layer % 4 == 3 ? 0 : c.rope_dim});
    }
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
