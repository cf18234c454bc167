// SPDX-License-Identifier: Apache-2.0
//
// Writes a model as several files, as llama-gguf-split does: the metadata in the first one, the
// tensors distributed over all.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "io/file_builder.hpp"
#include "nibble/io/gguf_writer.hpp"

namespace test {

inline std::string split_name(std::string prefix, unsigned index, unsigned n_parts) {
  char ending[32];
  std::snprintf(ending, sizeof(ending), "-%05u-of-%05u.gguf", index + 1, n_parts);
  return prefix += ending;
}

// The part `index` of `n_parts`; the tests change what it says about the set.
inline nibble::io::GgufWriter split_part(const nibble::io::Gguf& whole, unsigned index,
                                         unsigned n_parts) {
  nibble::io::GgufWriter writer;
  if (index == 0) writer.copy_metadata(whole);
  if (const auto* const alignment = whole.find(nibble::io::kGgufAlignmentKey)) {
    writer.set(nibble::io::kGgufAlignmentKey, *alignment);
  }
  writer.set("split.no", static_cast<std::uint16_t>(index));
  writer.set("split.count", static_cast<std::uint16_t>(n_parts));
  writer.set("split.tensors.count", static_cast<std::int32_t>(whole.tensors().size()));
  const std::size_t n = whole.tensors().size();
  for (std::size_t i = n * index / n_parts; i < n * (index + 1) / n_parts; ++i) {
    writer.add_tensor(whole.tensors()[i]);
  }
  return writer;
}

// Writes all parts; returns their paths.
inline std::vector<std::string> write_split(const nibble::io::Gguf& whole,
                                            const TemporaryFolder& folder, unsigned n_parts,
                                            const std::string& prefix = "model") {
  std::vector<std::string> paths;
  for (unsigned i = 0; i < n_parts; ++i) {
    paths.push_back(folder.path(split_name(prefix, i, n_parts)));
    REQUIRE(split_part(whole, i, n_parts).write(paths.back()).has_value());
  }
  return paths;
}

}  // namespace test
