// SPDX-License-Identifier: Apache-2.0
//
// Which targets the machine can run: the processor must have the instructions, and the operating
// system must save their registers on a context switch. The conditions are those of Highway's
// targets; Highway's own detection is compiled code, which is not linked here.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "nibble/simd/target.hpp"

#if defined(__x86_64__) || defined(__i386__) || defined(_M_X64) || defined(_M_IX86)
#define NIBBLE_DETECT_X86 1
#define NIBBLE_DETECT_AUXV 0
#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#elif defined(__linux__) && (defined(__aarch64__) || defined(__powerpc64__) || defined(__riscv))
#define NIBBLE_DETECT_X86 0
#define NIBBLE_DETECT_AUXV 1
#include <sys/auxv.h>
#else
#define NIBBLE_DETECT_X86 0
#define NIBBLE_DETECT_AUXV 0
#endif

namespace nibble { inline namespace NIBBLE_ABI { namespace simd {

#if NIBBLE_DETECT_X86

struct CpuidRegisters {
  std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

inline CpuidRegisters cpuid(std::uint32_t leaf, std::uint32_t subleaf) noexcept {
  CpuidRegisters r;
#if defined(_MSC_VER) && !defined(__clang__)
  int regs[4];
  __cpuidex(regs, static_cast<int>(leaf), static_cast<int>(subleaf));
  r = {static_cast<std::uint32_t>(regs[0]), static_cast<std::uint32_t>(regs[1]),
       static_cast<std::uint32_t>(regs[2]), static_cast<std::uint32_t>(regs[3])};
#else
  __cpuid_count(leaf, subleaf, r.eax, r.ebx, r.ecx, r.edx);
#endif
  return r;
}

// XCR0: the register state that the operating system saves. Call it only if CPUID reports OSXSAVE.
inline std::uint64_t read_xcr0() noexcept {
#if defined(_MSC_VER) && !defined(__clang__)
  return _xgetbv(0);
#else
  std::uint32_t low, high;
  asm volatile(".byte 0x0F, 0x01, 0xD0" : "=a"(low), "=d"(high) : "c"(0));  // xgetbv
  return (std::uint64_t{high} << 32) | low;
#endif
}

inline TargetSet detect_targets() noexcept {
  const auto all = [](std::uint32_t reg, std::initializer_list<int> bits) {
    for (const int bit : bits) {
      if (((reg >> bit) & 1) == 0) return false;
    }
    return true;
  };
  const CpuidRegisters leaf0 = cpuid(0, 0);
  const CpuidRegisters leaf1 = cpuid(1, 0);
  const CpuidRegisters ext1 = cpuid(0x80000001u, 0);
  CpuidRegisters leaf7, leaf7_1;
  if (leaf0.eax >= 7) {
    leaf7 = cpuid(7, 0);
    leaf7_1 = cpuid(7, 1);
  }

  const bool sse2 = all(leaf1.edx, {25, 26});
  const bool ssse3 = sse2 && all(leaf1.ecx, {0, 9});
  const bool sse4 = ssse3 && all(leaf1.ecx, {19, 20, 1, 25});         // SSE4.1, 4.2, CLMUL, AES
  const bool avx2 = sse4 && all(leaf1.ecx, {28, 12, 29}) &&           // AVX, FMA, F16C
                    all(leaf7.ebx, {3, 5, 8}) && all(ext1.ecx, {5});  // BMI, AVX2, BMI2; LZCNT
  const bool avx3 = avx2 && all(leaf7.ebx, {16, 17, 28, 30, 31});     // F, DQ, CD, BW, VL
  // VBMI, VBMI2, GFNI, VAES, VPCLMULQDQ, VNNI, BITALG, VPOPCNTDQ
  const bool avx3_dl = avx3 && all(leaf7.ecx, {1, 6, 8, 9, 10, 11, 12, 14});
  const bool bf16 = avx3_dl && all(leaf7_1.eax, {5});
  const bool spr = bf16 && all(leaf7.edx, {23});  // AVX512-FP16
  const bool amd = leaf0.ebx == 0x68747541u && leaf0.ecx == 0x444d4163u && leaf0.edx == 0x69746e65u;

  const bool amx = bf16 && all(leaf7.edx, {22, 24, 25});  // AMX-BF16, AMX-TILE, AMX-INT8

  // AVX state must be saved by the operating system: XSAVE and OSXSAVE, XCR0 bits 1-2 (XMM, YMM)
  // and, for AVX-512, bits 5-7 (opmask, upper halves, upper registers); for AMX also bits 17-18
  // (configuration and registers of tiles).
  bool saves_avx = false, saves_avx512 = false, saves_tiles = false;
  if (all(leaf1.ecx, {26, 27})) {
    const auto xcr0 = static_cast<std::uint32_t>(read_xcr0());
    saves_avx = all(xcr0, {1, 2});
    saves_avx512 = saves_avx && all(xcr0, {5, 6, 7});
    saves_tiles = saves_avx512 && all(xcr0, {17, 18});
  }

  TargetSet set;
  set.add(Target::SCALAR).add(Target::EMU128);
  if (sse2) set.add(Target::SSE2);
  if (ssse3) set.add(Target::SSSE3);
  if (sse4) set.add(Target::SSE4);
  if (avx2 && saves_avx) set.add(Target::AVX2);
  if (avx3 && saves_avx512) set.add(Target::AVX3);
  if (avx3_dl && saves_avx512) set.add(Target::AVX3_DL);
  if (bf16 && amd && saves_avx512) set.add(Target::AVX3_ZEN4);
  if (spr && saves_avx512) set.add(Target::AVX3_SPR);
  if (amx && saves_tiles) set.add(Target::AMX);
  return set;
}

#elif NIBBLE_DETECT_AUXV && defined(__aarch64__)

inline TargetSet detect_targets() noexcept {
  // Bits of AT_HWCAP and AT_HWCAP2 as the kernel documents them (arm64/elf_hwcaps).
  constexpr unsigned long kAes = 1ul << 3, kCrc32 = 1ul << 7, kAtomics = 1ul << 8;
  constexpr unsigned long kAsimdHp = 1ul << 10, kAsimdRdm = 1ul << 12, kAsimdDp = 1ul << 20;
  constexpr unsigned long kI8mm = 1ul << 13, kBf16 = 1ul << 14;
  const unsigned long hw = getauxval(AT_HWCAP), hw2 = getauxval(AT_HWCAP2);
  TargetSet set;
  set.add(Target::SCALAR).add(Target::EMU128).add(Target::NEON_WITHOUT_AES);
  // Levels are compiled for ARMv8.2, so they also need what compilers may use of that on their own.
  constexpr unsigned long kDot = kCrc32 | kAtomics | kAsimdRdm | kAsimdDp;
  if ((hw & kDot) == kDot) {
    set.add(Target::NEON_DOT);
    if ((hw2 & kI8mm) && (hw2 & kBf16)) set.add(Target::NEON_I8MM);
  }
  if (hw & kAes) {
    set.add(Target::NEON);
    if ((hw & kAsimdHp) && (hw & kAsimdDp) && (hw2 & kBf16)) set.add(Target::NEON_BF16);
  }
  // SVE targets are not detected: nibble is neither compiled for nor tested on them yet.
  return set;
}

#elif NIBBLE_DETECT_AUXV && defined(__powerpc64__)

inline TargetSet detect_targets() noexcept {
  // Bits of AT_HWCAP and AT_HWCAP2 as the kernel documents them (powerpc/elf_hwcaps).
  constexpr unsigned long kAltivec = 0x10000000, kVsx = 0x00000080;
  constexpr unsigned long kArch2_07 = 0x80000000, kVectorCrypto = 0x02000000;
  constexpr unsigned long kArch3_0 = 0x00800000, kArch3_1 = 0x00040000, kMma = 0x00020000;
  const unsigned long hw = getauxval(AT_HWCAP), hw2 = getauxval(AT_HWCAP2);
  TargetSet set;
  set.add(Target::SCALAR).add(Target::EMU128);
  if (!(hw & kAltivec) || !(hw & kVsx) || !(hw2 & kArch2_07) || !(hw2 & kVectorCrypto)) return set;
  set.add(Target::PPC8);
  if (!(hw2 & kArch3_0)) return set;
  set.add(Target::PPC9);
  if ((hw2 & kArch3_1) && (hw2 & kMma)) set.add(Target::PPC10);
  return set;
}

#elif NIBBLE_DETECT_AUXV && defined(__riscv)

inline TargetSet detect_targets() noexcept {
  TargetSet set;
  set.add(Target::SCALAR).add(Target::EMU128);
  // One bit of AT_HWCAP for each extension that has a letter. (V has at least 128 bits.)
  if (getauxval(AT_HWCAP) & (1ul << ('V' - 'A'))) set.add(Target::RVV);
  return set;
}

#else

// No run-time detection on this system: only the baseline is used, which every machine that runs
// the program can run.
inline TargetSet detect_targets() noexcept { return TargetSet{}; }

#endif

// The targets that this machine can run, whether compiled or not. Detected once.
NIBBLE_HIDDEN inline TargetSet machine_targets() noexcept {
  static const TargetSet set = detect_targets();
  return set;
}

}}}  // namespace nibble::NIBBLE_ABI::simd
