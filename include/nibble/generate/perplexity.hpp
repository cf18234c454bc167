// SPDX-License-Identifier: Apache-2.0
//
// Perplexity of a text, measured in the usual way: how well a model predicts the text, in some
// weight format or with some cache. For comparing formats and engines.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <string>

#include "nibble/generate/logprob.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/generate/text_chunks.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct Perplexity {
  double value = 0;           // exp(negative_log): 1 is perfect, vocab_size is guessing
  double negative_log = 0;    // mean negative log-probability of the scored tokens, in nats
  double standard_error = 0;  // of value, as if the tokens were independent; 0 of a single one
  Index n_scored = 0;         // tokens
  Index n_chunks = 0;
};

// Cuts `tokens` (of the text, including BOS) into chunks of `context` tokens and drops the
// remainder. Each chunk starts a new sequence, with its first token replaced by `bos`. Only the
// second half is scored, tokens context / 2 + 1 … context − 1; the tokens before it are its
// context. This is the same as llama.cpp's llama-perplexity. For a model that does not
// want a begin token (bos < 0) the chunks stay as they are. The session's sequence is lost. A
// session with larger max_outputs is faster. `progress` is called after each chunk with the number
// of chunks done and of all chunks; false stops.
// Errors: invalid_argument (context below 4 or above the session's capacity, fewer tokens than
// context, token ids out of range), malformed (logits that are not numbers), cancelled,
// out_of_memory.
NIBBLE_LAZY Result<Perplexity> perplexity(Session& session, std::span<const std::int32_t> tokens,
                                          Index context, std::int32_t bos,
                                          const Progress* progress = nullptr) {
  if (context < 4 || context > session.capacity()) {
    return Error{Errc::invalid_argument, "perplexity: a context of " + to_text(context) +
                                             "; the session holds " + to_text(session.capacity())};
  }
  Perplexity result;
  result.n_chunks = static_cast<Index>(tokens.size()) / context;
  if (result.n_chunks == 0) {
    return Error{Errc::invalid_argument, "perplexity: " + to_text(tokens.size()) +
                                             " tokens are less than a context of " +
                                             to_text(context)};
  }
  double sum = 0, sum_squared = 0;
  NIBBLE_CHECK(
      detail::score_chunks<1>({&session}, tokens, context, bos, progress, "perplexity",
                              [&](std::int32_t next, const detail::LogitsOfEach<1>& logits) {
                                const double surprise = -detail::logprob_of(next, logits[0]);
                                sum += surprise;
                                sum_squared += surprise * surprise;
                                ++result.n_scored;
                                return !is_nan(sum);
                              }));
  result.negative_log = sum / static_cast<double>(result.n_scored);
  result.value = std::exp(result.negative_log);
  const auto n = static_cast<double>(result.n_scored);
  const double variance = sum_squared / n - result.negative_log * result.negative_log;
  if (n > 1 && variance > 0) result.standard_error = result.value * std::sqrt(variance / (n - 1));
  return result;
}

}}  // namespace nibble::NIBBLE_ABI
