// SPDX-License-Identifier: Apache-2.0
//
// The sums of a panel of weights of which two of four are stored (quant/sparse.hpp).

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_MATMUL_TWO_OF_FOUR_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_MATMUL_TWO_OF_FOUR_INL_H_
#undef NIBBLE_KERNELS_MATMUL_TWO_OF_FOUR_INL_H_
#else
#define NIBBLE_KERNELS_MATMUL_TWO_OF_FOUR_INL_H_
#endif

#include <algorithm>
#include <cstring>

#include "hwy/highway.h"
#include "nibble/kernels/matmul_blocks16x4-inl.h"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

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

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
