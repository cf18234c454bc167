// SPDX-License-Identifier: Apache-2.0
//
// Reductions over a row of scores: softmax, its normalizer for log-probabilities, and the argmax.
#pragma once

#include "nibble/simd/impl.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace kernels {

// out[i] = exp(scale * (x[i] - max)) / sum for i < n_valid, and 0 for n_valid <= i < n. max and sum
// are over the first n_valid scores (of a causal row: the positions it may see). 0 <= n_valid <= n;
// scale > 0. `x` and `out` may be the same. Every term of the sum is exp(t), t <= 0, with a
// relative error of at most (4 |t| + 3) u, u = 2^-24, or 0 below 2^-126. Blocks of 64 vectors are
// summed in f32 lanes, and the blocks in double. So the error of the sum, at most 40 u plus that of
// the terms, does not grow with n. A score of -inf gives 0. If a score is NaN or +inf, or if all
// are -inf, all outputs are NaN.
struct Softmax {
  using Function = void(const float* x, float* out, Index n, Index n_valid, float scale);
};

// log(sum exp(x[i])) = max + log_sum. The two are separate because log_sum is small: the
// log-probability of i is (x[i] - max) - log_sum.
struct LogSum {
  float max;
  double log_sum;  // in [0, log(n)]; absolute error below 1e-5
};

// Over i < n, n >= 1. Summed as in Softmax; NaN where Softmax gives NaN.
struct LogSumExp {
  using Function = LogSum(const float* x, Index n);
};

// The lowest i < n with the largest x[i]; n >= 1. NaN never wins; if all are NaN, the result is 0.
struct ArgMax {
  using Function = Index(const float* x, Index n);
};

}}}  // namespace nibble::NIBBLE_ABI::kernels
