// SPDX-License-Identifier: Apache-2.0
//
// Files of the project that tests read.
#pragma once

#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "examples/samples.hpp"

namespace test {

inline std::string project_file(const char* path) {
  const char* const project = std::getenv("NIBBLE_PROJECT_DIR");  // ctest sets it
  REQUIRE_MESSAGE(project != nullptr, "NIBBLE_PROJECT_DIR must name the project's folder");
  return std::string(project) + "/" + path;
}

// Each line is a prompt, a tab, an answer.
inline std::vector<example::Sample> read_samples(const char* path) {
  std::ifstream in(project_file(path));
  std::vector<example::Sample> samples;
  for (std::string line; std::getline(in, line);) {
    const std::size_t tab = line.find('\t');
    REQUIRE(tab != line.npos);
    samples.push_back({line.substr(0, tab), line.substr(tab + 1)});
  }
  return samples;
}

}  // namespace test
