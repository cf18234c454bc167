// SPDX-License-Identifier: Apache-2.0
//
// Causal convolutions of each channel over the rows of a sequence, a few taps long: parts of
// recurrent layers. The rows before the first are the state of the sequence.
#pragma once

#include "nibble/kernels/activation.hpp"
#include "nibble/simd/impl.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace kernels {

inline constexpr Index kMinConvTaps = 2, kMaxConvTaps = 4;
// Taps are in panels of so many channels: [channels / 16][n_taps][16], as a packed f32 matrix
// (channels, n_taps) has them (quant/packed.hpp).
inline constexpr Index kConvPanel = 16;

// Rows are `stride` floats apart. No alignment is needed.
struct CausalConvArgs {
  Index n_rows = 0;
  Index n_channels = 0;
  Index n_taps = 0;  // kMinConvTaps to kMaxConvTaps
  const float* x = nullptr;
  const float* before = nullptr;  // ConvGated: rows like x
  const float* after = nullptr;   // ConvGated: rows like x
  Index stride = 0;
  const float* taps = nullptr;  // of the first channel, which begins a panel
  const float* bias = nullptr;  // (n_channels), or null for zeros
  // (n_taps - 1, n_channels): what was convolved at the last positions, the oldest first. Becomes
  // that of the positions of the last rows.
  float* state = nullptr;
  Index state_stride = 0;
  float* out = nullptr;
  Index out_stride = 0;
};

// out[t] = Activation(bias + sum_j taps[j] s[t - (n_taps - 1) + j]), s = x.
template <class Activation>
struct ConvActivated {};
// out[t] = after[t] * (bias + sum_j taps[j] s[t - (n_taps - 1) + j]), s = before * x: "short
// convolutions" (M. Poli et al., "Hyena Hierarchy", 2023; LFM2).
struct ConvGated {};

// One sum from the oldest row to the newest, so a row does not depend on how rows are cut into
// calls. Its error before the activation or the product behind is below 6 u (|bias| + sum |taps|
// |s|), u = 2^-24.
template <class Form>
struct CausalConv {
  using Function = void(const CausalConvArgs& args);
};

}}}  // namespace nibble::NIBBLE_ABI::kernels
