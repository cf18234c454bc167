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
                           const EmbedderOptions& options) noexcept;
  // A text, or one of the pieces of a long text, in a step.
  struct Piece {
    std::size_t text;
    Index index, n_pieces;  // of this text
    Tokens tokens;
  };
  // The tokens of a piece: the first and the last of the text may be in each.
  struct Cut {
    Tokens begin, middle, end;
    std::size_t size() const noexcept { return begin.size() + middle.size() + end.size(); }
  };

  Index n_ctx() const noexcept { return (std::min)(engine.n_ctx(), engine.max_step_tokens()); }
  // A text without its begin and end token, if it has them.
  Cut without_ends(Tokens text) const noexcept;
  Index n_pieces_of(Tokens text) const noexcept;
  Cut cut(Tokens text, Index index, Index n_pieces) const noexcept;
  // Computes n pieces together and adds them to the embeddings of their texts.
  Result<void> run(std::size_t n, MatrixView<float> out);
  void add(const Piece& piece, const float* row, float* out) noexcept;
  void normalize(float* row) const noexcept;
  double sum_of(const float* row) const noexcept;

  Engine engine;
  EmbedderOptions options;
  std::vector<Sequence> sequences;    // (max_texts), empty between steps
  std::vector<SequenceInput> inputs;  // (max_texts)
  std::vector<Piece> pieces;          // (max_texts)
  std::vector<Scalar<float>> one;     // (width), the result of a single text
  // With splits_long_texts:
  std::vector<Scalar<std::int32_t>> piece_tokens;  // (max_step_tokens)
  std::vector<Scalar<double>> sums;                // (width), of the pieces of a text
  double weight = 0;                               // of these pieces
};

NIBBLE_INLINE Embedder::Embedder(Owned<State> state) noexcept : state_(std::move(state)) {}

NIBBLE_INLINE const Model& Embedder::model() const noexcept { return state_->engine.model(); }
NIBBLE_INLINE Index Embedder::width() const noexcept { return state_->engine.output_width(); }
NIBBLE_INLINE Index Embedder::n_ctx() const noexcept { return state_->n_ctx(); }

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
    state->pieces.resize(state->sequences.size());
    const auto width = static_cast<std::size_t>(state->engine.output_width());
    state->one.resize(width);
    if (options.splits_long_texts) {
      state->piece_tokens.resize(static_cast<std::size_t>(state->engine.max_step_tokens()));
      state->sums.resize(width);
    }
    return Embedder(std::move(state));
  });
}

NIBBLE_INLINE std::size_t Embedder::State::bytes(const Engine::State& engine, std::size_t of_engine,
                                                 const EmbedderOptions& options) noexcept {
  const std::size_t of_sequence =
      sizeof(Sequence) + sizeof(SequenceInput) + sizeof(Piece) + sizeof(Sequence::State) +
      Sequence::State::memory_bytes(engine.limits.n_positions, engine.pages.n_tables,
                                    engine.needs.n_state_floats());
  const auto width = static_cast<std::size_t>(engine.plan.width);
  std::size_t of_pieces = 0;
  if (options.splits_long_texts) {
    of_pieces = static_cast<std::size_t>(engine.limits.max_rows) * sizeof(std::int32_t) +
                width * sizeof(double);
  }
  return of_engine + static_cast<std::size_t>(options.max_texts) * of_sequence +
         width * sizeof(float) + of_pieces + sizeof(State);
}

NIBBLE_INLINE std::size_t Embedder::bytes() const noexcept {
  const Engine& engine = state_->engine;
  return State::bytes(*engine.state_, engine.bytes(), state_->options);
}

NIBBLE_INLINE Result<std::size_t> Embedder::bytes_needed(const Model& model,
                                                         const EmbedderOptions& options) {
  return catch_out_of_memory([&]() -> Result<std::size_t> {
    Engine::State engine(model, State::engine_options(model, options));
    NIBBLE_CHECK(engine.measure());
    NIBBLE_CHECK(engine.check_gives(Engine::Gives::embeddings));
    return State::bytes(engine, engine.bytes(), options);
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

NIBBLE_INLINE Embedder::State::Cut Embedder::State::without_ends(Tokens text) const noexcept {
  const text::Tokenizer* const tokenizer = engine.model().tokenizer();
  if (tokenizer == nullptr || text.size() < 2) return {{}, text, {}};
  const text::VocabularySettings& settings = tokenizer->vocabulary().settings();
  const std::size_t n_begin = text.front() == settings.bos ? 1 : 0;
  const std::size_t n_end = text.back() == settings.eos ? 1 : 0;
  return {text.first(n_begin), text.subspan(n_begin, text.size() - n_begin - n_end),
          text.last(n_end)};
}

NIBBLE_INLINE Index Embedder::State::n_pieces_of(Tokens text) const noexcept {
  if (!options.splits_long_texts || static_cast<Index>(text.size()) <= n_ctx()) return 1;
  const Cut all = without_ends(text);
  const Index room = n_ctx() - static_cast<Index>(all.begin.size() + all.end.size());
  if (room < 1) return 1;  // the engine says that the text is too long
  return (static_cast<Index>(all.middle.size()) + room - 1) / room;
}

NIBBLE_INLINE Embedder::State::Cut Embedder::State::cut(Tokens text, Index index,
                                                        Index n_pieces) const noexcept {
  if (n_pieces == 1) return {{}, text, {}};
  const Cut all = without_ends(text);
  const auto n = static_cast<Index>(all.middle.size());
  const auto first = static_cast<std::size_t>(index * n / n_pieces);
  const auto last = static_cast<std::size_t>((index + 1) * n / n_pieces);
  return {all.begin, all.middle.subspan(first, last - first), all.end};
}

NIBBLE_INLINE Result<void> Embedder::State::run(std::size_t n, MatrixView<float> out) {
  for (std::size_t i = 0; i < n; ++i) {
    NIBBLE_CHECK(sequences[i].rewind(0));
    inputs[i] = {.sequence = &sequences[i], .tokens = pieces[i].tokens, .n_outputs = 0};
  }
  auto rows = engine.run(std::span(inputs).first(n));
  bool is_number = true;
  for (std::size_t i = 0; rows && i < n; ++i) {
    const float* const row = rows->data() + static_cast<Index>(i) * rows->stride(0);
    is_number = is_number && is_finite(sum_of(row));
    add(pieces[i], row, out.data() + static_cast<Index>(pieces[i].text) * out.stride(0));
  }
  for (std::size_t i = 0; i < n; ++i) NIBBLE_CHECK(sequences[i].rewind(0));
  if (!rows) return std::move(rows).error();
  if (!is_number) return detail::not_numbers("embedder", "embeddings");
  return ok();
}

NIBBLE_INLINE void Embedder::State::add(const Piece& piece, const float* row, float* out) noexcept {
  const auto width = static_cast<std::size_t>(engine.output_width());
  if (piece.n_pieces == 1) {
    std::memcpy(out, row, width * sizeof(float));
  } else {
    if (piece.index == 0) std::fill(sums.begin(), sums.end(), Scalar<double>{});
    // The pieces of a text follow each other.
    const auto n = static_cast<double>(piece.tokens.size());
    weight = (piece.index == 0 ? 0 : weight) + n;
    for (std::size_t j = 0; j < width; ++j) sums[j].value += n * static_cast<double>(row[j]);
    if (piece.index + 1 < piece.n_pieces) return;
    for (std::size_t j = 0; j < width; ++j) out[j] = static_cast<float>(sums[j].value / weight);
  }
  if (options.normalize) normalize(out);
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
  // As many pieces at once as fit in a step.
  const auto max_tokens = static_cast<std::size_t>(s.engine.max_step_tokens());
  std::size_t n = 0, n_tokens = 0;
  for (std::size_t t = 0; t < texts.size(); ++t) {
    const Index n_pieces = s.n_pieces_of(texts[t]);
    for (Index index = 0; index < n_pieces; ++index) {
      const State::Cut cut = s.cut(texts[t], index, n_pieces);
      if (n == s.pieces.size() || (n > 0 && n_tokens + cut.size() > max_tokens)) {
        NIBBLE_CHECK(s.run(n, out));
        n = n_tokens = 0;
      }
      Tokens tokens = cut.middle;
      if (n_pieces > 1) {
        std::int32_t* const joined = values(s.piece_tokens) + n_tokens;
        std::int32_t* to = joined;
        for (const Tokens part : {cut.begin, cut.middle, cut.end}) {
          to = std::copy(part.begin(), part.end(), to);
        }
        tokens = {joined, cut.size()};
      }
      s.pieces[n++] = {t, index, n_pieces, tokens};
      n_tokens += cut.size();
    }
  }
  if (n > 0) NIBBLE_CHECK(s.run(n, out));
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
