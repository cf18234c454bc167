// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace test {

// The program is as if no SIMD target had been chosen yet. In implementation.cpp: the choice is no
// part of the split form's declarations.
void forget_target();

}  // namespace test
