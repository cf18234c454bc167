// SPDX-License-Identifier: Apache-2.0
//
// Training steps of a model: batches of packed sequences forward and back, in memory that is known
// and allocated before the first. What updates the weights is an optimizer (adamw.hpp, sgd.hpp);
// what is minimized is a Loss.
//
//   NIBBLE_TRY(trainer, Trainer::create(*graph, weights, options, executor));
//   NIBBLE_TRY(optimizer, AdamW::create(weights.parameters()));
//   for (;;) {
//     weights.clear_gradients(executor);
//     NIBBLE_TRY(loss, trainer.cross_entropy(batch));
//     NIBBLE_CHECK(optimizer.step(executor, schedule.at(step), 1 / batch.weight));
//   }
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nibble/core/arena.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/graph/rope_needs.hpp"
#include "nibble/ops/loss.hpp"
#include "nibble/ops/rows.hpp"
#include "nibble/simd/dispatch.hpp"
#include "nibble/train/data.hpp"
#include "nibble/train/trained_weights.hpp"
#include "nibble/train/training_graph.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace train {

struct TrainerOptions {
  Index max_rows = 0;         // of a batch
  Index max_sequences = 0;    // of a batch; 0: as many as rows
  Index n_positions = 0;      // of the longest sequence; 0: max_rows
  bool checkpoints = false;   // compute each layer again on the way back, instead of keeping it
  bool taps = false;          // see GradientObserver
  bool shares_memory = true;  // false: each result has memory of its own, for tests
  std::uint64_t dropout_seed = 0;
  float factor_dropout = 0;  // share of the inputs of adapters that is dropped, from 0 to below 1
};

// Refers to the graph, the weights and the executor: they must live as long, and the weights stay
// where they are.
class Trainer {
 public:
  Trainer(Trainer&&) noexcept = default;
  Trainer& operator=(Trainer&&) = delete;

  // Errors: invalid_argument (an option out of range, more positions than the model has embeddings
  // for, weights that do not fit the graph), unsupported (with what is wrong with the expression),
  // out_of_memory.
  static Result<Trainer> create(const TrainingGraph& graph, TrainedWeights& weights,
                                const TrainerOptions& options, Executor& executor);

  // What the trainer takes, besides the weights: known before anything is allocated.
  static graph::TrainingPlan plan_for(const TrainingGraph& graph, const TrainedWeights& weights,
                                      const TrainerOptions& options, Index n_workers) {
    return graph.plan(limits_for(weights, options, n_workers));
  }
  std::size_t working_bytes() const noexcept { return memory_.size(); }

  // Computes the rows of the batch whose weight is not 0, and adds the gradients of what `loss`
  // says to those of the weights. No allocation. Errors: invalid_argument (a batch that is larger
  // than the options, whose parts do not belong together, or with tokens that the model lacks).
  Result<void> accumulate(const Batch& batch, Loss loss) { return compute(batch, loss, true); }

  // accumulate() with the weighted sum of the cross-entropies of a batch, in nats, which it
  // returns; divided by batch.weight, gradients and loss are means. Errors: malformed (the loss is
  // not a number), unsupported (a model that gives no logits).
  Result<double> cross_entropy(const Batch& batch);
  // The same with distillation from the logits of a teacher, (counted rows, vocab_size); see
  // ops::distill_back.
  Result<double> distill(const Batch& batch, MatrixView<const float> teacher,
                         const ops::Distillation& how);
  // The logits of the counted rows alone, as the forward pass of training computes them: written to
  // `out` (counted rows, vocab_size). Gradients do not change.
  Result<void> logits(const Batch& batch, MatrixView<float> out);

  // Of taps (TrainerOptions::taps): their rows with the gradients, and in the forward pass.
  void set_observer(const graph::GradientObserver* observer) noexcept { observer_ = observer; }
  void set_row_observer(const graph::Observer* observer) noexcept { row_observer_ = observer; }
  // Of the inputs of products, in steps that learn; with TrainerOptions::checkpoints, some twice.
  void set_product_observer(const graph::ProductObserver* observer) noexcept {
    product_observer_ = observer;
  }
  // Dropout draws other numbers in each step.
  void set_dropout_seed(std::uint64_t seed) noexcept { dropout_seed_ = seed; }

 private:
  class Needs;

  Trainer(const TrainingGraph& graph, TrainedWeights& weights, Executor& executor) noexcept
      : graph_(&graph), weights_(&weights), executor_(&executor) {}

  static graph::TrainingLimits limits_for(const TrainedWeights& weights,
                                          const TrainerOptions& options, Index n_workers) noexcept {
    graph::TrainingLimits limits;
    weights.set_limits(limits);
    limits.limits.max_rows = limits.limits.max_outputs = options.max_rows;
    limits.limits.max_segments =
        options.max_sequences > 0 ? options.max_sequences : options.max_rows;
    limits.limits.n_positions = options.n_positions > 0 ? options.n_positions : options.max_rows;
    limits.limits.max_workers = n_workers;
    limits.checkpoints = options.checkpoints;
    limits.taps = options.taps;
    limits.factor_dropout = options.factor_dropout;
    limits.shares_memory = options.shares_memory;
    return limits;
  }
  Result<void> make_rope_tables(const graph::RopeNeeds& ropes);
  Result<void> validate(const Batch& batch) const;
  Result<void> enter(const Batch& batch);
  Result<void> compute(const Batch& batch, Loss loss, bool goes_back);
  Result<void> needs_logits() const;
  // The sum of the losses of the last batch, each times the weight of its row.
  Result<double> weighted_loss() const;

  const TrainingGraph* graph_;
  TrainedWeights* weights_;
  Executor* executor_;
  graph::TrainingLimits limits_;
  graph::TrainingPlan plan_;
  AlignedBuffer memory_;  // of the plan
  AlignedBuffer rope_memory_;
  std::vector<graph::RopeTable> ropes_;
  const graph::GradientObserver* observer_ = nullptr;
  const graph::Observer* row_observer_ = nullptr;
  const graph::ProductObserver* product_observer_ = nullptr;
  std::uint64_t dropout_seed_ = 0;
  // Of a batch; their capacity is that of the largest one.
  std::vector<graph::Segment> segments_;
  std::vector<Scalar<Index>> outputs_;
  std::vector<Scalar<std::int32_t>> targets_;
  std::vector<Scalar<float>> row_weights_;
  std::vector<Scalar<double>> losses_;
};

// ---- Making ------------------------------------------------------------------------------------

// What a trainer needs of a graph besides weights.
class Trainer::Needs final : public graph::SurveySink {
 public:
  explicit Needs(graph::WeightTable weights) : weights_(weights) {}
  void rope(const graph::RopeKey& key, const graph::RopeFactors& factors) override {
    ropes.add(key, factors, weights_);
  }
  void max_positions(Index n) override { n_positions = n; }

  graph::RopeNeeds ropes;
  Index n_positions = 0;  // how many have embeddings; 0: any number

 private:
  graph::WeightTable weights_;
};

inline Result<Trainer> Trainer::create(const TrainingGraph& graph, TrainedWeights& weights,
                                       const TrainerOptions& options, Executor& executor) {
  const auto wrong = [](const std::string& what) {
    return Error{Errc::invalid_argument, "trainer: " + what};
  };
  if (options.max_rows < 1 || options.max_sequences < 0 || options.n_positions < 0) {
    return wrong("a batch of fewer than one row, sequence or position");
  }
  if (!(options.factor_dropout >= 0 && options.factor_dropout < 1)) {
    return wrong("a dropout that is not from 0 to below 1");
  }
  NIBBLE_CHECK(simd::ensure_target());
  return catch_out_of_memory([&]() -> Result<Trainer> {
    Trainer trainer(graph, weights, executor);
    NIBBLE_CHECK(graph::check_weights(
        [&](graph::SurveySink& sink) { graph.survey(sink); }, weights.table(),
        [&](std::size_t slot, Index layer) { return graph.tensor_name(slot, layer); }));
    trainer.limits_ = limits_for(weights, options, executor.n_workers());
    trainer.dropout_seed_ = options.dropout_seed;
    Needs needs(weights.table());
    graph.survey(needs);
    const graph::Limits& limits = trainer.limits_.limits;
    if (needs.n_positions > 0 && limits.n_positions > needs.n_positions) {
      return wrong("sequences of up to " + to_text(limits.n_positions) +
                   " positions, but the model has embeddings for " + to_text(needs.n_positions));
    }
    trainer.plan_ = graph.plan(trainer.limits_);
    if (!trainer.plan_.is_valid()) {
      return Error{Errc::unsupported, std::string("trainer: ") + trainer.plan_.error};
    }
    NIBBLE_TRY(memory, AlignedBuffer::allocate(trainer.plan_.bytes));
    trainer.memory_ = std::move(memory);
    NIBBLE_CHECK(trainer.make_rope_tables(needs.ropes));
    const auto n_rows = static_cast<std::size_t>(options.max_rows);
    trainer.segments_.reserve(static_cast<std::size_t>(limits.max_segments));
    trainer.outputs_.reserve(n_rows);
    trainer.targets_.reserve(n_rows);
    trainer.row_weights_.reserve(n_rows);
    trainer.losses_.reserve(n_rows);
    NIBBLE_CHECK(weights.round_deployed(executor));
    return trainer;
  });
}

inline Result<void> Trainer::make_rope_tables(const graph::RopeNeeds& ropes) {
  const Index n_positions = limits_.limits.n_positions;
  std::size_t bytes = 0;
  for (const graph::RopeNeed& rope : ropes.all()) {
    if (n_positions > kMaxBytes / 64 / (std::max)(rope.key.dim, Index{1})) {
      return Error{Errc::limit,
                   "trainer: the tables of rotations are too large for the address "
                   "space"};
    }
    bytes += graph::RopeTable::bytes_needed(rope.key, n_positions);
  }
  NIBBLE_TRY(memory, AlignedBuffer::allocate(bytes));
  rope_memory_ = std::move(memory);
  Arena arena(rope_memory_.bytes());
  for (const graph::RopeNeed& rope : ropes.all()) {
    std::vector<Scalar<double>> frequencies(static_cast<std::size_t>(rope.key.dim / 2));
    const std::size_t size = graph::RopeTable::bytes_needed(rope.key, n_positions);
    ropes_.push_back(rope.table({arena.take<std::byte>(size), size}, weights_->table(), n_positions,
                                {values(frequencies), frequencies.size()}));
  }
  return ok();
}

// ---- Steps -------------------------------------------------------------------------------------

inline Result<void> Trainer::validate(const Batch& batch) const {
  const auto wrong = [](const std::string& what) {
    return Error{Errc::invalid_argument, "trainer: " + what};
  };
  const graph::Limits& l = limits_.limits;
  const Index n_rows = batch.n_rows(), n_sequences = batch.n_sequences();
  if (n_rows < 1 || n_rows > l.max_rows || n_sequences > l.max_segments) {
    return wrong("a batch of " + to_text(n_rows) + " rows in " + to_text(n_sequences) +
                 " sequences, made for up to " + to_text(l.max_rows) + " rows in " +
                 to_text(l.max_segments));
  }
  if (n_sequences < 1 || batch.offsets.front() != 0 || batch.offsets.back() != n_rows ||
      batch.targets.size() != batch.tokens.size() || batch.weights.size() != batch.tokens.size()) {
    return wrong("a batch whose offsets, tokens, targets and weights do not belong together");
  }
  for (std::size_t i = 0; i + 1 < batch.offsets.size(); ++i) {
    const Index n = batch.offsets[i + 1] - batch.offsets[i];
    if (n >= 1 && n <= l.n_positions) continue;
    return wrong("a sequence of " + to_text(n) + " positions, made for 1 to " +
                 to_text(l.n_positions));
  }
  const Index vocab_size = graph_->config().vocab_size;
  const auto is_known = [&](std::int32_t token) { return token >= 0 && token < vocab_size; };
  Index n_counted = 0;
  for (std::size_t i = 0; i < batch.tokens.size(); ++i) {
    if (!is_known(batch.tokens[i]) || (batch.weights[i] != 0 && !is_known(batch.targets[i]))) {
      return wrong("row " + to_text(i) + " has a token beyond a vocabulary of " +
                   to_text(vocab_size));
    }
    if (batch.weights[i] != 0) ++n_counted;
  }
  if (n_counted == 0) return wrong("a batch in which no row counts");
  if (n_counted != batch.n_counted) {
    return wrong(to_text(n_counted) + " rows count, but the batch says " +
                 to_text(batch.n_counted));
  }
  return ok();
}

inline Result<void> Trainer::enter(const Batch& batch) {
  NIBBLE_CHECK(validate(batch));
  segments_.clear();
  outputs_.clear();
  targets_.clear();
  row_weights_.clear();
  for (std::size_t i = 0; i + 1 < batch.offsets.size(); ++i) {
    segments_.push_back(
        {.first_row = batch.offsets[i], .n_rows = batch.offsets[i + 1] - batch.offsets[i]});
  }
  for (std::size_t i = 0; i < batch.tokens.size(); ++i) {
    if (batch.weights[i] == 0) continue;
    outputs_.push_back({static_cast<Index>(i)});
    targets_.push_back({batch.targets[i]});
    row_weights_.push_back({batch.weights[i]});
  }
  losses_.assign(outputs_.size(), {0});
  return ok();
}

inline Result<void> Trainer::compute(const Batch& batch, Loss loss, bool goes_back) {
  NIBBLE_CHECK(catch_out_of_memory([&] { return enter(batch); }));
  graph::TrainingArgs args;
  args.run.step.tokens = batch.tokens;
  args.run.step.segments = segments_;
  args.run.step.output_rows = {values(outputs_), outputs_.size()};
  args.run.weights = weights_->table();
  args.run.rope_tables = ropes_;
  args.run.arena = memory_.bytes();
  args.run.executor = executor_;
  args.run.training = goes_back;
  args.run.dropout_seed = dropout_seed_;
  args.gradients = weights_->gradients();
  args.sequence_starts = batch.offsets;
  args.gradient_observer = observer_;
  args.run.observer = row_observer_;
  args.run.product_observer = goes_back ? product_observer_ : nullptr;
  args.goes_back = goes_back;
  if (!graph_->run(plan_, limits_, args, loss)) {
    return Error{Errc::invalid_argument, "trainer: its plan does not fit"};
  }
  return ok();
}

inline Result<void> Trainer::needs_logits() const {
  if (plan_.rows == graph::Rows::outputs && plan_.width == graph_->config().vocab_size) return ok();
  return Error{Errc::unsupported, "trainer: a loss on logits, of a model that gives none"};
}

inline Result<double> Trainer::weighted_loss() const {
  double sum = 0;
  for (std::size_t i = 0; i < losses_.size(); ++i) {
    sum += losses_[i].value * static_cast<double>(row_weights_[i].value);
  }
  if (is_finite(sum)) return sum;
  return Error{Errc::malformed,
               "training: the loss is not a number; the learning rate may be too high, or the data "
               "or weights broken"};
}

inline Result<double> Trainer::cross_entropy(const Batch& batch) {
  NIBBLE_CHECK(needs_logits());
  NIBBLE_CHECK(accumulate(batch, [&](MatrixView<float> logits) {
    ops::cross_entropy_back(*executor_, logits, {values(targets_), targets_.size()},
                            {values(row_weights_), row_weights_.size()},
                            {values(losses_), losses_.size()});
  }));
  return weighted_loss();
}

inline Result<double> Trainer::distill(const Batch& batch, MatrixView<const float> teacher,
                                       const ops::Distillation& how) {
  NIBBLE_CHECK(needs_logits());
  if (teacher.extent(0) != batch.n_counted || teacher.extent(1) != plan_.width) {
    return Error{Errc::invalid_argument,
                 "trainer: a teacher's logits are (counted rows, "
                 "vocab_size)"};
  }
  if (!(how.alpha >= 0 && how.alpha <= 1 && how.temperature > 0)) {
    return Error{Errc::invalid_argument,
                 "trainer: distillation needs an alpha from 0 to 1 and a temperature above 0"};
  }
  NIBBLE_CHECK(accumulate(batch, [&](MatrixView<float> logits) {
    ops::distill_back(*executor_, logits, teacher, {values(targets_), targets_.size()},
                      {values(row_weights_), row_weights_.size()}, how,
                      {values(losses_), losses_.size()});
  }));
  return weighted_loss();
}

inline Result<void> Trainer::logits(const Batch& batch, MatrixView<float> out) {
  NIBBLE_CHECK(needs_logits());
  if (out.extent(0) != batch.n_counted || out.extent(1) != plan_.width) {
    return Error{Errc::invalid_argument, "trainer: logits are (counted rows, vocab_size)"};
  }
  const auto copy = [&](MatrixView<float> rows) { ops::copy_rows(*executor_, rows, out); };
  return compute(batch, copy, false);
}

}}}  // namespace nibble::NIBBLE_ABI::train
