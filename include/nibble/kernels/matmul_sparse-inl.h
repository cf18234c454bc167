// SPDX-License-Identifier: Apache-2.0
//
// Matrix products with sparse weights (quant/sparse.hpp).
//
// Few rows of activations: a tile goes through a panel once and expands each step for itself. Many:
// a part of a panel is expanded for all of them, so that it stays in L1, and sums are in memory
// between parts. The order of the sums is the same.

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_MATMUL_SPARSE_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_MATMUL_SPARSE_INL_H_
#undef NIBBLE_KERNELS_MATMUL_SPARSE_INL_H_
#else
#define NIBBLE_KERNELS_MATMUL_SPARSE_INL_H_
#endif

#include <algorithm>
#include <cstring>

#include "hwy/highway.h"
#include "nibble/kernels/matmul-inl.h"
#include "nibble/quant/sparse.hpp"
#if HWY_ARCH_X86_64 && HWY_TARGET <= HWY_AVX2
#include "nibble/simd/detect.hpp"
#endif

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

namespace sparse_detail {

namespace layout = quant::sparse;
inline constexpr int kStep = static_cast<int>(layout::kStep);
inline constexpr int kVectorBytes = 4 * kLanes;

// ---- Fetching ahead ----------------------------------------------------------------------------
// A panel is one stream, as for dense weights with few rows, but its steps differ in size.
struct StreamPrefetcher {
  Fetch into = Fetch::none;
  Index distance = 0;
  Index lines = 0;  // of each step

  HWY_INLINE void step(const std::byte* at) const {
    if (into == Fetch::none) return;
    for (Index i = 0; i < lines; ++i) prefetch_lines<64>(into, at + distance + 64 * i);
  }
};

// ---- Bit masks ---------------------------------------------------------------------------------

// pdep, which simd::has_fast_bit_deposit() says when to use.
#undef NIBBLE_HAVE_BIT_DEPOSIT
#if HWY_ARCH_X86_64 && HWY_TARGET <= HWY_AVX2
#define NIBBLE_HAVE_BIT_DEPOSIT 1
HWY_INLINE std::uint64_t deposit_bits(std::uint64_t bits, std::uint64_t mask) {
  return _pdep_u64(bits, mask);
}
#else
#define NIBBLE_HAVE_BIT_DEPOSIT 0
#endif

// The same where there is no such instruction: a nibble of the mask at a time.
HWY_INLINE std::uint64_t deposit_bits_slowly(std::uint64_t bits, std::uint64_t mask) {
  std::uint64_t out = 0;
  for (int i = 0; i < 64 && bits != 0; i += 4) {
    const auto nibble = static_cast<std::size_t>(mask >> i & 15);
    const auto& places = quant::sparse::kDeposits.of[nibble];
    out |= std::uint64_t{places.of[bits & 15]} << i;
    bits >>= places.count;
  }
  return out;
}

// The planes of a step: a 64-bit word for each of its masks, zeros inserted.
struct Planes {
  alignas(64) std::uint64_t of[4][8];
};

// Expands the planes of the step at `record`; returns the step that follows.
template <bool kFast>
HWY_INLINE const std::byte* expand_planes(const std::byte* HWY_RESTRICT record,
                                          Planes& HWY_RESTRICT out) {
  std::uint64_t masks[8];
  std::size_t first[9];  // of each mask's bits in the planes
  first[0] = 0;
  bool is_full = false;  // a word that is loaded from a byte has 57 bits of the plane at least
  HWY_UNROLL(8) for (int w = 0; w < 8; ++w) {
    masks[w] = layout::load<std::uint64_t>(record + layout::kScaleBytes + 8 * w);
    const std::size_t n = hwy::PopCount(masks[w]);
    first[w + 1] = first[w] + n;
    is_full |= n > 57;
  }
  const std::size_t plane_bytes = (first[8] + 7) / 8;
  const std::byte* const planes = record + layout::kScaleBytes + layout::kMaskBytes;
#if NIBBLE_HAVE_BIT_DEPOSIT
  if (kFast && HWY_LIKELY(!is_full)) {
    const std::byte* const p0 = planes;
    const std::byte* const p1 = p0 + plane_bytes;
    const std::byte* const p2 = p1 + plane_bytes;
    const std::byte* const p3 = p2 + plane_bytes;
    HWY_UNROLL(8) for (int w = 0; w < 8; ++w) {
      const std::size_t byte = first[w] >> 3, shift = first[w] & 7;
      const auto deposit = [&](const std::byte* plane) NIBBLE_ATTR {
        return deposit_bits(layout::load<std::uint64_t>(plane + byte) >> shift, masks[w]);
      };
      out.of[0][w] = deposit(p0);
      out.of[1][w] = deposit(p1);
      out.of[2][w] = deposit(p2);
      out.of[3][w] = deposit(p3);
    }
    return planes + 4 * plane_bytes;
  }
#endif
  for (std::size_t w = 0; w < 8; ++w) {
    const std::size_t byte = first[w] >> 3, shift = first[w] & 7, n = first[w + 1] - first[w];
    for (std::size_t b = 0; b < 4; ++b) {
      const std::byte* const at = planes + b * plane_bytes + byte;
      std::uint64_t bits = layout::load<std::uint64_t>(at) >> shift;
      if (shift > 0) bits |= std::to_integer<std::uint64_t>(at[8]) << (64 - shift);
      if (n < 64) bits &= (std::uint64_t{1} << n) - 1;
      if constexpr (kFast) {
#if NIBBLE_HAVE_BIT_DEPOSIT
        out.of[b][w] = deposit_bits(bits, masks[w]);
#endif
      } else {
        out.of[b][w] = deposit_bits_slowly(bits, masks[w]);
      }
    }
  }
  return planes + 4 * plane_bytes;
}
// Not inlined: rare.
HWY_NOINLINE inline const std::byte* expand_planes_slowly(const std::byte* record, Planes& out) {
  return expand_planes<false>(record, out);
}

// Whether expand_planes<true> is the faster one.
HWY_INLINE bool deposits_fast() {
#if NIBBLE_HAVE_BIT_DEPOSIT
  return simd::has_fast_bit_deposit();
#else
  return false;
#endif
}

// Codes in the layout of Packed<Q4_0>: four chunks of 64 bytes.
using Codes = std::uint8_t[256];

// Joins the planes to codes: transposes each 4 by 4 bits.
HWY_INLINE void join_planes(const Planes& planes, Codes& out) {
  using DU64 = hn::Repartition<std::uint64_t, DU8>;
  using V = hn::Vec<DU64>;
  const DU64 d;
  const V m1 = hn::Set(d, 0x5555555555555555u), m2 = hn::Set(d, 0x3333333333333333u);
  constexpr int kWords = kVectorBytes / 8;
  HWY_UNROLL(4) for (int w = 0; w < 8; w += kWords) {
    const V p0 = hn::LoadU(d, planes.of[0] + w), p1 = hn::LoadU(d, planes.of[1] + w);
    const V p2 = hn::LoadU(d, planes.of[2] + w), p3 = hn::LoadU(d, planes.of[3] + w);
    const V low_even = hn::Or(hn::And(p0, m1), hn::ShiftLeft<1>(hn::And(p1, m1)));
    const V low_odd = hn::Or(hn::And(hn::ShiftRight<1>(p0), m1), hn::AndNot(m1, p1));
    const V high_even = hn::Or(hn::And(p2, m1), hn::ShiftLeft<1>(hn::And(p3, m1)));
    const V high_odd = hn::Or(hn::And(hn::ShiftRight<1>(p2), m1), hn::AndNot(m1, p3));
    const V eights = hn::Set(d, 0x8888888888888888u);
    // The four vectors of a half: the bits 4 g + q of the masks.
    const auto put = [&](int q, V v) NIBBLE_ATTR {
      v = hn::Xor(v, eights);
      if constexpr (kWords == 8) {
        const hn::Half<DU64> half;
        hn::StoreU(hn::LowerHalf(half, v), half, reinterpret_cast<std::uint64_t*>(out + 32 * q));
        hn::StoreU(hn::UpperHalf(half, v), half,
                   reinterpret_cast<std::uint64_t*>(out + 128 + 32 * q));
      } else {
        hn::StoreU(v, d,
                   reinterpret_cast<std::uint64_t*>(out + w / 4 * 128 + 32 * q + w % 4 * 8));
      }
    };
    const auto first = [&](V a, V b) NIBBLE_ATTR {
      return hn::Or(hn::And(a, m2), hn::ShiftLeft<2>(hn::And(b, m2)));
    };
    const auto second = [&](V a, V b) NIBBLE_ATTR {
      return hn::Or(hn::And(hn::ShiftRight<2>(a), m2), hn::AndNot(m2, b));
    };
    put(0, first(low_even, high_even));
    put(1, first(low_odd, high_odd));
    put(2, second(low_even, high_even));
    put(3, second(low_odd, high_odd));
  }
}

// Steps of a whole panel, for add_steps() of matmul_tile-inl.h.
class MaskedSteps {
 public:
  static constexpr int kBits = 4;
  static constexpr int kLength = kStep;
  static constexpr bool kHasMinimum = false;
  static constexpr bool kTwoScales = false;
  static constexpr int kGroup = 1;
  static constexpr int kTurn = 1;
  static constexpr Index kTurnBytes = 0;  // fetched here
  static constexpr bool kWholeGroups = true;
  static constexpr int kChunks = 4;
  static constexpr bool kHasInputSums = false;
  static constexpr int kApart = 16;

  // n_steps ≥ 1.
  HWY_INLINE MaskedSteps(const std::byte* panel, Index n_steps, StreamPrefetcher prefetcher)
      : next_(panel), left_(n_steps), prefetcher_(prefetcher), is_fast_(deposits_fast()) {
    expand();
  }

  // A step's planes are expanded one step ahead: the vectors that join them would otherwise wait
  // for the words to arrive in the cache.
  HWY_INLINE void start_group() {
    scales_ = record_;
    const Planes& planes = planes_[turn_];
    turn_ ^= 1;
    if (left_ > 0) expand();
    join_planes(planes, codes_);
  }
  HWY_INLINE void end_group() {}
  HWY_INLINE void read(int, int j, int c, CodePair& pair) const {
    const VU8 both = hn::LoadU(DU8(), codes_ + j * static_cast<int>(quant::kChunkBytes) +
                                          c * kVectorBytes);
    pair.low.set(low_nibbles(both));
    pair.high.set(high_nibbles(both));
  }
  HWY_INLINE VF32 scale(int, int c) const {
    return load_f32(reinterpret_cast<const f16*>(scales_) + c * kLanes);
  }

 private:
  HWY_INLINE void expand() {
    record_ = next_;
    prefetcher_.step(record_);
#if NIBBLE_HAVE_BIT_DEPOSIT
    if (HWY_LIKELY(is_fast_)) {
      next_ = expand_planes<true>(record_, planes_[turn_]);
      --left_;
      return;
    }
#endif
    next_ = expand_planes_slowly(record_, planes_[turn_]);
    --left_;
  }

  Planes planes_[2];
  alignas(64) Codes codes_;
  const std::byte* next_;
  const std::byte* record_ = nullptr;  // of the planes
  const std::byte* scales_ = nullptr;
  Index left_;  // steps that are not expanded
  int turn_ = 0;  // of the planes
  StreamPrefetcher prefetcher_;
  [[maybe_unused]] bool is_fast_;
};

}  // namespace sparse_detail

// How a sparse format computes the sums of a panel.
template <class Format>
struct SparsePanel;

template <>
struct SparsePanel<quant::Q4_0Bitmask> {
  using L = quant::Packed<quant::Q4_0Bitmask>;

  // Few rows: sums[kRows][16].
  template <int kRows>
  static HWY_INLINE void sums_of_rows(const kernels::MatmulInput& in, Index k,
                                      const std::byte* panel,
                                      sparse_detail::StreamPrefetcher prefetcher,
                                      float* HWY_RESTRICT out) {
    Sums<kRows, kVectors> sums;
    sums.fill(hn::Zero(DF32()));
    add_steps<false>(in, L::n_steps(k), sparse_detail::MaskedSteps(panel, L::n_steps(k), prefetcher),
                     PanelPrefetcher(), sums);
    sums.store(out, quant::kPanelRows);
  }

  // Many rows: m of them.
  template <int kMaxRows>
  static HWY_INLINE void sums_of_many(const kernels::MatmulInput& in, Index m, Index k,
                                      const std::byte* panel,
                                      sparse_detail::StreamPrefetcher prefetcher,
                                      float* HWY_RESTRICT sums) {
    using Steps = WideSteps<4, false, false, kVectors>;
    constexpr int kMaxSteps = Steps::kMaxSteps;
    WideStep<kVectors> wide[kMaxSteps];
    std::fill_n(sums, m * quant::kPanelRows, 0.0f);
    const Index n_steps = L::n_steps(k);
    sparse_detail::MaskedSteps steps(panel, n_steps, prefetcher);
    for (Index step = 0; step < n_steps; step += kMaxSteps) {
      const auto n = static_cast<int>(HWY_MIN(Index{kMaxSteps}, n_steps - step));
      for (int s = 0; s < n; ++s) widen(steps, wide[s]);
      for (Index row = 0; row < m;) {
        kernels::MatmulInput rows = in.rows_from(row);
        rows.codes += step * kLengthOfStep;
        rows.scales += step;
        rows.code_sums += step;
        float* const at = sums + row * quant::kPanelRows;
        if (kMaxRows >= 4 && m - row >= 4) {
          wide_tile<4, Steps>(rows, n, wide, PanelPrefetcher(), at);
          row += 4;
        } else if (kMaxRows >= 2 && m - row >= 2) {
          wide_tile<2, Steps>(rows, n, wide, PanelPrefetcher(), at);
          row += 2;
        } else {
          wide_tile<1, Steps>(rows, n, wide, PanelPrefetcher(), at);
          ++row;
        }
      }
    }
  }

  // Lines that are fetched in each step: those of an average one, and half as many again.
  static Index lines_of_step(Index panel_bytes, Index k) noexcept {
    return (3 * panel_bytes / (2 * L::n_steps(k)) + 63) / 64;
  }

 private:
  static constexpr Index kLengthOfStep = quant::sparse::kStep;

  static HWY_INLINE void widen(sparse_detail::MaskedSteps& steps, WideStep<kVectors>& out) {
    steps.start_group();
    HWY_UNROLL(4) for (int j = 0; j < 4; ++j) {
      HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) {
        CodePair pair;
        steps.read(0, j, c, pair);
        hn::StoreU(pair.low.get(), DU8(), out.codes[j][0][c]);
        hn::StoreU(pair.high.get(), DU8(), out.codes[j][1][c]);
      }
    }
    HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) {
      hn::StoreU(steps.scale(0, c), DF32(), out.scales[c]);
    }
    steps.end_group();
  }
};

// ---- Blocks of 16 rows by 4 --------------------------------------------------------------------
// Codes are multiplied as signed numbers, so that what is not stored adds nothing.

namespace sparse_detail {

// The sum of a step's products of signed codes for one vector of rows. Where an instruction
// multiplies unsigned by signed bytes, activations get an offset of 128, and 128 times the sum of
// the codes is subtracted: `correction`, made from the sum of a step's codes (|sum| ≤ 64).
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_SSSE3
HWY_INLINE VU8 input_of(VI8 x) { return hn::BitCast(DU8(), hn::Xor(x, hn::Set(DI8(), -128))); }
#if HWY_TARGET > HWY_AVX3_DL
// In saturating 16 bits: |pair| ≤ 2 * 255 * 8 = 4080, of which a step has eight.
struct SignedDot {
  Register<DI16> pairs;
  HWY_INLINE SignedDot() {}
  HWY_INLINE void start() { pairs.set(hn::Zero(DI16())); }
  HWY_INLINE void add(VI8 w, VU8 x) {
    add_in_order(pairs, hn::SatWidenMulPairwiseAdd(DI16(), x, w));
  }
  static HWY_INLINE VI8 correction(VI8 code_sum) {
    const VU8 offset = hn::Set(DU8(), 128);
    return hn::BitCast(DI8(), hn::SatWidenMulPairwiseAdd(DI16(), offset, code_sum));
  }
  HWY_INLINE VI32 total(VI8 correction) const {
    const VI16 sum = hn::Sub(pairs.get(), hn::BitCast(DI16(), correction));
    return hn::WidenMulPairwiseAdd(DI32(), sum, hn::Set(DI16(), 1));
  }
};
#else
struct SignedDot {
  Register<DI32> sum;
  HWY_INLINE SignedDot() {}
  HWY_INLINE void start() { sum.set(hn::Zero(DI32())); }
  HWY_INLINE void add(VI8 w, VU8 x) {
    sum.set(hn::SumOfMulQuadAccumulate(DI32(), x, w, sum.get()));
  }
  static HWY_INLINE VI8 correction(VI8 code_sum) {
    const VU8 offset = hn::Set(DU8(), 128);
    return hn::BitCast(
        DI8(), hn::SumOfMulQuadAccumulate(DI32(), offset, code_sum, hn::Zero(DI32())));
  }
  HWY_INLINE VI32 total(VI8 correction) const {
    return hn::Sub(sum.get(), hn::BitCast(DI32(), correction));
  }
};
#endif
#else
HWY_INLINE VI8 input_of(VI8 x) { return x; }
struct SignedDot {
  Register<DI32> sum;
  HWY_INLINE SignedDot() {}
  HWY_INLINE void start() { sum.set(hn::Zero(DI32())); }
  HWY_INLINE void add(VI8 w, VI8 x) {
#if HWY_ARCH_ARM
    sum.set(dot4(w, x, sum.get()));
#else
    sum.set(hn::SumOfMulQuadAccumulate(DI32(), w, x, sum.get()));
#endif
  }
  static HWY_INLINE VI8 correction(VI8 code_sum) { return code_sum; }
  HWY_INLINE VI32 total(VI8) const { return sum.get(); }
};
#endif

// The codes of a block of 16 rows by 4 weights, signed.
HWY_INLINE void read_block(const std::byte* block, Register<DI8> (&codes)[kVectors]) {
  const auto* const bytes = reinterpret_cast<const std::uint8_t*>(block);
  const VU8 eight = hn::Set(DU8(), 8);
  const auto put = [&](int c, VU8 code) NIBBLE_ATTR {
    codes[c].set(hn::BitCast(DI8(), hn::Sub(code, eight)));
  };
  if constexpr (kVectors == 1) {
    const hn::Half<DU8> half;
    const auto both = hn::LoadU(half, bytes);
    const auto high = hn::BitCast(
        half, hn::ShiftRight<4>(hn::BitCast(hn::Repartition<std::uint16_t, hn::Half<DU8>>(), both)));
    put(0, low_nibbles(hn::Combine(DU8(), high, both)));
  } else {
    HWY_UNROLL(2) for (int c = 0; c < kVectors / 2; ++c) {
      const VU8 both = hn::LoadU(DU8(), bytes + c * kVectorBytes);
      put(c, low_nibbles(both));
      put(c + kVectors / 2, high_nibbles(both));
    }
  }
}

// Where the blocks of a step are in the inputs: four times the numbers of the bits, first to last.
HWY_INLINE const std::uint8_t* offsets_of(std::uint32_t entry) {
  return quant::sparse::kBlockOffsets.of[entry & 0xFF];
}

// The steps of a panel as they are stored.
class StoredBlocks {
 public:
  HWY_INLINE StoredBlocks(const std::byte* record, StreamPrefetcher prefetcher)
      : record_(record), prefetcher_(prefetcher) {}

  HWY_INLINE void start(std::uint32_t entry) {
    prefetcher_.step(record_);
    block_ = record_ + layout::kScaleBytes;
    end_ = record_ + layout::record_bytes(entry);
    HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) { code_sums_[c].set(hn::Zero(DI8())); }
  }
  HWY_INLINE void read(Register<DI8> (&codes)[kVectors]) {
    read_block(block_, codes);
    block_ += layout::kBlockBytes;
    HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) {
      code_sums_[c].set(hn::Add(code_sums_[c].get(), codes[c].get()));
    }
  }
  HWY_INLINE VF32 scale(int c) const {
    return load_f32(reinterpret_cast<const f16*>(record_) + c * kLanes);
  }
  HWY_INLINE VI8 correction(int c) const { return SignedDot::correction(code_sums_[c].get()); }
  HWY_INLINE void end() { record_ = end_; }
  HWY_INLINE const std::byte* record() const { return record_; }

 private:
  const std::byte* record_;
  const std::byte* block_ = nullptr;
  const std::byte* end_ = nullptr;
  StreamPrefetcher prefetcher_;
  Register<DI8> code_sums_[kVectors];
};

// The same, expanded: f32 scales, corrections, and a byte for each code.
class WideBlocks {
 public:
  static constexpr Index kHeader = 128;  // of scales and corrections
  static constexpr Index kBytes = 64;    // of a block
  static constexpr Index bytes_of(std::uint32_t entry) {
    return kHeader + kBytes * (layout::record_bytes(entry) - layout::kScaleBytes) /
                         layout::kBlockBytes;
  }

  HWY_INLINE explicit WideBlocks(const std::byte* at) : next_(at) {}

  HWY_INLINE void start(std::uint32_t) {
    step_ = next_;
    next_ += kHeader;
  }
  HWY_INLINE void read(Register<DI8> (&codes)[kVectors]) {
    HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) {
      codes[c].set(hn::LoadU(
          DI8(), reinterpret_cast<const std::int8_t*>(next_) + c * kVectorBytes));
    }
    next_ += kBytes;
  }
  HWY_INLINE VF32 scale(int c) const {
    return hn::LoadU(DF32(), reinterpret_cast<const float*>(step_) + c * kLanes);
  }
  HWY_INLINE VI8 correction(int c) const {
    return hn::LoadU(DI8(),
                     reinterpret_cast<const std::int8_t*>(step_) + 64 + c * kVectorBytes);
  }
  HWY_INLINE void end() {}

 private:
  const std::byte* step_ = nullptr;
  const std::byte* next_;
};

// Expands the step of an entry to `out`; returns its end.
HWY_INLINE std::byte* widen_blocks(StoredBlocks& steps, std::uint32_t entry, std::byte* out) {
  steps.start(entry);
  std::byte* codes_out = out + WideBlocks::kHeader;
  for (std::size_t n = hwy::PopCount(entry & 0xFF); n > 0; --n) {
    Register<DI8> codes[kVectors];
    steps.read(codes);
    HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) {
      hn::StoreU(codes[c].get(), DI8(),
                 reinterpret_cast<std::int8_t*>(codes_out) + c * kVectorBytes);
    }
    codes_out += WideBlocks::kBytes;
  }
  HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) {
    hn::StoreU(steps.scale(c), DF32(), reinterpret_cast<float*>(out) + c * kLanes);
    hn::StoreU(steps.correction(c), DI8(),
               reinterpret_cast<std::int8_t*>(out) + 64 + c * kVectorBytes);
  }
  steps.end();
  return codes_out;
}

// Adds the products of kRows rows with the steps of n entries to sums[kRows][16].
template <int kRows, class Steps>
HWY_NOINLINE void add_blocks(const kernels::MatmulInput& in, const std::byte* entries, Index n,
                             Steps steps, float* HWY_RESTRICT sums_inout) {
  Sums<kRows, kVectors> sums;
  sums.load(sums_inout, quant::kPanelRows);
  for (Index e = 0; e < n; ++e) {
    const auto entry = layout::load<std::uint32_t>(entries + 4 * e);
    const auto step = static_cast<Index>(entry >> 8);
    const std::int8_t* HWY_RESTRICT x = in.codes + step * kStep;
    const std::uint8_t* HWY_RESTRICT offsets = offsets_of(entry);
    SignedDot dot[kRows][kVectors];
    HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) { dot[r][c].start(); }
    }
    steps.start(entry);
    for (std::size_t left = hwy::PopCount(entry & 0xFF); left > 0; --left) {
      const std::int8_t* const at = x + *offsets++;
      Register<DI8> codes[kVectors];
      steps.read(codes);
      HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
        const auto input = input_of(broadcast4(at + r * in.code_stride));
        HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) { dot[r][c].add(codes[c].get(), input); }
      }
    }
    HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) {
      const VF32 scale = steps.scale(c);
      const VI8 correction = steps.correction(c);
      HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
        const VF32 total = hn::ConvertTo(DF32(), dot[r][c].total(correction));
        const VF32 x_scale = hn::Set(DF32(), in.scales[r * in.n_blocks + step]);
        sums.set(r, c, hn::MulAdd(total, hn::Mul(scale, x_scale), sums.get(r, c)));
      }
    }
    steps.end();
  }
  sums.store(sums_inout, quant::kPanelRows);
}

}  // namespace sparse_detail

template <>
struct SparsePanel<quant::Q4_0Blocks16x4> {
  using Stored = sparse_detail::StoredBlocks;
  using Wide = sparse_detail::WideBlocks;

  template <int kRows>
  static HWY_INLINE void sums_of_rows(const kernels::MatmulInput& in, Index,
                                      const std::byte* panel,
                                      sparse_detail::StreamPrefetcher prefetcher,
                                      float* HWY_RESTRICT out) {
    std::fill_n(out, kRows * quant::kPanelRows, 0.0f);
    const Index n = n_entries(panel);
    sparse_detail::add_blocks<kRows>(in, panel + 4, n, Stored(records(panel, n), prefetcher), out);
  }

  template <int kMaxRows>
  static HWY_INLINE void sums_of_many(const kernels::MatmulInput& in, Index m, Index,
                                      const std::byte* panel,
                                      sparse_detail::StreamPrefetcher prefetcher,
                                      float* HWY_RESTRICT sums) {
    std::fill_n(sums, m * quant::kPanelRows, 0.0f);
    alignas(64) std::byte part[kPartBytes];
    const Index n = n_entries(panel);
    Stored steps(records(panel, n), prefetcher);
    for (Index e = 0; e < n;) {
      const std::byte* const entries = panel + 4 * (e + 1);
      std::byte* end = part;
      Index n_part = 0;
      for (; e < n; ++e, ++n_part) {
        const auto entry = quant::sparse::load<std::uint32_t>(panel + 4 * (e + 1));
        if (end + Wide::bytes_of(entry) > part + kPartBytes) break;
        end = sparse_detail::widen_blocks(steps, entry, end);
      }
      for (Index row = 0; row < m;) {
        const kernels::MatmulInput rows = in.rows_from(row);
        float* const at = sums + row * quant::kPanelRows;
        const auto add = [&]<int kRows>(std::integral_constant<int, kRows>) NIBBLE_ATTR {
          sparse_detail::add_blocks<kRows>(rows, entries, n_part, Wide(part), at);
          row += kRows;
        };
        if (kMaxRows >= 4 && m - row >= 4) {
          add(std::integral_constant<int, (kMaxRows >= 4 ? 4 : 1)>());
        } else if (kMaxRows >= 2 && m - row >= 2) {
          add(std::integral_constant<int, (kMaxRows >= 2 ? 2 : 1)>());
        } else {
          add(std::integral_constant<int, 1>());
        }
      }
    }
  }

  static Index lines_of_step(Index panel_bytes, Index k) noexcept {
    return SparsePanel<quant::Q4_0Bitmask>::lines_of_step(panel_bytes, k);
  }

 private:
  // What is expanded at a time stays in L1, together with the inputs of a tile.
  static constexpr Index kPartBytes = 20 << 10;

  static HWY_INLINE Index n_entries(const std::byte* panel) {
    return static_cast<Index>(quant::sparse::load<std::uint32_t>(panel));
  }
  static HWY_INLINE const std::byte* records(const std::byte* panel, Index n) {
    return panel + quant::sparse::records_at(n);
  }
};

// ---- The walk over panels ----------------------------------------------------------------------

// As high as fits the registers beside a whole panel: TileShape's narrow tiles.
template <class Format, int kRows>
HWY_INLINE void compute_sparse_tile(const kernels::MatmulArgs& args, Index row, Index panel) {
  using L = quant::Packed<Format>;
  HWY_ALIGN float sums[2][kRows * quant::kPanelRows];
  const auto input = args.input.rows_from(row);
  const auto compute = [&](const std::byte* matrix, float* out) NIBBLE_ATTR {
    const sparse_detail::StreamPrefetcher prefetcher{
        args.tuning.weights, args.tuning.weights_distance,
        SparsePanel<Format>::lines_of_step(L::panel_bytes(matrix, panel), args.k)};
    SparsePanel<Format>::template sums_of_rows<kRows>(input, args.k, L::panel(matrix, panel),
                                                      prefetcher, out);
  };
  compute(args.weights, sums[0]);
  if (args.gate != nullptr) compute(args.gate, sums[1]);
  args.finish(args, sums[0], sums[1], {row, panel * quant::kPanelRows, kRows, kVectors});
}

template <class Format, int kMaxRows>
HWY_NOINLINE void compute_sparse_rows(const kernels::MatmulArgs& args, Index panel) {
  using L = quant::Packed<Format>;
  constexpr Index kMaxSums = 64;  // rows whose sums are in memory
  HWY_ALIGN float sums[2][kMaxSums * quant::kPanelRows];
  for (Index row = 0; row < args.m; row += kMaxSums) {
    const Index m = HWY_MIN(kMaxSums, args.m - row);
    const auto input = args.input.rows_from(row);
    const auto compute = [&](const std::byte* matrix, float* out) NIBBLE_ATTR {
      const sparse_detail::StreamPrefetcher prefetcher{
          args.tuning.many_rows, args.tuning.weights_distance,
          SparsePanel<Format>::lines_of_step(L::panel_bytes(matrix, panel), args.k)};
      SparsePanel<Format>::template sums_of_many<kMaxRows>(input, m, args.k,
                                                           L::panel(matrix, panel), prefetcher, out);
    };
    compute(args.weights, sums[0]);
    if (args.gate != nullptr) compute(args.gate, sums[1]);
    args.finish(args, sums[0], sums[1],
                {row, panel * quant::kPanelRows, static_cast<int>(m), kVectors});
  }
}

template <quant::SparseFormat Format>
struct Impl<kernels::Matmul<Format>> {
  static void run(const kernels::MatmulArgs& args) {
    constexpr int kMaxRows = TileShape<Format>::kNarrowRows;
    for (Index panel = args.first_panel; panel < args.end_panel; ++panel) {
      if (args.m > kMaxRows) {
        compute_sparse_rows<Format, kMaxRows>(args, panel);
        continue;
      }
      Index row = 0;
      if constexpr (kMaxRows >= 4) {
        for (; args.m - row >= 4; row += 4) compute_sparse_tile<Format, 4>(args, row, panel);
      }
      if constexpr (kMaxRows >= 2) {
        for (; args.m - row >= 2; row += 2) compute_sparse_tile<Format, 2>(args, row, panel);
      }
      for (; row < args.m; ++row) compute_sparse_tile<Format, 1>(args, row, panel);
    }
  }
};

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
