// SPDX-License-Identifier: Apache-2.0
//
// Which rows of a step have factors of their own.
#pragma once

#include <cstddef>
#include <span>

#include "nibble/graph/step.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace detail {

// Runs of consecutive rows with the same adapter, in memory for as many as there are.
class FactorRuns {
 public:
  explicit FactorRuns(graph::RowFactors* memory) noexcept : first_(memory) {}

  void add(const graph::RowFactors& rows) noexcept {
    if (rows.n_rows == 0) return;
    if (n_ > 0) {
      graph::RowFactors& last = first_[n_ - 1];
      if (last.first_row + last.n_rows == rows.first_row && last.table == rows.table &&
          last.strength == rows.strength) {
        last.n_rows += rows.n_rows;
        return;
      }
    }
    first_[n_++] = rows;
  }
  std::span<const graph::RowFactors> all() const noexcept { return {first_, n_}; }

 private:
  graph::RowFactors* first_;
  std::size_t n_ = 0;
};

// The factors of a row; without rows if it has none. `all`: as in graph::Step.
inline graph::RowFactors factors_of(Index row, std::span<const graph::RowFactors> all) noexcept {
  for (const graph::RowFactors& f : all) {
    if (row >= f.first_row && row < f.first_row + f.n_rows) return f;
  }
  return {};
}

}}}  // namespace nibble::NIBBLE_ABI::detail
