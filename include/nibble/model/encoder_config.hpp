// SPDX-License-Identifier: Apache-2.0
//
// The dimensions of models that embed texts.
#pragma once

#include <string>
#include <utility>

#include "nibble/graph/expr.hpp"
#include "nibble/model/decoder_config.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct EncoderConfig : DecoderConfig {
  EncoderConfig() = default;
  explicit EncoderConfig(DecoderConfig c) noexcept : DecoderConfig(std::move(c)) {}

  graph::Pooling pooling = graph::Pooling::mean;
  Index dense_dim = 0;  // of two products after pooling; 0: there are none
};

// `base`, and how the rows of a text become one. Errors: malformed, unsupported (rerankers).
inline Result<EncoderConfig> pooled_config(const io::Gguf& file, DecoderConfig base) {
  EncoderConfig c(std::move(base));
  const std::string key = c.architecture + ".pooling_type";
  NIBBLE_TRY(type, file.get_u64_or(key, 1));
  switch (type) {
    case 0:  // a row for each token: up to the caller
    case 1: c.pooling = graph::Pooling::mean; return c;
    case 2: c.pooling = graph::Pooling::first; return c;
    case 3: c.pooling = graph::Pooling::last; return c;
    default: break;
  }
  return Error{Errc::unsupported, file.name() + ": key '" + key + "': pooling of the type " +
                                      to_text(type) + "; known are 1 (mean), 2 (first), 3 (last)"};
}

// The same for a model that attends to all of a text.
inline Result<EncoderConfig> encoder_config(const io::Gguf& file, DecoderConfig base) {
  NIBBLE_TRY(c, pooled_config(file, std::move(base)));
  c.is_causal = false;
  return c;
}

}}  // namespace nibble::NIBBLE_ABI
