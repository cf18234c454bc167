// SPDX-License-Identifier: Apache-2.0
//
// Matrices as rows of f32, the way they are in files: the form of weights that are trained. Only
// training steps multiply them; inference wants packed matrices.
#pragma once

#include <cstddef>
#include <cstring>

#include "nibble/graph/weights.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

namespace detail {

inline void copy_f32_row(const std::byte* data, Index, Index k, Index row, float* out) noexcept {
  const auto bytes = static_cast<std::size_t>(k) * sizeof(float);
  std::memcpy(out, data + static_cast<std::size_t>(row) * bytes, bytes);
}
inline Index f32_bytes(Index n, Index k) noexcept { return n * k * Index{sizeof(float)}; }

}  // namespace detail

NIBBLE_HIDDEN inline constexpr FormatOps kF32Rows = [] {
  FormatOps ops{};
  ops.format = quant::Format::f32;
  ops.row = &detail::copy_f32_row;
  ops.packed_bytes = &detail::f32_bytes;
  ops.row_bytes = &quant::row_bytes<quant::F32>;
  ops.check_shape = &detail::check_shape<quant::F32>;
  return ops;
}();

// values: (n, k), aligned to 64 bytes.
inline Weight f32_rows_weight(MatrixView<const float> values) noexcept {
  return {&kF32Rows,
          values.extent(0),
          values.extent(1),
          reinterpret_cast<const std::byte*>(values.data()),
          1,
          {}};
}

inline bool is_f32_rows(const Weight& w) noexcept { return w.ops == &kF32Rows; }

}}}  // namespace nibble::NIBBLE_ABI::graph
