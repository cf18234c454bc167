// SPDX-License-Identifier: Apache-2.0
//
// The cost of starting all workers of a pool and waiting until they are done: one task for each
// worker, which ends when all tasks have begun. Also the cost of idle workers.
#include <atomic>
#include <chrono>
#include <ctime>
#include <thread>

#include "bench/case.hpp"
#include "nibble/core/cpus.hpp"

namespace bench {

void add_fork_join(std::vector<Case>& cases) {
  Case c;
  c.kernel = "fork_join";
  c.format = "none";
  c.shape = "one_task_per_worker";
  c.data = "warm";
  c.quick = true;
  c.prepare = []() -> Body {
    return [n_cpus = nibble::available_cpus().n_logical](nibble::Executor& executor) {
      std::atomic<Index> n_begun{0};
      // As many as can work at once: of a pool with more threads than CPUs some stay asleep.
      const Index n = std::min(executor.n_workers(), n_cpus);
      executor.parallel_for(n, [&](Index, Index) {
        n_begun.fetch_add(1);
        // Do not wait forever for a worker whose CPU is taken by others.
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
