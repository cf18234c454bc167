// SPDX-License-Identifier: Apache-2.0
#include "model/rare_architectures.hpp"

#include "examples/once/all_architectures.hpp"

nibble::Result<nibble::Model> test::load_rare(const nibble::io::Gguf& file,
                                              const nibble::LoadOptions& options) {
  return nibble::Model::from_gguf<nibble::graph::AllFormats, nibble::AllArchitectures>(file, options);
}
