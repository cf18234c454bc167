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

// Chunks of positions, which begin at multiples of it, in which some recurrent state changes once:
// see StateAt.
inline constexpr Index kStateChunk = 16;

// Where a layer of a model keeps its keys and values: which layer of the cache, and which of a
// sequence's tables of pages. Layers of different tables can share a layer of the cache.
struct CachePlace {
  Index layer = 0;
  Index table = 0;
};

struct Factors;

// Keys and values that attention of a layer reads besides those of the sequence: a prompt of an
// adapter. Keys are not rotated.
struct PromptKv {
  Index n = 0;                    // rows; 0: none in this layer
  const float* keys = nullptr;    // (n, n_kv_heads * head_dim)
  const float* values = nullptr;  // the same
  float gate = 0;                 // factor of what attention gives of them
};
// The most rows of a prompt.
inline constexpr Index kMaxPromptRows = 256;

// What some rows have besides the model: the adapter of their sequence.
struct RowAdapter {
  Index first_row = 0;
  Index n_rows = 0;
  // Factors of low rank beside the weights, in the places of a WeightTable; null: none there.
  const Factors* const* factors = nullptr;
  std::size_t n_slots = 0;            // of the table
  const PromptKv* prompts = nullptr;  // (layers); null: none
  float strength = 1;                 // times the scales of factors and the gates of prompts

  const Factors* factors_at(std::size_t slot, Index layer) const noexcept {
    if (factors == nullptr) return nullptr;
    return factors[static_cast<std::size_t>(layer + 1) * n_slots + slot];
  }
};

// Rows 0 ... n_rows - 1. Each row is in one segment; segments are in the order of their rows.
struct Step {
  std::span<const std::int32_t> tokens;  // (n_rows): inputs, or kNoToken
  MatrixView<const float> rows = {};     // (n_rows, width): inputs where there is no token
  std::span<const Segment> segments = {};
  std::span<const Index> output_rows = {};  // rows that output_rows() passes on, ascending
  const PagePolicy* policy = nullptr;       // which pages of the cache are read; null: all
  // Rows with adapters, ascending: rows of the step, of its outputs, of its segments. Factors need
  // a plan with Limits::max_rank and float_inputs, and have float formats.
  std::span<const RowAdapter> row_adapters = {};
  std::span<const RowAdapter> output_adapters = {};
  std::span<const RowAdapter> segment_adapters = {};

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
