// SPDX-License-Identifier: Apache-2.0
//
// Rows of an embedding table that is stored as f32, f16 or bf16.
#pragma once

#include <cstdint>
#include <span>

#include "nibble/kernels/elementwise.hpp"
#include "nibble/ops/rows.hpp"
#include "nibble/ops/unit_rows.hpp"
#include "nibble/simd/dispatch.hpp"

namespace nibble::inline NIBBLE_ABI::ops {

// out[i] = table[ids[i]]. `table` is (vocabulary, dim) and `out` (n_tokens, dim), the values of a
// row next to each other; no overlap. Ids have been checked: 0 <= id < vocabulary. T: float, f16 or
// bf16.
template <class T>
void embedding(Executor& executor, MatrixView<const T> table, std::span<const std::int32_t> ids,
               MatrixView<float> out) noexcept {
  NIBBLE_ASSERT(out.extent(0) == static_cast<Index>(ids.size()) &&
                out.extent(1) == table.extent(1));
  NIBBLE_ASSERT(has_unit_rows(table) && has_unit_rows(out));
  const auto run = simd::kernel<kernels::ToF32<T>>();
  for_rows(executor, out.extent(0), out.extent(1), [&](Index row) {
    const Index id = ids[static_cast<std::size_t>(row)];
    NIBBLE_ASSERT(id >= 0 && id < table.extent(0));
    run(row_of(table, id), row_of(out, row), out.extent(1));
  });
}

}  // namespace nibble::inline NIBBLE_ABI::ops
