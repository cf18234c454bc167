// SPDX-License-Identifier: Apache-2.0

#if defined(NIBBLE_KERNELS_ACTIVATION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_ACTIVATION_INL_H_
#undef NIBBLE_KERNELS_ACTIVATION_INL_H_
#else
#define NIBBLE_KERNELS_ACTIVATION_INL_H_
#endif

#include "hwy/highway.h"
#include "nibble/kernels/activation.hpp"

HWY_BEFORE_NAMESPACE();
namespace nibble::inline NIBBLE_ABI::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class D, class V = hn::Vec<D>>
HWY_INLINE V activate(kernels::Identity, D, V x) {
  return x;
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE V activate(kernels::Silu, D d, V x) {
  // 1 / (1 + exp(-x)) as exp(x) / (1 + exp(x)) would overflow; see math-inl.h
  return hn::Mul(x, hn::Set(d, 2.0f));
}

template <class Activation>
struct Impl<kernels::Activate<Activation>> {
  static void run(const float* HWY_RESTRICT x, float* out, Index n) {
    const hn::ScalableTag<float> d;
    const auto size = static_cast<size_t>(n);
    const size_t lanes = hn::Lanes(d);
    size_t i = 0;
    for (; i + lanes <= size; i += lanes) {
      hn::StoreU(activate(Activation{}, d, hn::LoadU(d, x + i)), d, out + i);
    }
    if (i < size) {
      hn::StoreN(activate(Activation{}, d, hn::LoadN(d, x + i, size - i)), d, out + i, size - i);
    }
  }
};

}  // namespace nibble::inline NIBBLE_ABI::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
