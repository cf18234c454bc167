// SPDX-License-Identifier: Apache-2.0
//
// A stream of tokens without end in constant memory: where the context is full, a segment ends, and
// rows of numbers that stand for what is forgotten are put in front of the next one. These memory
// rows are pooled from the tokens (as J. Rae et al., "Compressive Transformers for Long-Range
// Sequence Modelling", 2020, do in each layer), or learned: A. Bulatov et al., "Recurrent Memory
// Transformer", 2022.
//
//   auto stream = MemoryStream::create(model, {.n_ctx = 512}, {.n_rows = 16});
//   for (;;) { const auto logits = stream->append(next_tokens()); ... }
//
// It is for models that were trained for it. One that was not does not understand pooled rows:
// stories260K, with a context of 64, has a perplexity of 4.24 with 4 rows and half of each segment
// kept, 6.26 with nothing kept; 4.22 where a session rolls (WhenFull::roll, which forgets without a
// trace and takes constant memory too), and 4.42 where it begins anew each time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "nibble/core/owned.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/view.hpp"
#include "nibble/generate/engine.hpp"
#include "nibble/model/model.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct MemoryOptions {
  Index n_rows = 16;  // memory rows in front of a segment, at least 1
  // Tokens at the beginning of the stream that each segment begins with: a model attends to them
  // whatever they are ("attention sinks"; see WhenFull::roll).
  Index n_kept_first = 4;
  // Tokens at the end of a segment that the next one reads again, after the memory rows. -1: of
  // pooled memory half of what there is room for, of learned memory none.
  Index n_kept_last = -1;
  // Pooled memory: the rows that a segment becomes, each the mean of the embeddings of an equal
  // share of the tokens that are forgotten, made as long as these are on average. The oldest rows
  // make room for them. 0: n_rows, so that there is memory of one segment only.
  Index n_new_rows = 0;
  // Learned memory instead: the model's memory embeddings, (n_rows, dim), which are copied. A
  // segment has them in front, and after its tokens what was in front once more. What the model
  // makes of these last rows, after its last norm, is in front of the next segment.
  MatrixView<const float> learned = {};
};

// Owns an engine with one sequence. Move-only, not thread-safe; keeps the model alive.
class MemoryStream {
 public:
  // `engine`: as for Engine::create(); max_sequences, cache_positions and max_outputs are chosen
  // here, and max_step_tokens and n_ctx become what the memory rows need at least. Errors: those of
  // Engine::create(); invalid_argument (n_rows below 1, negative numbers, a segment without room
  // for a new token, `learned` of another shape, a product_observer of one's own beside it);
  // unsupported (a model that gives embeddings, or reads a sequence in both directions).
  static Result<MemoryStream> create(const Model& model, const EngineOptions& engine = {},
                                     const MemoryOptions& options = {});

  // Adds tokens, in as many segments as it takes, and returns the logits after the last: (1,
  // vocab_size), valid until the next call. Errors: invalid_argument (no tokens, or one out of
  // range) changes nothing. Those of Engine::run() end the stream: until reset() each call then
  // gives invalid_argument.
  Result<MatrixView<const float>> append(std::span<const std::int32_t> tokens);
  // Begins anew: no tokens, no memory.
  void reset() noexcept;

  const Model& model() const noexcept;
  std::uint64_t n_tokens() const noexcept;    // of the stream
  std::uint64_t n_segments() const noexcept;  // that have ended
  // How many tokens fit in until the segment ends.
  Index n_left() const noexcept;
  // The rows in front of this segment: (up to n_rows, dim); valid until the next call.
  MatrixView<const float> memory() const noexcept;
  // Bytes that it holds; constant.
  std::size_t bytes() const noexcept;

 private:
  struct State;
  explicit MemoryStream(Owned<State> state) noexcept;
  Owned<State> state_;
};

}}  // namespace nibble::NIBBLE_ABI

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/generate/memory_stream-inl.hpp"
#endif
