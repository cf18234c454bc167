// SPDX-License-Identifier: Apache-2.0
//
// The model that ships with nibble, for home commands, and its two test files.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "measure.hpp"
#include "samples.hpp"

namespace example {

inline constexpr char kHomeFolder[] = NIBBLE_EXAMPLES_DIR "/models";
inline constexpr char kHomeModel[] = NIBBLE_EXAMPLES_DIR "/models/home-commands-f16.gguf";

// Commands that training never sees, and as many hard ones (home_commands/grammar.hpp).
struct TestSplits {
  std::vector<Sample> held_out, hard;

  // Errors: those of read_samples().
  static nibble::Result<TestSplits> read(const std::filesystem::path& folder = kHomeFolder) {
    NIBBLE_TRY(held_out, read_samples((folder / "test_2000.tsv").string()));
    NIBBLE_TRY(hard, read_samples((folder / "hard_2000.tsv").string()));
    return TestSplits{std::move(held_out), std::move(hard)};
  }
};

}  // namespace example
