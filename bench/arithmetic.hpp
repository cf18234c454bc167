// SPDX-License-Identifier: Apache-2.0
//
// The kinds of arithmetic whose peak rate is a limit, and the probe kernels that measure these
// rates and the memory bandwidth. Does not include Highway; probe-inl.h has the code.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "nibble/simd/impl.hpp"

namespace bench {

enum class Arithmetic : std::uint8_t {
  f32,    // multiply-adds of floats
  bf16,   // dot products of pairs; where a target has none, its products use f32
  int16,  // dot products of pairs into 32 bits
  int8,   // dot products of four 8-bit numbers into 32 bits
  int4,   // the same with 4 bits on one side, so that sums of pairs fit in 16 bits for longer
};
inline constexpr std::array<Arithmetic, 5> kArithmetics = {
    Arithmetic::f32, Arithmetic::bf16, Arithmetic::int16, Arithmetic::int8, Arithmetic::int4};

constexpr const char* to_string(Arithmetic a) noexcept {
  constexpr const char* kNames[] = {"f32", "bf16", "int16", "int8", "int4"};
  return kNames[static_cast<int>(a)];
}

struct Products {
  double done;
  double sum;  // of all products; all operands are 1, so it must equal `done`
};

// Multiply-adds in registers, in a register tile as products use it, or in one twice as wide; it
// depends on the compiler which one is faster. `zeros` are 16 zeros that the compiler must not
// know.
template <Arithmetic kind, bool kWide>
struct MultiplyAdd {
  using Function = Products(const std::uint32_t* zeros);
};
// How many steps over the tile one call makes.
inline constexpr int kSteps = 8192;

// Reads `bytes` (a multiple of 4096) from `from`, `times` over, and sums all 32-bit words.
// Prefetches `ahead` bytes ahead (0: leaves that to the hardware). Reads the four quarters in
// parallel or one after the other.
struct ReadMemory {
  using Function = std::uint32_t(const std::byte* from, std::size_t bytes, int times,
                                 std::size_t ahead, bool four_streams);
};

// Copies `bytes` (a multiple of 1024) with plain stores, `times` over.
struct CopyMemory {
  using Function = void(const std::byte* from, std::byte* to, std::size_t bytes, int times);
};

// Reads and writes `bytes` (a multiple of 1024) in place, `times` over.
struct UpdateMemory {
  using Function = void(std::byte* at, std::size_t bytes, int times);
};

}  // namespace bench
