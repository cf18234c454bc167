// SPDX-License-Identifier: Apache-2.0
#define NIBBLE_IMPLEMENTATION
#include "nibble/nibble.hpp"
