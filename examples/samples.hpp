// SPDX-License-Identifier: Apache-2.0
//
// Prompts with the answers that are right, as text and as the tokens that a model is run on, scored
// on and trained on.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/text/tokenizer.hpp"

namespace example {

struct Sample {
  std::string prompt;
  std::string answer;

  bool operator==(const Sample&) const = default;
};

// A prompt with its answer as tokens: begin, prompt, newline, answer, end.
struct SampleTokens {
  std::vector<std::int32_t> ids;
  nibble::Index first_of_answer = 0;  // an index of ids
};

// As generate(session, prompt + "\n") reads them: the answer's tokens are those that it should then
// give. Errors: those of Tokenizer::encode.
inline nibble::Result<SampleTokens> sample_tokens(const nibble::text::Tokenizer& tokenizer,
                                                  const Sample& sample) {
  SampleTokens tokens;
  NIBBLE_CHECK(tokenizer.encode(sample.prompt + "\n", {.add_eos = false}, tokens.ids));
  tokens.first_of_answer = static_cast<nibble::Index>(tokens.ids.size());
  NIBBLE_CHECK(tokenizer.encode(
      sample.answer, {.add_bos = false, .add_eos = false, .is_continuation = true}, tokens.ids));
  const std::int32_t eos = tokenizer.vocabulary().settings().eos;
  if (eos >= 0) tokens.ids.push_back(eos);
  return tokens;
}

}  // namespace example
