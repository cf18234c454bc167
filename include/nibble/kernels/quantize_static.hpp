// SPDX-License-Identifier: Apache-2.0
//
// Quantization of activations with a scale that is known before (quant/static_scale.hpp), alone and
// fused with a norm; and functions of such codes by a table.
#pragma once

#include <cstdint>

#include "nibble/kernels/norm.hpp"
#include "nibble/kernels/quantize_rows.hpp"
#include "nibble/quant/static_scale.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace kernels {

// One row (k) of codes with the scale `s`, which must be usable (quant::is_usable):
//   code = clamp(round to nearest, ties to even, of x * (1 / scale), plus s.stored_zero())
// between s.stored_low() and s.stored_high(); the inverse and the product are rounded to float.
// Where nothing saturates, |x - value of the code| <= scale * (0.5 + 255 * 2^-23): of two roundings
// of relative 2^-24 each, of a quotient of at most 255.
// Writes out.codes, with zeros from k to QuantizeRow<0>::padded(k); out.scales[0] = the scale; and
// out.code_sums[0] = -8 * (sum of codes). Not half_sums. k is at most 2^17.
// In a row with a NaN or an infinity the scale is NaN, so that products with it are NaN and the
// fault is seen, and all codes are 0.
// `x` is read in [0, k) only and must not overlap the output.
struct QuantizeRowStatic {
  using Function = void(const float* x, Index k, const quant::StaticScale& s, QuantizedRow out);
};

// The same of a normalized row, without that row in memory: the very codes that RmsNorm<> and
// LayerNorm<> followed by QuantizeRowStatic give. NormArgs::addend and dropout are not used.
struct RmsNormStatic {
  using Function = void(const NormArgs& args, const quant::StaticScale& s, QuantizedRow out);
};
struct LayerNormStatic {
  using Function = void(const NormArgs& args, const quant::StaticScale& s, QuantizedRow out);
};

// One row of k codes through a table of 256 (quant/code_table.hpp), which has the scale `to`:
// out.codes[i] = table[bits of codes[i]], with padding, scale and sum as above. `scale`: that of
// the input row; if it is NaN, so is the output's. `out.codes` may be `codes`.
struct MapCodes {
  using Function = void(const std::int8_t* table, const std::int8_t* codes, float scale, Index k,
                        float to, QuantizedRow out);
};

}}}  // namespace nibble::NIBBLE_ABI::kernels
