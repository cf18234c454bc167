// SPDX-License-Identifier: Apache-2.0
#include "allocation_counter.hpp"

#if NIBBLE_TEST_COUNTS_ALLOCATIONS

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

std::atomic<long long> n_allocations{0}, n_bytes{0};
constexpr std::size_t kMaxBytes = std::size_t{1} << 36;

// The size of a block is stored in front of it, in `alignment` bytes.
void* allocate(std::size_t bytes, std::size_t alignment) noexcept {
  n_allocations.fetch_add(1, std::memory_order_relaxed);
  if (bytes > kMaxBytes) return nullptr;
  const std::size_t whole = (bytes + alignment - 1) / alignment * alignment + alignment;
  auto* const base = static_cast<char*>(std::aligned_alloc(alignment, whole));
  if (base == nullptr) return nullptr;
  std::memcpy(base, &bytes, sizeof(bytes));
  n_bytes.fetch_add(static_cast<long long>(bytes), std::memory_order_relaxed);
  return base + alignment;
}

void release(void* memory, std::size_t alignment) noexcept {
  if (memory == nullptr) return;
  char* const base = static_cast<char*>(memory) - alignment;
  std::size_t bytes = 0;
  std::memcpy(&bytes, base, sizeof(bytes));
  n_bytes.fetch_sub(static_cast<long long>(bytes), std::memory_order_relaxed);
  std::free(base);
}

constexpr std::size_t kUsual = __STDCPP_DEFAULT_NEW_ALIGNMENT__;
constexpr std::size_t of(std::align_val_t a) { return static_cast<std::size_t>(a); }

void* or_abort(void* memory) {  // tests are also built without exceptions
  if (memory == nullptr) std::abort();
  return memory;
}

}  // namespace

long long allocation_count() noexcept { return n_allocations.load(); }
long long allocated_bytes() noexcept { return n_bytes.load(); }

// The array operators and the other nothrow operators of the standard library call these.
void* operator new(std::size_t bytes) { return or_abort(allocate(bytes, kUsual)); }
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  return allocate(bytes, kUsual);
}
void* operator new(std::size_t bytes, std::align_val_t a) {
  return or_abort(allocate(bytes, of(a)));
}
void* operator new(std::size_t bytes, std::align_val_t a, const std::nothrow_t&) noexcept {
  return allocate(bytes, of(a));
}
void operator delete(void* memory) noexcept { release(memory, kUsual); }
void operator delete(void* memory, std::size_t) noexcept { release(memory, kUsual); }
void operator delete(void* memory, std::align_val_t a) noexcept { release(memory, of(a)); }
void operator delete(void* memory, std::size_t, std::align_val_t a) noexcept {
  release(memory, of(a));
}

#else

long long allocation_count() noexcept { return 0; }
long long allocated_bytes() noexcept { return 0; }

#endif
