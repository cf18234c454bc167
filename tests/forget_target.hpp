// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace test {

// Resets the program to the state before a SIMD target was chosen. It is in instances.cpp
// because the choice is not part of the split form's declarations.
void forget_target();

}  // namespace test
