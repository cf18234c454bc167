// SPDX-License-Identifier: Apache-2.0
//
// Levels: targets between or beyond those of Highway, for instructions that Highway has no target
// for. A level has a base, the target of Highway's whose operations it uses; its functions are
// compiled with more instructions than those of the base. Of the kernels it has those that gain
// from them; the base's stand in for all others.
//
// What a level consists of:
//   its name               NIBBLE_ALL_TARGETS in simd/target.hpp, at the place that says how good
//   it is its bit, and where it is compiled here its namespace and the compiler's name of its
//   instructions             kernels/target-inl.h the files that are compiled for it
//   kernels/kernels-inl.h its row in the tables of kernels simd/dispatch-inl.hpp whether the
//   machine has it                                            simd/detect.hpp
#pragma once

#include "hwy/detect_targets.h"

// Bits for NIBBLE_TARGETS. Highway 1.3 reserves them and uses them for nothing.
// NEON and dot products of 8-bit integers (sdot): Cortex-A55 and A76, Raspberry Pi 5, most phones
// since 2018. Highway's own target with dot products, NEON_BF16, asks for bf16 as well, and for GCC
// 13.2 or Clang 17.
#define NIBBLE_NEON_DOT (1LL << 27)

// Of the bits of all levels those that this compiler has for this machine, whose baseline does not
// include them anyway, and which simd/detect.hpp can see.
#if HWY_ARCH_ARM_A64 && HWY_OS_LINUX && HWY_HAVE_RUNTIME_DISPATCH && \
    !defined(__ARM_FEATURE_DOTPROD) && !defined(__ARM_FEATURE_SVE)
#define NIBBLE_ATTAINABLE_LEVELS NIBBLE_NEON_DOT
#else
#define NIBBLE_ATTAINABLE_LEVELS 0LL
#endif
