// SPDX-License-Identifier: Apache-2.0
//
// Good and best pairs of a scale and a minimum for a group of weights: the least Σ importance · (x
// - (scale · code + minimum))².
//
// fit_affine() starts from many pairs that span the group more or less, and alternates between the
// codes for a pair and the pair for these codes (least squares) where that looks best: a local
// optimum, usually within a percent of the best. search_boxes() finds the best one of all pairs of
// stored numbers, as scale_search.hpp does for scales: boxes [a, b] × [p, q] of scales and minimums
// are halved, and dropped if no pair in them can be better than the best so far. It visits some
// thousands of boxes, where fit_affine() looks at some tens of pairs.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "nibble/core/exact_math.hpp"
#include "nibble/quant/four.hpp"
#include "nibble/quant/scale_search.hpp"

NIBBLE_EXACT_MATH_BEGIN
namespace nibble { inline namespace NIBBLE_ABI { namespace quant { namespace detail {

// weight = step · code + offset, codes 0 … levels, step ≥ 0.
struct AffineFit {
  float error = kInfinity;
  float step = 0.0f;
  float offset = 0.0f;
};

template <std::size_t n>
struct AffineItems {
  static_assert(n % 8 == 0);
  std::array<float, n> x;
  std::array<float, n> importance;
  float levels;

  // The codes nearest to x with 1 / step and offset.
  Four codes_of(Four x_i, Four inverse, Four offset) const noexcept {
    const Four inside =
        larger(Four::all(0.0f), smaller((x_i - offset) * inverse, Four::all(levels)));
    return truncated(inside + Four::all(0.5f));
  }
  float code_of(float x_i, float inverse, float offset) const noexcept {
    return codes_of(Four::all(x_i), Four::all(inverse), Four::all(offset))[0];
  }
  static float inverse_of(float step) noexcept {
    return step > 0.0f ? nibble::smaller(1.0f / step, kFloatMax) : 0.0f;
  }

  // The error with the nearest codes.
  float error(float step, float offset) const noexcept {
    const Four inverse = Four::all(inverse_of(step)), low = Four::all(offset);
    const Four scale = Four::all(step);
    Four sums[2] = {Four::all(0.0f), Four::all(0.0f)};
    for (std::size_t i = 0; i < n; i += 4) {
      const Four v = Four::load(x.data() + i);
      const Four residual = (v - scale * codes_of(v, inverse, low)) - low;
      Four& to = sums[i / 4 % 2];
      to = to + Four::load(importance.data() + i) * (residual * residual);
    }
    return sum(sums[0] + sums[1]);
  }

  // The pair that is best for the codes of another pair. At most zero: the largest offset.
  AffineFit improved(float step, float offset, bool at_most_zero) const noexcept {
    const Four inverse = Four::all(inverse_of(step)), low = Four::all(offset);
    const Four zero = Four::all(0.0f);
    Four w = zero, c = zero, cc = zero, sx = zero, xc = zero;
    for (std::size_t i = 0; i < n; i += 4) {
      const Four v = Four::load(x.data() + i), weight = Four::load(importance.data() + i);
      const Four code = codes_of(v, inverse, low);
      const Four weighted = weight * code;
      w = w + weight;
      c = c + weighted;
      cc = cc + weighted * code;
      sx = sx + weight * v;
      xc = xc + weighted * v;
    }
    // The sums over the group that least squares needs.
    const struct { float w, c, cc, x, xc; } s = {sum(w), sum(c), sum(cc), sum(sx), sum(xc)};
    AffineFit fit;
    const float determinant = s.w * s.cc - s.c * s.c;
    if (!(determinant > 0.0f)) return fit;
    fit.step = (s.w * s.xc - s.x * s.c) / determinant;
    fit.offset = (s.cc * s.x - s.c * s.xc) / determinant;
    if (at_most_zero && fit.offset > 0.0f) {
      fit.offset = 0.0f;
      fit.step = s.xc / s.cc;
    }
    if (!(fit.step > 0.0f)) return {};
    fit.error = error(fit.step, fit.offset);
    return fit;
  }

  // A lower bound of the error for all steps in [a, b] and offsets in [p, q].
  float least_error(float a, float b, float p, float q) const noexcept {
    const Four inverse = Four::all(nibble::smaller(1.0f / b, kFloatMax));
    const Four zero = Four::all(0.0f), one = Four::all(1.0f), beyond = Four::all(kFloatMax);
    const Four least = Four::all(a), most = Four::all(b), last = Four::all(levels);
    const Four lowest = Four::all(p), highest = Four::all(q);
    Four sums[2] = {zero, zero};
    for (std::size_t i = 0; i < n; i += 4) {
      // The largest code that is not beyond x for any pair, or -1; and the next one.
      const Four v = Four::load(x.data() + i);
      const Four quotient = larger(zero - one, smaller((v - highest) * inverse, last));
      const Four code = truncated(quotient + one) - one;
      const Four above = if_less(code, zero, beyond, (v - most * code) - highest);
      const Four below = if_less(code, last, (least * (code + one) - v) + lowest, beyond);
      const Four distance = larger(smaller(above, below), zero);
      Four& to = sums[i / 4 % 2];
      to = to + Four::load(importance.data() + i) * (distance * distance);
    }
    return sum(sums[0] + sums[1]);
  }
};

// A good pair. With at_most_zero: of those whose offset is not positive.
template <std::size_t n>
AffineFit fit_affine(const AffineItems<n>& items, bool at_most_zero) noexcept {
  float low = items.x[0], high = items.x[0];
  for (const float v : items.x) {
    low = smaller(low, v);
    high = larger(high, v);
  }
  if (at_most_zero) low = smaller(low, 0.0f);
  AffineFit best{items.error(0.0f, low), 0.0f, low};
  if (!(high > low)) return best;
  const auto consider = [&](const AffineFit& fit) {
    if (fit.error < best.error) best = fit;
  };
  const float step = (high - low) / items.levels;
  consider({items.error(step, low), step, low});
  // How many steps the ends of the group lie beyond the ends of the codes.
  constexpr std::array kBeyond = {-0.4f, 0.0f, 0.4f, 0.8f, 1.3f};
  constexpr std::size_t kKept = 3;
  AffineFit kept[kKept];
  for (const float at_low : kBeyond) {
    for (const float at_high : kBeyond) {
      const float start = low + at_low * step;
      const float scale = (high - at_high * step - start) / items.levels;
      if (!(scale > 0.0f)) continue;
      AffineFit fit =
          items.improved(scale, at_most_zero ? smaller(start, 0.0f) : start, at_most_zero);
      for (AffineFit& other : kept) {
        if (fit.error < other.error) std::swap(fit, other);
      }
    }
  }
  for (AffineFit& fit : kept) {
    for (int round = 0; round < 8 && fit.error < kInfinity; ++round) {
      consider(fit);
      const AffineFit next = items.improved(fit.step, fit.offset, at_most_zero);
      if (!(next.error < fit.error)) break;
      fit = next;
    }
    consider(fit);
  }
  return best;
}

// The numbers of a 16-bit float type in ascending order: index 0 is zero, -i is -(index i).
template <class T>
struct StoredNumbers {
  StoredScales<T> scales;
  float operator()(int index) const noexcept {
    return index < 0 ? -scales(-index) : index > 0 ? scales(index) : 0.0f;
  }
  int nearest(float x) const noexcept {
    const int magnitude = static_cast<int>(round_to<T>(libm::fabs(x) / scales.unit).bits);
    const int index = (std::min)(magnitude, StoredScales<T>::kLast);
    return x < 0.0f ? -index : index;
  }
};

// A pair as it is stored.
struct BestPair {
  float error = kInfinity;
  int step = 0;
  int offset = 0;
};

// Rounds a fit to stored numbers, and then takes steps to neighbours as long as they are better.
template <class T, std::size_t n>
void descend_stored(const AffineItems<n>& items, const StoredNumbers<T>& numbers,
                    const AffineFit& fit, BestPair& best) noexcept {
  constexpr int kLast = StoredScales<T>::kLast;
  const auto consider = [&](int step, int offset) {
    if (step < 0 || step > kLast || offset < -kLast || offset > kLast) return;
    const float error = items.error(numbers(step), numbers(offset));
    if (error < best.error) best = {error, step, offset};
  };
  consider((std::max)(numbers.nearest(fit.step), 0), numbers.nearest(fit.offset));
  for (int round = 0; round < 16; ++round) {
    const BestPair from = best;
    for (int by_step = -2; by_step <= 2; ++by_step) {
      // With another step, the middle of the codes stays where it was.
      const float middle = items.levels / 2.0f;
      const float moved =
          numbers(from.offset) +
          middle * (numbers(from.step) - numbers((std::max)(from.step + by_step, 0)));
      const int nearest = numbers.nearest(moved);
      for (int by_offset = -1; by_offset <= 1; ++by_offset) {
        consider(from.step + by_step, nearest + by_offset);
        if (by_step != 0) consider(from.step + by_step, from.offset + by_offset);
      }
    }
    if (best.error == from.error) break;
  }
}

// Improves `best` to the best of all pairs of stored numbers with a positive step.
template <class T, std::size_t n>
void search_boxes(const AffineItems<n>& items, const StoredNumbers<T>& numbers,
                  BestPair& best) noexcept {
  struct Box {
    int a, b, p, q;
    float bound;
  };
  Box stack[80];  // halving two ranges of at most 2^16
  int depth = 0;
  const auto push = [&](int a, int b, int p, int q) {
    const float bound = items.least_error(numbers(a), numbers(b), numbers(p), numbers(q));
    if (bound >= best.error) return;
    if (a == b && p == q)
      best = {bound, a, p};
    else
      stack[depth++] = {a, b, p, q, bound};
  };
  float low = items.x[0], high = items.x[0];
  for (const float v : items.x) {
    low = smaller(low, v);
    high = larger(high, v);
  }
  const float range = high - low;
  if (!(range > 0.0f)) return;
  // Beyond these steps fewer than two codes are of use, beyond these offsets none.
  const int last = numbers.scales.at_least(2.0f * range);
  const int lowest = numbers.nearest(low - (items.levels + 1.0f) * range) - 1;
  const int highest = numbers.nearest(high + range) + 1;
  push(StoredScales<T>::kFirst, last, (std::max)(lowest, -StoredScales<T>::kLast),
       (std::min)(highest, StoredScales<T>::kLast));
  while (depth > 0) {
    const Box box = stack[--depth];
    if (box.bound >= best.error) continue;
    const float middle_code = items.levels / 2.0f;
    const bool by_step =
        box.p == box.q || (box.a < box.b && (numbers(box.b) - numbers(box.a)) * middle_code >
                                                numbers(box.q) - numbers(box.p));
    const int before = depth;
    if (by_step) {
      const int middle = box.a + (box.b - box.a) / 2;
      push(middle + 1, box.b, box.p, box.q);
      push(box.a, middle, box.p, box.q);
    } else {
      const int middle = box.p + (box.q - box.p) / 2;  // rounded towards p: both are smaller
      push(box.a, box.b, middle + 1, box.q);
      push(box.a, box.b, box.p, middle);
    }
    if (depth == before + 2 && stack[depth - 1].bound > stack[depth - 2].bound) {
      std::swap(stack[depth - 1], stack[depth - 2]);
    }
  }
}

}}}}  // namespace nibble::NIBBLE_ABI::quant::detail
NIBBLE_EXACT_MATH_END
