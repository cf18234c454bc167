// SPDX-License-Identifier: Apache-2.0
//
// Quantized activations as a matrix: memory for them, and the operation that fills them.
#pragma once

#include <cstddef>
#include <span>

#include "nibble/core/arena.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/kernels/quantize_rows.hpp"
#include "nibble/ops/rows.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

// A view of m rows of k activations in 8 bits; kernels/quantize_rows.hpp defines the numbers.
// kBlock: 32, 64 or 128 values per scale, or 0 for one scale per row.
template <int kBlock>
struct QuantizedRows {
  using Kernel = kernels::QuantizeRow<kBlock>;

  Index m = 0;
  Index k = 0;
  std::int8_t* codes = nullptr;       // (m, padded(k)), rows code_stride(k) bytes apart
  float* scales = nullptr;            // (m, n_blocks(k))
  std::int32_t* code_sums = nullptr;  // (m, n_blocks(k))
  std::int32_t* half_sums = nullptr;  // (m, n_blocks(k)); only for kBlock = 32

  static constexpr Index padded(Index k) noexcept { return Kernel::padded(k); }
  static constexpr Index n_blocks(Index k) noexcept { return Kernel::n_blocks(k); }
  // Every row of codes starts at a multiple of kAlignment.
  static constexpr Index code_stride(Index k) noexcept {
    return static_cast<Index>(align_up(static_cast<std::size_t>(padded(k))));
  }

  // Bytes of memory for m rows; a constant expression for a static model. The caller has checked
  // the sizes m and k: their product fits in memory.
  static constexpr std::size_t bytes_needed(Index m, Index k) noexcept {
    const auto n_scales = static_cast<std::size_t>(m * n_blocks(k));
    constexpr std::size_t kSums = kBlock == 32 ? 2 : 1;
    return static_cast<std::size_t>(m * code_stride(k)) + align_up(n_scales * sizeof(float)) +
           kSums * align_up(n_scales * sizeof(std::int32_t));
  }

  // A view of the first bytes_needed(m, k) bytes of `memory`, which must start at a multiple of
  // kAlignment. Writes nothing.
  static QuantizedRows over(std::span<std::byte> memory, Index m, Index k) noexcept {
    NIBBLE_ASSERT(memory.size() >= bytes_needed(m, k));
    NIBBLE_ASSERT(reinterpret_cast<std::uintptr_t>(memory.data()) % kAlignment == 0);
    Arena arena(memory);
    const auto n_scales = static_cast<std::size_t>(m * n_blocks(k));
    QuantizedRows rows{m, k};
    rows.codes = arena.take<std::int8_t>(static_cast<std::size_t>(m * code_stride(k)));
    rows.scales = arena.take<float>(n_scales);
    rows.code_sums = arena.take<std::int32_t>(n_scales);
    if constexpr (kBlock == 32) rows.half_sums = arena.take<std::int32_t>(n_scales);
    return rows;
  }

  // One row, in the type that kernels need.
  kernels::QuantizedRow operator[](Index row) const noexcept {
    NIBBLE_ASSERT(row >= 0 && row < m);
    const Index block = row * n_blocks(k);
    return {codes + row * code_stride(k), scales + block, code_sums + block,
            half_sums == nullptr ? nullptr : half_sums + block};
  }
};

// out = x in 8 bits. `x` is (m, k); the values of a row are contiguous, and rows may be any
// distance apart. No overlap.
template <int kBlock>
void quantize_rows(Executor& executor, MatrixView<const float> x,
                   const QuantizedRows<kBlock>& out) noexcept {
  NIBBLE_ASSERT(x.extent(0) == out.m && x.extent(1) == out.k);
  NIBBLE_ASSERT(x.stride(1) == 1 || x.extent(1) <= 1);
  const auto quantize = simd::kernel<kernels::QuantizeRow<kBlock>>();
  for_rows(executor, out.m, out.k,
           [&](Index row) { quantize(x.data() + row * x.stride(0), out.k, out[row]); });
}

}}}  // namespace nibble::NIBBLE_ABI::ops
