// SPDX-License-Identifier: Apache-2.0

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_WHICH_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_WHICH_INL_H_
#undef NIBBLE_KERNELS_WHICH_INL_H_
#else
#define NIBBLE_KERNELS_WHICH_INL_H_
#endif

#include <boost/preprocessor/stringize.hpp>
#include <string_view>

#include "hwy/highway.h"
#include "nibble/kernels/which.hpp"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {

template <>
struct Impl<kernels::WhichTarget> {
  NIBBLE_LAZY static simd::Target run() {
    // From the name of the namespace that this code is in, not from the dispatcher's state.
    constexpr std::string_view kNamespace =
        BOOST_PP_STRINGIZE(NIBBLE_TARGET_NAMESPACE);  // "N_AVX2"
    return *simd::target_from_name(kNamespace.substr(2));
  }
};

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
