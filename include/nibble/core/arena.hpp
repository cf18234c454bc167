// SPDX-License-Identifier: Apache-2.0
//
// AlignedBuffer: one owned block of memory. Arena: allocates aligned arrays from one block, in
// order. A session allocates all the memory it will ever need this way, before the first token.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <span>
#include <type_traits>
#include <utility>

#include "nibble/core/result.hpp"

#if NIBBLE_HAS_MMAP
#include <sys/mman.h>
#endif

namespace nibble { inline namespace NIBBLE_ABI {

// Alignment for every vector load, and the size of a cache line: 64 bytes.
inline constexpr std::size_t kAlignment = 64;

// The largest object that a program can have. Sizes are computed in 64 bits and compared with it.
inline constexpr std::int64_t kMaxBytes = (std::numeric_limits<std::ptrdiff_t>::max)();

constexpr std::size_t align_up(std::size_t n, std::size_t alignment = kAlignment) noexcept {
  return (n + alignment - 1) / alignment * alignment;
}

// Owned, zeroed bytes, aligned to kAlignment. Never throws: a failed allocation is an Error. Where
// the system has mmap, a large buffer is in pages of the system that hold nothing else. On Linux it uses 2
// MiB pages where the system has them: weights are read once per token, and with 4 KiB pages there
// would be a TLB miss every 4 KiB.
class AlignedBuffer {
 public:
  AlignedBuffer() noexcept = default;
  AlignedBuffer(AlignedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~AlignedBuffer() { release(data_, size_); }

  static Result<AlignedBuffer> allocate(std::size_t bytes) {
    AlignedBuffer buffer;
    if (bytes == 0) return buffer;
    if (bytes <= static_cast<std::size_t>(kMaxBytes) - 2 * kHugePage) buffer.data_ = take(bytes);
    if (buffer.data_ == nullptr) {
      return Error{Errc::out_of_memory, "cannot allocate " + to_text(bytes) + " bytes"};
    }
    buffer.size_ = bytes;
    return buffer;
  }

  // At least so many bytes, in pages of the system that hold nothing else, so that parts of a file
  // can take their place (io::MappedFile::place). What is not used of them takes no memory. Errors:
  // out_of_memory, unsupported (no mmap).
  static Result<AlignedBuffer> allocate_pages(std::size_t bytes) {
    const std::size_t least = (std::max)(bytes, 2 * kHugePage);
    if (!is_mapped(least)) return Error{Errc::unsupported, "memory in pages of the system"};
    return allocate(least);
  }

  std::byte* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  std::span<std::byte> bytes() const noexcept { return {data_, size_}; }

 private:
  static constexpr std::size_t kHugePage = std::size_t{2} << 20;
  static constexpr std::size_t kLargestPage = std::size_t{64} << 10;  // ARM: largest normal page

#if NIBBLE_HAS_MMAP
  static bool is_mapped(std::size_t bytes) noexcept { return bytes >= 2 * kHugePage; }

  // Maps fresh pages, which are zero without being touched. The mapping starts at a huge-page
  // boundary; the surplus before and after it is unmapped at once.
  static std::byte* map(std::size_t bytes) noexcept {
    const std::size_t length = align_up(bytes, kLargestPage);
    void* const p = ::mmap(nullptr, length + kHugePage, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return nullptr;
    auto* const begin = static_cast<std::byte*>(p);
    const std::size_t before = align_up(reinterpret_cast<std::uintptr_t>(begin), kHugePage) -
                               reinterpret_cast<std::uintptr_t>(begin);
    if (before > 0) ::munmap(begin, before);
    if (before < kHugePage) ::munmap(begin + before + length, kHugePage - before);
#if defined(__linux__)
    ::madvise(begin + before, length, MADV_HUGEPAGE);  // a hint; small pages work as well
#endif
    return begin + before;
  }
  static void unmap(std::byte* data, std::size_t bytes) noexcept {
    ::munmap(data, align_up(bytes, kLargestPage));
  }
#else
  static bool is_mapped(std::size_t) noexcept { return false; }
  static std::byte* map(std::size_t) noexcept { return nullptr; }
  static void unmap(std::byte*, std::size_t) noexcept {}
#endif

  static std::byte* take(std::size_t bytes) noexcept {
    if (is_mapped(bytes)) return map(bytes);
    void* const p = ::operator new (align_up(bytes), std::align_val_t{kAlignment}, std::nothrow);
    if (p != nullptr) std::memset(p, 0, align_up(bytes));
    return static_cast<std::byte*>(p);
  }
  static void release(std::byte* data, std::size_t bytes) noexcept {
    if (data == nullptr) return;
    if (is_mapped(bytes)) {
      unmap(data, bytes);
    } else {
      ::operator delete (data, std::align_val_t{kAlignment});
    }
  }

  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// Allocates arrays from a block of memory, in order, each aligned to kAlignment. Does not own the
// block. If the block itself is not aligned, its first bytes are skipped.
class Arena {
 public:
  Arena() noexcept = default;
  explicit Arena(std::span<std::byte> memory) noexcept {
    const std::size_t past = reinterpret_cast<std::uintptr_t>(memory.data()) % kAlignment;
    const std::size_t skip = past == 0 ? 0 : kAlignment - past;
    if (skip <= memory.size()) memory_ = memory.subspan(skip);
  }

  // Returns `count` objects of T, uninitialized, or nullptr when the arena is full.
  template <class T>
  T* take(std::size_t count) noexcept {
    static_assert(std::is_trivially_destructible_v<T> && alignof(T) <= kAlignment);
    if (count > (memory_.size() - used_) / sizeof(T)) return nullptr;
    T* const piece = reinterpret_cast<T*>(memory_.data() + used_);
    used_ = align_up(used_ + count * sizeof(T));
    if (used_ > memory_.size()) used_ = memory_.size();
    return piece;
  }

  std::size_t used() const noexcept { return used_; }
  std::size_t size() const noexcept { return memory_.size(); }
  void reset() noexcept { used_ = 0; }

 private:
  std::span<std::byte> memory_;
  std::size_t used_ = 0;
};

}}  // namespace nibble::NIBBLE_ABI
