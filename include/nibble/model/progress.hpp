// SPDX-License-Identifier: Apache-2.0
//
// How a caller follows a long operation, and ends it.
#pragma once

#include <cstddef>

#include "nibble/core/executor.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// Called from the working thread with what is done of what there is in all (bytes, when a model is
// loaded); returning false cancels.
using Progress = FunctionRef<bool(std::size_t done, std::size_t total)>;

}}  // namespace nibble::NIBBLE_ABI
