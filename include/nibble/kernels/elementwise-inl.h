// SPDX-License-Identifier: Apache-2.0

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_ELEMENTWISE_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_ELEMENTWISE_INL_H_
#undef NIBBLE_KERNELS_ELEMENTWISE_INL_H_
#else
#define NIBBLE_KERNELS_ELEMENTWISE_INL_H_
#endif

#include <cstring>

#include "hwy/highway.h"
#include "nibble/kernels/elementwise.hpp"
#include "nibble/kernels/float16-inl.h"
#include "nibble/kernels/map-inl.h"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <>
struct Impl<kernels::Add> {
  struct Map {
    template <class D, class V>
    HWY_INLINE V operator()(D, V a, V b) const {
      return hn::Add(a, b);
    }
  };
  NIBBLE_LAZY static void run(const float* a, const float* b, float* out, Index n) {
    map(Map{}, out, n, a, b);
  }
};

template <>
struct Impl<kernels::Multiply> {
  struct Map {
    template <class D, class V>
    HWY_INLINE V operator()(D, V a, V b) const {
      return hn::Mul(a, b);
    }
  };
  NIBBLE_LAZY static void run(const float* a, const float* b, float* out, Index n) {
    map(Map{}, out, n, a, b);
  }
};

template <>
struct Impl<kernels::Scale> {
  struct Map {
    float factor;
    template <class D, class V>
    HWY_INLINE V operator()(D d, V x) const {
      return hn::Mul(x, hn::Set(d, factor));
    }
  };
  NIBBLE_LAZY static void run(const float* x, float factor, float* out, Index n) {
    map(Map{factor}, out, n, x);
  }
};

template <>
struct Impl<kernels::AddScaled> {
  struct Map {
    float factor;
    template <class D, class V>
    HWY_INLINE V operator()(D d, V x, V out) const {
      return hn::MulAdd(x, hn::Set(d, factor), out);
    }
  };
  NIBBLE_LAZY static void run(const float* x, float factor, float* out, Index n) {
    map(Map{factor}, out, n, x, static_cast<const float*>(out));
  }
};

template <>
struct Impl<kernels::ToF32<float>> {
  NIBBLE_LAZY static void run(const float* x, float* out, Index n) {
    if (n > 0) std::memcpy(out, x, static_cast<size_t>(n) * sizeof(float));
  }
};

template <class T>
struct Impl<kernels::ToF32<T>> {
  static void run(const T* x, float* out, Index n) {
    const hn::ScalableTag<float> d;
    const hn::Rebind<uint16_t, decltype(d)> d16;
    const auto* bits = reinterpret_cast<const uint16_t*>(x);
    const auto size = static_cast<size_t>(n);
    const size_t lanes = hn::Lanes(d);
    size_t i = 0;
    for (; i + lanes <= size; i += lanes) {
      hn::StoreU(widen(T{}, d, hn::LoadU(d16, bits + i)), d, out + i);
    }
    if (i < size) {
      hn::StoreN(widen(T{}, d, hn::LoadN(d16, bits + i, size - i)), d, out + i, size - i);
    }
  }
};

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
