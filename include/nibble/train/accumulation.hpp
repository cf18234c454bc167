// SPDX-License-Identifier: Apache-2.0
//
// The bookkeeping of gradients that are summed over several batches.
#pragma once

#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/text.hpp"
#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace train {

// Gradients of several batches, summed before one step. Each batch adds the gradient of its *sum*
// of losses; the step multiplies by scale(): so the mean is over all counted rows, however they are
// spread over batches, and not a mean of means.
class Accumulation {
 public:
  // After a batch: the sum of its losses and of its weights (Batch::weight). Error: malformed, if
  // the loss is not finite; it is then not counted.
  Result<void> add(double loss_sum, double weight) {
    if (!is_finite(loss_sum)) {
      return Error{Errc::malformed, "the loss of batch " + to_text(n_batches_) +
                                        " is not finite; a lower learning rate or clipping may "
                                        "help"};
    }
    NIBBLE_ASSERT(weight >= 0);
    loss_ += loss_sum;
    weight_ += weight;
    ++n_batches_;
    return ok();
  }
  // Whether the next batch is the first: gradients are then overwritten, or zero.
  bool is_empty() const noexcept { return n_batches_ == 0; }
  Index n_batches() const noexcept { return n_batches_; }
  double weight() const noexcept { return weight_; }
  // Of all counted rows.
  double mean_loss() const noexcept { return weight_ > 0 ? loss_ / weight_ : 0; }
  // The gradient_scale of the step. Error: invalid_argument, if no row counted.
  Result<double> scale() const {
    if (weight_ > 0) return 1 / weight_;
    return Error{Errc::invalid_argument, "no row of the batches counts in the loss"};
  }
  void reset() noexcept { *this = {}; }

 private:
  double loss_ = 0, weight_ = 0;
  Index n_batches_ = 0;
};

}}}  // namespace nibble::NIBBLE_ABI::train
