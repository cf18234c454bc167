// SPDX-License-Identifier: Apache-2.0
//
// ThreadPool's functions. Included by thread_pool.hpp.
#pragma once

#include <algorithm>
#include <new>
#include <string>
#include <utility>

#include "nibble/core/cpus.hpp"
#include "nibble/core/native_thread.hpp"
#include "nibble/core/thread_pool.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct ThreadPool::Helper {
  ThreadPool* pool = nullptr;
  Index worker = 0;
  int cpu = -1;           // -1: not pinned
  std::uintptr_t id = 0;  // this_thread() of the thread
  NativeThread thread;
};

// How many tasks to claim when `left` are left. Large chunks first, single tasks last: there are
// few claims, and unequal cores finish together. A chunk is at most a quarter of a fair share, so a
// core of a quarter of the speed does not finish late.
NIBBLE_INLINE Index ThreadPool::piece(Index left) const noexcept {
  return std::max<Index>(1, left / (4 * n_active_));
}

// Spins until done() is true or the time is over; returns done().
template <class Done>
bool ThreadPool::spin(Done done) const noexcept {
  if (spin_nanoseconds_ == 0) return done();
  std::int64_t deadline = 0;
  for (;;) {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      cpu_relax();
    }
    const std::int64_t now = monotonic_nanoseconds();
    if (deadline == 0) deadline = now + spin_nanoseconds_;
    if (now >= deadline) return done();
  }
}

NIBBLE_INLINE Result<Owned<ThreadPool>> ThreadPool::create(const ThreadPoolOptions& options) {
  return catch_out_of_memory([&] { return start(options); });
}

NIBBLE_INLINE Result<Owned<ThreadPool>> ThreadPool::start(const ThreadPoolOptions& options) {
  if (options.n_threads < 0 || options.spin_microseconds < 0 || options.n_cpus < 0) {
    return Error{Errc::invalid_argument, "thread pool: a negative number in the options"};
  }
  const AvailableCpus available = available_cpus();
  const std::vector<int>& cpus = options.cpus.empty() ? available.ids : options.cpus;
  if (options.pin && available.ids.empty()) {
    return Error{Errc::unsupported, "thread pool: this system does not pin threads to CPUs"};
  }
  if (options.pin && *std::min_element(cpus.begin(), cpus.end()) < 0) {
    return Error{Errc::invalid_argument, "thread pool: a negative CPU number in the options"};
  }

  Index n_cpus = options.n_cpus;
  if (n_cpus == 0 && options.pin) {
    for (std::size_t i = 0; i < cpus.size(); ++i) {  // count distinct CPUs
      std::size_t first = 0;
      while (cpus[first] != cpus[i]) ++first;
      n_cpus += first == i;
    }
  }
  if (n_cpus == 0) n_cpus = available.n_logical;

  Index n_threads = options.n_threads;
  if (n_threads == 0) {
    n_threads = options.pin && !options.cpus.empty() ? static_cast<Index>(options.cpus.size())
                                                     : available.n_cores;
  }
  if (n_threads > kMaxThreads) {
    return Error{Errc::limit, "thread pool: " + to_text(n_threads) + " threads, at most " +
                                  to_text(kMaxThreads)};
  }

  Owned<ThreadPool> pool(new (std::nothrow) ThreadPool);
  const auto n_helpers = static_cast<std::size_t>(n_threads - 1);
  if (pool != nullptr) pool->helpers_ = new (std::nothrow) Helper[n_helpers];
  if (pool == nullptr || pool->helpers_ == nullptr) {
    return Error{Errc::out_of_memory, "thread pool: " + to_text(n_threads) + " threads"};
  }
  constexpr Index kMaxSpin = 1'000'000;  // a second
  pool->spin_nanoseconds_ = (std::min)(options.spin_microseconds, kMaxSpin) * 1000;
  pool->n_active_ = (std::min)(n_threads, n_cpus);
  pool->n_helpers_ = n_threads - 1;
  pool->process_ = this_process();
  pool->n_starting_.store(static_cast<std::uint32_t>(n_helpers));

  int error = 0;
  std::size_t n_started = 0;
  for (; n_started < n_helpers; ++n_started) {
    Helper& helper = pool->helpers_[n_started];
    helper.pool = pool.get();
    helper.worker = static_cast<Index>(n_started) + 1;
    if (options.pin) helper.cpu = cpus[(n_started + 1) % cpus.size()];
    error = helper.thread.start(
        [](void* argument) noexcept {
          auto* const self = static_cast<Helper*>(argument);
          self->pool->help(self->worker);
        },
        &helper);
    if (error != 0) break;
  }
  if (error != 0) {  // the destructor ends the threads that did start
    return Error{Errc::io, "thread pool: thread " + to_text(n_started + 1) + " of " +
                               to_text(n_threads) + " did not start: system error " +
                               to_text(error)};
  }
  while (const std::uint32_t n = pool->n_starting_.load()) sleep_while(pool->n_starting_, n);
  if (pool->pin_failed_.load()) {
    return Error{Errc::invalid_argument, "thread pool: the system refused to pin to the CPUs"};
  }
  return pool;
}

NIBBLE_INLINE ThreadPool::~ThreadPool() {
  if (this_process() != process_) {  // the child of a fork(): there are no threads to wait for
    for (Index i = 0; i < n_helpers_; ++i) helpers_[i].thread.forget();
  } else {
    left_.store(-1);
    wake(n_helpers_);
    for (Index i = 0; i < n_helpers_; ++i) helpers_[i].thread.join();
  }
  delete[] helpers_;
}

// Which worker of this pool the calling thread is, now; -1: none. (Each pool knows its threads. A
// variable of each thread would be one per shared library, and pools may be used by several.)
NIBBLE_INLINE Index ThreadPool::worker_of_this_thread() const noexcept {
  const std::uintptr_t id = this_thread();
  if (caller_.load(std::memory_order_relaxed) == id) return 0;
  for (Index i = 0; i < n_helpers_; ++i) {
    // A new thread in the child of a fork() may have the number of one that is not there.
    if (helpers_[i].id == id) return this_process() == process_ ? i + 1 : -1;
  }
  return -1;
}

NIBBLE_INLINE void ThreadPool::parallel_for(Index n_tasks, Task task) noexcept {
  if (n_tasks <= 0) return;
  if (const Index worker = worker_of_this_thread(); worker >= 0) {
    for (Index i = 0; i < n_tasks; ++i) task(i, worker);
    return;
  }
  const WordLock lock(caller_lock_);
  caller_.store(this_thread(), std::memory_order_relaxed);
  if (n_tasks == 1 || n_active_ == 1) {
    for (Index i = 0; i < n_tasks; ++i) task(i, 0);
  } else {
    fork_join(n_tasks, task);
  }
  caller_.store(0, std::memory_order_relaxed);
}

NIBBLE_INLINE void ThreadPool::fork_join(Index n_tasks, Task task) noexcept {
  const Index first = piece(n_tasks);  // the caller's own tasks, not claimed
  task_ = task;
  n_tasks_ = n_tasks;
  unfinished_.store(n_tasks, std::memory_order_relaxed);
  left_.store(n_tasks - first);
  wake((std::min)(n_tasks - first, n_active_ - 1));
  for (Index i = 0; i < first; ++i) task(i, 0);
  const Index n_done = first + run_tasks(0);
  if (unfinished_.fetch_sub(n_done) != n_done) join();
}

// Claims and runs tasks until none is left; returns how many it ran.
NIBBLE_INLINE Index ThreadPool::run_tasks(Index worker) noexcept {
  Index n_done = 0;
  Index left = left_.load(std::memory_order_relaxed);
  while (left > 0) {
    const Index n = piece(left);
    if (!left_.compare_exchange_weak(left, left - n, std::memory_order_acquire,
                                     std::memory_order_relaxed)) {
      continue;
    }
    const Index begin = n_tasks_ - left;
    const Task task = task_;
    for (Index i = begin; i < begin + n; ++i) task(i, worker);
    n_done += n;
    left -= n;  // a guess; the next claim corrects it
  }
  return n_done;
}

// Called when a helper's tasks are done. Sequentially consistent with join(): either the caller
// sees that no task is unfinished, or this function sees that the caller sleeps.
NIBBLE_INLINE void ThreadPool::finish(Index n_done) noexcept {
  if (unfinished_.fetch_sub(n_done) != n_done) return;
  if (is_joiner_asleep_.load() == 0) return;
  is_joiner_asleep_.store(0);
  wake_one(is_joiner_asleep_);
}

NIBBLE_INLINE void ThreadPool::join() noexcept {
  if (spin([this] { return unfinished_.load(std::memory_order_acquire) == 0; })) return;
  for (;;) {
    is_joiner_asleep_.store(1);
    if (unfinished_.load() == 0) break;
    sleep_while(is_joiner_asleep_,
                1);  // a finish() of an earlier job may wake it too early: check again
  }
  is_joiner_asleep_.store(0);
}

// Makes sure that n_wanted helpers are awake. Sequentially consistent with park(): either the
// helper sees left_, or this function sees that the helper sleeps.
NIBBLE_INLINE void ThreadPool::wake(Index n_wanted) noexcept {
  std::int32_t asleep = asleep_.load();
  Index n = 0;
  do {
    const Index n_awake = n_helpers_ - asleep;
    n = std::min<Index>(n_wanted - n_awake, asleep);
    if (n <= 0) return;
  } while (!asleep_.compare_exchange_weak(asleep, asleep - static_cast<std::int32_t>(n)));
  permits_.fetch_add(static_cast<std::uint32_t>(n));
  if (n == n_helpers_) {
    wake_all(permits_);
  } else {
    for (; n > 0; --n) wake_one(permits_);
  }
}

NIBBLE_INLINE void ThreadPool::park() noexcept {
  asleep_.fetch_add(1);
  if (left_.load() != 0) {  // work came meanwhile: uncount this helper, if no caller did
    std::int32_t asleep = asleep_.load();
    while (asleep > 0) {
      if (asleep_.compare_exchange_weak(asleep, asleep - 1)) return;
    }
  }
  std::uint32_t permits = permits_.load();
  for (;;) {
    if (permits == 0) {
      sleep_while(permits_, 0);
      permits = permits_.load();
    } else if (permits_.compare_exchange_weak(permits, permits - 1)) {
      return;
    }
  }
}

// The main loop of a helper thread.
NIBBLE_INLINE void ThreadPool::help(Index worker) noexcept {
  const int cpu = helpers_[worker - 1].cpu;
  if (cpu >= 0 && !pin_this_thread(cpu)) pin_failed_.store(true);
  helpers_[worker - 1].id = this_thread();
  if (n_starting_.fetch_sub(1) == 1) wake_one(n_starting_);
  for (;;) {
    const auto has_work = [this] { return left_.load(std::memory_order_relaxed) != 0; };
    // If more helpers are awake than can run, spinning would take time from those that work.
    const bool may_spin = n_helpers_ - asleep_.load(std::memory_order_relaxed) < n_active_;
    if (!(may_spin ? spin(has_work) : has_work())) park();
    if (left_.load(std::memory_order_relaxed) < 0) return;
    if (const Index n_done = run_tasks(worker); n_done > 0) finish(n_done);
  }
}

}}  // namespace nibble::NIBBLE_ABI
