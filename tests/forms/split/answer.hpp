// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include "nibble/nibble.hpp"

namespace split {

nibble::Result<std::string> answer(const nibble::Model& model, nibble::Executor& executor,
                                   std::string_view prompt);

// Typed operations on nibble's formats, and the program's own Highway pass beside nibble.
bool check_operations();

}  // namespace split
