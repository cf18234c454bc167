// SPDX-License-Identifier: Apache-2.0
//
// Matrices whose rows are arrays, as kernels need them; rows may be any distance apart.
#pragma once

#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

template <class T>
constexpr bool has_unit_rows(MatrixView<T> v) noexcept {
  return v.stride(1) == 1 || v.extent(1) <= 1 || v.extent(0) == 0;
}

template <class T>
constexpr T* row_of(MatrixView<T> v, Index row) noexcept {
  return v.data() + row * v.stride(0);
}

// The precondition of operations that process two matrices together.
template <class A, class B>
constexpr void assert_rows_like([[maybe_unused]] MatrixView<A> a,
                                [[maybe_unused]] MatrixView<B> b) noexcept {
  NIBBLE_ASSERT(a.shape() == b.shape());
  NIBBLE_ASSERT(has_unit_rows(a) && has_unit_rows(b));
}

}}}  // namespace nibble::NIBBLE_ABI::ops
