// SPDX-License-Identifier: Apache-2.0
//
// A model file as the teacher of another model.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "model.hpp"
#include "nibble/train/run.hpp"

namespace example {

// A teacher and what it needs, at one place in memory.
class FileTeacher {
 public:
  // The executor must live as long. Errors: those of files; invalid_argument (another vocabulary).
  static nibble::Result<std::unique_ptr<FileTeacher>> open(
      const std::string& path, nibble::Index vocab_size, const nibble::train::BatchOptions& batches,
      nibble::Executor& executor) {
    NIBBLE_TRY(file, nibble::io::Gguf::open(path));
    NIBBLE_TRY(model, TrainedModel::create(file, {}, false));
    if (model.graph().config().vocab_size != vocab_size) {
      return nibble::Error{nibble::Errc::invalid_argument,
                           file.name() + ": a teacher of another vocabulary"};
    }
    std::unique_ptr<FileTeacher> made(new FileTeacher(std::move(model)));
    NIBBLE_TRY(teacher, nibble::train::ModelTeacher::create(
                            made->model_.graph(), made->model_.weights(), batches, executor,
                            std::filesystem::path(path).filename().string()));
    made->teacher_.emplace(std::move(teacher));
    return made;
  }
  nibble::train::Teacher* get() { return &*teacher_; }

 private:
  explicit FileTeacher(TrainedModel model) : model_(std::move(model)) {}

  TrainedModel model_;
  std::optional<nibble::train::ModelTeacher> teacher_;
};

}  // namespace example
