// SPDX-License-Identifier: Apache-2.0
//
// Levels: targets for instructions that Highway has no target for. Each level has a base, which is
// one of Highway's targets. The code of a level uses the operations of its base, and is compiled
// with more instructions allowed. Only the kernels that gain from these instructions are compiled
// for a level; for all others the tables hold the base's function.
//
// A level consists of
//   - its name: NIBBLE_ALL_TARGETS in simd/target.hpp, where the order says how good it is;
//   - its bit, its base, and the condition under which it is compiled: in this file;
//   - its namespace and its instructions as the compiler names them: kernels/target-inl.h;
//   - a line that compiles it, and what is compiled for levels: kernels/kernels-inl.h;
//   - its row in the tables of kernels: simd/dispatch-inl.hpp;
//   - the test whether the machine can run it: simd/detect.hpp.
#pragma once

#include "hwy/detect_targets.h"

// Bits for NIBBLE_TARGETS. Highway 1.3 reserves them and does not use them.
// NEON with dot products of 8-bit integers (sdot): Cortex-A55 and A76, Raspberry Pi 5, most phones
// since 2018.
#define NIBBLE_NEON_DOT (1LL << 27)
#define NIBBLE_BASE_OF_NEON_DOT HWY_STATIC_TARGET
// NEON with products of matrices of 8-bit integers (smmla) and dot products of bf16 beside those:
// Neoverse V1 and N2, Cortex-A510 and A710 and later. (Highway's own target with dot products,
// NEON_BF16, lacks smmla, and needs GCC 13.2 or Clang 17.)
#define NIBBLE_NEON_I8MM (1LL << 25)
#define NIBBLE_BASE_OF_NEON_I8MM HWY_STATIC_TARGET

// AVX-512 with products of tiles of 8-bit integers and bf16 (AMX): Xeons since Sapphire Rapids. Not
// part of the baseline of any compiler flags, since a program has to ask the system for them
// (simd/permission.hpp). NIBBLE_TILE_MODEL, for tests: the quoted name of a file with a model of
// the registers, which runs everywhere, and only if this target is forced.
#define NIBBLE_AMX (1LL << 5)
#ifdef NIBBLE_TILE_MODEL
#define NIBBLE_BASE_OF_AMX HWY_STATIC_TARGET
#else
#define NIBBLE_BASE_OF_AMX (HWY_STATIC_TARGET <= HWY_AVX3_DL ? HWY_STATIC_TARGET : HWY_AVX3_DL)
#endif

// The levels that can be compiled here: the compiler knows their instructions, the baseline does
// not include them, their base is compiled, and simd/detect.hpp can test for them.
#if HWY_ARCH_ARM_A64 && HWY_OS_LINUX && HWY_HAVE_RUNTIME_DISPATCH && !defined(__ARM_FEATURE_SVE)
#ifndef __ARM_FEATURE_DOTPROD
#define NIBBLE_ATTAINABLE_NEON (NIBBLE_NEON_I8MM | NIBBLE_NEON_DOT)
#elif !defined(__ARM_FEATURE_MATMUL_INT8) || !defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define NIBBLE_ATTAINABLE_NEON NIBBLE_NEON_I8MM
#endif
#endif
#ifndef NIBBLE_ATTAINABLE_NEON
#define NIBBLE_ATTAINABLE_NEON 0LL
#endif
#ifdef NIBBLE_TILE_MODEL
#define NIBBLE_ATTAINABLE_AMX NIBBLE_AMX
#elif HWY_ARCH_X86_64 && HWY_OS_LINUX && HWY_HAVE_RUNTIME_DISPATCH && \
    (HWY_COMPILER_GCC_ACTUAL >= 1100 || HWY_COMPILER_CLANG >= 1200)
#define NIBBLE_ATTAINABLE_AMX ((HWY_TARGETS & NIBBLE_BASE_OF_AMX) != 0 ? NIBBLE_AMX : 0LL)
#else
#define NIBBLE_ATTAINABLE_AMX 0LL
#endif
#define NIBBLE_ATTAINABLE_LEVELS (NIBBLE_ATTAINABLE_NEON | NIBBLE_ATTAINABLE_AMX)
