// SPDX-License-Identifier: Apache-2.0
#include "allocation_counter.hpp"

#if NIBBLE_TEST_COUNTS_ALLOCATIONS

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <limits>
#include <new>

#include "nibble/core/config.hpp"

namespace {

constexpr long long kNever = std::numeric_limits<long long>::max();
std::atomic<long long> n_allocations{0};
std::atomic<long long> first_failing{kNever};
std::atomic<long long> last_failing{kNever};
constexpr std::size_t kMaxBytes = std::size_t{1} << 36;

// Counts a call; whether it must fail.
bool fails(std::size_t bytes) noexcept {
  const long long n = n_allocations.fetch_add(1, std::memory_order_relaxed) + 1;
  return bytes > kMaxBytes || (n >= first_failing && n <= last_failing);
}

void* allocate(std::size_t bytes) noexcept {
  return fails(bytes) ? nullptr : std::malloc(bytes == 0 ? 1 : bytes);
}

void* allocate(std::size_t bytes, std::align_val_t alignment) noexcept {
  const auto a = static_cast<std::size_t>(alignment);
  return fails(bytes) ? nullptr : std::aligned_alloc(a, (bytes + a - 1) / a * a);
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

FailingAllocations::FailingAllocations(long long n, bool all) noexcept : first_(n_allocations + n) {
  last_failing = all ? kNever : first_;
  first_failing = first_;
}
FailingAllocations::~FailingAllocations() { first_failing = last_failing = kNever; }
bool FailingAllocations::happened() const noexcept { return n_allocations >= first_; }

// The array operators and the other nothrow operators of the standard library call these.
void* operator new(std::size_t bytes) { return or_throw(allocate(bytes)); }
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return allocate(bytes); }
void* operator new(std::size_t bytes, std::align_val_t a) { return or_throw(allocate(bytes, a)); }
void* operator new(std::size_t bytes, std::align_val_t a, const std::nothrow_t&) noexcept {
  return allocate(bytes, a);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

#else

long long allocation_count() noexcept { return 0; }
FailingAllocations::FailingAllocations(long long n, bool) noexcept : first_(n) {}
FailingAllocations::~FailingAllocations() = default;
bool FailingAllocations::happened() const noexcept { return first_ < 0; }

#endif
