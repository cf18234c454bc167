// SPDX-License-Identifier: Apache-2.0
//
// The macros that per-target files use, set for the target that is being compiled. For each of
// Highway's targets, its first per-target file sets them. For a level, kernels-inl.h includes this
// file with NIBBLE_NEXT_LEVEL defined as the bit of the level.
//   NIBBLE_TARGET_NAMESPACE    the target's namespace in nibble; that of Highway's operations is
//                              hwy::HWY_NAMESPACE, for a level that of its base
//   NIBBLE_BEFORE_NAMESPACE()  these two enclose the namespace, so that its functions may use the
//   NIBBLE_AFTER_NAMESPACE()   target's instructions
//   NIBBLE_ATTR                the same for a lambda
//   NIBBLE_TARGET_TOGGLE       defined for every second target: for include guards
//   NIBBLE_IS_LEVEL            1 for a level; its base has been compiled just before
//   NIBBLE_IS_NEON             1 for NEON, with any of its extensions
//   NIBBLE_HAVE_DOTPROD        1 if NEON's dot products of 8-bit integers can be used
//   NIBBLE_HAVE_I8MM           1 if its products of matrices of them, and its dot products of bf16,
//                              can be used too
//   NIBBLE_HAVE_TILES          1 if registers of tiles can be used (AMX, or its model)
//   NIBBLE_HAVE_SIZELESS_VECTORS  1 if the compiler does not know the size of vectors, which then
//                              cannot be members or in arrays (SVE, RISC-V): see registers-inl.h

#if defined(NIBBLE_NEXT_LEVEL)
#define NIBBLE_TARGET_BEGINS
#elif defined(NIBBLE_KERNELS_TARGET_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_TARGET_INL_H_
#undef NIBBLE_KERNELS_TARGET_INL_H_
#else
#define NIBBLE_KERNELS_TARGET_INL_H_
#endif
#define NIBBLE_TARGET_BEGINS
#endif

#ifdef NIBBLE_TARGET_BEGINS
#undef NIBBLE_TARGET_BEGINS

#include "nibble/core/exact_math.hpp"
// Kernels keep NaN, and round as they say, with -ffast-math too: compilers then see the operations
// of Highway and the intrinsics below these in exact code.
#if NIBBLE_HAVE_FAST_MATH && !defined(NIBBLE_KERNELS_EXACT_MATH)
#define NIBBLE_KERNELS_EXACT_MATH
#if defined(__clang__)
#error \
    "nibble: Clang compiles vector code wrongly with -ffast-math or -Ofast: NaN would go unnoticed. Compile this file with -fno-fast-math behind that option; in the split form, the file that defines NIBBLE_IMPLEMENTATION"
#elif defined(HWY_HIGHWAY_INCLUDED) || defined(_XMMINTRIN_H_INCLUDED) || \
    defined(_AARCH64_NEON_H_) || defined(_GCC_ARM_NEON_H)
#error \
    "nibble: this file is compiled with -ffast-math or -Ofast. Include nibble before hwy/highway.h and before what includes headers of intrinsics (<immintrin.h>, <arm_neon.h>; <random> with -msse3 and better), or add -fno-fast-math behind that option: kernels need exact arithmetic"
#endif
#endif
NIBBLE_EXACT_MATH_BEGIN
#include "hwy/highway.h"
NIBBLE_EXACT_MATH_END
#include "nibble/simd/levels.hpp"

#if defined(NIBBLE_NEXT_LEVEL) && NIBBLE_NEXT_LEVEL == NIBBLE_AMX
// Has only a file of its own: for all others it is still the base's turn.
#elif !defined(NIBBLE_TARGET_NAMESPACE)
// The first target: the toggle stays undefined.
#elif defined(NIBBLE_TARGET_TOGGLE)
#undef NIBBLE_TARGET_TOGGLE
#else
#define NIBBLE_TARGET_TOGGLE
#endif

#undef NIBBLE_LEVEL_ADDS
#undef NIBBLE_TARGET_NAMESPACE
#undef NIBBLE_BEFORE_NAMESPACE
#undef NIBBLE_AFTER_NAMESPACE
#undef NIBBLE_ATTR
#undef NIBBLE_IS_LEVEL
#undef NIBBLE_HAVE_DOTPROD
#undef NIBBLE_HAVE_I8MM
#undef NIBBLE_HAVE_TILES
#undef NIBBLE_HAVE_SIZELESS_VECTORS
#undef NIBBLE_IS_NEON

#if HWY_ARCH_ARM && (HWY_TARGET & HWY_ALL_NEON)
#define NIBBLE_IS_NEON 1
#else
#define NIBBLE_IS_NEON 0
#endif
#if (HWY_TARGET & HWY_ALL_SVE) || HWY_TARGET == HWY_RVV
#define NIBBLE_HAVE_SIZELESS_VECTORS 1
#else
#define NIBBLE_HAVE_SIZELESS_VECTORS 0
#endif

#ifndef NIBBLE_NEXT_LEVEL

#define NIBBLE_TARGET_NAMESPACE HWY_NAMESPACE
#define NIBBLE_BEFORE_NAMESPACE() NIBBLE_EXACT_MATH_BEGIN HWY_BEFORE_NAMESPACE()
#define NIBBLE_AFTER_NAMESPACE() NIBBLE_EXACT_MATH_END HWY_AFTER_NAMESPACE()
#define NIBBLE_ATTR HWY_ATTR
#define NIBBLE_IS_LEVEL 0
#define NIBBLE_HAVE_TILES 0
#if HWY_ARCH_ARM_A64 && (HWY_TARGET & HWY_ALL_NEON) && \
    (HWY_TARGET == HWY_NEON_BF16 || defined(__ARM_FEATURE_DOTPROD))
#define NIBBLE_HAVE_DOTPROD 1
#else
#define NIBBLE_HAVE_DOTPROD 0
#endif
#if NIBBLE_HAVE_DOTPROD && defined(__ARM_FEATURE_MATMUL_INT8) && \
    defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define NIBBLE_HAVE_I8MM 1
#else
#define NIBBLE_HAVE_I8MM 0
#endif

#elif NIBBLE_NEXT_LEVEL == NIBBLE_AMX

#define NIBBLE_TARGET_NAMESPACE N_AMX
#define NIBBLE_IS_LEVEL 1
#define NIBBLE_HAVE_TILES 1
#define NIBBLE_HAVE_DOTPROD 0
#define NIBBLE_HAVE_I8MM 0
#ifdef NIBBLE_TILE_MODEL
#define NIBBLE_BEFORE_NAMESPACE() NIBBLE_EXACT_MATH_BEGIN HWY_BEFORE_NAMESPACE()
#define NIBBLE_AFTER_NAMESPACE() NIBBLE_EXACT_MATH_END HWY_AFTER_NAMESPACE()
#define NIBBLE_ATTR HWY_ATTR
#else
#undef NIBBLE_LEVEL_STR
#ifdef HWY_TARGET_STR
#define NIBBLE_LEVEL_STR HWY_TARGET_STR ",amx-tile,amx-int8,amx-bf16"
#else
#define NIBBLE_LEVEL_STR "amx-tile,amx-int8,amx-bf16"
#endif
#endif

#else

#define NIBBLE_IS_LEVEL 1
#define NIBBLE_HAVE_TILES 0

// The instructions of a level must include those of its base and of the command line; otherwise the
// operations of the base cannot be inlined. (GCC 12 inlines sdot only with arch=. Where the command
// line has sdot, it has this architecture or a later one.)
#if NIBBLE_NEXT_LEVEL == NIBBLE_NEON_DOT
#define NIBBLE_TARGET_NAMESPACE N_NEON_DOT
#define NIBBLE_HAVE_I8MM 0
#define NIBBLE_LEVEL_ADDS "+dotprod"
#elif NIBBLE_NEXT_LEVEL == NIBBLE_NEON_I8MM
#define NIBBLE_TARGET_NAMESPACE N_NEON_I8MM
#define NIBBLE_HAVE_I8MM 1
#define NIBBLE_LEVEL_ADDS "+dotprod+i8mm+bf16"
#else
#error "nibble: NIBBLE_NEXT_LEVEL is not a level"
#endif
#define NIBBLE_HAVE_DOTPROD 1
#undef NIBBLE_LEVEL_ARCH
#undef NIBBLE_LEVEL_FP16
#undef NIBBLE_LEVEL_BASE
#ifdef __ARM_FEATURE_DOTPROD
#define NIBBLE_LEVEL_ARCH
#else
#define NIBBLE_LEVEL_ARCH "arch=armv8.2-a"
#endif
#ifdef __ARM_FEATURE_FP16_VECTOR_ARITHMETIC
#define NIBBLE_LEVEL_FP16 "+fp16"
#else
#define NIBBLE_LEVEL_FP16
#endif
#ifdef HWY_TARGET_STR
#define NIBBLE_LEVEL_BASE HWY_TARGET_STR
#else
#define NIBBLE_LEVEL_BASE
#endif
#undef NIBBLE_LEVEL_STR
#define NIBBLE_LEVEL_STR NIBBLE_LEVEL_ARCH NIBBLE_LEVEL_ADDS NIBBLE_LEVEL_FP16 NIBBLE_LEVEL_BASE
#endif

#if NIBBLE_IS_LEVEL && !defined(NIBBLE_BEFORE_NAMESPACE)
#define NIBBLE_BEFORE_NAMESPACE()       \
  NIBBLE_EXACT_MATH_BEGIN               \
  HWY_PUSH_ATTRIBUTES(NIBBLE_LEVEL_STR) \
  static_assert(true, "For requiring trailing semicolon")
#define NIBBLE_AFTER_NAMESPACE() \
  HWY_POP_ATTRIBUTES             \
  NIBBLE_EXACT_MATH_END          \
  static_assert(true, "For requiring trailing semicolon")
#define NIBBLE_ATTR __attribute__((target(NIBBLE_LEVEL_STR)))

#endif
#endif  // NIBBLE_TARGET_BEGINS
