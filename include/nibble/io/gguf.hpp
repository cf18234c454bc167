// SPDX-License-Identifier: Apache-2.0
//
// Reader for GGUF, the model file format of the ggml family (specification: ggml-org/ggml,
// docs/gguf.md). Versions 2 and 3, little-endian. The whole file structure is checked when the file
// is opened. Strings and tensor data are views of the file's bytes, never copies.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/io/ggml_type.hpp"
#include "nibble/io/gguf_value.hpp"
#include "nibble/io/mapped_file.hpp"
#include "nibble/io/name_index.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace io {

inline constexpr std::uint32_t kGgufMagic = 0x46554747;  // "GGUF"
inline constexpr std::uint32_t kGgufVersion = 3;         // the version that we write
inline constexpr std::uint32_t kGgufDefaultAlignment = 32;
inline constexpr std::uint32_t kGgufMinAlignment = 8;  // gguf.md: a multiple of 8
inline constexpr std::uint32_t kGgufMaxAlignment = 1u << 20;
inline constexpr std::size_t kGgufMaxDims = 4;
inline constexpr std::size_t kGgufMaxTensorName = 64;  // bytes
inline constexpr std::size_t kGgufMaxKey = 65535;      // bytes
NIBBLE_HIDDEN inline constexpr std::string_view kGgufAlignmentKey = "general.alignment";

struct GgufEntry {
  std::string_view key;
  GgufValue value;
};

struct GgufTensor {
  std::string_view name;
  GgmlType type = GgmlType::f32;
  std::uint32_t n_dims = 0;                          // 0 to 4
  std::array<std::uint64_t, 4> dims = {1, 1, 1, 1};  // dims[0] is contiguous; missing ones are 1
  // Exactly tensor_bytes(type, dims) bytes inside the file. Aligned to at least kGgufMinAlignment,
  // and to Gguf::alignment() if the first byte of the file is (always the case after Gguf::open).
  std::span<const std::byte> data;

  std::uint64_t n_elements() const noexcept { return dims[0] * dims[1] * dims[2] * dims[3]; }
};

namespace detail {

// gguf.md asks for a multiple of 8; we require a power of two and set the upper limit.
inline Result<void> check_gguf_alignment(std::uint64_t alignment) {
  if (!std::has_single_bit(alignment) || alignment < kGgufMinAlignment ||
      alignment > kGgufMaxAlignment) {
    return Error{Errc::malformed, "alignment " + to_text(alignment) +
                                      " is not a power of two from 8 to 1048576"};
  }
  return ok();
}

inline Result<void> check_gguf_name(std::string_view name, std::size_t max_size, const char* what) {
  if (name.empty()) return Error{Errc::malformed, std::string(what) + " is empty"};
  if (name.size() > max_size) {
    return Error{Errc::malformed, std::string(what) + " " + quoted(name) + " has " +
                                      to_text(name.size()) + " bytes, more than " +
                                      to_text(max_size)};
  }
  return ok();
}

}  // namespace detail

// Move-only. The views that it returns stay valid when it is moved. They end with it (after open)
// or with the caller's bytes (after parse).
class Gguf {
 public:
  // Maps the file and checks it. Errors name the path: io (see MappedFile), malformed (violates the
  // format), unsupported (version 1, big-endian, a tensor type unknown to us, nested arrays).
  static Result<Gguf> open(const std::string& path);

  // The same for bytes in memory, which the caller keeps alive and unchanged. Errors use `name`
  // instead of the path. The bytes must start at a multiple of 8, because of the tensors (else
  // invalid_argument).
  static Result<Gguf> parse(std::span<const std::byte> bytes, const std::string& name);

  // As messages show it: printable (core/text.hpp).
  const std::string& name() const noexcept { return name_; }
  std::uint32_t version() const noexcept { return version_; }
  std::uint32_t alignment() const noexcept { return alignment_; }
  std::span<const std::byte> bytes() const noexcept { return bytes_; }
  // The mapped file; empty after parse().
  const MappedFile& file() const noexcept { return file_; }
  // Hints to the system how the file will be read; does nothing after parse().
  void advise(Advice advice) const noexcept { file_.advise(advice); }

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

 private:
  Gguf() = default;

  Result<void> read();
  Result<GgufEntry> read_entry(ByteReader& in) const;
  Result<void> read_tensor(ByteReader& in, std::uint64_t& offset, GgufTensor& tensor) const;
  Result<void> place_tensors(std::size_t infos_end, std::span<const std::uint64_t> offsets);
  Error missing(std::string_view key) const {
    return {Errc::not_found, name_ + ": the metadata has no key " + quoted(key)};
  }
  Error key_error(std::string_view key, Error error) const {
    return std::move(error).in(name_ + ": key " + quoted(key));
  }

  MappedFile file_;  // empty after parse()
  std::span<const std::byte> bytes_;
  std::string name_;
  std::uint32_t version_ = 0;
  std::uint32_t alignment_ = kGgufDefaultAlignment;
  std::vector<GgufEntry> metadata_;
  NameIndex metadata_index_;
  std::vector<GgufTensor> tensors_;
  NameIndex tensor_index_;
};

inline Result<Gguf> Gguf::open(const std::string& path) {
  return catch_out_of_memory([&]() -> Result<Gguf> {
    NIBBLE_TRY(file, MappedFile::open(path));
    NIBBLE_TRY(gguf, parse(file.bytes(), path));
    gguf.file_ = std::move(file);
    return gguf;
  });
}

inline Result<Gguf> Gguf::parse(std::span<const std::byte> bytes, const std::string& name) {
  return catch_out_of_memory([&]() -> Result<Gguf> {
    Gguf gguf;
    gguf.bytes_ = bytes;
    gguf.name_ = printable(name);
    Result<void> status = gguf.read();
    if (!status) return std::move(status).error().in(gguf.name_);
    return gguf;
  });
}

inline const GgufValue* Gguf::find(std::string_view key) const noexcept {
  const std::size_t i = metadata_index_.find(key);
  return i == NameIndex::kNone ? nullptr : &metadata_[i].value;
}

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

inline const GgufTensor* Gguf::find_tensor(std::string_view name) const noexcept {
  const std::size_t i = tensor_index_.find(name);
  return i == NameIndex::kNone ? nullptr : &tensors_[i];
}

inline Result<GgufTensor> Gguf::tensor(std::string_view name) const {
  return catch_out_of_memory([&]() -> Result<GgufTensor> {
    const GgufTensor* found = find_tensor(name);
    if (found == nullptr) {
      return Error{Errc::not_found, name_ + ": tensor " + quoted(name) + " is missing"};
    }
    return *found;
  });
}

inline Result<void> Gguf::read() {
  // Minimum size of a metadata entry (length, one-byte key, type, one-byte value) and of a tensor
  // info (length, one-byte name, dimensions, type, offset). They bound the counts before memory is
  // reserved.
  constexpr std::uint64_t kMinEntryBytes = 8 + 1 + 4 + 1;
  constexpr std::uint64_t kMinTensorBytes = 8 + 1 + 4 + 4 + 8;

  if (reinterpret_cast<std::uintptr_t>(bytes_.data()) % kGgufMinAlignment != 0) {
    return Error{Errc::invalid_argument, "the bytes do not start at a multiple of 8"};
  }
  ByteReader in(bytes_);
  NIBBLE_TRY(magic, in.read<std::uint32_t>("the header"));
  if (magic != kGgufMagic)
    return Error{Errc::malformed, "not a GGUF file (no \"GGUF\" at its start)"};
  NIBBLE_TRY(version, in.read<std::uint32_t>("the header"));
  if (version != 2 && version != 3) {
    const bool swapped = version != 0 && (version & 0xffff) == 0;
    return Error{Errc::unsupported,
                 swapped ? std::string("a big-endian GGUF file")
                         : "GGUF version " + to_text(version) + ", not 2 or 3"};
  }
  version_ = version;
  NIBBLE_TRY(n_tensors, in.read<std::uint64_t>("the header"));
  NIBBLE_TRY(n_entries, in.read<std::uint64_t>("the header"));

  if (n_entries > in.remaining() / kMinEntryBytes) {
    return Error{Errc::malformed,
                 to_text(n_entries) + " metadata entries do not fit in the file"};
  }
  metadata_.reserve(narrow<std::size_t>(n_entries));
  metadata_index_.reserve(narrow<std::size_t>(n_entries));
  for (std::uint64_t i = 0; i < n_entries; ++i) {
    auto entry = read_entry(in);
    if (!entry) return std::move(entry).error().in("metadata entry " + to_text(i));
    metadata_.push_back(*entry);
    metadata_index_.add(entry->key);
  }
  NIBBLE_CHECK(metadata_index_.sort("key"));

  if (const GgufValue* value = find(kGgufAlignmentKey)) {
    auto alignment = value->as<std::uint32_t>();
    if (!alignment) return std::move(alignment).error().in(std::string(kGgufAlignmentKey));
    NIBBLE_CHECK(detail::check_gguf_alignment(*alignment));
    alignment_ = *alignment;
  }

  if (n_tensors > in.remaining() / kMinTensorBytes) {
    return Error{Errc::malformed, to_text(n_tensors) + " tensors do not fit in the file"};
  }
  tensors_.resize(narrow<std::size_t>(n_tensors));
  tensor_index_.reserve(tensors_.size());
  std::vector<std::uint64_t> offsets(tensors_.size());
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    Result<void> status = read_tensor(in, offsets[i], tensors_[i]);
    if (!status) {
      const std::string_view name = tensors_[i].name;
      return std::move(status).error().in("tensor " + to_text(i) +
                                          (name.empty() ? "" : " " + quoted(name)));
    }
    tensor_index_.add(tensors_[i].name);
  }
  NIBBLE_CHECK(tensor_index_.sort("tensor"));
  return place_tensors(in.offset(), offsets);
}

inline Result<GgufEntry> Gguf::read_entry(ByteReader& in) const {
  NIBBLE_TRY(key_size, in.read<std::uint64_t>("a key's length"));
  NIBBLE_TRY(key_bytes, in.take(key_size, "a key"));
  const std::string_view key = detail::as_text(key_bytes);
  NIBBLE_CHECK(detail::check_gguf_name(key, kGgufMaxKey, "key"));
  NIBBLE_TRY(type, in.read<std::uint32_t>("a value's type"));
  auto value = GgufValue::read(static_cast<GgufType>(type), in);
  if (!value) return std::move(value).error().in("key " + quoted(key));
  return GgufEntry{key, *value};
}

inline Result<void> Gguf::read_tensor(ByteReader& in, std::uint64_t& offset,
                                      GgufTensor& tensor) const {
  NIBBLE_TRY(name_size, in.read<std::uint64_t>("a tensor name's length"));
  NIBBLE_TRY(name_bytes, in.take(name_size, "a tensor's name"));
  tensor.name = detail::as_text(name_bytes);
  NIBBLE_CHECK(detail::check_gguf_name(tensor.name, kGgufMaxTensorName, "name"));
  NIBBLE_TRY(n_dims, in.read<std::uint32_t>("a tensor's shape"));
  if (n_dims > kGgufMaxDims) {
    return Error{Errc::malformed, to_text(n_dims) + " dimensions, more than 4"};
  }
  tensor.n_dims = n_dims;
  for (std::uint32_t i = 0; i < n_dims; ++i) {
    NIBBLE_TRY(dim, in.read<std::uint64_t>("a tensor's shape"));
    tensor.dims[i] = dim;
  }
  NIBBLE_TRY(type, in.read<std::uint32_t>("a tensor's type"));
  tensor.type = static_cast<GgmlType>(type);
  NIBBLE_TRY(tensor_offset, in.read<std::uint64_t>("a tensor's offset"));
  offset = tensor_offset;
  return ok();
}

// Locates each tensor's data in the data section, which starts at the first multiple of the
// alignment after the tensor infos. The padding after the last tensor may be missing.
inline Result<void> Gguf::place_tensors(std::size_t infos_end,
                                        std::span<const std::uint64_t> offsets) {
  const std::uint64_t padding = (alignment_ - infos_end % alignment_) % alignment_;
  const std::uint64_t begin =
      infos_end + padding;  // no overflow: infos_end is inside a real buffer
  const std::uint64_t section = begin < bytes_.size() ? bytes_.size() - begin : 0;
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    GgufTensor& tensor = tensors_[i];
    auto size = tensor_bytes(tensor.type, tensor.dims);
    if (!size) return std::move(size).error().in("tensor " + quoted(tensor.name));
    if (offsets[i] % alignment_ != 0) {
      return Error{Errc::malformed, "tensor " + quoted(tensor.name) + ": offset " +
                                        to_text(offsets[i]) + " is no multiple of " +
                                        to_text(alignment_)};
    }
    if (offsets[i] > section || *size > section - offsets[i]) {
      return Error{Errc::malformed, "tensor " + quoted(tensor.name) + ": " + to_text(*size) +
                                        " bytes at offset " + to_text(offsets[i]) +
                                        " reach beyond the file's " + to_text(section) +
                                        " bytes of tensor data"};
    }
    tensor.data =
        bytes_.subspan(narrow<std::size_t>(begin + offsets[i]), narrow<std::size_t>(*size));
  }
  // If tensors could share bytes, a small file could claim to be a huge model.
  std::vector<std::size_t> order(tensors_.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return offsets[a] < offsets[b]; });
  for (std::size_t i = 1; i < order.size(); ++i) {
    const GgufTensor& before = tensors_[order[i - 1]];
    if (offsets[order[i]] - offsets[order[i - 1]] < before.data.size()) {
      return Error{Errc::malformed, "tensors " + quoted(before.name) + " and " +
                                        quoted(tensors_[order[i]].name) + " overlap"};
    }
  }
  return ok();
}

}}}  // namespace nibble::NIBBLE_ABI::io
