// SPDX-License-Identifier: Apache-2.0
//
// The dimensions of a model.
#pragma once

#include <cstdint>

namespace example {

// Dimensions that differ from those of the model that another one is like; 0: the same.
struct Shape {
  std::uint32_t n_layers = 0, dim = 0, n_heads = 0, n_kv_heads = 0, ffn = 0;

  bool is_same() const { return n_layers + dim + n_heads + n_kv_heads + ffn == 0; }
  friend bool operator==(const Shape&, const Shape&) = default;
};

}  // namespace example
