// SPDX-License-Identifier: Apache-2.0
//
// The kinds of arithmetic whose peak rate is a limit, and the probe kernels that measure it and the
// memory's. Free of Highway; probe-inl.h has the code.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "nibble/simd/impl.hpp"

namespace bench {

enum class Arithmetic : std::uint8_t {
  f32,    // multiply-adds of floats
  bf16,   // dot products of pairs; where a target has none its products are f32's
  int16,  // dot products of pairs into 32 bits
  int8,   // dot products of four 8-bit numbers into 32 bits
  int4,   // the same where one side has 4 bits, so that sums of pairs stay in 16 bits for longer
};
inline constexpr std::array<Arithmetic, 5> kArithmetics = {
    Arithmetic::f32, Arithmetic::bf16, Arithmetic::int16, Arithmetic::int8, Arithmetic::int4};

constexpr const char* to_string(Arithmetic a) noexcept {
  constexpr const char* kNames[] = {"f32", "bf16", "int16", "int8", "int4"};
  return kNames[static_cast<int>(a)];
}

struct Products {
  double done;
  double sum;  // of all products; all operands are 1, so it must be `done`
};

// Multiply-adds in registers, as in a register tile of a product, or one twice as wide: which one
// is faster is up to the compiler. `zeros` are 16 zeros, which the compiler must not know.
template <Arithmetic kind, bool kWide>
struct MultiplyAdd {
  using Function = Products(const std::uint32_t* zeros);
};
// How often one call works through the tile.
inline constexpr int kSteps = 8192;

// Reads `bytes` (a multiple of 4096) from `from`, `times` over, and adds up all 32-bit words. Asks
// for what is `ahead` bytes further on (0: leaves that to the hardware), and reads four quarters
// side by side or one after the other.
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
