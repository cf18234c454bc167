// SPDX-License-Identifier: Apache-2.0
//
// Must not compile in the split form: the first of nibble's headers has already decided that this
// file sees only declarations.
#include "nibble/core/view.hpp"

#define NIBBLE_IMPLEMENTATION
#include "nibble/nibble.hpp"
