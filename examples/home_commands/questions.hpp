// SPDX-License-Identifier: Apache-2.0
//
// The commands that a measurement asks: held-out ones, then as many hard ones, from the two test
// files or drawn from the grammar. Drawn ones are made when they are asked, so that the memory of
// the measuring process stays the model's.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../home_model.hpp"
#include "../samples.hpp"
#include "grammar.hpp"

namespace example::home {

struct QuestionSource {
  std::array<std::vector<Sample>, 2> files;  // held-out, hard; unused if there is a seed
  std::optional<std::uint64_t> seed;         // commands are drawn
  std::size_t n = 0;                         // how many of each are asked
};

// The two test files in a folder. Errors: those of TestSplits::read().
inline nibble::Result<QuestionSource> questions_in_files(const std::filesystem::path& folder) {
  NIBBLE_TRY(splits, TestSplits::read(folder));
  const std::size_t n = std::min(splits.held_out.size(), splits.hard.size());
  return QuestionSource{{std::move(splits.held_out), std::move(splits.hard)}, std::nullopt, n};
}

// Hands out the questions of a source, from the first on, to any number of threads.
class Questions {
 public:
  struct Question {
    std::size_t at = 0;  // below n it is held-out, from n on hard
    Sample sample;
  };

  // The source must outlive the questions.
  explicit Questions(const QuestionSource& source)
      : source_(source),
        drawn_{Commands(Split::held_out, source.seed.value_or(0)),
               Commands(Split::hard, source.seed.value_or(0))} {}

  std::size_t size() const { return 2 * source_.n; }
  std::size_t n_taken() const { return next_.load(); }

  // Nothing when all have been asked, or after stop().
  std::optional<Question> take() {
    const std::lock_guard lock(mutex_);
    const std::size_t at = next_;
    if (at >= size()) return std::nullopt;
    next_ = at + 1;
    const std::size_t split = at / source_.n;
    if (source_.seed) return Question{at, drawn_[split].next()};
    return Question{at, source_.files[split][at % source_.n]};
  }

  void stop() {
    const std::lock_guard lock(mutex_);
    next_ = size();
  }

 private:
  const QuestionSource& source_;
  std::array<Commands, 2> drawn_;
  std::mutex mutex_;
  std::atomic<std::size_t> next_{0};
};

}  // namespace example::home
