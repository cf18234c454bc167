// SPDX-License-Identifier: Apache-2.0
//
// The best scale of a group of weights without a minimum: of all scales that a format can store,
// the one with the least Σ importance · (x - scale · code)², each code being the best for the
// scale.
//
// The error as a function of the scale has a piece for each assignment of codes, hundreds for a
// block, so a grid of guesses misses the best one (llama.cpp#12557 enumerates the borders of the
// pieces). Here intervals of stored scales are halved instead. For an interval [a, b] every weight
// x ≥ 0 has a least distance from what any scale in it can represent: with c = floor(x / b), which
// is the largest code not beyond x for all of them, it is the smaller of x - b·c and a·(c+1) - x,
// or zero. The weighted sum of their squares bounds the error from below; an interval whose bound
// is not less than the best error so far is dropped. What is left at the end is the optimum, and it
// is an optimum among scales as they are stored: rounding a scale afterwards costs as much as half
// of the gain.
//
// Accuracy: a bound or an error is a sum of squares in f32 whose terms are exact but for one
// rounding (a 16-bit scale times a code is exact), so the result's error is at most a few parts in
// a million more than the least possible.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "nibble/core/exact_math.hpp"
#include "nibble/core/float16.hpp"
#include "nibble/core/libm.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/quant/four.hpp"
#include "nibble/quant/quantize.hpp"

NIBBLE_EXACT_MATH_BEGIN
namespace nibble { inline namespace NIBBLE_ABI { namespace quant { namespace detail {

// 2^n as f32, n in [-126, 127].
constexpr float power_of_two(int n) noexcept {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(n + 127) << 23);
}
// n with 2^n ≤ x < 2^(n+1), for positive x; -127 for subnormal x.
constexpr int exponent_of(float x) noexcept {
  return static_cast<int>(__builtin_bit_cast(std::uint32_t, x) >> 23 & 255) - 127;
}

// Importance is finite and not negative; anything else counts as zero. Relative to the largest of a
// block, less than this counts as this: weights without any importance then follow the scale
// instead of becoming anything, and where none has any, all have the same.
inline constexpr float kLeastImportance = 0x1p-40f;

// Importance scaled by a power of two, so that the largest is in [1, 2). `importance` may be null:
// all the same.
template <std::size_t n>
void normalize_importance(const float* importance, std::array<float, n>& out) noexcept {
  float largest = 0.0f;
  for (std::size_t i = 0; i < n; ++i) {
    const float w = importance == nullptr ? 1.0f : importance[i];
    out[i] = is_finite(static_cast<double>(w)) && w > 0.0f ? w : 0.0f;
    largest = larger(largest, out[i]);
  }
  // In two steps, because the factor itself may overflow.
  const int exponent = largest > 0.0f ? exponent_of(largest) : 0;
  const float half = power_of_two(-exponent / 2), rest = power_of_two(-exponent + exponent / 2);
  for (float& w : out) w = larger(w * half * rest, kLeastImportance);
}

// Weights scaled by a power of two so that no square overflows.
template <std::size_t n>
struct Normalized {
  std::array<float, n> x;
  float unit = 1.0f;  // the weights are x / unit

  explicit Normalized(const float* weights) noexcept {
    float peak = 0.0f;
    for (std::size_t i = 0; i < n; ++i) peak = larger(peak, libm::fabs(weights[i]));
    const int exponent = (std::max)((std::min)(exponent_of(peak), 120), -100);
    unit = power_of_two(-exponent);
    for (std::size_t i = 0; i < n; ++i) x[i] = weights[i] * unit;
  }
};

// The positive numbers of a 16-bit float type, in ascending order, times a power of two.
template <class T>
struct StoredScales {
  static constexpr int kFirst = 1;
  static constexpr int kLast = std::is_same_v<T, f16> ? 0x7BFF : 0x7F7F;
  float unit = 1.0f;
  float operator()(int index) const noexcept {
    return to_f32(T{static_cast<std::uint16_t>(index)}) * unit;
  }
  // The first that is at least x, or the largest.
  int at_least(float x) const noexcept {
    const int index = round_to<T>(x / unit).bits;
    if (index >= kLast) return kLast;
    return (std::max)(kFirst, (*this)(index) < x ? index + 1 : index);
  }
};

// 1 … largest times a number.
struct WholeScales {
  float unit = 1.0f;
  float operator()(int index) const noexcept { return unit * static_cast<float>(index); }
};

// Magnitudes of n weights, and for each the largest code in its direction. Codes stand for
// themselves, or with `half` = 0.5 for 0.5, 1.5, 2.5, …
template <std::size_t n>
struct ScaleItems {
  static_assert(n % 8 == 0);
  std::array<float, n> magnitude;
  std::array<float, n> importance;
  std::array<float, n> top;
  float half = 0.0f;

  // For scales of the given sign.
  void set_sign(const std::array<float, n>& x, bool negative, int lowest, int highest) noexcept {
    for (std::size_t i = 0; i < n; ++i) {
      magnitude[i] = libm::fabs(x[i]);
      top[i] = static_cast<float>((x[i] < 0.0f) == negative ? highest : -lowest);
    }
  }

  // A lower bound of the error for all scales in [a, b]; of a single scale its error.
  float least_error(float a, float b) const noexcept {
    const Four inverse = Four::all(smaller(1.0f / b, kFloatMax));
    const Four least = Four::all(a), most = Four::all(b), zero = Four::all(0.0f);
    const Four one = Four::all(1.0f), from = Four::all(half);
    Four sums[2] = {zero, zero};
    for (std::size_t i = 0; i < n; i += 4) {
      const Four x = Four::load(magnitude.data() + i), last = Four::load(top.data() + i);
      const Four code = truncated(smaller(larger(x * inverse - from, zero), last));
      const Four above = x - most * (code + from);
      const Four below = least * (code + one + from) - x;
      const Four beyond = larger(if_less(code, last, smaller(above, below), above), zero);
      const Four distance = larger(beyond, least * from - x);  // x is below the first code
      Four& to = sums[i / 4 % 2];
      to = to + Four::load(importance.data() + i) * (distance * distance);
    }
    return sum(sums[0] + sums[1]);
  }

  // The error with codes of zero.
  float all_zero() const noexcept {
    Four squares = Four::all(0.0f);
    for (std::size_t i = 0; i < n; i += 4) {
      const Four x = Four::load(magnitude.data() + i);
      squares = squares + Four::load(importance.data() + i) * (x * x);
    }
    return sum(squares);
  }

  // The scale that is best for the codes of another one: least squares.
  float improved(float scale) const noexcept {
    const Four inverse = Four::all(smaller(1.0f / scale, kFloatMax));
    const Four to_nearest = Four::all(0.5f - half), from = Four::all(half);
    Four xc = Four::all(0.0f), cc = xc;
    for (std::size_t i = 0; i < n; i += 4) {
      const Four x = Four::load(magnitude.data() + i), last = Four::load(top.data() + i);
      const Four code = truncated(smaller(x * inverse, last + from) + to_nearest);
      const Four nearest = smaller(code, last) + from;
      const Four weighted = Four::load(importance.data() + i) * nearest;
      xc = xc + weighted * x;
      cc = cc + weighted * nearest;
    }
    const float squares = sum(cc);
    return squares > 0.0f ? sum(xc) / squares : scale;
  }
};

struct BestScale {
  float error = kInfinity;
  int index = 0;  // 0: all codes are zero
  bool is_negative = false;
};

// Improves `best` with the scales first … last of `scales`.
template <std::size_t n, class Scales>
void search_scales(const ScaleItems<n>& items, const Scales& scales, bool negative, int first,
                   int last, BestScale& best) noexcept {
  struct Interval {
    int first, last;
    float bound;
  };
  Interval stack[40];  // halving 2^15 scales, two of each size
  int depth = 0;
  const auto push = [&](int from, int to) {
    const float bound = items.least_error(scales(from), scales(to));
    if (bound >= best.error) return;
    if (from == to)
      best = {bound, from, negative};
    else
      stack[depth++] = {from, to, bound};
  };
  push(first, last);
  while (depth > 0) {
    const Interval interval = stack[--depth];
    if (interval.bound >= best.error) continue;
    const int middle = interval.first + (interval.last - interval.first) / 2;
    const int before = depth;
    push(middle + 1, interval.last);
    push(interval.first, middle);
    // The more promising half comes first, because it may make the other one needless.
    if (depth == before + 2 && stack[depth - 1].bound > stack[depth - 2].bound) {
      std::swap(stack[depth - 1], stack[depth - 2]);
    }
  }
}

// Improves `best` with a good scale of type T for codes lowest … highest, which are `steps` scales
// apart. x is normalized.
template <class T, std::size_t n>
void guess_scale(ScaleItems<n>& items, const Normalized<n>& x, float steps, int lowest, int highest,
                 BestScale& best) noexcept {
  float peak = 0.0f, all_zero = 0.0f;
  for (std::size_t i = 0; i < n; ++i) {
    peak = larger(peak, libm::fabs(x.x[i]));
    all_zero += items.importance[i] * (x.x[i] * x.x[i]);
  }
  if (all_zero < best.error) best = {all_zero, 0, false};
  if (peak == 0.0f) return;
  const StoredScales<T> scales{x.unit * steps};
  for (int sign = 0; sign < (-lowest == highest ? 1 : 2); ++sign) {
    items.set_sign(x.x, sign == 1, lowest, highest);
    for (int step = -4; step <= 4; ++step) {
      const float levels = (static_cast<float>(-lowest) + items.half) *
                           (1.0f + 0.2f * static_cast<float>(step) / static_cast<float>(-lowest));
      const int index = scales.at_least(items.improved(peak / levels));
      const float error = items.least_error(scales(index), scales(index));
      if (error < best.error) best = {error, index, sign == 1};
    }
  }
}

// The best of all scales of type T; `best` may hold a result that is to be improved. `half`: as in
// ScaleItems.
template <class T, std::size_t n>
void search_all_scales(const Normalized<n>& x, const std::array<float, n>& importance, int lowest,
                       int highest, BestScale& best, float half = 0.0f,
                       float steps = 1.0f) noexcept {
  ScaleItems<n> items;
  items.importance = importance;
  items.half = half;
  guess_scale<T>(items, x, steps, lowest, highest, best);
  float peak = 0.0f;
  for (const float v : x.x) peak = larger(peak, libm::fabs(v));
  if (peak == 0.0f) return;
  const StoredScales<T> scales{x.unit * steps};
  // With a scale above twice the peak, all codes are zero.
  const int last = scales.at_least(2.0f * peak);
  for (int sign = -lowest == highest ? 1 : 2; sign-- > 0;) {
    items.set_sign(x.x, sign == 1, lowest, highest);
    search_scales(items, scales, sign == 1, StoredScales<T>::kFirst, last, best);
  }
}

}}}}  // namespace nibble::NIBBLE_ABI::quant::detail
NIBBLE_EXACT_MATH_END
