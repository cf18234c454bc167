// SPDX-License-Identifier: Apache-2.0
//
// What it costs to have all workers of a pool at work and to know that they are done: a task for
// each, which ends when all have begun. And what they cost when there is nothing to do.
#include <atomic>
#include <chrono>
#include <ctime>
#include <thread>

#include "bench/case.hpp"

namespace bench {

void add_fork_join(std::vector<Case>& cases) {
  Case c;
  c.kernel = "fork_join";
  c.format = "none";
  c.shape = "one_task_per_worker";
  c.data = "warm";
  c.quick = true;
  c.prepare = []() -> Body {
    return [](nibble::Executor& executor) {
      std::atomic<Index> n_begun{0};
      const Index n = executor.n_workers();
      executor.parallel_for(n, [&](Index, Index) {
        n_begun.fetch_add(1);
        // A worker that never comes, where there are more workers than CPUs, is not waited for.
        const double begin = n > 1 ? seconds_now(Clock::wall) : 0;
        while (n_begun.load() < n && seconds_now(Clock::wall) - begin < 1e-3) {
        }
      });
    };
  };
  cases.push_back(std::move(c));
}

double idle_cpu_seconds(Index n_threads, double seconds) {
  pool(n_threads).parallel_for(n_threads, [](Index, Index) {});
  const std::clock_t begin = std::clock();
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
  return static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
}

}  // namespace bench
