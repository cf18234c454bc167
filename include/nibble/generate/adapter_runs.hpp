// SPDX-License-Identifier: Apache-2.0
//
// Which rows of a step have adapters.
#pragma once

#include <cstddef>
#include <span>

#include "nibble/graph/step.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace detail {

// Runs of consecutive rows with the same adapter, in memory for as many as there are.
class AdapterRuns {
 public:
  explicit AdapterRuns(graph::RowAdapter* memory) noexcept : first_(memory) {}

  void add(const graph::RowAdapter& rows) noexcept {
    if (rows.n_rows == 0) return;
    if (n_ > 0) {
      graph::RowAdapter& last = first_[n_ - 1];
      if (last.first_row + last.n_rows == rows.first_row && last.factors == rows.factors &&
          last.prompts == rows.prompts && last.strength == rows.strength) {
        last.n_rows += rows.n_rows;
        return;
      }
    }
    first_[n_++] = rows;
  }
  std::span<const graph::RowAdapter> all() const noexcept { return {first_, n_}; }

 private:
  graph::RowAdapter* first_;
  std::size_t n_ = 0;
};

// The adapter of a row; without rows if it has none. `all`: as in graph::Step.
inline graph::RowAdapter adapter_of(Index row, std::span<const graph::RowAdapter> all) noexcept {
  for (const graph::RowAdapter& a : all) {
    if (row >= a.first_row && row < a.first_row + a.n_rows) return a;
  }
  return {};
}

}}}  // namespace nibble::NIBBLE_ABI::detail
