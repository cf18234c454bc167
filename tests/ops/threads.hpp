// SPDX-License-Identifier: Apache-2.0
//
// An executor that starts threads for every call, in the simplest way.
#pragma once

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "nibble/core/executor.hpp"

namespace nibble_test {

class Threads final : public nibble::Executor {
 public:
  explicit Threads(nibble::Index n) : n_(n) {}
  nibble::Index n_workers() const noexcept override { return n_; }
  void parallel_for(nibble::Index n_tasks, Task task) noexcept override {
    n_tasks_run += n_tasks;
    most_tasks = std::max(most_tasks, n_tasks);
    std::atomic<nibble::Index> next{0};
    const auto work = [&](nibble::Index worker) {
      for (nibble::Index t = next++; t < n_tasks; t = next++) task(t, worker);
    };
    std::vector<std::thread> threads;
    for (nibble::Index worker = 1; worker < n_; ++worker) threads.emplace_back(work, worker);
    work(0);
    for (std::thread& thread : threads) thread.join();
  }
  nibble::Index n_tasks_run = 0;
  nibble::Index most_tasks = 0;  // of one call

 private:
  nibble::Index n_;
};

}  // namespace nibble_test
