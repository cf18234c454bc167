// SPDX-License-Identifier: Apache-2.0
//
// Packs a model whose Q4_0 matrices have many zeros: GGUF in, GGUF out, in the layouts that kernels
// read (quant/packed.hpp, quant/sparse.hpp). Nothing is rounded: the new model computes with the
// same weights. Such a file is mapped and used in place; it is for nibble alone.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "nibble/core/arena.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/core/result.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/ops/pack.hpp"
#include "nibble/quant/ggml.hpp"
#include "nibble/quant/sparse.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

struct SparseOptions {
  // Which layouts are tried for matrices in Q4_0. On a Zen 3 (AVX2), blocks of 16 rows by 4 weights
  // and two of four are faster than dense weights, while bit masks save bytes but take longer to
  // expand than that saves; where an instruction expands them (AVX-512 with VBMI2) nobody has
  // measured. docs/guide-measure.md has the figures.
  bool blocks = true;
  // For matrices in which no more than two of each four weights are not zero.
  bool two_of_four = true;
  bool bitmask = false;
  // A sparse layout is taken if it has at most this part of the bytes of the dense one.
  double at_most = 0.95;
  Executor* executor = nullptr;  // packs in parallel; null: the calling thread
};

// What became of a tensor.
struct SparseTensor {
  std::string name;
  std::array<std::uint64_t, 4> dims = {1, 1, 1, 1};  // of the weights
  io::GgmlType from = io::GgmlType::f32;
  io::GgmlType to = io::GgmlType::f32;
  std::uint64_t bytes_from = 0;
  std::uint64_t bytes_to = 0;
};

namespace detail {

struct SparsePlan {
  SparseTensor tensor;
  std::vector<std::uint64_t> dims;  // in the new file
};

template <class F>
std::uint64_t sparse_bytes(const io::GgufTensor& tensor) noexcept {
  return static_cast<std::uint64_t>(quant::Packed<F>::packed_bytes(
      reinterpret_cast<const quant::Q4_0::Block*>(tensor.data.data()),
      static_cast<Index>(tensor.dims[1]), static_cast<Index>(tensor.dims[0])));
}

// The layout of a matrix, and how large it is in it.
inline Result<SparsePlan> plan_sparse(const io::GgufTensor& tensor, const SparseOptions& options) {
  SparsePlan plan;
  plan.tensor = {std::string(tensor.name), tensor.dims,       tensor.type, tensor.type,
                 tensor.data.size(),       tensor.data.size()};
  plan.dims.assign(tensor.dims.begin(), tensor.dims.begin() + tensor.n_dims);
  if (tensor.swapped.any()) {
    return Error{Errc::unsupported,
                 "its rows are stored in another order; convert the model first"};
  }
  if (tensor.n_dims != 2) return plan;
  const auto format = quant::format_of(tensor.type);
  if (!format) {
    if (io::type_traits(tensor.type).panel_rows != 0) return Error(format.error());
    return plan;  // a type that is only read: as it is
  }
  NIBBLE_TRY(packed, quant::packed_type_of(*format));
  plan.tensor.to = packed;
  NIBBLE_TRY(dense, io::tensor_bytes(packed, plan.dims));
  plan.tensor.bytes_to = dense;
  const bool has_shape = quant::Packed<quant::Q4_0Bitmask>::has_shape(
      static_cast<Index>(tensor.dims[1]), static_cast<Index>(tensor.dims[0]));
  if (tensor.type != io::GgmlType::q4_0 || !has_shape) return plan;
  const auto consider = [&](io::GgmlType type, std::uint64_t bytes) {
    if (static_cast<double>(bytes) > options.at_most * static_cast<double>(dense) ||
        bytes >= plan.tensor.bytes_to) {
      return;
    }
    plan.tensor.to = type;
    plan.tensor.bytes_to = bytes;
    plan.dims = {tensor.dims[0], tensor.dims[1], bytes / 64};
  };
  if (options.blocks) {
    consider(io::GgmlType::packed_q4_0_16x4, sparse_bytes<quant::Q4_0Blocks16x4>(tensor));
  }
  const auto* const rows = reinterpret_cast<const quant::Q4_0::Block*>(tensor.data.data());
  if (options.two_of_four &&
      quant::Packed<quant::Q4_0TwoOfFour>::can_hold(rows, static_cast<Index>(tensor.dims[1]),
                                                    static_cast<Index>(tensor.dims[0]))) {
    consider(io::GgmlType::packed_q4_0_2of4, sparse_bytes<quant::Q4_0TwoOfFour>(tensor));
  }
  if (options.bitmask) {
    consider(io::GgmlType::packed_q4_0_bitmask, sparse_bytes<quant::Q4_0Bitmask>(tensor));
  }
  return plan;
}

// Packs the tensor as it was planned.
inline void pack_planned(const io::GgufTensor& tensor, io::GgmlType to, Executor& executor,
                         std::byte* out) noexcept {
  const auto n = static_cast<Index>(tensor.dims[1]), k = static_cast<Index>(tensor.dims[0]);
  const auto* const blocks = reinterpret_cast<const quant::Q4_0::Block*>(tensor.data.data());
  if (to == io::GgmlType::packed_q4_0_16x4) {
    quant::Packed<quant::Q4_0Blocks16x4>::pack(blocks, n, k, out);
  } else if (to == io::GgmlType::packed_q4_0_2of4) {
    quant::Packed<quant::Q4_0TwoOfFour>::pack(blocks, n, k, out);
  } else if (to == io::GgmlType::packed_q4_0_bitmask) {
    quant::Packed<quant::Q4_0Bitmask>::pack(blocks, n, k, out);
  } else {
    quant::visit_format(*quant::format_of(tensor.type), [&](auto tag) {
      using F = typename decltype(tag)::type;
      if constexpr (!quant::ChannelFormat<F>) {  // files have none of these
        ops::pack<F>(executor, tensor.data.data(), n, k, out);
      }
    });
  }
}

template <class Finish>
auto pack_sparse(const io::Gguf& in, const SparseOptions& options,
                 FunctionRef<bool(const SparseTensor&)> on_tensor, Finish finish)
    -> decltype(finish(std::declval<const io::GgufWriter&>())) {
  InlineExecutor alone;
  Executor& executor = options.executor != nullptr ? *options.executor : alone;
  io::GgufWriter writer;
  writer.copy_metadata(in);
  writer.set(io::kGgufAlignmentKey, static_cast<std::uint32_t>(kAlignment));
  std::vector<SparsePlan> plans;
  plans.reserve(in.tensors().size());  // sources keep references
  std::size_t largest = 0;
  AlignedBuffer memory;  // of the tensor that was packed last
  for (const io::GgufTensor& tensor : in.tensors()) {
    auto planned = plan_sparse(tensor, options);
    if (!planned) {
      return std::move(planned).error().in(in.name() + ": tensor " + io::quoted(tensor.name));
    }
    const SparsePlan& plan = plans.emplace_back(*std::move(planned));
    if (plan.tensor.to != tensor.type) {
      largest = (std::max)(largest, io::narrow<std::size_t>(plan.tensor.bytes_to));
    }
    writer.add_tensor(tensor.name, plan.tensor.to, plan.dims,
                      [&, on_tensor]() -> Result<std::span<const std::byte>> {
                        std::span<const std::byte> out = tensor.data;
                        if (plan.tensor.to != tensor.type) {
                          pack_planned(tensor, plan.tensor.to, executor, memory.data());
                          out = memory.bytes().first(io::narrow<std::size_t>(plan.tensor.bytes_to));
                        }
                        if (!on_tensor(plan.tensor)) return Error{Errc::cancelled, "packing"};
                        return out;
                      });
  }
  NIBBLE_TRY(allocated, AlignedBuffer::allocate(largest));
  memory = std::move(allocated);
  return finish(writer);
}

inline bool keep_packing(const SparseTensor&) noexcept { return true; }

}  // namespace detail

// Writes the model `in` with its matrices packed: those in Q4_0 without their zeros where that
// saves enough, others dense. Vectors, experts, and types that are only read stay as they are.
// `on_tensor` is called with each tensor, in file order, when it is written; false cancels. Errors
// name the tensor: unsupported (a file that is packed already), cancelled, out_of_memory, io. The
// file is either complete or as it was before. `in` is read from its mapping.
inline Result<void> pack_sparse_model(
    const io::Gguf& in, const std::string& path, const SparseOptions& options = {},
    FunctionRef<bool(const SparseTensor&)> on_tensor = detail::keep_packing) {
  return catch_out_of_memory([&] {
    return detail::pack_sparse(in, options, on_tensor,
                               [&](const io::GgufWriter& writer) { return writer.write(path); });
  });
}
// The same, to memory.
inline Result<std::vector<std::byte>> pack_sparse_model(
    const io::Gguf& in, const SparseOptions& options = {},
    FunctionRef<bool(const SparseTensor&)> on_tensor = detail::keep_packing) {
  return catch_out_of_memory([&] {
    return detail::pack_sparse(in, options, on_tensor,
                               [](const io::GgufWriter& writer) { return writer.to_bytes(); });
  });
}

}}}  // namespace nibble::NIBBLE_ABI::compress
