// SPDX-License-Identifier: Apache-2.0
//
// A model of AMX's registers, in plain loops, after Intel's description of the instructions: for
// tests of products with tiles on machines that have none (NIBBLE_TILE_MODEL). It notes what a
// processor would refuse.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "nibble/core/float16.hpp"
#include "nibble/core/view.hpp"

namespace nibble::tile_model {

// What happened in this program.
struct Counts {
  long alive = 0;  // registers that are not given back
  long configured = 0, products = 0;
  const std::byte* end_of_inputs = nullptr;  // behind the last byte that was read of any
  long faults = 0;  // use of tiles that are not configured, or shapes that do not fit together
};
NIBBLE_HIDDEN inline Counts counts;

class TileRegisters {
 public:
  TileRegisters() { ++counts.alive; }
  ~TileRegisters() { --counts.alive; }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;

  void configure(Index rows_of_4, Index rows_of_5) {
    ++counts.configured;
    if (rows_of_4 < 1 || rows_of_4 > 16 || rows_of_5 < 1 || rows_of_5 > 16) ++counts.faults;
    std::memset(bytes_, 0, sizeof(bytes_));
    n_rows_[0] = n_rows_[1] = n_rows_[4] = rows_of_4;
    n_rows_[2] = n_rows_[3] = n_rows_[5] = rows_of_5;
    n_rows_[6] = n_rows_[7] = 16;
  }

  template <int kTile>
  void load(const void* rows, Index stride) {
    check<kTile>();
    std::memset(bytes_[kTile], 0, sizeof(bytes_[kTile]));
    for (Index r = 0; r < n_rows_[kTile]; ++r) {
      const auto* const row = static_cast<const std::byte*>(rows) + r * stride;
      std::memcpy(bytes_[kTile][r], row, 64);
      if ((kTile == 4 || kTile == 5) && row + 64 > counts.end_of_inputs) {
        counts.end_of_inputs = row + 64;
      }
    }
  }
  template <int kTile>
  void store(void* rows, Index stride) const {
    check<kTile>();
    for (Index r = 0; r < n_rows_[kTile]; ++r) {
      std::memcpy(static_cast<std::byte*>(rows) + r * stride, bytes_[kTile][r], 64);
    }
  }
  template <int kTile>
  void zero() {
    check<kTile>();
    std::memset(bytes_[kTile], 0, sizeof(bytes_[kTile]));
  }

  // TDPBF16PS: for each sum, fused multiply-adds of the first numbers of pairs, and of the second;
  // both and the sum before are added up. Subnormal numbers are zero.
  template <int kSums, int kInputs, int kWeights>
  void multiply(bf16) {
    check_shapes<kSums, kInputs, kWeights>();
    float inputs[16][32], weights[16][32];
    read_numbers<kInputs>(inputs);
    read_numbers<kWeights>(weights);
    for (Index m = 0; m < n_rows_[kSums]; ++m) {
      // (A product of two bf16 is exact in f32, so that adding it rounds as a fused one does.)
      float parts[32] = {};
      for (Index k = 0; k < 32; ++k) {
        for (Index n = k % 2; n < 32; n += 2) parts[n] += inputs[m][k] * weights[k / 2][n];
      }
      for (Index n = 0; n < 16; ++n) {
        float sum;
        std::memcpy(&sum, bytes_[kSums][m] + 4 * n, 4);
        sum = normal(normal(sum) + normal(normal(parts[2 * n]) + normal(parts[2 * n + 1])));
        std::memcpy(bytes_[kSums][m] + 4 * n, &sum, 4);
      }
    }
  }

  // TDPBSUD: signed times unsigned bytes, modulo 2^32.
  template <int kSums, int kInputs, int kWeights>
  void multiply(std::int8_t) {
    check_shapes<kSums, kInputs, kWeights>();
    for (Index m = 0; m < n_rows_[kSums]; ++m) {
      for (Index n = 0; n < 16; ++n) {
        std::uint32_t sum;
        std::memcpy(&sum, bytes_[kSums][m] + 4 * n, 4);
        for (Index k = 0; k < n_rows_[kWeights]; ++k) {
          for (Index i = 0; i < 4; ++i) {
            const auto x = static_cast<std::int8_t>(bytes_[kInputs][m][4 * k + i]);
            const auto w = static_cast<std::uint8_t>(bytes_[kWeights][k][4 * n + i]);
            sum += static_cast<std::uint32_t>(x * w);
          }
        }
        std::memcpy(bytes_[kSums][m] + 4 * n, &sum, 4);
      }
    }
  }

 private:
  static float normal(float x) { return std::fabs(x) < 0x1p-126f ? 0.0f * x : x; }
  template <int kTile>
  void read_numbers(float (&to)[16][32]) const {
    for (int r = 0; r < 16; ++r) {
      bf16 row[32];
      std::memcpy(row, bytes_[kTile][r], sizeof(row));
      for (int i = 0; i < 32; ++i) to[r][i] = normal(to_f32(row[i]));
    }
  }
  template <int kTile>
  void check() const {
    static_assert(kTile >= 0 && kTile < 8);
    if (n_rows_[kTile] == 0) ++counts.faults;
  }
  template <int kSums, int kInputs, int kWeights>
  void check_shapes() const {
    static_assert(kSums != kInputs && kSums != kWeights && kInputs != kWeights);
    check<kSums>();
    ++counts.products;
    if (n_rows_[kSums] != n_rows_[kInputs] || n_rows_[kWeights] != 16) ++counts.faults;
  }

  std::byte bytes_[8][16][64] = {};
  Index n_rows_[8] = {};
};

}  // namespace nibble::tile_model
