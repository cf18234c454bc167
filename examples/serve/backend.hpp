// SPDX-License-Identifier: Apache-2.0
//
// The models of the server: a pool, in which one serves while the next is loaded, and one for
// embeddings.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../adapters.hpp"
#include "dialect.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/thread_pool.hpp"
#include "nibble/generate/embedder.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/hub/open.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/model/load.hpp"
#include "nibble/nibble.hpp"
#include "nibble/serve/host_readings.hpp"
#include "nibble/serve/metrics.hpp"
#include "nibble/serve/model_pool.hpp"
#include "nibble/serve/serving_metrics.hpp"

namespace example::server {

struct BackendOptions {
  std::string model;            // a file, or a folder of a model hub
  std::string embedding_model;  // empty: none
  std::string models_folder;    // of files to change to; empty: none
  // Adapters of the model by the names that requests give them, as FILE or FILE:STRENGTH.
  std::vector<std::pair<std::string, std::string>> adapters;
  nibble::SchedulerOptions scheduler;
  nibble::Index n_threads = 0;
};

// Work of several threads, one after the other: while a model is replaced, two of them compute. And
// no more workers than a limit, where the machine is to do less; the others sleep.
class TakingTurns final : public nibble::Executor {
 public:
  explicit TakingTurns(nibble::Executor& executor)
      : executor_(executor), limit_(executor.n_workers()) {}
  nibble::Index n_workers() const noexcept override { return executor_.n_workers(); }
  // From the next call of parallel_for() on. At least one works.
  void set_limit(nibble::Index n) noexcept { limit_ = n; }

  void parallel_for(nibble::Index n_tasks, Task task) noexcept override {
    const std::lock_guard lock(mutex_);
    const nibble::Index limit = limit_;
    if (limit >= executor_.n_workers()) return executor_.parallel_for(n_tasks, task);
    std::atomic<nibble::Index> next{0};
    executor_.parallel_for(std::clamp(limit, nibble::Index{1}, std::max(n_tasks, nibble::Index{1})),
                           [&](nibble::Index, nibble::Index worker) {
                             for (nibble::Index i; (i = next.fetch_add(1)) < n_tasks;) {
                               task(i, worker);
                             }
                           });
  }

 private:
  nibble::Executor& executor_;
  std::atomic<nibble::Index> limit_;
  std::mutex mutex_;
};

class Backend {
 public:
  // A model for one request.
  struct Use {
    nibble::serve::ModelPool::Lease lease;
    std::shared_ptr<Dialect> dialect;
  };

  // Begins to load the model. Errors: those of the embedding model, which is loaded here; those of
  // ThreadPool, Registry and ModelPool.
  static nibble::Result<std::unique_ptr<Backend>> create(const BackendOptions& options) {
    NIBBLE_TRY(threads, nibble::ThreadPool::create({.n_threads = options.n_threads}));
    std::unique_ptr<Backend> made(new Backend(options, std::move(threads)));
    if (!options.embedding_model.empty()) NIBBLE_CHECK(made->load_embedder());
    NIBBLE_TRY(metrics, nibble::serve::ServingMetrics::create(made->registry_));
    made->metrics_ = metrics;
    NIBBLE_TRY(pool, nibble::serve::ModelPool::create({.metrics = &made->metrics_}));
    made->pool_.emplace(std::move(pool));
    NIBBLE_TRY(loading, made->load(options.model));
    made->first_.emplace(std::move(loading));
    return made;
  }

  nibble::serve::ModelPool& pool() { return *pool_; }
  nibble::serve::Registry& registry() { return registry_; }
  nibble::Index n_threads() const { return executor_.n_workers(); }
  // How many threads compute from now on.
  void limit_threads(nibble::Index n) { executor_.set_limit(n); }
  // All metrics as Prometheus reads them. Errors: those of Registry::text().
  nibble::Result<std::string> metrics_text() {
    const std::lock_guard lock(collecting_);
    pool_->collect();
    host_.collect(metrics_);
    return registry_.text();
  }

  // Waits for the first model. Errors: those of loading it.
  nibble::Result<void> wait() const { return first_->wait(); }
  bool has_failed() const { return first_->stage() == nibble::serve::SwitchStage::failed; }

  // The model that serves. Errors: those of ModelPool::lease().
  nibble::Result<Use> use() {
    NIBBLE_TRY(lease, pool_->lease());
    const std::lock_guard lock(mutex_);
    for (const auto& dialect : dialects_) {
      if (&dialect->tokenizer() == lease.model().tokenizer()) return Use{std::move(lease), dialect};
    }
    return nibble::Error{nibble::Errc::not_found, "the model is being replaced; try again"};
  }

  // Loads a file in place of the model that serves.
  nibble::Result<nibble::serve::Switch> load(const std::string& path) {
    nibble::serve::Variant variant;
    variant.name = name_of(path);
    variant.load = [this, path] { return load_model(path); };
    variant.scheduler = options_.scheduler;
    variant.scheduler.executor = &executor_;
    for (const auto& [name, file] : options_.adapters) {
      variant.adapters.push_back({.name = name, .load = [path, file](const nibble::Model& model) {
                                    return open_adapters(path, model, {file});
                                  }});
    }
    return pool_->switch_to(std::move(variant));
  }
  // The same for a file of the folder that was given for this, by its name. Errors:
  // invalid_argument (no folder, no such name), not_found.
  nibble::Result<std::string> file_of_folder(const std::string& name) const {
    if (options_.models_folder.empty()) {
      return nibble::Error{nibble::Errc::unsupported,
                           "the server was started without --models, so it keeps its model"};
    }
    const bool is_plain = !name.starts_with('.') && name.ends_with(".gguf") &&
                          std::all_of(name.begin(), name.end(), [](unsigned char c) {
                            return std::isalnum(c) != 0 || c == '.' || c == '_' || c == '-';
                          });
    const auto path = std::filesystem::path(options_.models_folder) / name;
    std::error_code error;
    // A link may lead out of the folder.
    const auto status = std::filesystem::symlink_status(path, error);
    if (!is_plain || error || !std::filesystem::is_regular_file(status)) {
      return nibble::Error{nibble::Errc::not_found, "there is no model '" +
                                                        nibble::printable(name.substr(0, 128)) +
                                                        "' in the folder of models"};
    }
    return path.string();
  }

  const auto& adapters() const { return options_.adapters; }

  bool has_embedder() const { return embedder_.has_value(); }
  std::string embedder_name() const { return name_of(options_.embedding_model); }
  // numbers (inputs, width): the embeddings of texts or tokens. Adds their tokens to n_tokens.
  // Errors: those of Embedder::embed; unsupported (there is no embedding model).
  nibble::Result<std::vector<std::vector<float>>> embed(const std::vector<Prompt>& inputs,
                                                        std::int64_t& n_tokens) {
    if (!embedder_) {
      return nibble::Error{nibble::Errc::unsupported,
                           "this server has no embedding model; start it with --embedding-model"};
    }
    const auto& tokenizer = *embedder_->model().tokenizer();
    std::vector<std::vector<float>> all;
    const std::lock_guard lock(embedding_);
    for (const Prompt& input : inputs) {
      std::vector<std::int32_t> ids = input.tokens;
      if (ids.empty()) {
        NIBBLE_TRY(encoded, tokenizer.encode(input.text));
        ids = std::move(encoded);
      }
      NIBBLE_TRY(row, embedder_->embed(nibble::Embedder::Tokens(ids)));
      n_tokens += static_cast<std::int64_t>(ids.size());
      std::vector<float>& numbers = all.emplace_back();
      for (nibble::Index i = 0; i < row.extent(0); ++i) numbers.push_back(row(i));
    }
    return all;
  }

 private:
  static constexpr std::size_t kDialects = 4;  // more than there are models in memory

  Backend(const BackendOptions& options, nibble::Owned<nibble::ThreadPool> threads)
      : options_(options), threads_(std::move(threads)), executor_(*threads_) {}

  static std::string name_of(const std::string& path) {
    const std::filesystem::path file = std::filesystem::path(path).lexically_normal();
    return (file.has_filename() ? file : file.parent_path()).stem().string();
  }

  nibble::Result<nibble::Model> load_model(const std::string& path) {
    NIBBLE_TRY(file, nibble::open_model(path));
    NIBBLE_TRY(model,
               nibble::Model::from_gguf<nibble::graph::AllFormats>(file, {.executor = &executor_}));
    NIBBLE_TRY(dialect, Dialect::create(file, model));
    const std::lock_guard lock(mutex_);
    // One of a model that is gone may have had the same address.
    std::erase_if(dialects_,
                  [&](const auto& old) { return &old->tokenizer() == model.tokenizer(); });
    dialects_.push_front(std::move(dialect));
    if (dialects_.size() > kDialects) dialects_.pop_back();
    return model;
  }

  nibble::Result<void> load_embedder() {
    NIBBLE_TRY(model, nibble::load<nibble::graph::AllFormats>(options_.embedding_model,
                                                              {.executor = &executor_}));
    if (model.tokenizer() == nullptr) return *model.tokenizer_error();
    NIBBLE_TRY(embedder, nibble::Embedder::create(
                             model, {.splits_long_texts = true, .executor = &executor_}));
    embedder_.emplace(std::move(embedder));
    return nibble::ok();
  }

  const BackendOptions options_;
  nibble::Owned<nibble::ThreadPool> threads_;
  TakingTurns executor_;
  std::mutex embedding_;  // an embedder is for one thread at a time
  std::optional<nibble::Embedder> embedder_;
  nibble::serve::Registry registry_;
  nibble::serve::ServingMetrics metrics_;
  std::mutex collecting_;  // of host_
  nibble::serve::Host host_{nibble::serve::read_system_file,
                            static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE))};
  std::mutex mutex_;  // of what follows
  std::deque<std::shared_ptr<Dialect>> dialects_;
  std::optional<nibble::serve::ModelPool> pool_;  // its thread calls load_model()
  std::optional<nibble::serve::Switch> first_;
};

}  // namespace example::server
