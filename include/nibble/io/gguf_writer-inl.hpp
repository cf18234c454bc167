// SPDX-License-Identifier: Apache-2.0
//
// The functions of a writer of GGUF files. Included by gguf_writer.hpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/core/text.hpp"
#include "nibble/io/ggml_type.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/gguf_tensor.hpp"
#include "nibble/io/gguf_value.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/io/output_file.hpp"
#include "nibble/io/tensor_bytes.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace io {

NIBBLE_INLINE void GgufWriter::append_string(std::vector<std::byte>& out, std::string_view text) {
  append(out, std::uint64_t{text.size()});
  const auto bytes = std::as_bytes(std::span<const char>(text));
  out.insert(out.end(), bytes.begin(), bytes.end());
}

NIBBLE_INLINE void GgufWriter::set(std::string_view key, std::string_view value) {
  remember_error_of([&] {
    std::vector<std::byte> encoded;
    append_string(encoded, value);
    return put(key, GgufType::string, std::move(encoded));
  });
}

NIBBLE_INLINE void GgufWriter::set(std::string_view key, const GgufValue& value) {
  remember_error_of([&] {
    return put(key, value.type(), {value.encoded().begin(), value.encoded().end()});
  });
}

NIBBLE_INLINE void GgufWriter::copy_metadata(const Gguf& gguf) {
  for (const GgufEntry& entry : gguf.metadata()) set(entry.key, entry.value);
}

NIBBLE_INLINE Result<void> GgufWriter::put(std::string_view key, GgufType type,
                                           std::vector<std::byte> encoded) {
  NIBBLE_CHECK(detail::check_gguf_name(key, kGgufMaxKey, "key"));
  const auto found = entry_index_.find(key);
  if (found != entry_index_.end()) {
    Entry& entry = entries_[found->second];
    entry.type = type;
    entry.encoded = std::move(encoded);
    return ok();
  }
  entries_.push_back({std::string(key), type, std::move(encoded)});
  entry_index_.emplace(key, entries_.size() - 1);
  return ok();
}

NIBBLE_INLINE void GgufWriter::add_tensor(std::string_view name, GgmlType type,
                                          std::span<const std::uint64_t> dims,
                                          std::span<const std::byte> data) {
  add_tensor(name, type, dims, [data]() -> Result<std::span<const std::byte>> { return data; });
}

NIBBLE_INLINE void GgufWriter::add_tensor(const GgufTensor& tensor, const TensorBytes& read) {
  const auto dims = std::span(tensor.dims).first(tensor.n_dims);
  remember_error_of([&] { return put_tensor(tensor.name, tensor.type, dims, {}, read); });
}

NIBBLE_INLINE void GgufWriter::add_tensor(const GgufTensor& tensor) {
  add_tensor(tensor, TensorBytes(tensor.data, tensor.swapped));
}

NIBBLE_INLINE void GgufWriter::add_tensor(const Gguf& file, const GgufTensor& tensor) {
  add_tensor(tensor, file.bytes_of(tensor));
}

NIBBLE_INLINE void GgufWriter::add_tensor(std::string_view name, GgmlType type,
                                          std::span<const std::uint64_t> dims,
                                          TensorSource source) {
  remember_error_of([&] { return put_tensor(name, type, dims, std::move(source)); });
}

NIBBLE_INLINE Result<void> GgufWriter::put_tensor(std::string_view name, GgmlType type,
                                                  std::span<const std::uint64_t> dims,
                                                  TensorSource source,
                                                  std::optional<TensorBytes> read) {
  const std::string what = "tensor " + quoted(name);
  NIBBLE_CHECK(detail::check_gguf_name(name, kGgufMaxTensorName, "tensor name"));
  if (dims.size() > kGgufMaxDims) {
    return Error{Errc::invalid_argument,
                 what + ": " + to_text(dims.size()) + " dimensions, more than 4"};
  }
  auto bytes = tensor_bytes(type, dims);
  if (!bytes) return std::move(bytes).error().in(what);
  if (!source && !read) return Error{Errc::invalid_argument, what + ": no source for its data"};
  if (!tensor_index_.emplace(name, tensors_.size()).second) {
    return Error{Errc::invalid_argument, what + " is added twice"};
  }
  tensors_.push_back(
      {std::string(name), type, {dims.begin(), dims.end()}, *bytes, std::move(source), read});
  return ok();
}

NIBBLE_INLINE Result<std::uint32_t> GgufWriter::alignment() const {
  const auto found = entry_index_.find(kGgufAlignmentKey);
  if (found == entry_index_.end()) return kGgufDefaultAlignment;
  const Entry& entry = entries_[found->second];
  ByteReader in(entry.encoded);
  NIBBLE_TRY(value, GgufValue::read(entry.type, in));
  auto alignment = value.as<std::uint32_t>();
  Result<void> right = alignment ? detail::check_gguf_alignment(*alignment)
                                 : Result<void>(std::move(alignment).error());
  if (!right) return std::move(right).error().in(std::string(kGgufAlignmentKey));
  return *alignment;
}

// Everything before the tensor data, padded to the start of that data; or the first error of what
// was added.
NIBBLE_INLINE Result<std::vector<std::byte>> GgufWriter::header(std::uint32_t alignment) const {
  if (error_) return Error(*error_);
  std::vector<std::byte> out;
  append(out, kGgufMagic);
  append(out, kGgufVersion);
  append(out, std::uint64_t{tensors_.size()});
  append(out, std::uint64_t{entries_.size()});
  for (const Entry& entry : entries_) {
    append_string(out, entry.key);
    append(out, static_cast<std::uint32_t>(entry.type));
    out.insert(out.end(), entry.encoded.begin(), entry.encoded.end());
  }
  std::uint64_t offset = 0;
  for (const Tensor& tensor : tensors_) {
    append_string(out, tensor.name);
    append(out, narrow<std::uint32_t>(tensor.dims.size()));
    for (const std::uint64_t dim : tensor.dims) append(out, dim);
    append(out, static_cast<std::uint32_t>(tensor.type));
    append(out, offset);
    if (!checked_add(offset, tensor.bytes, offset) || !checked_add(offset, alignment - 1, offset)) {
      return Error{Errc::limit, "the tensors together overflow 64 bits"};
    }
    offset -= offset % alignment;
  }
  pad(out, alignment);
  return out;
}

// sink(bytes) -> Result<void> receives the file in consecutive chunks.
template <class Sink>
Result<void> GgufWriter::write_to(Sink sink) const {
  NIBBLE_TRY(align, alignment());
  NIBBLE_TRY(head, header(align));
  NIBBLE_CHECK(sink(std::span<const std::byte>(head)));
  const std::vector<std::byte> zeros(align);
  std::vector<std::byte> part;  // of a tensor that is read
  for (const Tensor& tensor : tensors_) {
    auto data = tensor.read ? Result<std::span<const std::byte>>(std::span<const std::byte>())
                            : tensor.source();
    if (!data) return std::move(data).error().in("tensor " + quoted(tensor.name));
    const std::size_t size = tensor.read ? tensor.read->size() : data->size();
    if (size != tensor.bytes) {
      return Error{Errc::invalid_argument, "tensor " + quoted(tensor.name) + ": " + to_text(size) +
                                               " bytes of data for a shape of " +
                                               to_text(tensor.bytes)};
    }
    NIBBLE_CHECK(sink(*data));
    for (std::size_t at = 0; tensor.read && at < size; at += part.size()) {
      part.resize((std::min)(size - at, kPartBytes));
      Result<void> read = tensor.read->read(at, part);
      if (!read) return std::move(read).error().in("tensor " + quoted(tensor.name));
      NIBBLE_CHECK(sink(std::span<const std::byte>(part)));
    }
    const auto padding = narrow<std::size_t>((align - tensor.bytes % align) % align);
    NIBBLE_CHECK(sink(std::span(zeros).first(padding)));
  }
  return ok();
}

NIBBLE_INLINE Result<void> GgufWriter::write(const std::string& path) const {
  return catch_out_of_memory([&]() -> Result<void> {
    NIBBLE_TRY(file, OutputFile::create(path));
    NIBBLE_CHECK(write_to([&](std::span<const std::byte> bytes) { return file.write(bytes); }));
    return file.commit();
  });
}

NIBBLE_INLINE Result<std::uint64_t> GgufWriter::header_bytes() const {
  return catch_out_of_memory([&]() -> Result<std::uint64_t> {
    NIBBLE_TRY(align, alignment());
    NIBBLE_TRY(bytes, header(align));
    return std::uint64_t{bytes.size()};
  });
}

NIBBLE_INLINE Result<std::vector<std::byte>> GgufWriter::to_bytes() const {
  return catch_out_of_memory([&]() -> Result<std::vector<std::byte>> {
    std::vector<std::byte> out;
    NIBBLE_CHECK(write_to([&](std::span<const std::byte> bytes) {
      out.insert(out.end(), bytes.begin(), bytes.end());
      return ok();
    }));
    return out;
  });
}

}}}  // namespace nibble::NIBBLE_ABI::io
