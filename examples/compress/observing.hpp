// SPDX-License-Identifier: Apache-2.0
//
// Observes a model on tokens, with a status line.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "../common.hpp"
#include "nibble/compress/observe.hpp"
#include "nibble/nibble.hpp"
#include "texts.hpp"

namespace example {

struct Observing {
  nibble::Index context = 512;   // tokens of a chunk; at most what the model was trained for
  nibble::Index max_chunks = 0;  // 0: all
  bool with_moments = false;     // second moments too
};

inline nibble::Result<nibble::compress::Statistics> observe_tokens(
    const nibble::Model& model, std::span<const std::int32_t> tokens, const Observing& observing,
    nibble::Executor& executor) {
  nibble::compress::ObserveOptions options;
  options.context = std::min(observing.context, nibble::Index{model.config().n_ctx});
  options.max_chunks = observing.max_chunks;
  if (model.tokenizer() != nullptr) options.bos = bos_of(*model.tokenizer());
  options.executor = &executor;
  if (observing.with_moments) {
    options.more = [](std::string_view) {
      return nibble::compress::InputStatisticsOptions{.second_moments = true};
    };
  }
  StatusLine status(true, StatusLine::kInLogs);
  const nibble::Progress progress = [&](std::size_t done, std::size_t total) {
    status.show("observing, chunk " + std::to_string(done) + " of " + std::to_string(total));
    return !interrupted;
  };
  return nibble::compress::observe(model, tokens, options, &progress);
}

}  // namespace example
