// SPDX-License-Identifier: Apache-2.0
//
// Written by tests/text/oracle/compare.py with Hugging Face's tokenizers.
#pragma once

#include <cstdint>

namespace golden {

// A folder, and the digest of the ids of all texts of pre_tokenizer_golden.hpp.
struct IdsDigest {
  const char* folder;
  std::uint64_t value;
};
constexpr IdsDigest kIdsDigests[] = {
    {"qwen3", 0xa4f4d39b5def2715},
    {"llama3_1", 0xee56c0270e5c5f03},
    {"gptoss", 0xcdb75f10e85e21a0},
    {"gemma3", 0xd1dae5fffea62cd1},
};

}  // namespace golden
