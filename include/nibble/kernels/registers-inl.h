// SPDX-License-Identifier: Apache-2.0
//
// Vectors as members and array elements, and small matrices of vectors that stay in registers.

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_REGISTERS_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_REGISTERS_INL_H_
#undef NIBBLE_KERNELS_REGISTERS_INL_H_
#else
#define NIBBLE_KERNELS_REGISTERS_INL_H_
#endif

#include "hwy/highway.h"
#include "nibble/simd/impl.hpp"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The vectors of 32-bit numbers for data in panels of 16 lanes: a vector is a panel or a fraction
// of one. Where the size of vectors is not known at compile time, it has 4 lanes.
#if NIBBLE_HAVE_SIZELESS_VECTORS
template <class T>
using PanelTag = hn::FixedTag<T, 4>;
#else
template <class T>
using PanelTag = hn::CappedTag<T, 16>;
#endif

// A vector that can be a member or an array element. Vector types without a size can be neither;
// for them the lanes are kept in memory. D must have a number of lanes that is known at compile
// time. (The constructor is written out because GCC and Clang give an implicit one no target.)
template <class D>
class Register {
 public:
  using V = hn::Vec<D>;

  HWY_INLINE Register() {}
#if NIBBLE_HAVE_SIZELESS_VECTORS
  HWY_INLINE V get() const { return hn::LoadU(D(), lanes_); }
  HWY_INLINE void set(V v) { hn::StoreU(v, D(), lanes_); }

 private:
  hn::TFromD<D> lanes_[hn::MaxLanes(D())];
#else
  HWY_INLINE V get() const { return v_; }
  HWY_INLINE void set(V v) { v_ = v; }

 private:
  V v_;
#endif
};

// A matrix of kRows * kColumns vectors. Loops over them must have constant bounds and be unrolled.
template <class D, int kRows, int kColumns>
class RegisterTile {
 public:
  using V = hn::Vec<D>;
  using T = hn::TFromD<D>;
  using Row = RegisterTile<D, 1, kColumns>;

  HWY_INLINE RegisterTile() {}
  HWY_INLINE V get(int r, int c) const { return v_[r][c].get(); }
  HWY_INLINE void set(int r, int c, V v) { v_[r][c].set(v); }

  HWY_INLINE void fill(V v) {
    HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) { set(r, c, v); }
    }
  }
  // Rows are row_stride elements apart; the vectors of a row are contiguous.
  HWY_INLINE void load(const T* p, Index row_stride) {
    HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) {
        set(r, c, hn::LoadU(D(), p + r * row_stride + c * kLanes));
      }
    }
  }
  HWY_INLINE void store(T* p, Index row_stride) const {
    HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) {
        hn::StoreU(get(r, c), D(), p + r * row_stride + c * kLanes);
      }
    }
  }
  // Row r += x * w, for each column.
  HWY_INLINE void multiply_add(int r, V x, const Row& w) {
    HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) {
      set(r, c, hn::MulAdd(x, w.get(0, c), get(r, c)));
    }
  }

 private:
  static constexpr Index kLanes = static_cast<Index>(hn::MaxLanes(D()));
  Register<D> v_[kRows][kColumns];
};

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
