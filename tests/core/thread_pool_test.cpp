// SPDX-License-Identifier: Apache-2.0
#include "nibble/core/thread_pool.hpp"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <ctime>
#include <memory>
#include <thread>
#include <tuple>
#include <vector>

#include "allocation_counter.hpp"
#include "doctest/doctest.h"
#include "nibble/core/cpus.hpp"

#if defined(__linux__)
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define NIBBLE_TEST_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define NIBBLE_TEST_SANITIZED 1
#endif
#endif

namespace thread_pool_test {

using nibble::Errc;
using nibble::Index;
using nibble::ThreadPool;
using nibble::ThreadPoolOptions;

namespace {

using Pool = nibble::Owned<ThreadPool>;

Pool make(const ThreadPoolOptions& options) {
  auto pool = ThreadPool::create(options);
  REQUIRE(pool);
  return *std::move(pool);
}

// n_cpus = n_threads: all threads take part, even if they compete for this machine's CPUs.
Pool make(Index n_threads, Index spin_microseconds = 100) {
  ThreadPoolOptions options;
  options.n_threads = n_threads;
  options.n_cpus = n_threads;
  options.spin_microseconds = spin_microseconds;
  return make(options);
}

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

// How many of n_tasks tasks did not run exactly once.
Index count_wrong(ThreadPool& pool, Index n_tasks) {
  std::vector<std::atomic<int>> runs(at(n_tasks));
  pool.parallel_for(n_tasks, [&](Index i, Index) { runs[at(i)].fetch_add(1); });
  Index n_wrong = 0;
  for (const auto& n : runs) n_wrong += n.load() != 1;
  return n_wrong;
}

// Runs task(worker) on n workers at the same time: each waits until all have arrived. Returns false
// if they do not arrive within ten seconds.
template <class Task>
bool meet(ThreadPool& pool, Index n, Task task) {
  std::atomic<Index> n_here{0};
  std::atomic<bool> in_time{true};
  pool.parallel_for(n, [&](Index, Index worker) {
    n_here.fetch_add(1);
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (n_here.load() < n && in_time.load()) {
      if (std::chrono::steady_clock::now() > deadline) in_time.store(false);
      std::this_thread::yield();
    }
    task(worker);
  });
  return in_time.load();
}

void busy(int n) {
  static std::atomic<int> sink;
  for (int i = 0; i < n; ++i) sink.store(i, std::memory_order_relaxed);
}

}  // namespace

TEST_CASE("each task runs exactly once, for any number of tasks and threads") {
  for (const Index n_threads : {1, 2, 3, 5, 16}) {
    const Pool pool = make(n_threads);
    CHECK(pool->n_workers() == n_threads);
    for (const Index n_tasks : {0, 1, 2, 3, 4, 5, 7, 15, 16, 17, 64, 1000, 100'000}) {
      CAPTURE(n_threads);
      CAPTURE(n_tasks);
      CHECK(count_wrong(*pool, n_tasks) == 0);
    }
  }
}

TEST_CASE("no tasks, and a negative number of them, run nothing") {
  const Pool pool = make(2);
  int n = 0;
  pool->parallel_for(0, [&](Index, Index) { ++n; });
  pool->parallel_for(-5, [&](Index, Index) { ++n; });
  CHECK(n == 0);
}

TEST_CASE("a single task runs on the caller") {
  const Pool pool = make(4);
  for (int rep = 0; rep < 100; ++rep) {
    std::thread::id id;
    Index worker = -1;
    pool->parallel_for(1, [&](Index, Index w) {
      id = std::this_thread::get_id();
      worker = w;
    });
    CHECK(id == std::this_thread::get_id());
    CHECK(worker == 0);
  }
}

TEST_CASE("what was written before is visible to tasks, and what tasks wrote to the caller") {
  const Pool pool = make(4);
  std::vector<int> in(257), out(257);  // not atomic: the thread sanitizer checks it
  long n_wrong = 0;
  for (int rep = 0; rep < 2000; ++rep) {
    for (int& x : in) x = rep;
    pool->parallel_for(257, [&](Index i, Index) { out[at(i)] = in[at(i)] + static_cast<int>(i); });
    for (int i = 0; i < 257; ++i) n_wrong += out[at(i)] != rep + i;
  }
  CHECK(n_wrong == 0);
}

TEST_CASE("a worker runs one task at a time") {
  const Pool pool = make(6);
  std::vector<std::atomic<bool>> is_busy(6);
  std::vector<Index> scratch(6);
  std::atomic<int> n_wrong{0};
  for (int rep = 0; rep < 300; ++rep) {
    pool->parallel_for(40, [&](Index i, Index worker) {
      if (worker < 0 || worker >= 6 || is_busy[at(worker)].exchange(true)) {
        n_wrong.fetch_add(1);
        return;
      }
      scratch[at(worker)] = i;
      busy(20);
      if (scratch[at(worker)] != i) n_wrong.fetch_add(1);
      is_busy[at(worker)].store(false);
    });
  }
  CHECK(n_wrong.load() == 0);
}

TEST_CASE("all workers take part, also after they have gone to sleep") {
  for (const Index spin : {0, 100}) {
    const Pool pool = make(3, spin);
    for (int rep = 0; rep < 20; ++rep) {
      std::atomic<unsigned> seen{0};
      REQUIRE(meet(*pool, 3, [&](Index worker) { seen.fetch_or(1u << worker); }));
      CHECK(seen.load() == 7u);
      if (rep % 4 == 3) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  }
}

TEST_CASE("the caller waits for the last task, spinning or asleep, and sees what it wrote") {
  for (const Index spin : {0, 100, 100'000}) {
    const Pool pool = make(2, spin);
    for (int rep = 1; rep <= 10; ++rep) {
      int written = 0;  // not atomic: the thread sanitizer checks it
      REQUIRE(meet(*pool, 2, [&](Index worker) {
        if (worker == 0) return;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        written = rep;
      }));
      CHECK(written == rep);
    }
  }
}

TEST_CASE("a long task does not hold up the others") {
  const Pool pool = make(2);
  std::atomic<int> n_others{0};
  bool in_time = false;
  std::atomic<bool> is_over{false};
  // The first task ends only when other workers have done all the rest: a static split would hang.
  pool->parallel_for(64, [&](Index i, Index) {
    if (i != 63) {
      if (is_over.load()) return;
      n_others.fetch_add(1);
      return;
    }
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (n_others.load() < 63 && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::yield();
    }
    in_time = n_others.load() == 63;
    is_over.store(true);
  });
  CHECK(in_time);
}

TEST_CASE("uneven tasks: sums are right and several pieces were claimed") {
  const Pool pool = make(4);
  std::atomic<Index> sum{0};
  for (int rep = 0; rep < 50; ++rep) {
    pool->parallel_for(100, [&](Index i, Index) {
      busy(static_cast<int>(i % 10 == 0 ? 5000 : 5));
      sum.fetch_add(i);
    });
  }
  CHECK(sum.load() == 50 * 4950);
}

TEST_CASE("stress: very many tiny calls, spinning, sleeping at once, and more threads than CPUs") {
  for (const auto& [n_threads, spin, n_calls] :
       {std::tuple<Index, Index, int>{2, 100, 60'000}, {4, 0, 10'000}, {8, 20, 30'000}}) {
    const Pool pool = make(n_threads, spin);
    std::vector<Index> n_runs(at(n_threads) * 16);
    Index expected = 0;
    for (int rep = 0; rep < n_calls; ++rep) {
      const Index n = 1 + rep % 5;
      expected += n;
      pool->parallel_for(n, [&](Index, Index worker) { ++n_runs[at(worker) * 16]; });
    }
    Index total = 0;
    for (const Index n : n_runs) total += n;
    CHECK(total == expected);
  }
}

TEST_CASE("more threads than CPUs: those that cannot run stay out of the way") {
  ThreadPoolOptions options;
  options.n_threads = 16;  // n_cpus is detected
  const Pool pool = make(options);
  CHECK(pool->n_workers() == 16);
  CHECK(count_wrong(*pool, 1000) == 0);
  options.n_cpus = 1;
  const Pool alone = make(options);
  Index n_elsewhere = 0;
  alone->parallel_for(1000, [&](Index, Index worker) { n_elsewhere += worker != 0; });
  CHECK(n_elsewhere == 0);
}

TEST_CASE("a call allocates nothing") {
  const Pool pool = make(4, 0);  // also tests sleeping and waking
  std::vector<int> out(1000);
  const auto before = allocation_count();
  for (int rep = 0; rep < 100; ++rep) {
    pool->parallel_for(1000, [&](Index i, Index) { out[at(i)] += 1; });
  }
  CHECK(allocation_count() == before);
  CHECK(out[999] == 100);
#if NIBBLE_TEST_COUNTS_ALLOCATIONS
  CHECK(allocation_count() > 0);  // the counter works
#else
  MESSAGE("skipped: allocations are not counted under this sanitizer");
#endif
}

TEST_CASE("a call from inside a task runs there, on the same worker") {
  const Pool pool = make(3);
  std::atomic<int> n_inner{0}, n_wrong{0};
  for (int rep = 0; rep < 20; ++rep) {
    REQUIRE(meet(*pool, 3, [&](Index outer) {
      const auto id = std::this_thread::get_id();
      pool->parallel_for(5, [&](Index, Index inner) {
        n_inner.fetch_add(1);
        if (inner != outer || std::this_thread::get_id() != id) n_wrong.fetch_add(1);
      });
    }));
    pool->parallel_for(1, [&](Index, Index) {
      pool->parallel_for(2, [&](Index, Index) { n_inner.fetch_add(1); });
    });
  }
  CHECK(n_inner.load() == 20 * (15 + 2));
  CHECK(n_wrong.load() == 0);
}

TEST_CASE("a call through another pool on the same thread is recognized as one from inside") {
  const Pool a = make(2), b0 = make(1), b1 = make(1);
  std::atomic<int> n{0}, n_wrong{0};
  REQUIRE(meet(*a, 2, [&](Index outer) {
    (outer == 0 ? b0 : b1)->parallel_for(1, [&](Index, Index) {
      a->parallel_for(3, [&](Index, Index inner) {
        n.fetch_add(1);
        if (inner != outer) n_wrong.fetch_add(1);
      });
    });
  }));
  CHECK(n.load() == 6);
  CHECK(n_wrong.load() == 0);
}

TEST_CASE("calls from several host threads run one after the other") {
  const Pool pool = make(3);
  std::vector<std::atomic<bool>> is_busy(3);
  std::vector<Index> scratch(3);  // not atomic: two concurrent calls would race
  std::atomic<Index> n_wrong{0}, n_started{0};
  std::vector<std::thread> hosts;
  for (int host = 0; host < 3; ++host) {
    hosts.emplace_back([&] {
      n_started.fetch_add(1);
      while (n_started.load() < 3) std::this_thread::yield();
      for (int rep = 0; rep < 2000; ++rep) {
        std::atomic<Index> sum{0};
        const Index n = rep % 20;
        pool->parallel_for(n, [&](Index i, Index worker) {
          if (is_busy[at(worker)].exchange(true)) n_wrong.fetch_add(1);
          scratch[at(worker)] += 1;
          if (rep % 100 == 7) std::this_thread::yield();
          sum.fetch_add(i);
          is_busy[at(worker)].store(false);
        });
        if (sum.load() != n * (n - 1) / 2) n_wrong.fetch_add(1);
      }
    });
  }
  for (std::thread& host : hosts) host.join();
  CHECK(n_wrong.load() == 0);
  CHECK(scratch[0] + scratch[1] + scratch[2] == 3 * 100 * 190);
}

TEST_CASE("pools come and go, used or not") {
  for (int rep = 0; rep < 200; ++rep) {
    const Pool pool = make(1 + rep % 5, rep % 2 == 0 ? 0 : 100);
    if (rep % 3 == 0) CHECK(count_wrong(*pool, 10) == 0);
  }
}

TEST_CASE("idle threads cost no CPU time") {
  const Pool pool = make(4);
  CHECK(count_wrong(*pool, 100) == 0);
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  const std::clock_t before = std::clock();  // CPU time of all threads of the process
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  const double used = static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC;
  CHECK(used < 0.03);
}

TEST_CASE("options out of range are errors") {
  const auto code = [](auto change) {
    ThreadPoolOptions options;
    change(options);
    const auto pool = ThreadPool::create(options);
    return pool ? Errc::cancelled : pool.error().code;
  };
  CHECK(code([](auto& o) { o.n_threads = -1; }) == Errc::invalid_argument);
  CHECK(code([](auto& o) { o.spin_microseconds = -1; }) == Errc::invalid_argument);
  CHECK(code([](auto& o) { o.n_cpus = -1; }) == Errc::invalid_argument);
  CHECK(code([](auto& o) { o.n_threads = ThreadPool::kMaxThreads + 1; }) == Errc::limit);
  CHECK(code([](auto& o) { o.n_threads = INT64_MAX; }) == Errc::limit);
  CHECK(code([](auto& o) { o.spin_microseconds = INT64_MAX; }) == Errc::cancelled);  // capped
}

TEST_CASE("by default there is a worker for each core that may be used") {
  const Pool pool = make(ThreadPoolOptions{});
  CHECK(pool->n_workers() == nibble::available_cpus().n_cores);
}

#if defined(__linux__)

TEST_CASE("pinned workers run where they were told, the caller wherever it was") {
  const auto available = nibble::available_cpus();
  ThreadPoolOptions options;
  options.pin = true;
  options.cpus = {available.ids.front(), available.ids.back()};
  options.n_cpus = 2;
  {
    const Pool pool = make(options);
    CHECK(pool->n_workers() == 2);
    std::atomic<int> cpu{-1};
    REQUIRE(meet(*pool, 2, [&](Index worker) {
      if (worker == 1) cpu.store(sched_getcpu());
    }));
    CHECK(cpu.load() == available.ids.back());
    CHECK(nibble::available_cpus().ids == available.ids);
  }
  const auto code_for = [&](int cpu) {
    options.cpus = {cpu};
    options.n_threads = 2;
    const auto pool = ThreadPool::create(options);
    return pool ? Errc::cancelled : pool.error().code;
  };
  CHECK(code_for(-1) == Errc::invalid_argument);
  CHECK(code_for(16'000) == Errc::invalid_argument);
  CHECK(code_for(available.ids.front()) == Errc::cancelled);
}

TEST_CASE("the host's signals stay on the host's threads") {
  const Pool pool = make(2);
  std::atomic<int> n_blocked{-1};
  REQUIRE(meet(*pool, 2, [&](Index worker) {
    if (worker != 1) return;
    sigset_t blocked;
    pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
    n_blocked.store(sigismember(&blocked, SIGTERM) + sigismember(&blocked, SIGCHLD) -
                    2 * sigismember(&blocked, SIGSEGV));
  }));
  CHECK(n_blocked.load() == 2);
  sigset_t own;
  pthread_sigmask(SIG_SETMASK, nullptr, &own);
  CHECK(sigismember(&own, SIGTERM) == 0);
}

// What the body does in the child of a fork(): its exit code, or -1 if it did not end by itself.
template <class Body>
int in_child(Body body) {
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    alarm(20);
    _exit(body());
  }
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST_CASE("in the child of a fork a pool runs everything on the caller and can be destroyed") {
  Pool pool = make(4);
  CHECK(in_child([&] {
          const Index n_wrong = count_wrong(*pool, 1000);
          { const Pool gone = std::move(pool); }
          Pool own = make(3);  // its threads may have the numbers of threads that are gone
          return n_wrong == 0 && count_wrong(*own, 1000) == 0 ? 0 : 1;
        }) == 0);
  CHECK(count_wrong(*pool, 1000) == 0);
}

TEST_CASE(
    "in the child of a fork a pool can be destroyed though another thread was inside a call") {
  Pool pool = make(3);
  std::atomic<int> n_here{0};
  std::atomic<bool> end{false};
  std::thread other([&] {
    pool->parallel_for(3, [&](Index, Index) {
      n_here.fetch_add(1);
      while (!end.load()) std::this_thread::yield();
    });
  });
  while (n_here.load() < 3) std::this_thread::yield();
  const int code = in_child([&] {
    { const Pool gone = std::move(pool); }
    return 0;
  });
  end.store(true);
  other.join();
  CHECK(code == 0);
}

TEST_CASE("threads that the system refuses are an error, not the end of the program") {
#if defined(NIBBLE_TEST_SANITIZED)
  MESSAGE("skipped: sanitizers need the address space that this test takes away");
#else
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    const rlimit limit{rlim_t{256} << 20, rlim_t{256} << 20};  // room for only some stacks of 8 MB
    setrlimit(RLIMIT_AS, &limit);
    ThreadPoolOptions options;
    options.n_threads = 1000;
    const auto pool = ThreadPool::create(options);
    const auto small = ThreadPool::create(ThreadPoolOptions{.n_threads = 2});
    _exit(pool ? 1 : pool.error().code != Errc::io ? 2 : small ? 0 : 3);
  }
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
#endif
}

#endif

}  // namespace thread_pool_test
