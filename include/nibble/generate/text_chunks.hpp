// SPDX-License-Identifier: Apache-2.0
//
// How predictions along a text are measured: the walk that perplexity(), divergence() and others
// have in common.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "nibble/core/scalar.hpp"
#include "nibble/generate/logprob.hpp"
#include "nibble/generate/session.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace detail {

// The logits of each session for one position.
template <std::size_t N>
using LogitsOfEach = std::array<VectorView<const float>, N>;

// Runs `ids` through each of N sessions, from the start, and calls on_position(next, logits) for
// each of their tokens from `first_scored` on: `next`, and the logits (LogitsOfEach<N>) that
// predict it. It returns false if they are not numbers. 1 <= first_scored < ids.size() <= their
// capacity. who: the function that errors name. Errors: invalid_argument (a token that is not in
// the vocabulary), malformed (as on_position says), those of Session::append().
template <std::size_t N, class OnPosition>
Result<void> score_sequence(const std::array<Session*, N>& sessions,
                            std::span<const std::int32_t> ids, std::size_t first_scored,
                            const char* who, OnPosition on_position) {
  std::size_t first = first_scored - 1;  // predicts the first token that is scored
  auto step = static_cast<std::size_t>(sessions[0]->max_outputs());
  for (Session* const session : sessions) {
    step = (std::min)(step, static_cast<std::size_t>(session->max_outputs()));
    NIBBLE_CHECK(session->rewind(0));
    if (first > 0) NIBBLE_CHECK(session->append(ids.first(first)));
  }
  // The last token predicts nothing.
  while (first < ids.size() - 1) {
    const std::size_t n = (std::min)(step, ids.size() - 1 - first);
    std::array<MatrixView<const float>, N> rows;
    for (std::size_t s = 0; s < N; ++s) {
      NIBBLE_TRY(logits, sessions[s]->append(ids.subspan(first, n), static_cast<Index>(n)));
      rows[s] = logits;
    }
    for (std::size_t i = 0; i < n; ++i) {
      const std::int32_t next = ids[first + i + 1];
      if (next < 0 || next >= rows[0].extent(1)) {
        return Error{Errc::invalid_argument,
                     who + std::string(": token ") + to_text(next) + " is not in the vocabulary"};
      }
      LogitsOfEach<N> logits;
      for (std::size_t s = 0; s < N; ++s) logits[s] = rows[s][static_cast<Index>(i)];
      if (!on_position(next, logits)) return not_numbers(who);
    }
    first += n;
  }
  return ok();
}

// The same for a text in chunks of `context` >= 4 tokens, without the remainder: the second half of
// each, whose first token is replaced by `bos` if that is not negative. `progress` is called after
// each chunk. Errors: also cancelled, out_of_memory.
template <std::size_t N, class OnPosition>
Result<void> score_chunks(const std::array<Session*, N>& sessions,
                          std::span<const std::int32_t> tokens, Index context, std::int32_t bos,
                          const Progress* progress, const char* who, OnPosition on_position) {
  return catch_out_of_memory([&]() -> Result<void> {
    const auto length = static_cast<std::size_t>(context);
    const std::size_t n_chunks = tokens.size() / length;
    std::vector<Scalar<std::int32_t>> chunk(length);
    for (std::size_t c = 0; c < n_chunks; ++c) {
      const auto from = tokens.subspan(c * length, length);
      std::copy(from.begin(), from.end(), values(chunk));
      if (bos >= 0) chunk[0].value = bos;
      NIBBLE_CHECK(score_sequence<N>(sessions, {values(chunk), length}, length / 2 + 1, who,
                                     [&](std::int32_t next, const LogitsOfEach<N>& logits) {
                                       return on_position(next, logits);
                                     }));
      if (progress != nullptr && *progress && !(*progress)(c + 1, n_chunks)) {
        return Error{Errc::cancelled, who};
      }
    }
    return ok();
  });
}

}}}  // namespace nibble::NIBBLE_ABI::detail
