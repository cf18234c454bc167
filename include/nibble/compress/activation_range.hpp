// SPDX-License-Identifier: Apache-2.0
//
// The range of 8-bit codes for numbers whose distribution is known from calibration: how much of the
// tail to clip, so that the rest gets finer steps.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "nibble/compress/histogram.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/text.hpp"
#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

enum class RangeMethod : unsigned char {
  min_max,     // all that was seen
  percentile,  // all but the share 1 − percentile/100 of the numbers, the largest
  kl,          // the least Kullback-Leibler divergence of the distribution from its coarser self
  mse,         // the least mean squared error
};

constexpr const char* to_string(RangeMethod method) noexcept {
  switch (method) {
    case RangeMethod::min_max: return "min/max";
    case RangeMethod::percentile: return "percentile";
    case RangeMethod::kl: return "KL";
    case RangeMethod::mse: return "MSE";
  }
  return "?";
}

struct RangeOptions {
  RangeMethod method = RangeMethod::min_max;
  bool is_unsigned = false;    // codes 0 … 255 with a zero point; otherwise −127 … 127 around zero
  double percentile = 99.999;  // more than 0, at most 100
};

// Scales outside of these bounds, and their inverses times numbers, might not be normal numbers.
inline constexpr float kMinRangeScale = 0x1p-100f;
inline constexpr float kMaxRangeScale = 0x1p100f;

// Symmetric: number = scale · code, code in [−127, 127]; zero_point is 0.
// Unsigned: number = scale · (code − zero_point), code and zero_point in [0, 255].
// Zero is always represented exactly; what the range does not hold saturates.
struct ActivationRange {
  float scale = 0.0f;  // in [kMinRangeScale, kMaxRangeScale]
  std::int32_t zero_point = 0;
  bool is_unsigned = false;
  double clipped = 0;  // share of the numbers beyond the range by more than half a step
  double error = 0;    // mean squared error of the codes, as far as the histogram knows the numbers

  constexpr float low() const noexcept {
    return scale * static_cast<float>((is_unsigned ? 0 : -127) - zero_point);
  }
  constexpr float high() const noexcept {
    return scale * static_cast<float>((is_unsigned ? 255 : 127) - zero_point);
  }
};

}}}  // namespace nibble::NIBBLE_ABI::compress
