// SPDX-License-Identifier: Apache-2.0
//
// Counts the calls of operator new in a test program that links allocation_counter.cpp, on all
// threads. Sizes that no machine at hand has are refused, also where a sanitizer would stop.
#pragma once

// Clang links its thread sanitizer's own operator new, which cannot be replaced.
#define NIBBLE_TEST_COUNTS_ALLOCATIONS 1
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#undef NIBBLE_TEST_COUNTS_ALLOCATIONS
#define NIBBLE_TEST_COUNTS_ALLOCATIONS 0
#endif
#endif

// Since the start of the program; always 0 where the calls cannot be counted.
long long allocation_count() noexcept;
