// SPDX-License-Identifier: Apache-2.0
#include "nibble/core/executor.hpp"

#include <memory>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/core/callback.hpp"
#include "nibble/core/thread_pool.hpp"

namespace executor_test {

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
  // Assigned callables are refused: most are temporaries, which would be gone.
  static_assert(std::is_assignable_v<nibble::Executor::Task&, const nibble::Executor::Task&>);
  static_assert(!std::is_assignable_v<nibble::Executor::Task&, void (*)(Index, Index)>);
  static_assert(sizeof(nibble::Executor::Task) == 2 * sizeof(void*));
}

TEST_CASE("a callback owns its callable: a temporary, one that only moves, or a copy") {
  using nibble::Callback;
  CHECK(!Callback<int(int)>());
  const auto count = std::make_shared<int>(0);
  {
    const Callback<int(int)> add = [count](int x) { return *count += x; };
    CHECK(count.use_count() == 2);
    Callback<int(int)> other;
    other = add;
    CHECK(other(2) == 2);
    CHECK(add(3) == 5);
    CHECK(count.use_count() == 2);
    other = [count](int x) { return *count -= x; };
    CHECK(other(1) == 4);
  }
  CHECK(count.use_count() == 1);

  Callback<int()> once = [value = std::make_unique<int>(7)] { return *value; };
  CHECK(once() == 7);
  const Callback<void(std::unique_ptr<int>)> take = [&](std::unique_ptr<int> p) { *count = *p; };
  take(std::make_unique<int>(9));
  CHECK(*count == 9);
  const Callback<Index(Index, Index)> function = [](auto a, auto b) { return a * b; };
  CHECK(function(6, 7) == 42);
  const Callback<void(Index, Index)> pointer = count_call;
  n_calls = 0;
  pointer(0, 0);
  CHECK(n_calls == 1);
  void (*nothing)(Index, Index) = nullptr;
  CHECK(!Callback<void(Index, Index)>(nothing));
  static_assert(!std::is_constructible_v<Callback<int()>, int>);
}

}  // namespace executor_test
