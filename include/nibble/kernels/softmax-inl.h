// SPDX-License-Identifier: Apache-2.0

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_SOFTMAX_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_SOFTMAX_INL_H_
#undef NIBBLE_KERNELS_SOFTMAX_INL_H_
#else
#define NIBBLE_KERNELS_SOFTMAX_INL_H_
#endif

#include <algorithm>
#include <cstring>
#include <limits>

#include "hwy/highway.h"
#include "nibble/core/libm.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/kernels/math-inl.h"
#include "nibble/kernels/prefetch-inl.h"
#include "nibble/kernels/softmax.hpp"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The largest of n numbers, ignoring NaN; -inf if there is none.
NIBBLE_LAZY HWY_INLINE float row_max(const float* x, size_t n) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  const auto lowest = hn::Set(d, -kInfinity);
  auto max0 = lowest, max1 = lowest, max2 = lowest, max3 = lowest;  // hide the latency of Max
  size_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    max0 = max_skip_nan(hn::LoadU(d, x + i), max0);
    max1 = max_skip_nan(hn::LoadU(d, x + i + lanes), max1);
    max2 = max_skip_nan(hn::LoadU(d, x + i + 2 * lanes), max2);
    max3 = max_skip_nan(hn::LoadU(d, x + i + 3 * lanes), max3);
  }
  for (; i + lanes <= n; i += lanes) max0 = max_skip_nan(hn::LoadU(d, x + i), max0);
  if (i < n) max1 = max_skip_nan(hn::LoadNOr(lowest, d, x + i, n - i), max1);
  return hn::ReduceMax(d, hn::Max(hn::Max(max0, max1), hn::Max(max2, max3)));
}

// exp(scale * (x - max)) for x up to max.
struct Powers {
  float max;
  float factor;  // exp(scale t) = 2^(factor t)
  float lowest;

  HWY_INLINE Powers(float row_maximum, float scale)
      : max{row_maximum},  // max(x) would be a macro elsewhere
        factor(scale * 1.44269504f),
        lowest(larger(-127.0f / factor, -kFloatMax)) {}
  template <class D, class V>
  HWY_INLINE V of(D d, V x) const {
    return exp2_nonpositive(d, hn::Sub(x, hn::Set(d, max)), hn::Set(d, factor), hn::Set(d, lowest));
  }
};

// The sum of the powers of x[i], i < n. With kStore, the terms are written to `out`. Prefetches
// what is `ahead` floats further on.
template <bool kStore>
HWY_INLINE double sum_exp(const float* x, float* out, size_t n, Powers powers, size_t ahead) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  const size_t block = 64 * lanes;
  double total = 0.0;
  for (size_t begin = 0; begin < n; begin += block) {
    const size_t end = (std::min)(n, begin + block);
    auto sum0 = hn::Zero(d), sum1 = hn::Zero(d);
    size_t i = begin;
    for (; i + 2 * lanes <= end; i += 2 * lanes) {
      prefetch(x, ahead + i);
      prefetch(x, ahead + i + lanes);
      const auto e0 = powers.of(d, hn::LoadU(d, x + i));
      const auto e1 = powers.of(d, hn::LoadU(d, x + i + lanes));
      if constexpr (kStore) {
        hn::StoreU(e0, d, out + i);
        hn::StoreU(e1, d, out + i + lanes);
      }
      sum0 = hn::Add(sum0, e0);
      sum1 = hn::Add(sum1, e1);
    }
    for (; i < end; i += lanes) {
      const size_t rest = (std::min)(lanes, end - i);
      // Lanes beyond the end are -inf, whose exponential adds 0.
      const auto v = hn::LoadNOr(hn::Set(d, -kInfinity), d, x + i, rest);
      const auto e = powers.of(d, v);
      if constexpr (kStore) hn::StoreN(e, d, out + i, rest);
      sum0 = hn::Add(sum0, e);
    }
    total += static_cast<double>(hn::ReduceSum(d, hn::Add(sum0, sum1)));
  }
  return total;
}

template <>
struct Impl<kernels::Softmax> {
  NIBBLE_LAZY static void run(const float* x, float* out, Index n, Index n_valid, float scale) {
    const auto size = static_cast<size_t>(n_valid);
    // Prefetches the next row, while this one keeps the arithmetic busy: saves a quarter of the
    // time where rows come from L3. A long row is probably the only one.
    const size_t next_row = n <= 8192 ? static_cast<size_t>(n) : 0;
    const double sum = sum_exp<true>(x, out, size, {row_max(x, size), scale}, next_row);
    const hn::ScalableTag<float> d;
    const size_t lanes = hn::Lanes(d);
    const auto inverse = hn::Set(d, static_cast<float>(1.0 / sum));
    size_t i = 0;
    for (; i + lanes <= size; i += lanes) {
      hn::StoreU(hn::Mul(hn::LoadU(d, out + i), inverse), d, out + i);
    }
    if (i < size) {
      hn::StoreN(hn::Mul(hn::LoadN(d, out + i, size - i), inverse), d, out + i, size - i);
    }
    if (n > n_valid) std::memset(out + size, 0, static_cast<size_t>(n - n_valid) * sizeof(float));
  }
};

template <>
struct Impl<kernels::LogSumExp> {
  NIBBLE_LAZY static kernels::LogSum run(const float* x, Index n) {
    const auto size = static_cast<size_t>(n);
    const float max = row_max(x, size);
    return {max, libm::log(sum_exp<false>(x, nullptr, size, {max, 1.0f}, 0))};
  }
};

template <>
struct Impl<kernels::ArgMax> {
  NIBBLE_LAZY static Index run(const float* x, Index n) {
    const hn::ScalableTag<float> d;
    const size_t lanes = hn::Lanes(d);
    const auto size = static_cast<size_t>(n);
    const auto max = hn::Set(d, row_max(x, size));
    size_t i = 0;
    for (; i + lanes <= size; i += lanes) {
      const intptr_t lane = hn::FindFirstTrue(d, hn::Eq(hn::LoadU(d, x + i), max));
      if (lane >= 0) return static_cast<Index>(i) + lane;
    }
    for (; i < size; ++i) {
      if (x[i] == hn::GetLane(max)) return static_cast<Index>(i);
    }
    return 0;
  }
};

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
