// SPDX-License-Identifier: Apache-2.0
//
// ThreadPool: nibble's own Executor. A fork-join pool. While it is in use, a fork and a join cost a
// few cache-line transfers; while it is not, its threads sleep.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "nibble/core/executor.hpp"
#include "nibble/core/owned.hpp"
#include "nibble/core/result.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct ThreadPoolOptions {
  // Workers, including the calling thread. 0: one per physical core that this process may use
  // (affinity mask and container quota considered), or with `pin` one per entry of `cpus`.
  Index n_threads = 0;

  // Pin worker w > 0 to cpus[w % cpus.size()]. Worker 0 is the host's own thread and is not pinned;
  // a host that pins it uses cpus[0]. If `cpus` is empty: the CPUs that this process may use, one
  // of each physical core first.
  bool pin = false;
  std::vector<int> cpus = {};

  // How long an idle worker, or a caller that waits for the last task, spins before it sleeps. It
  // should be longer than the serial work between two calls, otherwise each call pays for waking
  // threads up. 0: sleep at once.
  Index spin_microseconds = 100;

  // How many workers can really run at once; 0: as many as the CPUs that this process may use.
  // Further workers stay asleep: they could only take time from the others.
  Index n_cpus = 0;
};

// A fork-join pool of threads. A call from inside a task, on the same pool, runs its tasks at once,
// on the worker of the calling task, which therefore shares its scratch memory with them. Calls
// from two host threads are safe and run one after the other. Tasks must not throw. Two pools whose
// tasks call into each other may deadlock. After fork(), the copy in the child has no threads: it
// runs everything on the caller, and can be destroyed. (If another thread was inside a call at that
// moment, the copy can only be destroyed.)
class ThreadPool final : public Executor {
 public:
  // (The declarations of virtual functions already say inline, for the header form. Otherwise the
  // compiler takes the first virtual function that is not inline for the class's key function, and
  // then puts all of them and the vtable into every object file.)

  static constexpr Index kMaxThreads = 1024;

  // Errors: invalid_argument (negative counts, a CPU that is not there), limit (n_threads above
  // kMaxThreads), unsupported (pin where the system cannot), io (the system gives no more threads),
  // out_of_memory.
  static Result<Owned<ThreadPool>> create(const ThreadPoolOptions& options = {});

  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  NIBBLE_INLINE ~ThreadPool() override;  // no call may be running

  Index n_workers() const noexcept override { return n_helpers_ + 1; }
  NIBBLE_INLINE void parallel_for(Index n_tasks, Task task) noexcept override;

 private:
  // 128: two cache lines on x86, which prefetches lines in pairs, and one on Apple's cores.
  static constexpr std::size_t kLine = 128;

  struct Helper;

  ThreadPool() noexcept = default;
  static Result<Owned<ThreadPool>> start(const ThreadPoolOptions& options);
  static void nothing(Index, Index) noexcept {}

  void fork_join(Index n_tasks, Task task) noexcept;
  Index run_tasks(Index worker) noexcept;
  void finish(Index n_done) noexcept;
  void join() noexcept;
  void wake(Index n_wanted) noexcept;
  void park() noexcept;
  void help(Index worker) noexcept;
  Index piece(Index left) const noexcept;
  template <class Done>
  bool spin(Done done) const noexcept;
  Index worker_of_this_thread() const noexcept;

  // Constant after create().
  std::int64_t spin_nanoseconds_ = 0;
  Index n_helpers_ = 0;
  Index n_active_ = 1;         // workers that can run at once
  Helper* helpers_ = nullptr;  // (n_helpers_)
  std::int64_t process_ = 0;

  // The job, in one cache line because a worker needs all of it. left_ counts the tasks not yet
  // claimed: the next task is n_tasks_ - left_. Negative: the pool is being destroyed. A thread
  // that lowers left_ owns the tasks it claimed, and a job with an unfinished task cannot end. So
  // task_ and n_tasks_ are read only after a claim and need not be atomic. A worker that is late
  // for one job claims tasks of the next one, or nothing; nobody ever waits for a worker that has
  // no task.
  alignas(kLine) std::atomic<Index> left_{0};
  Index n_tasks_ = 0;
  Task task_{nothing};

  alignas(kLine) std::atomic<Index> unfinished_{0};  // tasks not yet done, claimed or not
  std::atomic<std::uint32_t> is_joiner_asleep_{0};

  // asleep_ counts each sleeping helper until a caller uncounts it and adds a permit for it.
  alignas(kLine) std::atomic<std::int32_t> asleep_{0};
  std::atomic<std::uint32_t> permits_{0};

  alignas(kLine) std::atomic<std::uintptr_t> caller_{0};  // the thread that holds the lock, or 0
  std::atomic<std::uint32_t> caller_lock_{0};
  std::atomic<std::uint32_t> n_starting_{0};
  std::atomic<bool> pin_failed_{false};
};

}}  // namespace nibble::NIBBLE_ABI

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/core/thread_pool-inl.hpp"
#endif
