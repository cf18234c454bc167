// SPDX-License-Identifier: Apache-2.0
#include "nibble/core/executor.hpp"

#include <thread>
#include <type_traits>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/core/thread_pool.hpp"

using nibble::Index;

namespace {

// The Executor of a host with its own threads; here the simplest one, a new thread per worker and
// call.
class HostExecutor final : public nibble::Executor {
 public:
  Index n_workers() const noexcept override { return 3; }
  void parallel_for(Index n_tasks, Task task) noexcept override {
    std::vector<std::thread> threads;
    for (Index worker = 1; worker < n_workers(); ++worker) {
      threads.emplace_back([=, this] { run(n_tasks, task, worker); });
    }
    run(n_tasks, task, 0);
    for (std::thread& thread : threads) thread.join();
  }

 private:
  void run(Index n_tasks, Task task, Index worker) const {
    for (Index i = worker; i < n_tasks; i += n_workers()) task(i, worker);
  }
};

// Library code uses only the interface: sums squares per worker, then over workers.
Index sum_of_squares(nibble::Executor& executor, Index n) {
  struct alignas(64) Sum {
    Index value = 0;
  };
  std::vector<Sum> sums(static_cast<std::size_t>(executor.n_workers()));
  executor.parallel_for(
      n, [&](Index i, Index worker) { sums[static_cast<std::size_t>(worker)].value += i * i; });
  Index total = 0;
  for (const Sum& sum : sums) total += sum.value;
  return total;
}

Index n_calls = 0;
void count_call(Index, Index) { ++n_calls; }

}  // namespace

TEST_CASE("code written for the interface runs on any executor") {
  const Index n = 1000;
  const Index expected = (n - 1) * n * (2 * n - 1) / 6;
  nibble::InlineExecutor inline_executor;
  CHECK(sum_of_squares(inline_executor, n) == expected);
  HostExecutor host;
  CHECK(sum_of_squares(host, n) == expected);
  auto pool = nibble::ThreadPool::create();
  REQUIRE(pool);
  CHECK(sum_of_squares(**pool, n) == expected);
}

TEST_CASE("a function reference takes lambdas, const callables, functions and their pointers") {
  int seen = 0;
  const auto add = [&seen](int x) { return seen += x; };
  nibble::FunctionRef<int(int)> ref = add;
  CHECK(ref(2) == 2);
  const auto copy = ref;
  CHECK(copy(3) == 5);
  CHECK(seen == 5);

  nibble::InlineExecutor executor;
  n_calls = 0;
  executor.parallel_for(3, count_call);
  void (*pointer)(Index, Index) = count_call;
  executor.parallel_for(4, pointer);
  CHECK(n_calls == 7);
  static_assert(!std::is_constructible_v<nibble::Executor::Task, int>);
  static_assert(sizeof(nibble::Executor::Task) == 2 * sizeof(void*));
}
