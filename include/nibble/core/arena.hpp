// SPDX-License-Identifier: Apache-2.0
//
// AlignedBuffer: one owned block of memory. Arena: hands out aligned pieces of one in order; a
// session allocates everything it will ever need this way, before the first token.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <span>
#include <type_traits>
#include <utility>

#include "nibble/core/result.hpp"

namespace nibble::inline NIBBLE_ABI {

// Enough for every vector load and for a cache line: 64 bytes.
inline constexpr std::size_t kAlignment = 64;

constexpr std::size_t align_up(std::size_t n, std::size_t alignment = kAlignment) noexcept {
  return (n + alignment - 1) / alignment * alignment;
}

// Owned, zeroed bytes, aligned to kAlignment. Never throws: an allocation that fails is an Error.
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
  ~AlignedBuffer() { ::operator delete (data_, std::align_val_t{kAlignment}); }

  static Result<AlignedBuffer> allocate(std::size_t bytes) {
    AlignedBuffer buffer;
    if (bytes == 0) return buffer;
    if (bytes > static_cast<std::size_t>(std::numeric_limits<std::ptrdiff_t>::max()) - kAlignment) {
      return Error{Errc::out_of_memory, std::to_string(bytes) + " bytes"};
    }
    buffer.data_ = static_cast<std::byte*>(
        ::operator new (align_up(bytes), std::align_val_t{kAlignment}, std::nothrow));
    if (buffer.data_ == nullptr) {
      return Error{Errc::out_of_memory, std::to_string(bytes) + " bytes"};
    }
    std::memset(buffer.data_, 0, align_up(bytes));
    buffer.size_ = bytes;
    return buffer;
  }

  std::byte* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  std::span<std::byte> bytes() const noexcept { return {data_, size_}; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// Pieces of a block of memory, each aligned to kAlignment, in order. Does not own the block; of one
// that is not aligned itself, it leaves out the first bytes.
class Arena {
 public:
  Arena() noexcept = default;
  explicit Arena(std::span<std::byte> memory) noexcept {
    const std::size_t past = reinterpret_cast<std::uintptr_t>(memory.data()) % kAlignment;
    const std::size_t skip = past == 0 ? 0 : kAlignment - past;
    if (skip <= memory.size()) memory_ = memory.subspan(skip);
  }

  // `count` objects of T, uninitialized, or nullptr when the arena is full.
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

}  // namespace nibble::inline NIBBLE_ABI
