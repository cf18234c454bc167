// SPDX-License-Identifier: Apache-2.0
//
// Loads models of the architectures that load() leaves out unless it is told so: compiled apart, so
// that the test that uses them need not compile load() as well.
#pragma once

#include "nibble/model/model.hpp"

namespace test {

nibble::Result<nibble::Model> load_rare(const nibble::io::Gguf& file,
                                        const nibble::LoadOptions& options);

}  // namespace test
