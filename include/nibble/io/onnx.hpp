// SPDX-License-Identifier: Apache-2.0
//
// The graph of an ONNX file: its nodes and its constants. Their data is where it lies, in this file
// or in others of its folder.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/io/mapped_file.hpp"
#include "nibble/io/name_index.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace io {

// Far more than the graphs of language models have: some thousands of nodes.
inline constexpr std::size_t kMaxOnnxNodes = std::size_t{1} << 16;
inline constexpr std::size_t kMaxOnnxTensors = std::size_t{1} << 17;
inline constexpr std::size_t kMaxOnnxInputs = std::size_t{1} << 12;  // of one node
inline constexpr std::size_t kMaxOnnxDims = 8;
inline constexpr std::size_t kMaxOnnxFiles = 1024;  // with data of tensors

// TensorProto.DataType, those that weights have.
enum class OnnxType : std::uint32_t {
  f32 = 1,
  u8 = 2,
  i8 = 3,
  i32 = 6,
  i64 = 7,
  boolean = 9,
  f16 = 10,
  f64 = 11,
  bf16 = 16,
};

// Bytes of an element; 0 for the types that are not listed.
constexpr std::uint64_t bytes_of(OnnxType type) noexcept {
  switch (type) {
    case OnnxType::u8:
    case OnnxType::i8:
    case OnnxType::boolean: return 1;
    case OnnxType::f16:
    case OnnxType::bf16: return 2;
    case OnnxType::f32:
    case OnnxType::i32: return 4;
    case OnnxType::i64:
    case OnnxType::f64: return 8;
  }
  return 0;
}

struct OnnxTensor {
  std::string_view name;
  OnnxType type = OnnxType::f32;
  std::vector<std::uint64_t> dims;  // row-major
  // Exactly the tensor's bytes, with any alignment; or none, and the numbers are in `numbers`,
  // where they have more bytes than the type (int32_data).
  std::span<const std::byte> data;
  std::vector<std::int32_t> numbers;
  std::size_t file = 0;  // index of OnnxFile::files, which has the data

  std::uint64_t n_elements() const noexcept {
    std::uint64_t n = 1;  // no overflow: its size in bytes was checked
    for (const std::uint64_t dim : dims) n *= dim;
    return n;
  }
  bool has_data() const noexcept { return !data.empty() || !numbers.empty(); }
};

struct OnnxAttribute {
  std::string_view name;
  std::int64_t integer = 0;
  float number = 0;
  std::vector<std::int64_t> integers;
  std::size_t tensor = static_cast<std::size_t>(-1);  // index of OnnxFile::tensors
};

struct OnnxNode {
  std::string_view name, op, domain;  // domain is empty for ONNX's own operations
  std::vector<std::string_view> inputs, outputs;
  std::vector<OnnxAttribute> attributes;

  const OnnxAttribute* find(std::string_view attribute) const noexcept {
    for (const OnnxAttribute& a : attributes) {
      if (a.name == attribute) return &a;
    }
    return nullptr;
  }
  std::string_view input(std::size_t i) const noexcept {
    return i < inputs.size() ? inputs[i] : std::string_view();
  }
  std::string_view output(std::size_t i) const noexcept {
    return i < outputs.size() ? outputs[i] : std::string_view();
  }
};

// Move-only. The texts and the data end with it.
class OnnxFile {
 public:
  // Maps the file and those of its folder that have data of its tensors. Errors name the path: io,
  // malformed (violates the format; data that lies in no file of the folder, or outside of the
  // file), unsupported (graphs inside of nodes, sparse tensors), limit.
  static Result<OnnxFile> open(const std::string& path);

  // As messages show it.
  const std::string& name() const noexcept { return name_; }

  std::vector<OnnxNode> nodes;
  std::vector<OnnxTensor> tensors;  // initializers, and the constants of nodes
  std::size_t n_initializers = 0;   // the first so many tensors
  std::vector<std::string_view> inputs, outputs;
  std::vector<MappedFile> files;        // the first is the file itself
  std::vector<std::string> file_names;  // as messages show them

 private:
  friend class OnnxReader;
  std::string name_;
};

}}}  // namespace nibble::NIBBLE_ABI::io

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/io/onnx-inl.hpp"
#endif
