// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

namespace test {

// The largest single allocation of this thread since this was set to zero. The test program that
// links largest_allocation.cpp gets a replaced operator new.
extern thread_local std::size_t largest_allocation;

// Bytes of the buffers that are alive, and the most since this was set: those of the library's own
// buffers (core/arena.hpp) that are small enough not to be mapped.
extern thread_local std::size_t buffer_bytes;
extern thread_local std::size_t buffer_peak;

}  // namespace test
