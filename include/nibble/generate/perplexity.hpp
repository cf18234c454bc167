// SPDX-License-Identifier: Apache-2.0
//
// Perplexity of a text, measured in the usual way: how well a model predicts the text, in some
// weight format or with some cache. For comparing formats and engines.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "nibble/generate/logprob.hpp"
#include "nibble/generate/session.hpp"

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
// context, token ids out of range), malformed (logits that are not numbers), cancelled.
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
  const Index half = context / 2;
  double sum = 0, sum_squared = 0;
  std::vector<std::int32_t> chunk(static_cast<std::size_t>(context));
  for (Index c = 0; c < result.n_chunks; ++c) {
    const auto from = tokens.subspan(static_cast<std::size_t>(c * context), chunk.size());
    std::copy(from.begin(), from.end(), chunk.begin());
    if (bos >= 0) chunk[0] = bos;
    const std::span<const std::int32_t> ids = chunk;
    NIBBLE_CHECK(session.rewind(0));
    NIBBLE_TRY(start, session.append(ids.first(static_cast<std::size_t>(half))));
    (void)start;  // the first scored token is predicted by the one at context / 2
    // The last token predicts nothing in this chunk.
    for (Index first = half; first < context - 1;) {
      const Index n = (std::min)(session.max_outputs(), context - 1 - first);
      NIBBLE_TRY(logits,
                 session.append(
                     ids.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(n)), n));
      for (Index i = 0; i < n; ++i) {
        const std::int32_t next = ids[static_cast<std::size_t>(first + i + 1)];
        if (next < 0 || next >= logits.extent(1)) {
          return Error{Errc::invalid_argument,
                       "perplexity: token " + to_text(next) + " is not in the vocabulary"};
        }
        const double surprise = -detail::logprob_of(next, logits[i]);
        sum += surprise;
        sum_squared += surprise * surprise;
      }
      if (is_nan(sum)) return detail::not_numbers("perplexity");
      result.n_scored += n;
      first += n;
    }
    if (progress != nullptr && *progress &&
        !(*progress)(static_cast<std::size_t>(c) + 1, static_cast<std::size_t>(result.n_chunks))) {
      return Error{Errc::cancelled, "perplexity"};
    }
  }
  result.negative_log = sum / static_cast<double>(result.n_scored);
  result.value = std::exp(result.negative_log);
  const auto n = static_cast<double>(result.n_scored);
  const double variance = sum_squared / n - result.negative_log * result.negative_log;
  if (n > 1 && variance > 0) result.standard_error = result.value * std::sqrt(variance / (n - 1));
  return result;
}

}}  // namespace nibble::NIBBLE_ABI
