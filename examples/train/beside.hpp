// SPDX-License-Identifier: Apache-2.0
//
// How far a model that was rounded, trained or pruned is from the one that it comes from: right
// answers to the same commands, and the divergence of its predictions.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../home_commands/grammar.hpp"
#include "../measure.hpp"
#include "../paired.hpp"
#include "home_source.hpp"
#include "model.hpp"
#include "nibble/train/input_ranges.hpp"
#include "nibble/train/trainer.hpp"

namespace example {

// Commands of a split, drawn anew.
inline std::vector<Sample> drawn_samples(home::Split split, std::uint64_t seed, std::size_t n) {
  home::Commands commands(split, seed);
  std::vector<Sample> samples;
  for (std::size_t i = 0; i < n; ++i) samples.push_back(commands.next());
  return samples;
}

// Mean KL(first || second) in nats over all tokens of `n` held-out commands, as training computes
// the predictions. Both models have the same tokenizer. Errors: those of Trainer.
inline nibble::Result<double> divergence(const TrainedModel& first, const TrainedModel& second,
                                         const nibble::text::Tokenizer& tokenizer, nibble::Index n,
                                         nibble::Executor& executor) {
  using namespace nibble::train;
  const HomeSource source(tokenizer, 12345, n, Learned::all, home::Split::held_out);
  const auto& config = first.graph().config();
  TrainerOptions options;
  options.n_positions = config.n_ctx;
  options.max_rows = 16 * options.n_positions;
  options.max_sequences = options.max_rows;
  NIBBLE_TRY(a, Trainer::create(first.graph(), first.weights(), options, executor));
  NIBBLE_TRY(b, Trainer::create(second.graph(), second.weights(), options, executor));
  BatchOptions batches_options;
  batches_options.context = options.n_positions;
  batches_options.max_rows = options.max_rows;
  batches_options.vocabulary = config.vocab_size;
  batches_options.shuffles = false;
  NIBBLE_TRY(batches, Batches::create(source, batches_options));
  const auto vocab = static_cast<std::size_t>(config.vocab_size);
  std::vector<float> of_a(static_cast<std::size_t>(options.max_rows) * vocab), of_b(of_a.size());
  Batch batch;
  const auto view = [&](std::vector<float>& rows) {
    return nibble::MatrixView<float>(rows.data(), batch.n_counted,
                                     nibble::Index{config.vocab_size});
  };
  double sum = 0;
  nibble::Index n_rows = 0;
  for (;;) {
    NIBBLE_CHECK(batches.next(batch));
    if (batch.epoch > 0) break;
    if (interrupted) return nibble::Error{nibble::Errc::cancelled, "comparing predictions"};
    NIBBLE_CHECK(a.logits(batch, view(of_a)));
    NIBBLE_CHECK(b.logits(batch, view(of_b)));
    for (nibble::Index row = 0; row < batch.n_counted; ++row) {
      const float* const x = of_a.data() + static_cast<std::size_t>(row) * vocab;
      const float* const y = of_b.data() + static_cast<std::size_t>(row) * vocab;
      const auto log_sum = [&](const float* z) {
        const auto top = static_cast<double>(*std::max_element(z, z + vocab));
        double total = 0;
        for (std::size_t j = 0; j < vocab; ++j) total += std::exp(static_cast<double>(z[j]) - top);
        return top + std::log(total);
      };
      const double of_x = log_sum(x), of_y = log_sum(y);
      for (std::size_t j = 0; j < vocab; ++j) {
        const double p = static_cast<double>(x[j]) - of_x, q = static_cast<double>(y[j]) - of_y;
        sum += std::exp(p) * (p - q);
      }
    }
    n_rows += batch.n_counted;
  }
  return sum / static_cast<double>(std::max<nibble::Index>(1, n_rows));
}

// Gives the inputs of a model's products the ranges that they have in the mean of 20 batches of 64
// commands of the training's kind. Nothing is learned. Errors: those of InputRanges and Trainer.
inline nibble::Result<void> observe_inputs(const TrainedModel& model,
                                           nibble::train::InputRangeOptions ranges_options,
                                           const nibble::text::Tokenizer& tokenizer,
                                           nibble::Executor& executor) {
  using namespace nibble::train;
  constexpr nibble::Index kBatches = 20, kCommands = 64;
  const HomeSource source(tokenizer, 54321, kBatches * kCommands);
  const auto& config = model.graph().config();
  BatchOptions batches_options = command_batches(config.n_ctx, kCommands, 1);
  batches_options.vocabulary = config.vocab_size;
  NIBBLE_TRY(batches, Batches::create(source, batches_options));
  ranges_options.n_first = kBatches;
  NIBBLE_TRY(ranges, InputRanges::create(model.weights(), ranges_options, executor));
  TrainerOptions options;
  options.n_positions = batches_options.context;
  options.max_rows = batches_options.max_rows;
  options.max_sequences = batches_options.max_sequences;
  NIBBLE_TRY(trainer, Trainer::create(model.graph(), model.weights(), options, executor));
  trainer.set_product_observer(ranges->observer());
  Batch batch;
  for (nibble::Index i = 0; i < kBatches; ++i) {
    NIBBLE_CHECK(batches.next(batch));
    NIBBLE_CHECK(trainer.cross_entropy(batch));
    NIBBLE_CHECK(ranges->update());
  }
  return nibble::ok();
}

// Prints a model that was trained for a format beside its original and beside the original rounded
// to that format, with `ranges` of its inputs as they are: divergence, and right answers to `n`
// drawn commands of each kind, pair by pair.
inline nibble::Result<void> print_beside(
    const nibble::io::Gguf& original, const TrainedModel& trained, nibble::quant::Format format,
    const std::optional<nibble::train::InputRangeOptions>& ranges, std::size_t n,
    std::uint64_t seed, nibble::Executor& executor) {
  NIBBLE_TRY(tokenizer, nibble::text::Tokenizer::from_gguf(original));
  NIBBLE_TRY(first, TrainedModel::create(original, {}, false));
  TrainedModel::Options rounded_options;
  rounded_options.deployed = format;
  NIBBLE_TRY(rounded, TrainedModel::create(original, rounded_options, false));
  if (ranges) NIBBLE_CHECK(observe_inputs(rounded, *ranges, tokenizer, executor));
  const std::vector<Sample> samples[] = {drawn_samples(home::Split::held_out, seed, n),
                                         drawn_samples(home::Split::hard, seed, n)};
  std::vector<std::byte> of_first[2];
  const struct {
    const char* name;
    const TrainedModel* model;
  } rows[] = {{"original", &first}, {"rounded", &rounded}, {"trained", &trained}};
  std::printf("%zu drawn commands of each kind, seed %llu; points beside the original\n", n,
              static_cast<unsigned long long>(seed));
  for (const auto& row : rows) {
    NIBBLE_TRY(file, row.model->as_file());
    NIBBLE_TRY(model, load_to_ask(file, executor));
    std::printf("%-9s", row.name);
    for (std::size_t split = 0; split < 2; ++split) {
      NIBBLE_TRY(right, right_answers(model, samples[split], executor));
      if (row.model == &first) of_first[split] = right;
      const Paired paired = compare_pairs(of_first[split], right);
      std::printf("  %s %.2f %% (%+.2f +- %.2f)", split == 0 ? "held-out" : "hard",
                  percent_of(right), paired.points(n), paired.error_of_points(n));
    }
    if (row.model != &first) {
      NIBBLE_TRY(kl, divergence(first, *row.model, tokenizer, 1000, executor));
      std::printf("  KL %.6f", kl);
    }
    std::printf("\n");
    std::fflush(stdout);
  }
  return nibble::ok();
}

}  // namespace example
