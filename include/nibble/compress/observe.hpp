// SPDX-License-Identifier: Apache-2.0
//
// Observes a model on a text: runs it, chunk by chunk, and gathers statistics of the inputs of its
// products. The memory it takes beside the model does not depend on the length of the text.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/compress/product_survey.hpp"
#include "nibble/compress/statistics.hpp"
#include "nibble/core/shared.hpp"
#include "nibble/generate/engine.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/model/architecture.hpp"
#include "nibble/model/model.hpp"
#include "nibble/model/progress.hpp"
#include "nibble/text/tokenizer.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

struct ObserveOptions {
  Index context = 512;    // tokens of a chunk, each of which is a new sequence
  Index max_chunks = 0;   // 0: all
  std::int32_t bos = -1;  // takes the place of the first token of each chunk; negative: none does
  Index max_step_tokens = 64;
  // Whether the output layer is observed, in all rows. Its name is that of its tensor: the one of
  // the embedding where a model ties them.
  bool output = true;
  // For which inputs more is gathered, by the names of the matrices; empty: for none. One that is
  // wanted for one of several matrices with the same input is there for all of them.
  std::function<InputStatisticsOptions(std::string_view name)> more = {};
  std::size_t text_piece = std::size_t{1} << 16;  // bytes that observe_text() tokenizes at once
  ops::KvType kv_type = ops::KvType::f16;
  Executor* executor = nullptr;  // must outlive the Observation; null: the calling thread
};

namespace detail {

// Whether each matrix in a layer is there only once. One that several places share has several
// inputs, and the model does not know under which name it is stored. Error: unsupported.
inline Result<void> check_no_shared(const Model& model) {
  const ProductSurvey survey(model);
  for (std::size_t i = 0; i < survey.matrices.size(); ++i) {
    const auto& a = survey.matrices[i];
    for (std::size_t j = 0; a.layer >= 0 && j < i; ++j) {
      const auto& b = survey.matrices[j];
      if ((a.slot == b.slot && a.layer == b.layer) || !same_weights(survey.at(a), survey.at(b))) {
        continue;
      }
      const auto name = [&](const ProductSurvey::Place& m) {
        return io::quoted(model.architecture().tensor_name(m.slot, m.layer));
      };
      return Error{Errc::unsupported, "observe: " + name(b) + " and " + name(a) +
                                          " share one tensor; observe the model before that"};
    }
  }
  return ok();
}

// What the callback of an observation works on.
struct Gathering {
  static constexpr std::size_t kNotSeen = static_cast<std::size_t>(-1);

  explicit Gathering(const Model& m) : model(m), n_slots(m.weights().n_slots()) {
    place_of.resize(n_slots * static_cast<std::size_t>(m.weights().n_layers() + 1));
  }

  // The name of a tensor of the file: of slots with the same weights outside of the layers, the
  // first's.
  std::string name_of(std::size_t slot, Index layer) const {
    const graph::WeightTable weights = model.weights();
    for (std::size_t other = 0; layer < 0 && other < slot; ++other) {
      if (same_weights(weights.at(other, layer), weights.at(slot, layer))) slot = other;
    }
    return model.architecture().tensor_name(slot, layer);
  }
  std::size_t& place(std::size_t slot, Index layer) noexcept {
    return place_of[static_cast<std::size_t>(layer + 1) * n_slots + slot].value;
  }

  // The error that ended it, if one did: what was gathered then is not of whole chunks.
  Result<void> validate() const {
    if (has_error) return error;
    return ok();
  }
  Result<void> end_with(Error why) {
    has_error = true;
    error = std::move(why);
    return validate();
  }

  // Called within a run: nothing may leave it but in `error`.
  void add(std::span<const std::size_t> slot_ids, Index layer,
           MatrixView<const float> rows) noexcept {
    if (has_error || (layer < 0 && !with_outer)) return;
    Result<void> added = catch_out_of_memory([&] { return add_rows(slot_ids, layer, rows); });
    if (added) return;
    has_error = true;
    error = std::move(added).error();
  }

  Model model;
  std::size_t n_slots;
  ObserveOptions options;
  bool with_outer = true;  // products outside of the layers too
  bool has_error = false;
  Error error{Errc::out_of_memory, ""};
  struct Place {
    std::size_t value = kNotSeen;  // in inputs
  };
  std::vector<Place> place_of;  // of each slot in each layer
  std::vector<InputStatistics> inputs;
  std::vector<std::vector<std::string>> names;  // of each input

 private:
  Result<void> add_rows(std::span<const std::size_t> slot_ids, Index layer,
                        MatrixView<const float> rows) {
    std::size_t& first = place(slot_ids[0], layer);
    if (!all_finite(rows)) {
      return Error{Errc::malformed, "observe: the input of " +
                                        io::quoted(name_of(slot_ids[0], layer)) +
                                        " has numbers that are not finite"};
    }
    if (first == kNotSeen) NIBBLE_CHECK(start(slot_ids, layer, rows.extent(1)));
    inputs[first].add(rows, options.executor);
    return ok();
  }
  static bool all_finite(MatrixView<const float> rows) noexcept {
    constexpr std::uint32_t kInfinityBits = 0x7F800000;  // larger ones are those of NaN
    std::uint32_t largest = 0;
    for (Index i = 0; i < rows.extent(0); ++i) {
      const float* const x = rows.data() + i * rows.stride(0);
      for (Index j = 0; j < rows.extent(1); ++j) {
        largest = (std::max)(largest, std::bit_cast<std::uint32_t>(x[j]) & 0x7FFFFFFF);
      }
    }
    return largest < kInfinityBits;
  }
  Result<void> start(std::span<const std::size_t> slot_ids, Index layer, Index k) {
    InputStatisticsOptions more;
    std::vector<std::string> all;
    for (const std::size_t slot : slot_ids) {
      all.push_back(name_of(slot, layer));
      if (!options.more) continue;
      const InputStatisticsOptions wanted = options.more(all.back());
      more.second_moments = more.second_moments || wanted.second_moments;
      more.channel_histograms = more.channel_histograms || wanted.channel_histograms;
    }
    inputs.reserve(inputs.size() + 1);
    names.reserve(names.size() + 1);
    inputs.push_back(InputStatistics(k, more));
    names.push_back(std::move(all));
    for (const std::size_t slot : slot_ids) place(slot, layer) = inputs.size() - 1;
    return ok();
  }
};

// How long the next piece of a text is: up to the end of a line in its second half, or of a word,
// or `most` bytes and the rest of a character.
inline std::size_t piece_of(std::string_view text, std::size_t most) noexcept {
  if (text.size() <= most) return text.size();
  const std::string_view piece = text.substr(0, (std::max)(most, std::size_t{1}));
  for (const char last : {'\n', ' '}) {
    const std::size_t at = piece.find_last_of(last);
    if (at != std::string_view::npos && at >= piece.size() / 2) return at + 1;
  }
  std::size_t n = piece.size();
  while (n < text.size() && (static_cast<unsigned char>(text[n]) & 0xC0u) == 0x80u) ++n;
  return n;
}

// How many rows of logits a step may have: all, unless they take more memory than this.
inline constexpr Index kMaxLogitBytes = Index{16} << 20;

}  // namespace detail

// A model that is being observed. Tokens are given in pieces of any size; whole chunks are run as
// soon as they are there.
class Observation {
 public:
  // Errors: those of Engine::create(); invalid_argument (a context or a number of chunks out of
  // range), unsupported (matrices of layers that share a tensor).
  static Result<Observation> create(const Model& model, const ObserveOptions& options = {});

  // The next tokens of the text. Errors: those of Engine::run(); malformed (an input that is not
  // finite), out_of_memory. An error is final: part of a chunk was gathered before it, so all that
  // follows, finish() too, gives the same error again.
  Result<void> add(std::span<const std::int32_t> tokens);
  // Whether max_chunks have been run: more tokens would be ignored.
  bool is_full() const noexcept {
    const Index most = state_->gathering->options.max_chunks;
    return most > 0 && state_->n_chunks >= most;
  }
  Index n_chunks() const noexcept { return state_->n_chunks; }

  // Ends it. What is left of the text, less than a chunk, is dropped, unless there was no whole
  // chunk. Errors: invalid_argument (no tokens at all), not_found (no data reached a matrix);
  // those of add().
  Result<Statistics> finish() &&;

  // Bytes that it holds beside the model.
  std::size_t bytes() const noexcept {
    std::size_t n = state_->engine.bytes() + state_->sequence.bytes();
    for (const InputStatistics& input : state_->gathering->inputs) n += input.bytes();
    return n;
  }

 private:
  struct State {
    State(Shared<detail::Gathering> g, Engine e, Sequence s)
        : gathering(std::move(g)), engine(std::move(e)), sequence(std::move(s)) {}
    Shared<detail::Gathering> gathering;
    Engine engine;
    Sequence sequence;
    std::vector<std::int32_t> chunk;  // tokens that wait
    Index n_chunks = 0;
    bool runs_at_once = false;
  };
  explicit Observation(Owned<State> state) noexcept : state_(std::move(state)) {}
  Result<void> run_chunk();
  Result<void> run_tokens(std::span<const std::int32_t> tokens);

  Owned<State> state_;
};

inline Result<Observation> Observation::create(const Model& model, const ObserveOptions& options) {
  if (options.context < 1 || options.max_chunks < 0) {
    return Error{Errc::invalid_argument, "observe: a context of " + to_text(options.context) +
                                             " tokens, " + to_text(options.max_chunks) +
                                             " chunks at most"};
  }
  return catch_out_of_memory([&]() -> Result<Observation> {
    NIBBLE_CHECK(detail::check_no_shared(model));
    Shared<detail::Gathering> gathering(
        Owned<detail::Gathering>(new (std::nothrow) detail::Gathering(model)));
    if (!gathering) return Error{Errc::out_of_memory, "an observation"};
    gathering->options = options;
    EngineOptions engine_options;
    engine_options.n_ctx = options.context;
    engine_options.max_step_tokens = (std::min)(options.context, options.max_step_tokens);
    engine_options.kv_type = options.kv_type;
    engine_options.executor = options.executor;
    engine_options.product_observer = [gathering](std::span<const std::size_t> slot_ids,
                                                  Index layer, MatrixView<const float> rows) {
      gathering->add(slot_ids, layer, rows);
    };
    const Index row_bytes = Index{model.config().vocab_size} * Index{sizeof(float)};
    if (options.output && engine_options.max_step_tokens >= 1) {
      engine_options.max_step_tokens =
          std::clamp<Index>(detail::kMaxLogitBytes / (std::max)(row_bytes, Index{1}), 1,
                            engine_options.max_step_tokens);
      engine_options.max_outputs = engine_options.max_step_tokens;
    }
    NIBBLE_TRY(engine, Engine::create(model, engine_options));
    const bool gives_embeddings = engine.gives_embeddings();
    if (gives_embeddings && engine_options.max_step_tokens < options.context) {
      engine_options.max_step_tokens = options.context;  // it reads a sequence at once
      NIBBLE_TRY(larger_engine, Engine::create(model, engine_options));
      engine = std::move(larger_engine);
    }
    gathering->with_outer = options.output || gives_embeddings;
    NIBBLE_TRY(sequence, engine.new_sequence());
    Owned<State> state(new (std::nothrow)
                           State(std::move(gathering), std::move(engine), std::move(sequence)));
    if (!state) return Error{Errc::out_of_memory, "an observation"};
    state->runs_at_once = gives_embeddings;
    state->chunk.reserve(static_cast<std::size_t>(options.context));
    return Observation(std::move(state));
  });
}

inline Result<void> Observation::add(std::span<const std::int32_t> tokens) {
  State& s = *state_;
  NIBBLE_CHECK(s.gathering->validate());
  const auto context = static_cast<std::size_t>(s.gathering->options.context);
  while (!tokens.empty() && !is_full()) {
    const std::size_t n = (std::min)(context - s.chunk.size(), tokens.size());
    s.chunk.insert(s.chunk.end(), tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(n));
    tokens = tokens.subspan(n);
    if (s.chunk.size() == context) NIBBLE_CHECK(run_chunk());
  }
  return ok();
}

inline Result<void> Observation::run_chunk() {
  State& s = *state_;
  if (s.gathering->options.bos >= 0) s.chunk[0] = s.gathering->options.bos;
  Result<void> done = run_tokens(s.chunk);
  s.chunk.clear();
  if (!done) return s.gathering->end_with(std::move(done).error());
  ++s.n_chunks;
  return ok();
}

inline Result<void> Observation::run_tokens(std::span<const std::int32_t> tokens) {
  State& s = *state_;
  NIBBLE_CHECK(s.sequence.rewind(0));
  while (!tokens.empty()) {
    const std::size_t n =
        (std::min)(tokens.size(), static_cast<std::size_t>(s.engine.max_step_tokens()));
    const bool wants_outputs = s.gathering->options.output && !s.runs_at_once;
    const SequenceInput input{.sequence = &s.sequence,
                              .tokens = tokens.first(n),
                              .n_outputs = wants_outputs ? static_cast<Index>(n) : 0};
    auto done = s.engine.run({&input, 1});
    if (!done) return std::move(done).error().in("observe");
    NIBBLE_CHECK(s.gathering->validate());
    tokens = tokens.subspan(n);
  }
  return ok();
}

inline Result<Statistics> Observation::finish() && {
  State& s = *state_;
  NIBBLE_CHECK(s.gathering->validate());
  if (s.n_chunks == 0 && s.chunk.empty()) {
    return Error{Errc::invalid_argument, "observe: the text has no tokens"};
  }
  if (s.n_chunks == 0) NIBBLE_CHECK(run_chunk());
  return catch_out_of_memory([&]() -> Result<Statistics> {
    detail::Gathering& g = *s.gathering;
    const detail::ProductSurvey survey(g.model);
    for (const auto& matrix : survey.matrices) {
      if (matrix.layer < 0 && !g.with_outer) continue;
      if (g.place(matrix.slot, matrix.layer) != detail::Gathering::kNotSeen) continue;
      return Error{Errc::not_found,
                   "observe: no data reached " + io::quoted(g.name_of(matrix.slot, matrix.layer))};
    }
    Statistics statistics;
    for (std::size_t i = 0; i < g.inputs.size(); ++i) {
      NIBBLE_CHECK(statistics.add(std::move(g.inputs[i]), g.names[i]));
    }
    return statistics;
  });
}

// Observes `model` on `tokens` (of a text, including BOS), in chunks of options.context; a
// remainder is dropped. llama.cpp's llama-imatrix takes the same chunks. `progress` is called after
// each chunk with the number of chunks done and of all; false stops. Errors: as Observation;
// cancelled.
NIBBLE_LAZY Result<Statistics> observe(const Model& model, std::span<const std::int32_t> tokens,
                                       const ObserveOptions& options = {},
                                       const Progress* progress = nullptr) {
  NIBBLE_TRY(observation, Observation::create(model, options));
  const auto context = static_cast<std::size_t>(options.context);
  std::size_t n_chunks = tokens.size() / context;
  if (options.max_chunks > 0) {
    n_chunks = (std::min)(n_chunks, static_cast<std::size_t>(options.max_chunks));
  }
  for (std::size_t c = 0; c < n_chunks; ++c) {
    NIBBLE_CHECK(observation.add(tokens.subspan(c * context, context)));
    if (progress != nullptr && *progress && !(*progress)(c + 1, n_chunks)) {
      return Error{Errc::cancelled, "observe"};
    }
  }
  if (n_chunks == 0) NIBBLE_CHECK(observation.add(tokens));
  return std::move(observation).finish();
}

// Observes `model` on a text of any length, which is tokenized piece by piece: pieces end with a
// line, or else a word, and tokens may differ there from those of the whole text. options.bos, if
// negative, becomes the one of the vocabulary where that wants one. `progress` is called after each
// piece with the number of bytes done and of all; false stops. Errors: as observe(); not_found (the
// model has no tokenizer), and those of Tokenizer::encode().
NIBBLE_LAZY Result<Statistics> observe_text(const Model& model, std::string_view text,
                                            const ObserveOptions& options = {},
                                            const Progress* progress = nullptr) {
  const text::Tokenizer* const tokenizer = model.tokenizer();
  if (tokenizer == nullptr) return Error(*model.tokenizer_error()).in("observe");
  if (text.empty()) return Error{Errc::invalid_argument, "observe: the text is empty"};
  ObserveOptions with_bos = options;
  const auto& settings = tokenizer->vocabulary().settings();
  if (options.bos < 0 && settings.add_bos) with_bos.bos = settings.bos;
  NIBBLE_TRY(observation, Observation::create(model, with_bos));
  const std::size_t n_bytes = text.size();
  text::EncodeOptions encode{.add_eos = false};
  std::vector<std::int32_t> ids;
  while (!text.empty() && !observation.is_full()) {
    const std::size_t n = detail::piece_of(text, options.text_piece);
    ids.clear();
    NIBBLE_CHECK(tokenizer->encode(text.substr(0, n), encode, ids));
    NIBBLE_CHECK(observation.add(ids));
    encode.add_bos = false;
    text.remove_prefix(n);
    if (progress != nullptr && *progress && !(*progress)(n_bytes - text.size(), n_bytes)) {
      return Error{Errc::cancelled, "observe"};
    }
  }
  return std::move(observation).finish();
}

}}}  // namespace nibble::NIBBLE_ABI::compress
