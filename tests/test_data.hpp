// SPDX-License-Identifier: Apache-2.0
//
// The reference data that tests read if it is there: the folder that NIBBLE_TEST_DATA names.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "doctest/doctest.h"

namespace test {

// The path of `file` (relative to the data folder), or nothing and a message that says what is not
// tested. If the folder exists but the file is missing, that is a failure, not a skip. Use:
//   const auto path = test::data_path("models/x.gguf");
//   if (!path) return;
inline std::optional<std::string> data_path(const std::string& file) {
  const char* folder = std::getenv("NIBBLE_TEST_DATA");
  if (folder == nullptr || *folder == '\0') {
    MESSAGE("skipped, NIBBLE_TEST_DATA is not set: ", file);
    return std::nullopt;
  }
  const std::filesystem::path path = std::filesystem::path(folder) / file;
  REQUIRE_MESSAGE(std::filesystem::exists(path), "missing test data: ", path.string());
  return path.string();
}

// All bytes of a file, which must be readable.
inline std::vector<std::byte> read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  REQUIRE_MESSAGE(in.good(), "cannot open ", path);
  std::vector<std::byte> bytes(static_cast<std::size_t>(in.tellg()));
  in.seekg(0);
  in.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  REQUIRE_MESSAGE(in.good(), "cannot read ", path);
  return bytes;
}

inline std::string read_text(const std::string& path) {
  const auto bytes = read_file(path);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace test
