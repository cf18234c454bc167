// SPDX-License-Identifier: Apache-2.0
//
// Packs weights when a plain model is loaded: writes the same bytes as
// quant::Packed<Format>::pack_panel, several times as fast.
#pragma once

#include "nibble/quant/packed.hpp"
#include "nibble/simd/impl.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace kernels {

// Packs one panel from `n_rows` ≤ 16 rows of k weights, which are contiguous: blocks, aligned like
// a block, or elements of a float format at any address. Writes Packed<Format>::panel_bytes(k)
// bytes, at any address. No overlap.
using PackPanelFunction = void(const std::byte* rows, Index n_rows, Index k, std::byte* panel);
template <class Format>
struct PackPanel {
  using Function = PackPanelFunction;
};

}}}  // namespace nibble::NIBBLE_ABI::kernels
