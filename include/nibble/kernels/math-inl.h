// SPDX-License-Identifier: Apache-2.0
//
// Functions of float vectors: exp, sigmoid, tanh, erf, the normal distribution, nearest integers.
// ULP bounds are against the exact value, round to nearest, and hold on every target;
// tests/kernels/activation_test.cpp measures them.

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_MATH_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_MATH_INL_H_
#undef NIBBLE_KERNELS_MATH_INL_H_
#else
#define NIBBLE_KERNELS_MATH_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "nibble/simd/impl.hpp"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The greater of `x` and the number `bound`; a NaN in x stays NaN. Highway does not specify what
// Max does with NaN: x86 returns the second operand, ARM the NaN.
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
// The greater of `x` and the number `best`; a NaN in x is ignored.
template <class V>
HWY_INLINE V max_skip_nan(V x, V best) {
#if HWY_ARCH_X86
  return hn::Max(x, best);
#else
  return hn::IfThenElse(hn::Gt(x, best), x, best);
#endif
}

// The nearest integers, ties to even, of numbers whose integers fit 32 bits.
template <class D, class V = hn::Vec<D>>
HWY_INLINE hn::Vec<hn::RebindToSigned<D>> nearest(D, V x) {
#if HWY_ARCH_X86 && HWY_TARGET != HWY_EMU128
  return hn::NearestIntInRange(hn::RebindToSigned<D>(), x);
#else
  return hn::NearestInt(x);  // Highway 1.3 has the cheaper function for x86 only
#endif
}

namespace detail {

// Adding this constant rounds to an integer n and leaves n + 127 in the low bits; a shift turns
// these into 2^n.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V round_and_bias(D d) {
  return hn::Set(d, 0x1.8p23f + 127.0f);
}

// x = n ln 2 + r with n integral and |r| <= ln 2 / 2. Returns n + round_and_bias. (Cody and Waite
// 1980: ln 2 in two parts, the first of 15 bits, so that n times it is exact even without FMA.)
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
  // 2^n as two factors, because n may be -150 or 128.
  const V half = hn::MulAdd(n, hn::Set(d, 0.5f), magic);
  const V rest = hn::Add(hn::Sub(n, hn::Sub(half, magic)), magic);
  return hn::Mul(hn::Mul(e, detail::pow2_of_biased(d, half)), detail::pow2_of_biased(d, rest));
}

namespace detail {

// With AVX-512, one instruction looks up values in a table of 32 floats held in two registers.
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
template <class D>
inline constexpr bool kHasTablesOf32 = hn::MaxLanes(D()) == 16;
#else
template <class D>
inline constexpr bool kHasTablesOf32 = false;
#endif

// Looks up values in a table of 32; the indices are the low bits of `biased`.
template <class D, class T, class V = hn::Vec<D>>
HWY_INLINE V look_up_32(D d, const T* table, V biased) {
  const hn::RebindToSigned<D> di;
  const hn::Repartition<T, D> dt;
  const auto index = hn::And(hn::BitCast(di, biased), hn::Set(di, 31));
  return hn::BitCast(d, hn::TwoTablesLookupLanes(dt, hn::Load(dt, table), hn::Load(dt, table + 16),
                                                 hn::IndicesFromVec(dt, index)));
}

// The bits of 2^(j / 32), minus j << 18. Adding (32 n + j) << 18 gives the bits of 2^(n + j / 32).
HWY_ALIGN NIBBLE_HIDDEN inline constexpr std::int32_t kExp2Table[32] = {
    0x3F800000, 0x3F7ECD87, 0x3F7DAAC3, 0x3F7C980F, 0x3F7B95C2, 0x3F7AA43A, 0x3F79C3D3, 0x3F78F4F0,
    0x3F7837F0, 0x3F778D3A, 0x3F76F532, 0x3F767043, 0x3F75FED7, 0x3F75A15B, 0x3F75583F, 0x3F7523F6,
    0x3F7504F3, 0x3F74FBAF, 0x3F7508A4, 0x3F752C4D, 0x3F75672A, 0x3F75B9BE, 0x3F76248C, 0x3F76A81E,
    0x3F7744FD, 0x3F77FBB8, 0x3F78CCDF, 0x3F79B907, 0x3F7AC0C7, 0x3F7BE4BA, 0x3F7D257D, 0x3F7E83B3};

// 2^(a * b) = scale * (1 + f * q), for a * b in [-127, 128]; scale is 0 at -127, infinity at 128.
// Splitting a * b in one step costs a relative error of |a b| u without FMA, none with it.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void exp2_of_product(D d, V a, V b, V& scale, V& f, V& q) {
  if constexpr (kHasTablesOf32<D>) {
    // f is in units of 1/32. (2^(f / 32) - 1) / f for |f| <= 1/2: minimax of degree 1 by Remez
    // exchange, relative error of the power 2^-24.2.
    const hn::RebindToSigned<D> di;
    const V b32 = hn::Mul(b, hn::Set(d, 32.0f)), magic = hn::Set(d, 0x1.8p23f);
    const V biased = hn::MulAdd(a, b32, magic);
    f = hn::MulSub(a, b32, hn::Sub(biased, magic));
    const auto entry = hn::BitCast(di, look_up_32(d, kExp2Table, biased));
    const auto bits = hn::Add(entry, hn::ShiftLeft<18>(hn::BitCast(di, biased)));
    scale = hn::BitCast(d, bits);
    q = hn::MulAdd(f, hn::Set(d, 0x1.ebfea8p-13f), hn::Set(d, 0x1.62e586p-6f));
  } else {
    const V biased = hn::MulAdd(a, b, round_and_bias(d));
    f = hn::MulSub(a, b, hn::Sub(biased, round_and_bias(d)));
    // (2^f - 1) / f for |f| <= 1/2: minimax of degree 4 by Remez exchange, relative error in 2^f
    // below 2^-23.3.
    q = hn::MulAdd(f, hn::Set(d, 0x1.5cc548p-10f), hn::Set(d, 0x1.3cf4d4p-7f));
    q = hn::MulAdd(f, q, hn::Set(d, 0x1.c6b58ep-5f));
    q = hn::MulAdd(f, q, hn::Set(d, 0x1.ebf9a2p-3f));
    q = hn::MulAdd(f, q, hn::Set(d, 0x1.62e42ap-1f));
    scale = pow2_of_biased(d, biased);
  }
}

}  // namespace detail

// 2^(x * factor), where that is at most 1 (or NaN); `lowest` is -127 / factor. Most of a model's
// exponentials are of this kind, and it costs half as much as exp. Relative error (3 + |x| factor)
// u, u = 2^-24; with FMA a quarter of the second term. A result that is not a normal number may be
// anything down to 0; it is 0 for x at `lowest` and below.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp2_nonpositive(D d, V x, V factor, V lowest) {
  V scale, f, q;
  detail::exp2_of_product(d, max_keep_nan(x, lowest), factor, scale, f, q);
  return hn::MulAdd(hn::Mul(scale, f), q, scale);
}

// exp(x) for x <= 0 (or NaN), with the error and the underflow of exp2_nonpositive.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp_nonpositive(D d, V x) {
  return exp2_nonpositive(d, x, hn::Set(d, 0x1.715476p+0f), hn::Set(d, -0x1.601e68p+6f));
}

// 1 + 2^(a * b) for a * b in [-126, 128], infinity at 128: the divisor in logistic functions.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V one_plus_exp2(D d, V a, V b) {
  const V one = hn::Set(d, 1.0f);
  V scale, f, q;
  detail::exp2_of_product(d, a, b, scale, f, q);
  return hn::MulAdd(scale, hn::MulAdd(f, q, one), one);
}

// 1 + exp(-x); infinity for x at kLogisticLowest and below.
inline constexpr float kLogisticLowest = -0x1.62e43p+6f;  // -128 ln 2
template <class D, class V = hn::Vec<D>>
HWY_INLINE V one_plus_exp_of_minus(D d, V x) {
  x = min_keep_nan(max_keep_nan(x, hn::Set(d, kLogisticLowest)), hn::Set(d, 87.0f));
  return one_plus_exp2(d, x, hn::Set(d, -0x1.715476p+0f));
}

// 1 / (1 + exp(-x)), relative error (5 + 1.5 |min(x, 0)|) 2^-24 for x >= -87, 0 below; NaN is NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V sigmoid(D d, V x) {
  return hn::Div(hn::Set(d, 1.0f), one_plus_exp_of_minus(d, x));
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

namespace detail {

// Cubics in r that give the tail of the normal distribution at (j + r) / kNormalSteps, |r| <= 1/2,
// j < 32: minimax by Remez exchange, absolute error below 2.6 * 2^-24. The last cubic is 0.
inline constexpr float kNormalSteps = 5.865103f;
HWY_ALIGN NIBBLE_HIDDEN inline constexpr float kNormalTail[4][32] = {
    {0.5f,
     0.432308525f,
     0.366551906f,
     0.304500639f,
     0.247619629f,
     0.196968466f,
     0.15315406f,
     0.116336912f,
     0.0862838551f,
     0.0624533854f,
     0.0440972187f,
     0.030361969f,
     0.0203781556f,
     0.0133286007f,
     0.00849320553f,
     0.00527134119f,
     0.00318594882f,
     0.00187473616f,
     0.00107386371f,
     0.000598683429f,
     0.000324804831f,
     0.000171462365f,
     8.80613588e-05f,
     4.39972973e-05f,
     2.13820094e-05f,
     1.01068217e-05f,
     4.64610594e-06f,
     2.07701623e-06f,
     9.02895238e-07f,
     3.8164049e-07f,
     1.56843342e-07f,
     0.0f},
    {-0.0680197105f,   -0.067038089f,    -0.0641776994f,   -0.0596790053f,
     -0.0539056174f,   -0.0472956747f,   -0.0403073058f,   -0.0333673023f,
     -0.0268307813f,   -0.0209565852f,   -0.0158994664f,   -0.0117170839f,
     -0.00838747807f,  -0.00583200715f,  -0.00393894175f,  -0.00258413889f,
     -0.00164674711f,  -0.00101932511f,  -0.000612876844f, -0.000357938465f,
     -0.000203057105f, -0.000111892914f, -5.98909937e-05f, -3.11383083e-05f,
     -1.57254435e-05f, -7.71410032e-06f, -3.67571647e-06f, -1.7012693e-06f,
     -7.64853723e-07f, -3.34008803e-07f, -1.41680999e-07f, 0.0f},
    {4.37274053e-07f, 0.000972657464f, 0.00186240836f,  0.00259801513f,
     0.00312929298f,  0.00343251368f,  0.0035110726f,   0.00339174457f,
     0.00311775389f,  0.00274038361f,  0.0023108751f,   0.00187398435f,
     0.0014640037f,   0.0011032708f,   0.000802850816f, 0.000564620073f,
     0.000384001993f, 0.00025269753f,  0.000160973112f, 9.93009453e-05f,
     5.9338814e-05f,  3.43579632e-05f, 1.92805855e-05f, 1.04882956e-05f,
     5.5316923e-06f,  2.82908877e-06f, 1.40323323e-06f, 6.75087847e-07f,
     3.15053654e-07f, 1.42641085e-07f, 6.26582235e-08f, 0.0f},
    {0.000328526716f,  0.000314860867f,  0.000274394843f,  0.000213261024f,
     0.000139635566f,  6.27173722e-05f,  -8.85454847e-06f, -6.8308269e-05f,
     -0.000111528367f, -0.000137240349f, -0.000146656545f, -0.000142740479f,
     -0.000129374443f, -0.000110527122f, -8.96669881e-05f, -6.94169285e-05f,
     -5.14575222e-05f, -3.6615118e-05f,  -2.50559187e-05f, -1.65129659e-05f,
     -1.04930041e-05f, -6.4347787e-06f,  -3.81112454e-06f, -2.18137143e-06f,
     -1.20723291e-06f, -6.46295348e-07f, -3.34823113e-07f, -1.67914308e-07f,
     -8.15403709e-08f, -3.83512884e-08f, -1.74745498e-08f, 0.0f}};

}  // namespace detail

// normal_tail is 0 from here on.
inline constexpr float kNormalTailEnd = 5.28f;

// The tail of the normal distribution, (1 - erf(a / sqrt(2))) / 2 for 0 <= a <= kNormalTailEnd.
// Absolute error below 4 * 2^-24.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V normal_tail(D d, V a) {
  using detail::look_up_32;
  if constexpr (detail::kHasTablesOf32<D>) {
    const V steps = hn::Set(d, detail::kNormalSteps), magic = hn::Set(d, 0x1.8p23f);
    const V biased = hn::MulAdd(a, steps, magic);
    const V r = hn::MulSub(a, steps, hn::Sub(biased, magic));
    const auto& table = detail::kNormalTail;
    V t = hn::MulAdd(r, look_up_32(d, table[3], biased), look_up_32(d, table[2], biased));
    t = hn::MulAdd(r, t, look_up_32(d, table[1], biased));
    return hn::MulAdd(r, t, look_up_32(d, table[0], biased));
  } else {
    // 1/2 - a N(a^2) / D(a^2): minimax of degrees 4 and 5 by Remez exchange on a <= 5.2, absolute
    // error 0.96 * 2^-24; D is scaled so that its first step is an addition.
    const V s = hn::Mul(a, a);
    V n = hn::MulAdd(s, hn::Set(d, 11.637055f), hn::Set(d, 626.1485f));
    V q = hn::Add(s, hn::Set(d, 224.62875f));
    n = hn::MulAdd(s, n, hn::Set(d, 10995.564f));
    q = hn::MulAdd(s, q, hn::Set(d, 5386.997f));
    n = hn::MulAdd(s, n, hn::Set(d, 98810.78f));
    q = hn::MulAdd(s, q, hn::Set(d, 74396.29f));
    n = hn::MulAdd(s, n, hn::Set(d, 794849.7f));
    q = hn::MulAdd(s, q, hn::Set(d, 579735.9f));
    q = hn::MulAdd(s, q, hn::Set(d, 1992394.6f));
    const V t = hn::Sub(hn::Set(d, 0.5f), hn::Div(hn::Mul(a, n), q));
    return hn::IfThenElseZero(hn::Lt(a, hn::Set(d, 5.2f)), t);
  }
}

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
