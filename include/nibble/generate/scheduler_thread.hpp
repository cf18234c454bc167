// SPDX-License-Identifier: Apache-2.0
//
// A thread that steps a scheduler whenever there are requests.
#pragma once

#include <new>
#include <string>

#include "nibble/core/native_thread.hpp"
#include "nibble/core/owned.hpp"
#include "nibble/core/result.hpp"
#include "nibble/generate/scheduler.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

class SchedulerThread {
 public:
  // The scheduler must stay where it is until this object is destroyed, and nothing else may step
  // it. Errors: io (the system gives no more threads), out_of_memory.
  static Result<SchedulerThread> start(Scheduler& scheduler) {
    SchedulerThread made;
    made.thread_ = Owned<NativeThread>(new (std::nothrow) NativeThread);
    if (!made.thread_) return Error{Errc::out_of_memory, "a scheduler's thread"};
    const int error = made.thread_->start(
        [](void* argument) noexcept {
          auto* const stepped = static_cast<Scheduler*>(argument);
          while (stepped->wait_for_work()) stepped->step();
        },
        &scheduler);
    if (error != 0) {
      return Error{Errc::io, "scheduler: a thread did not start: system error " + to_text(error)};
    }
    made.scheduler_ = &scheduler;
    return made;
  }
  SchedulerThread(SchedulerThread&& other) noexcept = default;
  SchedulerThread& operator=(SchedulerThread&&) = delete;
  // Stops the scheduler and waits for the end of its step. Requests that have not ended then end
  // with the scheduler, cancelled; to have them all answered, wait for them before.
  ~SchedulerThread() {
    if (!thread_ || scheduler_ == nullptr) return;
    scheduler_->stop();
    thread_->join();
  }

 private:
  SchedulerThread() noexcept = default;

  Owned<NativeThread> thread_;
  Scheduler* scheduler_ = nullptr;
};

}}  // namespace nibble::NIBBLE_ABI
