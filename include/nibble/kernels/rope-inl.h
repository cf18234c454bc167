// SPDX-License-Identifier: Apache-2.0

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_ROPE_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_ROPE_INL_H_
#undef NIBBLE_KERNELS_ROPE_INL_H_
#else
#define NIBBLE_KERNELS_ROPE_INL_H_
#endif

#include <algorithm>

#include "hwy/highway.h"
#include "nibble/kernels/rope.hpp"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

namespace rope_detail {

// The sines of the angle that a rotation, or with kBack its inverse, turns by.
template <bool kBack, class V>
HWY_INLINE V sine_to_turn(V s) {
  if constexpr (kBack) return hn::Neg(s);
  return s;
}

}  // namespace rope_detail

// Both styles keep a vector of cosines and one of sines in registers and rotate that part of every
// head.
template <bool kBack>
struct Impl<kernels::Rope<kernels::AdjacentPairs, kBack>> {
  static void run(float* x, Index n_heads, Index head_dim, Index rope_dim, const float* cos,
                  const float* sin) {
    const hn::ScalableTag<float> d;
    const size_t lanes = hn::Lanes(d);
    const auto size = static_cast<size_t>(rope_dim);
    for (size_t i = 0; i < size; i += lanes) {
      const size_t n = (std::min)(lanes, size - i);
      const auto c = hn::LoadN(d, cos + i / 2, n / 2);
      const auto s = rope_detail::sine_to_turn<kBack>(hn::LoadN(d, sin + i / 2, n / 2));
      const auto cc = hn::InterleaveWholeLower(d, c, c);
      const auto ss = hn::InterleaveWholeLower(d, hn::Neg(s), s);
      float* part = x + i;
      if (n == lanes) {
        for (Index head = 0; head < n_heads; ++head, part += head_dim) {
          hn::StoreU(turn(d, hn::LoadU(d, part), cc, ss), d, part);
        }
      } else {
        for (Index head = 0; head < n_heads; ++head, part += head_dim) {
          hn::StoreN(turn(d, hn::LoadN(d, part, n), cc, ss), d, part, n);
        }
      }
    }
  }

 private:
  template <class D, class V>
  static HWY_INLINE V turn(D d, V ab, V cc, V ss) {
    return hn::MulAdd(ab, cc, hn::Mul(hn::Reverse2(d, ab), ss));
  }
};

template <bool kBack>
struct Impl<kernels::Rope<kernels::HalfSplit, kBack>> {
  static void run(float* x, Index n_heads, Index head_dim, Index rope_dim, const float* cos,
                  const float* sin) {
    const hn::ScalableTag<float> d;
    const size_t lanes = hn::Lanes(d);
    const auto half = static_cast<size_t>(rope_dim / 2);
    for (size_t i = 0; i < half; i += lanes) {
      const size_t n = (std::min)(lanes, half - i);
      const auto c = hn::LoadN(d, cos + i, n);
      const auto s = rope_detail::sine_to_turn<kBack>(hn::LoadN(d, sin + i, n));
      float* part = x + i;
      if (n == lanes) {
        for (Index head = 0; head < n_heads; ++head, part += head_dim) {
          const auto a = hn::LoadU(d, part);
          const auto b = hn::LoadU(d, part + half);
          hn::StoreU(hn::NegMulAdd(b, s, hn::Mul(a, c)), d, part);
          hn::StoreU(hn::MulAdd(b, c, hn::Mul(a, s)), d, part + half);
        }
      } else {
        for (Index head = 0; head < n_heads; ++head, part += head_dim) {
          const auto a = hn::LoadN(d, part, n);
          const auto b = hn::LoadN(d, part + half, n);
          hn::StoreN(hn::NegMulAdd(b, s, hn::Mul(a, c)), d, part, n);
          hn::StoreN(hn::MulAdd(b, c, hn::Mul(a, s)), d, part + half, n);
        }
      }
    }
  }
};

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
