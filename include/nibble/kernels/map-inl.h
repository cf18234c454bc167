// SPDX-License-Identifier: Apache-2.0
//
// map: applies a function of vectors to arrays, element by element. The function is an object whose
// call operator is always inlined, not a lambda: GCC 12 does not inline lambdas in target
// namespaces.

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_MAP_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_MAP_INL_H_
#undef NIBBLE_KERNELS_MAP_INL_H_
#else
#define NIBBLE_KERNELS_MAP_INL_H_
#endif

#include "hwy/highway.h"
#include "nibble/simd/impl.hpp"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// out[i] = f(d, in[i]...), i < n. `out` may be one of the inputs; no alignment is needed, and
// nothing beyond n is read or written.
template <class F, class... In>
HWY_INLINE void map(const F& f, float* out, Index n, const In*... in) {
  const hn::ScalableTag<float> d;
  const auto size = static_cast<size_t>(n);
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= size; i += lanes) {
    hn::StoreU(f(d, hn::LoadU(d, in + i)...), d, out + i);
  }
  if (i < size) {
    hn::StoreN(f(d, hn::LoadN(d, in + i, size - i)...), d, out + i, size - i);
  }
}

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
