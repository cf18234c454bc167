// SPDX-License-Identifier: Apache-2.0
//
// How sure a model is of the next token. Included by confidence.hpp.
#pragma once

#include "nibble/core/libm.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/generate/confidence.hpp"
#include "nibble/ops/softmax.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

NIBBLE_INLINE double confidence_of(VectorView<const float> logits, Confidence measure) noexcept {
  const auto total = ops::log_sum_exp(logits);
  const double top = libm::exp(-total.log_sum);
  if (measure == Confidence::top || is_nan(top)) return top;
  float second = -kInfinity;
  const Index best = ops::argmax(logits);
  for (Index i = 0; i < logits.extent(0); ++i) {
    if (i != best && logits(i) > second) second = logits(i);
  }
  const double below = static_cast<double>(second) - static_cast<double>(total.max);
  return top - libm::exp(below - total.log_sum);
}

}}  // namespace nibble::NIBBLE_ABI
