// SPDX-License-Identifier: Apache-2.0
//
// gemm: the products of two matrices of floats that training needs. With x (m, k), w (n, k) and
// y (m, n):
//   y = x · wᵀ    gemm(executor, x, transposed(w), y, GemmOutput::replace, scratch)
//   dx = dy · w   gemm(executor, dy, w, dx, GemmOutput::replace, scratch)
//   dw += dyᵀ · x gemm(executor, transposed(dy), x, dw, GemmOutput::add, scratch)
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "nibble/core/arena.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/kernels/gemm.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/ops/unit_rows.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

// The same values with rows and columns exchanged; nothing moves.
template <class T>
constexpr MatrixView<T> transposed(MatrixView<T> v) noexcept {
  return {v.data(), {v.extent(1), v.extent(0)}, {v.stride(1), v.stride(0)}};
}

enum class GemmOutput : std::uint8_t {
  replace,  // C = A · B; what was in C is not read
  add,      // C += A · B
};

namespace detail {

constexpr Index ceil_div(Index a, Index b) noexcept { return (a + b - 1) / b; }
constexpr Index round_up(Index a, Index unit) noexcept { return ceil_div(a, unit) * unit; }

// How a product is split. Blocks of columns and of k come one after the other; within them, tasks
// for the workers. Only k_block has to do with the results.
struct GemmCut {
  Index k_block = 0;       // gemm_block_k of the whole sum
  Index k_step = 0;        // products of one pass: whole blocks, whose panels fit in the scratch
  Index columns = 0;       // of a block: a multiple of kGemmColumnUnit
  Index rows = 0;          // of a task
  Index task_columns = 0;  // of a task: a multiple of kGemmColumnUnit
  Index panel_floats = 0;  // scratch that all workers share
  Index row_floats = 0;    // scratch of each worker
};

inline constexpr Index kMaxGemmColumns = 1024;
// Several short blocks of k are one pass, with fewer joins of the workers, while their panels stay
// in L2.
inline constexpr Index kGemmPassFloats = kMaxGemmColumns * kernels::kGemmBlockK / 4;

// Floats of packed rows of A, `rows` of them at a time.
constexpr Index gemm_row_floats(Index rows) noexcept {
  return ceil_div(rows, kernels::kGemmRowUnit) * kernels::kGemmUnitFloats;
}

constexpr GemmCut gemm_cut(Index m, Index n, Index k, Index n_workers) noexcept {
  GemmCut cut;
  if (m <= 0 || n <= 0) return cut;
  cut.k_block = kernels::gemm_block_k(k);
  cut.columns = round_up(ceil_div(n, ceil_div(n, kMaxGemmColumns)), kernels::kGemmColumnUnit);
  const Index fitting = (std::max<Index>)(1, kGemmPassFloats / (cut.columns * cut.k_block));
  const Index blocks = (std::min)(fitting, (std::max<Index>)(1, ceil_div(k, cut.k_block)));
  cut.k_step = blocks * cut.k_block;
  cut.panel_floats = cut.columns * cut.k_step;

  // Every worker gets as many tasks of rows as the others. It gets two or more where there are
  // enough rows for tasks of 48, because cores are not equally fast.
  const Index wanted = n_workers * std::clamp<Index>(m / (48 * n_workers), 1, 2);
  const Index least = (std::max)(wanted, ceil_div(m, kernels::kGemmMaxRows));
  const Index tasks =
      n_workers == 1 ? ceil_div(m, kernels::kGemmMaxRows) : round_up(least, n_workers);
  cut.rows = round_up(ceil_div(m, tasks), kernels::kGemmRowUnit);
  // With too few rows, the columns are split too.
  const Index groups = ceil_div(n_workers, ceil_div(m, cut.rows));
  cut.task_columns = round_up(ceil_div(cut.columns, groups), kernels::kGemmColumnUnit);
  cut.row_floats = gemm_row_floats(cut.rows);
  return cut;
}

// One operand; its columns are contiguous if its rows are not.
inline kernels::GemmOperand gemm_operand(MatrixView<const float> v) noexcept {
  const bool by_columns = !has_unit_rows(v);
  NIBBLE_ASSERT(!by_columns || v.stride(0) == 1 || v.extent(0) <= 1);
  return {v.data(), by_columns ? v.stride(1) : v.stride(0), by_columns};
}

// The products of k_step values of k, with the columns of one block. `a`: (m, k), `b`: (k, n).
struct GemmPass {
  const GemmCut& cut;
  kernels::GemmOperand a, b;
  Index m, n, k;
  float* c;
  Index c_stride;
  bool adds;
  float* panels;
  float* rows;

  Index padded_columns() const noexcept { return round_up(n, kernels::kGemmColumnUnit); }

  void pack(Executor& executor) const noexcept {
    constexpr Index kColumnsPerTask = 4 * kernels::kGemmColumnUnit;
    const auto run = simd::kernel<kernels::PackGemmPanels>();
    const Index groups = ceil_div(n, kColumnsPerTask);
    executor.parallel_for(groups * ceil_div(k, cut.k_block), [&](Index task, Index) {
      const Index first = task / groups * cut.k_block, column = task % groups * kColumnsPerTask;
      const Index length = (std::min)(cut.k_block, k - first);
      run(b.from(first, column), length, (std::min)(kColumnsPerTask, n - column),
          panels + first * padded_columns() + column * length);
    });
  }

  void multiply(Executor& executor) const noexcept {
    const auto run = simd::kernel<kernels::GemmRows>();
    const Index groups = ceil_div(n, cut.task_columns);
    executor.parallel_for(groups * ceil_div(m, cut.rows), [&](Index task, Index worker) {
      const Index row = task / groups * cut.rows, column = task % groups * cut.task_columns;
      kernels::GemmArgs args;
      args.a = a.from(row, 0);
      args.m = (std::min)(cut.rows, m - row);
      args.k = k;
      args.k_block = cut.k_block;
      args.panels = panels;
      args.n_columns = padded_columns();
      args.first_column = column;
      args.end_column = (std::min)(column + cut.task_columns, n);
      args.c = c + row * c_stride;
      args.c_stride = c_stride;
      args.adds = adds;
      args.rows = rows + worker * cut.row_floats;
      run(args);
    });
  }
};

}  // namespace detail

// The bytes of scratch for a product C (m, n) = A (m, k) · B (k, n) on an executor of n_workers: at
// most 1 MiB, and 136 KiB for each worker. A plan of several products takes the largest.
constexpr std::size_t gemm_scratch_bytes(Index m, Index n, Index k, Index n_workers) noexcept {
  const detail::GemmCut cut = detail::gemm_cut(m, n, k, n_workers);
  return static_cast<std::size_t>(cut.panel_floats + n_workers * cut.row_floats) * sizeof(float);
}

// Enough for all products with up to these sizes: a product with fewer rows may be cut otherwise.
constexpr std::size_t gemm_scratch_bytes_up_to(Index m, Index n, Index k,
                                               Index n_workers) noexcept {
  using namespace kernels;
  const Index columns = (std::min)(detail::kMaxGemmColumns, detail::round_up(n, kGemmColumnUnit));
  // One block of up to kGemmBlockK, or whole blocks of which none is longer.
  const Index depth = k <= kGemmBlockK ? gemm_block_k(k) : k + kGemmBlockK;
  const Index panels =
      (std::min)(columns * depth, (std::max)(columns * kGemmBlockK, detail::kGemmPassFloats));
  const Index floats = panels + n_workers * detail::gemm_row_floats((std::min)(kGemmMaxRows, m));
  return static_cast<std::size_t>(floats) * sizeof(float);
}

// C (m, n) = or += A (m, k) · B (k, n). Of `a` and `b`, rows or columns are contiguous (see
// transposed), and any distance apart; of `c`, rows are. None needs alignment; `c` overlaps neither
// `a` nor `b`. With k = 0, the product is zeros.
// `scratch`: gemm_scratch_bytes(m, n, k, executor.n_workers()) bytes or more, aligned to
// kAlignment; what is in it afterwards is of no use.
// Accumulator f32, in the order that kernels/gemm.hpp states: an element has the same bits whatever
// the other rows and columns, the strides and the number of workers are.
NIBBLE_LAZY void gemm(Executor& executor, MatrixView<const float> a, MatrixView<const float> b,
                      MatrixView<float> c, GemmOutput output,
                      std::span<std::byte> scratch) noexcept {
  const Index m = c.extent(0), n = c.extent(1), k = a.extent(1);
  NIBBLE_ASSERT(a.extent(0) == m && b.extent(0) == k && b.extent(1) == n);
  NIBBLE_ASSERT(has_unit_rows(c));
  NIBBLE_ASSERT(scratch.size() >= gemm_scratch_bytes(m, n, k, executor.n_workers()));
  NIBBLE_ASSERT(reinterpret_cast<std::uintptr_t>(scratch.data()) % kAlignment == 0);
  if (m == 0 || n == 0) return;
  if (k == 0) {
    if (output == GemmOutput::add) return;
    for (Index row = 0; row < m; ++row) std::fill_n(row_of(c, row), n, 0.0f);
    return;
  }
  const detail::GemmCut cut = detail::gemm_cut(m, n, k, executor.n_workers());
  const kernels::GemmOperand left = detail::gemm_operand(a), right = detail::gemm_operand(b);
  float* const panels = reinterpret_cast<float*>(scratch.data());
  for (Index column = 0; column < n; column += cut.columns) {
    for (Index first = 0; first < k; first += cut.k_step) {
      const detail::GemmPass pass{cut,
                                  left.from(0, first),
                                  right.from(first, column),
                                  m,
                                  (std::min)(cut.columns, n - column),
                                  (std::min)(cut.k_step, k - first),
                                  c.data() + column,
                                  c.stride(0),
                                  output == GemmOutput::add || first > 0,
                                  panels,
                                  panels + cut.panel_floats};
      pass.pack(executor);
      pass.multiply(executor);
    }
  }
}

}}}  // namespace nibble::NIBBLE_ABI::ops
