// SPDX-License-Identifier: Apache-2.0
//
// What a program can be shown of a graph while it runs: to calibrate, to debug, to learn from.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

#include "nibble/core/callback.hpp"
#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

// Called for each Tap: with its name, the layer (−1 outside of layers), and the rows.
using Observer = Callback<void(std::string_view name, Index layer, MatrixView<const float>)>;

// Called for the input of products, before they run: with the slots of the weights that are
// multiplied by it (as numbers), the layer (−1 outside of layers), and its rows (m, k) in f32,
// which are valid during the call.
using ProductObserver =
    Callback<void(std::span<const std::size_t> slot_ids, Index layer, MatrixView<const float>)>;

}}}  // namespace nibble::NIBBLE_ABI::graph
