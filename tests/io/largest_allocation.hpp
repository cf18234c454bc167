// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

namespace test {

// The largest single allocation of this thread since this was set to zero. The test program that
// links largest_allocation.cpp gets a replaced operator new.
extern thread_local std::size_t largest_allocation;

}  // namespace test
