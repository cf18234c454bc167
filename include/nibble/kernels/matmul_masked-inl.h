// SPDX-License-Identifier: Apache-2.0
//
// The sums of a panel of weights with a bit mask (quant/sparse.hpp), and what sparse formats share.

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_MATMUL_MASKED_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_MATMUL_MASKED_INL_H_
#undef NIBBLE_KERNELS_MATMUL_MASKED_INL_H_
#else
#define NIBBLE_KERNELS_MATMUL_MASKED_INL_H_
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
  static constexpr bool kHasPairs = true;
  static constexpr bool kTwoScales = false;
  static constexpr int kOffset = 8;
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

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
