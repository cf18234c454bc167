// SPDX-License-Identifier: Apache-2.0
//
// A NIBBLE_USER_KERNELS file: included once per target, after nibble's own kernels.

#if defined(TESTS_USER_KERNELS_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef TESTS_USER_KERNELS_INL_H_
#undef TESTS_USER_KERNELS_INL_H_
#else
#define TESTS_USER_KERNELS_INL_H_
#endif

#include "kernels/user_kernels.hpp"
#include "nibble/kernels/matmul-inl.h"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {

HWY_INLINE VF32 finish(user::SquaredRelu, DF32 d, VF32 v, const kernels::EpilogueArgs& args,
                       Outputs at) {
  v = hn::Add(v, hn::LoadN(d, args.bias + at.column, at.count));
  v = hn::Max(v, hn::Zero(d));
  return hn::Mul(v, v);
}

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
