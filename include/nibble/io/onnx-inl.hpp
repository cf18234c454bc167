// SPDX-License-Identifier: Apache-2.0
//
// Reads ONNX files. Included by onnx.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/io/mapped_file.hpp"
#include "nibble/io/onnx.hpp"
#include "nibble/io/protobuf.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace io {

// Fields are known by their numbers in onnx.proto.
class OnnxReader {
 public:
  explicit OnnxReader(std::string path) : path_(std::move(path)) {}

  Result<OnnxFile> read() {
    file_.name_ = printable(path_);
    NIBBLE_TRY(mapped, MappedFile::open(path_));
    file_.files.push_back(std::move(mapped));
    file_.file_names.push_back(file_.name_);
    Result<void> done = model(file_.files[0].bytes());
    if (!done) return std::move(done).error().in(file_.name_);
    return std::move(file_);
  }

 private:
  using Bytes = std::span<const std::byte>;
  enum : std::uint32_t { kModelGraph = 7, kModelFunctions = 25 };
  static constexpr ProtoType kBytes = ProtoType::bytes;
  static constexpr ProtoType kVarint = ProtoType::varint;

  Result<void> model(Bytes bytes) {
    Bytes graph;
    bool has_graph = false;
    NIBBLE_CHECK(ProtoReader(bytes).each([&](const ProtoField& f) -> Result<void> {
      if (f.is(kModelFunctions, kBytes)) {
        return Error{Errc::unsupported, "functions of its own, which are not read"};
      }
      if (!f.is(kModelGraph, kBytes)) return ok();
      if (std::exchange(has_graph, true)) return Error{Errc::malformed, "two graphs"};
      graph = f.bytes;
      return ok();
    }));
    if (!has_graph) return Error{Errc::malformed, "not an ONNX model: it has no graph"};
    // Nodes and initializers come in any order; initializers are the first tensors.
    std::vector<Bytes> nodes;
    NIBBLE_CHECK(ProtoReader(graph).each([&](const ProtoField& f) -> Result<void> {
      if (f.type != kBytes) return ok();
      switch (f.number) {
        case 1:
          if (nodes.size() == kMaxOnnxNodes) return Error{Errc::limit, "more than 65536 nodes"};
          nodes.push_back(f.bytes);
          break;
        case 5: return add_tensor(f.bytes);
        case 11: return value_name(f.bytes, file_.inputs);
        case 12: return value_name(f.bytes, file_.outputs);
        case 15: return Error{Errc::unsupported, "sparse initializers, which are not read"};
        default: break;
      }
      return ok();
    }));
    file_.n_initializers = file_.tensors.size();
    file_.nodes.reserve(nodes.size());
    for (const Bytes node : nodes) NIBBLE_CHECK(add_node(node));
    return ok();
  }

  static Result<void> value_name(Bytes bytes, std::vector<std::string_view>& names) {
    if (names.size() == kMaxOnnxTensors)
      return Error{Errc::limit, "more than 131072 inputs or outputs"};
    names.emplace_back();
    return ProtoReader(bytes).each([&](const ProtoField& f) -> Result<void> {
      if (f.is(1, kBytes)) names.back() = f.text();
      return ok();
    });
  }

  Result<void> add_node(Bytes bytes) {
    OnnxNode node;
    const auto add_name = [](std::vector<std::string_view>& to, std::string_view name) {
      to.push_back(name);
      if (to.size() <= kMaxOnnxInputs) return ok();
      return Result<void>(Error{Errc::limit, "a node with more than 4096 inputs or outputs"});
    };
    Result<void> read = ProtoReader(bytes).each([&](const ProtoField& f) -> Result<void> {
      if (f.type != kBytes) return ok();
      switch (f.number) {
        case 1: return add_name(node.inputs, f.text());
        case 2: return add_name(node.outputs, f.text());
        case 3: node.name = f.text(); break;
        case 4: node.op = f.text(); break;
        case 5: {
          NIBBLE_TRY(attribute, this->attribute(f.bytes));
          node.attributes.push_back(std::move(attribute));
          break;
        }
        case 7: node.domain = f.text() == "ai.onnx" ? std::string_view() : f.text(); break;
        default: break;
      }
      return ok();
    });
    if (!read) return std::move(read).error().in("node " + quoted(node.name));
    file_.nodes.push_back(std::move(node));
    return ok();
  }

  Result<OnnxAttribute> attribute(Bytes bytes) {
    OnnxAttribute a;
    NIBBLE_CHECK(ProtoReader(bytes).each([&](const ProtoField& f) -> Result<void> {
      if (f.is(1, kBytes)) a.name = f.text();
      if (f.is(2, ProtoType::fixed32)) {
        const auto bits = static_cast<std::uint32_t>(f.value);
        std::memcpy(&a.number, &bits, sizeof a.number);
      }
      if (f.is(3, kVarint)) a.integer = static_cast<std::int64_t>(f.value);
      if (f.is(5, kBytes)) {
        a.tensor = file_.tensors.size();
        return add_tensor(f.bytes);
      }
      if (f.is(6, kBytes) || f.is(11, kBytes)) {
        return Error{Errc::unsupported, "a graph inside of a node, which is not read"};
      }
      if (f.number == 8) {
        return numbers(f, [&](std::uint64_t value) -> Result<void> {
          if (a.integers.size() == kMaxOnnxInputs) {
            return Error{Errc::limit, "an attribute of more than 4096 numbers"};
          }
          a.integers.push_back(static_cast<std::int64_t>(value));
          return ok();
        });
      }
      return ok();
    }));
    return a;
  }

  // Repeated varints, packed or not.
  template <class Function>
  static Result<void> numbers(const ProtoField& field, Function&& f) {
    if (field.type == kVarint) return f(field.value);
    if (field.type != kBytes) return Error{Errc::malformed, "a list that has no integers"};
    ProtoReader packed(field.bytes);
    while (!packed.at_end()) {
      NIBBLE_TRY(value, packed.varint());
      NIBBLE_CHECK(f(value));
    }
    return ok();
  }

  // Where external data lies.
  struct Place {
    std::string_view location;
    std::uint64_t offset = 0;
    std::uint64_t length = kAll;
    static constexpr std::uint64_t kAll = ~std::uint64_t{0};
  };

  Result<void> add_tensor(Bytes bytes) {
    if (file_.tensors.size() == kMaxOnnxTensors)
      return Error{Errc::limit, "more than 131072 tensors"};
    OnnxTensor& tensor = file_.tensors.emplace_back();
    Result<void> read = read_tensor(bytes, tensor);
    if (!read) return std::move(read).error().in("tensor " + quoted(tensor.name));
    return ok();
  }

  Result<void> read_tensor(Bytes bytes, OnnxTensor& tensor) {
    // The fields of numbers, of which a tensor has one; `stored` are those that have its bytes.
    Bytes stored;
    bool is_external = false;
    Place place;
    NIBBLE_CHECK(ProtoReader(bytes).each([&](const ProtoField& f) -> Result<void> {
      switch (f.number) {
        case 1:
          return numbers(f, [&](std::uint64_t dim) -> Result<void> {
            if (tensor.dims.size() == kMaxOnnxDims)
              return Error{Errc::limit, "more than 8 dimensions"};
            tensor.dims.push_back(dim);
            return ok();
          });
        case 2: tensor.type = static_cast<OnnxType>(f.value & 0xFFFFFFFFu); break;
        case 3: return Error{Errc::unsupported, "a tensor in segments, which are not read"};
        case 4:   // float_data
        case 10:  // double_data
          if (f.type != kBytes) break;
          [[fallthrough]];
        case 9:  // raw_data
          if (!stored.empty()) return Error{Errc::malformed, "two lists of data"};
          stored = f.bytes;
          break;
        case 5:  // int32_data, of all types up to 32 bits
        case 7:  // int64_data
          return numbers(f, [&](std::uint64_t value) -> Result<void> {
            if (tensor.numbers.size() >= kMaxNumbers) {
              return Error{Errc::limit, "more than 2^28 numbers that are not raw data"};
            }
            tensor.numbers.push_back(static_cast<std::int32_t>(value & 0xFFFFFFFFu));
            return ok();
          });
        case 8: tensor.name = f.text(); break;
        case 13:
          if (f.type == kBytes) return read_place(f.bytes, place);
          break;
        case 14: is_external = f.value == 1; break;
        default: break;
      }
      return ok();
    }));
    if (!is_external && !place.location.empty()) {
      return Error{Errc::malformed, "a place in another file, but no such data"};
    }
    const std::uint64_t element = bytes_of(tensor.type);
    if (element == 0) return ok();  // of a type that no weights have: it has no data
    std::uint64_t size = element;
    for (const std::uint64_t dim : tensor.dims) {
      if (!checked_multiply(size, dim, size)) {
        return Error{Errc::limit, "the size in bytes overflows 64 bits"};
      }
    }
    if (is_external) {
      if (!stored.empty() || !tensor.numbers.empty()) {
        return Error{Errc::malformed, "data here and in another file"};
      }
      return find_external(place, size, tensor);
    }
    if (!tensor.numbers.empty()) {
      if (stored.empty() && tensor.numbers.size() == size / element) return ok();
      return Error{Errc::malformed, to_text(tensor.numbers.size()) + " numbers, the shape needs " +
                                        to_text(size / element)};
    }
    if (stored.size() != size) {
      return Error{Errc::malformed,
                   to_text(stored.size()) + " bytes of data, the shape needs " + to_text(size)};
    }
    tensor.data = stored;
    return ok();
  }

  static Result<void> read_place(Bytes bytes, Place& place) {
    std::string_view key, value;
    NIBBLE_CHECK(ProtoReader(bytes).each([&](const ProtoField& f) -> Result<void> {
      if (f.is(1, kBytes)) key = f.text();
      if (f.is(2, kBytes)) value = f.text();
      return ok();
    }));
    if (key == "location") place.location = value;
    if (key != "offset" && key != "length") return ok();
    std::uint64_t number = 0;
    for (const char c : value) {
      if (c < '0' || c > '9' || !checked_multiply(number, 10, number) ||
          !checked_add(number, static_cast<std::uint64_t>(c - '0'), number)) {
        return Error{Errc::malformed, std::string(key) + " " + quoted(value) + " is no number"};
      }
    }
    (key == "offset" ? place.offset : place.length) = number;
    return ok();
  }

  // The files with data are files of the same folder. (A symbolic link there may lead anywhere, as
  // for the shards of hub/folder.hpp.)
  static bool is_plain_name(std::string_view name) noexcept {
    return !name.empty() && name.find_first_of("/\\:") == name.npos &&
           name.find('\0') == name.npos && name[0] != '.';
  }

  Result<void> find_external(const Place& place, std::uint64_t size, OnnxTensor& tensor) {
    std::string_view location = place.location;
    if (location.starts_with("./")) location.remove_prefix(2);
    if (!is_plain_name(location)) {
      return Error{Errc::malformed, "its data is said to be in " + quoted(place.location) +
                                        ", which is no file of this folder"};
    }
    std::size_t at = externals_.size();
    while (at > 0 && externals_[at - 1] != location) --at;
    if (at == 0) {
      if (externals_.size() == kMaxOnnxFiles) return Error{Errc::limit, "more than 1024 files"};
      const std::string path =
          path_.substr(0, path_.find_last_of("/\\") + 1) + std::string(location);
      NIBBLE_TRY(mapped, MappedFile::open(path));
      externals_.emplace_back(location);
      file_.files.push_back(std::move(mapped));
      file_.file_names.push_back(printable(path));
      at = externals_.size();
    }
    const Bytes all = file_.files[at].bytes();
    std::uint64_t end = 0;
    if (place.length != Place::kAll && place.length != size) {
      return Error{Errc::malformed,
                   to_text(place.length) + " bytes of data, the shape needs " + to_text(size)};
    }
    if (!checked_add(place.offset, size, end) || end > all.size()) {
      return Error{Errc::malformed, "its " + to_text(size) + " bytes from " +
                                        to_text(place.offset) + " on lie outside of the " +
                                        to_text(all.size()) + " bytes of " + file_.file_names[at]};
    }
    tensor.data = all.subspan(narrow<std::size_t>(place.offset), narrow<std::size_t>(size));
    tensor.file = at;
    return ok();
  }

  static constexpr std::size_t kMaxNumbers = std::size_t{1} << 28;

  std::string path_;
  OnnxFile file_;
  std::vector<std::string> externals_;  // of files[1] and so on
};

NIBBLE_INLINE Result<OnnxFile> OnnxFile::open(const std::string& path) {
  return catch_out_of_memory([&] { return OnnxReader(path).read(); });
}

}}}  // namespace nibble::NIBBLE_ABI::io
