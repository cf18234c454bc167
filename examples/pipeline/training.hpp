// SPDX-License-Identifier: Apache-2.0
//
// One training of the pipeline: from a model file, with or without a teacher, to a model file. What
// is there already is not done again; what was interrupted goes on from its checkpoint.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "../home_commands/grammar.hpp"
#include "../train/home_source.hpp"
#include "../train/loop.hpp"
#include "../train/model.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/train/run.hpp"

namespace example {

struct Training {
  std::string name;  // in progress
  std::string like;  // the model file that it starts from
  Shape shape;       // other dimensions
  bool from_scratch = false;
  TrainedModel::Options qat =
      {};               // its format and how it is rounded to; seed and shape are not used
  std::string teacher;  // a model file; empty: none
  std::uint64_t n_steps = 1000;
  double rate = 3e-3, decay = 0.1;
  nibble::ops::Distillation distillation = {0.5f, 2.0f};
  std::uint64_t seed = 1;
};

inline bool exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

// 64 commands a step.
inline nibble::train::RunOptions run_options(const Training& t, nibble::Index context) {
  constexpr nibble::Index kCommands = 64;
  nibble::train::RunOptions options;
  options.schedule.peak = t.rate;
  options.schedule.floor = t.rate / 100;
  options.schedule.n_steps = t.n_steps;
  options.schedule.warm_up = std::min<std::uint64_t>(100, t.n_steps / 10);
  options.optimizer.weight_decay = t.decay;
  options.optimizer.seed = t.seed;
  options.batches.context = context;
  options.batches.max_sequences = kCommands;
  options.batches.max_rows = std::max(context, kCommands * 40);
  options.batches.shuffles = false;  // they are drawn
  options.batches.seed = t.seed;
  options.distillation = t.distillation;
  return options;
}

// A teacher and what it needs, at one place in memory.
class FileTeacher {
 public:
  // Errors: those of files; invalid_argument (another vocabulary).
  static nibble::Result<std::unique_ptr<FileTeacher>> open(
      const std::string& path, nibble::Index vocab_size, const nibble::train::BatchOptions& batches,
      nibble::Executor& executor) {
    auto made = std::make_unique<FileTeacher>();
    NIBBLE_TRY(file, nibble::io::Gguf::open(path));
    NIBBLE_TRY(model, TrainedModel::create(file, {}, false));
    if (model.graph().config().vocab_size != vocab_size) {
      return nibble::Error{nibble::Errc::invalid_argument,
                           file.name() + ": a teacher of another vocabulary"};
    }
    made->model_.emplace(std::move(model));
    NIBBLE_TRY(teacher, nibble::train::ModelTeacher::create(
                            made->model_->graph(), made->model_->weights(), batches, executor,
                            std::filesystem::path(path).filename().string()));
    made->teacher_.emplace(std::move(teacher));
    return made;
  }
  nibble::train::Teacher* get() { return &*teacher_; }

 private:
  std::optional<TrainedModel> model_;
  std::optional<nibble::train::ModelTeacher> teacher_;
};

// Trains to the file `path` (F16, or the deployed format). Errors: those of files and training;
// cancelled, with a checkpoint beside the path.
inline nibble::Result<void> train_to_file(const Training& t, const std::string& path,
                                          nibble::Executor& executor, bool is_quiet) {
  if (exists(path)) return nibble::ok();
  NIBBLE_TRY(like, nibble::io::Gguf::open(t.like));
  TrainedModel::Options options = t.qat;
  options.shape = t.shape;
  options.seed = t.seed;
  NIBBLE_TRY(model, TrainedModel::create(like, options, t.from_scratch));
  NIBBLE_TRY(tokenizer, nibble::text::Tokenizer::from_gguf(like));
  const HomeSource source(tokenizer, t.seed, static_cast<nibble::Index>(t.n_steps) * 64);
  const auto& config = model.graph().config();
  const nibble::train::RunOptions run_with = run_options(t, config.n_ctx);
  std::unique_ptr<FileTeacher> teacher;
  if (!t.teacher.empty()) {
    NIBBLE_TRY(opened, FileTeacher::open(t.teacher, config.vocab_size, run_with.batches, executor));
    teacher = std::move(opened);
  }
  NIBBLE_TRY(run, nibble::train::Run::create(model.graph(), model.weights(), source, run_with,
                                             executor, teacher ? teacher->get() : nullptr));
  Curve curve(t.name);
  LoopOptions loop;
  loop.name = t.name;
  loop.checkpoint = path + ".checkpoint";
  loop.n_steps = t.n_steps;
  loop.every = 500;
  loop.is_quiet = is_quiet;
  NIBBLE_CHECK(train_to_end(run, loop, curve));
  NIBBLE_TRY(file, model.file(nibble::quant::Format::f16));
  return file.write(path);
}

}  // namespace example
