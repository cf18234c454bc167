// SPDX-License-Identifier: Apache-2.0
//
// Losses of a row of logits and their gradients: cross-entropy with a target, and the divergence
// from a teacher (distillation).
#pragma once

#include "nibble/simd/impl.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace kernels {

// Replaces the logits x (n) by the gradient of weight * loss, and returns the loss in nats:
//   loss = log(sum exp(x[j])) - x[target],   x[i] <- weight * (softmax(x)[i] - (i == target)).
// 0 <= target < n, finite weight. The error of a softmax is that of kernels::Softmax plus two
// roundings, so it is relative; the difference at the target is taken in double, and nothing else
// cancels. A logit of -inf gets 0. NaN or inf among the logits gives NaN.
struct CrossEntropyBack {
  using Function = double(float* x, Index n, Index target, float weight);
};

// The two parts of the loss of a student, in nats.
struct DistillLoss {
  double cross_entropy = 0;  // 0 without a target
  double divergence = 0;     // KL(softmax(teacher / T) || softmax(x / T)), without factors
};

// Distillation (Hinton, Vinyals, Dean 2015). With p = softmax(teacher / T) and q = softmax(x / T),
//   loss = hard * cross_entropy + soft * T^2 * divergence, and the logits x (n) become its gradient
//   x[i] <- hard * (softmax(x)[i] - (i == target)) + soft * T * (q[i] - p[i]).
// A target below 0: without the first part. The factors include the weight of the row. T > 0.
// Teachers' logits may be -inf (p = 0). `teacher` must not overlap x.
struct DistillBack {
  struct Args {
    const float* teacher = nullptr;  // (n)
    Index n = 0;
    Index target = -1;
    float hard = 0;
    float soft = 1;
    float temperature = 1;
  };
  using Function = DistillLoss(const Args& args, float* x);
};

}}}  // namespace nibble::NIBBLE_ABI::kernels
