// SPDX-License-Identifier: Apache-2.0
//
// NativeThread: a thread of the operating system that reports a failed start as a value.
// (std::thread throws, and without exceptions it ends the program.) Also sleeping until a word
// changes, a mutex of one word, the clock and the pause for spin loops.
#pragma once

#include <atomic>
#include <cstdint>
#include <initializer_list>

#include "nibble/core/config.hpp"

#if defined(_WIN32)
#include <process.h>

#include <cerrno>
#include <chrono>

#include "nibble/core/windows.hpp"
#else
#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>
#endif
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif
#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#endif

namespace nibble { inline namespace NIBBLE_ABI {

class NativeThread {
 public:
  using Entry = void (*)(void* argument) noexcept;

  NativeThread() noexcept = default;
  NativeThread(const NativeThread&) = delete;
  NativeThread& operator=(const NativeThread&) = delete;
  ~NativeThread() { NIBBLE_ASSERT(!started_); }  // must be joined before

  // Runs entry(argument) on a new thread. Returns 0, or the system's error number. Call it once;
  // the object must not move until join().
  int start(Entry entry, void* argument) noexcept;

  // Waits until the thread ends. Does nothing if no thread was started.
  void join() noexcept;

  // In place of join() in the child of a fork(), which has only the thread that forked.
  void forget() noexcept { started_ = false; }

 private:
  Entry entry_ = nullptr;
  void* argument_ = nullptr;
  bool started_ = false;
#if defined(_WIN32)
  static unsigned __stdcall run(void* self) noexcept {
    auto* const thread = static_cast<NativeThread*>(self);
    thread->entry_(thread->argument_);
    return 0;
  }
  void* handle_ = nullptr;
#else
  static void* run(void* self) noexcept {
    auto* const thread = static_cast<NativeThread*>(self);
    thread->entry_(thread->argument_);
    return nullptr;
  }
  pthread_t handle_{};
#endif
};

#if defined(_WIN32)

inline int NativeThread::start(Entry entry, void* argument) noexcept {
  entry_ = entry;
  argument_ = argument;
  const auto handle = _beginthreadex(nullptr, 0, &NativeThread::run, this, 0, nullptr);
  if (handle == 0) return errno != 0 ? errno : EAGAIN;
  handle_ = reinterpret_cast<void*>(handle);
  started_ = true;
  return 0;
}

inline void NativeThread::join() noexcept {
  if (!started_) return;
  WaitForSingleObject(handle_, 0xFFFFFFFFul);
  CloseHandle(handle_);
  started_ = false;
}

inline std::uintptr_t this_thread() noexcept { return GetCurrentThreadId(); }

inline std::int64_t this_process() noexcept { return GetCurrentProcessId(); }

// Sleeps for so long, or as the system rounds it.
inline void sleep_microseconds(std::int64_t n) noexcept {
  Sleep(static_cast<DWORD>((n + 999) / 1000));
}

#if !NIBBLE_ENCLAVE
inline std::int64_t monotonic_nanoseconds() noexcept {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}
#endif

#else

inline int NativeThread::start(Entry entry, void* argument) noexcept {
  entry_ = entry;
  argument_ = argument;
  // Blocks the signals that belong to the host's threads: all except those that a thread causes
  // itself and the profiler's.
  sigset_t blocked, before;
  sigfillset(&blocked);
  for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS, SIGPROF}) {
    sigdelset(&blocked, signal);
  }
  const bool is_blocked = pthread_sigmask(SIG_SETMASK, &blocked, &before) == 0;
  const int error = pthread_create(&handle_, nullptr, &NativeThread::run, this);
  if (is_blocked) pthread_sigmask(SIG_SETMASK, &before, nullptr);
  started_ = error == 0;
  return error;
}

inline void NativeThread::join() noexcept {
  if (started_) pthread_join(handle_, nullptr);
  started_ = false;
}

// A number that no other living thread of this process has; never 0.
inline std::uintptr_t this_thread() noexcept {
  static_assert(sizeof(pthread_t) == sizeof(std::uintptr_t));
  return __builtin_bit_cast(std::uintptr_t, pthread_self());
}

// The number of this process. The child of a fork() has another one.
inline std::int64_t this_process() noexcept { return getpid(); }

// Sleeps for so long, or less if a signal comes.
inline void sleep_microseconds(std::int64_t n) noexcept {
  timespec time{};
  const auto set = []<class T>(T& to, std::int64_t from) { to = static_cast<T>(from); };
  set(time.tv_sec, n / 1'000'000);
  set(time.tv_nsec, n % 1'000'000 * 1000);
  nanosleep(&time, nullptr);
}

#if !NIBBLE_ENCLAVE
inline std::int64_t monotonic_nanoseconds() noexcept {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);  // <chrono> costs more to include than the thread pool
  return std::int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}
#endif

#endif

#if NIBBLE_ENCLAVE
inline std::int64_t monotonic_nanoseconds() noexcept { return 0; }
#endif

// Sleeps while the word has this value; may also return for no reason. wake_one() and wake_all()
// end the sleep of threads that sleep on it. (On Linux not atomic::wait(): the table that libstdc++
// keeps for it is a symbol that pins a plug-in in memory, see NIBBLE_HIDDEN.)
#if NIBBLE_ENCLAVE
inline void sleep_while(std::atomic<std::uint32_t>&, std::uint32_t) noexcept {}
inline void wake_one(std::atomic<std::uint32_t>&) noexcept {}
inline void wake_all(std::atomic<std::uint32_t>&) noexcept {}
#elif defined(__linux__) && defined(SYS_futex)
inline void sleep_while(std::atomic<std::uint32_t>& word, std::uint32_t value) noexcept {
  static_assert(sizeof(word) == sizeof(std::uint32_t));
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr);
}
inline void wake_one(std::atomic<std::uint32_t>& word) noexcept {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1);
}
inline void wake_all(std::atomic<std::uint32_t>& word) noexcept {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 0x7FFFFFFF);
}
#else
inline void sleep_while(std::atomic<std::uint32_t>& word, std::uint32_t value) noexcept {
  word.wait(value);
}
inline void wake_one(std::atomic<std::uint32_t>& word) noexcept { word.notify_one(); }
inline void wake_all(std::atomic<std::uint32_t>& word) noexcept { word.notify_all(); }
#endif

// Holds a mutex of one such word while it lives: 0 free, 1 held, 2 held and waited for.
class WordLock {
 public:
  explicit WordLock(std::atomic<std::uint32_t>& word) noexcept : word_(word) {
    std::uint32_t state = 0;
    if (word_.compare_exchange_strong(state, 1, std::memory_order_acquire)) return;
    while (word_.exchange(2, std::memory_order_acquire) != 0) sleep_while(word_, 2);
  }
  ~WordLock() {
    if (word_.exchange(0) == 2) wake_one(word_);
  }
  WordLock(const WordLock&) = delete;
  WordLock& operator=(const WordLock&) = delete;

 private:
  std::atomic<std::uint32_t>& word_;
};

// Tells the core that this is a spin loop: saves power and lets the sibling hardware thread run.
inline void cpu_relax() noexcept {
#if defined(_MSC_VER) && !defined(__clang__)
#if defined(_M_X64) || defined(_M_IX86)
  _mm_pause();
#else
  __yield();
#endif
#elif defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
  __asm__ __volatile__("yield" ::: "memory");
#endif
}

}}  // namespace nibble::NIBBLE_ABI
