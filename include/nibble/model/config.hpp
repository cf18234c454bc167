// SPDX-License-Identifier: Apache-2.0
//
// The dimensions of a model. An architecture's expression accepts any type with these members.
// ModelConfig has them at run time. A program that knows its model writes its own type, with
// Dim<256> dim; and so on; everything whose size depends on them is then a constant.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "nibble/core/per_layer.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct ModelConfig {
  std::string architecture;  // as GGUF names it
  Dim<> vocab_size;
  Dim<> dim;
  Dim<> n_layers;
  Dim<> n_heads;
  Dim<> n_kv_heads;
  Dim<> head_dim;
  Dim<> ffn_dim;
  Index n_ctx = 0;   // positions the model was trained for
  Index window = 0;  // sliding window of attention; 0: none
  float norm_eps = 1e-5f;
  Index rope_dim = 0;  // rotated dimensions of head_dim; 0: no rotation
  float rope_theta = 10000;
  float rope_scale = 1;  // positions are divided by it
};

// One value per layer, as an architecture's own configuration stores them; its expression refers to
// them as PerLayer or Dim<kPerLayer>, so they must stay alive.
template <class T>
using LayerValues = std::vector<Scalar<T>>;
template <class T>
PerLayer<T> per_layer(const LayerValues<T>& v) noexcept {
  return {values(v), static_cast<Index>(v.size())};
}
template <class T>
PerLayer<T> per_layer(const LayerValues<T>&&) = delete;
inline Dim<kPerLayer> dim_per_layer(const LayerValues<Index>& v) noexcept {
  return Dim<kPerLayer>(per_layer(v));
}
Dim<kPerLayer> dim_per_layer(const LayerValues<Index>&&) = delete;

// The values of the layers, or `otherwise` in all of them if there are none.
template <class T>
PerLayer<T> per_layer_or(const LayerValues<T>& v, T otherwise) noexcept {
  return v.empty() ? PerLayer<T>(otherwise) : per_layer(v);
}
template <class T>
PerLayer<T> per_layer_or(const LayerValues<T>&&, T) = delete;

// 1 / sqrt(n), also in constant expressions (std::sqrt is not constexpr in C++20): Newton's
// iteration in double, correct to f32.
constexpr float inverse_sqrt(Index n) noexcept {
  const auto x = static_cast<double>(n);
  double root = x > 1 ? x : 1;
  for (int i = 0; i < 64; ++i) root = 0.5 * (root + x / root);
  return static_cast<float>(1 / root);
}

}}  // namespace nibble::NIBBLE_ABI
