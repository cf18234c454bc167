// SPDX-License-Identifier: Apache-2.0
//
// In a file of its own, so that the compiler does not look into a replaced operator new while it
// checks that what new gave goes to delete.
#include "largest_allocation.hpp"

#include <algorithm>
#include <cstdlib>
#include <new>

#include "nibble/core/config.hpp"

namespace test {

thread_local std::size_t largest_allocation = 0;

}  // namespace test

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
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }
