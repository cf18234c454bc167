// SPDX-License-Identifier: Apache-2.0
//
// The gradient of a table whose rows were looked up: token and position embeddings.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "nibble/core/executor.hpp"
#include "nibble/kernels/elementwise.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/ops/rows.hpp"
#include "nibble/ops/unit_rows.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

// dtable[index_of(i)] += scale * dy[i] for each row of dy (m, k); rows whose index is negative are
// left out. dtable is (n, k), every index below n. Values of a row are contiguous. Each value of
// the table takes its rows in ascending order, whatever the number of threads: workers share
// columns, not rows. `scale` is that of the forward look-up.
template <class IndexOf>
void rows_back(Executor& executor, MatrixView<const float> dy, float scale,
               MatrixView<float> dtable, IndexOf index_of) noexcept {
  const Index m = dy.extent(0), k = dy.extent(1);
  NIBBLE_ASSERT(has_unit_rows(dy) && has_unit_rows(dtable) && dtable.extent(1) == k);
  const auto run = simd::kernel<kernels::AddScaled>();
  const auto add_columns = [&](Index begin, Index end) {
    for (Index i = 0; i < m; ++i) {
      const Index index = index_of(i);
      if (index < 0) continue;
      NIBBLE_ASSERT(index < dtable.extent(0));
      run(row_of(dy, i) + begin, scale, row_of(dtable, index) + begin, end - begin);
    }
  };
  constexpr Index kColumns = 32;  // two cache lines
  const Index n_parts = (k + kColumns - 1) / kColumns;
  const Index n_tasks = (std::min)({executor.n_workers(), n_parts, m * k / kValuesPerTask});
  if (n_tasks <= 1) {
    add_columns(0, k);
    return;
  }
  executor.parallel_for(n_tasks, [&](Index task, Index) {
    const auto column = [&](Index t) { return (std::min)(k, n_parts * t / n_tasks * kColumns); };
    add_columns(column(task), column(task + 1));
  });
}

// Of token embeddings: row i of dy belongs to tokens[i]; a negative token is no row of the table.
NIBBLE_LAZY void embedding_back(Executor& executor, std::span<const std::int32_t> tokens,
                                MatrixView<const float> dy, float scale,
                                MatrixView<float> dtable) noexcept {
  NIBBLE_ASSERT(static_cast<Index>(tokens.size()) == dy.extent(0));
  rows_back(executor, dy, scale, dtable,
            [&](Index i) { return Index{tokens[static_cast<std::size_t>(i)]}; });
}

}}}  // namespace nibble::NIBBLE_ABI::ops
