// SPDX-License-Identifier: Apache-2.0
//
// What products with block formats read: weights step by step, a step being those of a row with one
// scale. Either from the packed layout, or from steps that were widened before, to be read often.

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_MATMUL_STEPS_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_MATMUL_STEPS_INL_H_
#undef NIBBLE_KERNELS_MATMUL_STEPS_INL_H_
#else
#define NIBBLE_KERNELS_MATMUL_STEPS_INL_H_
#endif

#include "hwy/highway.h"
#include "nibble/kernels/matmul_dot-inl.h"
#include "nibble/kernels/prefetch-inl.h"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Where the vectors of a tile are in the packed weights.
class TileColumns {
 public:
  HWY_INLINE TileColumns(Index panel_bytes, int lane) : panel_bytes_(panel_bytes), lane_(lane) {}

  // The address of vector c of a row of 16 values of kBytes each. `row`: this row in the first
  // panel.
  template <int kBytes>
  HWY_INLINE const std::byte* at(const std::byte* row, int c) const {
    // The lane first: what is added for the column is a constant then.
    return row + kBytes * lane_ + (c / kVectors * panel_bytes_ + kBytes * (c % kVectors * kLanes));
  }

 private:
  Index panel_bytes_;
  Index lane_;  // of the first vector in its panel
};

// ---- Codes -------------------------------------------------------------------------------------

// Codes of two vectors: the low and the high halves of the bytes of a chunk, or twice the same of 8
// bits.
struct CodePair {
  Register<DU8> low;
  Register<DU8> high;
  HWY_INLINE CodePair() {}
};

// Whether codes stand for themselves less 1.
template <class Format>
inline constexpr bool kHasTernaryCodes =
    quant::OneOf<Format, quant::TQ2_0, quant::Q2_0, quant::Q1_0>;
// Whether codes stand for odd halves of a step (quant/block.hpp).
template <class Format>
inline constexpr bool kHasHalfSteps = Format::kBits < 4 && !quant::SuperBlockFormat<Format>;

template <class Format, int kColumns>
class CodeReader {
  using L = quant::Packed<Format>;
  static constexpr int kUpper = static_cast<int>(L::kUpperChunks);  // bits above the fourth

 public:
  HWY_INLINE CodeReader() {}

  static HWY_INLINE VU8 load(const TileColumns& columns, const std::byte* codes, int chunk, int c) {
    const std::byte* bytes = columns.template at<4>(codes + chunk * quant::kChunkBytes, c);
    return hn::LoadU(DU8(), reinterpret_cast<const std::uint8_t*>(bytes));
  }

  // Chunk j of the 32 weights at `codes`, of vector c. Called for one j after the other.
  HWY_INLINE void read(const TileColumns& columns, const std::byte* codes, int j, int c,
                       CodePair& pair) {
    if constexpr (kHasHalfSteps<Format>) {
      read_half_steps(columns, codes, j, c, pair);
      return;
    } else if constexpr (Format::kBits < 4) {
      read_few_bits(columns, codes, j, c, pair);
      return;
    }
    const VU8 both = load(columns, codes, kUpper + j, c);
    if constexpr (Format::kBits == 8) {
      pair.low.set(both);
      pair.high.set(both);
    } else if constexpr (kUpper == 0) {
      pair.low.set(low_codes<Format>(both));
      pair.high.set(high_codes<Format>(both));
    } else {
      // Upper bits come to bits 4 … by shifts of 16-bit lanes; what crosses bytes is masked away.
      constexpr int kChunksPerUpper = 4 / kUpper;
      if (j % kChunksPerUpper == 0) {
        const auto upper = hn::BitCast(DU16(), load(columns, codes, j / kChunksPerUpper, c));
        low_upper_[c].set(upper);
        high_upper_[c].set(hn::ShiftLeft<4>(upper));
      } else {
        low_upper_[c].set(hn::ShiftRight<kUpper>(low_upper_[c].get()));
        high_upper_[c].set(hn::ShiftRight<kUpper>(high_upper_[c].get()));
      }
      const VU8 mask = hn::Set(DU8(), ((1 << kUpper) - 1) << 4);
      const VU8 low = hn::And(hn::BitCast(DU8(), low_upper_[c].get()), mask);
      const VU8 high = hn::And(hn::BitCast(DU8(), high_upper_[c].get()), mask);
      pair.low.set(hn::Or(low_nibbles(both), low));
      pair.high.set(hn::Or(high_nibbles(both), high));
    }
  }

 private:
  // Codes of 2 or 3 bits. Two chunks share one of bytes.
  HWY_INLINE void read_few_bits(const TileColumns& columns, const std::byte* codes, int j, int c,
                                CodePair& pair) {
    if constexpr (Format::kBits == 1) return read_signs(columns, codes, j, c, pair);
    auto bits = hn::BitCast(DU16(), load(columns, codes, kUpper + j / 2, c));
    if (j % 2 != 0) bits = hn::ShiftRight<4>(bits);
    const VU8 two_bits = hn::Set(DU8(), 3);
    VU8 low = hn::And(hn::BitCast(DU8(), bits), two_bits);
    VU8 high = hn::And(hn::BitCast(DU8(), hn::ShiftRight<2>(bits)), two_bits);
    if constexpr (kUpper > 0) {
      if (j == 0) {  // third bits come to bit 2, as fifth bits to bit 4 above
        const auto upper = hn::BitCast(DU16(), load(columns, codes, 0, c));
        low_upper_[c].set(hn::ShiftRight<2>(upper));
        high_upper_[c].set(hn::ShiftLeft<2>(upper));
      } else {
        low_upper_[c].set(hn::ShiftRight<1>(low_upper_[c].get()));
        high_upper_[c].set(hn::ShiftRight<1>(high_upper_[c].get()));
      }
      const VU8 third = hn::Set(DU8(), 4);
      low = hn::Or(low, hn::And(hn::BitCast(DU8(), low_upper_[c].get()), third));
      high = hn::Or(high, hn::And(hn::BitCast(DU8(), high_upper_[c].get()), third));
    }
    pair.low.set(low);
    pair.high.set(high);
  }

  // Signs, as codes 0 and 2. Four chunks share one of bytes.
  HWY_INLINE void read_signs(const TileColumns& columns, const std::byte* codes, int j, int c,
                             CodePair& pair) {
    auto bits = hn::BitCast(DU16(), load(columns, codes, 0, c));
    if (j == 1) bits = hn::ShiftRight<2>(bits);
    if (j == 2) bits = hn::ShiftRight<4>(bits);
    if (j == 3) bits = hn::ShiftRight<6>(bits);
    const VU8 second = hn::Set(DU8(), 2);
    pair.low.set(hn::And(hn::BitCast(DU8(), hn::Add(bits, bits)), second));
    pair.high.set(hn::And(hn::BitCast(DU8(), bits), second));
  }

  // The same, as the 4-bit codes that they stand for.
  HWY_INLINE void read_half_steps(const TileColumns& columns, const std::byte* codes, int j, int c,
                                  CodePair& pair) {
    auto bits = hn::BitCast(DU16(), load(columns, codes, kUpper + j / 2, c));
    if (j % 2 != 0) bits = hn::ShiftRight<4>(bits);
    const auto of_bytes = [](hn::Vec<DU16> words, int mask) NIBBLE_ATTR {
      return hn::And(hn::BitCast(DU8(), words), hn::Set(DU8(), static_cast<std::uint8_t>(mask)));
    };
    if constexpr (Format::kBits == 2) {
      const VU8 middle = hn::Set(DU8(), 2);
      pair.low.set(hn::Or(of_bytes(hn::ShiftLeft<2>(bits), 12), middle));
      pair.high.set(hn::Or(of_bytes(bits, 12), middle));
    } else {
      // Third bits come to bit 3, as fifth bits to bit 4 below.
      if (j == 0) {
        const auto upper = hn::BitCast(DU16(), load(columns, codes, 0, c));
        low_upper_[c].set(hn::ShiftRight<1>(upper));
        high_upper_[c].set(hn::ShiftLeft<3>(upper));
      } else {
        low_upper_[c].set(hn::ShiftRight<1>(low_upper_[c].get()));
        high_upper_[c].set(hn::ShiftRight<1>(high_upper_[c].get()));
      }
      const VU8 middle = hn::Set(DU8(), 1);
      const VU8 low = hn::Or(of_bytes(hn::ShiftLeft<1>(bits), 6), of_bytes(low_upper_[c].get(), 8));
      const VU8 high =
          hn::Or(of_bytes(hn::ShiftRight<1>(bits), 6), of_bytes(high_upper_[c].get(), 8));
      pair.low.set(hn::Or(low, middle));
      pair.high.set(hn::Or(high, middle));
    }
  }

  Register<DU16> low_upper_[kColumns], high_upper_[kColumns];
};

// ---- Scales ------------------------------------------------------------------------------------

// The scales and minimums of a group of blocks.
template <class Format, int kColumns>
class ScaleReader {
  using L = quant::Packed<Format>;
  using Scale = typename Format::Scale;

 public:
  HWY_INLINE ScaleReader() {}

  HWY_INLINE void start_group(const TileColumns&, const std::byte*) {}
  HWY_INLINE VF32 scale(const TileColumns& columns, const std::byte* group, int step, int c) const {
    return load_f32(reinterpret_cast<const Scale*>(
        columns.template at<sizeof(Scale)>(group + step * L::kScaleRowBytes, c)));
  }
  HWY_INLINE VF32 minimum(const TileColumns& columns, const std::byte* group, int step,
                          int c) const {
    return scale(columns, group + L::kMinimumOffset, step, c);
  }
};

HWY_INLINE VF32 low_half_as_f32(hn::Vec<DU32> words) {
  const hn::Rebind<std::uint16_t, DF32> d16;
  return widen(f16{}, DF32(), hn::TruncateTo(d16, words));
}

template <class Format>
inline constexpr bool kHasTwoScales = false;  // in 32 weights
template <quant::SuperBlockFormat Format>
inline constexpr bool kHasTwoScales<Format> = Format::kGroupLength == 16;

// Super-blocks: a group's scales are made at its start, and are in L1 when its steps need them.
template <quant::SuperBlockFormat Format, int kColumns>
class ScaleReader<Format, kColumns> {
  using L = quant::Packed<Format>;

 public:
  HWY_INLINE ScaleReader() {}

  HWY_INLINE void start_group(const TileColumns& columns, const std::byte* group) {
    HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) {
      const hn::Vec<DU32> words = load(columns, group, c);
      const VF32 scale = low_half_as_f32(words);
      [[maybe_unused]] const std::byte* const group_scales = group + L::kScaleOffset;
      if constexpr (kMakesAll) {
        const auto scales = load(columns, group_scales, c);
        const auto minimums = load(columns, group_scales + quant::kChunkBytes, c);
        const auto rest = load(columns, group_scales + 2 * quant::kChunkBytes, c);
        const VF32 minus = hn::Neg(low_half_as_f32(hn::ShiftRight<16>(words)));
        put(first_four(scales), scale, scales_[0][c]);
        put(last_four(scales, rest), scale, scales_[4][c]);
        put(first_four(minimums), minus, minimums_[0][c]);
        put(last_four(minimums, hn::ShiftRight<4>(rest)), minus, minimums_[4][c]);
      } else {
        hn::StoreU(scale, DF32(), scales_[0][c]);
      }
      if constexpr (std::is_same_v<Format, quant::Q2_K>) {
        const VF32 minimum = low_half_as_f32(hn::ShiftRight<16>(words));
        hn::StoreU(hn::Mul(minimum, hn::Set(DF32(), 0.125f)), DF32(), minimums_[0][c]);
      } else if constexpr (std::is_same_v<Format, quant::Q3_K>) {
        const auto first = load(columns, group_scales, c);
        const auto second = load(columns, group_scales + quant::kChunkBytes, c);
        const auto upper = load(columns, group_scales + 2 * quant::kChunkBytes, c);
        put_small(first, hn::ShiftLeft<4>(upper), small_[0][c]);
        put_small(second, hn::ShiftLeft<2>(upper), small_[1][c]);
        put_small(hn::ShiftRight<4>(first), upper, small_[2][c]);
        put_small(hn::ShiftRight<4>(second), hn::ShiftRight<2>(upper), small_[3][c]);
      }
    }
  }
  HWY_INLINE VF32 scale(const TileColumns&, const std::byte*, int step, int c) const {
    return hn::LoadU(DF32(), scales_[kMakesAll ? step : 0][c]);
  }
  HWY_INLINE VF32 minimum(const TileColumns&, const std::byte*, int step, int c) const {
    return hn::LoadU(DF32(), minimums_[kMakesAll ? step : 0][c]);
  }
  // The integer scales of the halves of a step, as TwoScaleSum needs them. `odd`: of step's number.
  HWY_INLINE VI16 halves(const TileColumns& columns, const std::byte* group, int step, bool odd,
                         int c) const {
    if constexpr (std::is_same_v<Format, quant::Q2_K>) {
      const auto both = pairs(columns, group, step, odd, c);
      return hn::BitCast(DI16(), hn::And(both, hn::Set(DU16(), 15)));
    } else if constexpr (std::is_same_v<Format, quant::Q3_K>) {
      const VI16 bytes = hn::BitCast(DI16(), hn::LoadU(DU32(), small_[step / 2][c]));
      return hn::ShiftRight<8>(odd ? bytes : hn::ShiftLeft<8>(bytes));
    } else {
      const auto words = load(columns, group + L::kScaleOffset + step / 2 * quant::kChunkBytes, c);
      const VI16 bytes = hn::BitCast(DI16(), words);
      return hn::ShiftRight<8>(odd ? bytes : hn::ShiftLeft<8>(bytes));
    }
  }
  // Their integer minimums likewise.
  HWY_INLINE VI16 minimums(const TileColumns& columns, const std::byte* group, int step, bool odd,
                           int c) const {
    return hn::BitCast(DI16(), hn::ShiftRight<4>(pairs(columns, group, step, odd, c)));
  }

 private:
  // Whether scales of steps are made from small ones.
  static constexpr bool kMakesAll = L::kHasMinimum && !kHasTwoScales<Format>;
  static constexpr int kSteps = kMakesAll ? static_cast<int>(L::kGroupSteps) : 1;
  static constexpr int kSmall = std::is_same_v<Format, quant::Q3_K> ? 4 : 1;
  using Floats = float[kLanes];

  // Q2_K: a byte with a scale and a minimum of each half, as 16-bit numbers.
  static HWY_INLINE hn::Vec<DU16> pairs(const TileColumns& columns, const std::byte* group,
                                        int step, bool odd, int c) {
    const auto words = load(columns, group + L::kScaleOffset + step / 2 * quant::kChunkBytes, c);
    const auto bytes = hn::BitCast(DU16(), words);
    return odd ? hn::ShiftRight<8>(bytes) : hn::And(bytes, hn::Set(DU16(), 255));
  }
  // Q3_K: the scales of four groups of 16 as bytes, from their low four bits and, two bits further
  // up, their upper two.
  static HWY_INLINE void put_small(hn::Vec<DU32> low, hn::Vec<DU32> upper, std::uint32_t* to) {
    const auto six_bits = hn::Or(hn::And(low, hn::Set(DU32(), 0x0F0F0F0Fu)),
                                 hn::And(upper, hn::Set(DU32(), 0x30303030u)));
    const VU8 scales = hn::Sub(hn::BitCast(DU8(), six_bits), hn::Set(DU8(), 32));
    hn::StoreU(hn::BitCast(DU32(), scales), DU32(), to);
  }

  static HWY_INLINE hn::Vec<DU32> load(const TileColumns& columns, const std::byte* chunk, int c) {
    const std::byte* words = columns.template at<4>(chunk, c);
    return hn::LoadU(DU32(), reinterpret_cast<const std::uint32_t*>(words));
  }
  // Of the steps 0 … 3 the lower six bits of bytes; of 4 … 7 the upper two, above four of `rest`.
  static HWY_INLINE hn::Vec<DU32> first_four(hn::Vec<DU32> bytes) {
    return hn::And(bytes, hn::Set(DU32(), 0x3F3F3F3Fu));
  }
  static HWY_INLINE hn::Vec<DU32> last_four(hn::Vec<DU32> bytes, hn::Vec<DU32> rest) {
    return hn::Or(hn::And(rest, hn::Set(DU32(), 0x0F0F0F0Fu)),
                  hn::And(hn::ShiftRight<2>(bytes), hn::Set(DU32(), 0x30303030u)));
  }
  // Stores the four bytes of each lane, times `factor`, kColumns vectors apart.
  static HWY_INLINE void put(hn::Vec<DU32> bytes, VF32 factor, float* to) {
    const auto byte = hn::Set(DU32(), 0xFF);
    put_one(hn::And(bytes, byte), factor, to);
    put_one(hn::And(hn::ShiftRight<8>(bytes), byte), factor, to + kColumns * kLanes);
    put_one(hn::And(hn::ShiftRight<16>(bytes), byte), factor, to + 2 * kColumns * kLanes);
    put_one(hn::ShiftRight<24>(bytes), factor, to + 3 * kColumns * kLanes);
  }
  static HWY_INLINE void put_one(hn::Vec<DU32> integers, VF32 factor, float* to) {
    const VF32 value = hn::ConvertTo(DF32(), hn::BitCast(DI32(), integers));
    hn::StoreU(hn::Mul(value, factor), DF32(), to);
  }

  HWY_ALIGN Floats scales_[kSteps][kColumns];
  HWY_ALIGN Floats minimums_[kSteps][kColumns];
  HWY_ALIGN std::uint32_t small_[kSmall][kColumns][kLanes];
};

// Super-blocks with levels have one integer of 6 bits for each step; see levels.hpp for their
// places.
template <int kColumns>
class ScaleReader<quant::IQ4_XS, kColumns> {
  using L = quant::Packed<quant::IQ4_XS>;

 public:
  HWY_INLINE ScaleReader() {}

  HWY_INLINE void start_group(const TileColumns& columns, const std::byte* group) {
    HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) {
      hn::Vec<DU32> lower = load(columns, group + L::kScaleOffset, c);
      hn::Vec<DU32> upper = load(columns, group, c);
      const VF32 scale = low_half_as_f32(upper);
      const VF32 of_offset = hn::Mul(scale, hn::Set(DF32(), -32.0f));
      upper = hn::ShiftRight<12>(upper);
      HWY_UNROLL(8) for (int step = 0; step < L::kGroupSteps; ++step) {
        const auto bits =
            hn::Or(hn::And(lower, hn::Set(DU32(), 0x0F)), hn::And(upper, hn::Set(DU32(), 0x30)));
        const VF32 integer = hn::ConvertTo(DF32(), hn::BitCast(DI32(), bits));
        // Exact, as the product and its parts are.
        hn::StoreU(hn::MulAdd(integer, scale, of_offset), DF32(), scales_[step][c]);
        lower = hn::ShiftRight<4>(lower);
        upper = hn::ShiftRight<2>(upper);
      }
    }
  }
  HWY_INLINE VF32 scale(const TileColumns&, const std::byte*, int step, int c) const {
    return hn::LoadU(DF32(), scales_[step][c]);
  }

 private:
  static HWY_INLINE hn::Vec<DU32> load(const TileColumns& columns, const std::byte* chunk, int c) {
    const std::byte* words = columns.template at<4>(chunk, c);
    return hn::LoadU(DU32(), reinterpret_cast<const std::uint32_t*>(words));
  }

  HWY_ALIGN float scales_[L::kGroupSteps][kColumns][kLanes];
};

// ---- Steps -------------------------------------------------------------------------------------
// Block formats go through k in groups of steps, and through a group in turns of two steps (or
// one): between turns only pointers change.

// Steps of kColumns vectors in the packed layout.
template <class Format, int kColumns>
class PackedSteps {
  using L = quant::Packed<Format>;

 public:
  static constexpr int kBits = kDotBits<Format>;        // of what it reads
  static constexpr bool kHasPairs = Format::kBits < 8;  // of codes in each byte of a chunk
  static constexpr int kLength = static_cast<int>(L::kStepLength);
  static constexpr bool kHasMinimum = L::kHasMinimum;
  static constexpr bool kTwoScales = kHasTwoScales<Format>;
  // What all codes that it reads are too large by.
  static constexpr int kOffset = kHasMinimum                           ? 0
                                 : kHasTernaryCodes<Format>            ? 1
                                 : std::is_same_v<Format, quant::Q3_K> ? 4
                                                                       : 1 << (kBits - 1);
  static constexpr int kGroup = static_cast<int>(L::kGroupSteps);
  static constexpr int kTurn = kGroup < 2 ? 1 : 2;
  static constexpr Index kTurnBytes = L::kGroupBytes / kGroup * kTurn;  // of a panel
  // Whether all steps of the last group exist.
  static constexpr bool kWholeGroups = quant::SuperBlockFormat<Format>;
  // Chunks of 32 weights, beside those of upper bits.
  static constexpr int kChunks = kHasPairs ? 4 : 8;
  static constexpr bool kHasInputSums = false;
  // How far apart the weights of the two vectors of a chunk are.
  static constexpr int kApart = kHasPairs ? static_cast<int>(L::kSharedByte) : 0;

  HWY_INLINE PackedSteps(const std::byte* weights, Index k, int lane)
      : columns_(L::panel_bytes(k), lane), group_(weights) {}

  HWY_INLINE void start_group() { scales_.start_group(columns_, group_); }
  HWY_INLINE void end_group() { group_ += L::kGroupBytes; }

  // Chunk j of a step of the group, one after the other.
  HWY_INLINE void read(int step, int j, int c, CodePair& pair) {
    const std::byte* const codes =
        group_ + L::kCodeOffset + step * static_cast<int>(L::kStepChunks) * quant::kChunkBytes;
    codes_.read(columns_, codes, j, c, pair);
  }
  // The bytes of a chunk as they are.
  HWY_INLINE VU8 chunk(int step, int j, int c) const {
    const std::byte* const codes =
        group_ + L::kCodeOffset + step * static_cast<int>(L::kStepChunks) * quant::kChunkBytes;
    return CodeReader<Format, kColumns>::load(columns_, codes, j, c);
  }
  HWY_INLINE VF32 scale(int step, int c) const { return scales_.scale(columns_, group_, step, c); }
  HWY_INLINE VF32 minimum(int step, int c) const {
    return scales_.minimum(columns_, group_, step, c);
  }
  HWY_INLINE VI16 halves(int step, bool odd, int c) const {
    return scales_.halves(columns_, group_, step, odd, c);
  }
  HWY_INLINE VI16 minimums(int step, bool odd, int c) const {
    return scales_.minimums(columns_, group_, step, odd, c);
  }

 private:
  const TileColumns columns_;
  const std::byte* HWY_RESTRICT group_;
  CodeReader<Format, kColumns> codes_;
  ScaleReader<Format, kColumns> scales_;
};

// A step of 32 weights, widened: a byte for each code, scales in f32.
template <int kColumns, bool kHasMinimums = false>
struct WideStep {
  HWY_ALIGN float scales[kColumns][kLanes];
  HWY_ALIGN float more[kColumns][kLanes];  // minimums, or both integer scales as TwoScaleSum's
  HWY_ALIGN std::uint8_t codes[4][2][kColumns][4 * kLanes];
};
template <int kColumns>
struct WideStep<kColumns, true> : WideStep<kColumns> {
  HWY_ALIGN float minimums[kColumns][kLanes];  // besides both integer minimums, above the scales
};

// Widened steps. Formats whose codes have at most Bits bits, and the same kinds of scales, share
// the code that multiplies them.
template <int Bits, bool HasMinimum, bool TwoScales, int kColumns>
class WideSteps {
 public:
  static constexpr int kBits = Bits;
  static constexpr bool kHasPairs = true;
  static constexpr int kLength = 32;
  static constexpr bool kHasMinimum = HasMinimum;
  static constexpr bool kTwoScales = TwoScales;
  static constexpr int kOffset = HasMinimum ? 0 : 1 << (Bits - 1);
  static constexpr int kVectorsOfStep = kColumns;
  static constexpr int kGroup = 2;
  static constexpr int kTurn = 2;
  static constexpr Index kTurnBytes = 0;  // of a panel: none is read
  static constexpr bool kWholeGroups = false;
  static constexpr int kChunks = 4;
  static constexpr int kApart = TwoScales ? 8 : 16;
  // How many steps are widened at a time: they, and a tile's inputs, stay in L1.
  using Step = WideStep<kColumns, HasMinimum && TwoScales>;
  static constexpr int kMaxSteps =
      static_cast<int>((HasMinimum && TwoScales ? 22 << 10 : 20 << 10) / sizeof(Step)) / 8 * 8;
  static_assert(kMaxSteps > 0);
  // input_sums[r][s]: the sum of the inputs of row r that step s multiplies.
  static constexpr bool kHasInputSums = true;
  using InputSums = float[kMaxSteps];

  HWY_INLINE WideSteps(const Step* steps, const InputSums* input_sums)
      : steps_(steps), input_sums_(input_sums[0]) {}

  HWY_INLINE void start_group() {}
  HWY_INLINE void end_group() {
    steps_ += kGroup;
    input_sums_ += kGroup;
  }
  HWY_INLINE float input_sum(int r, int step) const { return input_sums_[r * kMaxSteps + step]; }
  HWY_INLINE void read(int step, int j, int c, CodePair& pair) const {
    pair.low.set(hn::LoadU(DU8(), steps_[step].codes[j][0][c]));
    pair.high.set(hn::LoadU(DU8(), steps_[step].codes[j][1][c]));
  }
  HWY_INLINE VF32 scale(int step, int c) const { return hn::LoadU(DF32(), steps_[step].scales[c]); }
  HWY_INLINE VF32 minimum(int step, int c) const {
    if constexpr (TwoScales) {
      return hn::LoadU(DF32(), steps_[step].minimums[c]);
    } else {
      return hn::LoadU(DF32(), steps_[step].more[c]);
    }
  }
  HWY_INLINE VI16 halves(int step, bool, int c) const {
    const VI16 scales = hn::BitCast(DI16(), hn::LoadU(DF32(), steps_[step].more[c]));
    return HasMinimum ? hn::And(scales, hn::Set(DI16(), 255)) : scales;
  }
  HWY_INLINE VI16 minimums(int step, bool, int c) const {
    return hn::ShiftRight<8>(hn::BitCast(DI16(), hn::LoadU(DF32(), steps_[step].more[c])));
  }

 private:
  const Step* HWY_RESTRICT steps_;
  const float* HWY_RESTRICT input_sums_;
};

// The sums of the inputs of n blocks, from the sums of their codes and their scales.
HWY_INLINE void sum_inputs(const std::int32_t* code_sums, const float* scales, Index n,
                           float* HWY_RESTRICT sums) {
  const VF32 eighth = hn::Set(DF32(), -0.125f);
  Index i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const VF32 codes = hn::Mul(eighth, hn::ConvertTo(DF32(), hn::LoadU(DI32(), code_sums + i)));
    hn::StoreU(hn::Mul(codes, hn::LoadU(DF32(), scales + i)), DF32(), sums + i);
  }
  for (; i < n; ++i) sums[i] = -0.125f * static_cast<float>(code_sums[i]) * scales[i];
}

template <class Format, int kColumns>
using WideStepsOf = WideSteps<(kHasTwoScales<Format>  ? 6
                               : kDotBits<Format> < 5 ? 5
                                                      : kDotBits<Format>),
                              quant::Packed<Format>::kHasMinimum, kHasTwoScales<Format>, kColumns>;

// Widens n_steps steps from the group at `weights` on; see PackedSteps for k and lane.
template <class Format, int kColumns>
HWY_NOINLINE void widen_steps(const std::byte* weights, Index k, int lane, int n_steps,
                              typename WideStepsOf<Format, kColumns>::Step* HWY_RESTRICT out) {
  using Steps = PackedSteps<Format, kColumns>;
  constexpr int kMore = WideStepsOf<Format, kColumns>::kOffset - Steps::kOffset;
  Steps steps(weights, k, lane);
  for (int first = 0; first < n_steps; first += Steps::kGroup) {
    steps.start_group();
    for (int turn = 0; turn < Steps::kGroup && first + turn < n_steps; turn += Steps::kTurn) {
      HWY_UNROLL(2) for (int s = 0; s < Steps::kTurn; ++s) {
        if (!Steps::kWholeGroups && first + turn + s >= n_steps) break;
        HWY_UNROLL(8) for (int j = 0; j < Steps::kChunks; ++j) {
          HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) {
            CodePair pair;
            steps.read(turn + s, j, c, pair);
            if constexpr (kMore > 0) {
              const VU8 more = hn::Set(DU8(), kMore);
              pair.low.set(hn::Add(pair.low.get(), more));
              pair.high.set(hn::Add(pair.high.get(), more));
            }
            constexpr bool kInOrder = Steps::kApart == 4;  // weights 8 j … and 8 j + 4 …
            const int low = kInOrder ? 2 * j : j, high = kInOrder ? 2 * j + 1 : j + 4;
            hn::StoreU(pair.low.get(), DU8(), out->codes[low % 4][low / 4][c]);
            hn::StoreU(pair.high.get(), DU8(), out->codes[high % 4][high / 4][c]);
          }
        }
        HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) {
          hn::StoreU(steps.scale(turn + s, c), DF32(), out->scales[c]);
          if constexpr (Steps::kHasMinimum && !Steps::kTwoScales) {
            hn::StoreU(steps.minimum(turn + s, c), DF32(), out->more[c]);
          }
          if constexpr (Steps::kTwoScales) {
            VI16 halves = steps.halves(turn + s, s % 2 != 0, c);
            if constexpr (Steps::kHasMinimum) {
              const VI16 minimums = steps.minimums(turn + s, s % 2 != 0, c);
              halves = hn::Or(halves, hn::ShiftLeft<8>(minimums));
              hn::StoreU(steps.minimum(turn + s, c), DF32(), out->minimums[c]);
            }
            hn::StoreU(hn::BitCast(DF32(), halves), DF32(), out->more[c]);
          }
        }
        ++out;
      }
    }
    steps.end_group();
  }
}

// ---- Fetching ahead ----------------------------------------------------------------------------
// Weights mostly come from memory, and the hardware prefetchers start anew at every panel and page.
// Therefore the tiles prefetch weights themselves, as Tuning says. Measured cold on a Zen 5 with
// K = N = 4096, Q4_0, on one thread, as a fraction of the read bandwidth: M = 1 goes from 63 % to
// 80-94 %, M = 4 from 46 % to 80-87 %. M = 8 reaches 90-98 % of its rate with the weights in L3.
//
// Few rows: panel after panel is one stream, fetched a fixed distance ahead. (On the Zen 5, two
// panels side by side have half the speed; fetching only the start of each page, or every line
// twice, gains nothing.) A processor that runs far ahead asks for weights before the fetched ones
// have arrived: fewer instructions, or shorter chains of them, can make M = 1 slower (see DotSum).
//
// Many rows: the panels that come next are fetched while the present ones are used, a share by each
// tile, so that memory never waits for arithmetic. They are fetched a line or two in each step:
// bursts would delay the tile's own weights (Q8_0 from 65 to 73 % of the peak). Splitting k into
// parts whose weights stay in L1 costs more than it gains; so did fetching from L2 into L1.
struct PanelPrefetcher {
  const std::byte* next = nullptr;  // null: nothing to fetch
  Index share = 0;                  // bytes to fetch per step; 0: as many as it reads
  Fetch into = Fetch::none;

  // Called in each step of a tile, in which the tile reads kBytes of its own weights.
  template <Index kBytes>
  HWY_INLINE void step() {
    if (next == nullptr) return;
    if (share == 0) {
      prefetch_lines<kBytes>(into, next);
      next += kBytes;
    } else {
      const std::byte* const end = next + share;
      for (; next < end; next += 64) prefetch_lines<64>(into, next);
    }
  }
};

// How many panels kColumns vectors touch.
template <int kColumns>
inline constexpr int kPanelsOf = kColumns < kVectors ? 1 : kColumns / kVectors;

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
