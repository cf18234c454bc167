// SPDX-License-Identifier: Apache-2.0
//
// Options for choosing a token; sampler.hpp applies them to logits.
#pragma once

#include <cstdint>
#include <vector>

#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct LogitBias {
  std::int32_t token = 0;
  float bias = 0;  // added to the token's logit; -infinity: the token never comes
};

struct SamplingOptions {
  float temperature = 0.0f;  // 0: always the most likely token after bias and repetition penalty
  Index top_k = 40;          // only the k most likely; 0: all
  float top_p = 0.95f;       // only the fewest that have this probability together; 1: all
  float min_p = 0.05f;       // only those at least this likely relative to the most likely; 0: all
  float repetition_penalty = 1.0f;  // logits of recent tokens: divided if positive, else multiplied
  Index repetition_window = 64;     // how many recent tokens
  std::uint64_t seed = 0;
  std::vector<LogitBias> logit_bias = {};  // a token that is named twice gets both
};

}}  // namespace nibble::NIBBLE_ABI
