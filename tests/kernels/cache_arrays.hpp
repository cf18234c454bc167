// SPDX-License-Identifier: Apache-2.0
//
// Shared by the tests of attention and of its cache.
#pragma once

#include <cstring>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/core/arena.hpp"
#include "nibble/core/view.hpp"

namespace nibble_test {

inline std::size_t product(nibble::Index a, nibble::Index b) {
  return static_cast<std::size_t>(a * b);
}

inline nibble::AlignedBuffer filled(std::size_t bytes, unsigned char with) {
  auto buffer = nibble::AlignedBuffer::allocate(bytes);
  REQUIRE(buffer);
  std::memset((*buffer).data(), with, bytes);
  return std::move(*buffer);
}

// Rows [first, first + count) of a matrix that is stored without gaps.
inline nibble::MatrixView<const float> rows_of(const std::vector<float>& data, nibble::Index first,
                                               nibble::Index count, nibble::Index columns) {
  return nibble::MatrixView<const float>(data.data() + first * columns, count, columns);
}

}  // namespace nibble_test
