// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdlib>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/compress/prune.hpp"
#include "nibble/io/gguf.hpp"
#include "why.hpp"

namespace test {

inline nibble::io::Gguf parse(std::span<const std::byte> bytes) {
  auto file = nibble::io::Gguf::parse(bytes, "memory.gguf");
  REQUIRE_MESSAGE(file, why(file));
  return *std::move(file);
}

inline std::vector<std::byte> pruned(const nibble::io::Gguf& file,
                                     const nibble::compress::PruneKeep& keep) {
  auto bytes = nibble::compress::prune_model(file, keep);
  REQUIRE_MESSAGE(bytes, why(bytes));
  return *std::move(bytes);
}

// The path of the bundled model.
inline std::string bundled() {
  const char* const folder = std::getenv("NIBBLE_PROJECT_DIR");
  REQUIRE_MESSAGE(folder != nullptr, "NIBBLE_PROJECT_DIR is not set");
  return std::string(folder) + "/examples/models/home-commands-f16.gguf";
}

}  // namespace test
