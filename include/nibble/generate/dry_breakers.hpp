// SPDX-License-Identifier: Apache-2.0
//
// Which tokens end a repetition for the DRY step of sampling: those with a line break or a
// quotation mark, for example. Otherwise the form of a dialogue or a list would count as
// repetition.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/text/decode.hpp"
#include "nibble/text/vocabulary.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// The tokens whose text contains one of the strings, for SamplingOptions::dry_breakers. Others use
// "\n", ":", "\"" and "*". (A string of several tokens breaks nothing.) Error: invalid_argument (an
// empty string, which every token contains).
inline Result<std::vector<std::int32_t>> dry_breakers(const text::Vocabulary& vocabulary,
                                                      std::span<const std::string> strings) {
  return catch_out_of_memory([&]() -> Result<std::vector<std::int32_t>> {
    for (const std::string& s : strings) {
      if (s.empty()) return Error{Errc::invalid_argument, "dry_breakers: an empty string"};
    }
    std::vector<std::int32_t> tokens;
    std::string text;
    for (std::int32_t id = 0; vocabulary.contains(id); ++id) {
      text.clear();
      text::append_token_text(vocabulary, id, false, text);
      bool breaks = false;
      for (const std::string& s : strings) breaks = breaks || text.find(s) != text.npos;
      if (breaks) tokens.push_back(id);
    }
    return tokens;
  });
}

}}  // namespace nibble::NIBBLE_ABI
