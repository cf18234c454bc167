// SPDX-License-Identifier: Apache-2.0
//
// PerLayer: a value that may differ from layer to layer. Dim<kPerLayer>: an extent that does.
#pragma once

#include <type_traits>

#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// The same value in every layer, or one value for each. The values of the layers are the caller's
// array, which must stay alive; converts from a single value.
template <class T>
class PerLayer {
 public:
  constexpr PerLayer(T value = T{}) noexcept : value_(value) {}  // NOLINT: a value is one
  // A dimension is a value too, unless it differs by layer: then its values are.
  template <Index N>
  requires(N >= kDynamic) constexpr PerLayer(Dim<N> dim) noexcept  // NOLINT: as above
      : value_(static_cast<T>(Index{dim})) {}
  // Would be a value for a T of bool.
  template <class Pointer>
  requires std::is_pointer_v<Pointer>
  constexpr PerLayer(Pointer) noexcept {
    static_assert(!std::is_pointer_v<Pointer>,
                  "nibble: values that differ by layer come with their number: PerLayer<T>(values, "
                  "n_layers)");
  }
  // values: (n_layers), at least one.
  constexpr PerLayer(const T* values, Index n_layers) noexcept
      : value_(values[0]), values_(values), n_layers_(n_layers) {}

  constexpr bool is_uniform() const noexcept { return values_ == nullptr; }
  // Whether there is a value for `layer`. Layer -1 is outside of the layers, where only a uniform
  // value makes sense.
  constexpr bool has(Index layer) const noexcept {
    return is_uniform() || (layer >= 0 && layer < n_layers_);
  }
  // Where there is none, that of layer 0: a plan of the expression says what is missing.
  constexpr T at(Index layer) const noexcept {
    return is_uniform() || !has(layer) ? value_ : values_[layer];
  }

 private:
  T value_;
  const T* values_ = nullptr;
  Index n_layers_ = 0;
};

// An extent whose value differs from layer to layer: Dim<kPerLayer> wherever a Dim stands in an
// expression. It has no value of its own: a pass over the expression asks for that of a layer.
inline constexpr Index kPerLayer = -2;

template <>
struct Dim<kPerLayer> {
  static constexpr bool kIsStatic = false;
  static constexpr Index kStatic = kDynamic;
  PerLayer<Index> values;
  constexpr explicit Dim(PerLayer<Index> v) noexcept : values(v) {}
  constexpr Dim(const Index* v, Index n_layers) noexcept : values(v, n_layers) {}
};

}}  // namespace nibble::NIBBLE_ABI
