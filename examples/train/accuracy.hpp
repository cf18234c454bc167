// SPDX-License-Identifier: Apache-2.0
//
// How many home commands a model in training answers to the letter.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "../measure.hpp"
#include "model.hpp"

namespace example {

// The two test files of the bundled model.
struct TestSplits {
  std::vector<Sample> held_out, hard;

  static nibble::Result<TestSplits> read(const std::string& folder) {
    NIBBLE_TRY(held_out, read_samples(folder + "/test_2000.tsv"));
    NIBBLE_TRY(hard, read_samples(folder + "/hard_2000.tsv"));
    return TestSplits{std::move(held_out), std::move(hard)};
  }
};

// Percent of the first `n` samples, of a model as it would be deployed.
inline nibble::Result<double> percent_right(const TrainedModel& model,
                                            const std::vector<Sample>& samples, std::size_t n,
                                            nibble::Executor& executor) {
  NIBBLE_TRY(file, model.as_file());
  NIBBLE_TRY(loaded, load_to_ask(file, executor));
  const std::vector<Sample> some(
      samples.begin(), samples.begin() + static_cast<std::ptrdiff_t>(std::min(n, samples.size())));
  NIBBLE_TRY(right, count_right(loaded, some, executor));
  return 100.0 * static_cast<double>(right) / static_cast<double>(some.size());
}

}  // namespace example
