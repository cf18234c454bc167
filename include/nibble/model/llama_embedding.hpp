// SPDX-License-Identifier: Apache-2.0
//
// Models that embed texts by the layers of a Llama (Qwen 3 Embedding and others): files of a
// decoder's architecture that say how its rows become one.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "nibble/graph/expr.hpp"
#include "nibble/model/encoder_config.hpp"
#include "nibble/model/llama.hpp"
#include "nibble/model/slot.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// Decoder: an architecture whose expression is llama().
template <class Decoder>
struct EmbeddingOf {
  using Config = EncoderConfig;
  static constexpr std::string_view kName = Decoder::kName;

  static bool is_for(const io::Gguf& file) {
    const auto type = file.get_u64_or(std::string(kName) + ".pooling_type", 0);
    return type && *type > 0;
  }
  static Result<Config> config(const io::Gguf& file) {
    NIBBLE_TRY(base, Decoder::config(file));
    return pooled_config(file, std::move(base));
  }
  // From tokens to one row for each text (texts, dim).
  template <class Dims>
  static auto expression(const Dims& c) {
    using namespace graph;
    return llama_layers(static_cast<const DecoderConfig&>(c)) >>
           in_place(rms_norm<Slot::output_norm>(c.norm_eps)) >> pool(c.pooling);
  }
  template <DimsByReference Dims>
  static void expression(const Dims&&) = delete;
};

}}  // namespace nibble::NIBBLE_ABI
