// SPDX-License-Identifier: Apache-2.0
#include "allocation_counter.hpp"

#if NIBBLE_TEST_COUNTS_ALLOCATIONS

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace {

std::atomic<long long> n_allocations{0};
constexpr std::size_t kMaxBytes = std::size_t{1} << 36;

void* allocate(std::size_t bytes) noexcept {
  n_allocations.fetch_add(1, std::memory_order_relaxed);
  if (bytes > kMaxBytes) return nullptr;
  return std::malloc(bytes == 0 ? 1 : bytes);
}

void* allocate(std::size_t bytes, std::align_val_t alignment) noexcept {
  n_allocations.fetch_add(1, std::memory_order_relaxed);
  const auto a = static_cast<std::size_t>(alignment);
  if (bytes > kMaxBytes) return nullptr;
  return std::aligned_alloc(a, (bytes + a - 1) / a * a);
}

void* or_abort(void* memory) {  // tests are also built without exceptions
  if (memory == nullptr) std::abort();
  return memory;
}

}  // namespace

long long allocation_count() noexcept { return n_allocations.load(); }

// The array operators and the other nothrow operators of the standard library call these.
void* operator new(std::size_t bytes) { return or_abort(allocate(bytes)); }
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return allocate(bytes); }
void* operator new(std::size_t bytes, std::align_val_t a) { return or_abort(allocate(bytes, a)); }
void* operator new(std::size_t bytes, std::align_val_t a, const std::nothrow_t&) noexcept {
  return allocate(bytes, a);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

#else

long long allocation_count() noexcept { return 0; }

#endif
