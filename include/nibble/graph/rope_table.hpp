// SPDX-License-Identifier: Apache-2.0
//
// The cosines and sines that Rope nodes read: one table for each set of angles that an expression
// uses, whatever the number of nodes and layers.
#pragma once

#include <span>

#include "nibble/core/arena.hpp"
#include "nibble/graph/expr.hpp"
#include "nibble/ops/rope_table.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

// What distinguishes one table from another.
struct RopeKey {
  Index dim = 0;  // dimensions of a head that are rotated
  float theta = 0;
  float position_scale = 1;
  bool has_factors = false;  // frequencies are divided by a vector of the model
  float magnitude = 1;
  ops::Yarn yarn = {};
  friend constexpr bool operator==(const RopeKey&, const RopeKey&) = default;
};

// The key of a node's table in a layer.
template <auto kFactors>
constexpr RopeKey rope_key(const RopeAngles& angles, Index layer, bool has_factors) noexcept {
  return {angles.dim.at(layer),
          angles.theta.at(layer),
          angles.position_scale.at(layer),
          !kIsNone<kFactors> && has_factors,
          angles.magnitude.at(layer),
          angles.yarn};
}

// The vectors of a model by which frequencies are divided.
struct RopeFactors {
  static constexpr std::size_t kNone = static_cast<std::size_t>(-1);
  std::size_t slot = kNone;
  std::size_t beyond = kNone;  // the same for contexts of more than n_original positions
  Index n_original = 0;

  constexpr std::size_t slot_for(Index n_positions) const noexcept {
    return beyond != kNone && n_positions > n_original ? beyond : slot;
  }
};

struct RopeTable {
  RopeKey key;
  MatrixView<const float> cos;  // (n_positions, key.dim / 2)
  MatrixView<const float> sin;

  static constexpr std::size_t bytes_needed(const RopeKey& key, Index n_positions) noexcept {
    return 2 * align_up(static_cast<std::size_t>(n_positions * (key.dim / 2)) * sizeof(float));
  }
  // Fills bytes_needed() bytes of `memory`, aligned to kAlignment. frequencies: (dim / 2), scratch;
  // factors: (dim / 2) or empty, see ops::rope_frequencies.
  static RopeTable fill(std::span<std::byte> memory, const RopeKey& key, Index n_positions,
                        std::span<double> frequencies, std::span<const float> factors) noexcept {
    const Index n_pairs = key.dim / 2;
    NIBBLE_ASSERT(memory.size() >= bytes_needed(key, n_positions));
    NIBBLE_ASSERT(static_cast<Index>(frequencies.size()) == n_pairs);
    Arena arena(memory);
    const auto n = static_cast<std::size_t>(n_positions * n_pairs);
    const MatrixView<float> cos(arena.take<float>(n), n_positions, n_pairs);
    const MatrixView<float> sin(arena.take<float>(n), n_positions, n_pairs);
    ops::rope_frequencies(frequencies, static_cast<double>(key.theta), factors,
                          static_cast<double>(key.position_scale), key.yarn);
    for (Index p = 0; p < n_positions; ++p) {
      ops::rope_table(frequencies, {&p, 1}, cos.rows(p, 1), sin.rows(p, 1),
                      static_cast<double>(key.magnitude));
    }
    return {key, cos, sin};
  }
};

}}}  // namespace nibble::NIBBLE_ABI::graph
