// SPDX-License-Identifier: Apache-2.0
//
// Runs of some layers only: that leave layers out, that end early, that go on where one ended.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

// How much of a layer a run computes.
enum class LayerPart : std::uint8_t {
  all,
  // What it stores in the cache, no more. The rows pass unchanged, and what is stored is what the
  // layer would store of them, so that later rows can read it. For layers that change their rows
  // only after cache_kv(), as all do whose halves are residuals.
  keys,
  none,  // the rows pass unchanged; what is stored stays as it is
};

// The layers of a run, and the rows (of the residual stream) between it and its neighbours.
struct LayerRange {
  std::span<const LayerPart> parts = {};  // (n_layers)
  // Only layers [begin, end) run. They are given `rows`, and not what stands before the layers, if
  // is_given; after the last of them the rows are stored there, if there is a place. Then comes
  // what follows the layers, unless has_outputs is false: the run then gives no result.
  Index begin = 0, end = 0;
  bool is_given = false;
  float* rows = nullptr;           // (any, width)
  const Index* row_ids = nullptr;  // (n_rows of the step): which row is whose; null: in order
  bool has_outputs = true;

  LayerPart part_of(Index layer) const noexcept {
    return layer < begin || layer >= end ? LayerPart::none : parts[static_cast<std::size_t>(layer)];
  }
  float* row(Index i, Index width) const noexcept {
    return rows + (row_ids == nullptr ? i : row_ids[i]) * width;
  }
};

}}}  // namespace nibble::NIBBLE_ABI::graph
