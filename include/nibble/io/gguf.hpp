// SPDX-License-Identifier: Apache-2.0
//
// Reader for GGUF, the model file format of the ggml family (specification: ggml-org/ggml,
// docs/gguf.md). Versions 2 and 3, little-endian. The whole file structure is checked when the file
// is opened. Strings and tensor data are views of the file's bytes, never copies. A model that was
// split into several files (llama-gguf-split) is read as one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/arena.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/shared.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/io/file_kind.hpp"
#include "nibble/io/ggml_type.hpp"
#include "nibble/io/gguf_tensor.hpp"
#include "nibble/io/gguf_value.hpp"
#include "nibble/io/mapped_file.hpp"
#include "nibble/io/name_index.hpp"
#include "nibble/io/tensor_bytes.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace io {

struct GgufEntry {
  std::string_view key;
  GgufValue value;
};

// What the views of a Gguf refer to. Models whose weights are used in place share it.
struct GgufBytes {
  std::vector<MappedFile> files;  // one; of a split model all, in order
  AlignedBuffer memory;           // instead of files, or beside them (Gguf::join)
  std::string names;              // of the tensors in these files (Gguf::join)
};

// Move-only. The views that it returns stay valid when it is moved.
class Gguf {
 public:
  Gguf(Gguf&&) noexcept = default;
  Gguf& operator=(Gguf&&) noexcept = default;
  Gguf(const Gguf&) = delete;
  Gguf& operator=(const Gguf&) = delete;

  // Maps the file and checks it. If it is a part of a split model ("m-00001-of-00002.gguf"), all
  // parts are: the Gguf has the tensors of all, and the metadata without the keys "split.…". Errors
  // name the path: io (see MappedFile; a part that is missing), malformed (violates the format;
  // parts of different models), unsupported (version 1, big-endian, a tensor type unknown to us,
  // nested arrays, a part under another name).
  static Result<Gguf> open(const std::string& path);

  // The same for bytes in memory, which the Gguf keeps, and models that use them in place too.
  // Errors use `name` instead of the path.
  static Result<Gguf> parse(AlignedBuffer bytes, const std::string& name);
  // The same for a file that is mapped already, as by somebody who has verified its bytes.
  static Result<Gguf> parse(MappedFile file, const std::string& name);
  // For bytes that the caller keeps alive and unchanged as long as the Gguf. Models copy what they
  // need of them. The bytes must start at a multiple of 8, because of the tensors (else
  // invalid_argument).
  static Result<Gguf> parse(std::span<const std::byte> bytes, const std::string& name);
  // For bytes that are never freed: an array in the program or in flash. Models use packed tensors
  // in place; these must be aligned to 64 bytes (kAlignment), and so must the array.
  static Result<Gguf> parse_static(std::span<const std::byte> bytes, const std::string& name);
  // A model whose tensors are in files of another kind: the metadata and the tensors of `bytes`,
  // which are a GGUF file, and then `tensors`, whose data lies in `files`; names are copied.
  // Errors: those of parse(), and of a file with such tensors (malformed, limit).
  static Result<Gguf> join(AlignedBuffer bytes, std::span<const GgufTensor> tensors,
                           std::vector<MappedFile> files, const std::string& name);

  // As messages show it: printable (core/text.hpp).
  const std::string& name() const noexcept { return name_; }
  std::uint32_t version() const noexcept { return version_; }
  std::uint32_t alignment() const noexcept { return alignment_; }
  // The mapped files that have tensors, in the order of the parts; none after parse().
  std::span<const MappedFile> files() const noexcept {
    return bytes_ ? std::span<const MappedFile>(bytes_->files) : std::span<const MappedFile>();
  }
  // Hints to the system how the files will be read; does nothing after parse().
  void advise(Advice advice) const noexcept {
    for (const MappedFile& file : files()) file.advise(advice);
  }
  // What keeps the bytes alive; null if the caller does, after parse() of a span.
  const Shared<GgufBytes>& keeper() const noexcept { return bytes_; }
  // Whether the bytes end with the Gguf or soon after: nothing that lives longer may refer to them
  // without being a keeper.
  bool is_borrowed() const noexcept { return !bytes_ && !is_static_; }

  // ---- Metadata, in file order ----
  std::span<const GgufEntry> metadata() const noexcept { return metadata_; }
  const GgufValue* find(std::string_view key) const noexcept;

  // The value of `key` as a T (see GgufValue::as). Errors, with file and key: not_found, malformed.
  template <class T>
  Result<T> get(std::string_view key) const;
  // The same, but `fallback` if the key is missing. A value of the wrong type is still an error.
  template <class T>
  Result<T> get_or(std::string_view key, T fallback) const;
  // All elements of the array `key` (see GgufValue::as_array).
  template <class T>
  Result<std::vector<T>> get_array(std::string_view key) const;

  Result<std::uint64_t> get_u64(std::string_view key) const { return get<std::uint64_t>(key); }
  Result<std::uint32_t> get_u32(std::string_view key) const { return get<std::uint32_t>(key); }
  Result<std::int32_t> get_i32(std::string_view key) const { return get<std::int32_t>(key); }
  Result<float> get_f32(std::string_view key) const { return get<float>(key); }
  Result<bool> get_bool(std::string_view key) const { return get<bool>(key); }
  Result<std::string_view> get_string(std::string_view key) const {
    return get<std::string_view>(key);
  }
  Result<std::vector<std::string_view>> get_strings(std::string_view key) const {
    return get_array<std::string_view>(key);
  }
  Result<std::uint64_t> get_u64_or(std::string_view key, std::uint64_t fallback) const {
    return get_or(key, fallback);
  }
  Result<std::uint32_t> get_u32_or(std::string_view key, std::uint32_t fallback) const {
    return get_or(key, fallback);
  }
  Result<std::int32_t> get_i32_or(std::string_view key, std::int32_t fallback) const {
    return get_or(key, fallback);
  }
  Result<float> get_f32_or(std::string_view key, float fallback) const {
    return get_or(key, fallback);
  }
  Result<bool> get_bool_or(std::string_view key, bool fallback) const {
    return get_or(key, fallback);
  }
  Result<std::string_view> get_string_or(std::string_view key, std::string_view fallback) const {
    return get_or(key, fallback);
  }

  // ---- Tensors, in file order ----
  std::span<const GgufTensor> tensors() const noexcept { return tensors_; }
  // nullptr if there is no tensor of this name.
  const GgufTensor* find_tensor(std::string_view name) const noexcept;
  // The error not_found, with file and name, if there is none.
  Result<GgufTensor> tensor(std::string_view name) const;
  // How to read the bytes of one of these tensors: from its file, if it is in one.
  TensorBytes bytes_of(const GgufTensor& tensor) const noexcept {
    return TensorBytes(tensor.data, tensor.swapped, file_with(files(), tensor.data));
  }

 private:
  // What a part of a split model says about the set; n_parts = 0: it is no part.
  struct Split {
    std::uint64_t n_parts = 0;
    std::uint64_t index = 0;
    std::uint64_t n_tensors = 0;  // in all parts; 0: not stated
  };

  Gguf() = default;

  static Result<Gguf> read_from(std::span<const std::byte> bytes, const std::string& name);
  static Result<Gguf> whole(Result<Gguf> gguf);
  static Result<Gguf> open_part(const std::string& path);
  static Result<Gguf> open_split(const std::string& path, Gguf part);
  Result<void> append(Gguf&& part);
  Result<void> append(std::span<const GgufTensor> tensors);
  Result<void> index_tensors();
  std::string part_text() const {
    return "part " + to_text(split_.index + 1) + " of " + to_text(split_.n_parts) +
           " of a model in several files";
  }
  Result<void> read(std::span<const std::byte> bytes);
  Result<void> read_split();
  Result<GgufEntry> read_entry(ByteReader& in) const;
  Result<void> read_tensor(ByteReader& in, std::uint64_t& offset, GgufTensor& tensor) const;
  Result<void> place_tensors(std::span<const std::byte> bytes, std::size_t infos_end,
                             std::span<const std::uint64_t> offsets);
  Error missing(std::string_view key) const {
    return {Errc::not_found, name_ + ": the metadata has no key " + quoted(key)};
  }
  Error key_error(std::string_view key, Error error) const {
    return std::move(error).in(name_ + ": key " + quoted(key));
  }

  Shared<GgufBytes> bytes_;
  bool is_static_ = false;
  Split split_;
  std::string name_;
  std::uint32_t version_ = 0;
  std::uint32_t alignment_ = kGgufDefaultAlignment;
  std::vector<GgufEntry> metadata_;
  NameIndex metadata_index_;
  std::vector<GgufTensor> tensors_;
  NameIndex tensor_index_;
};

template <class T>
Result<T> Gguf::get(std::string_view key) const {
  return catch_out_of_memory([&]() -> Result<T> {
    const GgufValue* value = find(key);
    if (value == nullptr) return missing(key);
    auto result = value->as<T>();
    if (!result) return key_error(key, std::move(result).error());
    return result;
  });
}

template <class T>
Result<T> Gguf::get_or(std::string_view key, T fallback) const {
  if (find(key) == nullptr) return fallback;
  return get<T>(key);
}

template <class T>
Result<std::vector<T>> Gguf::get_array(std::string_view key) const {
  return catch_out_of_memory([&]() -> Result<std::vector<T>> {
    const GgufValue* value = find(key);
    if (value == nullptr) return missing(key);
    auto result = value->as_array<T>();
    if (!result) return key_error(key, std::move(result).error());
    return result;
  });
}

}}}  // namespace nibble::NIBBLE_ABI::io

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/io/gguf-inl.hpp"
#endif
