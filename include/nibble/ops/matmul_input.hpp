// SPDX-License-Identifier: Apache-2.0
//
// The activations of products, in the representations that kernels::MatmulInput has: memory for
// them, the operations that fill them, and the MatmulInput that refers to them.
#pragma once

#include <algorithm>
#include <span>

#include "nibble/kernels/matmul.hpp"
#include "nibble/kernels/matmul_input.hpp"
#include "nibble/ops/quantize_rows.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

// For ActivationScales::per_block with weights in blocks of kBlock; 32 also for super-blocks, whose
// steps are as long. kBlock = 0: for I8Channel.
template <int kBlock>
kernels::MatmulInput matmul_input(const QuantizedRows<kBlock>& rows) noexcept {
  kernels::MatmulInput input;
  input.codes = rows.codes;
  (kBlock == 0 ? input.row_scales : input.scales) = rows.scales;
  input.code_sums = rows.code_sums;
  input.half_sums = rows.half_sums;
  input.code_stride = rows.code_stride(rows.k);
  input.n_blocks = rows.n_blocks(rows.k);
  return input;
}

// Rows in 8 bits with one scale per row, and the sums of blocks of kLength codes: for
// ActivationScales::per_row with weights in blocks of kLength (not in super-blocks, see
// kernels::kHasProducts).
template <int kLength>
struct RowScaledRows {
  Index k = 0;
  QuantizedRows<0> rows;  // (m, padded(k)): codes, padded to whole blocks of the weights
  std::int32_t* code_sums = nullptr;  // (m, n_blocks(k))

  static constexpr Index n_blocks(Index k) noexcept { return (k + kLength - 1) / kLength; }
  static constexpr Index padded(Index k) noexcept { return n_blocks(k) * kLength; }

  // As in QuantizedRows.
  static constexpr std::size_t bytes_needed(Index m, Index k) noexcept {
    return QuantizedRows<0>::bytes_needed(m, padded(k)) +
           align_up(static_cast<std::size_t>(m * n_blocks(k)) * sizeof(std::int32_t));
  }
  static RowScaledRows over(std::span<std::byte> memory, Index m, Index k) noexcept {
    const std::size_t of_rows = QuantizedRows<0>::bytes_needed(m, padded(k));
    NIBBLE_ASSERT(memory.size() >= bytes_needed(m, k));
    RowScaledRows all;
    all.k = k;
    all.rows = QuantizedRows<0>::over(memory.first(of_rows), m, padded(k));
    Arena arena(memory.subspan(of_rows));
    all.code_sums = arena.take<std::int32_t>(static_cast<std::size_t>(m * n_blocks(k)));
    return all;
  }

  kernels::MatmulInput input() const noexcept {
    kernels::MatmulInput in;
    in.codes = rows.codes;
    in.row_scales = rows.scales;
    in.code_sums = code_sums;
    in.code_stride = rows.code_stride(rows.k);
    in.n_blocks = n_blocks(k);
    return in;
  }
};

// out = x in 8 bits; x as in quantize_rows of quantize_rows.hpp. No overlap.
template <int kLength>
void quantize_rows(Executor& executor, MatrixView<const float> x,
                   const RowScaledRows<kLength>& out) noexcept {
  const Index k = out.k;
  NIBBLE_ASSERT(x.extent(0) == out.rows.m && x.extent(1) == k && (x.stride(1) == 1 || k <= 1));
  const auto quantize = simd::kernel<kernels::QuantizeRow<0>>();
  const auto sum = simd::kernel<kernels::BlockSums<kLength>>();
  const Index n_blocks = out.n_blocks(k);
  for_rows(executor, out.rows.m, k, [&](Index row) {
    const auto to = out.rows[row];
    quantize(x.data() + row * x.stride(0), k, to);
    std::fill(to.codes + k, to.codes + out.rows.k, std::int8_t{0});
    sum(to.codes, n_blocks, out.code_sums + row * n_blocks);
  });
}

// Rows rounded to bf16: the activations for products with bf16 weights, if
// kernels::TakesRoundedRows returns true; with weights in block formats, if has_tiles() does.
struct RoundedRows {
  Index m = 0;
  Index k = 0;
  bf16* values = nullptr;  // (m, stride(k))

  // In elements. Rows start at multiples of 64 bytes, and at different offsets within a page.
  static constexpr Index stride(Index k) noexcept {
    return static_cast<Index>(align_up(static_cast<std::size_t>(k + k % 2), std::size_t{32})) + 32;
  }
  static constexpr std::size_t bytes_needed(Index m, Index k) noexcept {
    return static_cast<std::size_t>(m * stride(k)) * sizeof(bf16);
  }
  static RoundedRows over(std::span<std::byte> memory, Index m, Index k) noexcept {
    NIBBLE_ASSERT(memory.size() >= bytes_needed(m, k));
    Arena arena(memory);
    return {m, k, arena.take<bf16>(static_cast<std::size_t>(m * stride(k)))};
  }

  kernels::MatmulInput input() const noexcept {
    kernels::MatmulInput in;
    in.rounded = values;
    in.rounded_stride = stride(k);
    return in;
  }
};

// A row of zeros in every representation that a product may read, but for rounded rows: to take the
// time of products, whatever the format of their weights.
struct ZeroRow {
  // For products with rows of up to k weights.
  static constexpr std::size_t bytes_needed(Index k) noexcept {
    return align_up(padded(k) * sizeof(float)) + align_up(padded(k)) +
           3 * align_up(n_blocks(k) * sizeof(float));
  }
  // Fills bytes_needed(k) bytes of `memory`, aligned to kAlignment.
  static kernels::MatmulInput over(std::span<std::byte> memory, Index k) noexcept {
    NIBBLE_ASSERT(memory.size() >= bytes_needed(k));
    std::fill_n(memory.begin(), bytes_needed(k), std::byte{});
    Arena arena(memory);
    kernels::MatmulInput input;
    input.x = arena.take<float>(padded(k));
    input.stride = k;
    input.codes = arena.take<std::int8_t>(padded(k));
    input.scales = input.row_scales = arena.take<float>(n_blocks(k));
    input.code_sums = arena.take<std::int32_t>(n_blocks(k));
    input.half_sums = arena.take<std::int32_t>(n_blocks(k));
    input.code_stride = static_cast<Index>(padded(k));
    input.n_blocks = static_cast<Index>(n_blocks(k));
    return input;
  }

 private:
  // Whole vectors, and whole groups of blocks.
  static constexpr std::size_t padded(Index k) noexcept {
    return align_up(static_cast<std::size_t>(k)) + kAlignment;
  }
  static constexpr std::size_t n_blocks(Index k) noexcept { return padded(k) / 32 + 1; }
};

// Whether the active target has tiles: then products with block formats take rounded rows too, and
// are several times as fast with them.
NIBBLE_LAZY bool has_tiles() noexcept { return simd::kernel<kernels::TileTaskRows>()(1) > 0; }

// out = the numbers that the codes of `rows` stand for, in bf16.
template <int kBlock>
void round_rows(Executor& executor, const QuantizedRows<kBlock>& rows,
                const RoundedRows& out) noexcept {
  NIBBLE_ASSERT(rows.m == out.m && rows.k == out.k);
  const auto round_codes = simd::kernel<kernels::RoundCodes<kBlock>>();
  for_rows(executor, out.m, out.k, [&](Index row) {
    const auto from = rows[row];
    round_codes(from.codes, from.scales, out.k, out.values + row * RoundedRows::stride(out.k));
  });
}

NIBBLE_LAZY bool takes_rounded_rows() noexcept {
  return simd::kernel<kernels::TakesRoundedRows>()();
}

// out = x in bf16; x as in quantize_rows. No overlap.
NIBBLE_LAZY void round_rows(Executor& executor, MatrixView<const float> x,
                            const RoundedRows& out) noexcept {
  NIBBLE_ASSERT(x.extent(0) == out.m && x.extent(1) == out.k);
  NIBBLE_ASSERT(x.stride(1) == 1 || x.extent(1) <= 1);
  const auto round_row = simd::kernel<kernels::RoundRow>();
  for_rows(executor, out.m, out.k, [&](Index row) {
    round_row(x.data() + row * x.stride(0), out.k, out.values + row * RoundedRows::stride(out.k));
  });
}

}}}  // namespace nibble::NIBBLE_ABI::ops
