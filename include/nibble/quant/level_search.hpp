// SPDX-License-Identifier: Apache-2.0
//
// The best scales of formats whose codes are levels (levels.hpp), by the same measure as in
// scale_search.hpp: Σ importance · (x - scale · level)², each weight with the level that is best
// for the scale.
//
//   MXFP4   the best of all stored scales
//   IQ4_NL  a local optimum: the best of some scales of both signs, each improved by least squares,
//           then of its neighbours among the stored ones
//   IQ4_XS  a local optimum: the groups' integers are the best for the block's scale among those
//           next to what the group would have by itself, and that is the best for their levels
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "nibble/core/exact_math.hpp"
#include "nibble/core/libm.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/quant/four.hpp"
#include "nibble/quant/levels.hpp"
#include "nibble/quant/scale_search.hpp"

NIBBLE_EXACT_MATH_BEGIN
namespace nibble { inline namespace NIBBLE_ABI { namespace quant { namespace detail {

// The levels of a format in ascending order: the lowest, then for each of the others the middle
// between it and the one before, and how much it is above that.
struct LevelSteps {
  float lowest = 0.0f, highest = 0.0f;
  std::array<float, 15> middle = {}, more = {};
};
template <LevelFormat F>
NIBBLE_HIDDEN inline constexpr LevelSteps kLevelSteps = [] {
  Levels sorted = F::kLevels;
  for (std::size_t i = 1; i < 16; ++i) {
    for (std::size_t j = i; j > 0 && sorted[j - 1] > sorted[j]; --j) {
      const std::int8_t level = sorted[j];
      sorted[j] = sorted[j - 1];
      sorted[j - 1] = level;
    }
  }
  LevelSteps steps;
  steps.lowest = sorted[0];
  steps.highest = sorted[15];
  for (std::size_t i = 0; i < 15; ++i) {
    steps.middle[i] = 0.5f * static_cast<float>(sorted[i] + sorted[i + 1]);
    steps.more[i] = static_cast<float>(sorted[i + 1] - sorted[i]);
  }
  return steps;
}();

template <LevelFormat F>
Four nearest_levels(Four v) noexcept {
  constexpr const LevelSteps& kSteps = kLevelSteps<F>;
  const Four zero = Four::all(0.0f);
  Four level = Four::all(kSteps.lowest);
  for (std::size_t i = 0; i < 15; ++i) {
    level = level + if_less(v, Four::all(kSteps.middle[i]), zero, Four::all(kSteps.more[i]));
  }
  return level;
}

// 32 weights, normalized, and their importance.
template <LevelFormat F>
struct LevelItems {
  std::array<float, 32> x;
  std::array<float, 32> importance;

  struct Sums {
    float xl = 0.0f, ll = 0.0f, error = 0.0f;
  };
  // For a scale that is not zero.
  Sums sums(float scale) const noexcept {
    const Four inverse = Four::all(clamped(1.0f / scale, -kFloatMax, kFloatMax));
    const Four step = Four::all(scale);
    Four xl = Four::all(0.0f), ll = xl, error = xl;
    for (std::size_t i = 0; i < 32; i += 4) {
      const Four v = Four::load(x.data() + i), w = Four::load(importance.data() + i);
      const Four level = nearest_levels<F>(v * inverse);
      const Four weighted = w * level, off = v - step * level;
      xl = xl + weighted * v;
      ll = ll + weighted * level;
      error = error + w * (off * off);
    }
    return {sum(xl), sum(ll), sum(error)};
  }
  float error(float scale) const noexcept { return scale == 0.0f ? all_zero() : sums(scale).error; }
  // The error with a scale of zero.
  float all_zero() const noexcept {
    Four squares = Four::all(0.0f);
    for (std::size_t i = 0; i < 32; i += 4) {
      const Four v = Four::load(x.data() + i);
      squares = squares + Four::load(importance.data() + i) * (v * v);
    }
    return sum(squares);
  }
  float peak() const noexcept {
    float largest = 0.0f;
    for (const float v : x) largest = larger(largest, libm::fabs(v));
    return largest;
  }

  // A good scale among all numbers: those that make the largest weight 0.75 to 1.5 times the
  // largest level, of both signs, improved by least squares.
  float good_scale() const noexcept {
    const float largest = peak();
    float best = 0.0f, least = all_zero();
    if (largest == 0.0f) return best;
    for (int i = -10; i <= 10; ++i) {
      if (i == 0) continue;
      const float part = 0.75f + 0.075f * static_cast<float>(i < 0 ? -i : i);
      float scale = largest / (part * (i < 0 ? kLevelSteps<F>.lowest : -kLevelSteps<F>.lowest));
      for (int round = 0; round < 2; ++round) {
        const Sums now = sums(scale);
        if (now.error < least) {
          least = now.error;
          best = scale;
        }
        if (!(now.ll > 0.0f) || now.xl == 0.0f) break;
        scale = now.xl / now.ll;
      }
    }
    return best;
  }
};

template <LevelFormat F, std::size_t n>
LevelItems<F> items_of(const Normalized<n>& x, const std::array<float, n>& importance,
                       std::size_t first) noexcept {
  LevelItems<F> items;
  for (std::size_t i = 0; i < 32; ++i) {
    items.x[i] = x.x[first + i];
    items.importance[i] = importance[first + i];
  }
  return items;
}

inline void search_levels(const float* x, const float* importance, IQ4_NL::Block& block) noexcept {
  const Normalized<32> normalized(x);
  std::array<float, 32> weights;
  normalize_importance(importance, weights);
  const auto items = items_of<IQ4_NL>(normalized, weights, 0);
  const auto error_of = [&](f16 scale) { return items.error(to_f32(scale) * normalized.unit); };
  f16 best = block.scale;  // the first to beat
  float least = error_of(best);
  const auto try_scale = [&](f16 scale) {
    const float error = error_of(scale);
    if (!(error < least)) return false;
    least = error;
    best = scale;
    return true;
  };
  try_scale(to_f16(saturated<f16>(items.good_scale() / normalized.unit)));
  // Each of these steps has less error than the one before, so they end.
  for (bool improves = true; improves;) {
    improves = false;
    for (const int by : {-2, -1, 1, 2}) {
      const int magnitude = (best.bits & 0x7FFF) + by;
      if (magnitude < 1 || magnitude > StoredScales<f16>::kLast) continue;
      improves |= try_scale(f16{static_cast<std::uint16_t>((best.bits & 0x8000) | magnitude)});
    }
  }
  block.scale = best;
}

inline void search_levels(const float* x, const float* importance, MXFP4::Block& block) noexcept {
  const Normalized<32> normalized(x);
  std::array<float, 32> weights;
  normalize_importance(importance, weights);
  const auto items = items_of<MXFP4>(normalized, weights, 0);
  const float peak = items.peak();
  if (peak == 0.0f) return;
  float smallest = peak;
  for (const float v : items.x) {
    if (v != 0.0f) smallest = smaller(smallest, libm::fabs(v));
  }
  // With larger scales all weights are zero; with smaller ones all are as large as they can be, and
  // too small.
  float least = kInfinity;
  for (int bits = 255; bits >= 0; --bits) {
    const HalfE8M0 scale{static_cast<std::uint8_t>(bits)};
    const float step = to_f32(scale) * normalized.unit;
    if (step > 4.0f * peak && bits > 0) continue;
    if (step == 0.0f) break;
    const float error = items.error(step);
    if (error < least) {
      least = error;
      block.scale = scale;
    }
    if (kLevelSteps<MXFP4>.highest * step < smallest) break;
  }
}

class Iq4XsSearch {
 public:
  using Block = IQ4_XS::Block;

  Iq4XsSearch(const float* x, const float* importance) noexcept : normalized_(x) {
    std::array<float, 256> weights;
    normalize_importance(importance, weights);
    for (std::size_t g = 0; g < 8; ++g) {
      items_[g] = items_of<IQ4_XS>(normalized_, weights, 32 * g);
      scales_[g] = items_[g].good_scale();
    }
  }

  // Improves the scales of a block that is quantized already.
  void run(Block& block) noexcept {
    Trial best{kInfinity, block.scale, {}};
    for (std::size_t g = 0; g < 8; ++g) best.groups[g] = group_scale(block, g);
    best = refined(best);
    float largest = 0.0f;  // signed
    for (const float scale : scales_) {
      if (libm::fabs(scale) > libm::fabs(largest)) largest = scale;
    }
    for (const float levels : {-32.0f, -30.0f, 31.0f}) {
      const Trial next = refined({kInfinity, stored(largest / levels), {}});
      if (next.error < best.error) best = next;
    }
    block.scale = best.scale;
    block.upper_scales = 0;
    block.scales = {};
    for (std::size_t g = 0; g < 8; ++g) set_group_scale(block, g, best.groups[g]);
  }

 private:
  struct Trial {
    float error = kInfinity;
    f16 scale;
    std::array<int, 8> groups = {};
  };

  // Alternates between the groups' integers for the block's scale and that for the groups' levels.
  Trial refined(Trial trial) const noexcept {
    Trial best;
    for (int round = 0; round < 4; ++round) {
      const float d = value(trial.scale);
      trial.error = 0.0f;
      for (std::size_t g = 0; g < 8; ++g) {
        int& best_group = trial.groups[g];
        float least = items_[g].error(d * static_cast<float>(best_group));
        const int own = d == 0.0f ? 0 : nearest_in(scales_[g] / d, -32, 31);
        for (int s = (std::max)(own - 1, -32); s <= (std::min)(own + 1, 31); ++s) {
          const float error = items_[g].error(d * static_cast<float>(s));
          if (!(error < least)) continue;
          least = error;
          best_group = s;
        }
        trial.error += least;
      }
      if (!(trial.error < best.error)) break;
      best = trial;
      float xl = 0.0f, ll = 0.0f;
      for (std::size_t g = 0; g < 8; ++g) {
        const auto s = static_cast<float>(trial.groups[g]);
        if (d * s == 0.0f) continue;
        const auto sums = items_[g].sums(d * s);
        xl += s * sums.xl;
        ll += s * s * sums.ll;
      }
      if (!(ll > 0.0f)) break;
      trial.scale = stored(xl / ll);
    }
    return best;
  }

  float value(f16 number) const noexcept { return to_f32(number) * normalized_.unit; }
  f16 stored(float x) const noexcept { return to_f16(saturated<f16>(x / normalized_.unit)); }

  Normalized<256> normalized_;
  std::array<LevelItems<IQ4_XS>, 8> items_;
  std::array<float, 8> scales_;  // of each group by itself
};

inline void search_levels(const float* x, const float* importance, IQ4_XS::Block& block) noexcept {
  Iq4XsSearch(x, importance).run(block);
}

// The levels that are nearest to x (finite) for the scales of a block.
inline std::uint8_t* codes_of(IQ4_NL::Block& block, std::size_t) noexcept {
  return block.codes.data();
}
inline std::uint8_t* codes_of(MXFP4::Block& block, std::size_t) noexcept {
  return block.codes.data();
}
inline std::uint8_t* codes_of(IQ4_XS::Block& block, std::size_t g) noexcept {
  return block.codes.data() + 16 * g;
}
template <LevelFormat F>
void set_nearest_levels(const float* x, typename F::Block& block) noexcept {
  for (std::size_t g = 0; g < std::size_t{F::kLength} / 32; ++g) {
    double scale = static_cast<double>(to_f32(block.scale));
    if constexpr (F::kLength > 32) scale *= group_scale(block, g);
    std::uint8_t codes[32];
    for (std::size_t i = 0; i < 32; ++i) {
      const double v = scale == 0.0 ? 0.0 : static_cast<double>(x[32 * g + i]) / scale;
      // As f32, what is beyond all levels stays so.
      codes[i] = nearest_level<F>(static_cast<float>(v > 1e6 ? 1e6 : v < -1e6 ? -1e6 : v));
    }
    put_levels(codes, codes_of(block, g));
  }
}

}}}}  // namespace nibble::NIBBLE_ABI::quant::detail
NIBBLE_EXACT_MATH_END
