// SPDX-License-Identifier: Apache-2.0
//
// Dynamic quantization of activations: a row of floats becomes 8-bit codes and one scale per block,
// for matrix products in integers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "nibble/simd/impl.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace kernels {

// Where a quantized row is written. No alignment is needed.
struct QuantizedRow {
  std::int8_t* codes;                 // (QuantizeRow::padded(k))
  float* scales;                      // (QuantizeRow::n_blocks(k))
  std::int32_t* code_sums;            // (QuantizeRow::n_blocks(k))
  std::int32_t* half_sums = nullptr;  // likewise, or null; only for blocks of 32

  // The row from a block on; blocks have `length` codes.
  QuantizedRow from(std::size_t block, std::size_t length) const noexcept {
    return {codes + block * length, scales + block, code_sums + block,
            half_sums == nullptr ? nullptr : half_sums + block};
  }
};

// Per block of kBlock values, or for the whole row when kBlock is 0:
//   scale = absmax / 127,  code = round to nearest, ties to even, of x * (127 / absmax),
//   code_sum = -8 * (sum of the block's codes):
// the correction for a product with unsigned 4-bit codes, which have an offset of 8. Times 16, it
// is the correction for 8-bit codes, which have an offset of 128. Of blocks of 32,
//   half_sum = the same of the first 16 codes in the lower 16 bits, of the others in the upper ones
// for formats with two scales per block.
// Codes are in [-127, 127] and the absmax gets +-127. Both factors are rounded to float, so |x -
// scale * code| <= scale * (0.5 + 127 * 2^-22): tests/kernels/quantize_rows_test.cpp derives it.
// Codes from k to padded(k) are 0. `x` is read in [0, k) only and must not overlap the output.
//
// A block whose absmax is below 127 * FLT_MIN (1.5e-36) counts as zeros: scale 0, codes 0. A block
// that holds a NaN or an infinity gets codes 0 and a scale that is not finite, so that products
// with it are NaN and the fault is seen; other blocks are not affected.
// For kBlock = 0 the sum fits 32 bits for k <= 2^21; shifted by 4, for k <= 2^17.
template <int kBlock>
struct QuantizeRow {
  static_assert(kBlock == 0 || kBlock == 32 || kBlock == 64 || kBlock == 128,
                "blocks of 32, 64 or 128 values, or 0 for one scale per row");
  using Function = void(const float* x, Index k, QuantizedRow out);

  // How many codes are written for a row of k values: k rounded up to a multiple of the block, or
  // of 32 if kBlock is 0.
  static constexpr Index padded(Index k) noexcept {
    constexpr Index kMultiple = kBlock == 0 ? 32 : kBlock;
    return (k + kMultiple - 1) / kMultiple * kMultiple;
  }
  static constexpr Index n_blocks(Index k) noexcept {
    return kBlock == 0 ? 1 : padded(k) / (kBlock == 0 ? 1 : kBlock);
  }
};

}}}  // namespace nibble::NIBBLE_ABI::kernels
