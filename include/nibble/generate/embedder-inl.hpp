// SPDX-License-Identifier: Apache-2.0
//
// An embedder's functions. Included by embedder.hpp.
#pragma once

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "nibble/core/libm.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/generate/embedder.hpp"
#include "nibble/generate/engine.hpp"
#include "nibble/generate/logprob.hpp"
#include "nibble/ops/kv_cache.hpp"
#include "nibble/text/tokenizer.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct Embedder::State {
  State(Engine e, const EmbedderOptions& o) noexcept : engine(std::move(e)), options(o) {}

  static EngineOptions engine_options(const Model& model, const EmbedderOptions& options);
  // of_engine: the bytes of the engine.
  static std::size_t bytes(const Engine::State& engine, std::size_t of_engine,
                           Index n_texts) noexcept;
  // Computes texts together and writes their embeddings to `out`.
  Result<void> run(std::span<const Tokens> texts, MatrixView<float> out);
  void normalize(float* row) const noexcept;
  double sum_of(const float* row) const noexcept;

  Engine engine;
  EmbedderOptions options;
  std::vector<Sequence> sequences;    // (max_texts), empty between steps
  std::vector<SequenceInput> inputs;  // (max_texts)
  std::vector<Scalar<float>> one;     // (width), the result of a single text
};

NIBBLE_INLINE Embedder::Embedder(Owned<State> state) noexcept : state_(std::move(state)) {}

NIBBLE_INLINE const Model& Embedder::model() const noexcept { return state_->engine.model(); }
NIBBLE_INLINE Index Embedder::width() const noexcept { return state_->engine.output_width(); }
NIBBLE_INLINE Index Embedder::n_ctx() const noexcept {
  return (std::min)(state_->engine.n_ctx(), state_->engine.max_step_tokens());
}

NIBBLE_INLINE EngineOptions Embedder::State::engine_options(const Model& model,
                                                            const EmbedderOptions& options) {
  EngineOptions engine_options{.n_ctx = options.n_ctx,
                               .max_sequences = options.max_texts,
                               .max_step_tokens = options.max_step_tokens,
                               .kv_type = options.kv_type,
                               .executor = options.executor};
  if (options.n_ctx == 0) engine_options.n_ctx = (std::min)(model.config().n_ctx, kDefaultContext);
  if (options.max_step_tokens == 0) engine_options.max_step_tokens = engine_options.n_ctx;
  // The tokens of a step, and a page of each text that is not full. (Options out of range are the
  // engine's to refuse.)
  const auto in_range = [](Index n) { return std::clamp<Index>(n, 0, Index{1} << 20); };
  engine_options.cache_positions =
      in_range(engine_options.max_step_tokens) + in_range(options.max_texts) * ops::kPagePositions;
  return engine_options;
}

NIBBLE_INLINE Result<Embedder> Embedder::create(const Model& model,
                                                const EmbedderOptions& options) {
  return catch_out_of_memory([&]() -> Result<Embedder> {
    NIBBLE_TRY(engine, Engine::create(model, State::engine_options(model, options),
                                      Engine::Gives::embeddings));
    Owned<State> state(new (std::nothrow) State(std::move(engine), options));
    if (!state) return Error{Errc::out_of_memory, "an embedder"};
    state->sequences.reserve(static_cast<std::size_t>(options.max_texts));
    for (Index i = 0; i < options.max_texts; ++i) {
      NIBBLE_TRY(sequence, state->engine.new_sequence());
      state->sequences.push_back(std::move(sequence));
    }
    state->inputs.resize(state->sequences.size());
    state->one.resize(static_cast<std::size_t>(state->engine.output_width()));
    return Embedder(std::move(state));
  });
}

NIBBLE_INLINE std::size_t Embedder::State::bytes(const Engine::State& engine, std::size_t of_engine,
                                                 Index n_texts) noexcept {
  const std::size_t of_sequence =
      sizeof(Sequence) + sizeof(SequenceInput) + sizeof(Sequence::State) +
      Sequence::State::memory_bytes(engine.limits.n_positions, engine.pages.n_tables,
                                    engine.needs.n_state_floats);
  return of_engine + static_cast<std::size_t>(n_texts) * of_sequence +
         static_cast<std::size_t>(engine.plan.width) * sizeof(float) + sizeof(State);
}

NIBBLE_INLINE std::size_t Embedder::bytes() const noexcept {
  const Engine& engine = state_->engine;
  return State::bytes(*engine.state_, engine.bytes(), state_->options.max_texts);
}

NIBBLE_INLINE Result<std::size_t> Embedder::bytes_needed(const Model& model,
                                                         const EmbedderOptions& options) {
  return catch_out_of_memory([&]() -> Result<std::size_t> {
    Engine::State engine(model, State::engine_options(model, options));
    NIBBLE_CHECK(engine.measure());
    NIBBLE_CHECK(engine.check_gives(Engine::Gives::embeddings));
    return State::bytes(engine, engine.bytes(), options.max_texts);
  });
}

// Of squares; of doubles, so infinite only if a number is.
NIBBLE_INLINE double Embedder::State::sum_of(const float* row) const noexcept {
  double sum = 0;
  for (Index j = 0; j < engine.output_width(); ++j) {
    sum += static_cast<double>(row[j]) * static_cast<double>(row[j]);
  }
  return sum;
}

NIBBLE_INLINE void Embedder::State::normalize(float* row) const noexcept {
  const double sum = sum_of(row);
  if (!(sum > 0)) return;
  const double factor = 1 / libm::sqrt(sum);
  for (Index j = 0; j < engine.output_width(); ++j) {
    row[j] = static_cast<float>(static_cast<double>(row[j]) * factor);
  }
}

NIBBLE_INLINE Result<void> Embedder::State::run(std::span<const Tokens> texts,
                                                MatrixView<float> out) {
  for (std::size_t i = 0; i < texts.size(); ++i) {
    NIBBLE_CHECK(sequences[i].rewind(0));
    inputs[i] = {.sequence = &sequences[i], .tokens = texts[i], .n_outputs = 0};
  }
  auto rows = engine.run(std::span(inputs).first(texts.size()));
  bool is_number = true;
  if (rows) {
    for (Index i = 0; i < out.extent(0); ++i) {
      float* const row = out.data() + i * out.stride(0);
      std::memcpy(row, rows->data() + i * rows->stride(0),
                  static_cast<std::size_t>(rows->extent(1)) * sizeof(float));
      is_number = is_number && is_finite(sum_of(row));
      if (options.normalize) normalize(row);
    }
  }
  for (std::size_t i = 0; i < texts.size(); ++i) NIBBLE_CHECK(sequences[i].rewind(0));
  if (!rows) return std::move(rows).error();
  if (!is_number) return detail::not_numbers("embedder", "embeddings");
  return ok();
}

NIBBLE_INLINE Result<void> Embedder::embed(std::span<const Tokens> texts, MatrixView<float> out) {
  State& s = *state_;
  const auto n_texts = static_cast<Index>(texts.size());
  if (out.extent(0) != n_texts || out.extent(1) != width() || (n_texts > 0 && out.stride(1) != 1)) {
    return Error{Errc::invalid_argument, "embedder: a result of " + to_text(out.extent(0)) +
                                             " rows of " + to_text(out.extent(1)) + ", expected " +
                                             to_text(n_texts) + " contiguous of " +
                                             to_text(width())};
  }
  // As many at once as fit in a step.
  std::size_t first = 0;
  while (first < texts.size()) {
    std::size_t n = 0, n_tokens = 0;
    const auto max_tokens = static_cast<std::size_t>(s.engine.max_step_tokens());
    while (first + n < texts.size() && n < s.sequences.size()) {
      n_tokens += texts[first + n].size();
      if (n > 0 && n_tokens > max_tokens) break;
      ++n;
    }
    NIBBLE_CHECK(
        s.run(texts.subspan(first, n), out.rows(static_cast<Index>(first), static_cast<Index>(n))));
    first += n;
  }
  return ok();
}

NIBBLE_INLINE Result<VectorView<const float>> Embedder::embed(Tokens tokens) {
  float* const one = values(state_->one);
  NIBBLE_CHECK(embed({&tokens, 1}, MatrixView<float>(one, 1, width())));
  return VectorView<const float>(one, width());
}

NIBBLE_INLINE Result<VectorView<const float>> Embedder::embed(std::string_view text) {
  if (model().tokenizer() == nullptr) return *model().tokenizer_error();
  NIBBLE_TRY(tokens, model().tokenizer()->encode(text));
  return embed(Tokens(tokens));
}

}}  // namespace nibble::NIBBLE_ABI
