// SPDX-License-Identifier: Apache-2.0
//
// A separate file, so that the compiler cannot see into the replaced operator new while it checks
// that memory from new goes to delete.
#include "largest_allocation.hpp"

#include <algorithm>
#include <cstdlib>
#include <new>

#include "nibble/core/config.hpp"

namespace test {

thread_local std::size_t largest_allocation = 0;
thread_local std::size_t buffer_bytes = 0;
thread_local std::size_t buffer_peak = 0;

}  // namespace test

namespace {

// The size is kept in front of the memory, in `alignment` bytes of its own.
void* allocate(std::size_t size, std::size_t alignment) noexcept {
  test::largest_allocation = std::max(test::largest_allocation, size);
  const std::size_t rounded =
      (std::max<std::size_t>(size, 1) + alignment - 1) / alignment * alignment;
  void* const p = std::aligned_alloc(alignment, alignment + rounded);
  if (p == nullptr) return nullptr;
  *static_cast<std::size_t*>(p) = size;
  test::buffer_bytes += size;
  test::buffer_peak = std::max(test::buffer_peak, test::buffer_bytes);
  return static_cast<char*>(p) + alignment;
}

void release(void* memory, std::align_val_t alignment) noexcept {
  if (memory == nullptr) return;
  void* const p = static_cast<char*>(memory) - static_cast<std::size_t>(alignment);
  test::buffer_bytes -= *static_cast<std::size_t*>(p);
  std::free(p);
}

}  // namespace

void* operator new(std::size_t size) {
  test::largest_allocation = std::max(test::largest_allocation, size);
  if (void* p = std::malloc(size == 0 ? 1 : size)) return p;
#if NIBBLE_HAS_EXCEPTIONS
  throw std::bad_alloc();
#else
  std::abort();
#endif
}
void* operator new[](std::size_t size) { return operator new(size); }
// The overload that the library's own buffers use.
void* operator new(std::size_t size, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return allocate(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t a) noexcept { release(p, a); }
void operator delete(void* p, std::size_t, std::align_val_t a) noexcept { release(p, a); }
