// SPDX-License-Identifier: Apache-2.0
//
// For tests of speculation: what a generator gives.
#pragma once

#include <bit>
#include <cstdint>
#include <span>
#include <vector>

#include "generate/known_text.hpp"
#include "generate/prefixes.hpp"
#include "nibble/generate/generator.hpp"

namespace test {

struct Output {
  Ids ids;
  std::vector<std::uint32_t> logprobs;  // bits, of the tokens and of the most likely ones
  nibble::Finish finish = nibble::Finish::none;

  friend bool operator==(const Output&, const Output&) = default;
};

// At most n tokens.
inline Output output_of(nibble::Generator& generator, std::size_t n = 100000) {
  Output got;
  while (got.ids.size() < n) {
    const auto token = must(generator.next());
    if (!token) break;
    got.ids.push_back(token->id);
    got.logprobs.push_back(std::bit_cast<std::uint32_t>(token->logprob));
    for (const nibble::TokenLogprob& top : token->top_logprobs) {
      got.logprobs.push_back(static_cast<std::uint32_t>(top.id));
      got.logprobs.push_back(std::bit_cast<std::uint32_t>(top.logprob));
    }
  }
  got.finish = generator.finish();
  return got;
}

inline Ids tokens_of(const nibble::Session& session) {
  return {session.tokens().begin(), session.tokens().end()};
}

inline std::vector<float> logits_of(nibble::Session& session) {
  const auto logits = must(session.logits());
  return {logits.data(), logits.data() + logits.extent(1)};
}

}  // namespace test
