// SPDX-License-Identifier: Apache-2.0
//
// Impl<Kernel>: the implementation of a kernel tag on each target. Declared here for all targets;
// the -inl.h files define it once per compiled target, in that target's namespace.
#pragma once

#include <boost/preprocessor/cat.hpp>

#include "nibble/core/view.hpp"
#include "nibble/simd/target.hpp"

namespace nibble { inline namespace NIBBLE_ABI {
#define NIBBLE_DECLARE_IMPL(r, data, name) \
  namespace BOOST_PP_CAT(N_, name) {       \
    template <class Kernel>                \
    struct Impl;                           \
  }
BOOST_PP_SEQ_FOR_EACH(NIBBLE_DECLARE_IMPL, _, NIBBLE_ALL_TARGETS)
#undef NIBBLE_DECLARE_IMPL
}}  // namespace nibble::NIBBLE_ABI
