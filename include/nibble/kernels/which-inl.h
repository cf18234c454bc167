// SPDX-License-Identifier: Apache-2.0

#if defined(NIBBLE_KERNELS_WHICH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_WHICH_INL_H_
#undef NIBBLE_KERNELS_WHICH_INL_H_
#else
#define NIBBLE_KERNELS_WHICH_INL_H_
#endif

#include "hwy/highway.h"
#include "nibble/kernels/which.hpp"

HWY_BEFORE_NAMESPACE();
namespace nibble::inline NIBBLE_ABI::HWY_NAMESPACE {

template <>
struct Impl<kernels::WhichTarget> {
  static simd::Target run() {
    // Worked out from HWY_TARGET, the macro that chose this code, not from the dispatcher's state.
#define NIBBLE_WHICH(r, data, name) \
  if constexpr (HWY_TARGET == BOOST_PP_CAT(HWY_, name)) return simd::Target::name;
    BOOST_PP_SEQ_FOR_EACH(NIBBLE_WHICH, _, NIBBLE_ALL_TARGETS)
#undef NIBBLE_WHICH
  }
};

}  // namespace nibble::inline NIBBLE_ABI::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
