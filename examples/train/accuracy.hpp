// SPDX-License-Identifier: Apache-2.0
//
// How many home commands a model in training answers to the letter.
#pragma once

#include <cstddef>
#include <span>

#include "../measure.hpp"
#include "model.hpp"

namespace example {

// Percent of the first `n` samples, of a model as it would be deployed.
inline nibble::Result<double> percent_right(const TrainedModel& model,
                                            std::span<const Sample> samples, std::size_t n,
                                            nibble::Executor& executor) {
  NIBBLE_TRY(file, model.as_file());
  NIBBLE_TRY(loaded, load_to_ask(file, executor));
  return percent_right(loaded, samples, n, executor);
}

}  // namespace example
