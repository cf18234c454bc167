// SPDX-License-Identifier: Apache-2.0
//
// A model's folder as model hubs have it, and its files: config.json, tokenizer.json and others,
// and the weights in one or several safetensors files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/io/file_kind.hpp"
#include "nibble/io/ggml_type.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/io/json.hpp"
#include "nibble/io/json_value.hpp"
#include "nibble/io/mapped_file.hpp"
#include "nibble/io/name_index.hpp"
#include "nibble/io/safetensors.hpp"
#include "nibble/io/tensor_bytes.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace hub {

NIBBLE_HIDDEN inline constexpr std::string_view kConfigFile = "config.json";
NIBBLE_HIDDEN inline constexpr std::string_view kWeightsFile = "model.safetensors";
NIBBLE_HIDDEN inline constexpr std::string_view kIndexFile = "model.safetensors.index.json";
NIBBLE_HIDDEN inline constexpr std::string_view kModulesFile = "modules.json";

// The key that a folder has as a GGUF file if its vocabulary cannot be read: why.
NIBBLE_HIDDEN inline constexpr std::string_view kTokenizerErrorKey = "nibble.tokenizer_error";

// The longest text of a JSON file: those of a few keys, and those with an entry for each tensor.
inline constexpr std::size_t kMaxConfigBytes = std::size_t{1} << 20;
inline constexpr std::size_t kMaxIndexBytes = std::size_t{64} << 20;

class Folder {
 public:
  explicit Folder(std::string path) : path_(std::move(path)) {
    while (path_.size() > 1 && (path_.back() == '/' || path_.back() == '\\')) path_.pop_back();
  }

  // As messages show it.
  std::string name() const { return printable(path_); }
  // The last part of the path: what the folder is called.
  std::string_view last_name() const noexcept {
    const std::string_view path = path_;
    return path.substr(path.find_last_of("/\\") + 1);  // all of it if there is none
  }

  std::string path_of(std::string_view file) const { return path_ + '/' + std::string(file); }
  std::string name_of(std::string_view file) const { return printable(path_of(file)); }
  bool has(std::string_view file) const { return io::detail::exists(path_of(file)); }

  // A file's text. Errors name the path: io, limit (more than `max` bytes).
  Result<std::string> text(std::string_view file, std::size_t max) const {
    NIBBLE_TRY(mapped, io::MappedFile::open(path_of(file)));
    const std::span<const std::byte> bytes = mapped.bytes();
    if (bytes.size() > max) {
      return Error{Errc::limit, name_of(file) + ": " + to_text(bytes.size()) +
                                    " bytes, more than " + to_text(max)};
    }
    std::string text(bytes.size(), '\0');
    if (bytes.empty()) return text;
    Result<void> read = mapped.read(bytes, reinterpret_cast<std::byte*>(text.data()));
    if (!read) return std::move(read).error().in(name_of(file));
    return text;
  }

  // A file of JSON. Errors name the path: also malformed.
  Result<io::JsonValue> json(std::string_view file) const {
    NIBBLE_TRY(text, this->text(file, kMaxConfigBytes));
    auto value = io::JsonValue::parse(text);
    if (!value) return std::move(value).error().in(name_of(file));
    return value;
  }

 private:
  std::string path_;
};

// A tensor as the weights' files have it.
struct HubTensor {
  std::string name;
  io::SafetensorType type = io::SafetensorType::f32;
  std::vector<std::uint64_t> shape;  // row-major
  std::span<const std::byte> data;
  std::size_t file = 0;  // index of WeightFiles::files

  // Of files of other kinds:
  bool is_by_outputs = false;  // a matrix is (outputs, inputs), also where hubs have it transposed
  io::SwappedAxes swapped = {};  // how `data` is stored
  // A tensor that is made when it is needed, of this type and the shape above: `data` is empty.
  io::GgmlType made_type = io::GgmlType::f32;
  io::GgufWriter::TensorSource source = {};
  std::vector<Scalar<float>> scales = {};  // of the rows, of a matrix of 8-bit codes
  // What its product's input is rounded to: scale * (code - zero), codes from 0 to 255.
  struct InputRange {
    Scalar<float> scale = {0};  // 0: the input is not rounded
    Scalar<std::int32_t> zero = {0};
  } input = {};
};

struct WeightFiles {
  std::vector<io::MappedFile> files;
  std::vector<std::string> names;  // of the files, as messages show them
  std::vector<HubTensor> tensors;
  bool keeps_output = false;  // also where the output is tied to the embedding
};

namespace detail {

// The files that an index names are files of the same folder. (A symbolic link there may lead
// anywhere: downloaders put links to their cache into a folder; an index cannot make one.)
inline bool is_plain_file_name(std::string_view name) noexcept {
  return name.ends_with(".safetensors") && name.find_first_of("/\\:") == name.npos &&
         name.find('\0') == name.npos && name[0] != '.';
}

// The weight_map of an index: which file has which tensor.
struct ShardIndex {
  struct Entry {
    std::string tensor;
    std::size_t file = 0;
    bool is_found = false;
  };
  std::vector<std::string> files;
  std::vector<Entry> entries;
  io::NameIndex by_tensor;
};

// The most files of one model; a file takes a descriptor of the process.
inline constexpr std::size_t kMaxShards = 1024;

inline Result<ShardIndex> read_index(const std::string& text) {
  io::JsonReader json(text);
  ShardIndex index;
  bool has_map = false;
  NIBBLE_CHECK(json.object([&](const std::string& key) -> Result<void> {
    if (key != "weight_map") return json.skip();
    if (std::exchange(has_map, true)) return json.error("weight_map appears twice");
    return json.object([&](std::string tensor) -> Result<void> {
      NIBBLE_TRY(file, json.string());
      if (!is_plain_file_name(file)) {
        return json.error("tensor " + io::quoted(tensor) + " is said to be in " + io::quoted(file) +
                          ", which is no *.safetensors of this folder");
      }
      // Neighbours are often in the same file, so the search begins with the last one.
      std::size_t at = index.files.size();
      while (at > 0 && index.files[at - 1] != file) --at;
      if (at == 0) {
        index.files.push_back(std::move(file));
        at = index.files.size();
        if (at > kMaxShards) return json.error("more than " + to_text(kMaxShards) + " files");
      }
      index.entries.push_back({std::move(tensor), at - 1});
      return ok();
    });
  }));
  if (!json.at_end()) return json.error("more text behind the index");
  if (!has_map) return json.error("weight_map is missing");
  for (const ShardIndex::Entry& entry : index.entries) index.by_tensor.add(entry.tensor);
  NIBBLE_CHECK(index.by_tensor.sort("tensor"));
  return index;
}

// Adds a file and its tensors, with `prefix` before their names. `keep(name)`: whether a tensor is
// taken from this file.
template <class Keep>
Result<void> add_weights(const Folder& folder, std::string_view file, WeightFiles& weights,
                         Keep keep, const std::string& prefix = {}) {
  const std::string path = folder.path_of(file);
  NIBBLE_TRY(mapped, io::MappedFile::open(path));
  NIBBLE_TRY(parsed, io::Safetensors::parse(mapped.bytes(), path));
  for (const io::Safetensor& tensor : parsed.tensors()) {
    if (!keep(tensor.name)) continue;
    weights.tensors.push_back(
        {prefix + tensor.name, tensor.type, tensor.shape, tensor.data, weights.files.size()});
  }
  weights.files.push_back(std::move(mapped));
  weights.names.push_back(printable(path));
  return ok();
}

inline Result<WeightFiles> open_shards(const Folder& folder) {
  const std::string shown = folder.name_of(kIndexFile);
  NIBBLE_TRY(text, folder.text(kIndexFile, kMaxIndexBytes));
  auto index = read_index(text);
  if (!index) return std::move(index).error().in(shown);
  WeightFiles weights;
  for (std::size_t f = 0; f < index->files.size(); ++f) {
    Result<void> added =
        add_weights(folder, index->files[f], weights, [&](const std::string& name) {
          const std::size_t i = index->by_tensor.find(name);
          if (i == io::NameIndex::kNone || index->entries[i].file != f) return false;
          return index->entries[i].is_found = true;
        });
    if (!added) return std::move(added).error().in(shown);
  }
  for (const ShardIndex::Entry& entry : index->entries) {
    if (entry.is_found) continue;
    return Error{Errc::malformed, weights.names[entry.file] + ": tensor " +
                                      io::quoted(entry.tensor) + " is missing, which " +
                                      std::string(kIndexFile) +
                                      " says it has: the download is incomplete, or of different "
                                      "versions"};
  }
  return weights;
}

}  // namespace detail

// Maps the weights of a folder: model.safetensors, or the files that model.safetensors.index.json
// names. A tensor that two files have is taken from the one that the index names. Errors name the
// file: not_found (no weights, or of a kind that is not read), io (a file that is missing),
// malformed, limit, and those of io::Safetensors.
inline Result<WeightFiles> open_weights(const Folder& folder) {
  if (folder.has(kWeightsFile)) {
    WeightFiles weights;
    NIBBLE_CHECK(detail::add_weights(folder, kWeightsFile, weights,
                                     [](const std::string&) { return true; }));
    return weights;
  }
  if (folder.has(kIndexFile)) return detail::open_shards(folder);
  const bool is_pytorch =
      folder.has("pytorch_model.bin") || folder.has("pytorch_model.bin.index.json");
  return Error{Errc::not_found,
               folder.name() + ": the folder has no model.safetensors and no " +
                   std::string(kIndexFile) +
                   (is_pytorch ? "; pytorch_model.bin is not read: it is a program; load it with "
                                 "PyTorch and save it again, model.save_pretrained(FOLDER)"
                               : ": the download is incomplete")};
}

}}}  // namespace nibble::NIBBLE_ABI::hub
