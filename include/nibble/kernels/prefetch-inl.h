// SPDX-License-Identifier: Apache-2.0
//
// Fetching ahead across rows. The rows of a matrix are mostly next to each other, and a kernel that
// computes on one has time to fetch the next, though it does not know of it.

#if defined(NIBBLE_KERNELS_PREFETCH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_PREFETCH_INL_H_
#undef NIBBLE_KERNELS_PREFETCH_INL_H_
#else
#define NIBBLE_KERNELS_PREFETCH_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "nibble/simd/impl.hpp"

HWY_BEFORE_NAMESPACE();
namespace nibble::inline NIBBLE_ABI::HWY_NAMESPACE {

// Fetches the cache line of x[i], which may be beyond what x points into: hence no pointer
// arithmetic. An address that does not exist is ignored.
HWY_INLINE void prefetch(const float* x, size_t i) {
  const auto address = reinterpret_cast<std::uintptr_t>(x) + i * sizeof(float);
  hwy::Prefetch(reinterpret_cast<const char*>(address));
}

}  // namespace nibble::inline NIBBLE_ABI::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
