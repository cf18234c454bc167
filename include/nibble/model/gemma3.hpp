// SPDX-License-Identifier: Apache-2.0
//
// The Gemma 3 architecture (text): norms of heads; a window and another base of the rotation in
// five of six layers.
#pragma once

#include "nibble/model/decoder_config.hpp"
#include "nibble/model/gemma.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct Gemma3 {
  using Config = DecoderConfig;
  static constexpr std::string_view kName = "gemma3";

  static Result<Config> config(const io::Gguf& file) { return config(file, 6); }
  template <class Dims>
  static auto expression(const Dims& c) {
    return gemma(c);
  }
  template <DimsByReference Dims>
  static void expression(const Dims&&) = delete;

  static Result<Config> config(const io::Gguf& file, std::uint64_t period) {
    NIBBLE_TRY(c, gemma_config(file, period));
    c.has_head_norms = true;
    // The context is stretched in the layers without window.
    NIBBLE_TRY(base, gguf_positive_or(file, c.architecture + ".rope.freq_base_swa", 10000.0f));
    set_window_rotation(c, base);
    set_scale_of_27b(c, 62);
    return c;
  }
};

}}  // namespace nibble::NIBBLE_ABI
