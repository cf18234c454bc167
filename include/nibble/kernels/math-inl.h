// SPDX-License-Identifier: Apache-2.0
//
// exp, sigmoid, tanh and erf of float vectors. ULP bounds are against the exact value, round to
// nearest, and hold on every target; tests/kernels/activation_test.cpp measures them.

#if defined(NIBBLE_KERNELS_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_MATH_INL_H_
#undef NIBBLE_KERNELS_MATH_INL_H_
#else
#define NIBBLE_KERNELS_MATH_INL_H_
#endif

#include "hwy/highway.h"
#include "nibble/simd/impl.hpp"

HWY_BEFORE_NAMESPACE();
namespace nibble::inline NIBBLE_ABI::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The greater of `x` and the number `bound`; a NaN in x stays NaN. Highway leaves open what Max
// does with NaN: x86 returns the second operand, ARM the NaN.
template <class V>
HWY_INLINE V max_keep_nan(V x, V bound) {
#if HWY_ARCH_X86
  return hn::Max(bound, x);
#else
  return hn::IfThenElse(hn::Lt(x, bound), bound, x);
#endif
}
template <class V>
HWY_INLINE V min_keep_nan(V x, V bound) {
#if HWY_ARCH_X86
  return hn::Min(bound, x);
#else
  return hn::IfThenElse(hn::Gt(x, bound), bound, x);
#endif
}
// The greater of `x` and the number `best`; a NaN in x is passed over.
template <class V>
HWY_INLINE V max_skip_nan(V x, V best) {
#if HWY_ARCH_X86
  return hn::Max(x, best);
#else
  return hn::IfThenElse(hn::Gt(x, best), x, best);
#endif
}

namespace detail {

// Adding it rounds to an integer n and leaves n + 127 in the low bits, of which a shift makes 2^n.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V round_and_bias(D d) {
  return hn::Set(d, 0x1.8p23f + 127.0f);
}

// x = n ln 2 + r with n integral and |r| <= ln 2 / 2. Returns n + round_and_bias. (Cody and Waite
// 1980: ln 2 in two parts, the first of 15 bits so that n times it is exact also without FMA.)
template <class D, class V = hn::Vec<D>>
HWY_INLINE V reduce_by_ln2(D d, V x, V& r) {
  const V biased = hn::MulAdd(x, hn::Set(d, 0x1.715476p+0f), round_and_bias(d));
  const V n = hn::Sub(biased, round_and_bias(d));
  r = hn::NegMulAdd(n, hn::Set(d, 0x1.62e4p-1f), x);
  r = hn::NegMulAdd(n, hn::Set(d, 0x1.7f7d1cp-20f), r);
  return biased;
}

// 2^n for n in [-126, 127], 0 for n = -127.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V pow2_of_biased(D d, V biased) {
  const hn::RebindToSigned<D> di;
  return hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(di, biased)));
}

// exp(r) - 1 for |r| <= ln 2 / 2: minimax of degree 6 by Remez exchange, its first coefficient
// fixed at 1, relative error in exp(r) below 2^-28.2.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V expm1_polynomial(D d, V r) {
  V q = hn::MulAdd(r, hn::Set(d, 0x1.6ac13ap-10f), hn::Set(d, 0x1.123da6p-7f));
  q = hn::MulAdd(r, q, hn::Set(d, 0x1.555858p-5f));
  q = hn::MulAdd(r, q, hn::Set(d, 0x1.55548cp-3f));
  q = hn::MulAdd(r, q, hn::Set(d, 0x1.fffffcp-2f));
  return hn::MulAdd(hn::Mul(r, r), q, r);
}

}  // namespace detail

// exp(x) over the whole range: overflow is inf, underflow is gradual, NaN is NaN. Within 1 ULP (of
// 2^-149 where the result is subnormal).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp(D d, V x) {
  // exp(-104) < 2^-150 rounds to 0, exp(89) overflows.
  x = min_keep_nan(max_keep_nan(x, hn::Set(d, -104.0f)), hn::Set(d, 89.0f));
  V r;
  const V magic = detail::round_and_bias(d);
  const V n = hn::Sub(detail::reduce_by_ln2(d, x, r), magic);
  const V e = hn::Add(detail::expm1_polynomial(d, r), hn::Set(d, 1.0f));
  // 2^n in two factors, for n may be -150 or 128.
  const V half = hn::MulAdd(n, hn::Set(d, 0.5f), magic);
  const V rest = hn::Add(hn::Sub(n, hn::Sub(half, magic)), magic);
  return hn::Mul(hn::Mul(e, detail::pow2_of_biased(d, half)), detail::pow2_of_biased(d, rest));
}

// 2^(x * factor), where that is at most 1 (or NaN) and `lowest` is -127 / factor. Where most of a
// model's exponentials are, at half the cost of exp: x * factor = n + f is one step, so that the
// relative error is (3 + |x| factor) u, u = 2^-24, a quarter of the second term with FMA; 0 instead
// of results that are not normal numbers.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp2_nonpositive(D d, V x, V factor, V lowest) {
  x = max_keep_nan(x, lowest);  // 2^-127 comes out as 0
  const V biased = hn::MulAdd(x, factor, detail::round_and_bias(d));
  const V f = hn::MulSub(x, factor, hn::Sub(biased, detail::round_and_bias(d)));
  const V scale = detail::pow2_of_biased(d, biased);
  // (2^f - 1) / f for |f| <= 1/2: minimax of degree 4 by Remez exchange, relative error in 2^f
  // below 2^-23.3.
  V p = hn::MulAdd(f, hn::Set(d, 0x1.5cc548p-10f), hn::Set(d, 0x1.3cf4d4p-7f));
  p = hn::MulAdd(f, p, hn::Set(d, 0x1.c6b58ep-5f));
  p = hn::MulAdd(f, p, hn::Set(d, 0x1.ebf9a2p-3f));
  p = hn::MulAdd(f, p, hn::Set(d, 0x1.62e42ap-1f));
  return hn::MulAdd(hn::Mul(scale, f), p, scale);
}

// exp(x) for x <= 0 (or NaN), with the error and the underflow of exp2_nonpositive.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp_nonpositive(D d, V x) {
  return exp2_nonpositive(d, x, hn::Set(d, 0x1.715476p+0f), hn::Set(d, -88.0f));
}

// 1 / (1 + exp(-x)) as a fraction whose parts do not overflow: returns the numerator. For those who
// multiply it by something anyway before dividing, as SiLU and GELU do.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V sigmoid_fraction(D d, V x, V& denominator) {
  const V one = hn::Set(d, 1.0f);
  const V z = exp_nonpositive(d, hn::Neg(hn::Abs(x)));
  denominator = hn::Add(one, z);
  return hn::IfNegativeThenElse(x, z, one);
}

// 1 / (1 + exp(-x)), relative error (5 + 1.5 |min(x, 0)|) 2^-24 for x >= -87, 0 below; NaN is NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V sigmoid(D d, V x) {
  V denominator;
  const V numerator = sigmoid_fraction(d, x, denominator);
  return hn::Div(numerator, denominator);
}

// tanh(x) = -e / (2 + e) with e = exp(-2|x|) - 1, which keeps small x exact. Within 3 ULP.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V tanh(D d, V x) {
  // tanh(10) rounds to 1.
  const V y = max_keep_nan(hn::Mul(hn::Abs(x), hn::Set(d, -2.0f)), hn::Set(d, -20.0f));
  V r;
  const V scale = detail::pow2_of_biased(d, detail::reduce_by_ln2(d, y, r));
  const V e = hn::MulAdd(detail::expm1_polynomial(d, r), scale, hn::Sub(scale, hn::Set(d, 1.0f)));
  return hn::CopySign(hn::Div(e, hn::Add(hn::Set(d, 2.0f), e)), x);
}

// erf(x) = x N(x^2) / D(x^2): minimax of degrees 5 and 5 by Remez exchange on |x| <= 3.925, beyond
// which erf rounds to 1; relative error 2^-25.6 before rounding. Within 8 ULP, and |erf| <= 1.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V erf(D d, V x) {
  const V limit = hn::Set(d, 3.925f);
  x = min_keep_nan(max_keep_nan(x, hn::Neg(limit)), limit);
  const V s = hn::Mul(x, x);
  V n = hn::MulAdd(s, hn::Set(d, 2.04602905e-6f), hn::Set(d, 2.84844689e-4f));
  V q = hn::MulAdd(s, hn::Set(d, 3.80478531e-5f), hn::Set(d, 1.16386576e-3f));
  n = hn::MulAdd(s, n, hn::Set(d, 3.77257895e-3f));
  q = hn::MulAdd(s, q, hn::Set(d, 1.49832544e-2f));
  n = hn::MulAdd(s, n, hn::Set(d, 5.27693865e-2f));
  q = hn::MulAdd(s, q, hn::Set(d, 1.14182979e-1f));
  n = hn::MulAdd(s, n, hn::Set(d, 1.90594359e-1f));
  q = hn::MulAdd(s, q, hn::Set(d, 5.02242583e-1f));
  n = hn::MulAdd(s, n, hn::Set(d, 1.12837915f));
  q = hn::MulAdd(s, q, hn::Set(d, 1.0f));
  const V one = hn::Set(d, 1.0f);
  return min_keep_nan(max_keep_nan(hn::Div(hn::Mul(x, n), q), hn::Neg(one)), one);
}

}  // namespace nibble::inline NIBBLE_ABI::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
