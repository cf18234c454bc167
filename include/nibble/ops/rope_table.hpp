// SPDX-License-Identifier: Apache-2.0
//
// The angles of rotary position embedding: frequencies, and cosines and sines of positions. Does
// not include Highway: cheap to include.
#pragma once

#include <span>

#include "nibble/core/libm.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

// YaRN (Peng et al. 2023): the context is stretched only in pairs that turn slowly. Those that turn
// at least beta_fast times within the n_original positions that the model knew before keep their
// frequency, those that turn at most beta_slow times are stretched, and there is a ramp between.
struct Yarn {
  float n_original = 0;  // 0: no YaRN, all pairs are stretched
  float beta_fast = 32;
  float beta_slow = 1;
  bool has_whole_pairs = true;  // the ramp begins and ends at whole pairs
  friend constexpr bool operator==(const Yarn&, const Yarn&) = default;
};

// frequencies[i] = theta^(-2 i / rope_dim) / (factors[i] * position_scale): the angle of pair i per
// position, for rope_dim / 2 pairs. `factors` is empty or has one positive number per pair (GGUF's
// tensor rope_freqs.weight, used by Llama 3). position_scale stretches the context linearly (GGUF's
// rope.scaling.factor; 1: no stretching), with YaRN only where that says so.
inline void rope_frequencies(std::span<double> frequencies, double theta,
                             std::span<const float> factors = {}, double position_scale = 1.0,
                             const Yarn& yarn = {}) noexcept {
  NIBBLE_ASSERT(factors.empty() || factors.size() == frequencies.size());
  NIBBLE_ASSERT(theta > 0.0 && position_scale > 0.0);
  const auto n_pairs = static_cast<double>(frequencies.size());
  // The pair that turns n_turns times within n_original positions, as a real number.
  const auto pair_turning = [&](float n_turns) {
    constexpr double kTwoPi = 6.283185307179586;
    return n_pairs *
           libm::log(static_cast<double>(yarn.n_original) /
                     (static_cast<double>(n_turns) * kTwoPi)) /
           libm::log(theta);
  };
  double first = 0, last = 0;  // the ramp
  if (yarn.n_original > 0) {
    const double fast = pair_turning(yarn.beta_fast), slow = pair_turning(yarn.beta_slow);
    first = larger(yarn.has_whole_pairs ? libm::floor(fast) : fast, 0.0);
    last = -larger(-(yarn.has_whole_pairs ? libm::ceil(slow) : slow), 1 - 2 * n_pairs);
    last = larger(last, first + 0.001);
  }
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const double factor = factors.empty() ? 1.0 : static_cast<double>(factors[i]);
    const double frequency = libm::pow(theta, -static_cast<double>(i) / n_pairs) / factor;
    double stretched = 1;  // the share of this pair that is
    if (yarn.n_original > 0) {
      const double along = (static_cast<double>(i) - first) / (last - first);
      stretched = along < 0 ? 0 : along < 1 ? along : 1;
    }
    frequencies[i] = frequency * (stretched / position_scale + (1 - stretched));
  }
}

// Row i of `cos` and `sin`, both (n_positions, n_pairs), gets the cosines and sines of positions[i]
// * frequencies, times `magnitude`. The angle is a double: at position 2^31 its error is 2.4e-7, a
// few ULPs of the resulting float.
inline void rope_table(std::span<const double> frequencies, std::span<const Index> positions,
                       MatrixView<float> cos, MatrixView<float> sin,
                       double magnitude = 1.0) noexcept {
  NIBBLE_ASSERT(cos.shape() == sin.shape());
  NIBBLE_ASSERT(cos.extent(0) == static_cast<Index>(positions.size()));
  NIBBLE_ASSERT(cos.extent(1) == static_cast<Index>(frequencies.size()));
  for (Index row = 0; row < cos.extent(0); ++row) {
    const auto position = static_cast<double>(positions[static_cast<std::size_t>(row)]);
    for (Index i = 0; i < cos.extent(1); ++i) {
      const double angle = position * frequencies[static_cast<std::size_t>(i)];
      cos(row, i) = static_cast<float>(magnitude * libm::cos(angle));
      sin(row, i) = static_cast<float>(magnitude * libm::sin(angle));
    }
  }
}

}}}  // namespace nibble::NIBBLE_ABI::ops
