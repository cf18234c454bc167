// SPDX-License-Identifier: Apache-2.0
//
// Memory with a chosen page size: small pages, as for mapped files, or 2 MiB pages where the system
// provides them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <utility>

#include "nibble/core/arena.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace bench {

enum class Pages : std::uint8_t { small, huge };

constexpr const char* to_string(Pages pages) noexcept {
  return pages == Pages::small ? "small" : "huge";
}

inline constexpr std::size_t kHugePage = std::size_t{2} << 20;

// Owned, zeroed memory with every page present. On Linux it is aligned to kHugePage; elsewhere it
// has the system's pages and is aligned to nibble::kAlignment. If there is no memory, it ends the
// program, since a benchmark cannot go on without it.
class Memory {
 public:
  Memory() noexcept = default;
  Memory(std::size_t bytes, Pages pages) : size_(bytes) {
#if defined(__linux__)
    mapped_ = nibble::align_up(bytes, kHugePage) + kHugePage;
    base_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base_ == MAP_FAILED) fail(bytes);
    madvise(base_, mapped_, pages == Pages::huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    const auto address = reinterpret_cast<std::uintptr_t>(base_);
    data_ = static_cast<std::byte*>(base_) + (nibble::align_up(address, kHugePage) - address);
    std::memset(data_, 0, bytes);
#else
    (void)pages;
    auto buffer = nibble::AlignedBuffer::allocate(bytes);
    if (!buffer) fail(bytes);
    buffer_ = *std::move(buffer);
    data_ = buffer_.data();
#endif
  }
  Memory(Memory&& other) noexcept { *this = std::move(other); }
  Memory& operator=(Memory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(base_, other.base_);
    std::swap(mapped_, other.mapped_);
    std::swap(buffer_, other.buffer_);
    return *this;
  }
  ~Memory() {
#if defined(__linux__)
    if (base_ != nullptr) munmap(base_, mapped_);
#endif
  }

  std::byte* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  std::span<std::byte> bytes() const noexcept { return {data_, size_}; }
  template <class T>
  T* as() const noexcept {
    return reinterpret_cast<T*>(data_);
  }

 private:
  [[noreturn]] static void fail(std::size_t bytes) {
    std::fprintf(stderr, "benchmark: no memory for %zu bytes\n", bytes);
    std::exit(1);
  }

  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  void* base_ = nullptr;
  std::size_t mapped_ = 0;
  nibble::AlignedBuffer buffer_;
};

namespace detail {

// The number in a file that `format` finds first in one of its lines, or `fallback`.
inline std::size_t number_in_file(const char* path, const char* format, std::size_t fallback) {
  std::FILE* const file = std::fopen(path, "r");
  if (file == nullptr) return fallback;
  std::size_t number = 0;
  bool found = false;
  char line[256];
  while (!found && std::fgets(line, sizeof(line), file) != nullptr) {
    found = std::sscanf(line, format, &number) == 1;
  }
  std::fclose(file);
  return found ? number : fallback;
}

}  // namespace detail

// A value of /proc/self/status in bytes; 0 where there is none.
inline double status_bytes(const char* name) {
  const std::string format = std::string(name) + ": %zu kB";
  return 1024.0 *
         static_cast<double>(detail::number_in_file("/proc/self/status", format.c_str(), 0));
}

// Resets the peak of memory (VmHWM) to what is in use now; false where the system cannot (only
// Linux can).
inline bool reset_peak() {
  std::FILE* const file = std::fopen("/proc/self/clear_refs", "w");
  if (file == nullptr) return false;
  const bool written = std::fputs("5", file) >= 0;
  return std::fclose(file) == 0 && written;
}

// Bytes of this process on huge pages now; 0 where the system does not tell.
inline std::size_t bytes_on_huge_pages() {
  return 1024 * detail::number_in_file("/proc/self/smaps_rollup", "AnonHugePages: %zu kB", 0);
}

}  // namespace bench
