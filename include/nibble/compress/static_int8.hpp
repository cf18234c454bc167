// SPDX-License-Identifier: Apache-2.0
//
// Converts a model to 8-bit weights with one scale for each output channel, whose products quantize
// their inputs with scales that are known before: GGUF and the ranges of the inputs in, GGUF out.
// docs/static-int8.md describes the file.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/compress/tensor_rows.hpp"
#include "nibble/core/arena.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/model/channel_tensors.hpp"
#include "nibble/quant/error_stats.hpp"
#include "nibble/quant/format.hpp"
#include "nibble/quant/packed.hpp"
#include "nibble/quant/read_only.hpp"
#include "nibble/quant/static_scale.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

// The range of the input of the products with one matrix.
struct ProductInput {
  std::string weights;       // the matrix's name: "blk.0.attn_q.weight"
  quant::StaticScale scale;  // from calibration
};

struct StaticInt8Options {
  // Leaves the ranges out: the matrices are the same, and each row of an input gets its scale when
  // it is computed.
  bool dynamic = false;
  Executor* executor = nullptr;  // converts in parallel; null: the calling thread
};

// A matrix that was converted.
struct Int8Matrix {
  std::string name;
  std::uint64_t n = 0;  // rows: output channels
  std::uint64_t k = 0;
  std::uint64_t bytes_from = 0;
  std::uint64_t bytes_to = 0;  // codes and scales
  quant::StaticScale input;
  quant::ErrorStats errors;  // of the new weights relative to the old ones
};

// Called with each matrix after its conversion, in file order. Returning false cancels.
using OnInt8Matrix = FunctionRef<bool(const Int8Matrix&)>;

namespace detail {

inline bool keep_all(const Int8Matrix&) noexcept { return true; }

// One matrix on its way: what it is converted from, and the arrays that the writer reads.
struct Int8Conversion {
  const io::GgufTensor* tensor = nullptr;
  Int8Matrix matrix;
  std::vector<Scalar<float>> scales;  // (n)
};

// What one task found; a task converts some rows.
struct Int8Part {
  quant::ErrorStats errors;
  bool has_bad = false;  // a weight that is not finite: the first, and its value
  std::uint64_t row = 0, column = 0;
  float bad = 0;
  bool has_error = false;
  Error error{Errc::io, ""};
};

// Quantizes row `row`: scale = largest magnitude / 127, codes to nearest.
inline void convert_row(const FloatRows& source, Int8Conversion& c, std::uint64_t row,
                        std::span<std::byte> stored, std::span<float> before,
                        std::span<float> after, std::byte* codes, Int8Part& part) {
  if (part.has_bad || part.has_error) return;
  const auto i = io::narrow<std::size_t>(row);
  Result<void> read = source.read(i, stored, before);
  if (!read) {
    part.has_error = true;
    part.error = std::move(read).error();
    return;
  }
  for (std::size_t j = 0; j < before.size(); ++j) {
    if (is_finite(static_cast<double>(before[j]))) continue;
    part.has_bad = true;
    part.row = row;
    part.column = j;
    part.bad = before[j];
    return;
  }
  const auto header = quant::fit<quant::I8Channel>(before);
  c.scales[i].value = header.scale;
  for (std::size_t j = 0; j < before.size(); ++j) {
    const std::int8_t code = quant::code_of(header, before[j]);
    codes[i * before.size() + j] = static_cast<std::byte>(code);
    after[j] = quant::weight_of(header, code);
  }
  part.errors.add(before, after);
}

// Writes the codes of a matrix to `codes` and its scales to c.scales.
inline Result<void> convert_matrix(const io::Gguf& in, Executor& executor, Int8Conversion& c,
                                   std::span<std::byte> codes) {
  constexpr std::uint64_t kWeightsOfTask = std::uint64_t{1} << 16;
  const auto n = c.matrix.n, k = c.matrix.k;
  NIBBLE_TRY(source, FloatRows::of(in, *c.tensor));
  const std::size_t row_bytes = source.row_bytes();
  c.scales.resize(static_cast<std::size_t>(n));
  const std::uint64_t rows_of_task = std::max<std::uint64_t>(1, kWeightsOfTask / k);
  const std::uint64_t n_tasks = (n + rows_of_task - 1) / rows_of_task;
  // Scratch for each worker: a stored row, and a row before and after.
  const std::size_t floats = align_up(static_cast<std::size_t>(k) * sizeof(float));
  const std::size_t scratch_bytes = align_up(row_bytes) + 2 * floats;
  const auto n_workers = static_cast<std::size_t>(executor.n_workers());
  if (scratch_bytes > SIZE_MAX / n_workers) {
    return Error{Errc::out_of_memory, "rows of " + to_text(k) + " weights"};
  }
  NIBBLE_TRY(scratch, AlignedBuffer::allocate(n_workers * scratch_bytes));
  std::vector<Int8Part> parts(static_cast<std::size_t>(n_tasks));
  executor.parallel_for(static_cast<Index>(n_tasks), [&](Index task, Index worker) {
    std::byte* const memory = scratch.data() + static_cast<std::size_t>(worker) * scratch_bytes;
    const std::span<std::byte> stored(memory, row_bytes);
    auto* const x = reinterpret_cast<float*>(memory + align_up(row_bytes));
    auto* const y = reinterpret_cast<float*>(memory + align_up(row_bytes) + floats);
    const auto length = static_cast<std::size_t>(k);
    const std::uint64_t first = static_cast<std::uint64_t>(task) * rows_of_task;
    for (std::uint64_t row = first; row < (std::min)(n, first + rows_of_task); ++row) {
      convert_row(source, c, row, stored, {x, length}, {y, length}, codes.data(),
                  parts[static_cast<std::size_t>(task)]);
    }
  });
  c.matrix.errors = {};
  for (Int8Part& part : parts) {
    if (part.has_error) return std::move(part.error);
    if (part.has_bad) {
      return Error{Errc::malformed, "weight " + to_text(part.column) + " of row " +
                                        to_text(part.row) + " is not a finite number"};
    }
    c.matrix.errors.merge(part.errors);
  }
  return ok();
}

// Checks that `input` can be used with the tensor of its name.
inline Result<Int8Conversion> plan_matrix(const io::GgufTensor& tensor, const ProductInput& input,
                                          bool is_static) {
  using L = quant::Packed<quant::I8Channel>;
  Int8Conversion c;
  c.tensor = &tensor;
  c.matrix.name = std::string(tensor.name);
  c.matrix.k = tensor.dims[0];
  c.matrix.n = tensor.dims[1];
  if (tensor.n_dims != 2) {
    return Error{Errc::unsupported, "the input of a product is known for it, but it has " +
                                        to_text(tensor.n_dims) + " dimensions, not 2"};
  }
  if (quant::read_only_type(tensor.type) == nullptr) NIBBLE_CHECK(quant::format_of(tensor.type));
  const Index longest = is_static && input.scale.is_unsigned ? L::kMaxAffineK : L::kMaxK;
  if (c.matrix.k > static_cast<std::uint64_t>(longest)) {
    return Error{Errc::limit, "rows of " + to_text(c.matrix.k) + " weights; 8-bit products take " +
                                  to_text(longest)};
  }
  if (is_static && !quant::is_usable(input.scale)) {
    return Error{Errc::invalid_argument,
                 "its input has the scale " + to_text(static_cast<double>(input.scale.scale)) +
                     " and the zero point " + to_text(input.scale.zero_point) +
                     ": nothing was observed, or it was not finite"};
  }
  c.matrix.bytes_from = tensor.data.size();
  c.matrix.bytes_to = c.matrix.n * (c.matrix.k + sizeof(float));
  if (!std::in_range<std::size_t>(c.matrix.bytes_to)) {
    return Error{Errc::limit, "converted, it is larger than the address space"};
  }
  if (is_static) c.matrix.input = input.scale;
  return c;
}

// Every input must name one tensor, each another one.
inline Result<void> check_inputs(const io::Gguf& in, std::span<const ProductInput> inputs) {
  if (inputs.empty()) {
    return Error{Errc::invalid_argument,
                 "static INT8: no ranges of inputs; observe the model on a text first"};
  }
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const std::string& name = inputs[i].weights;
    if (in.find_tensor(name) == nullptr) {
      return Error{Errc::not_found, in.name() + ": there is no tensor " + io::quoted(name) +
                                        ", for which a range of inputs was given: they are of "
                                        "another model"};
    }
    for (std::size_t j = 0; j < i; ++j) {
      if (inputs[j].weights == name) {
        return Error{Errc::invalid_argument, "two ranges of inputs for " + io::quoted(name)};
      }
    }
  }
  return ok();
}

// Adds the matrix and what stands beside it to a writer. `c` must stay where it is.
inline void add_matrix(const io::Gguf& in, Executor& executor, OnInt8Matrix on_matrix,
                       Int8Conversion& c, AlignedBuffer& codes, io::GgufWriter& writer) {
  using Bytes = std::span<const std::byte>;
  const std::string& name = c.matrix.name;
  const std::uint64_t dims[] = {c.matrix.k, c.matrix.n};
  writer.add_tensor(
      name, io::GgmlType::i8, dims, [&in, &executor, on_matrix, &c, &codes]() -> Result<Bytes> {
        const auto out = codes.bytes().first(io::narrow<std::size_t>(c.matrix.n * c.matrix.k));
        Result<void> converted = convert_matrix(in, executor, c, out);
        if (!converted) {
          return std::move(converted).error().in(in.name() + ": tensor " +
                                                 io::quoted(c.matrix.name));
        }
        if (!on_matrix(c.matrix)) return Error{Errc::cancelled, "converting"};
        return Bytes(out);
      });
  nibble::detail::add_channel_tensors(
      writer, name, c.matrix.n,
      [&c]() -> Result<Bytes> {
        return std::as_bytes(std::span(values(c.scales), c.scales.size()));
      },
      c.matrix.input);
}

// Calls finish(writer) with a writer of the converted model.
template <class Finish>
auto to_static_int8(const io::Gguf& in, std::span<const ProductInput> inputs,
                    const StaticInt8Options& options, OnInt8Matrix on_matrix, Finish finish)
    -> decltype(finish(std::declval<const io::GgufWriter&>())) {
  NIBBLE_CHECK(check_inputs(in, inputs));
  InlineExecutor alone;
  Executor& executor = options.executor != nullptr ? *options.executor : alone;
  io::GgufWriter writer;
  writer.copy_metadata(in);
  writer.set("general.file_type", nibble::detail::kUnstatedFileType);
  std::vector<Int8Conversion> matrices;
  matrices.reserve(inputs.size());  // sources keep references
  std::size_t largest = 0;
  AlignedBuffer codes;  // of the matrix that was converted last
  for (const io::GgufTensor& tensor : in.tensors()) {
    const auto input = std::find_if(inputs.begin(), inputs.end(), [&](const ProductInput& i) {
      return i.weights == tensor.name;
    });
    if (input == inputs.end()) {
      writer.add_tensor(in, tensor);
      continue;
    }
    auto planned = plan_matrix(tensor, *input, !options.dynamic);
    if (!planned) {
      return std::move(planned).error().in(in.name() + ": tensor " + io::quoted(tensor.name));
    }
    Int8Conversion& c = matrices.emplace_back(*std::move(planned));
    largest = (std::max)(largest, io::narrow<std::size_t>(c.matrix.n * c.matrix.k));
    add_matrix(in, executor, on_matrix, c, codes, writer);
  }
  NIBBLE_TRY(memory, AlignedBuffer::allocate(largest));
  codes = std::move(memory);
  return finish(writer);
}

}  // namespace detail

// Writes the model `in` to the file `path` with the matrices that `inputs` names in 8 bits: codes
// in a tensor of type I8, a scale for each row, and the range of the input beside it. All other
// tensors and all metadata are kept; general.file_type says that the types must be looked at.
// Matrices whose input nobody observed (tables of embeddings that no product reads) so stay as they
// are. Weights: as quant::fit<I8Channel>, bit for bit. Errors: invalid_argument (no inputs, two for
// one matrix, a scale that cannot be used), not_found (a matrix that the file does not have: ranges
// of another model), unsupported (a type that is not read, a tensor that is no matrix), malformed
// (a weight that is not finite), limit, cancelled, out_of_memory, io.
inline Result<void> to_static_int8(const io::Gguf& in, std::span<const ProductInput> inputs,
                                   const std::string& path, const StaticInt8Options& options = {},
                                   OnInt8Matrix on_matrix = detail::keep_all) {
  return catch_out_of_memory([&] {
    return detail::to_static_int8(in, inputs, options, on_matrix,
                                  [&](const io::GgufWriter& writer) { return writer.write(path); });
  });
}

// The same, to memory.
inline Result<std::vector<std::byte>> to_static_int8(const io::Gguf& in,
                                                     std::span<const ProductInput> inputs,
                                                     const StaticInt8Options& options = {},
                                                     OnInt8Matrix on_matrix = detail::keep_all) {
  return catch_out_of_memory([&] {
    return detail::to_static_int8(in, inputs, options, on_matrix,
                                  [](const io::GgufWriter& writer) { return writer.to_bytes(); });
  });
}

}}}  // namespace nibble::NIBBLE_ABI::compress
