// SPDX-License-Identifier: Apache-2.0
//
// What the prefix cache of a nibble::Scheduler saves: the time of the prompts of several requests
// that begin with the same tokens, without and with it, and that of restoring it from a file.
#pragma once

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "bench/machine.hpp"
#include "bench/print.hpp"
#include "nibble/generate/scheduler.hpp"

namespace bench {

struct SharedPromptOptions {
  Index n_shared = 1000;
  Index batch = 512;  // tokens of a step
  int repetitions = 3;
  Clock clock = Clock::wall;
  nibble::ops::KvType kv_type = nibble::ops::KvType::f16;
  nibble::Executor* executor = nullptr;
};

inline constexpr Index kQuestions = 16, kQuestionTokens = 16;

struct SharedPrompt {
  Index n_shared = 0, n_threads = 1;
  // Until all questions have their first token: each with its whole prompt, and with what the cache
  // has; until the shared tokens are computed; until they are read from a file instead.
  double each_seconds = 0, cached_seconds = 0, compute_seconds = 0, restore_seconds = 0;
  double file_bytes = 0;
};

class SharedPromptMeasurement {
 public:
  SharedPromptMeasurement(const nibble::Model& model, const SharedPromptOptions& options)
      : model_(model), o_(options) {}

  // The median of each time.
  nibble::Result<SharedPrompt> run() const {
    SharedPrompt result{.n_shared = o_.n_shared, .n_threads = o_.executor->n_workers()};
    std::vector<double> each, cached, compute, restore;
    for (int r = 0; r < o_.repetitions; ++r) {
      const File file;
      NIBBLE_TRY(without, make_scheduler(kQuestions, 0));
      NIBBLE_TRY(seconds_each, questions(without));
      NIBBLE_TRY(with, make_scheduler(kQuestions, kMuch));
      NIBBLE_TRY(seconds_cached, questions(with));
      NIBBLE_TRY(first, make_scheduler(1, kMuch));
      NIBBLE_TRY(seconds_compute, answer(first, {tokens(o_.n_shared, 0)}));
      NIBBLE_CHECK(first.save_prefixes(file.path));
      NIBBLE_TRY(second, make_scheduler(1, kMuch));
      const double begun = seconds_now(o_.clock);
      NIBBLE_CHECK(second.restore_prefixes(file.path));
      restore.push_back(seconds_now(o_.clock) - begun);
      each.push_back(seconds_each);
      cached.push_back(seconds_cached);
      compute.push_back(seconds_compute);
      result.file_bytes = static_cast<double>(std::filesystem::file_size(file.path));
    }
    result.each_seconds = median(std::move(each));
    result.cached_seconds = median(std::move(cached));
    result.compute_seconds = median(std::move(compute));
    result.restore_seconds = median(std::move(restore));
    return result;
  }

 private:
  using Ids = std::vector<std::int32_t>;
  static constexpr std::size_t kMuch = ~std::size_t{0} / 2;  // all that is free

  // A file's name, and the file's end.
  struct File {
    std::string path = (std::filesystem::temp_directory_path() /
                        ("nibble-prefixes-" + std::to_string(std::random_device()()) + ".gguf"))
                           .string();
    ~File() {
      std::error_code ignored;
      std::filesystem::remove(path, ignored);
    }
  };

  // Of no more places than are needed: memory that is used for the first time takes time too.
  nibble::Result<nibble::Scheduler> make_scheduler(Index max_batch,
                                                   std::size_t prefix_cache_bytes) const {
    return nibble::Scheduler::create(model_, {.n_ctx = o_.n_shared + kQuestionTokens + 1,
                                              .max_batch = max_batch,
                                              .max_step_tokens = std::max(o_.batch, max_batch),
                                              .prefix_cache_bytes = prefix_cache_bytes,
                                              .kv_type = o_.kv_type,
                                              .executor = o_.executor});
  }

  // The shared tokens, then others for each question.
  Ids tokens(Index n, Index question) const {
    Ids ids(static_cast<std::size_t>(n));
    for (Index i = 0; i < n; ++i) {
      const Index id = i < o_.n_shared ? i * 7919 : (question + 1) * 31 + i * 17;
      ids[static_cast<std::size_t>(i)] =
          static_cast<std::int32_t>(id % Index{model_.config().vocab_size});
    }
    return ids;
  }

  nibble::Result<double> questions(nibble::Scheduler& scheduler) const {
    std::vector<Ids> prompts;
    for (Index i = 0; i < kQuestions; ++i) {
      prompts.push_back(tokens(o_.n_shared + kQuestionTokens, i));
    }
    return answer(scheduler, prompts);
  }

  // Seconds until all prompts have one token.
  nibble::Result<double> answer(nibble::Scheduler& scheduler,
                                const std::vector<Ids>& prompts) const {
    std::vector<nibble::Completion> all;
    for (const Ids& prompt : prompts) {
      NIBBLE_TRY(completion, scheduler.submit({.tokens = prompt, .options = {.max_tokens = 1}}));
      all.push_back(std::move(completion));
    }
    const double begun = seconds_now(o_.clock);
    while (scheduler.step()) {
    }
    const double seconds = seconds_now(o_.clock) - begun;
    for (const nibble::Completion& completion : all) NIBBLE_CHECK(completion.status());
    return seconds;
  }

  const nibble::Model& model_;
  const SharedPromptOptions& o_;
};

inline void print_shared(const std::vector<SharedPrompt>& all) {
  if (all.empty()) return;
  std::printf("%-8s %3s %10s %10s %8s %10s %10s %8s %9s\n", "shared", "thr", "each ms", "cached ms",
              "of each", "compute ms", "restore ms", "of it", "file MiB");
  for (const SharedPrompt& s : all) {
    std::printf("%-8d %3d %10.1f %10.1f %7.1fx %10.1f %10.2f %6.2f %% %9.1f\n",
                static_cast<int>(s.n_shared), static_cast<int>(s.n_threads), 1e3 * s.each_seconds,
                1e3 * s.cached_seconds, s.each_seconds / s.cached_seconds, 1e3 * s.compute_seconds,
                1e3 * s.restore_seconds, 100 * s.restore_seconds / s.compute_seconds,
                s.file_bytes / 0x1p20);
  }
}

// An array.
inline std::string json_of(const std::vector<SharedPrompt>& all) {
  std::string out = "[";
  const char* separator = "\n";
  for (const SharedPrompt& s : all) {
    print(out,
          "%s    {\"tokens\": %d, \"threads\": %d, \"each_seconds\": %.6f, "
          "\"cached_seconds\": %.6f, \"compute_seconds\": %.6f, \"restore_seconds\": %.6f, "
          "\"file_bytes\": %.0f}",
          separator, static_cast<int>(s.n_shared), static_cast<int>(s.n_threads), s.each_seconds,
          s.cached_seconds, s.compute_seconds, s.restore_seconds, s.file_bytes);
    separator = ",\n";
  }
  return out + (all.empty() ? "]" : "\n  ]");
}

}  // namespace bench
