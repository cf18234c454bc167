// SPDX-License-Identifier: Apache-2.0
//
// Reader for safetensors (specification: huggingface/safetensors, README). The whole header is
// checked when the file is opened. Tensor data are views of the file's bytes, never copies.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/io/json.hpp"
#include "nibble/io/mapped_file.hpp"
#include "nibble/io/name_index.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace io {

// The format's own limit on the size of its header.
inline constexpr std::uint64_t kSafetensorsMaxHeader = 100'000'000;

enum class SafetensorType : unsigned char {
  boolean,
  f4,
  f6_e2m3,
  f6_e3m2,
  u8,
  i8,
  f8_e5m2,
  f8_e4m3,
  f8_e8m0,
  f8_e4m3fnuz,
  f8_e5m2fnuz,
  i16,
  u16,
  f16,
  bf16,
  i32,
  u32,
  f32,
  c64,
  f64,
  i64,
  u64,
};

struct SafetensorTypeTraits {
  SafetensorType type;
  std::string_view name;  // as in the file
  std::uint32_t bits;     // per element; elements of less than 8 bits are packed
};

NIBBLE_HIDDEN inline constexpr SafetensorTypeTraits kSafetensorTypes[] = {
    {SafetensorType::boolean, "BOOL", 8},
    {SafetensorType::f4, "F4", 4},
    {SafetensorType::f6_e2m3, "F6_E2M3", 6},
    {SafetensorType::f6_e3m2, "F6_E3M2", 6},
    {SafetensorType::u8, "U8", 8},
    {SafetensorType::i8, "I8", 8},
    {SafetensorType::f8_e5m2, "F8_E5M2", 8},
    {SafetensorType::f8_e4m3, "F8_E4M3", 8},
    {SafetensorType::f8_e8m0, "F8_E8M0", 8},
    {SafetensorType::f8_e4m3fnuz, "F8_E4M3FNUZ", 8},
    {SafetensorType::f8_e5m2fnuz, "F8_E5M2FNUZ", 8},
    {SafetensorType::i16, "I16", 16},
    {SafetensorType::u16, "U16", 16},
    {SafetensorType::f16, "F16", 16},
    {SafetensorType::bf16, "BF16", 16},
    {SafetensorType::i32, "I32", 32},
    {SafetensorType::u32, "U32", 32},
    {SafetensorType::f32, "F32", 32},
    {SafetensorType::c64, "C64", 64},
    {SafetensorType::f64, "F64", 64},
    {SafetensorType::i64, "I64", 64},
    {SafetensorType::u64, "U64", 64},
};

constexpr const SafetensorTypeTraits& type_traits(SafetensorType type) noexcept {
  return kSafetensorTypes[static_cast<std::size_t>(type)];
}

struct Safetensor {
  std::string name;
  SafetensorType type = SafetensorType::f32;
  std::vector<std::uint64_t> shape;  // row-major: the last is contiguous; empty for a scalar
  // Exactly the tensor's bytes, with any alignment: writers need not align. Copy with memcpy, or
  // check the address before reading through a typed pointer.
  std::span<const std::byte> data;
};

struct SafetensorsEntry {
  std::string key;
  std::string value;
};

// Move-only. Tensor data stays valid when it is moved. The data ends with it (after open) or with
// the caller's bytes (after parse).
class Safetensors {
 public:
  // Maps the file and checks it. Errors name the path: io (see MappedFile), malformed (violates the
  // format), unsupported (an element type unknown to us), limit (header above 100 MB).
  static Result<Safetensors> open(const std::string& path);

  // The same for bytes in memory, with any alignment, which the caller keeps alive and unchanged.
  // Errors use `name` instead of the path.
  static Result<Safetensors> parse(std::span<const std::byte> bytes, const std::string& name);

  // As messages show it: printable (core/text.hpp).
  const std::string& name() const noexcept { return name_; }

  // In the header's order.
  std::span<const Safetensor> tensors() const noexcept { return tensors_; }
  // nullptr if there is no tensor of this name.
  const Safetensor* find_tensor(std::string_view name) const noexcept;
  // The error not_found, with file and name, if there is none.
  Result<Safetensor> tensor(std::string_view name) const;

  // The strings under __metadata__, in the header's order.
  std::span<const SafetensorsEntry> metadata() const noexcept { return metadata_; }
  // nullptr if the key is missing.
  const std::string* find_metadata(std::string_view key) const noexcept;

 private:
  // The range of a tensor in the data section: [begin, end).
  struct Place {
    std::uint64_t begin = 0;
    std::uint64_t end = 0;
  };

  Safetensors() = default;

  Result<void> read(std::span<const std::byte> bytes);
  Result<void> read_metadata(JsonReader& json);
  static Result<void> read_tensor(JsonReader& json, Safetensor& tensor, Place& place);
  static Result<void> read_place(JsonReader& json, Place& place);
  Result<void> place_tensors(std::span<const std::byte> section, const std::vector<Place>& places);

  MappedFile file_;  // empty after parse()
  std::string name_;
  // The indices refer to names in the vectors; moving the vectors does not move their elements.
  std::vector<SafetensorsEntry> metadata_;
  NameIndex metadata_index_;
  std::vector<Safetensor> tensors_;
  NameIndex tensor_index_;
};

// Bytes of a tensor. Errors: limit (does not fit in 64 bits), malformed (packed elements that do
// not fill their last byte).
inline Result<std::uint64_t> tensor_bytes(SafetensorType type,
                                          std::span<const std::uint64_t> shape) {
  std::uint64_t bits = type_traits(type).bits;
  for (const std::uint64_t dim : shape) {
    if (!checked_multiply(bits, dim, bits)) {
      return Error{Errc::limit, "the size in bits overflows 64 bits"};
    }
  }
  if (bits % 8 != 0) return Error{Errc::malformed, "the elements do not fill the last byte"};
  return bits / 8;
}

inline Result<Safetensors> Safetensors::open(const std::string& path) {
  return catch_out_of_memory([&]() -> Result<Safetensors> {
    NIBBLE_TRY(file, MappedFile::open(path));
    NIBBLE_TRY(safetensors, parse(file.bytes(), path));
    safetensors.file_ = std::move(file);
    return safetensors;
  });
}

inline Result<Safetensors> Safetensors::parse(std::span<const std::byte> bytes,
                                              const std::string& name) {
  return catch_out_of_memory([&]() -> Result<Safetensors> {
    Safetensors safetensors;
    safetensors.name_ = printable(name);
    Result<void> status = safetensors.read(bytes);
    if (!status) return std::move(status).error().in(safetensors.name_);
    return safetensors;
  });
}

inline const Safetensor* Safetensors::find_tensor(std::string_view name) const noexcept {
  const std::size_t i = tensor_index_.find(name);
  return i == NameIndex::kNone ? nullptr : &tensors_[i];
}

inline Result<Safetensor> Safetensors::tensor(std::string_view name) const {
  return catch_out_of_memory([&]() -> Result<Safetensor> {
    const Safetensor* found = find_tensor(name);
    if (found == nullptr) {
      return Error{Errc::not_found, name_ + ": tensor " + quoted(name) + " is missing"};
    }
    return *found;
  });
}

inline const std::string* Safetensors::find_metadata(std::string_view key) const noexcept {
  const std::size_t i = metadata_index_.find(key);
  return i == NameIndex::kNone ? nullptr : &metadata_[i].value;
}

inline Result<void> Safetensors::read(std::span<const std::byte> bytes) {
  ByteReader in(bytes);
  NIBBLE_TRY(header_size, in.read<std::uint64_t>("the header's length"));
  if (header_size > kSafetensorsMaxHeader) {
    return Error{Errc::limit,
                 "a header of " + to_text(header_size) + " bytes, more than 100000000"};
  }
  NIBBLE_TRY(header, in.take(header_size, "the header"));
  const std::string_view text(reinterpret_cast<const char*>(header.data()), header.size());
  if (!text.starts_with('{')) {
    return Error{Errc::malformed, "not a safetensors file (its header does not start with '{')"};
  }

  JsonReader json(text);
  std::vector<Place> places;
  bool has_metadata = false;
  NIBBLE_CHECK(json.object([&](std::string key) -> Result<void> {
    if (key == "__metadata__") {
      if (std::exchange(has_metadata, true)) return json.error("__metadata__ appears twice");
      return read_metadata(json);
    }
    tensors_.emplace_back().name = std::move(key);
    Result<void> status = read_tensor(json, tensors_.back(), places.emplace_back());
    if (!status) return std::move(status).error().in("tensor " + quoted(tensors_.back().name));
    return ok();
  }));
  if (!json.at_end()) return json.error("more text behind the header's object");

  for (const SafetensorsEntry& entry : metadata_) metadata_index_.add(entry.key);
  NIBBLE_CHECK(metadata_index_.sort("metadata key"));
  for (const Safetensor& tensor : tensors_) tensor_index_.add(tensor.name);
  NIBBLE_CHECK(tensor_index_.sort("tensor"));
  return place_tensors(bytes.subspan(in.offset()), places);
}

inline Result<void> Safetensors::read_metadata(JsonReader& json) {
  return json.object([&](std::string key) -> Result<void> {
    NIBBLE_TRY(value, json.string());
    metadata_.push_back({std::move(key), std::move(value)});
    return ok();
  });
}

inline Result<void> Safetensors::read_place(JsonReader& json, Place& place) {
  std::size_t n = 0;
  NIBBLE_CHECK(json.array([&]() -> Result<void> {
    NIBBLE_TRY(offset, json.unsigned_integer());
    if (n == 2) return json.error("more than two data_offsets");
    (n++ == 0 ? place.begin : place.end) = offset;
    return ok();
  }));
  if (n != 2) return json.error("fewer than two data_offsets");
  return ok();
}

inline Result<void> Safetensors::read_tensor(JsonReader& json, Safetensor& tensor, Place& place) {
  bool has_type = false, has_shape = false, has_offsets = false;
  NIBBLE_CHECK(json.object([&](const std::string& key) -> Result<void> {
    if (key == "dtype" && !std::exchange(has_type, true)) {
      NIBBLE_TRY(name, json.string());
      const auto* const found =
          std::find_if(std::begin(kSafetensorTypes), std::end(kSafetensorTypes),
                       [&](const SafetensorTypeTraits& type) { return type.name == name; });
      if (found == std::end(kSafetensorTypes)) {
        return Error{Errc::unsupported, "element type " + quoted(name) + " is unknown"};
      }
      tensor.type = found->type;
      return ok();
    }
    if (key == "shape" && !std::exchange(has_shape, true)) {
      return json.array([&]() -> Result<void> {
        NIBBLE_TRY(dim, json.unsigned_integer());
        tensor.shape.push_back(dim);
        return ok();
      });
    }
    if (key == "data_offsets" && !std::exchange(has_offsets, true)) return read_place(json, place);
    return json.error("an unexpected or repeated key " + quoted(key));
  }));
  if (!has_type || !has_shape || !has_offsets) {
    return json.error("dtype, shape or data_offsets is missing");
  }
  return ok();
}

// The tensors must tile the data section: no overlaps, no gaps.
inline Result<void> Safetensors::place_tensors(std::span<const std::byte> section,
                                               const std::vector<Place>& places) {
  std::vector<std::size_t> order(places.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    const Place& p = places[a];
    const Place& q = places[b];
    return p.begin != q.begin ? p.begin < q.begin : p.end < q.end;
  });
  std::uint64_t at = 0;
  for (const std::size_t i : order) {
    Safetensor& tensor = tensors_[i];
    const Place& place = places[i];
    const auto fail = [&](const std::string& what) {
      return Error{Errc::malformed, "tensor " + quoted(tensor.name) + ": " + what};
    };
    if (place.begin > place.end) return fail("data_offsets end before they begin");
    if (place.end > section.size()) {
      return fail("data_offsets end at " + to_text(place.end) + " of " + to_text(section.size()) +
                  " bytes");
    }
    if (place.begin != at) {
      return fail(place.begin < at ? "its data overlaps another tensor's"
                                   : "a hole in front of its data");
    }
    auto size = tensor_bytes(tensor.type, tensor.shape);
    if (!size) return std::move(size).error().in("tensor " + quoted(tensor.name));
    if (*size != place.end - place.begin) {
      return fail("data_offsets span " + to_text(place.end - place.begin) +
                  " bytes, the shape needs " + to_text(*size));
    }
    tensor.data = section.subspan(narrow<std::size_t>(place.begin), narrow<std::size_t>(*size));
    at = place.end;
  }
  if (at != section.size()) {
    return Error{Errc::malformed,
                 to_text(section.size() - at) + " bytes at the end belong to no tensor"};
  }
  return ok();
}

}}}  // namespace nibble::NIBBLE_ABI::io
