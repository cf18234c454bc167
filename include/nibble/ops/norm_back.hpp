// SPDX-License-Identifier: Apache-2.0
//
// The backward pass of RMSNorm and LayerNorm of the rows of a matrix, of norms of single heads, and
// of a bias. Formulas and error bounds: kernels/norm_back.hpp.
#pragma once

#include <cstring>
#include <span>

#include "nibble/kernels/elementwise.hpp"
#include "nibble/kernels/norm_back.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/ops/row_chunks.hpp"
#include "nibble/ops/rows.hpp"
#include "nibble/ops/unit_rows.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

// For all: x, dy and dx are (m, k); the values of a row are contiguous, and rows may be any
// distance apart. With Gradient::set, dx may be x or dy. `weight`, `dweight`, `dbias` (k) are
// contiguous; an empty weight stands for ones; an empty dweight or dbias is one that is not wanted.
// What is wanted is added to what they hold. `scratch` has norm_back_scratch_bytes() bytes, aligned
// for floats; it may be empty if neither is wanted. Results do not depend on the number of threads:
// sums over rows are in the order of row_chunks.hpp.

// For matrices of up to max_rows rows and norms of k values: of rms_norm_heads_back(), head_dim.
constexpr std::size_t norm_back_scratch_bytes(Index max_rows, Index k) noexcept {
  return row_sum_scratch_bytes(max_rows, 2 * k);
}

namespace detail {

// The operands of norms of parts of rows, k wide, of which a row has n_parts.
struct NormBackRows {
  MatrixView<const float> x, dy;
  MatrixView<float> dx;
  VectorView<const float> weight;
  VectorView<float> dweight, dbias;
  float eps;
  Index n_parts;
};

inline void check_gradient([[maybe_unused]] VectorView<const float> v,
                           [[maybe_unused]] Index k) noexcept {
  NIBBLE_ASSERT(v.data() == nullptr || (v.extent(0) == k && v.is_contiguous()));
}

template <class Kernel>
void norm_back(Executor& executor, const NormBackRows& rows,
               std::span<std::byte> scratch) noexcept {
  const Index m = rows.x.extent(0), width = rows.x.extent(1), k = width / rows.n_parts;
  NIBBLE_ASSERT(k >= 1 && k * rows.n_parts == width && rows.eps >= 0.0f);
  assert_rows_like(rows.x, rows.dy);
  assert_rows_like(rows.x, rows.dx);
  check_gradient(rows.weight, k);
  check_gradient(rows.dweight, k);
  check_gradient(rows.dbias, k);
  const auto kernel = simd::kernel<Kernel>();
  const auto run_row = [&](Index row, float* dweight, float* dbias) {
    kernels::NormBackArgs args;
    args.weight = rows.weight.data();
    args.k = k;
    args.eps = rows.eps;
    args.dweight = dweight;
    args.dbias = dbias;
    for (Index i = 0; i < width; i += k) {
      args.x = row_of(rows.x, row) + i;
      args.dy = row_of(rows.dy, row) + i;
      args.dx = row_of(rows.dx, row) + i;
      kernel(args);
    }
  };
  const bool has_weight = rows.dweight.data() != nullptr, has_bias = rows.dbias.data() != nullptr;
  if (!has_weight && !has_bias) {
    for_rows(executor, m, width, [&](Index row) { run_row(row, nullptr, nullptr); });
    return;
  }
  const RowChunks chunks(m);
  NIBBLE_ASSERT(scratch.size() >= norm_back_scratch_bytes(m, k));
  auto* const sums = reinterpret_cast<float*>(scratch.data());  // dweight and behind it dbias
  for_row_chunks(executor, chunks, width, [&](Index chunk) {
    float* const sum = sums + chunk * 2 * k;
    std::memset(sum, 0, static_cast<std::size_t>(2 * k) * sizeof(float));
    for (Index row = chunks.begin(chunk); row < chunks.end(chunk); ++row) {
      run_row(row, has_weight ? sum : nullptr, has_bias ? sum + k : nullptr);
    }
  });
  const auto add = simd::kernel<kernels::Add>();
  for (Index chunk = 0; chunk < chunks.n(); ++chunk) {
    const float* const sum = sums + chunk * 2 * k;
    if (has_weight) add(rows.dweight.data(), sum, rows.dweight.data(), k);
    if (has_bias) add(rows.dbias.data(), sum + k, rows.dbias.data(), k);
  }
}

}  // namespace detail

// The gradients of ops::rms_norm: dx (set or added to), dweight (added to).
template <kernels::Gradient kGradient = kernels::Gradient::set>
void rms_norm_back(Executor& executor, MatrixView<const float> x, VectorView<const float> weight,
                   float eps, MatrixView<const float> dy, MatrixView<float> dx,
                   VectorView<float> dweight, std::span<std::byte> scratch) noexcept {
  detail::norm_back<kernels::RmsNormBack<kGradient>>(
      executor, {x, dy, dx, weight, dweight, {}, eps, 1}, scratch);
}

// The gradients of ops::rms_norm_heads: matrices (m, n_heads * head_dim), weight and dweight
// (head_dim), to which all heads of all rows add, row by row. `x` holds the rows before the norm.
template <kernels::Gradient kGradient = kernels::Gradient::set>
void rms_norm_heads_back(Executor& executor, MatrixView<const float> x, Index head_dim,
                         VectorView<const float> weight, float eps, MatrixView<const float> dy,
                         MatrixView<float> dx, VectorView<float> dweight,
                         std::span<std::byte> scratch) noexcept {
  NIBBLE_ASSERT(head_dim >= 1 && x.extent(1) >= head_dim);
  detail::norm_back<kernels::RmsNormBack<kGradient>>(
      executor, {x, dy, dx, weight, dweight, {}, eps, x.extent(1) / head_dim}, scratch);
}

// The gradients of ops::layer_norm (without activation and dropout): dx (set or added to), dweight
// and dbias (added to).
template <kernels::Gradient kGradient = kernels::Gradient::set>
void layer_norm_back(Executor& executor, MatrixView<const float> x, VectorView<const float> weight,
                     float eps, MatrixView<const float> dy, MatrixView<float> dx,
                     VectorView<float> dweight, VectorView<float> dbias,
                     std::span<std::byte> scratch) noexcept {
  detail::norm_back<kernels::LayerNormBack<kGradient>>(
      executor, {x, dy, dx, weight, dweight, dbias, eps, 1}, scratch);
}

// dbias (k) += the sum of the rows of dy (m, k): the gradient of a bias or of a row that was added
// to all rows. `scratch`: row_sum_scratch_bytes(m or more, k).
NIBBLE_LAZY void bias_back(Executor& executor, MatrixView<const float> dy, VectorView<float> dbias,
                           std::span<std::byte> scratch) noexcept {
  const Index m = dy.extent(0), k = dy.extent(1);
  NIBBLE_ASSERT(has_unit_rows(dy) && dbias.extent(0) == k && dbias.is_contiguous());
  NIBBLE_ASSERT(scratch.size() >= row_sum_scratch_bytes(m, k));
  const RowChunks chunks(m);
  const auto add = simd::kernel<kernels::Add>();
  auto* const sums = reinterpret_cast<float*>(scratch.data());
  for_row_chunks(executor, chunks, k, [&](Index chunk) {
    float* const sum = sums + chunk * k;
    std::memset(sum, 0, static_cast<std::size_t>(k) * sizeof(float));
    for (Index row = chunks.begin(chunk); row < chunks.end(chunk); ++row) {
      add(sum, row_of(dy, row), sum, k);
    }
  });
  for (Index chunk = 0; chunk < chunks.n(); ++chunk) {
    add(dbias.data(), sums + chunk * k, dbias.data(), k);
  }
}

}}}  // namespace nibble::NIBBLE_ABI::ops
