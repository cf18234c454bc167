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

// Codes of a step, a byte each: of 8 vectors of 4 weights of each row. Room for a vector's load.
using StepBytes = std::uint8_t[8 * 64 + 64];

// Nibbles to bytes: n of them, rounded up to a vector's.
HWY_INLINE void unpack_nibbles(const std::byte* from, Index n, std::uint8_t* to) {
  const hn::Rebind<std::uint8_t, DU16> half;
  constexpr Index kBytes = static_cast<Index>(hn::MaxLanes(DU16()));
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(from);
  for (; n > 0; n -= 2 * kBytes, bytes += kBytes, to += 2 * kBytes) {
    const auto both = hn::PromoteTo(DU16(), hn::LoadU(half, bytes));
    const auto codes = hn::And(hn::Or(both, hn::ShiftLeft<4>(both)), hn::Set(DU16(), 0x0F0F));
    hn::StoreU(hn::BitCast(DU8(), codes), DU8(), to);
  }
}

// NIBBLE_HAVE_BYTE_EXPAND: an instruction puts bytes to the places of a mask's bits.
#undef NIBBLE_HAVE_BYTE_EXPAND
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL
#define NIBBLE_HAVE_BYTE_EXPAND 1
#else
#define NIBBLE_HAVE_BYTE_EXPAND 0

// Puts the bytes at `codes` to the places of the bits at `mask`, in which there is one for each
// lane; zeros elsewhere. `codes` moves behind the bytes.
template <class D>
HWY_INLINE hn::Vec<D> expand_bytes(D d, const std::uint8_t* mask, const std::uint8_t*& codes) {
  if constexpr (hn::MaxLanes(D()) == 16) {
    std::uint16_t bits;
    std::memcpy(&bits, mask, 2);
    const auto from = hn::LoadU(d, codes);
    codes += hwy::PopCount(bits);
    const auto first = hn::Load(d, layout::kByteExpansions.first[bits & 0xFF]);
    const auto second = hn::Load(d, layout::kByteExpansions.second[bits >> 8]);
    return hn::TableLookupBytesOr0(from, hn::Add(first, second));
  } else {
    const hn::Half<D> half;
    const auto low = expand_bytes(half, mask, codes);
    const auto high = expand_bytes(half, mask + hn::MaxLanes(D()) / 16, codes);
    return hn::Combine(d, high, low);
  }
}
#endif

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

  struct Memory {
    alignas(64) StepBytes expanded;                                // codes as Q4_0's
    alignas(64) StepBytes codes[NIBBLE_HAVE_BYTE_EXPAND ? 1 : 2];  // unpacked, of two steps
  };

  // n_steps ≥ 1.
  HWY_INLINE MaskedSteps(const std::byte* panel, Index n_steps, StreamPrefetcher prefetcher,
                         Memory& memory)
      : memory_(&memory), next_(panel), left_(n_steps), prefetcher_(prefetcher) {
    find_next();
  }

  HWY_INLINE void start_group() {
    record_ = next_;
    const std::uint8_t* const codes = memory_->codes[turn_];
    turn_ ^= 1;
    prefetcher_.step(record_);
#if NIBBLE_HAVE_BYTE_EXPAND
    find_next();
    expand(reinterpret_cast<const std::uint8_t*>(record_) + kCodes);
#else
    next_ += bytes_;
    if (--left_ > 0) find_next();
    expand(codes);
#endif
  }
  HWY_INLINE void end_group() {}
  HWY_INLINE void read(int, int j, int c, CodePair& pair) const {
    pair.low.set(hn::LoadU(DU8(), memory_->expanded + 128 * j + c * kVectorBytes));
    pair.high.set(hn::LoadU(DU8(), memory_->expanded + 128 * j + 64 + c * kVectorBytes));
  }
  HWY_INLINE VF32 scale(int, int c) const {
    return load_f32(reinterpret_cast<const f16*>(record_) + c * kLanes);
  }

 private:
  static constexpr Index kCodes = layout::kScaleBytes + layout::kMaskBytes;

  static HWY_INLINE std::size_t code_bytes(const std::byte* record, int vector) {
    const auto mask = layout::load<std::uint64_t>(record + layout::kScaleBytes + 8 * vector);
    return (hwy::PopCount(mask) + 1) / 2;
  }

#if NIBBLE_HAVE_BYTE_EXPAND
  HWY_INLINE void find_next() {}
  HWY_INLINE void expand(const std::uint8_t* codes) {
    const auto* const masks = reinterpret_cast<const std::uint8_t*>(record_) + layout::kScaleBytes;
    HWY_UNROLL(8) for (int v = 0; v < 8; ++v) {
      const hn::Half<DU8> half;
      const auto both = hn::PromoteTo(DU16(), hn::LoadU(half, codes));
      const auto bytes = hn::And(hn::Or(both, hn::ShiftLeft<4>(both)), hn::Set(DU16(), 0x0F0F));
      const auto mask = hn::LoadMaskBits(DU8(), masks + 8 * v);
      const VU8 expanded = hn::Expand(hn::BitCast(DU8(), bytes), mask);
      hn::Store(hn::Xor(expanded, hn::Set(DU8(), 8)), DU8(), memory_->expanded + 64 * v);
      codes += code_bytes(record_, v);
    }
    next_ = reinterpret_cast<const std::byte*>(codes);
  }
#else
  // Unpacks the codes of the step at next_, a step ahead: what is loaded from several stores must
  // have arrived in the cache.
  HWY_INLINE void find_next() {
    std::size_t n = 0;
    HWY_UNROLL(8) for (int v = 0; v < 8; ++v) { n += code_bytes(next_, v); }
    bytes_ = kCodes + static_cast<Index>(n);
    unpack_nibbles(next_ + kCodes, 2 * static_cast<Index>(n), memory_->codes[turn_]);
  }
  HWY_INLINE void expand(const std::uint8_t* codes) {
    const auto* const masks = reinterpret_cast<const std::uint8_t*>(record_) + layout::kScaleBytes;
    HWY_UNROLL(8) for (int v = 0; v < 8; ++v) {
      const std::uint8_t* from = codes;
      HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) {
        const VU8 expanded = expand_bytes(DU8(), masks + 8 * v + c * kVectorBytes / 8, from);
        hn::StoreU(hn::Xor(expanded, hn::Set(DU8(), 8)), DU8(),
                   memory_->expanded + 64 * v + c * kVectorBytes);
      }
      codes += (from - codes + 1) & ~std::ptrdiff_t{1};
    }
  }
#endif

  Memory* memory_;
  const std::byte* next_;
  const std::byte* record_ = nullptr;
  Index left_;       // steps from next_ on
  Index bytes_ = 0;  // of the step at next_
  int turn_ = 0;     // of the codes
  StreamPrefetcher prefetcher_;
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
    sparse_detail::MaskedSteps::Memory memory;
    add_steps<false>(in, L::n_steps(k),
                     sparse_detail::MaskedSteps(panel, L::n_steps(k), prefetcher, memory),
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
    sparse_detail::MaskedSteps::Memory memory;
    sparse_detail::MaskedSteps steps(panel, n_steps, prefetcher, memory);
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
// The zero weights of blocks that are not stored must add nothing, so the correction for unsigned
// codes (see DotSum) depends on the panel.

namespace sparse_detail {

// Few rows: the sum of a step's products of unsigned codes for one vector of rows, and with codes 8
// the correction, which all vectors share.
using BlockDot = DotSum<4, false, kStep, false>;

// Many rows: codes are made signed while they are expanded. Where an instruction multiplies
// unsigned by signed bytes, activations get an offset of 128 instead, and 128 times the sum of a
// step's codes (|sum| ≤ 64) is subtracted: `correction`, made when the codes are expanded.
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
    const VI32 zero = hn::Zero(DI32());
    return hn::BitCast(DI8(), hn::SumOfMulQuadAccumulate(DI32(), offset, code_sum, zero));
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

// The codes of a block of 16 rows by 4 weights, unsigned.
HWY_INLINE void read_block(const std::byte* block, Register<DU8> (&codes)[kVectors]) {
  const auto* const bytes = reinterpret_cast<const std::uint8_t*>(block);
  if constexpr (kVectors == 1) {
    const hn::Half<DU8> half;
    const hn::Repartition<std::uint16_t, hn::Half<DU8>> half16;
    const auto both = hn::LoadU(half, bytes);
    const auto high = hn::BitCast(half, hn::ShiftRight<4>(hn::BitCast(half16, both)));
    codes[0].set(low_nibbles(hn::Combine(DU8(), high, both)));
  } else {
    HWY_UNROLL(2) for (int c = 0; c < kVectors / 2; ++c) {
      const VU8 both = hn::LoadU(DU8(), bytes + c * kVectorBytes);
      codes[c].set(low_nibbles(both));
      codes[c + kVectors / 2].set(high_nibbles(both));
    }
  }
}

// Where the blocks of a step begin in the inputs.
HWY_INLINE const std::uint8_t* offsets_of(std::uint32_t entry) {
  return layout::kBlockOffsets.of[entry & 0xFF];
}
HWY_INLINE std::uint32_t entry_at(const std::byte* entries, Index e) {
  return layout::load<std::uint32_t>(entries + 4 * e);
}
HWY_INLINE int n_blocks_of(std::uint32_t entry) {
  return static_cast<int>(hwy::PopCount(entry & 0xFF));
}

HWY_INLINE VF32 load_scale(const std::byte* scales, int c) {
  return load_f32(reinterpret_cast<const f16*>(scales) + c * kLanes);
}

// A run: steps that follow each other and have the same number of blocks. Adds their products with
// kRows rows to sums[kRows][16].
struct Run {
  const std::byte* entries;
  Index n;
  const std::byte* steps;  // as they are stored, or expanded
};

template <int kBlocks, int kRows>
HWY_NOINLINE void add_stored(const kernels::MatmulInput& in, const Run& run,
                             StreamPrefetcher prefetcher, float* HWY_RESTRICT sums_inout) {
  constexpr Index kBytes = layout::kScaleBytes + kBlocks * layout::kBlockBytes;
  Sums<kRows, kVectors> sums;
  sums.load(sums_inout, quant::kPanelRows);
  const VU8 eight = hn::Set(DU8(), 8);
  const std::byte* HWY_RESTRICT at = run.steps;
  for (Index e = 0; e < run.n; ++e, at += kBytes) {
    const std::uint32_t entry = entry_at(run.entries, e);
    const auto step = static_cast<Index>(entry >> 8);
    const std::int8_t* HWY_RESTRICT x = in.codes + step * kStep;
    const std::uint8_t* HWY_RESTRICT offsets = offsets_of(entry);
    prefetch_lines<kBytes>(prefetcher.into, at + prefetcher.distance);
    BlockDot dot[kRows][kVectors], correction[kRows];
    HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
      correction[r].start(hn::Zero(DI32()));
      HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) { dot[r][c].start(hn::Zero(DI32())); }
    }
    HWY_UNROLL(8) for (int b = 0; b < kBlocks; ++b) {
      Register<DU8> codes[kVectors];
      read_block(at + layout::kScaleBytes + b * layout::kBlockBytes, codes);
      HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
        const VI8 input = broadcast4(x + offsets[b] + r * in.code_stride);
        correction[r].add(eight, input, false);
        HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) {
          dot[r][c].add(codes[c].get(), input, false);
        }
      }
    }
    HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
      const VI32 subtract = correction[r].total();
      const VF32 x_scale = hn::Set(DF32(), in.scales[r * in.n_blocks + step]);
      HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) {
        const VF32 total = hn::ConvertTo(DF32(), hn::Sub(dot[r][c].total(), subtract));
        const VF32 scale = hn::Mul(load_scale(at, c), x_scale);
        sums.set(r, c, hn::MulAdd(total, scale, sums.get(r, c)));
      }
    }
  }
  sums.store(sums_inout, quant::kPanelRows);
}

// Expanded steps: f32 scales, corrections, and a signed byte for each code.
constexpr Index kWideHeader = 128;
constexpr Index kWideBlock = 64;
constexpr Index wide_bytes(int n_blocks) { return kWideHeader + kWideBlock * n_blocks; }

// Expands the step at `record`; returns the end of `out`.
HWY_INLINE std::byte* widen_blocks(const std::byte* record, int n_blocks, std::byte* out) {
  auto* const bytes = reinterpret_cast<std::int8_t*>(out);
  Register<DI8> code_sums[kVectors];
  HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) { code_sums[c].set(hn::Zero(DI8())); }
  for (int b = 0; b < n_blocks; ++b) {
    Register<DU8> codes[kVectors];
    read_block(record + layout::kScaleBytes + b * layout::kBlockBytes, codes);
    HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) {
      const VI8 code = hn::BitCast(DI8(), hn::Sub(codes[c].get(), hn::Set(DU8(), 8)));
      hn::StoreU(code, DI8(), bytes + kWideHeader + b * kWideBlock + c * kVectorBytes);
      code_sums[c].set(hn::Add(code_sums[c].get(), code));
    }
  }
  HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) {
    hn::StoreU(load_scale(record, c), DF32(), reinterpret_cast<float*>(out) + c * kLanes);
    hn::StoreU(SignedDot::correction(code_sums[c].get()), DI8(), bytes + 64 + c * kVectorBytes);
  }
  return out + wide_bytes(n_blocks);
}

template <int kBlocks, int kRows>
HWY_NOINLINE void add_widened(const kernels::MatmulInput& in, const Run& run,
                              float* HWY_RESTRICT sums_inout) {
  Sums<kRows, kVectors> sums;
  sums.load(sums_inout, quant::kPanelRows);
  const std::byte* HWY_RESTRICT at = run.steps;
  for (Index e = 0; e < run.n; ++e, at += wide_bytes(kBlocks)) {
    const std::uint32_t entry = entry_at(run.entries, e);
    const auto step = static_cast<Index>(entry >> 8);
    const std::int8_t* HWY_RESTRICT x = in.codes + step * kStep;
    const std::uint8_t* HWY_RESTRICT offsets = offsets_of(entry);
    const auto* const bytes = reinterpret_cast<const std::int8_t*>(at);
    SignedDot dot[kRows][kVectors];
    HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) { dot[r][c].start(); }
    }
    HWY_UNROLL(8) for (int b = 0; b < kBlocks; ++b) {
      const std::int8_t* const block = bytes + kWideHeader + b * kWideBlock;
      Register<DI8> codes[kVectors];
      HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) {
        VI8 v = hn::LoadU(DI8(), block + c * kVectorBytes);
#if HWY_ARCH_X86 && (HWY_COMPILER_GCC || HWY_COMPILER_CLANG)
        // Of two rows, one multiplies what is in a register and the other what is in memory: so
        // that neither the number of loads nor that of instructions is what limits this loop.
        if (kRows == 2) asm("" : "+v"(v.raw));
#endif
        codes[c].set(v);
      }
      HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
        const auto input = input_of(broadcast4(x + offsets[b] + r * in.code_stride));
        HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) {
          const bool again = kRows == 2 && r == 1;
          dot[r][c].add(again ? hn::LoadU(DI8(), block + c * kVectorBytes) : codes[c].get(), input);
        }
      }
    }
    HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
      const VF32 x_scale = hn::Set(DF32(), in.scales[r * in.n_blocks + step]);
      HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) {
        const VI8 correction = hn::LoadU(DI8(), bytes + 64 + c * kVectorBytes);
        const VF32 total = hn::ConvertTo(DF32(), dot[r][c].total(correction));
        const float* const scales = reinterpret_cast<const float*>(at) + c * kLanes;
        const VF32 scale = hn::Mul(hn::LoadU(DF32(), scales), x_scale);
        sums.set(r, c, hn::MulAdd(total, scale, sums.get(r, c)));
      }
    }
  }
  sums.store(sums_inout, quant::kPanelRows);
}

// Calls f(number of blocks as a constant).
template <class Function>
HWY_INLINE void with_blocks(int n_blocks, const Function& f) {
  switch (n_blocks) {
    case 1: return f(std::integral_constant<int, 1>());
    case 2: return f(std::integral_constant<int, 2>());
    case 3: return f(std::integral_constant<int, 3>());
    case 4: return f(std::integral_constant<int, 4>());
    case 5: return f(std::integral_constant<int, 5>());
    case 6: return f(std::integral_constant<int, 6>());
    case 7: return f(std::integral_constant<int, 7>());
    default: return f(std::integral_constant<int, 8>());
  }
}

// Cuts n entries into runs; calls f(number of blocks, first entry, length).
template <class Function>
HWY_INLINE void for_each_run(const std::byte* entries, Index n, const Function& f) {
  for (Index e = 0; e < n;) {
    const Index first = e;
    const int n_blocks = n_blocks_of(entry_at(entries, e));
    for (++e; e < n && n_blocks_of(entry_at(entries, e)) == n_blocks; ++e) {
    }
    f(n_blocks, first, e - first);
  }
}

}  // namespace sparse_detail

template <>
struct SparsePanel<quant::Q4_0Blocks16x4> {
  template <int kRows>
  static HWY_INLINE void sums_of_rows(const kernels::MatmulInput& in, Index, const std::byte* panel,
                                      sparse_detail::StreamPrefetcher prefetcher,
                                      float* HWY_RESTRICT out) {
    std::fill_n(out, kRows * quant::kPanelRows, 0.0f);
    const Index n = n_entries(panel);
    const std::byte* steps = records(panel, n);
    sparse_detail::for_each_run(
        panel + 4, n, [&](int n_blocks, Index first, Index length) NIBBLE_ATTR {
          const sparse_detail::Run run{panel + 4 * (first + 1), length, steps};
          sparse_detail::with_blocks(n_blocks, [&](auto blocks) NIBBLE_ATTR {
            sparse_detail::add_stored<decltype(blocks)::value, kRows>(in, run, prefetcher, out);
          });
          steps += length * bytes_of(n_blocks);
        });
  }

  template <int kMaxRows>
  static HWY_INLINE void sums_of_many(const kernels::MatmulInput& in, Index m, Index,
                                      const std::byte* panel,
                                      sparse_detail::StreamPrefetcher prefetcher,
                                      float* HWY_RESTRICT sums) {
    std::fill_n(sums, m * quant::kPanelRows, 0.0f);
    const Index n = n_entries(panel);
    const std::byte* steps = records(panel, n);
    sparse_detail::for_each_run(
        panel + 4, n, [&](int n_blocks, Index first, Index length) NIBBLE_ATTR {
          // What is expanded at a time stays in L1, together with the inputs of a tile.
          alignas(64) std::byte part[kPartBytes];
          const Index max = kPartBytes / sparse_detail::wide_bytes(n_blocks);
          for (Index done = 0; done < length; done += max) {
            const Index n_part = HWY_MIN(max, length - done);
            std::byte* end = part;
            for (Index i = 0; i < n_part; ++i, steps += bytes_of(n_blocks)) {
              prefetcher.step(steps);
              end = sparse_detail::widen_blocks(steps, n_blocks, end);
            }
            const sparse_detail::Run run{panel + 4 * (first + done + 1), n_part, part};
            sparse_detail::with_blocks(n_blocks, [&](auto blocks) NIBBLE_ATTR {
              add_run<decltype(blocks)::value, kMaxRows>(in, m, run, sums);
            });
          }
        });
  }

  static Index lines_of_step(Index panel_bytes, Index k) noexcept {
    return SparsePanel<quant::Q4_0Bitmask>::lines_of_step(panel_bytes, k);
  }

 private:
  static constexpr Index kPartBytes = 20 << 10;

  template <int kBlocks, int kMaxRows>
  static HWY_INLINE void add_run(const kernels::MatmulInput& in, Index m,
                                 const sparse_detail::Run& run, float* HWY_RESTRICT sums) {
    for (Index row = 0; row < m;) {
      const kernels::MatmulInput rows = in.rows_from(row);
      float* const at = sums + row * quant::kPanelRows;
      if (kMaxRows >= 4 && m - row >= 4) {
        sparse_detail::add_widened<kBlocks, (kMaxRows >= 4 ? 4 : 1)>(rows, run, at);
        row += 4;
      } else if (kMaxRows >= 2 && m - row >= 2) {
        sparse_detail::add_widened<kBlocks, (kMaxRows >= 2 ? 2 : 1)>(rows, run, at);
        row += 2;
      } else {
        sparse_detail::add_widened<kBlocks, 1>(rows, run, at);
        ++row;
      }
    }
  }
  static constexpr Index bytes_of(int n_blocks) {
    return quant::sparse::kScaleBytes + n_blocks * quant::sparse::kBlockBytes;
  }
  static HWY_INLINE Index n_entries(const std::byte* panel) {
    return static_cast<Index>(quant::sparse::load<std::uint32_t>(panel));
  }
  static HWY_INLINE const std::byte* records(const std::byte* panel, Index n) {
    return panel + quant::sparse::records_at(n);
  }
};

// ---- Two of four -------------------------------------------------------------------------------
// The codes that are there are multiplied with the activations that their positions name, which a
// byte shuffle picks from the eight that four slots of a row share.

namespace sparse_detail {

inline constexpr int kParts = 4;  // of a step: eight weights of each row, four slots

// Activations, eight of them again and again, as input_of().
HWY_INLINE auto eight_inputs(const std::int8_t* x) {
  std::int64_t word;
  std::memcpy(&word, x, 8);
  const hn::Repartition<std::int64_t, DI8> d64;
  return input_of(hn::BitCast(DI8(), hn::Set(d64, word)));
}

// Steps of a panel as they are stored.
class StoredHalves {
 public:
  static constexpr Index kBytes = layout::kHalfStepBytes;

  HWY_INLINE StoredHalves(const std::byte* steps, StreamPrefetcher prefetcher)
      : at_(steps), prefetcher_(prefetcher) {}

  HWY_INLINE void start() {
    prefetch_lines<kBytes>(prefetcher_.into, at_ + prefetcher_.distance);
    HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) {
      positions_[c].set(hn::BitCast(DU16(), load(layout::kScaleBytes, c)));
      sums_[c].set(hn::Zero(DI8()));
    }
  }
  // One part after the other.
  HWY_INLINE void read(int part, int c, Register<DI8>& codes, Register<DU8>& indices) {
    const VU8 both =
        load(layout::kScaleBytes + layout::kPositionBytes + part / 2 * quant::kChunkBytes, c);
    const VU8 code = part % 2 == 0 ? low_nibbles(both) : high_nibbles(both);
    codes.set(hn::BitCast(DI8(), hn::Sub(code, hn::Set(DU8(), 8))));
    sums_[c].set(hn::Add(sums_[c].get(), codes.get()));
    const VU8 position = hn::And(hn::BitCast(DU8(), positions_[c].get()), hn::Set(DU8(), 3));
    positions_[c].set(hn::ShiftRight<2>(positions_[c].get()));
    indices.set(hn::Or(position, hn::BitCast(DU8(), hn::Set(DU32(), 0x04040000u))));
  }
  HWY_INLINE VF32 scale(int c) const { return load_scale(at_, c); }
  HWY_INLINE VI8 correction(int c) const { return SignedDot::correction(sums_[c].get()); }
  HWY_INLINE void end() { at_ += kBytes; }

 private:
  HWY_INLINE VU8 load(Index offset, int c) const {
    return hn::LoadU(DU8(), reinterpret_cast<const std::uint8_t*>(at_) + offset + c * kVectorBytes);
  }

  const std::byte* at_;
  StreamPrefetcher prefetcher_;
  Register<DU16> positions_[kVectors];
  Register<DI8> sums_[kVectors];
};

// The same, expanded: f32 scales, corrections, and for each part a byte for each code and index.
class WideHalves {
 public:
  static constexpr Index kBytes = kWideHeader + 2 * kWideBlock * kParts;

  HWY_INLINE explicit WideHalves(const std::byte* steps) : at_(steps) {}

  HWY_INLINE void start() {}
  HWY_INLINE void read(int part, int c, Register<DI8>& codes, Register<DU8>& indices) {
    const auto* const bytes = reinterpret_cast<const std::uint8_t*>(at_) + kWideHeader +
                              2 * kWideBlock * part + c * kVectorBytes;
    codes.set(hn::BitCast(DI8(), hn::LoadU(DU8(), bytes)));
    indices.set(hn::LoadU(DU8(), bytes + kWideBlock));
  }
  HWY_INLINE VF32 scale(int c) const {
    return hn::LoadU(DF32(), reinterpret_cast<const float*>(at_) + c * kLanes);
  }
  HWY_INLINE VI8 correction(int c) const {
    return hn::LoadU(DI8(), reinterpret_cast<const std::int8_t*>(at_) + 64 + c * kVectorBytes);
  }
  HWY_INLINE void end() { at_ += kBytes; }

  static HWY_INLINE void widen(StoredHalves& steps, std::byte* out) {
    auto* const bytes = reinterpret_cast<std::uint8_t*>(out);
    steps.start();
    HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) {
      HWY_UNROLL(4) for (int part = 0; part < kParts; ++part) {
        Register<DI8> codes;
        Register<DU8> indices;
        steps.read(part, c, codes, indices);
        std::uint8_t* const to = bytes + kWideHeader + 2 * kWideBlock * part + c * kVectorBytes;
        hn::StoreU(hn::BitCast(DU8(), codes.get()), DU8(), to);
        hn::StoreU(indices.get(), DU8(), to + kWideBlock);
      }
      hn::StoreU(steps.scale(c), DF32(), reinterpret_cast<float*>(out) + c * kLanes);
      hn::StoreU(hn::BitCast(DU8(), steps.correction(c)), DU8(), bytes + 64 + c * kVectorBytes);
    }
    steps.end();
  }

 private:
  const std::byte* at_;
};

// Adds the products of kRows rows with n steps from `first` on to sums[kRows][16].
template <int kRows, class Steps>
HWY_NOINLINE void add_halves(const kernels::MatmulInput& in, Index first, Index n, Steps steps,
                             float* HWY_RESTRICT sums_inout) {
  Sums<kRows, kVectors> sums;
  sums.load(sums_inout, quant::kPanelRows);
  for (Index step = first; step < first + n; ++step) {
    const std::int8_t* HWY_RESTRICT x = in.codes + step * kStep;
    steps.start();
    SignedDot dot[kRows][kVectors];
    HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) { dot[r][c].start(); }
    }
    HWY_UNROLL(4) for (int part = 0; part < kParts; ++part) {
      Register<DI8> codes[kVectors];
      Register<DU8> indices[kVectors];
      HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) {
        steps.read(part, c, codes[c], indices[c]);
      }
      HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
        const auto inputs = eight_inputs(x + 8 * part + r * in.code_stride);
        const hn::DFromV<decltype(inputs)> d;
        HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) {
          const VU8 picked = hn::TableLookupBytes(hn::BitCast(DU8(), inputs), indices[c].get());
          dot[r][c].add(codes[c].get(), hn::BitCast(d, picked));
        }
      }
    }
    HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
      const VF32 x_scale = hn::Set(DF32(), in.scales[r * in.n_blocks + step]);
      HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) {
        const VF32 total = hn::ConvertTo(DF32(), dot[r][c].total(steps.correction(c)));
        sums.set(r, c, hn::MulAdd(total, hn::Mul(steps.scale(c), x_scale), sums.get(r, c)));
      }
    }
    steps.end();
  }
  sums.store(sums_inout, quant::kPanelRows);
}

}  // namespace sparse_detail

template <>
struct SparsePanel<quant::Q4_0TwoOfFour> {
  using L = quant::Packed<quant::Q4_0TwoOfFour>;
  using Stored = sparse_detail::StoredHalves;
  using Wide = sparse_detail::WideHalves;

  template <int kRows>
  static HWY_INLINE void sums_of_rows(const kernels::MatmulInput& in, Index k,
                                      const std::byte* panel,
                                      sparse_detail::StreamPrefetcher prefetcher,
                                      float* HWY_RESTRICT out) {
    std::fill_n(out, kRows * quant::kPanelRows, 0.0f);
    sparse_detail::add_halves<kRows>(in, 0, L::n_steps(k), Stored(panel, prefetcher), out);
  }

  template <int kMaxRows>
  static HWY_INLINE void sums_of_many(const kernels::MatmulInput& in, Index m, Index k,
                                      const std::byte* panel,
                                      sparse_detail::StreamPrefetcher prefetcher,
                                      float* HWY_RESTRICT sums) {
    constexpr Index kMaxSteps = (20 << 10) / Wide::kBytes;
    alignas(64) std::byte part[kMaxSteps * Wide::kBytes];
    std::fill_n(sums, m * quant::kPanelRows, 0.0f);
    Stored steps(panel, prefetcher);
    for (Index step = 0; step < L::n_steps(k); step += kMaxSteps) {
      const Index n = HWY_MIN(kMaxSteps, L::n_steps(k) - step);
      for (Index i = 0; i < n; ++i) Wide::widen(steps, part + i * Wide::kBytes);
      for (Index row = 0; row < m;) {
        const kernels::MatmulInput rows = in.rows_from(row);
        float* const at = sums + row * quant::kPanelRows;
        if (kMaxRows >= 4 && m - row >= 4) {
          sparse_detail::add_halves<(kMaxRows >= 4 ? 4 : 1)>(rows, step, n, Wide(part), at);
          row += 4;
        } else if (kMaxRows >= 2 && m - row >= 2) {
          sparse_detail::add_halves<(kMaxRows >= 2 ? 2 : 1)>(rows, step, n, Wide(part), at);
          row += 2;
        } else {
          sparse_detail::add_halves<1>(rows, step, n, Wide(part), at);
          ++row;
        }
      }
    }
  }

  static Index lines_of_step(Index, Index) noexcept { return 0; }  // known: see StoredHalves
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
      SparsePanel<Format>::template sums_of_many<kMaxRows>(
          input, m, args.k, L::panel(matrix, panel), prefetcher, out);
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
