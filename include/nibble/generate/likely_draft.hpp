// SPDX-License-Identifier: Apache-2.0
//
// A guess from logits: the most likely token, if it is likely enough.
#pragma once

#include <cstdint>
#include <optional>

#include "nibble/core/libm.hpp"
#include "nibble/core/view.hpp"
#include "nibble/generate/draft_source.hpp"
#include "nibble/generate/logprob.hpp"
#include "nibble/ops/softmax.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace detail {

// logits: (vocab_size), of a model that guesses.
inline std::optional<Draft> likely_draft(VectorView<const float> logits) noexcept {
  constexpr double kLeast = 0.3;
  constexpr double kBounds[] = {0.98, 0.9, 0.75, 0.5};  // between kinds
  const auto id = static_cast<std::int32_t>(ops::argmax(logits));
  const double probability = libm::exp(logprob_of(id, logits));
  if (!(probability >= kLeast)) return std::nullopt;
  int kind = 0;
  for (const double bound : kBounds) kind += probability < bound;
  return Draft{id, static_cast<std::uint8_t>(kind)};
}

}}}  // namespace nibble::NIBBLE_ABI::detail
