// SPDX-License-Identifier: Apache-2.0
//
// Counts the calls of operator new on all threads, in a test program that links
// allocation_counter.cpp, and lets them fail. Sizes that no machine at hand has are refused, even
// where a sanitizer would stop the program.
#pragma once

// Clang links its thread sanitizer's own operator new, which cannot be replaced.
#define NIBBLE_TEST_COUNTS_ALLOCATIONS 1
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#undef NIBBLE_TEST_COUNTS_ALLOCATIONS
#define NIBBLE_TEST_COUNTS_ALLOCATIONS 0
#endif
#endif

// Calls since the start of the program; always 0 where they cannot be counted.
long long allocation_count() noexcept;

// Bytes that were asked for and are not given back yet; always 0 where they cannot be counted.
long long allocated_bytes() noexcept;

// While it lives, calls of operator new fail from the n-th on (the next one is the first): that one
// alone, or all of them.
class FailingAllocations {
 public:
  FailingAllocations(long long n, bool all) noexcept;
  FailingAllocations(const FailingAllocations&) = delete;
  FailingAllocations& operator=(const FailingAllocations&) = delete;
  ~FailingAllocations();
  // Whether one has failed.
  bool happened() const noexcept;

 private:
  long long first_;
};
