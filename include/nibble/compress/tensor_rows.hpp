// SPDX-License-Identifier: Apache-2.0
//
// Matrices of a GGUF file as rows: read as floats, and rows or columns selected from them. Rows are
// copied bit for bit in any type; so are columns, if whole blocks are kept or left out.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "nibble/core/float16.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/view.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/tensor_bytes.hpp"
#include "nibble/quant/ggml.hpp"
#include "nibble/quant/read_only.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

// The place in messages: file and tensor.
inline std::string place_in_messages(const io::Gguf& file, std::string_view tensor) {
  return file.name() + ": tensor " + io::quoted(tensor);
}

namespace detail {

// Packed weights are not stored row by row. Error: unsupported.
inline Result<void> check_unpacked(const io::GgufTensor& tensor) {
  if (io::type_traits(tensor.type).panel_rows == 0) return ok();
  return Error{Errc::unsupported, "packed weights; take the file that it was made from"};
}

}  // namespace detail

// The bytes of a tensor in its own order. Errors: io, out_of_memory, unsupported (a packed tensor).
inline Result<std::vector<std::byte>> tensor_bytes_of(const io::Gguf& file,
                                                      const io::GgufTensor& tensor) {
  Result<void> checked = detail::check_unpacked(tensor);
  if (!checked) return std::move(checked).error().in(place_in_messages(file, tensor.name));
  std::vector<std::byte> bytes(tensor.data.size());
  NIBBLE_CHECK(file.bytes_of(tensor).read(0, bytes));
  return bytes;
}

// The rows of a tensor, read one by one as floats. Several threads may read at once. The file must
// outlive this. Errors do not name the tensor.
class FloatRows {
 public:
  // Errors: unsupported (a packed tensor), limit (rows larger than the address space).
  static Result<FloatRows> of(const io::Gguf& file, const io::GgufTensor& tensor) {
    NIBBLE_CHECK(detail::check_unpacked(tensor));
    NIBBLE_TRY(row_bytes, io::row_bytes(tensor.type, tensor.dims[0]));
    if (tensor.n_elements() > SIZE_MAX / sizeof(float)) {
      return Error{Errc::limit, "larger than the address space"};
    }
    return FloatRows(file, tensor, io::narrow<std::size_t>(row_bytes));
  }

  std::size_t n() const noexcept { return n_; }
  std::size_t k() const noexcept { return k_; }  // weights of a row
  std::size_t row_bytes() const noexcept { return row_bytes_; }
  // Row `row` to `out` (k), with memory for the stored row (row_bytes). Errors: io; unsupported (a
  // type that holds no weights).
  Result<void> read(std::size_t row, std::span<std::byte> stored, std::span<float> out) const {
    NIBBLE_CHECK(bytes_.read(row * row_bytes_, stored));
    return quant::row_to_f32(type_, stored, out);
  }
  // All rows to `out`, n() · k() numbers. Errors: as read().
  Result<void> read_all(std::span<float> out) const {
    NIBBLE_ASSERT(out.size() == n_ * k_);
    std::vector<std::byte> stored(row_bytes_);
    for (std::size_t i = 0; i < n_; ++i) {
      NIBBLE_CHECK(read(i, stored, out.subspan(i * k_, k_)));
    }
    return ok();
  }

 private:
  FloatRows(const io::Gguf& file, const io::GgufTensor& tensor, std::size_t row_bytes) noexcept
      : bytes_(file.bytes_of(tensor)),
        type_(tensor.type),
        k_(io::narrow<std::size_t>(tensor.dims[0])),
        n_(k_ == 0 ? 0 : io::narrow<std::size_t>(tensor.n_elements()) / k_),
        row_bytes_(row_bytes) {}

  io::TensorBytes bytes_;
  io::GgmlType type_;
  std::size_t k_, n_;
  std::size_t row_bytes_;
};

// All weights of a tensor as floats, (rows, dims[0]) one after the other. Errors: those of
// FloatRows, and out_of_memory; with file and tensor.
inline Result<std::vector<float>> tensor_floats(const io::Gguf& file,
                                                const io::GgufTensor& tensor) {
  const auto read = [&]() -> Result<std::vector<float>> {
    NIBBLE_TRY(rows, FloatRows::of(file, tensor));
    std::vector<float> floats(rows.n() * rows.k());
    NIBBLE_CHECK(rows.read_all(floats));
    return floats;
  };
  auto floats = read();
  if (!floats) return std::move(floats).error().in(place_in_messages(file, tensor.name));
  return floats;
}

// A tensor that a new file gets.
struct NewTensor {
  io::GgmlType type = io::GgmlType::f32;
  std::vector<std::uint64_t> dims;
  std::vector<std::byte> bytes;
};

// Rows `rows` of a matrix, or elements of a vector, in this order. Errors: those of
// tensor_bytes_of(); invalid_argument (a row that does not exist).
inline Result<NewTensor> select_rows(const io::Gguf& file, const io::GgufTensor& tensor,
                                     std::span<const Index> rows) {
  NIBBLE_TRY(all, tensor_bytes_of(file, tensor));
  const bool is_vector = tensor.n_dims < 2;
  const auto n = io::narrow<std::size_t>(is_vector ? tensor.dims[0] : tensor.dims[1]);
  if (tensor.n_dims > 2 || n == 0 || all.size() % n != 0) {
    return Error{Errc::unsupported,
                 place_in_messages(file, tensor.name) + ": not a matrix or vector"};
  }
  const std::size_t row_bytes = all.size() / n;
  NewTensor out{tensor.type, {tensor.dims.begin(), tensor.dims.begin() + tensor.n_dims}, {}};
  out.dims[is_vector ? 0 : 1] = rows.size();
  out.bytes.resize(rows.size() * row_bytes);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (rows[i] < 0 || static_cast<std::size_t>(rows[i]) >= n) {
      return Error{Errc::invalid_argument, place_in_messages(file, tensor.name) + ": row " +
                                               to_text(rows[i]) + " of " + to_text(n)};
    }
    std::memcpy(out.bytes.data() + i * row_bytes,
                all.data() + static_cast<std::size_t>(rows[i]) * row_bytes, row_bytes);
  }
  return out;
}

namespace detail {

// The blocks that the columns are, if they are whole blocks; otherwise nothing.
inline std::vector<std::size_t> whole_blocks(std::span<const Index> columns, std::size_t length) {
  std::vector<std::size_t> blocks;
  if (columns.size() % length != 0) return {};
  for (std::size_t i = 0; i < columns.size(); i += length) {
    const auto first = static_cast<std::size_t>(columns[i]);
    if (first % length != 0) return {};
    for (std::size_t j = 0; j < length; ++j) {
      if (static_cast<std::size_t>(columns[i + j]) != first + j) return {};
    }
    blocks.push_back(first / length);
  }
  return blocks;
}

// Columns of blocks that fall apart: their values, as f16 where all fit and otherwise as f32.
inline Result<void> select_values(const io::Gguf& file, const io::GgufTensor& tensor,
                                  std::span<const Index> columns, NewTensor& out) {
  NIBBLE_TRY(all, tensor_floats(file, tensor));
  const auto k = io::narrow<std::size_t>(tensor.dims[0]);
  const std::size_t n = all.size() / k, width = columns.size();
  std::vector<float> kept(n * width);
  bool fits = true;
  for (std::size_t r = 0; r < n; ++r) {
    for (std::size_t i = 0; i < width; ++i) {
      const float x = all[r * k + static_cast<std::size_t>(columns[i])];
      fits = fits && x >= -65504.0f && x <= 65504.0f;
      kept[r * width + i] = x;
    }
  }
  const quant::Format format = fits ? quant::Format::f16 : quant::Format::f32;
  NIBBLE_TRY(type, quant::ggml_type_of(format));
  out.type = type;
  out.bytes.resize(kept.size() * (fits ? 2 : 4));
  return quant::row_from_f32(format, kept, out.bytes);
}

}  // namespace detail

// Columns `columns` of a matrix, in this order. The type stays where its blocks stay whole;
// otherwise it becomes f16, or f32 if a value is beyond f16. Errors: as select_rows().
inline Result<NewTensor> select_columns(const io::Gguf& file, const io::GgufTensor& tensor,
                                        std::span<const Index> columns) {
  const auto k = io::narrow<std::size_t>(tensor.dims[0]);
  if (tensor.n_dims != 2) {
    return Error{Errc::unsupported, place_in_messages(file, tensor.name) + ": not a matrix"};
  }
  for (const Index column : columns) {
    if (column >= 0 && static_cast<std::size_t>(column) < k) continue;
    return Error{Errc::invalid_argument, place_in_messages(file, tensor.name) + ": column " +
                                             to_text(column) + " of " + to_text(k)};
  }
  NewTensor out{tensor.type, {columns.size(), tensor.dims[1]}, {}};
  const io::GgmlTypeTraits traits = io::type_traits(tensor.type);
  const auto blocks = detail::whole_blocks(columns, traits.block_size);
  if (blocks.empty()) {
    NIBBLE_CHECK(detail::select_values(file, tensor, columns, out));
    return out;
  }
  NIBBLE_TRY(all, tensor_bytes_of(file, tensor));
  const std::size_t unit = traits.type_size, row = k / traits.block_size * unit;
  const auto n = io::narrow<std::size_t>(tensor.dims[1]);
  out.bytes.resize(n * blocks.size() * unit);
  std::byte* to = out.bytes.data();
  for (std::size_t r = 0; r < n; ++r) {
    for (const std::size_t block : blocks) {
      std::memcpy(to, all.data() + r * row + block * unit, unit);
      to += unit;
    }
  }
  return out;
}

}}}  // namespace nibble::NIBBLE_ABI::compress
