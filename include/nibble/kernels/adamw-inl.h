// SPDX-License-Identifier: Apache-2.0

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_ADAMW_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_ADAMW_INL_H_
#undef NIBBLE_KERNELS_ADAMW_INL_H_
#else
#define NIBBLE_KERNELS_ADAMW_INL_H_
#endif

#include "hwy/highway.h"
#include "nibble/kernels/adamw.hpp"
#include "nibble/kernels/dropout-inl.h"
#include "nibble/kernels/map-inl.h"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

namespace adamw_detail {

using DF = hn::ScalableTag<float>;
using VF = hn::Vec<DF>;
using DI = hn::RebindToSigned<DF>;
using DU = hn::RebindToUnsigned<DF>;

// m and v become those after the step; returns the new p.
HWY_INLINE VF adamw(const kernels::AdamWStep& step, VF p, VF gradient, VF& m, VF& v) {
  const DF d;
  const auto g = hn::Mul(gradient, hn::Set(d, step.gradient_scale));
  m = hn::MulAdd(hn::Set(d, step.first_rest), hn::Sub(g, m), m);
  const auto square = hn::Mul(hn::Mul(g, g), hn::Set(d, step.second_rest));
  v = hn::MulAdd(hn::Set(d, step.second_kept), v, square);
  const auto below =
      hn::MulAdd(hn::Sqrt(v), hn::Set(d, step.second_scale), hn::Set(d, step.epsilon));
  const auto change = hn::Mul(hn::Set(d, step.rate), hn::Div(m, below));
  return hn::Sub(hn::Mul(p, hn::Set(d, step.keep)), change);
}

struct AdamWBody {
  const kernels::AdamWStep step;  // a copy: the arrays might alias it, for all the compiler knows
  float* p;
  const float* gradient;
  float* m;
  float* v;
  template <class Piece>
  HWY_INLINE void operator()(size_t i, Piece piece) const {
    const DF d;
    auto first = piece.load(d, m + i), second = piece.load(d, v + i);
    const auto changed =
        adamw(step, piece.load(d, p + i), piece.load(d, gradient + i), first, second);
    piece.store(changed, d, p + i);
    piece.store(first, d, m + i);
    piece.store(second, d, v + i);
  }
};

struct MomentumBody {
  const kernels::MomentumStep step;
  float* p;
  const float* gradient;
  float* m;
  template <class Piece>
  HWY_INLINE void operator()(size_t i, Piece piece) const {
    const DF d;
    const auto old = piece.load(d, p + i);
    const auto scaled = hn::Mul(piece.load(d, gradient + i), hn::Set(d, step.gradient_scale));
    const auto g = hn::MulAdd(hn::Set(d, step.decay), old, scaled);
    const auto momentum = hn::Set(d, step.momentum);
    const auto moment = hn::MulAdd(momentum, piece.load(d, m + i), g);
    const auto change = step.nesterov ? hn::MulAdd(momentum, moment, g) : moment;
    piece.store(hn::Sub(old, hn::Mul(hn::Set(d, step.rate), change)), d, p + i);
    piece.store(moment, d, m + i);
  }
};

// ---- Moments of 8 bits -------------------------------------------------------------------------

// Codes as floats, and integral floats as codes.
template <class T, class Piece>
HWY_INLINE VF load_codes(Piece piece, const T* p) {
  return hn::ConvertTo(DF(), hn::PromoteTo(DI(), piece.load(hn::Rebind<T, DI>(), p)));
}
template <class T, class Piece>
HWY_INLINE void store_codes(Piece piece, VF v, T* p) {
  const hn::Rebind<T, DI> d;
  piece.store(hn::DemoteTo(d, hn::ConvertTo(DI(), v)), d, p);
}

// Numbers in [0, 1) with 24 random bits for values index, index + 1, ...
HWY_INLINE VF random_units(uint32_t key, uint32_t index) {
  const DU du;
  const auto bits = mix_bits(du, hn::Xor(hn::Iota(du, index), hn::Set(du, key)));
  return hn::Mul(hn::ConvertTo(DF(), hn::BitCast(DI(), hn::ShiftRight<8>(bits))),
                 hn::Set(DF(), 0x1p-24f));
}

HWY_INLINE VF square(VF x) { return hn::Mul(x, x); }

// y in [0, 127²], rounded to a square c² at random with mean y; returns c.
HWY_INLINE VF code_of_square(VF y, VF random) {
  const DF d;
  const auto one = hn::Set(d, 1.0f);
  const auto c = hn::Min(hn::Floor(hn::Sqrt(y)), hn::Set(d, 126.0f));
  const auto step = hn::MulAdd(hn::Set(d, 2.0f), c, one);  // (c + 1)² − c²
  const auto up = hn::Lt(hn::Mul(random, step), hn::Sub(y, square(c)));
  return hn::Add(c, hn::IfThenElseZero(up, one));
}
// y in [0, 255⁴], rounded to a fourth power; from 0 it only goes up.
HWY_INLINE VF code_of_fourth_power(VF y, VF random) {
  const DF d;
  const auto one = hn::Set(d, 1.0f), zero = hn::Zero(d);
  const auto c = hn::Min(hn::Floor(hn::Sqrt(hn::Sqrt(y))), hn::Set(d, 254.0f));
  const auto low = square(square(c)), high = square(square(hn::Add(c, one)));
  const auto share = hn::Sub(y, low);
  const auto up = hn::Lt(hn::Mul(random, hn::Sub(high, low)), share);
  const auto code = hn::Add(c, hn::IfThenElseZero(up, one));
  return hn::IfThenElse(hn::Gt(y, zero), hn::Max(code, one), zero);
}

struct Update8 {
  const kernels::AdamWStep step;
  float* p;
  const float* gradient;
  const int8_t* m;
  const uint8_t* v;
  float m_unit, v_unit;   // scales per code² and code⁴
  float *first, *second;  // moments after the step
  VF *first_max, *second_max;
  template <class Piece>
  HWY_INLINE void operator()(size_t i, Piece piece) const {
    const DF d;
    const auto m_code = load_codes(piece, m + i), v_code = load_codes(piece, v + i);
    auto mean = hn::Mul(hn::Mul(m_code, hn::Abs(m_code)), hn::Set(d, m_unit));
    auto variance = hn::Mul(square(square(v_code)), hn::Set(d, v_unit));
    const auto changed =
        adamw(step, piece.load(d, p + i), piece.load(d, gradient + i), mean, variance);
    piece.store(changed, d, p + i);
    // Lanes beyond the end were loaded as zeros, and so are their moments.
    *first_max = hn::Max(*first_max, hn::Abs(mean));
    *second_max = hn::Max(*second_max, variance);
    piece.store(mean, d, first + i);
    piece.store(variance, d, second + i);
  }
};

struct Encode8 {
  uint32_t key, index;
  const float *first, *second;
  float m_inverse, v_inverse;  // code² and code⁴ per moment
  int8_t* m;
  uint8_t* v;
  template <class Piece>
  HWY_INLINE void operator()(size_t i, Piece piece) const {
    const DF d;
    const auto random = random_units(key, index + static_cast<uint32_t>(i));
    const auto variance = hn::Mul(piece.load(d, second + i), hn::Set(d, v_inverse));
    store_codes(piece, code_of_fourth_power(variance, random), v + i);
    // The other moment takes its chance from the lower 12 of the 24 bits. It needs fewer, because
    // it changes by more in each step.
    const auto scaled = hn::Mul(random, hn::Set(d, 4096.0f));
    const auto other = hn::Sub(scaled, hn::Floor(scaled));
    const auto mean = piece.load(d, first + i);
    const auto code = code_of_square(hn::Mul(hn::Abs(mean), hn::Set(d, m_inverse)), other);
    store_codes(piece, hn::CopySign(code, mean), m + i);
  }
};

}  // namespace adamw_detail

template <>
struct Impl<kernels::AdamW> {
  NIBBLE_LAZY static void run(const kernels::AdamWStep& step, float* p, const float* gradient,
                              float* m, float* v, Index n) {
    using namespace adamw_detail;
    for_vectors(DF(), static_cast<size_t>(n), AdamWBody{step, p, gradient, m, v});
  }
};

template <>
struct Impl<kernels::Momentum> {
  NIBBLE_LAZY static void run(const kernels::MomentumStep& step, float* p, const float* gradient,
                              float* m, Index n) {
    using namespace adamw_detail;
    for_vectors(DF(), static_cast<size_t>(n), MomentumBody{step, p, gradient, m});
  }
};

template <>
struct Impl<kernels::AdamW8> {
  static constexpr float kMCodes = 127.0f * 127.0f;
  static constexpr float kVCodes = 255.0f * 255.0f * 255.0f * 255.0f;

  NIBBLE_LAZY static void run(const kernels::AdamWStep& step, uint32_t key, uint32_t first,
                              float* p, const float* gradient, int8_t* m, uint8_t* v,
                              float* m_scales, float* v_scales, Index n) {
    using namespace adamw_detail;
    constexpr auto kBlock = static_cast<size_t>(kernels::kMomentBlock);
    HWY_ALIGN float means[kBlock], variances[kBlock];
    const auto size = static_cast<size_t>(n);
    for (size_t at = 0, block = 0; at < size; at += kBlock, ++block) {
      const size_t n_values = size - at < kBlock ? size - at : kBlock;
      auto m_max = hn::Zero(DF()), v_max = hn::Zero(DF());
      for_vectors(DF(), n_values,
                  Update8{step, p + at, gradient + at, m + at, v + at, m_scales[block] / kMCodes,
                          v_scales[block] / kVCodes, means, variances, &m_max, &v_max});
      const float m_scale = usable(kMCodes, hn::ReduceMax(DF(), m_max));
      const float v_scale = usable(kVCodes, hn::ReduceMax(DF(), v_max));
      for_vectors(DF(), n_values,
                  Encode8{key, first + static_cast<uint32_t>(at), means, variances,
                          inverse(kMCodes, m_scale), inverse(kVCodes, v_scale), m + at, v + at});
      m_scales[block] = m_scale;
      v_scales[block] = v_scale;
    }
  }

 private:
  // A scale so small that the units of its codes are no normal floats stands for moments of zero.
  static float usable(float codes, float scale) { return scale < codes * 0x1p-120f ? 0 : scale; }
  static float inverse(float codes, float scale) { return scale > 0 ? codes / scale : 0; }
};

template <>
struct Impl<kernels::SquareSum> {
  NIBBLE_LAZY static double run(const float* x, Index n) {
    const auto size = static_cast<size_t>(n);
    size_t i = 0;
    double sum = 0;
#if HWY_HAVE_FLOAT64
    const hn::ScalableTag<double> d;
    const hn::Rebind<float, decltype(d)> df;
    const size_t lanes = hn::Lanes(d);
    auto sum0 = hn::Zero(d), sum1 = sum0, sum2 = sum0, sum3 = sum0;
    for (; i + 4 * lanes <= size; i += 4 * lanes) {
      const auto x0 = hn::PromoteTo(d, hn::LoadU(df, x + i));
      const auto x1 = hn::PromoteTo(d, hn::LoadU(df, x + i + lanes));
      const auto x2 = hn::PromoteTo(d, hn::LoadU(df, x + i + 2 * lanes));
      const auto x3 = hn::PromoteTo(d, hn::LoadU(df, x + i + 3 * lanes));
      sum0 = hn::MulAdd(x0, x0, sum0);
      sum1 = hn::MulAdd(x1, x1, sum1);
      sum2 = hn::MulAdd(x2, x2, sum2);
      sum3 = hn::MulAdd(x3, x3, sum3);
    }
    sum = hn::ReduceSum(d, hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3)));
#endif
    for (; i < size; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    return sum;
  }
};

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
