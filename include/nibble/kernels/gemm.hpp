// SPDX-License-Identifier: Apache-2.0
//
// Products of two matrices of floats, neither of them packed beforehand, as training needs them:
// C (m, n) = A (m, k) · B (k, n), or C += A · B. Does not include Highway; see gemm-inl.h for the
// code and ops/gemm.hpp for the loop over blocks.
#pragma once

#include "nibble/core/view.hpp"
#include "nibble/simd/impl.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace kernels {

// A matrix whose rows or whose columns are contiguous.
struct GemmOperand {
  const float* data = nullptr;
  Index stride = 0;  // between rows (columns, if these are contiguous), in elements
  // Element (i, j) is data[j * stride + i] instead of data[i * stride + j].
  bool by_columns = false;

  // The same matrix without its first i rows and j columns.
  constexpr GemmOperand from(Index i, Index j) const noexcept {
    return {data + (by_columns ? j * stride + i : i * stride + j), stride, by_columns};
  }
};

// ---- Blocks ------------------------------------------------------------------------------------
// The blocks are those of Goto and van de Geijn, "Anatomy of High-Performance Matrix
// Multiplication" (2008): a panel of B (16 KiB) stays in L1 while the packed rows of A (136 KiB at
// most) come from L2, and all the panels (1 MiB) are in L3.

// The most products that are summed in a register before the sum is added to C.
inline constexpr Index kGemmBlockK = 256;
// Columns are packed in panels of 16, two at a time; rows in tiles whose height divides 12.
inline constexpr Index kGemmPanel = 16;
inline constexpr Index kGemmColumnUnit = 32;
inline constexpr Index kGemmRowUnit = 12;
// The most rows of A that are packed at a time.
inline constexpr Index kGemmMaxRows = 96;
// How far apart packed rows of A are, in floats: not a power of two, for the sake of caches whose
// lines are chosen by the low bits of an address.
inline constexpr Index kGemmRowStride = kGemmBlockK + 16;
// Scratch for kGemmRowUnit packed rows. They take a third more if columns are contiguous, because
// tiles are then whole vectors.
inline constexpr Index kGemmUnitFloats = kGemmRowUnit * 4 / 3 * kGemmRowStride;

// How many products of a sum make a block: the shortest multiple of 8 with which the sum has no
// more blocks than it needs. The last block has what the others leave. The length depends on k
// alone, as the order of every sum does.
constexpr Index gemm_block_k(Index k) noexcept {
  if (k <= 0) return 8;
  const Index n_blocks = (k + kGemmBlockK - 1) / kGemmBlockK;
  return ((k + n_blocks - 1) / n_blocks + 7) / 8 * 8;
}

// ---- Kernels -----------------------------------------------------------------------------------

// Packs the first k rows and n columns of `b`. `panels`: (n_panels, k, 16), as many panels as n
// rounded up to a multiple of kGemmColumnUnit has; the columns from n on become zeros. No alignment
// is needed, and 64 bytes are best. No overlap.
struct PackGemmPanels {
  using Function = void(const GemmOperand& b, Index k, Index n, float* panels);
};

// One call computes columns [first_column, end_column) of m rows, and adds up products [0, k). The
// pointers are those of the whole block; only the columns are a part of it.
struct GemmArgs {
  GemmOperand a;  // (m, k)
  Index m = 0;    // at most kGemmMaxRows
  Index k = 0;
  Index k_block = 0;  // gemm_block_k of the whole sum; at most kGemmBlockK
  // For each block of k, (n_columns / 16, length of the block, 16); the blocks follow each other.
  const float* panels = nullptr;
  Index n_columns = 0;     // packed: a multiple of kGemmColumnUnit
  Index first_column = 0;  // a multiple of kGemmColumnUnit
  Index end_column = 0;
  float* c = nullptr;     // (m, c_stride), from column 0 of the panels on
  Index c_stride = 0;     // elements
  bool adds = false;      // C += instead of C =
  float* rows = nullptr;  // scratch: kGemmUnitFloats for every kGemmRowUnit rows
};

// Accumulator: f32. The products of a block of k are added in order, each with one rounding where
// the target has fused multiply-add, from zero on; the sums of the blocks are then added in order
// to C (the first one replaces it, unless `adds`). So the bits of an element depend on its row of
// A, its column of B, k, and whether the target has fused multiply-add, and on nothing else. With
// u = 2^-24 and b blocks, the error of an element is below (k_block + b + 1) u sum(|a| |b|), plus
// b u |c|. NaN and infinities go where the arithmetic takes them.
struct GemmRows {
  using Function = void(const GemmArgs& args);
};

}}}  // namespace nibble::NIBBLE_ABI::kernels
