// SPDX-License-Identifier: Apache-2.0
//
// 8-bit formats with one scale for a whole channel (a row of a weight matrix) or tensor, instead of
// one per block: I8Channel, symmetric, and U8Affine, with a zero-point and a 256-entry table.
//
// NaN counts as zero. Magnitudes above 2^120, including infinities, count as 2^120 (quantize.hpp).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "nibble/core/exact_math.hpp"
#include "nibble/core/libm.hpp"
#include "nibble/quant/quantize.hpp"

NIBBLE_EXACT_MATH_BEGIN
namespace nibble { inline namespace NIBBLE_ABI { namespace quant {

// Symmetric: weight = scale * code, scale = (largest magnitude) / 127, code = weight / scale
// rounded half away from zero, in [-127, 127]. -128 never occurs, so codes can be negated.
struct I8Channel {
  using Code = std::int8_t;
  static constexpr int kBits = 8;
  static constexpr int kLength = 1;
  // The data of a channel besides its codes; a stored row begins with it.
  struct Header {
    float scale = 0.0f;
  };
};

// Asymmetric: weight = scale * (code - zero_point). The range is [min(0, smallest), max(0,
// largest)], scale = its width / 255, zero_point = the code nearest to zero: so zero is always
// represented exactly.
struct U8Affine {
  using Code = std::uint8_t;
  static constexpr int kBits = 8;
  static constexpr int kLength = 1;
  struct Header {
    float scale = 0.0f;
    std::uint8_t zero_point = 0;
    std::array<std::uint8_t, 3> reserved{};  // zeros; they align the codes to four bytes
  };
};

static_assert(sizeof(I8Channel::Header) == 4 && sizeof(U8Affine::Header) == 8);

template <class F>
concept ChannelFormat = std::is_same_v<F, I8Channel> || std::is_same_v<F, U8Affine>;

// The weight of a code. AffineTable holds exactly these values.
constexpr float weight_of(I8Channel::Header h, std::int8_t code) noexcept {
  return h.scale * static_cast<float>(code);
}
constexpr float weight_of(U8Affine::Header h, std::uint8_t code) noexcept {
  return h.scale * static_cast<float>(code - h.zero_point);
}

// The code nearest to a weight. Weights outside the range that `h` was fitted to saturate.
inline std::int8_t code_of(I8Channel::Header h, float x) noexcept {
  if (!(h.scale > 0.0f)) return 0;
  return static_cast<std::int8_t>(clamped(libm::round_away(tamed(x) / h.scale), -127.0f, 127.0f));
}
inline std::uint8_t code_of(U8Affine::Header h, float x) noexcept {
  const float zero_point = static_cast<float>(h.zero_point);
  if (!(h.scale > 0.0f)) return h.zero_point;
  const float code = libm::round_away(tamed(x) / h.scale) + zero_point;
  return static_cast<std::uint8_t>(clamped(code, 0.0f, 255.0f));
}

// The header that fits these weights: pass a row for one header per channel, a whole tensor for one
// per tensor. The scale is 0 if there are no weights or only zeros.
template <ChannelFormat Format>
typename Format::Header fit(std::span<const float> x) noexcept {
  float smallest = 0.0f;
  float largest = 0.0f;
  for (const float v : x) {
    smallest = smaller(smallest, tamed(v));
    largest = larger(largest, tamed(v));
  }
  if constexpr (std::is_same_v<Format, I8Channel>) {
    return {larger(largest, -smallest) / 127.0f};
  } else {
    const float scale = (largest - smallest) / 255.0f;
    if (!(scale > 0.0f)) return {};
    const float zero_point = clamped(libm::round_away(-smallest / scale), 0.0f, 255.0f);
    return {scale, static_cast<std::uint8_t>(zero_point)};
  }
}

// codes.size() = x.size()
template <ChannelFormat Format>
void quantize(typename Format::Header header, std::span<const float> x,
              std::span<typename Format::Code> codes) noexcept {
  NIBBLE_ASSERT(x.size() == codes.size());
  for (std::size_t i = 0; i < x.size(); ++i) codes[i] = code_of(header, x[i]);
}

template <ChannelFormat Format>
void dequantize(typename Format::Header header, std::span<const typename Format::Code> codes,
                std::span<float> out) noexcept {
  NIBBLE_ASSERT(out.size() == codes.size());
  for (std::size_t i = 0; i < codes.size(); ++i) out[i] = weight_of(header, codes[i]);
}

// A table of the weights of all 256 codes of a channel or tensor.
class AffineTable {
 public:
  constexpr explicit AffineTable(U8Affine::Header header) noexcept {
    for (std::size_t code = 0; code < weights_.size(); ++code) {
      weights_[code] = weight_of(header, static_cast<std::uint8_t>(code));
    }
  }

  constexpr float operator[](std::uint8_t code) const noexcept { return weights_[code]; }
  constexpr const float* data() const noexcept { return weights_.data(); }

  // out.size() = codes.size()
  void dequantize(std::span<const std::uint8_t> codes, std::span<float> out) const noexcept {
    NIBBLE_ASSERT(out.size() == codes.size());
    for (std::size_t i = 0; i < codes.size(); ++i) out[i] = weights_[codes[i]];
  }

 private:
  alignas(64) std::array<float, 256> weights_{};
};

}}}  // namespace nibble::NIBBLE_ABI::quant
NIBBLE_EXACT_MATH_END
