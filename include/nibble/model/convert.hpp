// SPDX-License-Identifier: Apache-2.0
//
// Converts a model to another weight format: GGUF in, GGUF out, to a file or to memory. One tensor
// is converted at a time, so a model may be larger than the memory.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/arena.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/ops/pack.hpp"
#include "nibble/quant/error_stats.hpp"
#include "nibble/quant/format.hpp"
#include "nibble/quant/ggml.hpp"
#include "nibble/quant/read_only.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

class TensorToRound;

struct ConvertOptions {
  quant::Format format = quant::Format::q8_0;  // of matrices
  // Called for each matrix; returns a format for it, or nothing for `format`. Not called for
  // vectors, biases and routers of experts: they are f32.
  std::function<std::optional<quant::Format>(std::string_view name)> choose = {};
  // Stores matrices in the packed layout that the kernels read (quant/packed.hpp). Such a file is
  // mapped and used in place: loading it copies nothing. It is for nibble alone; other programs
  // refuse its types.
  bool packed = false;
  // What the new file states as its type (general.file_type); none: that of `format`.
  std::optional<std::uint32_t> file_type = std::nullopt;
  Executor* executor = nullptr;  // converts in parallel; null: the calling thread
  // Another way to round: called for each matrix whose format changes. Writes all of
  // TensorToRound::out() and returns true, or returns false for the usual way.
  std::function<Result<bool>(const TensorToRound&)> rounder = {};
};

enum class FormatReason : std::uint8_t {
  asked,       // the one that the options name
  vector,      // norms, biases, rope_freqs, routers of experts: small but important, so f32
  row_length,  // rows are not whole blocks of the chosen format, so another one
};

struct ConvertedTensor {
  std::string name;
  std::array<std::uint64_t, 4> dims = {1, 1, 1, 1};  // dims[0] is contiguous
  std::uint32_t n_dims = 0;
  io::GgmlType from = io::GgmlType::f32;
  quant::Format to = quant::Format::f32;
  bool packed = false;
  FormatReason reason = FormatReason::asked;
  std::uint64_t bytes_from = 0;
  std::uint64_t bytes_to = 0;
  quant::ErrorStats errors;  // of the new weights relative to the old ones, both dequantized
};

// Called with each tensor after its conversion, in file order. Returning false cancels.
using OnConverted = FunctionRef<bool(const ConvertedTensor&)>;

namespace detail {

inline bool keep_converting(const ConvertedTensor&) noexcept { return true; }

inline Result<io::GgmlType> type_of(const ConvertedTensor& tensor) {
  return tensor.packed ? quant::packed_type_of(tensor.to) : quant::ggml_type_of(tensor.to);
}

// The format for rows that are no whole blocks of another: a little better, as in llama.cpp, or
// f16.
inline quant::Format format_for_row(quant::Format wanted, std::uint64_t k) {
  const auto fits = [k](quant::Format format) {
    return quant::row_bytes(format, io::narrow<std::size_t>(k % 256)).has_value();
  };
  if (fits(wanted)) return wanted;
  quant::Format shorter = quant::Format::f16;
  using enum quant::Format;
  if (wanted == q2_k || wanted == q3_k || wanted == tq2_0) shorter = q4_0;
  if (wanted == q2_0 || wanted == q1_0) shorter = q4_0;
  if (wanted == quant::Format::q4_k) shorter = quant::Format::q5_0;
  if (wanted == quant::Format::q5_k) shorter = quant::Format::q5_1;
  if (wanted == quant::Format::q6_k) shorter = quant::Format::q8_0;
  if (wanted == quant::Format::iq4_xs) shorter = quant::Format::iq4_nl;
  return fits(shorter) ? shorter : quant::Format::f16;
}

// Whether a tensor is small but important: a vector, biases of experts, a router of experts.
inline bool stays_f32(const io::GgufTensor& tensor) noexcept {
  const std::string_view name = tensor.name;
  return tensor.n_dims < 2 || name.ends_with(".bias") ||
         name.find("ffn_gate_inp") != std::string_view::npos;
}

// How a tensor will be converted; `errors` is still empty. Its new bytes, packed or not, are then
// numbers of std::size_t.
inline Result<ConvertedTensor> plan_conversion(const io::GgufTensor& tensor,
                                               const ConvertOptions& options) {
  ConvertedTensor plan;
  plan.name = tensor.name;  // a copy: the file may be cut while it is converted
  plan.dims = tensor.dims;
  plan.n_dims = tensor.n_dims;
  plan.bytes_from = tensor.data.size();
  if (quant::read_only_type(tensor.type) == nullptr) NIBBLE_CHECK(quant::format_of(tensor.type));
  plan.from = tensor.type;
  const std::span<const std::uint64_t> dims(plan.dims.data(), plan.n_dims);
  if (stays_f32(tensor)) {
    plan.to = quant::Format::f32;
    plan.reason = FormatReason::vector;
  } else {
    plan.to = options.format;
    if (options.choose) plan.to = options.choose(tensor.name).value_or(options.format);
    NIBBLE_CHECK(quant::ggml_type_of(plan.to));
    const quant::Format possible = format_for_row(plan.to, plan.dims[0]);
    if (possible != plan.to) plan.reason = FormatReason::row_length;
    plan.to = possible;
  }
  plan.packed =
      options.packed && (plan.n_dims == 2 || plan.n_dims == 3) && !plan.name.ends_with(".bias");
  NIBBLE_TRY(type, type_of(plan));
  NIBBLE_TRY(bytes, io::tensor_bytes(type, dims));
  NIBBLE_TRY(row_bytes, io::tensor_bytes(*quant::ggml_type_of(plan.to), dims));
  if (!std::in_range<std::size_t>((std::max)(row_bytes, bytes))) {
    return Error{Errc::limit, "converted, it is larger than the address space"};
  }
  plan.bytes_to = bytes;
  return plan;
}

// The result of one task, which converts a part of a tensor.
struct ConvertedPart {
  quant::ErrorStats errors;
  bool has_bad = false;  // a weight that is not finite or does not fit: the first, and its value
  std::uint64_t bad = 0;
  float bad_weight = 0;
  std::optional<Error> error;  // of reading the file
};

// What a tensor is converted from and to, its rows contiguous. The source is read, not taken from a
// file's mapping: that another program cuts the file is then an error, not the end of this program.
struct ConvertedRows {
  io::GgmlType from;
  quant::Format to;
  io::TensorBytes source;
  std::span<std::byte> out;
  std::uint64_t n_weights;
  bool is_rounded = false;  // `out` holds the new weights already
};

}  // namespace detail

// The matrices of a tensor for a rounder: rows of f32 in, stored rows out.
class TensorToRound {
 public:
  TensorToRound(const ConvertedTensor& tensor, const detail::ConvertedRows& rows,
                Executor& executor) noexcept
      : tensor_(tensor), rows_(rows), executor_(executor) {}

  const ConvertedTensor& tensor() const noexcept { return tensor_; }  // name, shape and format
  std::size_t k() const noexcept { return io::narrow<std::size_t>(tensor_.dims[0]); }
  std::uint64_t n_rows() const noexcept { return rows_.n_weights / tensor_.dims[0]; }
  Executor& executor() const noexcept { return executor_; }
  // All rows in the format tensor().to.
  std::span<std::byte> out() const noexcept { return rows_.out; }

  // Reads rows from `first` on: to.size() is a multiple of k(). May be called by several tasks at
  // once. Errors: invalid_argument, out_of_memory, io.
  Result<void> read(std::uint64_t first, std::span<float> to) const {
    const std::size_t n = to.size() / k();
    if (to.size() % k() != 0 || first > n_rows() || n > n_rows() - first) {
      return Error{Errc::invalid_argument, "rows that the tensor does not have"};
    }
    if (n == 0) return ok();
    NIBBLE_TRY(bytes_of_row, io::row_bytes(rows_.from, k()));
    const auto n_bytes = io::narrow<std::size_t>(bytes_of_row);  // all of the tensor is in memory
    NIBBLE_TRY(stored, AlignedBuffer::allocate(n * n_bytes));
    NIBBLE_CHECK(rows_.source.read(io::narrow<std::size_t>(first) * n_bytes, stored.bytes()));
    return quant::row_to_f32(rows_.from, stored.bytes(), to);
  }

 private:
  const ConvertedTensor& tensor_;
  const detail::ConvertedRows& rows_;
  Executor& executor_;
};

namespace detail {

// Rows are whole numbers of blocks, so a tensor can be treated as one long row and split anywhere
// between blocks. The parts do not depend on the number of threads, and neither do their sums.
inline constexpr std::size_t kConvertChunk = 4096;  // weights; fits a worker's stack as f32, twice
inline constexpr std::size_t kConvertPart = 16 * kConvertChunk;

inline void convert_part(const ConvertedRows& rows, std::uint64_t part, ConvertedPart& result) {
  std::array<float, kConvertChunk> before;
  std::array<float, kConvertChunk> after;
  const std::uint64_t end = (std::min)(rows.n_weights, (part + 1) * kConvertPart);
  for (std::uint64_t at = part * kConvertPart; at < end; at += kConvertChunk) {
    const auto n = static_cast<std::size_t>(std::min<std::uint64_t>(kConvertChunk, end - at));
    const auto begin = *quant::row_bytes(rows.to, io::narrow<std::size_t>(at));
    const auto old_begin = at == 0 ? 0 : io::narrow<std::size_t>(*io::row_bytes(rows.from, at));
    const std::span<float> x(before.data(), n);
    const std::span<float> y(after.data(), n);
    const auto new_bytes = rows.out.subspan(begin, *quant::row_bytes(rows.to, n));
    // If the format stays the same, so do the bytes: they are not rounded a second time. Otherwise
    // the old bytes are in `after` until the new weights are: no weight takes more than an f32.
    const bool is_same = rows.from == *quant::ggml_type_of(rows.to);
    const auto n_old_bytes = io::narrow<std::size_t>(*io::row_bytes(rows.from, n));
    const auto old_bytes =
        is_same ? new_bytes : std::as_writable_bytes(std::span(after)).first(n_old_bytes);
    if (Result<void> read = rows.source.read(old_begin, old_bytes); !read) {
      result.error = std::move(read).error();
      return;
    }
    [[maybe_unused]] bool converted = quant::row_to_f32(rows.from, old_bytes, x).has_value();
    std::size_t bad = n;
    if (is_same) {
      std::copy(x.begin(), x.end(), y.begin());
    } else if (rows.is_rounded) {
      converted = converted && quant::row_to_f32(rows.to, new_bytes, y).has_value();
    } else {
      bad = quant::detail::round_row(rows.to, x, new_bytes.data());
      converted = converted && quant::row_to_f32(rows.to, new_bytes, y).has_value();
    }
    NIBBLE_ASSERT(converted);  // sizes are from plan_conversion
    for (std::size_t i = 0; i < n; ++i) {
      if (!is_finite(static_cast<double>(x[i]))) bad = (std::min)(bad, i);
    }
    if (bad < n) {
      result.has_bad = true;
      result.bad = at + bad;
      result.bad_weight = x[bad];
      return;
    }
    result.errors.add(x, y);
  }
}

// Converts the rows and fills in plan.errors.
inline Result<void> convert_tensor(const ConvertedRows& rows, Executor& executor,
                                   ConvertedTensor& plan) {
  const std::uint64_t n_parts = (rows.n_weights + kConvertPart - 1) / kConvertPart;
  std::vector<ConvertedPart> parts(static_cast<std::size_t>(n_parts));
  executor.parallel_for(static_cast<Index>(n_parts), [&](Index part, Index) {
    const auto i = static_cast<std::size_t>(part);
    convert_part(rows, i, parts[i]);
  });
  plan.errors = {};
  for (ConvertedPart& part : parts) {
    if (part.error) return *std::move(part.error);
    if (part.has_bad) {
      const std::string where = "weight " + to_text(part.bad % plan.dims[0]) + " of row " +
                                to_text(part.bad / plan.dims[0]);
      if (!is_finite(static_cast<double>(part.bad_weight))) {
        return Error{Errc::malformed, where + " is not a finite number"};
      }
      return Error{Errc::limit, where + ", " + to_text(static_cast<double>(part.bad_weight)) +
                                    ", is too large for " + to_string(plan.to) +
                                    "; choose another format for this tensor: f32 holds it"};
    }
    plan.errors.merge(part.errors);
  }
  return ok();
}

// Converts a tensor as planned; `out` gets its rows, not packed.
inline Result<void> convert_one(const io::Gguf& in, const io::GgufTensor& tensor,
                                const ConvertOptions& options, Executor& executor,
                                ConvertedTensor& plan, std::span<std::byte> out) {
  const io::TensorBytes source = in.bytes_of(tensor);
  ConvertedRows rows{plan.from, plan.to, source, out, tensor.n_elements()};
  const bool changes = plan.from != *quant::ggml_type_of(plan.to);
  if (options.rounder && plan.n_dims >= 2 && changes && tensor.n_elements() > 0) {
    NIBBLE_TRY(is_rounded, options.rounder(TensorToRound(plan, rows, executor)));
    rows.is_rounded = is_rounded;
  }
  return convert_tensor(rows, executor, plan);
}

inline void pack_rows(Executor& executor, const ConvertedTensor& tensor, const std::byte* rows,
                      std::byte* panels) noexcept {
  quant::visit_format(tensor.to, [&](auto tag) {
    using F = typename decltype(tag)::type;
    if constexpr (!quant::ChannelFormat<F>) {  // files have none of these
      const auto n = static_cast<Index>(tensor.dims[1]), k = static_cast<Index>(tensor.dims[0]);
      const auto row_bytes = *quant::row_bytes<F>(static_cast<std::size_t>(k));
      for (Index i = 0; i < static_cast<Index>(tensor.dims[2]); ++i) {  // matrices of experts
        ops::pack<F>(executor, rows + i * n * static_cast<Index>(row_bytes), n, k,
                     panels + i * quant::Packed<F>::bytes(n, k));
      }
    }
  });
}

// Calls finish(writer) with a writer of the converted model.
template <class Finish>
auto convert(const io::Gguf& in, const ConvertOptions& options, OnConverted on_tensor,
             Finish finish) -> decltype(finish(std::declval<const io::GgufWriter&>())) {
  InlineExecutor alone;
  Executor& executor = options.executor != nullptr ? *options.executor : alone;
  io::GgufWriter writer;
  writer.copy_metadata(in);
  auto file_type = quant::gguf_file_type(options.format);
  if (!file_type) return std::move(file_type).error().in(in.name());
  writer.set("general.file_type", options.file_type.value_or(*file_type));

  std::size_t largest = 0, largest_packed = 0;
  bool has_blocks = false;
  bool in_source = false;  // an error is then about `in`, not about the file that is written
  std::vector<ConvertedTensor> plans;
  plans.reserve(in.tensors().size());  // sources keep references
  AlignedBuffer rows, panels;          // of the tensor that was converted last
  for (const io::GgufTensor& tensor : in.tensors()) {
    const auto here = [&](Error error) {
      return std::move(error).in(in.name() + ": tensor " + io::quoted(tensor.name));
    };
    auto planned = plan_conversion(tensor, options);
    if (!planned) return here(std::move(planned).error());
    ConvertedTensor& plan = plans.emplace_back(*std::move(planned));
    const std::span<const std::uint64_t> dims(plan.dims.data(), plan.n_dims);
    const io::GgmlType row_type = *quant::ggml_type_of(plan.to);
    auto row_bytes = io::tensor_bytes(row_type, dims);
    if (!row_bytes) return here(std::move(row_bytes).error());
    const auto n_bytes = io::narrow<std::size_t>(*row_bytes);
    largest = (std::max)(largest, n_bytes);
    if (plan.packed) {
      largest_packed = (std::max)(largest_packed, io::narrow<std::size_t>(plan.bytes_to));
    }
    has_blocks = has_blocks || io::type_traits(row_type).block_size > 1;
    writer.add_tensor(plan.name, *type_of(plan), dims,
                      [&, n_bytes, on_tensor]() -> Result<std::span<const std::byte>> {
                        in_source = true;
                        auto out = rows.bytes().first(n_bytes);
                        NIBBLE_CHECK(convert_one(in, tensor, options, executor, plan, out));
                        if (plan.packed) {
                          pack_rows(executor, plan, out.data(), panels.data());
                          out = panels.bytes().first(io::narrow<std::size_t>(plan.bytes_to));
                        }
                        if (!on_tensor(plan)) return Error{Errc::cancelled, "converting"};
                        in_source = false;
                        return std::span<const std::byte>(out);
                      });
  }
  if (options.packed) writer.set(io::kGgufAlignmentKey, static_cast<std::uint32_t>(kAlignment));
  // The version of the block formats' layouts (GGML_QNT_VERSION).
  if (has_blocks) writer.set("general.quantization_version", std::uint32_t{2});
  NIBBLE_TRY(row_memory, AlignedBuffer::allocate(largest));
  NIBBLE_TRY(panel_memory, AlignedBuffer::allocate(largest_packed));
  rows = std::move(row_memory);
  panels = std::move(panel_memory);
  auto result = finish(writer);
  if (!result && in_source) return std::move(result).error().in(in.name());
  return result;
}

}  // namespace detail

// Writes the model `in` to the file `path` with its weights in another format. Weights are rounded
// as in quant/quantize.hpp, bit for bit, unless options.rounder does it; a tensor that already has
// its format is copied. All metadata is kept; general.file_type and general.quantization_version
// are updated. The file is either complete or as it was before (io/output_file.hpp). Weights of a
// mapped file are read, not taken from the mapping, so a file that another program cuts meanwhile
// is an error. Errors name the tensor: unsupported (a type without a format here, or a format that
// GGUF lacks), malformed (a weight that is not finite), limit (a weight that the new format cannot
// hold), cancelled, out_of_memory, io.
inline Result<void> quantize_model(const io::Gguf& in, const std::string& path,
                                   const ConvertOptions& options,
                                   OnConverted on_tensor = detail::keep_converting) {
  return catch_out_of_memory([&] {
    return detail::convert(in, options, on_tensor,
                           [&](const io::GgufWriter& writer) { return writer.write(path); });
  });
}

// The same, to memory.
inline Result<std::vector<std::byte>> quantize_model(
    const io::Gguf& in, const ConvertOptions& options,
    OnConverted on_tensor = detail::keep_converting) {
  return catch_out_of_memory([&] {
    return detail::convert(in, options, on_tensor,
                           [](const io::GgufWriter& writer) { return writer.to_bytes(); });
  });
}

// The rows of one tensor of `in` as quantize_model() converts them, without packing them; for
// trials of formats. Errors: also not_found.
inline Result<std::vector<std::byte>> quantize_tensor(const io::Gguf& in, std::string_view name,
                                                      const ConvertOptions& options) {
  return catch_out_of_memory([&]() -> Result<std::vector<std::byte>> {
    const io::GgufTensor* const tensor = in.find_tensor(name);
    if (tensor == nullptr) {
      return Error{Errc::not_found, in.name() + ": no tensor " + io::quoted(name)};
    }
    const auto convert = [&]() -> Result<std::vector<std::byte>> {
      ConvertOptions rows_only = options;
      rows_only.packed = false;
      InlineExecutor alone;
      Executor& executor = options.executor != nullptr ? *options.executor : alone;
      NIBBLE_TRY(plan, detail::plan_conversion(*tensor, rows_only));
      std::vector<std::byte> rows(io::narrow<std::size_t>(plan.bytes_to));
      NIBBLE_CHECK(detail::convert_one(in, *tensor, rows_only, executor, plan, rows));
      return rows;
    };
    auto converted = convert();
    if (!converted) {
      return std::move(converted).error().in(in.name() + ": tensor " + io::quoted(name));
    }
    return converted;
  });
}

}}  // namespace nibble::NIBBLE_ABI
