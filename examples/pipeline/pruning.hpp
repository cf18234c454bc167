// SPDX-License-Identifier: Apache-2.0
//
// Which neurons of a model matter, by first-order Taylor: what the loss would lose without one is
// |Σ x · dL/dx| over the tokens, x its output. Since x goes through a column of ffn_down alone, the
// sum is that of w · dL/dw over the column: gradients of weights tell it.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../common.hpp"
#include "../train/home_source.hpp"
#include "../train/model.hpp"
#include "nibble/compress/prune.hpp"
#include "nibble/train/trainer.hpp"

namespace example {

// |Σ w · dL/dw| of each column of the matrices whose names end in `ending`, mean over batches of 64
// commands. Errors: those of training; cancelled.
inline nibble::Result<std::vector<std::pair<std::string, std::vector<double>>>> column_scores(
    const nibble::io::Gguf& file, std::string_view ending, nibble::Index n_batches,
    std::uint64_t seed, nibble::Executor& executor) {
  using namespace nibble::train;
  constexpr nibble::Index kCommands = 64;
  NIBBLE_TRY(model, TrainedModel::create(file, {}, false));
  NIBBLE_TRY(tokenizer, nibble::text::Tokenizer::from_gguf(file));
  const HomeSource source(tokenizer, seed, kCommands * n_batches);
  const auto& config = model.graph().config();
  BatchOptions batch_options = command_batches(config.n_ctx, kCommands, seed);
  batch_options.vocabulary = config.vocab_size;
  TrainerOptions options;
  options.max_rows = batch_options.max_rows;
  options.max_sequences = batch_options.max_sequences;
  options.n_positions = batch_options.context;
  NIBBLE_TRY(trainer, Trainer::create(model.graph(), model.weights(), options, executor));
  NIBBLE_TRY(batches, Batches::create(source, batch_options));
  std::vector<std::pair<std::string, std::vector<double>>> scores;
  for (const TrainedTensor& t : model.weights().tensors()) {
    if (t.name.ends_with(ending)) scores.push_back({t.name, std::vector<double>(static_cast<std::size_t>(t.k))});
  }
  Batch batch;
  for (nibble::Index i = 0; i < n_batches; ++i) {
    if (interrupted) return nibble::Error{nibble::Errc::cancelled, "pruning"};
    NIBBLE_CHECK(batches.next(batch));
    model.weights().clear_gradients(executor);
    NIBBLE_CHECK(trainer.cross_entropy(batch));
    auto score = scores.begin();
    for (const TrainedTensor& t : model.weights().tensors()) {
      if (!t.name.ends_with(ending)) continue;
      std::vector<double>& mean = score++->second;
      std::vector<double> sums(mean.size());
      for (std::size_t w = 0; w < t.values.size(); ++w) {
        sums[w % sums.size()] +=
            static_cast<double>(t.values[w]) * static_cast<double>(t.gradient[w]);
      }
      for (std::size_t j = 0; j < sums.size(); ++j) {
        mean[j] += std::fabs(sums[j]) / batch.weight / static_cast<double>(n_batches);
      }
    }
  }
  return scores;
}

// Writes the model without the neurons that matter least; a share of `kept` of each layer's stays,
// in multiples of 32, the block length of INT4. Errors: those of files and of training.
inline nibble::Result<void> prune_neurons(const std::string& from, const std::string& to,
                                          double kept, std::uint64_t seed,
                                          nibble::Executor& executor) {
  namespace compress = nibble::compress;
  NIBBLE_TRY(file, nibble::io::Gguf::open(from));
  NIBBLE_TRY(shape, compress::decoder_shape(file));
  NIBBLE_TRY(columns, column_scores(file, "ffn_down.weight", 16, seed, executor));
  std::vector<compress::ChannelValues> values;
  for (const auto& [name, of_columns] : columns) values.push_back({name, of_columns});
  NIBBLE_TRY(scores, compress::channel_scores(shape, compress::PruneUnit::neuron, values));
  compress::PruneKeep keep;
  NIBBLE_TRY(neurons, compress::keep_best(scores, {.kept = kept, .multiple = 32}));
  keep.neurons = std::move(neurons);
  return compress::prune_model(file, keep, to);
}

}  // namespace example
