// SPDX-License-Identifier: Apache-2.0
//
// A function between two statically quantized tensors as a table of all its 256 values.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "nibble/core/exact_math.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/quant/static_scale.hpp"

NIBBLE_EXACT_MATH_BEGIN
namespace nibble { inline namespace NIBBLE_ABI { namespace quant {

class CodeTable {
 public:
  // f: from double to double. An entry is the code of f(value of the input's code) in `to`: its
  // value differs from f by at most half a step of `to`, and 2^-22 of the range, wherever the range
  // of `to` holds f. Both scales must be usable.
  template <class F>
  constexpr CodeTable(const F& f, const StaticScale& from, const StaticScale& to) noexcept
      : to_(to) {
    for (std::int32_t code = -128; code <= 127; ++code) {
      const auto stored = static_cast<std::int8_t>(code);
      const double x = static_cast<double>(value_of(from, stored));
      codes_[index_of(stored)] = stored_code_of(to, static_cast<float>(f(x)));
    }
  }

  // The range of the codes that it gives.
  constexpr const StaticScale& to() const noexcept { return to_; }
  // The code for a stored code.
  constexpr std::int8_t operator[](std::int8_t stored) const noexcept {
    return codes_[index_of(stored)];
  }
  // 256 codes; at i that of the stored code whose bits are i.
  constexpr const std::int8_t* data() const noexcept { return codes_.data(); }

 private:
  static constexpr std::size_t index_of(std::int8_t stored) noexcept {
    return static_cast<std::size_t>(static_cast<std::uint8_t>(stored));
  }

  alignas(64) std::array<std::int8_t, 256> codes_{};
  StaticScale to_;
};

}}}  // namespace nibble::NIBBLE_ABI::quant
NIBBLE_EXACT_MATH_END
