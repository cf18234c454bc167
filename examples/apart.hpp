// SPDX-License-Identifier: Apache-2.0
//
// Runs work in a separate child process, so that its peak memory can be distinguished from that of
// other work. Where there is no fork(), it runs in this process, and the peak is unknown.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"

#if !defined(_WIN32)
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "common.hpp"

namespace example {

template <class T>
struct Apart {
  T value{};
  std::optional<std::uint64_t> peak_ram;  // see peak_ram(); includes the parent's RAM
};

#if defined(_WIN32)

template <class T, class Work>
nibble::Result<Apart<T>> run_apart(Work work) {
  NIBBLE_TRY(value, work());
  return Apart<T>{std::move(value), std::nullopt};
}

// Bytes that one child process writes and the next one reads.
class SharedBytes {
 public:
  static nibble::Result<SharedBytes> allocate(std::size_t capacity) {
    SharedBytes shared;
    shared.bytes_.resize(capacity);
    return shared;
  }
  std::span<std::byte> bytes() { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

#else

// Runs work() -> Result<T> in a child process. This process must have no other threads.
template <class T, class Work>
nibble::Result<Apart<T>> run_apart(Work work) {
  static_assert(std::is_trivially_copyable_v<T>, "it comes through a pipe");
  struct Report {
    bool is_error = false;
    char error[500] = {};
    T value{};
    std::optional<std::uint64_t> peak_ram;
  };
  const nibble::Error broken{nibble::Errc::io, "a child process failed"};
  int ends[2];
  if (pipe(ends) != 0) return broken;
  std::fflush(stdout);  // otherwise the child would print it again
  const pid_t child = fork();
  if (child < 0) {
    close(ends[0]);
    close(ends[1]);
    return broken;
  }
  Report report;
  if (child == 0) {
    close(ends[0]);
    auto result = work();
    if (result) {
      report.value = *result;
    } else {
      report.is_error = true;
      std::snprintf(report.error, sizeof(report.error), "%s", result.error().message.c_str());
    }
    report.peak_ram = peak_ram();
    std::fflush(stdout);
    const bool is_sent = write(ends[1], &report, sizeof(report)) == sizeof(report);
    _exit(is_sent ? 0 : 1);
  }
  close(ends[1]);
  // The report is smaller than a pipe's buffer, and the child writes it in one call.
  std::size_t n = 0;
  for (;;) {
    const ssize_t got = read(ends[0], reinterpret_cast<char*>(&report) + n, sizeof(report) - n);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    n += static_cast<std::size_t>(got);
    if (n == sizeof(report)) break;
  }
  close(ends[0]);
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (n != sizeof(report)) return broken;
  if (report.is_error) return nibble::Error{nibble::Errc::io, report.error};
  return Apart<T>{report.value, report.peak_ram};
}

// Bytes that one child process writes and the next one reads. Only pages that are touched use
// memory, and only in the process that touches them.
class SharedBytes {
 public:
  static nibble::Result<SharedBytes> allocate(std::size_t capacity) {
    void* const data =
        mmap(nullptr, capacity, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
      return nibble::Error{nibble::Errc::out_of_memory, std::to_string(capacity) + " bytes"};
    }
    SharedBytes shared;
    shared.bytes_ = {static_cast<std::byte*>(data), capacity};
    return shared;
  }
  SharedBytes(SharedBytes&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
  SharedBytes& operator=(SharedBytes&&) = delete;
  ~SharedBytes() {
    if (!bytes_.empty()) munmap(bytes_.data(), bytes_.size());
  }
  std::span<std::byte> bytes() { return bytes_; }

 private:
  SharedBytes() = default;
  std::span<std::byte> bytes_;
};

#endif

}  // namespace example
