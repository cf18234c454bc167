// SPDX-License-Identifier: Apache-2.0
//
// Sums over the rows of a matrix in an order that no number of threads changes: the rows are cut
// into chunks that depend on their number only, each chunk is summed in the order of its rows, and
// then the sums of the chunks are added in order.
#pragma once

#include <algorithm>
#include <cstddef>

#include "nibble/core/executor.hpp"
#include "nibble/ops/rows.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

struct RowChunks {
  static constexpr Index kMaxChunks = 16;
  static constexpr Index kMinRows = 32;
  Index m = 0;
  Index rows_per_chunk = kMinRows;

  constexpr explicit RowChunks(Index n_rows) noexcept
      : m(n_rows), rows_per_chunk((std::max)(kMinRows, (n_rows + kMaxChunks - 1) / kMaxChunks)) {}
  constexpr Index n() const noexcept { return (m + rows_per_chunk - 1) / rows_per_chunk; }
  constexpr Index begin(Index chunk) const noexcept { return chunk * rows_per_chunk; }
  constexpr Index end(Index chunk) const noexcept {
    return (std::min)(m, (chunk + 1) * rows_per_chunk);
  }
  // The most chunks that up to max_rows rows have.
  static constexpr Index max_chunks(Index max_rows) noexcept {
    return (std::min)(kMaxChunks, (max_rows + kMinRows - 1) / kMinRows);
  }
};

// Bytes of scratch for sums of k values over the rows of a matrix of up to max_rows rows.
constexpr std::size_t row_sum_scratch_bytes(Index max_rows, Index k) noexcept {
  return static_cast<std::size_t>(RowChunks::max_chunks(max_rows) * k) * sizeof(float);
}

// Calls body(chunk) once for each chunk; its rows have about k values each. Little work stays on
// the calling thread, as in for_rows().
template <class Body>
void for_row_chunks(Executor& executor, const RowChunks& chunks, Index k, Body&& body) {
  if (chunks.n() <= 1 || executor.n_workers() <= 1 || chunks.m * k < 2 * kValuesPerTask) {
    for (Index chunk = 0; chunk < chunks.n(); ++chunk) body(chunk);
    return;
  }
  executor.parallel_for(chunks.n(), [&](Index chunk, Index) { body(chunk); });
}

}}}  // namespace nibble::NIBBLE_ABI::ops
