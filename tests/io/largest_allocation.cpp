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

}  // namespace test

namespace {

void* allocate(std::size_t size, std::size_t alignment) noexcept {
  test::largest_allocation = std::max(test::largest_allocation, size);
  return std::aligned_alloc(
      alignment, (std::max<std::size_t>(size, 1) + alignment - 1) / alignment * alignment);
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
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
