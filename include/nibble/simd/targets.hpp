// SPDX-License-Identifier: Apache-2.0
//
// Which targets this translation unit compiles: passes NIBBLE_TARGETS to Highway before its pass.
#pragma once

#include "nibble/core/config.hpp"

// Every target that Highway offers for this architecture and compiler, and every level.
#define NIBBLE_TARGETS_EVERY (~0LL)

// The targets to compile, as Highway's bits and those of simd/levels.hpp. The baseline that the
// compiler flags allow is always added. The default is short because each target costs about a
// second of compile time:
//   AVX2     nearly every x86 computer of the last ten years
//   AVX3_DL  AVX-512 with VNNI (Ice Lake, Zen 4 and later): 8-bit dot products, 3x the rate
//   AMX      products of tiles on servers (Sapphire Rapids and later), 4 to 8x the rate; only the
//            products that use them are compiled once more
//   SSE4     Atoms and Celerons of edge devices, which have no AVX
//   NEON_DOT   64-bit ARM with dot products (sdot). Processors without them run the baseline. (NEON
//              is not in the list: it is the baseline with AES, which no kernel uses.)
//   NEON_I8MM  64-bit ARM with products of matrices of 8-bit integers and bf16 (Neoverse V1 and N2,
//              Cortex-A510 and later)
#ifndef NIBBLE_TARGETS
#define NIBBLE_TARGETS \
  (NIBBLE_AMX | HWY_AVX3_DL | HWY_AVX2 | HWY_SSE4 | NIBBLE_NEON_DOT | NIBBLE_NEON_I8MM)
#endif

#if defined(HIGHWAY_HWY_FOREACH_TARGET_H_)
// The program has made its own pass, over targets that it chose itself.
#else

#if defined(HWY_DISABLED_TARGETS) && !defined(HIGHWAY_HWY_DETECT_TARGETS_H_)
#error "nibble: HWY_DISABLED_TARGETS has no effect here; say with NIBBLE_TARGETS what to compile"
#endif

#ifndef HWY_HEADER_ONLY
#define HWY_HEADER_ONLY  // nothing of Highway to link
#endif
#include "hwy/detect_targets.h"
#include "nibble/simd/levels.hpp"
// For Highway's version.
#include "hwy/base.h"
#if HWY_MAJOR < 1 || (HWY_MAJOR == 1 && HWY_MINOR < 3)
#error "nibble needs Highway 1.3 or newer"
#include "nibble: stopped by the error above"  // no such file: nothing else is worth reading
#endif
#ifdef HWY_HIGHWAY_INCLUDED
namespace nibble { inline namespace NIBBLE_ABI { namespace simd { namespace detail {
constexpr long long kStaticTargetBefore = HWY_STATIC_TARGET;
}}}}  // namespace nibble::NIBBLE_ABI::simd::detail
#endif
#undef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS \
  (~((NIBBLE_TARGETS) | NIBBLE_BASELINE_TARGET) | NIBBLE_UNTESTED_TARGETS)
// Targets that compile but are not used: simd/detect.hpp does not detect SVE, and on RISC-V the
// tests of NaN fail. Define this as 0 to compile them all the same; the baseline may then be one of
// them.
#ifndef NIBBLE_UNTESTED_TARGETS
#define NIBBLE_UNTESTED_TARGETS (HWY_ALL_SVE | HWY_RVV)
#endif
// The lowest bit of HWY_BASELINE_TARGETS among the targets that we compile (lower is better).
#define NIBBLE_BASELINE_TARGET                                               \
  ((HWY_BASELINE_TARGETS & ~HWY_BROKEN_TARGETS & ~NIBBLE_UNTESTED_TARGETS) & \
   -(HWY_BASELINE_TARGETS & ~HWY_BROKEN_TARGETS & ~NIBBLE_UNTESTED_TARGETS))
// Highway expands these macros some hundred times, a tenth of a second in all. For the usual
// baselines the macro is therefore just a name.
#if NIBBLE_BASELINE_TARGET == HWY_SSE2
#undef NIBBLE_BASELINE_TARGET
#define NIBBLE_BASELINE_TARGET HWY_SSE2
#elif NIBBLE_BASELINE_TARGET == HWY_NEON
#undef NIBBLE_BASELINE_TARGET
#define NIBBLE_BASELINE_TARGET HWY_NEON
#endif
#if HWY_STATIC_TARGET == HWY_SCALAR
#error \
    "nibble: without SIMD instructions that every machine has, the kernels need those that Highway emulates, and this compiler gets some of them wrong. On 32-bit x86 compile with -msse2 -mfpmath=sse; elsewhere with the option for the vector instructions of the machine, or with Clang."
#include "nibble: stopped by the error above"
#endif
#ifdef HWY_HIGHWAY_INCLUDED
static_assert(
    nibble::simd::detail::kStaticTargetBefore == HWY_STATIC_TARGET,
    "nibble: hwy/highway.h was included before with HWY_DISABLED_TARGETS that changed its "
    "static target; include nibble first");
#endif

#endif

// The levels that this translation unit compiles, whoever chose Highway's targets.
#include "nibble/simd/levels.hpp"
#define NIBBLE_COMPILED_LEVELS ((NIBBLE_TARGETS)&NIBBLE_ATTAINABLE_LEVELS)
