// SPDX-License-Identifier: Apache-2.0
#include "nibble/core/view.hpp"

#include <numeric>
#include <type_traits>
#include <vector>

#include "doctest/doctest.h"

namespace view_test {

using nibble::Dim;
using nibble::Index;
using nibble::kDynamic;
using nibble::MatrixView;
using nibble::VectorView;
using nibble::View;

namespace {

std::vector<int> iota(int n) {
  std::vector<int> v(static_cast<std::size_t>(n));
  std::iota(v.begin(), v.end(), 0);
  return v;
}

}  // namespace

TEST_CASE("sizes of views and dims are what the layout says") {
  static_assert(std::is_empty_v<Dim<64>> && sizeof(Dim<>) == sizeof(Index));
  static_assert(sizeof(VectorView<float>) == sizeof(float*) + 2 * sizeof(Index));
  static_assert(sizeof(View<float, 2, kDynamic, 4>) == sizeof(float*) + 4 * sizeof(Index));
  static_assert(sizeof(View<float, 2, 4>) == sizeof(float*) + 2 * sizeof(Index));
  static_assert(std::is_trivially_copyable_v<MatrixView<const float>>);
  static_assert(sizeof(Index) == 8 && std::is_signed_v<Index>);
  CHECK(Dim<64>{} == 64);
}

TEST_CASE("dims stay static where they can") {
  static_assert(std::is_same_v<decltype(Dim<8>{} * Dim<4>{}), Dim<32>>);
  static_assert(std::is_same_v<decltype(Dim<8>{} / Dim<4>{}), Dim<2>>);
  static_assert(std::is_same_v<decltype(Dim<8>{} + Dim<4>{}), Dim<12>>);
  static_assert(std::is_same_v<decltype(Dim<8>{} * Dim<>{4}), Dim<>>);
  static_assert(Dim<8>::kIsStatic && !Dim<>::kIsStatic);
  CHECK(Dim<8>{} * Dim<>{3} == 24);
  CHECK(Dim<>{9} / Dim<2>{} == 4);
  CHECK(Dim<>{9} + Dim<2>{} == 11);
}

TEST_CASE("a view without strides is row-major, whatever is static") {
  auto data = iota(24);
  const View<int, kDynamic, kDynamic, kDynamic> dynamic(data.data(), 2, 3, 4);
  const View<int, 2, 3, 4> fixed(data.data(), 2, 3, 4);
  const View<int, kDynamic, 3, kDynamic> mixed(data.data(), 2, Dim<3>{}, 4);
  for (Index i = 0; i < 2; ++i) {
    for (Index j = 0; j < 3; ++j) {
      for (Index k = 0; k < 4; ++k) {
        const int expected = static_cast<int>(i * 12 + j * 4 + k);
        CHECK(dynamic(i, j, k) == expected);
        CHECK(fixed(i, j, k) == expected);
        CHECK(mixed(i, j, k) == expected);
      }
    }
  }
  CHECK(dynamic.size() == 24);
  CHECK(fixed.size() == 24);
  CHECK(mixed.stride(0) == 12);
  CHECK(mixed.stride(2) == 1);
  CHECK(mixed.is_contiguous());
  static_assert(decltype(fixed)::static_extent(1) == 3);
  static_assert(decltype(mixed)::static_extent(0) == kDynamic);
  fixed(1, 2, 3) = -1;
  CHECK(data[23] == -1);
}

TEST_CASE("strides: a padded matrix, its transpose, a broadcast") {
  auto data = iota(20);
  const MatrixView<int> padded(data.data(), {4, 3}, {5, 1});
  CHECK(padded(0, 2) == 2);
  CHECK(padded(3, 0) == 15);
  CHECK(!padded.is_contiguous());
  CHECK(padded.size() == 12);
  const MatrixView<int> transposed(data.data(), {3, 4}, {1, 5});
  for (Index i = 0; i < 4; ++i) {
    for (Index j = 0; j < 3; ++j) CHECK(&transposed(j, i) == &padded(i, j));
  }
  const MatrixView<int> broadcast(data.data() + 7, {2, 3}, {0, 1});
  CHECK(broadcast(0, 1) == 8);
  CHECK(broadcast(1, 1) == 8);
  // A dimension of one element may have any stride.
  CHECK(MatrixView<int>(data.data(), {1, 3}, {99, 1}).is_contiguous());
}

TEST_CASE("views convert to const elements and between static and dynamic extents, not back") {
  auto data = iota(6);
  const View<int, 2, 3> fixed(data.data(), 2, 3);
  const MatrixView<const int> view = fixed;
  CHECK(view.data() == data.data());
  CHECK(view(1, 2) == 5);
  const View<int, kDynamic, 3> again = MatrixView<int>(fixed);
  CHECK(again.extent(0) == 2);
  CHECK(again(1, 1) == 4);
  static_assert(!std::is_convertible_v<MatrixView<const int>, MatrixView<int>>);
  static_assert(!std::is_convertible_v<View<int, 2, 3>, View<int, 2, 4>>);
  static_assert(!std::is_convertible_v<VectorView<int>, MatrixView<int>>);
  static_assert(!std::is_convertible_v<VectorView<int>, VectorView<long>>);
  struct Base {};
  struct Derived : Base {
    int more;
  };  // would use the wrong element size
  static_assert(!std::is_convertible_v<VectorView<Derived>, VectorView<Base>>);
}

TEST_CASE("rows and sub-tensors keep strides and static extents") {
  auto data = iota(40);
  const View<int, kDynamic, 4> m(data.data(), {8, 4}, {5, 1});
  const auto row = m[3];
  static_assert(std::is_same_v<decltype(row), const View<int, 4>>);
  CHECK(row.data() == data.data() + 15);
  CHECK(row(2) == 17);
  const auto middle = m.rows(2, 3);
  static_assert(std::is_same_v<decltype(middle), const View<int, kDynamic, 4>>);
  CHECK(middle.extent(0) == 3);
  CHECK(middle(0, 0) == 10);
  CHECK(middle(2, 3) == 23);
  CHECK(m.rows(8, 0).size() == 0);

  const View<int, 2, 4, 5> cube(data.data(), 2, 4, 5);
  static_assert(std::is_same_v<decltype(cube[0][0]), View<int, 5>>);
  CHECK(cube[1][2](3) == cube(1, 2, 3));
  const auto first = cube.rows(0, 1);  // the number of rows is no longer static
  static_assert(std::is_same_v<decltype(first), const View<int, kDynamic, 4, 5>>);
  CHECK(first.size() == 20);
  CHECK(VectorView<int>(data.data(), 40).rows(30, 5)(4) == 34);
}

TEST_CASE("empty views") {
  const MatrixView<float> none;
  CHECK(none.size() == 0);
  CHECK(none.data() == nullptr);
  CHECK(MatrixView<float>(nullptr, 0, 7).size() == 0);
}

TEST_CASE("views work in constant expressions") {
  constexpr int sum = [] {
    int data[6] = {1, 2, 3, 4, 5, 6};
    const View<int, 2, 3> v(data, 2, 3);
    v(0, 0) = 10;
    return v(0, 0) + v[1](2) + v.rows(1, 1)(0, 0);
  }();
  CHECK(sum == 10 + 6 + 4);
}

}  // namespace view_test
