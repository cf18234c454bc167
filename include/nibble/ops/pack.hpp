// SPDX-License-Identifier: Apache-2.0
//
// Packing whole matrices, the panels in parallel.
#pragma once

#include <algorithm>
#include <cstddef>

#include "nibble/core/executor.hpp"
#include "nibble/kernels/pack.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/quant/format.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

// out = n rows of k weights in the packed layout: quant::Packed<Format>::bytes(n, k) bytes, at any
// address. `rows`: one after the other as in format.hpp, aligned as a block of the format is, k a
// multiple of the block's length.
template <class Format>
void pack(Executor& executor, const std::byte* rows, Index n, Index k, std::byte* out) noexcept {
  const auto row_bytes = quant::row_bytes<Format>(static_cast<std::size_t>(k));
  NIBBLE_ASSERT(row_bytes.has_value());
  const auto bytes_of_row = static_cast<Index>(*row_bytes);
  kernels::PackPanelFunction* const pack_panel = simd::kernel<kernels::PackPanel<Format>>();
  executor.parallel_for(quant::n_panels(n), [&](Index panel, Index) {
    const Index row = panel * quant::kPanelRows;
    pack_panel(rows + row * bytes_of_row, std::min<Index>(quant::kPanelRows, n - row), k,
               out + panel * quant::Packed<Format>::panel_bytes(k));
  });
}

}}}  // namespace nibble::NIBBLE_ABI::ops
