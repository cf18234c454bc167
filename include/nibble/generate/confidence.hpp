// SPDX-License-Identifier: Apache-2.0
//
// How sure a model is of the next token.
#pragma once

#include <cstdint>

#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// Both are between 0 and 1.
enum class Confidence : std::uint8_t {
  margin,  // the probability of the most likely token, less that of the second (CALM)
  top,     // the probability of the most likely token
};

// Of one row of logits, (vocab_size), contiguous, at least one. NaN if they are not numbers.
double confidence_of(VectorView<const float> logits, Confidence measure) noexcept;

}}  // namespace nibble::NIBBLE_ABI

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/generate/confidence-inl.hpp"
#endif
