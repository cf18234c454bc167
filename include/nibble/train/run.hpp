// SPDX-License-Identifier: Apache-2.0
//
// A training run: batches, loss, optimizer and schedule together, which stops and continues bit for
// bit.
//
//   NIBBLE_TRY(run, Run::create(*graph, weights, source, options, executor));
//   while (run.n_steps() < options.schedule.n_steps) NIBBLE_TRY(report, run.step());
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "nibble/core/arena.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/core/result.hpp"
#include "nibble/train/adamw.hpp"
#include "nibble/train/checkpoint.hpp"
#include "nibble/train/data.hpp"
#include "nibble/train/feature_loss.hpp"
#include "nibble/train/input_ranges.hpp"
#include "nibble/train/schedule.hpp"
#include "nibble/train/trainer.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace train {

struct RunOptions {
  Schedule schedule;
  // For language models: the second moment forgets sooner than torch's default, gradients are
  // clipped.
  AdamWOptions optimizer = {.beta2 = 0.95, .weight_decay = 0.1, .clip_norm = 1};
  BatchOptions batches;                 // vocabulary: 0, that of the model
  Index n_accumulated = 1;              // batches of one step
  bool checkpoints = false;             // TrainerOptions
  float factor_dropout = 0;             // TrainerOptions
  ops::Distillation distillation = {};  // where there is a teacher
};

// Fills the logits of the rows of a batch that count, (counted rows, vocab_size).
class Teacher {
 public:
  virtual ~Teacher() = default;
  virtual Result<void> logits(const Batch& batch, MatrixView<float> out) = 0;
  // What distinguishes it from other teachers, as text, for checkpoints.
  virtual std::string fingerprint() const = 0;
};

struct StepResult {
  double loss = 0;           // mean over the weights of the rows, in nats
  double gradient_norm = 0;  // before it was clipped
  double learning_rate = 0;
  Index n_tokens = 0;  // rows that were computed
  std::uint64_t epoch = 0;
};

// Refers to the graph, the weights, the source, the teacher, the features, the ranges and the
// executor: all must live as long.
class Run {
 public:
  Run(Run&&) noexcept = default;
  Run& operator=(Run&&) = delete;

  // Errors: those of Trainer::create, Batches::create, AdamW::create and Schedule::validate.
  // `features` are those of a teacher (feature_loss.hpp), `ranges` those of the same weights.
  static Result<Run> create(const TrainingGraph& graph, TrainedWeights& weights,
                            const Source& source, const RunOptions& options, Executor& executor,
                            Teacher* teacher = nullptr, FeatureLoss* features = nullptr,
                            InputRanges* ranges = nullptr);

  // One step of the optimizer. Errors: those of the source, the teacher and the features; malformed
  // (a loss or gradient that is not a number). The weights have not changed then. And those of
  // TrainedWeights::round_deployed() and InputRanges::update(), when they have.
  Result<StepResult> step();

  std::uint64_t n_steps() const noexcept { return optimizer_.n_steps(); }
  std::size_t working_bytes() const noexcept { return trainer_.working_bytes(); }
  const AdamW& optimizer() const noexcept { return optimizer_; }
  Trainer& trainer() noexcept { return trainer_; }

  // See checkpoint.hpp. After load() the steps are those that would have followed save().
  Result<void> save(const std::string& path) {
    RunState state;
    state.data = batches_.position();
    state.fingerprint = fingerprint();
    return save_run(path, state, optimizer_, state_of_ranges());
  }
  Result<void> load(const std::string& path) {
    NIBBLE_TRY(state, resume_run(path, fingerprint(), optimizer_, state_of_ranges()));
    NIBBLE_CHECK(batches_.seek(state.data));
    if (ranges_ != nullptr) NIBBLE_CHECK(ranges_->restore());
    return weights_->round_deployed(*executor_);
  }

 private:
  Run(TrainedWeights& weights, Executor& executor, const RunOptions& options, Trainer trainer,
      AdamW optimizer, Batches batches, Teacher* teacher, FeatureLoss* features,
      InputRanges* ranges)
      : weights_(&weights),
        executor_(&executor),
        teacher_(teacher),
        features_(features),
        ranges_(ranges),
        options_(options),
        trainer_(std::move(trainer)),
        optimizer_(std::move(optimizer)),
        batches_(std::move(batches)) {}

  Result<double> loss_of(const Batch& batch);
  std::vector<StateTensor> state_of_ranges() const {
    return ranges_ != nullptr ? ranges_->state() : std::vector<StateTensor>();
  }
  std::string fingerprint() const {
    std::string text = "optimizer: " + optimizer_.fingerprint() +
                       "\nschedule: " + options_.schedule.fingerprint() +
                       "\nbatches: " + batches_.fingerprint() + ", " +
                       to_text(options_.n_accumulated) +
                       " a step\ndata: " + to_text(batches_.position().n_examples) +
                       " examples, seed " + to_text(batches_.position().seed);
    if (const std::string way = weights_->fingerprint(); !way.empty()) text += "\nweights: " + way;
    if (options_.factor_dropout > 0) {
      text += "\ndropout: " + detail::exact_text(static_cast<double>(options_.factor_dropout));
    }
    if (teacher_ != nullptr) {
      text += "\nteacher: " + teacher_->fingerprint() + ", alpha " +
              detail::exact_text(static_cast<double>(options_.distillation.alpha)) +
              ", temperature " +
              detail::exact_text(static_cast<double>(options_.distillation.temperature));
    }
    if (features_ != nullptr) text += "\nfeatures: " + features_->fingerprint();
    if (ranges_ != nullptr) text += "\ninput ranges: " + ranges_->fingerprint();
    return text;
  }

  TrainedWeights* weights_;
  Executor* executor_;
  Teacher* teacher_;
  FeatureLoss* features_;
  InputRanges* ranges_;
  RunOptions options_;
  Trainer trainer_;
  AdamW optimizer_;
  Batches batches_;
  Batch batch_;
  AlignedBuffer teacher_logits_;
  Index vocab_size_ = 0;
};

inline Result<Run> Run::create(const TrainingGraph& graph, TrainedWeights& weights,
                               const Source& source, const RunOptions& given, Executor& executor,
                               Teacher* teacher, FeatureLoss* features, InputRanges* ranges) {
  RunOptions options = given;
  NIBBLE_CHECK(options.schedule.validate());
  if (options.n_accumulated < 1) {
    return Error{Errc::invalid_argument, "a step of fewer than one batch"};
  }
  const Index vocab_size = graph.config().vocab_size;
  if (options.batches.vocabulary == 0) options.batches.vocabulary = vocab_size;
  NIBBLE_TRY(batches, Batches::create(source, options.batches));
  TrainerOptions trainer_options;
  trainer_options.max_rows = options.batches.max_rows;
  trainer_options.max_sequences =
      (std::min)(options.batches.max_sequences, options.batches.max_rows);
  trainer_options.n_positions = options.batches.context;
  trainer_options.checkpoints = options.checkpoints;
  trainer_options.taps = features != nullptr;
  trainer_options.factor_dropout = options.factor_dropout;
  NIBBLE_TRY(trainer, Trainer::create(graph, weights, trainer_options, executor));
  std::vector<Parameter> parameters = weights.parameters();
  if (features != nullptr) {
    for (Parameter& p : features->parameters()) parameters.push_back(std::move(p));
    trainer.set_observer(features->of_student());
  }
  if (ranges != nullptr) trainer.set_product_observer(ranges->observer());
  NIBBLE_TRY(optimizer, AdamW::create(std::move(parameters), options.optimizer));
  Run run(weights, executor, options, std::move(trainer), std::move(optimizer), std::move(batches),
          teacher, features, ranges);
  run.vocab_size_ = vocab_size;
  if (teacher != nullptr) {
    // As large as the student's own logits, which the plan has checked.
    const Index n_logits = options.batches.max_rows * vocab_size;
    NIBBLE_TRY(logits, AlignedBuffer::allocate(static_cast<std::size_t>(n_logits) * sizeof(float)));
    run.teacher_logits_ = std::move(logits);
  }
  return run;
}

inline Result<double> Run::loss_of(const Batch& batch) {
  if (teacher_ == nullptr) return trainer_.cross_entropy(batch);
  const MatrixView<float> logits(reinterpret_cast<float*>(teacher_logits_.data()), batch.n_counted,
                                 vocab_size_);
  NIBBLE_CHECK(teacher_->logits(batch, logits));
  return trainer_.distill(batch, logits, options_.distillation);
}

inline Result<StepResult> Run::step() {
  StepResult result;
  double weight = 0;
  weights_->clear_gradients(*executor_);
  if (features_ != nullptr) features_->clear_gradients();
  if (ranges_ != nullptr) ranges_->begin();
  for (Index i = 0; i < options_.n_accumulated; ++i) {
    NIBBLE_CHECK(batches_.next(batch_));
    // Places add small numbers to the seed, so those of two batches must be far apart.
    const std::uint64_t number = n_steps() * static_cast<std::uint64_t>(options_.n_accumulated);
    trainer_.set_dropout_seed(detail::mixed(options_.batches.seed ^
                                            detail::mixed(number + static_cast<std::uint64_t>(i))));
    if (features_ != nullptr) features_->begin(batch_);
    NIBBLE_TRY(loss, loss_of(batch_));
    result.loss += loss;
    if (features_ != nullptr) {
      NIBBLE_TRY(of_features, features_->end());
      result.loss += of_features;
    }
    result.n_tokens += batch_.n_rows();
    result.epoch = batch_.epoch;
    weight += batch_.weight;
  }
  result.loss /= weight;
  result.learning_rate = options_.schedule.at(n_steps());
  NIBBLE_TRY(report, optimizer_.step(*executor_, result.learning_rate, 1 / weight));
  result.gradient_norm = report.gradient_norm;
  NIBBLE_CHECK(weights_->round_deployed(*executor_));
  if (ranges_ != nullptr) NIBBLE_CHECK(ranges_->update());
  return result;
}

// A model that teaches: the forward pass of training with weights of its own.
class ModelTeacher final : public Teacher {
 public:
  // `weights` and `graph` must live as long. The options are those of the run that is taught.
  static Result<ModelTeacher> create(const TrainingGraph& graph, TrainedWeights& weights,
                                     const BatchOptions& batches, Executor& executor,
                                     std::string name) {
    TrainerOptions options;
    options.max_rows = batches.max_rows;
    options.max_sequences = (std::min)(batches.max_sequences, batches.max_rows);
    options.n_positions = batches.context;
    NIBBLE_TRY(trainer, Trainer::create(graph, weights, options, executor));
    return ModelTeacher(std::move(trainer), std::move(name));
  }
  Result<void> logits(const Batch& batch, MatrixView<float> out) override {
    return trainer_.logits(batch, out);
  }
  // Its taps, while it computes logits.
  void show_to(const graph::Observer* observer) noexcept { trainer_.set_row_observer(observer); }
  std::string fingerprint() const override { return name_; }

 private:
  ModelTeacher(Trainer trainer, std::string name)
      : trainer_(std::move(trainer)), name_(std::move(name)) {}
  Trainer trainer_;
  std::string name_;
};

}}}  // namespace nibble::NIBBLE_ABI::train
