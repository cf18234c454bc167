// SPDX-License-Identifier: Apache-2.0
//
// A client of federated learning that trains a model of its own with AdamW, on data of its own, and
// predicts and learns the rows of examples that all have.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "nibble/core/arena.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/view.hpp"
#include "nibble/ops/loss.hpp"
#include "nibble/train/accumulation.hpp"
#include "nibble/train/adamw.hpp"
#include "nibble/train/data.hpp"
#include "nibble/train/federated.hpp"
#include "nibble/train/random.hpp"
#include "nibble/train/run.hpp"
#include "nibble/train/schedule.hpp"
#include "nibble/train/top_logits.hpp"
#include "nibble/train/trainer.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace train {

struct LocalOptions {
  // The learning rate of each round: its steps are rounds, the first is step 0.
  Schedule rounds;
  Index n_steps = 10;  // of the optimizer in a round, on the client's own examples
  AdamWOptions optimizer = {.beta2 = 0.95, .weight_decay = 0.1, .clip_norm = 1};
  // Of a step. The seed is that of the client: each round has an order of its own.
  BatchOptions batches;
  // Of predictions.
  Index n_public = 64;  // examples of a round; the next round has the next ones, around
  Index k = 8;          // tokens that are kept of each row
  double temperature = 1;
  Index n_passes = 1;  // over the examples of a round to learn them
  // Part of the examples' own tokens in the loss of learn(), beside that of the predictions: 0
  // to 1. Clients that know little of what is common predict it badly; its tokens are right.
  double hard = 0;

  // invalid_argument: an option out of range. (Those of the optimizer and of batches are checked
  // where they are used.)
  Result<void> validate() const {
    NIBBLE_CHECK(rounds.validate());
    if (n_steps < 1 || n_public < 1 || n_passes < 1) {
      return Error{Errc::invalid_argument, "client: no steps, common examples or passes"};
    }
    if (hard >= 0 && hard <= 1) return ok();
    return Error{Errc::invalid_argument, "client: the part of the tokens is not in [0, 1]"};
  }
};

// Some examples of another source, from `first` on and around; none of a source without any.
class SliceSource final : public Source {
 public:
  // The source must live as long.
  SliceSource(const Source& of, std::uint64_t first, Index n)
      : of_(&of), first_(first), n_(of.n_examples() > 0 ? n : 0) {}
  Index n_examples() const noexcept override { return n_; }
  Result<void> read(Index i, Example& out) const override {
    const auto n_all = static_cast<std::uint64_t>(of_->n_examples());
    return of_->read(static_cast<Index>((first_ + static_cast<std::uint64_t>(i)) % n_all), out);
  }

 private:
  const Source* of_;
  std::uint64_t first_;
  Index n_;
};

// The optimizer starts anew in each round: what a client sends and gets are values alone. Refers to
// the graph, the weights, the sources and the executor: all must live as long. Memory for a batch
// is allocated in each call and released after it. Errors of all that it does: invalid_argument (an
// option out of range, a source that is missing, a round 0), those of the sources, Trainer::create
// and AdamW::create.
class LocalClient final : public FederatedClient {
 public:
  // `own` may be null for who only learns and predicts (a coordinator), `common` for who only
  // trains.
  LocalClient(const TrainingGraph& graph, TrainedWeights& weights, const Source* own,
              const Source* common, const LocalOptions& options, Executor& executor)
      : graph_(&graph),
        weights_(&weights),
        own_(own),
        common_(common),
        options_(options),
        executor_(&executor) {
    if (options_.batches.vocabulary == 0) options_.batches.vocabulary = graph.config().vocab_size;
  }

  std::vector<Parameter> shared() override { return weights_->parameters(); }

  // Errors: also those of Run. The number is that of the client's examples, or of those for which
  // all steps have sequences, if that is less.
  Result<std::uint64_t> train(std::uint64_t round) override;
  // Errors: also malformed (predictions of other examples, a loss that is not a number).
  Result<void> learn(std::uint64_t round, std::uint64_t of_round, const TopLogits& mean) override;
  // Errors: also those of TopLogits.
  Result<TopLogits> predict(std::uint64_t round) override;

  // Mean of the losses of the last train() or learn(), in nats.
  double loss() const noexcept { return loss_; }

  // What to ask for in a round, from 1: see PublicRows. Errors: those of the source.
  static Result<PublicRows> rows_of(const Source& common, std::uint64_t round,
                                    const LocalOptions& options, Index vocabulary);

 private:
  static SliceSource slice(const Source& common, std::uint64_t round, Index n) {
    return SliceSource(common, (round - 1) * static_cast<std::uint64_t>(n), n);
  }
  double rate(std::uint64_t round) const noexcept { return options_.rounds.at(round - 1); }
  TrainerOptions trainer_options() const noexcept {
    TrainerOptions o;
    o.max_rows = options_.batches.max_rows;
    o.max_sequences = (std::min)(options_.batches.max_sequences, options_.batches.max_rows);
    o.n_positions = options_.batches.context;
    return o;
  }
  BatchOptions in_order() const noexcept {
    BatchOptions o = options_.batches;
    o.shuffles = false;
    return o;
  }
  Result<void> check_round(const Source* source, std::uint64_t round) const {
    NIBBLE_CHECK(options_.validate());
    if (source == nullptr) return Error{Errc::invalid_argument, "client: it has no examples"};
    if (round < 1) return Error{Errc::invalid_argument, "client: rounds count from 1"};
    return ok();
  }
  // Memory for the logits of the largest batch, whose options Batches::create has accepted.
  Result<AlignedBuffer> memory_for_logits() const {
    const Index n_rows = options_.batches.max_rows, width = options_.batches.vocabulary;
    if (width != graph_->config().vocab_size) {
      return Error{Errc::invalid_argument, "client: the vocabulary is not that of the model"};
    }
    if (n_rows > kMaxBytes / static_cast<Index>(sizeof(float)) / width) {
      return Error{Errc::limit, "client: a batch of too many rows"};
    }
    return AlignedBuffer::allocate(static_cast<std::size_t>(n_rows * width) * sizeof(float));
  }
  // Of `batch`, in that memory.
  MatrixView<float> logits_in(const AlignedBuffer& memory, const Batch& batch) const noexcept {
    return MatrixView<float>(reinterpret_cast<float*>(memory.data()), batch.n_counted,
                             options_.batches.vocabulary);
  }

  const TrainingGraph* graph_;
  TrainedWeights* weights_;
  const Source* own_;
  const Source* common_;
  LocalOptions options_;
  Executor* executor_;
  double loss_ = 0;
};

inline Result<std::uint64_t> LocalClient::train(std::uint64_t round) {
  NIBBLE_CHECK(check_round(own_, round));
  RunOptions o;
  o.schedule.shape = Schedule::Shape::constant;
  o.schedule.peak = rate(round);
  o.schedule.n_steps = static_cast<std::uint64_t>(options_.n_steps);
  o.optimizer = options_.optimizer;
  o.batches = options_.batches;
  o.batches.seed = detail::mixed(options_.batches.seed ^ detail::mixed(round));
  NIBBLE_TRY(run, Run::create(*graph_, *weights_, *own_, o, *executor_));
  double loss = 0;
  for (Index i = 0; i < options_.n_steps; ++i) {
    NIBBLE_TRY(step, run.step());
    loss += step.loss;
  }
  loss_ = loss / static_cast<double>(options_.n_steps);
  const Index n = own_->n_examples(), of_step = options_.batches.max_sequences;
  const bool are_enough = options_.n_steps > n / of_step;
  return static_cast<std::uint64_t>(are_enough ? n : options_.n_steps * of_step);
}

inline Result<void> LocalClient::learn(std::uint64_t round, std::uint64_t of_round,
                                       const TopLogits& mean) {
  NIBBLE_CHECK(check_round(common_, round));
  NIBBLE_CHECK(check_round(common_, of_round));
  if (mean.n_examples() != options_.n_public || mean.vocabulary() != options_.batches.vocabulary) {
    return Error{Errc::malformed, "client: predictions of other examples"};
  }
  const SliceSource examples = slice(*common_, of_round, options_.n_public);
  NIBBLE_TRY(batches, Batches::create(examples, in_order()));
  NIBBLE_TRY(trainer, Trainer::create(*graph_, *weights_, trainer_options(), *executor_));
  NIBBLE_TRY(optimizer, AdamW::create(weights_->parameters(), options_.optimizer));
  NIBBLE_TRY(memory, memory_for_logits());
  std::vector<Scalar<double>> losses(static_cast<std::size_t>(options_.batches.max_rows));
  std::vector<Scalar<std::int32_t>> targets;  // of the rows that count
  std::vector<Scalar<float>> weights;
  const double soft = (1 - options_.hard) * mean.temperature() * mean.temperature();
  Accumulation all;
  Batch batch;
  for (;;) {
    NIBBLE_CHECK(batches.next(batch));
    if (batch.epoch >= static_cast<std::uint64_t>(options_.n_passes)) break;
    weights_->clear_gradients(*executor_);
    targets.clear();
    weights.clear();
    for (std::size_t i = 0; i < batch.weights.size(); ++i) {
      if (!(batch.weights[i] > 0)) continue;
      targets.push_back({batch.targets[i]});
      weights.push_back({static_cast<float>(options_.hard) * batch.weights[i]});
    }
    std::optional<Error> error;
    double loss = 0;
    NIBBLE_CHECK(trainer.accumulate(batch, [&](MatrixView<float> rows) {
      const MatrixView<float> logits = logits_in(memory, batch);
      ops::copy_rows(*executor_, rows, logits);
      // Now the rows are gradients: of the tokens, to which that of the predictions is added.
      ops::cross_entropy_back(*executor_, rows, {values(targets), targets.size()},
                              {values(weights), weights.size()}, {values(losses), targets.size()});
      for (std::size_t i = 0; i < targets.size(); ++i) {
        loss += static_cast<double>(weights[i].value) * losses[i].value;
      }
      auto of_predictions = top_logits_loss(*executor_, mean, batch, logits, soft, rows,
                                            {values(losses), losses.size()});
      if (of_predictions) {
        loss += soft * *of_predictions;
      } else {
        error = std::move(of_predictions).error();
      }
    }));
    if (error) return *std::move(error);
    NIBBLE_CHECK(all.add(loss, batch.weight));
    NIBBLE_CHECK(optimizer.step(*executor_, rate(round), 1 / batch.weight));
    NIBBLE_CHECK(weights_->round_deployed(*executor_));
  }
  loss_ = all.mean_loss();
  return ok();
}

inline Result<TopLogits> LocalClient::predict(std::uint64_t round) {
  NIBBLE_CHECK(check_round(common_, round));
  const SliceSource examples = slice(*common_, round, options_.n_public);
  NIBBLE_TRY(batches, Batches::create(examples, in_order()));
  NIBBLE_TRY(trainer, Trainer::create(*graph_, *weights_, trainer_options(), *executor_));
  const Index vocabulary = options_.batches.vocabulary;
  NIBBLE_TRY(out, TopLogits::create(options_.k, vocabulary, options_.temperature));
  NIBBLE_TRY(memory, memory_for_logits());
  Batch batch;
  while (out.n_examples() < options_.n_public) {
    NIBBLE_CHECK(batches.next(batch));
    const MatrixView<float> logits = logits_in(memory, batch);
    NIBBLE_CHECK(trainer.logits(batch, logits));
    Index counted = 0;
    for (Index s = 0; s < batch.n_sequences(); ++s) {
      const Index first = counted, end = batch.offsets[static_cast<std::size_t>(s) + 1];
      for (Index r = batch.offsets[static_cast<std::size_t>(s)]; r < end; ++r) {
        counted += batch.weights[static_cast<std::size_t>(r)] > 0 ? 1 : 0;
      }
      NIBBLE_CHECK(out.add(MatrixView<const float>(logits.data() + first * vocabulary,
                                                   counted - first, vocabulary)));
    }
  }
  return out;
}

inline Result<PublicRows> LocalClient::rows_of(const Source& common, std::uint64_t round,
                                               const LocalOptions& options, Index vocabulary) {
  PublicRows rows;
  rows.vocabulary = vocabulary;
  rows.k = options.k;
  rows.temperature = options.temperature;
  const SliceSource examples = slice(common, round, options.n_public);
  Example example;
  for (Index i = 0; i < examples.n_examples(); ++i) {
    NIBBLE_CHECK(examples.read(i, example));
    Index n = 0;
    for (std::size_t j = 1; j < example.tokens.size(); ++j) {
      n += example.weights.empty() || example.weights[j] > 0 ? 1 : 0;
    }
    rows.n_rows.push_back(n);
  }
  return rows;
}

}}}  // namespace nibble::NIBBLE_ABI::train
