// SPDX-License-Identifier: Apache-2.0
//
// What one run of an expression computes: rows of one or of many sequences.
#pragma once

#include <cstdint>
#include <span>

#include "nibble/core/view.hpp"
#include "nibble/ops/segment.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

using ops::PagePolicy;
using ops::Segment;
using ops::SegmentKind;

// A token value that stands for a row of Step::rows.
inline constexpr std::int32_t kNoToken = -1;

// Where a layer of a model keeps its keys and values: which layer of the cache, and which of a
// sequence's tables of pages. Layers of different tables can share a layer of the cache.
struct CachePlace {
  Index layer = 0;
  Index table = 0;
};

// Rows 0 ... n_rows - 1. Each row is in one segment; segments are in the order of their rows.
struct Step {
  std::span<const std::int32_t> tokens;  // (n_rows): inputs, or kNoToken
  MatrixView<const float> rows = {};     // (n_rows, width): inputs where there is no token
  std::span<const Segment> segments = {};
  std::span<const Index> output_rows = {};  // rows that output_rows() passes on, ascending
  const PagePolicy* policy = nullptr;       // which pages of the cache are read; null: all

  Index n_rows() const noexcept { return static_cast<Index>(tokens.size()); }
  Index n_outputs() const noexcept { return static_cast<Index>(output_rows.size()); }
  // The position of a row in its sequence.
  Index position_of(Index row) const noexcept {
    for (const Segment& s : segments) {
      if (row < s.first_row + s.n_rows) return s.first_position + row - s.first_row;
    }
    NIBBLE_ASSERT(false);
    return 0;
  }
};

}}}  // namespace nibble::NIBBLE_ABI::graph
