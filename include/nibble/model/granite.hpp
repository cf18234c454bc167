// SPDX-License-Identifier: Apache-2.0
//
// The Granite architecture (dense): Llama with factors of embeddings, scores, logits, and of what
// each half of a layer adds.
#pragma once

#include "nibble/model/decoder_config.hpp"
#include "nibble/model/llama.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// Reads the factors of Granite into `c`. Errors: malformed.
inline Result<void> read_granite_factors(const io::Gguf& file, DecoderConfig& c) {
  const std::string prefix = c.architecture + ".";
  NIBBLE_TRY(embedding, gguf_positive_or(file, prefix + "embedding_scale", 1.0f));
  NIBBLE_TRY(residual, gguf_positive_or(file, prefix + "residual_scale", 1.0f));
  NIBBLE_TRY(logit, gguf_positive_or(file, prefix + "logit_scale", 1.0f));
  NIBBLE_TRY(has_rope, file.get_bool_or(prefix + "rope.scaling.finetuned", true));
  // Layers add residual * f(norm(x)) to x. Here x is divided by `residual` from the beginning, so
  // that they add f(norm(x)): only norms read x, and they do not see the factor if eps follows.
  c.embedding_scale = embedding / residual;
  c.given_scale = embedding / residual;
  c.norm_eps /= residual * residual;
  c.logit_scale = 1 / logit;
  if (!is_finite(static_cast<double>(c.embedding_scale)) ||
      !is_finite(static_cast<double>(c.norm_eps))) {
    return Error{Errc::malformed, file.name() + ": the factors of granite are out of range"};
  }
  if (!has_rope) c.rope_dim = 0;
  return ok();
}

struct Granite {
  using Config = DecoderConfig;
  static constexpr std::string_view kName = "granite";

  static Result<Config> config(const io::Gguf& file) {
    NIBBLE_TRY(c, llama_config(file));
    NIBBLE_CHECK(read_granite_factors(file, c));
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
