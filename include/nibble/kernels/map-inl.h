// SPDX-License-Identifier: Apache-2.0
//
// map: applies a function of vectors to arrays, element by element; for_vectors: what is more than
// that. Functions are objects whose call operator is always inlined, not lambdas: GCC 12 does not
// inline lambdas in target namespaces.

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

// How a function reads and writes arrays: a whole vector, or the first n lanes of one. Of the
// latter, the other lanes are loaded as zeros.
struct WholeVector {
  template <class D>
  HWY_INLINE hn::Vec<D> load(D d, const hn::TFromD<D>* p) const {
    return hn::LoadU(d, p);
  }
  template <class D>
  HWY_INLINE void store(hn::Vec<D> v, D d, hn::TFromD<D>* p) const {
    hn::StoreU(v, d, p);
  }
};
struct PartOfVector {
  size_t n;
  template <class D>
  HWY_INLINE hn::Vec<D> load(D d, const hn::TFromD<D>* p) const {
    return hn::LoadN(d, p, n);
  }
  template <class D>
  HWY_INLINE void store(hn::Vec<D> v, D d, hn::TFromD<D>* p) const {
    hn::StoreN(v, d, p, n);
  }
};

// Calls f(i, WholeVector) for each vector of D that n values have, and f(i, PartOfVector) for the
// rest, if there is one. Value i is the first of the vector.
template <class D, class F>
HWY_INLINE void for_vectors(D d, size_t n, const F& f) {
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) f(i, WholeVector{});
  if (i < n) f(i, PartOfVector{n - i});
}

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
