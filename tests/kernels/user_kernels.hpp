// SPDX-License-Identifier: Apache-2.0
//
// What a program adds to nibble, in its own namespace: an epilogue and two weight formats.
// user_kernels-inl.h has the code of the epilogue.
#pragma once

#include <array>
#include <cstdint>

#include "nibble/quant/block.hpp"

namespace user {

// out = max(v + bias, 0)^2
struct SquaredRelu {};

// A format of nibble's family, with parameters for which nibble has no name.
using Q4In96 = nibble::quant::Blocks<4, 96, nibble::bf16, nibble::quant::ZeroPoint::minimum>;

// A format outside of the family: codes come first, the scale is a float at the end.
struct CodesFirst {
  static constexpr int kBits = 8;
  static constexpr int kLength = 64;
  static constexpr auto kZeroPoint = nibble::quant::ZeroPoint::symmetric;
  using Scale = float;
  struct Block {
    std::array<std::uint8_t, 64> codes;
    float scale;
  };
};

}  // namespace user
