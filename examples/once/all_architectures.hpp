// SPDX-License-Identifier: Apache-2.0
//
// load<AllFormats, AllArchitectures>(): in the split form it is compiled once, in all_architectures.cpp,
// for all programs that need the rare architectures too.
#pragma once

#include "nibble/model/all_architectures.hpp"

#define EXAMPLE_LOAD(Instance)                                                                  \
  Instance nibble::Result<nibble::Model>                                                        \
  nibble::Model::from_gguf<nibble::graph::AllFormats, nibble::AllArchitectures>(                \
      const nibble::io::Gguf&, const nibble::LoadOptions&);                                     \
  Instance nibble::Result<nibble::Model>                                                        \
  nibble::load<nibble::graph::AllFormats, nibble::AllArchitectures>(const std::string&,         \
                                                                    const nibble::LoadOptions&); \
  Instance nibble::Result<nibble::ModelMemory>                                                  \
  nibble::memory_needed<nibble::graph::AllFormats, nibble::AllArchitectures>(                   \
      const std::string&, const nibble::LoadOptions&);

#if defined(NIBBLE_SPLIT)
EXAMPLE_LOAD(extern template)
#endif
