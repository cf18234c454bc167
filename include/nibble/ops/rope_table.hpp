// SPDX-License-Identifier: Apache-2.0
//
// The angles of rotary position embedding: frequencies, and cosines and sines of positions. Does
// not include Highway: cheap to include.
#pragma once

#include <span>

#include "nibble/core/libm.hpp"
#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

// frequencies[i] = theta^(-2 i / rope_dim) / (factors[i] * position_scale): the angle of pair i per
// position, for rope_dim / 2 pairs. `factors` is empty or has one positive number per pair (GGUF's
// tensor rope_freqs.weight, used by Llama 3). position_scale stretches the context linearly (GGUF's
// rope.scaling.factor; 1: no stretching).
inline void rope_frequencies(std::span<double> frequencies, double theta,
                             std::span<const float> factors = {},
                             double position_scale = 1.0) noexcept {
  NIBBLE_ASSERT(factors.empty() || factors.size() == frequencies.size());
  NIBBLE_ASSERT(theta > 0.0 && position_scale > 0.0);
  const auto n_pairs = static_cast<double>(frequencies.size());
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const double factor = factors.empty() ? 1.0 : static_cast<double>(factors[i]);
    frequencies[i] =
        libm::pow(theta, -static_cast<double>(i) / n_pairs) / (factor * position_scale);
  }
}

// Row i of `cos` and `sin`, both (n_positions, n_pairs), gets the cosines and sines of positions[i]
// * frequencies. The angle is a double: at position 2^31 its error is 2.4e-7, a few ULPs of the
// resulting float.
inline void rope_table(std::span<const double> frequencies, std::span<const Index> positions,
                       MatrixView<float> cos, MatrixView<float> sin) noexcept {
  NIBBLE_ASSERT(cos.shape() == sin.shape());
  NIBBLE_ASSERT(cos.extent(0) == static_cast<Index>(positions.size()));
  NIBBLE_ASSERT(cos.extent(1) == static_cast<Index>(frequencies.size()));
  for (Index row = 0; row < cos.extent(0); ++row) {
    const auto position = static_cast<double>(positions[static_cast<std::size_t>(row)]);
    for (Index i = 0; i < cos.extent(1); ++i) {
      const double angle = position * frequencies[static_cast<std::size_t>(i)];
      cos(row, i) = static_cast<float>(libm::cos(angle));
      sin(row, i) = static_cast<float>(libm::sin(angle));
    }
  }
}

}}}  // namespace nibble::NIBBLE_ABI::ops
