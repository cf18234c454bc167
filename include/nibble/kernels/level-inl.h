// SPDX-License-Identifier: Apache-2.0
//
// The per-target code of one level (simd/levels.hpp). kernels-inl.h includes this file once for
// each level, with NIBBLE_NEXT_LEVEL defined as the bit of the level.

#include "nibble/kernels/target-inl.h"
#undef NIBBLE_NEXT_LEVEL

#if defined(__GNUC__) && !defined(__clang__)  // as in kernels-inl.h
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"
#endif

#include "nibble/kernels/attention-inl.h"
#include "nibble/kernels/matmul-inl.h"
#include "nibble/kernels/matmul_input-inl.h"
#include "nibble/kernels/matmul_sparse-inl.h"
#include "nibble/kernels/which-inl.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#ifdef NIBBLE_USER_KERNELS
#include NIBBLE_USER_KERNELS
#endif
