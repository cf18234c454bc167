// SPDX-License-Identifier: Apache-2.0
//
// How a caller follows a long operation, and cancels it.
#pragma once

#include <cstddef>

#include "nibble/core/callback.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// Called on the working thread with the amount that is done and the total (bytes, when a model is
// loaded). Returning false cancels.
using Progress = Callback<bool(std::size_t done, std::size_t total)>;

}}  // namespace nibble::NIBBLE_ABI
