// SPDX-License-Identifier: Apache-2.0
//
// The tables of rotations that an expression needs, as its survey reports them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "nibble/graph/rope_table.hpp"
#include "nibble/graph/weights.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

struct RopeNeed {
  RopeKey key;
  RopeFactors factors;

  // The table for n_positions; memory and frequencies as for RopeTable::fill().
  RopeTable table(std::span<std::byte> memory, WeightTable weights, Index n_positions,
                  std::span<double> frequencies) const noexcept {
    std::span<const float> divisors;
    if (key.has_factors) {
      const Weight& w = weights.at(factors.slot_for(n_positions), -1);
      divisors = {w.vector(), static_cast<std::size_t>(w.k)};
    }
    return RopeTable::fill(memory, key, n_positions, frequencies, divisors);
  }
};

// Each table once, whatever the number of nodes and layers.
class RopeNeeds {
 public:
  // What SurveySink::rope() is told, of a model with these weights.
  void add(RopeKey key, const RopeFactors& factors, WeightTable weights) {
    key.has_factors = factors.slot != RopeFactors::kNone && weights.at(factors.slot, -1);
    const auto is_it = [&](const RopeNeed& need) { return need.key == key; };
    if (std::none_of(all_.begin(), all_.end(), is_it)) all_.push_back({key, factors});
  }

  std::span<const RopeNeed> all() const noexcept { return all_; }
  // Bytes of the vector that holds them.
  std::size_t bytes() const noexcept { return all_.capacity() * sizeof(RopeNeed); }

 private:
  std::vector<RopeNeed> all_;
};

}}}  // namespace nibble::NIBBLE_ABI::graph
