// SPDX-License-Identifier: Apache-2.0
//
// One training of the pipeline: from a model file, with or without a teacher, to a model file. What
// is there already is not done again; what was interrupted goes on from its checkpoint.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <utility>

#include "../train/home_source.hpp"
#include "../train/loop.hpp"
#include "../train/model.hpp"
#include "../train/teacher.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/train/run.hpp"

namespace example {

struct Training {
  std::string name;  // in progress
  std::string like;  // the model file that it starts from
  Shape shape;       // other dimensions
  bool from_scratch = false;
  // The format that it is trained for, if any, and how it is rounded to.
  std::optional<nibble::quant::Format> deployed;
  bool searches = false;
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

inline constexpr nibble::Index kCommandsOfStep = 64;

inline nibble::train::RunOptions run_options(const Training& t, nibble::Index context) {
  nibble::train::RunOptions options;
  options.schedule.peak = t.rate;
  options.schedule.floor = t.rate / 100;
  options.schedule.n_steps = t.n_steps;
  options.schedule.warm_up = std::min<std::uint64_t>(100, t.n_steps / 10);
  options.optimizer.weight_decay = t.decay;
  options.optimizer.seed = t.seed;
  options.batches = command_batches(context, kCommandsOfStep, t.seed);
  options.distillation = t.distillation;
  return options;
}

// Trains to the file `path` (F16, or the deployed format). Errors: those of files and training;
// cancelled, with a checkpoint beside the path.
inline nibble::Result<void> train_to_file(const Training& t, const std::string& path,
                                          nibble::Executor& executor, bool is_quiet) {
  if (exists(path)) return nibble::ok();
  NIBBLE_TRY(like, nibble::io::Gguf::open(t.like));
  TrainedModel::Options options{.shape = t.shape, .seed = t.seed};
  options.deployed = t.deployed;
  options.searches = t.searches;
  NIBBLE_TRY(model, TrainedModel::create(like, options, t.from_scratch));
  NIBBLE_TRY(tokenizer, nibble::text::Tokenizer::from_gguf(like));
  const HomeSource source(tokenizer, t.seed, static_cast<nibble::Index>(t.n_steps) * kCommandsOfStep);
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
  loop.write = [&]() -> nibble::Result<void> {
    NIBBLE_TRY(file, model.file(nibble::quant::Format::f16));
    return file.write(path);
  };
  return train_to_end(run, loop, curve);
}

}  // namespace example
