// SPDX-License-Identifier: Apache-2.0
//
// A model's functions. Included by model.hpp.
#pragma once

#include <new>
#include <optional>
#include <utility>

#include "nibble/hub/folder.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/model/architecture.hpp"
#include "nibble/model/load.hpp"
#include "nibble/model/load_weights.hpp"
#include "nibble/model/model.hpp"
#include "nibble/model/tuning.hpp"
#include "nibble/model/weight_store.hpp"
#include "nibble/text/tokenizer.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct Model::Parts {
  Parts(Owned<ModelGraph> g, WeightStore w) : graph(std::move(g)), weights(std::move(w)) {}

  Owned<ModelGraph> graph;
  WeightStore weights;
  Tuning tuning = {};
  bool is_outline = false;
  std::optional<text::Tokenizer> tokenizer;
  Error tokenizer_error{Errc::not_found, "the model was made without a tokenizer"};
  Shared<io::GgufBytes> file;  // only if weights in it are used in place
};

NIBBLE_INLINE Model::Model(Shared<Parts> parts) noexcept : parts_(std::move(parts)) {}

NIBBLE_INLINE const ModelConfig& Model::config() const noexcept { return parts_->graph->config(); }

NIBBLE_INLINE const ModelGraph& Model::architecture() const noexcept { return *parts_->graph; }

NIBBLE_INLINE bool Model::has_weights() const noexcept { return !parts_->is_outline; }

NIBBLE_INLINE graph::WeightTable Model::weights() const noexcept { return parts_->weights.table(); }

NIBBLE_INLINE std::size_t Model::weight_bytes() const noexcept { return parts_->weights.bytes(); }

NIBBLE_INLINE std::size_t Model::weight_bytes_in_place() const noexcept {
  return parts_->weights.bytes_in_place();
}

NIBBLE_INLINE std::span<const WeightConversion> Model::conversions() const noexcept {
  return parts_->weights.conversions();
}

NIBBLE_INLINE const Tuning& Model::tuning() const noexcept { return parts_->tuning; }

NIBBLE_INLINE const text::Tokenizer* Model::tokenizer() const noexcept {
  return parts_->tokenizer ? &*parts_->tokenizer : nullptr;
}

NIBBLE_INLINE const Error* Model::tokenizer_error() const noexcept {
  return parts_->tokenizer ? nullptr : &parts_->tokenizer_error;
}

NIBBLE_INLINE Result<Model> Model::make(Owned<ModelGraph> graph, WeightStore weights,
                                        const LoadOptions& options) {
  return catch_out_of_memory([&]() -> Result<Model> {
    Shared<Parts> parts(
        Owned<Parts>(new (std::nothrow) Parts(std::move(graph), std::move(weights))));
    if (!parts) return Error{Errc::out_of_memory, "a model"};
    parts->is_outline = options.outline_only;
    if (options.tuning) {
      NIBBLE_CHECK(check_tuning(*options.tuning));
      parts->tuning = *options.tuning;
    } else if (!NIBBLE_ENCLAVE && !options.outline_only && parts->weights.bytes_in_place() == 0) {
      InlineExecutor alone;
      Executor& executor = options.executor != nullptr ? *options.executor : alone;
      parts->tuning = measure_tuning(parts->weights.table().layers(), executor);
    }
    return Model(std::move(parts));
  });
}

NIBBLE_INLINE Result<Model> Model::from_parts(Owned<ModelGraph> graph, WeightStore weights,
                                              const LoadOptions& options) {
  if (!graph) return Error{Errc::out_of_memory, "a model"};
  NIBBLE_CHECK(catch_out_of_memory([&] {
    return graph::check_weights(
        [&](graph::SurveySink& sink) { graph->survey(sink); }, weights.table(),
        [&](std::size_t slot, Index layer) { return graph->tensor_name(slot, layer); });
  }));
  return make(std::move(graph), std::move(weights), options);
}

NIBBLE_INLINE Result<Model> Model::from_parts(Owned<ModelGraph> graph, WeightStore weights,
                                              text::Tokenizer tokenizer,
                                              const LoadOptions& options) {
  NIBBLE_TRY(model, from_parts(std::move(graph), std::move(weights), options));
  model.parts_->tokenizer = std::move(tokenizer);
  return model;
}

NIBBLE_INLINE Result<WeightStore> Model::bind(const ModelGraph* graph, FormatTable formats,
                                              const io::Gguf& file) {
  if (graph == nullptr) return Error{Errc::out_of_memory, file.name()};
  const ModelConfig& config = graph->config();
  // Each layer has tensors of its own, or names for those of others. A number of layers that the
  // file cannot hold is refused before memory is allocated for it.
  std::size_t n_shared = 0;
  if (file.find(kSharedTensorsKey) != nullptr) {
    NIBBLE_TRY(names, file.get_strings(kSharedTensorsKey));
    n_shared = names.size();
  }
  if (static_cast<std::size_t>(config.n_layers) > file.tensors().size() + n_shared) {
    return Error{Errc::malformed, file.name() + ": " + to_text(Index{config.n_layers}) +
                                      " layers but " + to_text(file.tensors().size()) + " tensors"};
  }
  WeightStore weights(config.n_layers, graph->n_slots(), formats);
  detail::TensorBinder binder(*graph, file, weights);
  graph->survey(binder);
  NIBBLE_CHECK(binder.finish());
  return weights;
}

namespace detail {

NIBBLE_INLINE Result<text::Tokenizer> tokenizer_in(const io::Gguf& file, Index vocab_size) {
  if (file.find("tokenizer.ggml.model") == nullptr) {
    NIBBLE_TRY(why, file.get_string_or(hub::kTokenizerErrorKey, ""));
    if (!why.empty()) return Error{Errc::unsupported, std::string(why)};
    return Error{Errc::not_found, file.name() + ": the file has no tokenizer"};
  }
  NIBBLE_TRY(tokenizer, text::Tokenizer::from_gguf(file));
  if (tokenizer.vocabulary().size() > static_cast<std::size_t>(vocab_size)) {
    return Error{Errc::malformed,
                 file.name() + ": the tokenizer has " + to_text(tokenizer.vocabulary().size()) +
                     " tokens, but there are " + to_text(vocab_size) + " rows of embeddings"};
  }
  return tokenizer;
}

}  // namespace detail

NIBBLE_INLINE Result<Model> Model::from_graph(Owned<ModelGraph> graph, FormatTable formats,
                                              const io::Gguf& file, const LoadOptions& options) {
  if (options.tuning) NIBBLE_CHECK(check_tuning(*options.tuning));
  NIBBLE_TRY(weights, bind(graph.get(), formats, file));
  // A model can run on token ids alone.
  auto tokenizer = detail::tokenizer_in(file, graph->config().vocab_size);
  InlineExecutor alone;
  Executor& executor = options.executor != nullptr ? *options.executor : alone;
  if (options.outline_only) {
    weights.fill_ties();  // an engine's memory depends on the formats of all weights
  } else {
    Result<void> packed = weights.pack(executor, options.progress, file.files());
    if (!packed) return std::move(packed).error().in(file.name());
  }
  auto model = make(std::move(graph), std::move(weights), options);
  if (!model) return std::move(model).error().in(file.name());
  Parts& parts = *model->parts_;
  if (tokenizer) {
    parts.tokenizer = *std::move(tokenizer);
  } else {
    parts.tokenizer_error = std::move(tokenizer).error();
  }
  if (parts.weights.bytes_in_place() > 0) parts.file = file.keeper();
  return model;
}

NIBBLE_INLINE Result<ModelMemory> Model::memory_of_graph(Owned<ModelGraph> graph,
                                                         FormatTable formats, const io::Gguf& file,
                                                         const LoadOptions& options) {
  NIBBLE_TRY(weights, bind(graph.get(), formats, file));
  const Index n_workers = options.executor != nullptr ? options.executor->n_workers() : 1;
  return ModelMemory{weights.bytes() - weights.bytes_in_place(), weights.bytes_in_place(),
                     static_cast<std::size_t>(n_workers) * weights.largest_piece(file.files()) +
                         weights.bytes_of_scales()};
}

}}  // namespace nibble::NIBBLE_ABI
