// SPDX-License-Identifier: Apache-2.0
//
// Softmax of the rows of a matrix, and functions on one row of logits for sampling. Accuracy, NaN
// and infinities: kernels/softmax.hpp.
#pragma once

#include <algorithm>

#include "nibble/kernels/pass.hpp"
#include "nibble/kernels/softmax.hpp"
#include "nibble/ops/rows.hpp"
#include "nibble/ops/unit_rows.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

// out = softmax(scale * x), row by row. Both (m, k); the values of a row are contiguous; `out` may
// be `x`. scale > 0.
NIBBLE_LAZY void softmax(Executor& executor, MatrixView<const float> x, MatrixView<float> out,
                         float scale = 1.0f) noexcept {
  assert_rows_like(out, x);
  NIBBLE_ASSERT(scale > 0.0f);
  const Index k = x.extent(1);
  const auto run = simd::kernel<kernels::Softmax>();
  for_rows(executor, x.extent(0), k,
           [&](Index row) { run(row_of(x, row), row_of(out, row), k, k, scale); });
}

// The same for a causal matrix of scores. Row i sees its first `first_valid + i` columns (at most
// all of them); the others become 0 and are not read. first_valid >= 0: the number of positions
// before that of the first row, plus one.
NIBBLE_LAZY void softmax_causal(Executor& executor, MatrixView<const float> x,
                                MatrixView<float> out, Index first_valid,
                                float scale = 1.0f) noexcept {
  assert_rows_like(out, x);
  NIBBLE_ASSERT(first_valid >= 0 && scale > 0.0f);
  const Index k = x.extent(1);
  const auto run = simd::kernel<kernels::Softmax>();
  for_rows(executor, x.extent(0), k, [&](Index row) {
    run(row_of(x, row), row_of(out, row), k, (std::min)(first_valid + row, k), scale);
  });
}

// log(sum of exp(logits)) in two parts; the log-probability of i is logits[i] - max - log_sum.
// `logits` has at least one value and is contiguous.
NIBBLE_LAZY kernels::LogSum log_sum_exp(VectorView<const float> logits) noexcept {
  NIBBLE_ASSERT(logits.extent(0) >= 1 && logits.is_contiguous());
  return simd::kernel<kernels::LogSumExp>()(logits.data(), logits.extent(0));
}

// The index of the largest value; the lowest such index. At least one value, contiguous.
NIBBLE_LAZY Index argmax(VectorView<const float> logits) noexcept {
  NIBBLE_ASSERT(logits.extent(0) >= 1 && logits.is_contiguous());
  return simd::kernel<kernels::ArgMax>()(logits.data(), logits.extent(0));
}

}}}  // namespace nibble::NIBBLE_ABI::ops
