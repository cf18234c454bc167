// SPDX-License-Identifier: Apache-2.0
//
// What one run of an expression computes: rows of one or of many sequences.
#pragma once

#include <cstddef>
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

struct Factors;

// Factors of low rank that some rows have beside the weights of the model, in all products that
// compute them: those of an adapter that belongs to their sequence.
struct RowFactors {
  Index first_row = 0;
  Index n_rows = 0;
  const Factors* const* table = nullptr;  // in the places of a WeightTable; null: none there
  std::size_t n_slots = 0;                // of the table
  float strength = 1;                     // times the scale of the factors

  const Factors* at(std::size_t slot, Index layer) const noexcept {
    return table[static_cast<std::size_t>(layer + 1) * n_slots + slot];
  }
};

// Rows 0 ... n_rows - 1. Each row is in one segment; segments are in the order of their rows.
struct Step {
  std::span<const std::int32_t> tokens;  // (n_rows): inputs, or kNoToken
  MatrixView<const float> rows = {};     // (n_rows, width): inputs where there is no token
  std::span<const Segment> segments = {};
  std::span<const Index> output_rows = {};  // rows that output_rows() passes on, ascending
  const PagePolicy* policy = nullptr;       // which pages of the cache are read; null: all
  // Rows with factors of their own, ascending: rows of the step, of its outputs, of its segments.
  // Need a plan with Limits::max_rank and float_inputs; all matrices of factors have float formats.
  std::span<const RowFactors> row_factors = {};
  std::span<const RowFactors> output_factors = {};
  std::span<const RowFactors> segment_factors = {};

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
