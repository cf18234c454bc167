// SPDX-License-Identifier: Apache-2.0
//
// Writer for GGUF version 3. Metadata is kept encoded. Tensor data is requested when the file is
// written, one tensor at a time, so that a model larger than memory can be streamed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <iterator>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/output_file.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace io {

// Set metadata, add tensors, then write. An error in a key, name or shape is remembered, and
// write() returns the first one: the calls before need no checks. So is memory that runs out.
class GgufWriter {
 public:
  // Returns the data of one tensor when it is to be written: exactly tensor_bytes(type, dims)
  // bytes, which stay valid until the next source is called or writing ends.
  using TensorSource = std::function<Result<std::span<const std::byte>>()>;

  // ---- Metadata: a key that is set again keeps its place and gets the new value ----

  // Stored with the width of T: bool, f32/f64, or an integer of 8 to 64 bits.
  template <class T>
  requires std::is_arithmetic_v<T>
  void set(std::string_view key, T value);
  void set(std::string_view key, std::string_view value);
  // A value from another file; it is copied.
  void set(std::string_view key, const GgufValue& value);
  // Any range of numbers, bools or strings.
  template <class Range>
  void set_array(std::string_view key, const Range& values);
  // Copies all metadata of `gguf`. To override a key, set() it before or after: the last value
  // wins.
  void copy_metadata(const Gguf& gguf);

  // ---- Tensors: written in the order in which they are added ----

  // dims[0] is the contiguous dimension; at most 4. `data` must live until writing ends.
  void add_tensor(std::string_view name, GgmlType type, std::span<const std::uint64_t> dims,
                  std::span<const std::byte> data);
  void add_tensor(std::string_view name, GgmlType type, std::span<const std::uint64_t> dims,
                  TensorSource source);
  // A tensor from another file, which must stay open until writing ends. It is read in parts when
  // it is written, with `file` by MappedFile::read, else through the mapping.
  void add_tensor(const GgufTensor& tensor);
  void add_tensor(const Gguf& file, const GgufTensor& tensor);

  // Writes the file `path`, completely or not at all (see OutputFile). Errors: the remembered one,
  // io, and the errors of sources. May be called again; it then calls the sources again.
  Result<void> write(const std::string& path) const;
  // The same bytes in memory.
  Result<std::vector<std::byte>> to_bytes() const;
  // Bytes of the file before the data of the first tensor: keys, and names and shapes of tensors.
  // Errors: as write().
  Result<std::uint64_t> header_bytes() const;

 private:
  static constexpr std::size_t kPartBytes = std::size_t{1} << 20;  // that are read at once

  struct Entry {
    std::string key;
    GgufType type;
    std::vector<std::byte> encoded;  // as in the file, after the type id
  };
  struct Tensor {
    std::string name;
    GgmlType type;
    std::vector<std::uint64_t> dims;
    std::uint64_t bytes;
    TensorSource source;                   // or, if it is empty,
    std::optional<TensorBytes> read = {};  // what is read in parts
  };

  template <class T>
  static constexpr GgufType type_of() noexcept;
  template <class T>
  static void append(std::vector<std::byte>& out, T value);
  static void append_string(std::vector<std::byte>& out, std::string_view text);
  static void pad(std::vector<std::byte>& out, std::uint32_t alignment) {
    out.resize((out.size() + alignment - 1) / alignment * alignment);
  }

  Result<void> put(std::string_view key, GgufType type, std::vector<std::byte> encoded);
  Result<void> put_tensor(std::string_view name, GgmlType type, std::span<const std::uint64_t> dims,
                          TensorSource source, std::optional<TensorBytes> read = {});
  void add_tensor(const GgufTensor& tensor, const TensorBytes& read);
  // Calls f() -> Result<void> and remembers the first error.
  template <class Function>
  void remember_error_of(Function f) {
    Result<void> done = catch_out_of_memory(f);
    if (!done && !error_) error_ = std::move(done).error();
  }
  Result<std::uint32_t> alignment() const;
  Result<std::vector<std::byte>> header(std::uint32_t alignment) const;
  template <class Sink>
  Result<void> write_to(Sink sink) const;

  std::optional<Error> error_;
  std::vector<Entry> entries_;
  std::map<std::string, std::size_t, std::less<>> entry_index_;
  std::vector<Tensor> tensors_;
  std::map<std::string, std::size_t, std::less<>> tensor_index_;
};

template <class T>
constexpr GgufType GgufWriter::type_of() noexcept {
  static_assert(sizeof(T) <= 8 && !std::is_same_v<T, long double>, "GGUF has no such type");
  constexpr bool kSigned = std::is_signed_v<T>;
  if constexpr (std::is_same_v<T, bool>) {
    return GgufType::boolean;
  } else if constexpr (std::is_floating_point_v<T>) {
    return sizeof(T) == 4 ? GgufType::f32 : GgufType::f64;
  } else if constexpr (sizeof(T) == 1) {
    return kSigned ? GgufType::i8 : GgufType::u8;
  } else if constexpr (sizeof(T) == 2) {
    return kSigned ? GgufType::i16 : GgufType::u16;
  } else if constexpr (sizeof(T) == 4) {
    return kSigned ? GgufType::i32 : GgufType::u32;
  } else {
    return kSigned ? GgufType::i64 : GgufType::u64;
  }
}

template <class T>
void GgufWriter::append(std::vector<std::byte>& out, T value) {
  const std::size_t at = out.size();
  out.resize(at + sizeof(T));
  std::memcpy(out.data() + at, &value, sizeof(T));  // little-endian host: see core/config.hpp
}

template <class T>
requires std::is_arithmetic_v<T>
void GgufWriter::set(std::string_view key, T value) {
  remember_error_of([&] {
    std::vector<std::byte> encoded;
    append(encoded, value);
    return put(key, type_of<T>(), std::move(encoded));
  });
}

template <class Range>
void GgufWriter::set_array(std::string_view key, const Range& values) {
  using T = std::remove_cvref_t<decltype(*std::begin(values))>;
  constexpr bool kStrings = std::is_convertible_v<T, std::string_view>;
  remember_error_of([&] {
    std::vector<std::byte> elements;
    std::uint64_t count = 0;
    for (const auto& value : values) {
      if constexpr (kStrings) {
        append_string(elements, value);
      } else {
        append(elements, static_cast<T>(value));
      }
      ++count;
    }
    GgufType type = GgufType::string;
    if constexpr (!kStrings) type = type_of<T>();
    std::vector<std::byte> encoded;
    append(encoded, static_cast<std::uint32_t>(type));
    append(encoded, count);
    encoded.insert(encoded.end(), elements.begin(), elements.end());
    return put(key, GgufType::array, std::move(encoded));
  });
}

}}}  // namespace nibble::NIBBLE_ABI::io

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/io/gguf_writer-inl.hpp"
#endif
