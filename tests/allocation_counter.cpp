// SPDX-License-Identifier: Apache-2.0
#include "allocation_counter.hpp"

#if NIBBLE_TEST_COUNTS_ALLOCATIONS

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

#include "nibble/core/config.hpp"

namespace {

constexpr long long kNever = std::numeric_limits<long long>::max();
std::atomic<long long> n_allocations{0};
std::atomic<long long> n_bytes{0};
std::atomic<long long> first_failing{kNever};
std::atomic<long long> last_failing{kNever};
constexpr std::size_t kMaxBytes = std::size_t{1} << 36;

// Counts a call; whether it must fail.
bool fails(std::size_t bytes) noexcept {
  const long long n = n_allocations.fetch_add(1, std::memory_order_relaxed) + 1;
  return bytes > kMaxBytes || (n >= first_failing && n <= last_failing);
}

constexpr std::align_val_t kUsual{__STDCPP_DEFAULT_NEW_ALIGNMENT__};

// The size of a block is stored in front of it, in as many bytes as it is aligned to.
void* allocate(std::size_t bytes, std::align_val_t alignment) noexcept {
  const auto a = static_cast<std::size_t>(alignment);
  if (fails(bytes)) return nullptr;
  void* const base = std::aligned_alloc(a, (bytes + a - 1) / a * a + a);
  if (base == nullptr) return nullptr;
  std::memcpy(base, &bytes, sizeof(bytes));
  n_bytes.fetch_add(static_cast<long long>(bytes), std::memory_order_relaxed);
  return static_cast<char*>(base) + a;
}

void release(void* memory, std::align_val_t alignment) noexcept {
  if (memory == nullptr) return;
  void* const base = static_cast<char*>(memory) - static_cast<std::size_t>(alignment);
  std::size_t bytes = 0;
  std::memcpy(&bytes, base, sizeof(bytes));
  n_bytes.fetch_sub(static_cast<long long>(bytes), std::memory_order_relaxed);
  std::free(base);
}

void* or_throw(void* memory) {
  if (memory != nullptr) return memory;
#if NIBBLE_HAS_EXCEPTIONS
  throw std::bad_alloc();
#else
  std::abort();
#endif
}

}  // namespace

long long allocation_count() noexcept { return n_allocations.load(); }
long long allocated_bytes() noexcept { return n_bytes.load(); }

FailingAllocations::FailingAllocations(long long n, bool all) noexcept : first_(n_allocations + n) {
  last_failing = all ? kNever : first_;
  first_failing = first_;
}
FailingAllocations::~FailingAllocations() { first_failing = last_failing = kNever; }
bool FailingAllocations::happened() const noexcept { return n_allocations >= first_; }

// The array operators and the other nothrow operators of the standard library call these.
void* operator new(std::size_t bytes) { return or_throw(allocate(bytes, kUsual)); }
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  return allocate(bytes, kUsual);
}
void* operator new(std::size_t bytes, std::align_val_t a) { return or_throw(allocate(bytes, a)); }
void* operator new(std::size_t bytes, std::align_val_t a, const std::nothrow_t&) noexcept {
  return allocate(bytes, a);
}
void operator delete(void* memory) noexcept { release(memory, kUsual); }
void operator delete(void* memory, std::size_t) noexcept { release(memory, kUsual); }
void operator delete(void* memory, std::align_val_t a) noexcept { release(memory, a); }
void operator delete(void* memory, std::size_t, std::align_val_t a) noexcept { release(memory, a); }

#else

long long allocation_count() noexcept { return 0; }
long long allocated_bytes() noexcept { return 0; }
FailingAllocations::FailingAllocations(long long n, bool) noexcept : first_(n) {}
FailingAllocations::~FailingAllocations() = default;
bool FailingAllocations::happened() const noexcept { return first_ < 0; }

#endif
