// SPDX-License-Identifier: Apache-2.0

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_MATMUL_INPUT_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_MATMUL_INPUT_INL_H_
#undef NIBBLE_KERNELS_MATMUL_INPUT_INL_H_
#else
#define NIBBLE_KERNELS_MATMUL_INPUT_INL_H_
#endif

#include "hwy/highway.h"
#include "nibble/kernels/matmul_dot-inl.h"
#include "nibble/kernels/matmul_input.hpp"
#include "nibble/simd/detect.hpp"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#if !NIBBLE_IS_LEVEL
template <>
struct Impl<kernels::RoundRow> {
  NIBBLE_LAZY static void run(const float* x, Index k, bf16* out) {
    const DF32 d;
    const hn::Rebind<std::uint16_t, DF32> d16;
    Index i = 0;
    for (; i + kLanes <= k; i += kLanes) {
      const auto bits = round_to_bf16(d, hn::LoadU(d, x + i));
      hn::StoreU(bits, d16, reinterpret_cast<std::uint16_t*>(out + i));
    }
    for (; i < k; ++i) out[i] = to_bf16(x[i]);
    if (k % 2 != 0) out[k] = bf16{};
  }
};

template <int kLength>
struct Impl<kernels::BlockSums<kLength>> {
  static void run(const std::int8_t* codes, Index n_blocks, std::int32_t* code_sums) {
    constexpr int kBytes = 4 * kLanes;  // of a vector; not more than a block is read
    const hn::CappedTag<std::int8_t, (kBytes < 32 ? kBytes : 32)> d8;
    const hn::Repartition<std::int32_t, decltype(d8)> d32;
    const auto ones = hn::Set(hn::RebindToUnsigned<decltype(d8)>(), 1);
    for (Index b = 0; b < n_blocks; ++b) {
      auto sum = hn::Zero(d32);
      for (int i = 0; i < kLength; i += static_cast<int>(hn::Lanes(d8))) {
        sum = hn::SumOfMulQuadAccumulate(d32, ones, hn::LoadU(d8, codes + b * kLength + i), sum);
      }
      code_sums[b] = -8 * hn::ReduceSum(d32, sum);
    }
  }
};

template <int kLength>
struct Impl<kernels::RoundCodes<kLength>> {
  static void run(const std::int8_t* codes, const float* scales, Index k, bf16* out) {
    const DF32 d;
    const hn::Rebind<std::int8_t, DF32> d8;
    const hn::Rebind<std::uint16_t, DF32> d16;
    for (Index i = 0; i < k; i += 32) {
      const VF32 scale = hn::Set(d, scales[i / kLength]);
      for (Index j = i; j < i + 32; j += kLanes) {
        const VF32 x = hn::ConvertTo(d, hn::PromoteTo(DI32(), hn::LoadU(d8, codes + j)));
        hn::StoreU(round_to_bf16(d, hn::Mul(x, scale)), d16,
                   reinterpret_cast<std::uint16_t*>(out + j));
      }
    }
  }
};

template <>
struct Impl<kernels::TileTaskRows> {
  NIBBLE_LAZY static Index run(Index) { return 0; }
};

#endif

template <>
struct Impl<kernels::TakesRoundedRows> {
  NIBBLE_LAZY static bool run() {
#if NIBBLE_BF16_DOTS_BEYOND_TARGET
    const simd::TargetSet targets = simd::machine_targets();
    return targets.contains(simd::Target::AVX3_ZEN4) || targets.contains(simd::Target::AVX3_SPR);
#else
    return NIBBLE_HAVE_BF16_DOTS;
#endif
  }
};

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
