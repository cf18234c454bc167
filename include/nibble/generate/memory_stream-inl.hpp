// SPDX-License-Identifier: Apache-2.0
//
// The functions of a stream with memory rows. Included by memory_stream.hpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "nibble/core/scalar.hpp"
#include "nibble/core/shared.hpp"
#include "nibble/generate/engine.hpp"
#include "nibble/generate/memory_stream.hpp"
#include "nibble/generate/sequence.hpp"
#include "nibble/graph/survey.hpp"
#include "nibble/model/architecture.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

namespace detail {

// Which slot has the embeddings of tokens.
struct EmbeddingSlot final : graph::SurveySink {
  void weight(const graph::WeightNeed& need) override {
    const bool is_it = need.is_table && need.rows_of == graph::RowsOf::tokens && need.layer < 0;
    if (is_it && slot == graph::kNoSlot) slot = need.slot;
  }
  std::size_t slot = graph::kNoSlot;
};

inline double length_of(const float* row, Index n) noexcept {
  double sum = 0;
  for (Index i = 0; i < n; ++i) sum += static_cast<double>(row[i]) * static_cast<double>(row[i]);
  return std::sqrt(sum);
}

// What the model makes of memory rows: the input of its last product outside of the layers.
struct MemoryOutput {
  std::vector<Scalar<float>> rows;  // (n, dim)
  Index n = 0, dim = 0;
  bool is_wanted = false;

  void see(Index layer, MatrixView<const float> x) noexcept {
    if (!is_wanted || layer >= 0 || x.extent(0) != n || x.extent(1) != dim) return;
    for (Index i = 0; i < n; ++i) {
      for (Index j = 0; j < dim; ++j) rows[static_cast<std::size_t>(i * dim + j)].value = x(i, j);
    }
  }
};

}  // namespace detail

struct MemoryStream::State {
  State(Engine e, Sequence s, const MemoryOptions& o)
      : engine(std::move(e)),
        sequence(std::move(s)),
        options(o),
        dim(engine.model().config().dim),
        memory(static_cast<std::size_t>(o.n_rows * dim)),
        row(static_cast<std::size_t>(dim)),
        first(static_cast<std::size_t>(o.n_kept_first)),
        last(static_cast<std::size_t>(o.n_kept_last)) {}

  bool is_learned() const noexcept { return output.get() != nullptr; }
  // Tokens of the segment, without those that it has from the one before.
  Index n_left() const noexcept {
    const Index n_written = is_learned() ? options.n_rows : 0;
    return sequence.capacity() - n_written - sequence.position();
  }
  MatrixView<const float> memory_rows() const noexcept {
    return MatrixView<const float>(values(memory), n_memory, dim);
  }
  Result<MatrixView<const float>> append(std::span<const std::int32_t> tokens);
  // Ends a segment and begins the next one.
  Result<void> next_segment();
  // The memory rows after this segment.
  Result<void> learn();
  void pool(std::span<const std::int32_t> tokens) noexcept;
  void reset() noexcept {
    // To the beginning one can always go back.
    static_cast<void>(sequence.rewind(0));
    n_memory = 0;
    n_tokens = n_segments = 0;
    is_ended = false;
    if (!is_learned()) return;
    memory = learned;
    n_memory = options.n_rows;
  }
  // Adds what a segment begins with.
  Result<void> begin(Index n_first, Index n_last);
  Result<void> run(std::span<const std::int32_t> tokens);
  Result<void> run_rows(Index n_outputs);

  Engine engine;
  Sequence sequence;
  MemoryOptions options;
  Index dim;
  std::vector<Scalar<float>> memory;   // (n_rows, dim)
  std::vector<Scalar<float>> learned;  // the same, of the first segment; or empty
  std::vector<Scalar<float>> row;      // (dim)
  std::vector<Scalar<std::int32_t>> first, last;
  Shared<detail::MemoryOutput> output;  // of learned memory
  graph::Weight embeddings;
  Index n_memory = 0;  // rows of `memory` that there are
  Index n_before = 0;  // positions of the segment before the tokens that it may forget
  std::uint64_t n_tokens = 0, n_segments = 0;
  bool is_ended = false;  // by an error
};

NIBBLE_INLINE MemoryStream::MemoryStream(Owned<State> state) noexcept : state_(std::move(state)) {}

NIBBLE_INLINE const Model& MemoryStream::model() const noexcept { return state_->engine.model(); }
NIBBLE_INLINE std::uint64_t MemoryStream::n_tokens() const noexcept { return state_->n_tokens; }
NIBBLE_INLINE std::uint64_t MemoryStream::n_segments() const noexcept { return state_->n_segments; }
NIBBLE_INLINE Index MemoryStream::n_left() const noexcept { return state_->n_left(); }
NIBBLE_INLINE MatrixView<const float> MemoryStream::memory() const noexcept {
  return state_->memory_rows();
}
NIBBLE_INLINE void MemoryStream::reset() noexcept { state_->reset(); }
NIBBLE_INLINE std::size_t MemoryStream::bytes() const noexcept {
  const State& s = *state_;
  const std::size_t n_floats = s.memory.size() + s.learned.size() + s.row.size() +
                               (s.is_learned() ? s.output->rows.size() : 0);
  return s.engine.bytes() + s.sequence.bytes() + sizeof(State) + n_floats * sizeof(float) +
         (s.first.size() + s.last.size()) * sizeof(std::int32_t);
}

NIBBLE_INLINE Result<MemoryStream> MemoryStream::create(const Model& model,
                                                        const EngineOptions& engine,
                                                        const MemoryOptions& options) {
  const bool is_learned = options.learned.data() != nullptr;
  const Index dim = model.config().dim;
  const auto is_within = [](Index n, Index least) {
    return n >= least && n < Index{1} << 30;  // no sum of these overflows
  };
  if (!is_within(options.n_rows, 1) || !is_within(options.n_kept_first, 0) ||
      !is_within(options.n_kept_last, -1) || !is_within(options.n_new_rows, 0) ||
      options.n_new_rows > options.n_rows) {
    return Error{Errc::invalid_argument,
                 "memory stream: n_rows must be at least 1 and n_new_rows, and no number negative "
                 "but n_kept_last -1"};
  }
  if (is_learned &&
      (options.learned.extent(0) != options.n_rows || options.learned.extent(1) != dim)) {
    return Error{Errc::invalid_argument, "memory stream: learned rows of shape (" +
                                             to_text(options.learned.extent(0)) + ", " +
                                             to_text(options.learned.extent(1)) + ") instead of (" +
                                             to_text(options.n_rows) + ", " + to_text(dim) + ")"};
  }
  if (is_learned && engine.product_observer) {
    return Error{Errc::invalid_argument,
                 "memory stream: learned memory needs the product_observer for itself"};
  }
  return catch_out_of_memory([&]() -> Result<MemoryStream> {
    EngineOptions own = engine;
    own.max_sequences = 1;
    own.cache_positions = 0;
    own.max_outputs = is_learned ? options.n_rows : 1;
    own.max_step_tokens = (std::max)(own.max_step_tokens, options.n_rows);
    Shared<detail::MemoryOutput> output;
    if (is_learned) {
      output = Shared<detail::MemoryOutput>(
          Owned<detail::MemoryOutput>(new (std::nothrow) detail::MemoryOutput));
      if (!output) return Error{Errc::out_of_memory, "a memory stream"};
      output->n = options.n_rows;
      output->dim = dim;
      output->rows.resize(static_cast<std::size_t>(options.n_rows * dim));
      own.product_observer = [output](std::span<const std::size_t>, Index layer,
                                      MatrixView<const float> x) { output->see(layer, x); };
    }
    NIBBLE_TRY(made, Engine::create(model, own));
    detail::EmbeddingSlot embedding;
    model.architecture().survey(embedding);
    if (made.gives_embeddings() || embedding.slot == graph::kNoSlot) {
      return Error{Errc::unsupported, "memory stream: the model gives no logits of next tokens"};
    }
    MemoryOptions chosen = options;
    chosen.learned = {};  // copied; what it refers to may go
    if (chosen.n_new_rows == 0) chosen.n_new_rows = options.n_rows;
    if (chosen.n_kept_last < 0) {
      const Index room = made.n_ctx() - options.n_kept_first - options.n_rows;
      chosen.n_kept_last = is_learned ? 0 : (std::max)(Index{0}, room / 2);
    }
    const Index n_begin = chosen.n_kept_first + chosen.n_kept_last + chosen.n_rows;
    const Index n_needed = n_begin + (is_learned ? options.n_rows : 0) + 1;
    if (n_needed > made.n_ctx()) {
      return Error{Errc::invalid_argument, "memory stream: a segment of one token takes " +
                                               to_text(n_needed) + " positions; n_ctx is " +
                                               to_text(made.n_ctx())};
    }
    NIBBLE_TRY(sequence, made.new_sequence());
    Owned<State> state(new (std::nothrow) State(std::move(made), std::move(sequence), chosen));
    if (!state) return Error{Errc::out_of_memory, "a memory stream"};
    state->embeddings = model.weights().at(embedding.slot, -1);
    state->output = std::move(output);
    for (Index i = 0; is_learned && i < options.n_rows; ++i) {
      for (Index j = 0; j < dim; ++j) state->learned.push_back({options.learned(i, j)});
    }
    state->reset();
    return MemoryStream(std::move(state));
  });
}

NIBBLE_INLINE Result<MatrixView<const float>> MemoryStream::append(
    std::span<const std::int32_t> tokens) {
  State& s = *state_;
  if (s.is_ended) {
    return Error{Errc::invalid_argument,
                 "memory stream: a step failed, and what it would remember is lost; reset() it"};
  }
  if (tokens.empty()) return Error{Errc::invalid_argument, "memory stream: no tokens"};
  for (const std::int32_t token : tokens) {
    if (token >= 0 && token < s.engine.model().config().vocab_size) continue;
    return Error{Errc::invalid_argument,
                 "memory stream: token " + to_text(token) + " is not in [0, " +
                     to_text(Index{s.engine.model().config().vocab_size}) + ")"};
  }
  auto logits = s.append(tokens);
  if (!logits) s.is_ended = true;
  return logits;
}

NIBBLE_INLINE Result<MatrixView<const float>> MemoryStream::State::append(
    std::span<const std::int32_t> tokens) {
  const auto kind = tokens.size() == 1 ? ops::SegmentKind::generation : ops::SegmentKind::prompt;
  if (sequence.position() == 0) NIBBLE_CHECK(begin(0, 0));
  for (;;) {
    if (n_left() == 0) NIBBLE_CHECK(next_segment());
    const Index most = (std::min)(n_left(), engine.max_step_tokens());
    const auto now = tokens.first((std::min)(tokens.size(), static_cast<std::size_t>(most)));
    tokens = tokens.subspan(now.size());
    const SequenceInput input{
        .sequence = &sequence, .tokens = now, .n_outputs = tokens.empty() ? 1 : 0, .kind = kind};
    NIBBLE_TRY(logits, engine.run({&input, 1}));
    n_tokens += now.size();
    if (tokens.empty()) return logits;
  }
}

NIBBLE_INLINE Result<void> MemoryStream::State::begin(Index n_first, Index n_last) {
  NIBBLE_CHECK(run({values(first), static_cast<std::size_t>(n_first)}));
  if (n_memory > 0) NIBBLE_CHECK(run_rows(0));
  n_before = sequence.position();
  // The first segment has its first tokens behind its memory rows, if there are any.
  if (n_segments == 0) n_before += options.n_kept_first;
  return run({values(last), static_cast<std::size_t>(n_last)});
}

NIBBLE_INLINE Result<void> MemoryStream::State::next_segment() {
  const auto all = sequence.tokens();
  const auto n_last = static_cast<std::size_t>(options.n_kept_last);
  if (n_segments == 0) {
    const auto n_first = static_cast<std::size_t>(options.n_kept_first);
    const auto kept = all.subspan(static_cast<std::size_t>(n_before) - n_first, n_first);
    for (std::size_t i = 0; i < n_first; ++i) first[i].value = kept[i];
  }
  for (std::size_t i = 0; i < n_last; ++i) last[i].value = all[all.size() - n_last + i];
  if (is_learned()) {
    NIBBLE_CHECK(learn());
  } else {
    const auto forgotten = all.subspan(static_cast<std::size_t>(n_before));
    pool(forgotten.first(forgotten.size() - n_last));
  }
  ++n_segments;
  NIBBLE_CHECK(sequence.rewind(0));
  return begin(options.n_kept_first, options.n_kept_last);
}

NIBBLE_INLINE Result<void> MemoryStream::State::learn() {
  output->is_wanted = true;
  Result<void> done = run_rows(options.n_rows);
  output->is_wanted = false;
  NIBBLE_CHECK(std::move(done));
  memory = output->rows;
  return ok();
}

NIBBLE_INLINE void MemoryStream::State::pool(std::span<const std::int32_t> tokens) noexcept {
  const auto n = static_cast<Index>(tokens.size());
  const Index n_new = (std::min)(n, options.n_new_rows);
  const Index n_lost = (std::max)(Index{0}, n_memory + n_new - options.n_rows);
  float* const rows = values(memory);
  std::memmove(rows, rows + n_lost * dim,
               static_cast<std::size_t>((n_memory - n_lost) * dim) * sizeof(float));
  n_memory += n_new - n_lost;
  for (Index i = 0; i < n_new; ++i) {
    float* const mean = rows + (n_memory - n_new + i) * dim;
    const Index begin = i * n / n_new, end = (i + 1) * n / n_new;
    for (Index j = 0; j < dim; ++j) mean[j] = 0;
    double lengths = 0;
    for (Index t = begin; t < end; ++t) {
      const std::int32_t token = tokens[static_cast<std::size_t>(t)];
      embeddings.ops->row(embeddings.data, embeddings.n, embeddings.k, token, values(row));
      for (Index j = 0; j < dim; ++j) mean[j] += row[static_cast<std::size_t>(j)].value;
      lengths += detail::length_of(values(row), dim);
    }
    // A mean is shorter than what it is of; and so much shorter that the model takes it for
    // something else: without this, a perplexity of 4.24 (memory_stream.hpp) is 8.20.
    const double length = detail::length_of(mean, dim);
    const double scale = length > 0 ? lengths / static_cast<double>(end - begin) / length : 0;
    for (Index j = 0; j < dim; ++j) mean[j] *= static_cast<float>(scale);
  }
}

NIBBLE_INLINE Result<void> MemoryStream::State::run(std::span<const std::int32_t> tokens) {
  while (!tokens.empty()) {
    const auto now =
        tokens.first((std::min)(tokens.size(), static_cast<std::size_t>(engine.max_step_tokens())));
    tokens = tokens.subspan(now.size());
    const SequenceInput input{.sequence = &sequence, .tokens = now, .n_outputs = 0};
    NIBBLE_CHECK(engine.run({&input, 1}));
  }
  return ok();
}

NIBBLE_INLINE Result<void> MemoryStream::State::run_rows(Index n_outputs) {
  const SequenceInput input{.sequence = &sequence, .rows = memory_rows(), .n_outputs = n_outputs};
  NIBBLE_CHECK(engine.run({&input, 1}));
  return ok();
}

}}  // namespace nibble::NIBBLE_ABI
