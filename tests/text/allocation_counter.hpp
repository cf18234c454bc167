// SPDX-License-Identifier: Apache-2.0
//
// Counts the allocations of this test program, to prove that some code makes none.
#pragma once

// Calls of operator new since the program began.
long long allocation_count() noexcept;
