// SPDX-License-Identifier: Apache-2.0
//
// The log-probability of a token, and what is said where a model gives none.
#pragma once

#include <cstdint>
#include <string>

#include "nibble/core/result.hpp"
#include "nibble/ops/softmax.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace detail {

// log P(id) = logits[id] - log(sum of exp(logits)), in nats; NaN if the logits are not numbers.
// 0 <= id < logits.extent(0).
NIBBLE_LAZY double logprob_of(std::int32_t id, VectorView<const float> logits) noexcept {
  const auto total = ops::log_sum_exp(logits);
  return static_cast<double>(logits(id)) - static_cast<double>(total.max) - total.log_sum;
}

// who: the function that says it; what: of the model.
inline Error not_numbers(const char* who, const char* what = "logits") {
  return {Errc::malformed, who + std::string(": the model's ") + what +
                               " are not numbers; probably a weight of the file is NaN or "
                               "infinite"};
}

}}}  // namespace nibble::NIBBLE_ABI::detail
