// SPDX-License-Identifier: Apache-2.0
//
// Block formats as grids: the weights that a block can hold, once its scales are set, are step *
// code + offset with whole codes, where step and offset belong to a group of weights. What chooses
// codes by other means than rounding each weight (searches of scales, column-by-column methods)
// sees only this.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "nibble/core/exact_math.hpp"
#include "nibble/quant/block.hpp"
#include "nibble/quant/levels.hpp"
#include "nibble/quant/quantize.hpp"
#include "nibble/quant/super_block.hpp"

NIBBLE_EXACT_MATH_BEGIN
namespace nibble { inline namespace NIBBLE_ABI { namespace quant {

// weight = step * code + offset. A negative step is as good as a positive one; a step of zero holds
// the offset only.
struct GroupGrid {
  float step = 0.0f;
  float offset = 0.0f;
};

// Whether codes stand for odd halves of a step (ZeroPoint::symmetric in block.hpp).
template <class F>
inline constexpr bool kHasHalfSteps = F::kBits < 4 && !SuperBlockFormat<F>;

// Formats that are such grids: those of block.hpp with 16-bit scales, and those of super_block.hpp.
template <class F>
concept GridFormat = BlockFormat<F> && sizeof(typename F::Scale) == 2 &&
                     ((SuperBlockFormat<F> && !LevelFormat<F>) || !HasOwnRule<F>);

template <class F>
constexpr int group_length() noexcept {
  if constexpr (SuperBlockFormat<F>)
    return F::kGroupLength;
  else
    return F::kLength;
}

// The codes of a format: lowest … highest. (8 bits, symmetric: -128 is never used, as in GGUF.)
template <GridFormat F>
constexpr int lowest_code() noexcept {
  if (OneOf<F, TQ2_0, Q2_0>) return -1;
  if (std::is_same_v<F, Q1_0>) return 0;
  if (F::kZeroPoint == ZeroPoint::minimum || kHasHalfSteps<F>) return 0;
  return F::kBits == 8 ? -127 : -(1 << (F::kBits - 1));
}
template <GridFormat F>
constexpr int highest_code() noexcept {
  if (OneOf<F, TQ2_0, Q1_0>) return 1;
  if (std::is_same_v<F, Q2_0>) return 2;
  if (F::kZeroPoint == ZeroPoint::minimum || kHasHalfSteps<F>) return (1 << F::kBits) - 1;
  return (1 << (F::kBits - 1)) - 1;
}

// Step and offset of group g of a block, from its scales; its codes may be anything.
template <GridFormat F>
GroupGrid grid_of(const typename F::Block& block, [[maybe_unused]] std::size_t g) noexcept {
  if constexpr (std::is_same_v<F, Q6_K>) {
    return {to_f32(block.scale) * static_cast<float>(block.scales[g]), 0.0f};
  } else if constexpr (std::is_same_v<F, Q3_K>) {
    return {to_f32(block.scale) * static_cast<float>(detail::q3_scale(block, g)), 0.0f};
  } else if constexpr (OneOf<F, TQ2_0, Q2_0>) {
    return {to_f32(block.scale), 0.0f};
  } else if constexpr (std::is_same_v<F, Q1_0>) {
    return {2.0f * to_f32(block.scale), -to_f32(block.scale)};
  } else if constexpr (std::is_same_v<F, Q2_K>) {
    return {to_f32(block.scale) * static_cast<float>(block.scales[g] & 15),
            -(to_f32(block.minimum) * static_cast<float>(block.scales[g] >> 4))};
  } else if constexpr (SuperBlockFormat<F>) {
    const detail::GroupScale s = detail::group_scale(block.scales, g);
    return {to_f32(block.scale) * static_cast<float>(s.scale),
            -(to_f32(block.minimum) * static_cast<float>(s.minimum))};
  } else if constexpr (F::kZeroPoint == ZeroPoint::minimum) {
    return {to_f32(block.scale), to_f32(block.minimum)};
  } else if constexpr (kHasHalfSteps<F>) {  // see ZeroPoint::symmetric
    constexpr float kStep = 1 << (4 - F::kBits);
    return {kStep * to_f32(block.scale), (kStep / 2 - 8) * to_f32(block.scale)};
  } else {
    return {to_f32(block.scale), 0.0f};
  }
}

// Stores kLength codes, lowest_code() … highest_code(), in a block; its scales stay.
template <GridFormat F>
void set_codes(const std::int16_t* codes, typename F::Block& block) noexcept {
  constexpr int kOffset = F::kBits == 8 ? 0 : -lowest_code<F>();
  std::array<std::uint8_t, std::size_t{F::kLength}> stored;
  for (std::size_t i = 0; i < stored.size(); ++i) {
    stored[i] = static_cast<std::uint8_t>(codes[i] + kOffset);
  }
  if constexpr (OneOf<F, Q4_K, Q5_K>)
    detail::pack_codes<F::kBits>(stored, block);
  else if constexpr (SuperBlockFormat<F>)
    detail::pack_codes(stored, block);
  else
    detail::pack_codes<F>(stored.data(), block);
}

// The code whose weight is nearest to x, which is finite; of two that are as near, the lower one.
inline int nearest_code(GroupGrid grid, float x, int lowest, int highest) noexcept {
  if (grid.step == 0.0f) return lowest > 0 ? lowest : highest < 0 ? highest : 0;
  const double difference = static_cast<double>(x) - static_cast<double>(grid.offset);
  const double step = static_cast<double>(grid.step);
  const double quotient = difference / step;
  if (!(quotient > lowest)) return lowest;
  if (quotient >= highest) return highest;
  int below = static_cast<int>(quotient);
  if (below > quotient) --below;
  return quotient - below <= 0.5 ? below : below + 1;
}

// Sets the codes that are nearest to x (kLength weights, finite) for the block's scales.
template <GridFormat F>
void set_nearest_codes(const float* x, typename F::Block& block) noexcept {
  constexpr std::size_t kLength = F::kLength, kGroup = group_length<F>();
  std::int16_t codes[kLength];
  for (std::size_t i = 0; i < kLength; ++i) {
    codes[i] = static_cast<std::int16_t>(
        nearest_code(grid_of<F>(block, i / kGroup), x[i], lowest_code<F>(), highest_code<F>()));
  }
  set_codes<F>(codes, block);
}

}}}  // namespace nibble::NIBBLE_ABI::quant
NIBBLE_EXACT_MATH_END
