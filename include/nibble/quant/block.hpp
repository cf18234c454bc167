// SPDX-License-Identifier: Apache-2.0
//
// Weight formats as types. A block format stores kLength consecutive weights of a row as one Block:
// a scale, optionally a minimum, and kBits-bit codes. Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 equal GGUF's,
// bit for bit; Q3_H and Q2_H are nibble's own. Formats with scales of two levels are in
// quant/super_block.hpp.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "nibble/core/float16.hpp"
#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace quant {

// How a code becomes a weight.
enum class ZeroPoint : std::uint8_t {
  // weight = scale * (code - 2^(kBits-1)); 8 bits: scale * code (signed). A code of 2 or 3 bits
  // stands for the 4-bit code in the middle of the four or two that begin with it, 4 code + 2 or
  // 2 code + 1: weight = scale * (that - 8). So a block has as many positive weights as negative
  // ones, and no code is spent on zero (the half-step grid of SEQ, arXiv:2502.02631).
  symmetric,
  minimum,  // weight = scale * code + minimum, code unsigned; the minimum is stored per block
};

// Order of the codes in a block. kBits = 4: byte j holds weight j in its low half and weight j +
// kLength/2 in its high half (GGUF's order). kBits = 5: four bytes come first whose bit j is the
// fifth bit of weight j (bit 0 is the lowest of the first byte); then 4-bit codes as above. kBits =
// 2: bits 0 … 1 of byte 4 q + i hold weight 8 q + i, bits 2 … 3 weight 16 + 8 q + i, bits 4 … 5
// weight 8 q + 4 + i, bits 6 … 7 weight 20 + 8 q + i (q = 0, 1; i = 0 … 3). kBits = 3: four bytes
// come first whose bit j is the highest bit of weight j; then the other two bits as above. kBits =
// 8: byte j is weight j, two's complement when symmetric.
template <class Scale, int kBits, int kLength, ZeroPoint kZero>
struct BlockData;
template <class Scale, int kBits, int kLength>
struct BlockData<Scale, kBits, kLength, ZeroPoint::symmetric> {
  Scale scale;
  std::array<std::uint8_t, std::size_t{kLength / 8 * kBits}> codes;
};
template <class Scale, int kBits, int kLength>
struct BlockData<Scale, kBits, kLength, ZeroPoint::minimum> {
  Scale scale;
  Scale minimum;
  std::array<std::uint8_t, std::size_t{kLength / 8 * kBits}> codes;
};

// The family of block formats. A user's own format is a member with other parameters, or any type
// that satisfies the BlockFormat concept.
template <int Bits, int Length, class ScaleType, ZeroPoint Zero>
struct Blocks {
  static_assert((Bits >= 2 && Bits <= 5) || Bits == 8, "codes of 2, 3, 4, 5 or 8 bits");
  static_assert(Length % 32 == 0 && Length > 0, "blocks are whole groups of 32 weights");
  static_assert(Bits == 4 || Bits == 8 || Length == 32,
                "codes of 2, 3 or 5 bits are in blocks of 32 weights");
  static_assert(Bits > 3 || Zero == ZeroPoint::symmetric, "codes of 2 or 3 bits are symmetric");
  static constexpr int kBits = Bits;
  static constexpr int kLength = Length;
  static constexpr ZeroPoint kZeroPoint = Zero;
  using Scale = ScaleType;
  using Block = BlockData<ScaleType, Bits, Length, Zero>;
};

using Q4_0 = Blocks<4, 32, f16, ZeroPoint::symmetric>;
using Q4_1 = Blocks<4, 32, f16, ZeroPoint::minimum>;
using Q5_0 = Blocks<5, 32, f16, ZeroPoint::symmetric>;
using Q5_1 = Blocks<5, 32, f16, ZeroPoint::minimum>;
using Q8_0 = Blocks<8, 32, f16, ZeroPoint::symmetric>;
using Q3_H = Blocks<3, 32, f16, ZeroPoint::symmetric>;  // 3.5 bits of a weight; H: half-step grid
using Q2_H = Blocks<2, 32, f16, ZeroPoint::symmetric>;  // 2.5 bits

static_assert(sizeof(Q4_0::Block) == 18 && alignof(Q4_0::Block) == 2);
static_assert(sizeof(Q4_1::Block) == 20 && alignof(Q4_1::Block) == 2);
static_assert(sizeof(Q5_0::Block) == 22 && alignof(Q5_0::Block) == 2);
static_assert(sizeof(Q5_1::Block) == 24 && alignof(Q5_1::Block) == 2);
static_assert(sizeof(Q8_0::Block) == 34 && alignof(Q8_0::Block) == 2);
static_assert(sizeof(Q3_H::Block) == 14 && alignof(Q3_H::Block) == 2);
static_assert(sizeof(Q2_H::Block) == 10 && alignof(Q2_H::Block) == 2);

// Weights stored as they are: no blocks, no codes.
template <class T>
struct Float {
  using Element = T;
  static constexpr int kBits = 8 * static_cast<int>(sizeof(T));
  static constexpr int kLength = 1;
};

using F32 = Float<float>;
using F16 = Float<f16>;
using BF16 = Float<bf16>;

template <class F>
concept BlockFormat = std::is_trivially_copyable_v<typename F::Block> && requires {
  typename F::Scale;
  { F::kBits } -> std::convertible_to<int>;
  { F::kLength } -> std::convertible_to<int>;
  { F::kZeroPoint } -> std::convertible_to<ZeroPoint>;
};

}}}  // namespace nibble::NIBBLE_ABI::quant
