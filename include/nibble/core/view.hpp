// SPDX-License-Identifier: Apache-2.0
//
// Dim: an extent known at compile time or at run time. View: a non-owning tensor of any rank. Its
// extents are Dims; it is row-major unless strides are given. Strides and indices count elements.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "nibble/core/config.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

using Index = std::int64_t;  // counts and positions of elements

inline constexpr Index kDynamic = -1;

// An extent. Dim<64> takes no space and is a compile-time constant everywhere; Dim<> holds a value.
template <Index Value = kDynamic>
struct Dim {
  static_assert(Value >= 0, "nibble: a static extent is not negative");
  static constexpr bool kIsStatic = true;
  static constexpr Index kStatic = Value;
  constexpr Dim() noexcept = default;
  constexpr explicit Dim([[maybe_unused]] Index value) noexcept { NIBBLE_ASSERT(value == Value); }
  constexpr operator Index() const noexcept { return Value; }  // NOLINT: a Dim is a number
};
template <>
struct Dim<kDynamic> {
  static constexpr bool kIsStatic = false;
  static constexpr Index kStatic = kDynamic;
  Index value = 0;
  constexpr Dim() noexcept = default;
  constexpr Dim(Index v) noexcept : value(v) {}                // NOLINT: a number is a Dim
  constexpr operator Index() const noexcept { return value; }  // NOLINT
};

// Products, quotients and sums of Dims are static when both operands are.
template <Index A, Index B>
constexpr auto operator*(Dim<A> a, Dim<B> b) noexcept {
  if constexpr (A != kDynamic && B != kDynamic)
    return Dim<A * B>{};
  else
    return Dim<>{Index{a} * Index{b}};
}
template <Index A, Index B>
constexpr auto operator/(Dim<A> a, Dim<B> b) noexcept {
  if constexpr (A != kDynamic && B != kDynamic)
    return Dim<A / B>{};
  else
    return Dim<>{Index{a} / Index{b}};
}
template <Index A, Index B>
constexpr auto operator+(Dim<A> a, Dim<B> b) noexcept {
  if constexpr (A != kDynamic && B != kDynamic)
    return Dim<A + B>{};
  else
    return Dim<>{Index{a} + Index{b}};
}

// View<float, kDynamic, 64> v(p, rows, 64): element (i, j) is p[i * stride(0) + j * stride(1)].
// Bounds are checked when NIBBLE_DEBUG is on. A View<T> converts to a View<const T>, and static
// extents convert to dynamic ones.
template <class T, Index... Extents>
class View {
 public:
  static constexpr std::size_t kRank = sizeof...(Extents);
  using Shape = std::array<Index, kRank>;
  using element_type = T;

  constexpr View() noexcept = default;

  // Row-major over `data`. All extents are given; static ones must agree.
  template <std::convertible_to<Index>... Sizes>
  requires(sizeof...(Sizes) == kRank) constexpr explicit View(T* data, Sizes... sizes) noexcept
      : View(data, Shape{static_cast<Index>(sizes)...}) {}
  constexpr View(T* data, const Shape& shape) noexcept : data_(data) {
    set_extents(shape);
    Index stride = 1;
    for (std::size_t d = kRank; d-- > 0;) {
      strides_[d] = stride;
      stride *= shape[d];
    }
  }
  constexpr View(T* data, const Shape& shape, const Shape& strides) noexcept
      : data_(data), strides_(strides) {
    set_extents(shape);
  }

  template <class U, Index... Other>
  requires(sizeof...(Other) == kRank && std::is_convertible_v<U (*)[], T (*)[]> &&
           ((Extents == kDynamic || Other == kDynamic || Extents == Other) &&
            ...)) constexpr View(const View<U, Other...>&
                                     v) noexcept  // NOLINT: a view of the same elements
      : View(v.data(), v.shape(), v.strides()) {}

  // extent(d) is a constant expression for a static extent.
  static constexpr Index static_extent(std::size_t d) noexcept {
    constexpr std::array<Index, kRank> extents{Extents...};
    return extents[d];
  }
  constexpr Index extent(std::size_t d) const noexcept {
    if constexpr (kDynamicExtents > 0) {
      if (static_extent(d) == kDynamic) return extents_[place(d)];
    }
    return static_extent(d);
  }
  constexpr Index stride(std::size_t d) const noexcept { return strides_[d]; }
  constexpr Shape shape() const noexcept {
    Shape shape{};
    for (std::size_t d = 0; d < kRank; ++d) shape[d] = extent(d);
    return shape;
  }
  constexpr const Shape& strides() const noexcept { return strides_; }
  constexpr T* data() const noexcept { return data_; }

  constexpr Index size() const noexcept {
    Index n = 1;
    for (std::size_t d = 0; d < kRank; ++d) n *= extent(d);
    return n;
  }
  constexpr bool is_contiguous() const noexcept {
    Index stride = 1;
    for (std::size_t d = kRank; d-- > 0;) {
      if (extent(d) != 1 && strides_[d] != stride) return false;
      stride *= extent(d);
    }
    return true;
  }

  template <std::convertible_to<Index>... Is>
  requires(sizeof...(Is) == kRank) constexpr T& operator()(Is... is) const noexcept {
    const Shape index{static_cast<Index>(is)...};
    Index offset = 0;
    for (std::size_t d = 0; d < kRank; ++d) {
      NIBBLE_ASSERT(index[d] >= 0 && index[d] < extent(d));
      offset += index[d] * strides_[d];
    }
    return data_[offset];
  }

  // The sub-tensor at index i of the first dimension: for rank 2, a row.
  constexpr auto operator[](Index i) const noexcept requires(kRank >= 2) {
    NIBBLE_ASSERT(i >= 0 && i < extent(0));
    return drop_first(i, std::make_index_sequence<kRank - 1>{});
  }

  // Rows [first, first + count) of the first dimension.
  constexpr auto rows(Index first, Index count) const noexcept requires(kRank >= 1) {
    NIBBLE_ASSERT(first >= 0 && count >= 0 && first <= extent(0) && count <= extent(0) - first);
    return with_first(first, count, std::make_index_sequence<kRank - 1>{});
  }

 private:
  template <std::size_t... Ds>
  constexpr auto drop_first(Index i, std::index_sequence<Ds...>) const noexcept {
    return View<T, static_extent(Ds + 1)...>(data_ + i * strides_[0],
                                             std::array<Index, kRank - 1>{extent(Ds + 1)...},
                                             std::array<Index, kRank - 1>{strides_[Ds + 1]...});
  }
  template <std::size_t... Ds>
  constexpr auto with_first(Index first, Index count, std::index_sequence<Ds...>) const noexcept {
    Shape shape = this->shape();
    shape[0] = count;
    return View<T, kDynamic, static_extent(Ds + 1)...>(data_ + first * strides_[0], shape,
                                                       strides_);
  }
  // Where dynamic extent d is stored: those before it that are dynamic, too.
  static constexpr std::size_t place(std::size_t d) noexcept {
    std::size_t n = 0;
    for (std::size_t before = 0; before < d; ++before) n += static_extent(before) == kDynamic;
    return n;
  }
  constexpr void set_extents(const Shape& shape) noexcept {
    for (std::size_t d = 0; d < kRank; ++d) {
      if constexpr (kDynamicExtents > 0) {
        if (static_extent(d) == kDynamic) extents_[place(d)] = shape[d];
      }
      NIBBLE_ASSERT(extent(d) == shape[d]);
    }
  }

  // The extents that are not static: a view of static shape has none.
  static constexpr std::size_t kDynamicExtents =
      (std::size_t{0} + ... + std::size_t{Extents == kDynamic});

  struct NoExtents {};

  T* data_ = nullptr;
  [[no_unique_address]] std::conditional_t<kDynamicExtents == 0, NoExtents,
                                           std::array<Index, kDynamicExtents>>
      extents_{};
  Shape strides_{};
};

template <class T>
using VectorView = View<T, kDynamic>;
template <class T>
using MatrixView = View<T, kDynamic, kDynamic>;  // (rows, columns)

}}  // namespace nibble::NIBBLE_ABI
