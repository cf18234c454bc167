// SPDX-License-Identifier: Apache-2.0
//
// The registers of AMX: the only place that names its instructions. Included by matmul_amx-inl.h,
// for the level AMX alone; tests put a model in its place (NIBBLE_TILE_MODEL).
//
// A tile has up to 16 rows of 64 bytes. Tiles 0 to 3 are for sums, 4 and 5 for inputs, 6 and 7 for
// weights. Tile 4 multiplies into 0 and 1, tile 5 into 2 and 3: they have as many rows as there are
// inputs. A row of weights has four bytes for each of 16 columns, and multiplies four bytes of each
// row of inputs.
//
// Other code of the program is not disturbed: as for all vector registers but a few, the calling
// convention lets a function change the configuration and the registers (they are the caller's to
// save), and here both are given back at the end of each product. Without that, a context switch
// would have to save 8 KiB, and the processor might keep a lower frequency. The system gives each
// thread its registers when it first uses them.

#include "hwy/highway.h"
#include "nibble/simd/impl.hpp"

#ifdef NIBBLE_TILE_MODEL
#include NIBBLE_TILE_MODEL
#endif

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {

inline constexpr Index kTileRows = 16;
inline constexpr Index kTileRowBytes = 64;
inline constexpr Index kTileBytes = kTileRows * kTileRowBytes;

#ifdef NIBBLE_TILE_MODEL
using nibble::tile_model::TileRegisters;
#else
class TileRegisters {
 public:
  HWY_INLINE TileRegisters() {}
  HWY_INLINE ~TileRegisters() { asm volatile("tilerelease"); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;

  // How many rows, 1 to 16, tiles 4 and 5 have, and the sums that they multiply into. The contents
  // of all tiles become zero.
  HWY_INLINE void configure(Index rows_of_4, Index rows_of_5) {
    struct alignas(64) Configuration {
      std::uint8_t palette = 1;
      std::uint8_t start_row = 0;
      std::uint8_t reserved[14] = {};
      std::uint16_t row_bytes[16] = {};
      std::uint8_t rows[16] = {};
    };
    const auto few = static_cast<std::uint8_t>(rows_of_4);
    const auto more = static_cast<std::uint8_t>(rows_of_5);
    Configuration c;
    for (int i = 0; i < 8; ++i) c.row_bytes[i] = kTileRowBytes;
    c.rows[0] = c.rows[1] = c.rows[4] = few;
    c.rows[2] = c.rows[3] = c.rows[5] = more;
    c.rows[6] = c.rows[7] = kTileRows;
    // (Not _tile_loadconfig: that of GCC 12 says that it reads 8 bytes, and the others stay
    // unwritten.)
    asm volatile("ldtilecfg %0" : : "m"(c));
  }

  // Rows are `stride` bytes apart.
  template <int kTile>
  HWY_INLINE void load(const void* rows, Index stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(rows), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kTile>
  HWY_INLINE void store(void* rows, Index stride) const {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)"
                 :
                 : "r"(rows), "r"(stride), "i"(kTile)
                 : "memory");
  }
  template <int kTile>
  HWY_INLINE void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
  }

  // sums[row][column] += the products of a row of inputs with a column of weights. bf16: of the
  // first numbers of pairs, and of the second, by fused multiply-adds; then the sum of both is
  // added. Subnormal numbers count as zero.
  template <int kSums, int kInputs, int kWeights>
  HWY_INLINE void multiply(bf16) {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0"
                 :
                 : "i"(kSums), "i"(kInputs), "i"(kWeights));
  }
  // Signed inputs, unsigned weights; sums modulo 2^32.
  template <int kSums, int kInputs, int kWeights>
  HWY_INLINE void multiply(std::int8_t) {
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0"
                 :
                 : "i"(kSums), "i"(kInputs), "i"(kWeights));
  }
};
#endif

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();
