// SPDX-License-Identifier: Apache-2.0
//
// Loads models of the architectures that load() leaves out unless it is told so.
#pragma once

#include "nibble/model/model.hpp"

namespace test {

nibble::Result<nibble::Model> load_rare(const nibble::io::Gguf& file,
                                        const nibble::LoadOptions& options);

}  // namespace test
