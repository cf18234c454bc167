// SPDX-License-Identifier: Apache-2.0
//
// A model's functions. Included by model.hpp.
#pragma once

#include <new>
#include <optional>
#include <utility>

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
  Tuning tuning;
  std::optional<text::Tokenizer> tokenizer;
  std::optional<io::Gguf> file;  // only while weights in it are used in place
};

NIBBLE_INLINE Model::Model(Shared<Parts> parts) noexcept : parts_(std::move(parts)) {}

NIBBLE_INLINE const ModelConfig& Model::config() const noexcept { return parts_->graph->config(); }

NIBBLE_INLINE const ModelGraph& Model::architecture() const noexcept { return *parts_->graph; }

NIBBLE_INLINE graph::WeightTable Model::weights() const noexcept { return parts_->weights.table(); }

NIBBLE_INLINE std::size_t Model::weight_bytes() const noexcept { return parts_->weights.bytes(); }

NIBBLE_INLINE std::size_t Model::weight_bytes_in_place() const noexcept {
  return parts_->weights.bytes_in_place();
}

NIBBLE_INLINE const Tuning& Model::tuning() const noexcept { return parts_->tuning; }

NIBBLE_INLINE const text::Tokenizer* Model::tokenizer() const noexcept {
  return parts_->tokenizer ? &*parts_->tokenizer : nullptr;
}

NIBBLE_INLINE void Model::keep(io::Gguf&& file) {
  if (weight_bytes_in_place() > 0) parts_->file = std::move(file);
}

NIBBLE_INLINE Result<Model> Model::make(Owned<ModelGraph> graph, WeightStore weights,
                                        const LoadOptions& options) {
  Shared<Parts> parts(Owned<Parts>(new (std::nothrow) Parts(std::move(graph), std::move(weights))));
  if (!parts) return Error{Errc::out_of_memory, "a model"};
  if (options.tuning) {
    NIBBLE_CHECK(check_tuning(*options.tuning));
    parts->tuning = *options.tuning;
  } else {
    InlineExecutor alone;
    Executor& executor = options.executor != nullptr ? *options.executor : alone;
    parts->tuning = measure_tuning(parts->weights.table().layers(), executor);
  }
  return Model(std::move(parts));
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

NIBBLE_INLINE Result<Model> Model::from_graph(Owned<ModelGraph> graph,
                                              std::span<const graph::FormatOps* const> formats,
                                              const io::Gguf& file, const LoadOptions& options) {
  if (!graph) return Error{Errc::out_of_memory, file.name()};
  const ModelConfig& config = graph->config();
  // Each layer has its own tensors. A number of layers that the file cannot hold is refused before
  // memory is allocated for it.
  if (static_cast<std::size_t>(config.n_layers) > file.tensors().size()) {
    return Error{Errc::malformed, file.name() + ": " + to_text(Index{config.n_layers}) +
                                      " layers but " + to_text(file.tensors().size()) + " tensors"};
  }
  WeightStore weights(config.n_layers, graph->n_slots(), formats);
  detail::TensorBinder binder(*graph, file, weights);
  graph->survey(binder);
  NIBBLE_CHECK(binder.finish());
  std::optional<text::Tokenizer> tokenizer;
  if (file.find("tokenizer.ggml.model") != nullptr) {
    auto read = text::Tokenizer::from_gguf(file);
    // A model can run on token ids alone, so an unknown kind of tokenizer is not an error here.
    if (!read && read.error().code != Errc::unsupported) return read.error();
    if (read) {
      if (read->vocabulary().size() > static_cast<std::size_t>(Index{config.vocab_size})) {
        return Error{Errc::malformed, file.name() + ": " + to_text(read->vocabulary().size()) +
                                          " tokens but " + to_text(Index{config.vocab_size}) +
                                          " rows of embeddings"};
      }
      tokenizer = *std::move(read);
    }
  }
  InlineExecutor alone;
  Executor& executor = options.executor != nullptr ? *options.executor : alone;
  Result<void> packed = weights.pack(executor, options.progress, file.file());
  if (!packed) return std::move(packed).error().in(file.name());
  auto model = make(std::move(graph), std::move(weights), options);
  if (!model) return std::move(model).error().in(file.name());
  model->parts_->tokenizer = std::move(tokenizer);
  return model;
}

}}  // namespace nibble::NIBBLE_ABI
