// SPDX-License-Identifier: Apache-2.0
//
// The Gemma Embedding architecture: the layers of Gemma 3 with attention in both directions, in
// most layers within a window; after pooling perhaps two products.
#pragma once

#include "nibble/model/encoder_config.hpp"
#include "nibble/model/gemma3.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// From tokens to one row for each text (texts, dim).
template <class Dims>
auto gemma_embedding(const Dims& d) {
  using namespace graph;
  using enum Slot;
  return gemma_layers(d, d.heads().with(SoftCap{d.attention_cap})) >>
         in_place(rms_norm<output_norm>(d.norm_eps)) >> pool(d.pooling) >>
         when(d.dense_dim > 0,
              in_place(linear<dense_2>(Dim<>(d.dense_dim)) >> linear<dense_3>(d.dim)));
}

struct GemmaEmbedding {
  using Config = EncoderConfig;
  static constexpr std::string_view kName = "gemma-embedding";

  static Result<Config> config(const io::Gguf& file) {
    NIBBLE_TRY(base, Gemma3::config(file, 6));
    NIBBLE_TRY(c, encoder_config(file, std::move(base)));
    // A window of n: n / 2 positions on both sides, and the token's own.
    for (auto& [window] : c.windows) {
      c.aheads.push_back({window > 0 ? window / 2 : ops::kAllAhead});
      if (window > 0) window = window / 2 + 1;
    }
    if (const io::GgufTensor* const dense = file.find_tensor("dense_2.weight")) {
      if (dense->dims[1] < 1 || dense->dims[1] > kMaxDim) {
        return Error{Errc::malformed, file.name() + ": tensor 'dense_2.weight': " +
                                          to_text(dense->dims[1]) + " rows"};
      }
      c.dense_dim = static_cast<Index>(dense->dims[1]);
    }
    return c;
  }
  template <class Dims>
  static auto expression(const Dims& c) {
    return gemma_embedding(c);
  }
  template <DimsByReference Dims>
  static void expression(const Dims&&) = delete;
};

}}  // namespace nibble::NIBBLE_ABI
