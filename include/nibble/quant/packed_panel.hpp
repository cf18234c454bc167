// SPDX-License-Identifier: Apache-2.0
//
// The panels of the packed layout; see packed.hpp.
#pragma once

#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace quant {

inline constexpr Index kPanelRows = 16;
inline constexpr Index kChunkBytes = 4 * kPanelRows;  // four bytes of each row

constexpr Index n_panels(Index n) noexcept { return (n + kPanelRows - 1) / kPanelRows; }

// Sizes and offsets of a packed format.
template <class Format>
struct Packed;

}}}  // namespace nibble::NIBBLE_ABI::quant
