// SPDX-License-Identifier: Apache-2.0
//
// Version, the versioned inline namespace, and the few macros that every header uses.
#pragma once

#define NIBBLE_VERSION_MAJOR 0
#define NIBBLE_VERSION_MINOR 1
#define NIBBLE_VERSION_PATCH 0
#define NIBBLE_VERSION "0.1.0"

#if __cplusplus < 202002L && !(defined(_MSVC_LANG) && _MSVC_LANG >= 202002L)
#error "nibble needs C++20: compile with -std=c++20 or newer"
#include "nibble: stopped by the error above"  // no such file: nothing else is worth reading
#endif

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "nibble: this machine is big-endian; model files and the layout of weights are little-endian"
#include "nibble: stopped by the error above"
#endif

// Debug checks: bounds of views, preconditions of operations. On in debug builds; define
// NIBBLE_DEBUG as 0 or 1 to choose. User data never relies on them: files and parameters are always
// checked.
#ifndef NIBBLE_DEBUG
#ifdef NDEBUG
#define NIBBLE_DEBUG 0
#else
#define NIBBLE_DEBUG 1
#endif
#endif

// Errors are values everywhere; Result::value() throws, and exists only where exceptions do.
#if defined(__cpp_exceptions) || defined(_CPPUNWIND)
#define NIBBLE_HAS_EXCEPTIONS 1
#else
#define NIBBLE_HAS_EXCEPTIONS 0
#endif

// The inline namespace names the version and everything that changes the code of an inline
// function: the instructions that the compiler may use outside our per-target namespaces, and
// whether checks are on. Two translation units built with -m flags of different levels therefore
// never share such a function, so the linker cannot keep a copy that a lesser machine cannot run.
// (The levels below are those that change what compilers emit for plain code; flags within one
// level are not distinguished.)
#if defined(__AVX512FP16__)
#define NIBBLE_BASELINE_ avx512fp16
#elif defined(__AVX512VNNI__)
#define NIBBLE_BASELINE_ avx512vnni
#elif defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && \
    defined(__AVX512VL__)
#define NIBBLE_BASELINE_ avx512
#elif defined(__AVX512F__)
#define NIBBLE_BASELINE_ avx512f
#elif defined(__AVX2__) && defined(__FMA__) && defined(__AVXVNNI__)
#define NIBBLE_BASELINE_ avx2vnni
#elif defined(__AVX2__) && defined(__FMA__)
#define NIBBLE_BASELINE_ avx2fma
#elif defined(__AVX2__)
#define NIBBLE_BASELINE_ avx2
#elif defined(__AVX__) && defined(__FMA__)
#define NIBBLE_BASELINE_ avxfma
#elif defined(__AVX__)
#define NIBBLE_BASELINE_ avx
#elif defined(__SSE4_2__)
#define NIBBLE_BASELINE_ sse42
#elif defined(__SSE4_1__)
#define NIBBLE_BASELINE_ sse41
#elif defined(__SSSE3__)
#define NIBBLE_BASELINE_ ssse3
#elif defined(__SSE3__)
#define NIBBLE_BASELINE_ sse3
#elif defined(__SSE2__) || defined(_M_X64)
#define NIBBLE_BASELINE_ sse2
#elif defined(__ARM_FEATURE_SVE2)
#define NIBBLE_BASELINE_ sve2
#elif defined(__ARM_FEATURE_SVE)
#define NIBBLE_BASELINE_ sve
#elif defined(__ARM_FEATURE_DOTPROD)
#define NIBBLE_BASELINE_ dotprod
#elif defined(__ARM_FEATURE_ATOMICS)
#define NIBBLE_BASELINE_ lse
#elif defined(__riscv_v)
#define NIBBLE_BASELINE_ rvv
#elif defined(_ARCH_PWR10)
#define NIBBLE_BASELINE_ power10
#elif defined(_ARCH_PWR9)
#define NIBBLE_BASELINE_ power9
#else
#define NIBBLE_BASELINE_ generic
#endif
#if defined(__BMI2__)
#define NIBBLE_BASELINE_BMI_ b
#else
#define NIBBLE_BASELINE_BMI_ n
#endif
#if NIBBLE_DEBUG && NIBBLE_HAS_EXCEPTIONS
#define NIBBLE_CHECKS_ checked
#elif NIBBLE_DEBUG
#define NIBBLE_CHECKS_ checked_noexcept
#elif NIBBLE_HAS_EXCEPTIONS
#define NIBBLE_CHECKS_ fast
#else
#define NIBBLE_CHECKS_ fast_noexcept
#endif
#define NIBBLE_CONCAT4_(a, b, c, d) a##_##b##_##c##_##d
#define NIBBLE_CONCAT4(a, b, c, d) NIBBLE_CONCAT4_(a, b, c, d)
#define NIBBLE_ABI NIBBLE_CONCAT4(v0_1, NIBBLE_BASELINE_, NIBBLE_BASELINE_BMI_, NIBBLE_CHECKS_)

// A program uses nibble in one of two forms. Header form, the default: every function is inline.
// Split form, for programs of many translation units: all of them define NIBBLE_SPLIT (one compiler
// flag). One of them includes nibble/nibble.hpp and also defines NIBBLE_IMPLEMENTATION before the
// first of nibble's headers. All others see only declarations: there, each x.hpp leaves out its
// x-inl.hpp, whose functions are NIBBLE_INLINE.
#if defined(NIBBLE_IMPLEMENTATION) && !defined(NIBBLE_SPLIT)
#error "nibble: NIBBLE_IMPLEMENTATION is for the split form; define NIBBLE_SPLIT in every file"
#endif
#if defined(NIBBLE_SPLIT)
#define NIBBLE_INLINE
#else
#define NIBBLE_INLINE inline
#endif
#if defined(NIBBLE_SPLIT) && !defined(NIBBLE_IMPLEMENTATION)
#define NIBBLE_DECLARATIONS_ONLY 1
#else
#define NIBBLE_DECLARATIONS_ONLY 0
#endif

// -DNIBBLE_ENCLAVE=1: a model in memory answers without calling the system for files, threads or
// clocks. Memory is only allocated; who waits for a lock spins; loading measures no Tuning, and limits
// in time do not end a generation. The same for every translation unit.
#ifndef NIBBLE_ENCLAVE
#define NIBBLE_ENCLAVE 0
#endif

// Whether files and large blocks of memory are mapped as POSIX has it. Windows has its own way; devices
// without an operating system have neither, and models are in memory there.
#if !NIBBLE_ENCLAVE && !defined(_WIN32) && __has_include(<sys/mman.h>)
#define NIBBLE_HAS_MMAP 1
#else
#define NIBBLE_HAS_MMAP 0
#endif

// The element types of a cache of keys and values (ops/kv_type.hpp) that a program compiles: bit i is
// that of the enumerator i of ops::KvType. f16, the usual one, is always there, so a program that
// uses no other is smaller with -DNIBBLE_KV_TYPES=0. The same for every translation unit.
#ifndef NIBBLE_KV_TYPES
#define NIBBLE_KV_TYPES 0xFF
#endif

// Makes a function that needs no template parameter a template. It and the kernels that it calls,
// for every target, are then compiled where it is called, not wherever it is included.
#define NIBBLE_LAZY template <class = void>

// For what runs once for a model, a plan or a step and is much code: compiled for size. Not for
// functions that use containers of plain types: code compiled for size calls the members of
// std::vector<std::size_t> instead of inlining them, and the linker keeps one copy of those for all
// translation units of a program, possibly the one compiled for a better machine.
#if defined(__GNUC__)
#define NIBBLE_COLD [[gnu::cold]]
#else
#define NIBBLE_COLD
#endif

// For objects in headers: variables of which the linker keeps one for many files. Each shared
// library then has its own. Otherwise GCC makes them "unique", one for the whole process even
// between plug-ins that are loaded apart (RTLD_LOCAL), and a plug-in that has one is never
// unloaded.
#if defined(__GNUC__) && defined(__ELF__)
#define NIBBLE_HIDDEN [[gnu::visibility("hidden")]]
#else
#define NIBBLE_HIDDEN
#endif
// For functions of the header form that use such variables: all of a shared library use its own.
// (In the split form the code of nibble may be in a shared library of its own.)
#if defined(NIBBLE_SPLIT)
#define NIBBLE_HIDDEN_INLINE
#else
#define NIBBLE_HIDDEN_INLINE NIBBLE_HIDDEN
#endif

#define NIBBLE_UNREACHABLE() __builtin_unreachable()
#if defined(_MSC_VER) && !defined(__clang__)
#undef NIBBLE_UNREACHABLE
#define NIBBLE_UNREACHABLE() __assume(0)
#endif

// A parameter to which what is returned or made refers: Clang then warns if it would be gone.
#if defined(__clang__)
#define NIBBLE_LIFETIMEBOUND [[clang::lifetimebound]]
#else
#define NIBBLE_LIFETIMEBOUND
#endif

// A precondition on the caller's code, never on user data. When checks are on, a violation ends the
// program with a message; otherwise it costs nothing.
#if NIBBLE_DEBUG
#include <cstdio>
#include <cstdlib>
namespace nibble { inline namespace NIBBLE_ABI { namespace detail {
[[noreturn]] NIBBLE_COLD inline void check_failed(const char* what, const char* where) noexcept {
  std::fprintf(stderr, "nibble: %s: %s\n", what, where);
  std::abort();
}
}}}  // namespace nibble::NIBBLE_ABI::detail
#define NIBBLE_STRING_(x) #x
#define NIBBLE_STRING(x) NIBBLE_STRING_(x)
#define NIBBLE_ASSERT(condition)                                             \
  ((condition) ? (void)0                                                     \
               : ::nibble::detail::check_failed("check failed: " #condition, \
                                                __FILE__ ":" NIBBLE_STRING(__LINE__)))
#else
#define NIBBLE_ASSERT(condition) ((void)0)
#endif
