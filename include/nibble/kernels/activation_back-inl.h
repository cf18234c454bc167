// SPDX-License-Identifier: Apache-2.0

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_ACTIVATION_BACK_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_ACTIVATION_BACK_INL_H_
#undef NIBBLE_KERNELS_ACTIVATION_BACK_INL_H_
#else
#define NIBBLE_KERNELS_ACTIVATION_BACK_INL_H_
#endif

#include "hwy/highway.h"
#include "nibble/kernels/activation-inl.h"
#include "nibble/kernels/activation_back.hpp"
#include "nibble/kernels/map-inl.h"
#include "nibble/kernels/math-inl.h"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Slope<Activation>::of(d, x) is the derivative at x. A program's own activation brings its own.
template <class Activation>
struct Slope;

template <>
struct Slope<kernels::Identity> {
  template <class D, class V>
  static HWY_INLINE V of(D d, V) {
    return hn::Set(d, 1.0f);
  }
};

template <>
struct Slope<kernels::Relu> {
  template <class D, class V>
  static HWY_INLINE V of(D d, V x) {
    return hn::IfThenZeroElse(hn::Le(x, hn::Zero(d)), hn::Set(d, 1.0f));
  }
};

template <>
struct Slope<kernels::Sigmoid> {
  template <class D, class V>
  static HWY_INLINE V of(D d, V x) {
    const V s = sigmoid(d, x);
    return hn::NegMulAdd(s, s, s);
  }
};

template <>
struct Slope<kernels::Tanh> {
  template <class D, class V>
  static HWY_INLINE V of(D d, V x) {
    const V t = tanh(d, x);
    return hn::NegMulAdd(t, t, hn::Set(d, 1.0f));
  }
};

template <>
struct Slope<kernels::Silu> {
  template <class D, class V>
  static HWY_INLINE V of(D d, V x) {
    // s + x s (1 - s). Beyond these bounds the second term is 0, and x must not be infinite.
    const V inside = min_keep_nan(max_keep_nan(x, hn::Set(d, kLogisticLowest)), hn::Set(d, 87.0f));
    const V s = sigmoid(d, x);  // shares its exponential with the function itself
    return hn::MulAdd(hn::Mul(inside, s), hn::Sub(hn::Set(d, 1.0f), s), s);
  }
};

template <>
struct Slope<kernels::GeluErf> {
  template <class D, class V>
  static HWY_INLINE V of(D d, V x) {
    // The distribution function of the normal distribution, plus x times its density. The density
    // is 0 at the bound.
    const V bound = hn::Set(d, 14.0f);
    const V inside = min_keep_nan(max_keep_nan(x, hn::Neg(bound)), bound);
    const V a = min_keep_nan(hn::Abs(x), hn::Set(d, kNormalTailEnd));
    const V tail = normal_tail(d, a);
    const V below =
        hn::IfThenElse(hn::Lt(inside, hn::Zero(d)), tail, hn::Sub(hn::Set(d, 1.0f), tail));
    const V half_square = hn::Mul(hn::Mul(inside, inside), hn::Set(d, -0.5f));
    const V density = hn::Mul(exp_nonpositive(d, half_square), hn::Set(d, 0.39894228f));
    return hn::MulAdd(inside, density, below);
  }
};

template <>
struct Slope<kernels::GeluTanh> {
  template <class D, class V>
  static HWY_INLINE V of(D d, V x) {
    // s + x y' s (1 - s), s and the bounds of x as in the forward function.
    const V inside = min_keep_nan(max_keep_nan(x, hn::Set(d, -10.0609665f)), hn::Set(d, 9.986397f));
    const V square = hn::Mul(inside, inside);
    const V exponent = hn::MulAdd(square, hn::Set(d, -0.10294324f), hn::Set(d, -2.3022082f));
    const V s = hn::Div(hn::Set(d, 1.0f), one_plus_exp2(d, inside, exponent));
    const V slope_y = hn::MulAdd(square, hn::Set(d, 0.21406445f), hn::Set(d, 1.5957691f));
    const V rest = hn::NegMulAdd(s, s, s);
    return hn::MulAdd(hn::Mul(inside, slope_y), rest, s);
  }
};

template <class Activation>
struct Impl<kernels::ActivateBack<Activation>> {
  struct Map {
    template <class D, class V>
    HWY_INLINE V operator()(D d, V x, V dy) const {
      return hn::Mul(dy, Slope<Activation>::of(d, x));
    }
  };
  static void run(const float* x, const float* dy, float* dx, Index n) { map(Map{}, dx, n, x, dy); }
};

template <class Activation>
struct Impl<kernels::ActivateGatedBack<Activation>> {
  struct Body {
    const float *gate, *up, *dy;
    float *dgate, *dup;
    template <class Piece>
    HWY_INLINE void operator()(size_t i, Piece piece) const {
      const hn::ScalableTag<float> d;
      const auto g = piece.load(d, gate + i), u = piece.load(d, up + i), y = piece.load(d, dy + i);
      piece.store(hn::Mul(hn::Mul(y, u), Slope<Activation>::of(d, g)), d, dgate + i);
      piece.store(hn::Mul(y, activate(Activation{}, d, g)), d, dup + i);
    }
  };
  static void run(const float* gate, const float* up, const float* dy, float* dgate, float* dup,
                  Index n) {
    for_vectors(hn::ScalableTag<float>(), static_cast<size_t>(n), Body{gate, up, dy, dgate, dup});
  }
};

template <>
struct Impl<kernels::SoftCapBack> {
  struct Map {
    float inverse;
    template <class D, class V>
    HWY_INLINE V operator()(D d, V y, V dy) const {
      const V t = hn::Mul(y, hn::Set(d, inverse));
      return hn::Mul(dy, hn::NegMulAdd(t, t, hn::Set(d, 1.0f)));
    }
  };
  NIBBLE_LAZY static void run(const float* y, const float* dy, float inverse, float* dx, Index n) {
    map(Map{inverse}, dx, n, y, dy);
  }
};

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
