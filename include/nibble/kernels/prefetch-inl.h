// SPDX-License-Identifier: Apache-2.0
//
// Prefetching: into a chosen cache, and across rows.

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_PREFETCH_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_PREFETCH_INL_H_
#undef NIBBLE_KERNELS_PREFETCH_INL_H_
#else
#define NIBBLE_KERNELS_PREFETCH_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"
#include "nibble/kernels/tuning.hpp"
#include "nibble/simd/impl.hpp"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {

// Fetches the cache line at p. kLocality 0: into L1, as data that is used once; 2: into L2; 3: into
// all caches. (Compilers without the builtin: does nothing.) An address that does not exist is
// ignored. Highway's own prefetch is not used, because its header includes <memory>, which costs
// compile time.
template <int kLocality>
HWY_INLINE void prefetch(const std::byte* p) {
#if HWY_COMPILER_GCC || HWY_COMPILER_CLANG
  __builtin_prefetch(p, 0, kLocality);
#else
  (void)p;
#endif
}

// Fetches the kBytes at p, line by line.
template <int kLocality, Index kBytes>
HWY_INLINE void prefetch_lines(const std::byte* p) {
  HWY_UNROLL(64) for (Index i = 0; i < kBytes; i += 64) prefetch<kLocality>(p + i);
}
template <Index kBytes>
HWY_INLINE void prefetch_lines(Fetch into, const std::byte* p) {
  if (into == Fetch::once) {
    prefetch_lines<0, kBytes>(p);
  } else if (into == Fetch::l1) {
    prefetch_lines<3, kBytes>(p);
  } else if (into == Fetch::l2) {
    prefetch_lines<2, kBytes>(p);
  }
}

// Fetches the cache line of x[i], by default into all caches. The rows of a matrix are mostly next
// to each other in memory, and a kernel that computes on one row has time to fetch the next, though
// it does not know of it. x[i] may be beyond the array that x points into, hence no pointer
// arithmetic.
template <int kLocality = 3>
HWY_INLINE void prefetch(const float* x, size_t i) {
  const auto address = reinterpret_cast<std::uintptr_t>(x) + i * sizeof(float);
  prefetch<kLocality>(reinterpret_cast<const std::byte*>(address));
}

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
