// SPDX-License-Identifier: Apache-2.0
//
// Builds test files byte by byte, independently of the library's writer, in a temporary folder.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "doctest/doctest.h"

namespace test {

class FileBuilder {
 public:
  template <class T>
  FileBuilder& number(T value) {
    const std::size_t at = bytes_.size();
    bytes_.resize(at + sizeof(T));
    std::memcpy(bytes_.data() + at, &value, sizeof(T));
    return *this;
  }
  FileBuilder& u8(unsigned value) { return number(static_cast<std::uint8_t>(value)); }
  FileBuilder& u32(std::uint32_t value) { return number(value); }
  FileBuilder& u64(std::uint64_t value) { return number(value); }
  FileBuilder& raw(std::string_view text) {
    for (const char c : text) bytes_.push_back(static_cast<std::byte>(c));
    return *this;
  }
  // As in GGUF: u64 length, then the characters.
  FileBuilder& string(std::string_view text) { return u64(text.size()).raw(text); }
  FileBuilder& pad(std::size_t alignment) {
    while (bytes_.size() % alignment != 0) bytes_.push_back(std::byte{0});
    return *this;
  }
  std::size_t size() const { return bytes_.size(); }
  std::vector<std::byte> bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

// The header of a GGUF file.
inline FileBuilder gguf_header(std::uint64_t n_tensors, std::uint64_t n_entries,
                               std::uint32_t version = 3) {
  FileBuilder b;
  b.raw("GGUF").u32(version).u64(n_tensors).u64(n_entries);
  return b;
}

// A safetensors file: header text padded with spaces to a multiple of 8, then `data_bytes` of data.
inline std::vector<std::byte> safetensors_file(std::string json, std::size_t data_bytes) {
  while (json.size() % 8 != 0) json += ' ';
  FileBuilder b;
  b.string(json);
  for (std::size_t i = 0; i < data_bytes; ++i) b.u8(static_cast<unsigned>(i & 0xff));
  return b.bytes();
}

// A temporary folder, removed at the end.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::random_device random;
    path_ = std::filesystem::temp_directory_path() /
            ("nibble-test-" + std::to_string(random()) + std::to_string(random()));
    REQUIRE(std::filesystem::create_directory(path_));
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  std::string path(const std::string& name) const { return (path_ / name).string(); }
  std::string write(const std::string& name, std::span<const std::byte> bytes) const {
    std::ofstream out(path(name), std::ios::binary);
    out.write(reinterpret_cast<const char*>(bytes.data()),
              static_cast<std::streamsize>(bytes.size()));
    REQUIRE(out.good());
    return path(name);
  }
  std::size_t count() const {
    std::size_t n = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(path_)) ++n;
    return n;
  }

 private:
  std::filesystem::path path_;
};

inline bool contains(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

}  // namespace test
