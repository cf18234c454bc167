// SPDX-License-Identifier: Apache-2.0
//
// A NIBBLE_USER_KERNELS file: included once per target, after nibble's own kernels.

#if defined(TESTS_USER_KERNELS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TESTS_USER_KERNELS_INL_H_
#undef TESTS_USER_KERNELS_INL_H_
#else
#define TESTS_USER_KERNELS_INL_H_
#endif

#include "kernels/user_kernels.hpp"
#include "nibble/kernels/matmul-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace HWY_NAMESPACE {

HWY_INLINE VF32 finish(user::SquaredRelu, DF32 d, VF32 v, const kernels::EpilogueArgs& args,
                       Outputs at) {
  v = hn::Add(v, hn::LoadN(d, args.bias + at.column, at.count));
  v = hn::Max(v, hn::Zero(d));
  return hn::Mul(v, v);
}

}}}  // namespace nibble::NIBBLE_ABI::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
