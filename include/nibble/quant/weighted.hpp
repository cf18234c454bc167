// SPDX-License-Identifier: Apache-2.0
//
// Conversion of f32 weights to block formats with the least weighted error, Σ importance · (x -
// x̂)²: the same bytes and layout as quantize.hpp and super_block.hpp write, but scales, minimums
// and codes that are searched. Importance is what the inputs of a product make of an error in a
// weight: Σx² of its column over a calibration text (an importance matrix), or the diagonal of a
// Hessian.
//
// What is guaranteed, for weights that the format can hold:
//   Q4_0, Q5_0, Q8_0, Q3_H, Q2_H, TQ2_0, Q2_0, Q1_0 (symmetric)
//       the optimum among all stored scales, of both signs where that makes a difference, and all
//       codes (to a few parts in a million; scale_search.hpp)
//   Q4_1, Q5_1 (with a minimum)
//       with Effort::most the optimum among all stored pairs of a positive scale and a minimum;
//       otherwise a local one
//   Q4_K, Q5_K, Q6_K, Q2_K, Q3_K
//       a local optimum: codes, group scales and block scales are each the best for the others
//       among their neighbours. Group scales of Q6_K and Q3_K are the best of all.
//   MXFP4, IQ4_NL, IQ4_XS
//       the optimum, or a local one: level_search.hpp
// All: never more error than quantize_block() with the same importance. Results depend on nothing
// but the arguments.
//
// Inputs that are not plain are treated as in quantize.hpp. Importance that is negative, infinite
// or NaN counts as zero in a block; rows refuse it. Where all importance is zero, all is the same.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

#include "nibble/core/exact_math.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/quant/block_grid.hpp"
#include "nibble/quant/format.hpp"
#include "nibble/quant/level_search.hpp"
#include "nibble/quant/minimum_search.hpp"
#include "nibble/quant/scale_search.hpp"

NIBBLE_EXACT_MATH_BEGIN
namespace nibble { inline namespace NIBBLE_ABI { namespace quant {

enum class Effort : std::uint8_t {
  usual,  // some microseconds for a block of 32
  most,   // Q4_1 and Q5_1 take tens of times as long
};

namespace detail {

// ---- Blocks with one scale ---------------------------------------------------------------------

template <class F>
void search_symmetric(const float* x, const float* importance, typename F::Block& block) noexcept {
  using T = typename F::Scale;
  constexpr std::size_t n = F::kLength;
  const Normalized<n> normalized(x);
  std::array<float, n> weights;
  normalize_importance(importance, weights);
  // What the block has is the first to beat.
  // Codes of few bits stand for odd halves of a step, which is two or four scales.
  constexpr bool kIsFew = kHasHalfSteps<F>;
  constexpr int kHighest = kIsFew ? (1 << (F::kBits - 1)) - 1 : highest_code<F>();
  constexpr int kLowest = kIsFew ? -kHighest : lowest_code<F>();
  constexpr float kHalf = kIsFew ? 0.5f : 0.0f, kSteps = kIsFew ? 1 << (4 - F::kBits) : 1;
  ScaleItems<n> items;
  items.importance = weights;
  items.half = kHalf;
  BestScale best;
  best.index = block.scale.bits & 0x7FFF;
  best.is_negative = block.scale.bits >> 15 != 0;
  items.set_sign(normalized.x, best.is_negative, kLowest, kHighest);
  const float scale = StoredScales<T>{normalized.unit * kSteps}(best.index);
  best.error = best.index == 0 ? kInfinity : items.least_error(scale, scale);
  search_all_scales<T>(normalized, weights, kLowest, kHighest, best, kHalf, kSteps);
  if (best.index == 0 && (block.scale.bits & 0x7FFF) == 0) return;  // zeros, as they were
  block.scale.bits = static_cast<std::uint16_t>(best.index | (best.is_negative ? 0x8000 : 0));
}

// Signs only: the mean magnitude is the best scale.
inline void search_signs(const float* x, const float* importance, Q1_0::Block& block) noexcept {
  std::array<float, 128> weights;
  normalize_importance(importance, weights);
  double sum = 0, total = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const auto w = static_cast<double>(weights[i]);
    sum += w * static_cast<double>(libm::fabs(x[i]));
    total += w;
  }
  block.scale = to_f16(saturated<f16>(static_cast<float>(sum / total)));
}

template <class F>
void search_minimum(const float* x, const float* importance, Effort effort,
                    typename F::Block& block) noexcept {
  using T = typename F::Scale;
  constexpr std::size_t n = F::kLength;
  const Normalized<n> normalized(x);
  AffineItems<n> items;
  items.x = normalized.x;
  items.levels = static_cast<float>(highest_code<F>());
  normalize_importance(importance, items.importance);
  const StoredNumbers<T> numbers{{normalized.unit}};
  const auto index_of = [](T number) {
    const int magnitude = number.bits & 0x7FFF;
    return number.bits >> 15 != 0 ? -magnitude : magnitude;
  };
  BestPair best{0.0f, index_of(block.scale), index_of(block.minimum)};
  best.error = items.error(numbers(best.step), numbers(best.offset));
  const BestPair before = best;
  descend_stored(items, numbers, fit_affine(items, false), best);
  if (effort == Effort::most) search_boxes(items, numbers, best);
  if (best.error == before.error) return;
  const auto number_of = [](int index) {
    return T{static_cast<std::uint16_t>(index < 0 ? -index | 0x8000 : index)};
  };
  block.scale = number_of(best.step);
  block.minimum = number_of(best.offset);
}

// ---- Blocks with scales of two levels ----------------------------------------------------------

// The least whole numbers s and m of a group with scale · s · code - minimum · m near x: from the
// given ones, steps to neighbours as long as they are better. They are at most kMost.
template <int kMost, std::size_t n>
float descend_group(const AffineItems<n>& items, float scale, float minimum,
                    GroupScale& group) noexcept {
  const auto error_of = [&](GroupScale s) {
    return items.error(scale * static_cast<float>(s.scale),
                       -(minimum * static_cast<float>(s.minimum)));
  };
  float least = error_of(group);
  for (int round = 0; round < 8; ++round) {
    const GroupScale from = group;
    const float middle = scale * items.levels / 2.0f;
    for (int by_scale = -1; by_scale <= 1; ++by_scale) {
      const int moved = minimum > 0.0f
                            ? nearest_in(static_cast<float>(from.minimum) +
                                             static_cast<float>(by_scale) * (middle / minimum),
                                         -2, kMost + 2)
                            : from.minimum;
      for (int by_minimum = -1; by_minimum <= 1; ++by_minimum) {
        const GroupScale next{from.scale + by_scale, moved + by_minimum};
        if (next.scale < 0 || next.scale > kMost || next.minimum < 0 || next.minimum > kMost) {
          continue;
        }
        const float error = error_of(next);
        if (error < least) {
          least = error;
          group = next;
        }
      }
    }
    if (group.scale == from.scale && group.minimum == from.minimum) break;
  }
  return least;
}

template <class F>  // with minimums
class SuperSearch {
 public:
  using Block = typename F::Block;

  SuperSearch(const float* x, const float* importance) noexcept : normalized_(x) {
    std::array<float, 256> weights;
    normalize_importance(importance, weights);
    for (std::size_t g = 0; g < kGroups; ++g) {
      std::copy_n(normalized_.x.data() + kLength * g, kLength, items_[g].x.data());
      std::copy_n(weights.data() + kLength * g, kLength, items_[g].importance.data());
      items_[g].levels = static_cast<float>(highest_code<F>());
    }
  }

  // Improves the scales of a block that is quantized already.
  void run(Block& block) noexcept {
    Trial best = refined(trial_of(block), kInfinity);
    const Trial second = refined(fitted(), best.error);
    if (second.error < best.error) best = second;
    block.scale = best.scale;
    block.minimum = best.minimum;
    block.scales = {};
    for (std::size_t g = 0; g < kGroups; ++g) {
      const GroupScale s = best.groups[g];
      if constexpr (kIsQ2) {
        block.scales[g] = static_cast<std::uint8_t>(s.scale | s.minimum << 4);
      } else {
        set_group_scale(block.scales, g, s);
      }
    }
  }

 private:
  static constexpr bool kIsQ2 = std::is_same_v<F, Q2_K>;
  static constexpr std::size_t kLength = F::kGroupLength, kGroups = 256 / kLength;
  static constexpr int kMost = kIsQ2 ? 15 : 63;  // of a group's scale and minimum
  struct Trial {
    float error = kInfinity;
    f16 scale, minimum;
    GroupScale groups[kGroups];
  };

  static Trial trial_of(const Block& block) noexcept {
    Trial trial{kInfinity, block.scale, block.minimum, {}};
    for (std::size_t g = 0; g < kGroups; ++g) {
      if constexpr (kIsQ2) {
        trial.groups[g] = {block.scales[g] & 15, block.scales[g] >> 4};
      } else {
        trial.groups[g] = group_scale(block.scales, g);
      }
    }
    return trial;
  }

  // Each group by itself, then rounded to common scales.
  Trial fitted() const noexcept {
    AffineFit fits[kGroups];
    float scale = 0.0f, minimum = 0.0f;
    for (std::size_t g = 0; g < kGroups; ++g) {
      fits[g] = fit_affine(items_[g], true);
      scale = larger(scale, fits[g].step);
      minimum = larger(minimum, -fits[g].offset);
    }
    Trial trial;
    trial.scale = stored(scale / static_cast<float>(kMost));
    trial.minimum = stored(minimum / static_cast<float>(kMost));
    const float d = value(trial.scale), m = value(trial.minimum);
    for (std::size_t g = 0; g < kGroups; ++g) {
      trial.groups[g] = {d > 0.0f ? nearest_in(fits[g].step / d, 0, kMost) : 0,
                         m > 0.0f ? nearest_in(-fits[g].offset / m, 0, kMost) : 0};
    }
    return trial;
  }

  // Alternates between the groups' scales for the block's and the block's for the groups' codes.
  Trial refined(Trial trial, float to_beat) const noexcept {
    if (to_f32(trial.scale) < 0.0f || to_f32(trial.minimum) < 0.0f) return trial;
    Trial best;
    for (int round = 0; round < 6; ++round) {
      const float d = value(trial.scale), m = value(trial.minimum);
      float error = 0.0f;
      for (std::size_t g = 0; g < kGroups; ++g) {
        error += descend_group<kMost>(items_[g], d, m, trial.groups[g]);
      }
      trial.error = error;
      if (!(trial.error < best.error)) break;
      best = trial;
      if (round == 1 && best.error > 1.2f * to_beat) break;  // it will not win
      if (!solve(trial)) break;
    }
    return best;
  }

  // The block's scale and minimum by least squares, for the codes of a trial.
  bool solve(Trial& trial) const noexcept {
    const float d = value(trial.scale), m = value(trial.minimum);
    double aa = 0, ab = 0, bb = 0, xa = 0, xb = 0;  // x ≈ d · a + m · b
    for (std::size_t g = 0; g < kGroups; ++g) {
      const auto s = static_cast<float>(trial.groups[g].scale);
      const auto b = -static_cast<double>(trial.groups[g].minimum);
      const float step = d * s, offset = -(m * static_cast<float>(trial.groups[g].minimum));
      const float inverse = AffineItems<kLength>::inverse_of(step);
      for (std::size_t i = 0; i < kLength; ++i) {
        const AffineItems<kLength>& items = items_[g];
        const double a = static_cast<double>(s * items.code_of(items.x[i], inverse, offset));
        const auto w = static_cast<double>(items.importance[i]);
        const auto x = static_cast<double>(items.x[i]);
        aa += w * a * a;
        ab += w * a * b;
        bb += w * b * b;
        xa += w * x * a;
        xb += w * x * b;
      }
    }
    const double determinant = aa * bb - ab * ab;
    double new_d = 0, new_m = 0;
    if (determinant > 1e-9 * aa * bb && bb > 0) {
      new_d = (bb * xa - ab * xb) / determinant;
      new_m = (aa * xb - ab * xa) / determinant;
    } else if (aa > 0) {
      new_m = static_cast<double>(m);
      new_d = (xa - new_m * ab) / aa;
    }
    if (!(new_d > 0) || !(new_m >= 0)) return false;
    trial.scale = stored(static_cast<float>(new_d));
    trial.minimum = stored(static_cast<float>(new_m));
    return true;
  }

  float value(f16 number) const noexcept { return to_f32(number) * normalized_.unit; }
  f16 stored(float x) const noexcept { return to_f16(saturated<f16>(x / normalized_.unit)); }

  Normalized<256> normalized_;
  AffineItems<kLength> items_[kGroups];
};

template <class F>  // Q6_K, Q3_K
class SymmetricSuperSearch {
 public:
  using Block = typename F::Block;

  SymmetricSuperSearch(const float* x, const float* importance) noexcept : normalized_(x) {
    std::array<float, 256> weights;
    normalize_importance(importance, weights);
    for (std::size_t g = 0; g < 16; ++g) {
      std::copy_n(normalized_.x.data() + 16 * g, 16, x_[g].data());
      std::copy_n(weights.data() + 16 * g, 16, importance_[g].data());
    }
  }

  void run(Block& block) noexcept {
    const auto search = [&](Trial& trial, std::size_t g) { return search_group(trial, g); };
    const auto descend = [&](Trial& trial, std::size_t g) { return descend_group(trial, g); };
    Trial best = refined(trial_of(block), 1, search);
    const Trial second = refined(fitted(), 1, search);
    if (second.error < best.error) best = second;
    best = refined(best, 6, descend);
    best = refined(best, 3, search);
    block.scale = best.scale;
    if constexpr (std::is_same_v<F, Q3_K>)
      set_q3_scales(best.groups, block);
    else
      block.scales = best.groups;
  }

 private:
  static constexpr int kLowest = lowest_code<F>(), kHighest = highest_code<F>();
  static constexpr int kMost = std::is_same_v<F, Q3_K> ? 31 : 127;  // of a group's scale
  struct Trial {
    float error = kInfinity;
    f16 scale;
    std::array<std::int8_t, 16> groups = {};
  };

  static Trial trial_of(const Block& block) noexcept {
    Trial trial;
    trial.scale = block.scale;
    if constexpr (std::is_same_v<F, Q3_K>) {
      for (std::size_t g = 0; g < 16; ++g) {
        trial.groups[g] = static_cast<std::int8_t>(q3_scale(block, g));
      }
    } else {
      trial.groups = block.scales;
    }
    return trial;
  }

  // Each group by itself, then rounded to the common scale for which the largest is 1 - kMost.
  Trial fitted() const noexcept {
    float scales[16] = {};
    float largest = 0.0f;  // signed
    for (std::size_t g = 0; g < 16; ++g) {
      const Normalized<16> group(x_[g].data());
      ScaleItems<16> items;
      normalize_importance(importance_[g].data(), items.importance);
      BestScale best;
      guess_scale<bf16>(items, group, 1.0f, kLowest, kHighest, best);
      const float scale = to_f32(bf16{static_cast<std::uint16_t>(best.index)});
      scales[g] = best.is_negative ? -scale : scale;
      if (scale > libm::fabs(largest)) largest = scales[g];
    }
    Trial trial;
    trial.scale = stored(largest / static_cast<float>(1 - kMost));
    const float d = value(trial.scale);
    for (std::size_t g = 0; g < 16 && d != 0.0f; ++g) {
      trial.groups[g] = static_cast<std::int8_t>(nearest_in(scales[g] / d, -kMost - 1, kMost));
    }
    return trial;
  }

  // Alternates between the groups' scales for the block's, which improve(trial, g) finds, and the
  // block's for the groups' codes.
  template <class Improve>
  Trial refined(Trial trial, int n_rounds, Improve improve) const noexcept {
    Trial best;
    for (int round = 0; round < n_rounds; ++round) {
      float error = 0.0f;
      for (std::size_t g = 0; g < 16; ++g) error += improve(trial, g);
      trial.error = error;
      if (!(trial.error < best.error)) break;
      best = trial;
      if (!solve(trial)) break;
    }
    return best;
  }

  // A better scale of a group among its neighbours.
  float descend_group(Trial& trial, std::size_t g) const noexcept {
    const float d = value(trial.scale);
    ScaleItems<16> items;
    items.importance = importance_[g];
    const int now = trial.groups[g];
    items.set_sign(x_[g], (now < 0) != (d < 0.0f), kLowest, kHighest);
    float least = kInfinity;
    for (const int by : {0, -1, 1, -2, 2}) {
      const int next = now + by;
      if (next < -kMost - 1 || next > kMost || (next < 0) != (now < 0)) continue;
      const float scale = libm::fabs(d * static_cast<float>(next));
      const float error = scale == 0.0f ? items.all_zero() : items.least_error(scale, scale);
      if (!(error < least)) continue;
      least = error;
      trial.groups[g] = static_cast<std::int8_t>(next);
    }
    return least;
  }

  // The best of all scales of a group, for the block's scale of the trial.
  float search_group(Trial& trial, std::size_t g) const noexcept {
    const float d = value(trial.scale);
    ScaleItems<16> items;
    items.importance = importance_[g];
    const int now = trial.groups[g];
    items.set_sign(x_[g], (now < 0) != (d < 0.0f), kLowest, kHighest);
    const float all_zero = items.all_zero();
    BestScale best{all_zero, 0, false};
    const WholeScales scales{libm::fabs(d)};
    if (d != 0.0f) {
      for (const bool is_negative : {now < 0, now >= 0}) {  // of the group's number
        items.set_sign(x_[g], is_negative != (d < 0.0f), kLowest, kHighest);
        if (is_negative == (now < 0) && now != 0) {  // the first to beat
          const float scale = scales(now < 0 ? -now : now);
          best = {items.least_error(scale, scale), now < 0 ? -now : now, is_negative};
          if (all_zero < best.error) best = {all_zero, 0, false};
        }
        search_scales(items, scales, is_negative, 1, kMost + (is_negative ? 1 : 0), best);
      }
    }
    trial.groups[g] = static_cast<std::int8_t>(best.is_negative ? -best.index : best.index);
    return best.error;
  }

  // The block's scale by least squares, for the codes of a trial.
  bool solve(Trial& trial) const noexcept {
    double aa = 0, xa = 0;
    for (std::size_t g = 0; g < 16; ++g) {
      const float step = value(trial.scale) * static_cast<float>(trial.groups[g]);
      for (std::size_t i = 0; i < 16; ++i) {
        const int code = nearest_code({step, 0.0f}, x_[g][i], kLowest, kHighest);
        const auto a = static_cast<double>(trial.groups[g] * code);
        const auto w = static_cast<double>(importance_[g][i]);
        aa += w * a * a;
        xa += w * a * static_cast<double>(x_[g][i]);
      }
    }
    if (!(aa > 0)) return false;
    trial.scale = stored(static_cast<float>(xa / aa));
    return true;
  }

  float value(f16 number) const noexcept { return to_f32(number) * normalized_.unit; }
  f16 stored(float x) const noexcept { return to_f16(saturated<f16>(x / normalized_.unit)); }

  Normalized<256> normalized_;
  std::array<float, 16> x_[16], importance_[16];
};

}  // namespace detail

// Formats that have a search.
template <class F>
concept SearchedFormat = GridFormat<F> || LevelFormat<F>;

// Σ importance · (x - x̂)² of a block in double; importance null: ones.
template <SearchedFormat F>
double weighted_error(const float* x, const float* importance,
                      const typename F::Block& block) noexcept {
  constexpr std::size_t n = F::kLength;
  float back[n];
  dequantize_block<F>(block, back);
  double sum = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const double difference = static_cast<double>(x[i]) - static_cast<double>(back[i]);
    sum += (importance == nullptr ? 1.0 : static_cast<double>(importance[i])) *
           (difference * difference);
  }
  return sum;
}

// Rounds x (kLength weights) to the block with the least weighted error, as far as this file's
// first comment says. `importance`: kLength numbers, or null for ones. Returns what
// quantize_block() does.
template <SearchedFormat F>
bool search_block(const float* x, const float* importance, typename F::Block& block,
                  Effort effort = Effort::usual) noexcept {
  constexpr std::size_t n = F::kLength;
  const bool fits = quantize_block<F>(x, block);
  float safe[n];
  for (std::size_t i = 0; i < n; ++i) {
    safe[i] = tamed(x[i]);
    if constexpr (SuperBlockFormat<F>) {
      safe[i] = clamped(safe[i], -detail::kLargestInSuperBlock, detail::kLargestInSuperBlock);
    }
  }
  if constexpr (LevelFormat<F>) {
    detail::search_levels(safe, importance, block);
    detail::set_nearest_levels<F>(safe, block);
  } else if constexpr (OneOf<F, Q6_K, Q3_K>) {
    detail::SymmetricSuperSearch<F>(safe, importance).run(block);
  } else if constexpr (OneOf<F, Q4_K, Q5_K, Q2_K>) {
    detail::SuperSearch<F>(safe, importance).run(block);
  } else if constexpr (std::is_same_v<F, Q1_0>) {
    detail::search_signs(safe, importance, block);
  } else if constexpr (F::kZeroPoint == ZeroPoint::minimum) {
    detail::search_minimum<F>(safe, importance, effort, block);
  } else {
    detail::search_symmetric<F>(safe, importance, block);
  }
  if constexpr (GridFormat<F>) set_nearest_codes<F>(safe, block);
  return fits;
}

// How importance depends on the weights themselves.
enum class Emphasis : std::uint8_t {
  none,
  // importance · √(σ² + x²), with σ² the mean x² of the row: llama.cpp's, which spares large
  // weights.
  magnitude,
};

// The importance of each weight of a row: `importance` (or ones, if it is empty) with an emphasis.
// All of one size, which is not checked.
inline void emphasize(Emphasis emphasis, std::span<const float> x,
                      std::span<const float> importance, std::span<float> out) noexcept {
  double squares = 0;
  for (const float v : x) squares += static_cast<double>(v) * static_cast<double>(v);
  const double mean = x.empty() ? 0 : squares / static_cast<double>(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double w = importance.empty() ? 1.0 : static_cast<double>(importance[i]);
    const auto v = static_cast<double>(x[i]);
    out[i] = static_cast<float>(emphasis == Emphasis::none ? w : w * libm::sqrt(mean + v * v));
  }
}

// Importance as rows and tensors need it: of the right size, finite and not negative. Error:
// invalid_argument, malformed.
inline Result<void> check_importance(std::span<const float> importance, std::size_t n) {
  if (importance.size() != n) {
    return Error{Errc::invalid_argument, "importance of " + to_text(importance.size()) +
                                             " columns for rows of " + to_text(n) + " weights"};
  }
  for (std::size_t i = 0; i < n; ++i) {
    const auto w = static_cast<double>(importance[i]);
    if (is_finite(w) && w >= 0) continue;
    return Error{Errc::malformed, "the importance of column " + to_text(i) + " is " + to_text(w) +
                                      "; it must be a number from 0 up"};
  }
  return ok();
}

namespace detail {

// As round_row(), with a search for formats that have one.
inline std::size_t search_row(Format format, std::span<const float> x, const float* importance,
                              Effort effort, std::byte* row) noexcept {
  return visit_format(format, [&](auto tag) {
    using F = typename decltype(tag)::type;
    if constexpr (SearchedFormat<F>) {
      constexpr std::size_t kLength = F::kLength;
      std::size_t bad = x.size();
      typename F::Block block{};
      for (std::size_t i = 0; i < x.size() / kLength; ++i) {
        const std::span<const float> weights = x.subspan(i * kLength, kLength);
        const float* const w = importance == nullptr ? nullptr : importance + i * kLength;
        const bool fits = search_block<F>(weights.data(), w, block, effort);
        if (!fits && bad == x.size()) bad = i * kLength + position_of_largest(weights);
        std::memcpy(row + i * sizeof(block), &block, sizeof(block));
      }
      return bad;
    } else {
      return round_row<F>(x, row);
    }
  });
}

}  // namespace detail

// Rounds x to a stored row with the least weighted error; for formats without blocks of scales this
// is row_from_f32(). `importance`: one number for each weight, or empty for ones. Errors: as
// row_from_f32() and check_importance().
inline Result<void> search_row(Format format, std::span<const float> x,
                               std::span<const float> importance, std::span<std::byte> row,
                               Effort effort = Effort::usual) {
  NIBBLE_CHECK(detail::check_row(format, x.size(), row.size()));
  if (!importance.empty()) NIBBLE_CHECK(check_importance(importance, x.size()));
  const float* const w = importance.empty() ? nullptr : importance.data();
  return detail::check_fits(x, detail::search_row(format, x, w, effort, row.data()),
                            to_string(format));
}

}}}  // namespace nibble::NIBBLE_ABI::quant
NIBBLE_EXACT_MATH_END
