// SPDX-License-Identifier: Apache-2.0
//
// Updates of parameters by an optimizer, and the sum of squares that clipping needs. All work on n
// neighbouring values; no alignment is needed, nothing beyond n is read or written, and the arrays
// do not overlap. What becomes of a value does not depend on the other values, except in AdamW8
// through its block's scales.
#pragma once

#include <cstdint>

#include "nibble/simd/impl.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace kernels {

// The factors of one step of AdamW (Loshchilov and Hutter, Decoupled Weight Decay Regularization,
// 2019), computed in double by the caller; t counts from 1:
//   g = gradient_scale · gradient
//   m = m + first_rest · (g − m)               first_rest = 1 − β₁
//   v = second_kept · v + second_rest · g²     second_kept = β₂, second_rest = 1 − β₂
//   p = keep · p − rate · m / (second_scale · √v + epsilon)
// with keep = 1 − lr · weight_decay, rate = lr / (1 − β₁ᵗ), second_scale = 1 / √(1 − β₂ᵗ): what
// torch.optim.AdamW does.
struct AdamWStep {
  float gradient_scale = 1;
  float first_rest = 0;
  float second_kept = 0;
  float second_rest = 0;
  float keep = 1;
  float rate = 0;
  float second_scale = 1;
  float epsilon = 0;
};

// One step of p with the moments m and v in f32.
struct AdamW {
  using Function = void(const AdamWStep& step, float* p, const float* gradient, float* m, float* v,
                        Index n);
};

// The same with moments of 8 bits, in blocks of kMomentBlock values (the last may be shorter) that
// share a scale for each moment, m_scales[block] = max |m| and v_scales[block] = max v:
//   m = ± m_scale · (|code| / 127)²            code −127 … 127
//   v = v_scale · (code / 255)⁴                code 0 … 255: √v has squared codes as m has
// Small values keep more digits than with equal steps. Codes are rounded up or down at random, by
// chance of the distance, so that on average m and v are exact: a moment that changes by less
// than a step each time would never move otherwise. (v rounds up from code 0: it stays positive.)
// The random bits depend only on `key` and the value's position in p, `first` for p[0]. The update
// of p uses m and v before they are rounded. Codes and scales of 0 are moments of zero; so are
// blocks whose m_scale would be below 2^-106, or v_scale below 2^-88, because the units of their
// codes would be no normal floats.
inline constexpr Index kMomentBlock = 256;
struct AdamW8 {
  using Function = void(const AdamWStep& step, std::uint32_t key, std::uint32_t first, float* p,
                        const float* gradient, std::int8_t* m, std::uint8_t* v, float* m_scales,
                        float* v_scales, Index n);
};

// The factors of one step of gradient descent with momentum, as torch.optim.SGD (dampening 0):
//   g = gradient_scale · gradient + decay · p      (decay is part of the gradient)
//   m = momentum · m + g
//   p = p − rate · (nesterov ? g + momentum · m : m)
struct MomentumStep {
  float gradient_scale = 1;
  float decay = 0;
  float momentum = 0;
  float rate = 0;
  bool nesterov = false;
};
struct Momentum {
  using Function = void(const MomentumStep& step, float* p, const float* gradient, float* m,
                        Index n);
};

// The sum of x[i]², i < n, in double: no sum of floats overflows it, so that it is infinite or NaN
// exactly if an x[i] is. The order of the sum depends on the target, and on nothing else.
struct SquareSum {
  using Function = double(const float* x, Index n);
};

}}}  // namespace nibble::NIBBLE_ABI::kernels
