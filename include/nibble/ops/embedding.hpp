// SPDX-License-Identifier: Apache-2.0
//
// Rows of a packed matrix as f32: token and position embeddings, read directly from the weights
// that a tied output layer also uses.
#pragma once

#include <cstdint>
#include <span>

#include "nibble/ops/rows.hpp"
#include "nibble/quant/packed.hpp"
#include "nibble/quant/quantize.hpp"
#include "nibble/quant/sparse.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

// out (k) = row `row` of the matrix, dequantized exactly (one rounding to f32 per weight).
template <class Format>
void packed_row(const quant::PackedMatrix<Format>& matrix, Index row, float* out) noexcept {
  NIBBLE_ASSERT(row >= 0 && row < matrix.n);
  using L = quant::Packed<Format>;
  [[maybe_unused]] const Index lane = row % quant::kPanelRows;
  if constexpr (quant::SparseFormat<Format>) {
    L::row(matrix.data, matrix.k, row, out);
  } else if constexpr (quant::BlockFormat<Format>) {
    const std::byte* const panel = matrix.panel(row / quant::kPanelRows);
    for (Index b = 0; b < matrix.k / L::kLength; ++b) {
      quant::dequantize_block<Format>(L::unpack_block(panel, lane, b), out + b * L::kLength);
    }
  } else if constexpr (quant::ChannelFormat<Format>) {
    const std::byte* const panel = matrix.panel(row / quant::kPanelRows);
    const auto header = L::header(panel, lane);
    for (Index i = 0; i < matrix.k; ++i) {
      out[i] = quant::weight_of(header, L::code(panel, lane, i));
    }
  } else {
    const std::byte* const panel = matrix.panel(row / quant::kPanelRows);
    for (Index i = 0; i < matrix.k; ++i) out[i] = to_f32(L::weight(panel, lane, i));
  }
}

// out (tokens, k): row i is the matrix's row tokens[i]. Every token must be in [0, n).
template <class Format>
void embedding(Executor& executor, const quant::PackedMatrix<Format>& matrix,
               std::span<const std::int32_t> tokens, MatrixView<float> out) noexcept {
  const auto m = static_cast<Index>(tokens.size());
  NIBBLE_ASSERT(out.extent(0) == m && out.extent(1) == matrix.k && out.stride(1) == 1);
  for_rows(executor, m, matrix.k, [&](Index i) {
    packed_row(matrix, tokens[static_cast<std::size_t>(i)], out.data() + i * out.stride(0));
  });
}

}}}  // namespace nibble::NIBBLE_ABI::ops
