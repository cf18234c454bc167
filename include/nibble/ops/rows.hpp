// SPDX-License-Identifier: Apache-2.0
//
// The rows of a matrix, split over the workers of an executor.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "nibble/core/executor.hpp"
#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

// A task should have so many values, or more: a few microseconds of work.
inline constexpr Index kValuesPerTask = 1 << 14;

// Calls body(row) once for each row in [0, m); neighbouring rows run on the same worker. Rows have
// about `k` values each. Small matrices stay on the calling thread, which finishes them before
// another thread would have woken up.
template <class Body>
void for_rows(Executor& executor, Index m, Index k, Body&& body) {
  const Index n_tasks = (std::min)({executor.n_workers(), m, m * k / kValuesPerTask});
  if (n_tasks <= 1) {
    for (Index row = 0; row < m; ++row) body(row);
    return;
  }
  executor.parallel_for(n_tasks, [&](Index task, Index) {
    const Index end = m * (task + 1) / n_tasks;
    for (Index row = m * task / n_tasks; row < end; ++row) body(row);
  });
}

// to = from: matrices of one shape whose rows are contiguous, which do not overlap.
NIBBLE_LAZY void copy_rows(Executor& executor, MatrixView<const float> from,
                           MatrixView<float> to) noexcept {
  NIBBLE_ASSERT(from.extent(0) == to.extent(0) && from.extent(1) == to.extent(1));
  const auto bytes = static_cast<std::size_t>(to.extent(1)) * sizeof(float);
  for_rows(executor, to.extent(0), to.extent(1), [&](Index i) {
    std::memcpy(to.data() + i * to.stride(0), from.data() + i * from.stride(0), bytes);
  });
}

}}}  // namespace nibble::NIBBLE_ABI::ops
