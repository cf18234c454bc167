// SPDX-License-Identifier: Apache-2.0
//
// Packing weights: the bytes of quant::Packed<Format>::pack_panel, made several times as fast for
// blocks and float formats.
#pragma once

#include "nibble/quant/packed.hpp"
#include "nibble/simd/impl.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace kernels {

// Packs one panel from `n_rows` ≤ 16 rows of k weights, one after the other as in format.hpp:
// blocks, aligned as a block is, or rows of another format at any address. Writes
// Packed<Format>::panel_bytes(k) bytes, at any address. No overlap.
using PackPanelFunction = void(const std::byte* rows, Index n_rows, Index k, std::byte* panel);
template <class Format>
struct PackPanel {
  using Function = PackPanelFunction;
};

}}}  // namespace nibble::NIBBLE_ABI::kernels
