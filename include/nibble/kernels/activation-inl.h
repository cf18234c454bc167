// SPDX-License-Identifier: Apache-2.0

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_ACTIVATION_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_ACTIVATION_INL_H_
#undef NIBBLE_KERNELS_ACTIVATION_INL_H_
#else
#define NIBBLE_KERNELS_ACTIVATION_INL_H_
#endif

#include "hwy/highway.h"
#include "nibble/kernels/activation.hpp"
#include "nibble/kernels/map-inl.h"
#include "nibble/kernels/math-inl.h"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Applies the activation that a tag type stands for. Fused kernels call it as
// activate(Activation{}, d, x). A program's own activation is a tag type with such an Impl, see
// NIBBLE_USER_KERNELS.
template <class Activation, class D, class V = hn::Vec<D>>
HWY_INLINE V activate(Activation, D d, V x) {
  return Impl<Activation>::apply(d, x);
}

template <>
struct Impl<kernels::Identity> {
  template <class D, class V>
  static HWY_INLINE V apply(D, V x) {
    return x;
  }
};

template <>
struct Impl<kernels::Relu> {
  template <class D, class V>
  static HWY_INLINE V apply(D d, V x) {
    return max_keep_nan(x, hn::Zero(d));
  }
};

template <>
struct Impl<kernels::Silu> {
  template <class D, class V>
  static HWY_INLINE V apply(D d, V x) {
    // The numerator must not be -inf: divided by infinity it would give NaN.
    return hn::Div(max_keep_nan(x, hn::Set(d, kLogisticLowest)), one_plus_exp_of_minus(d, x));
  }
};

template <>
struct Impl<kernels::GeluErf> {
  template <class D, class V>
  static HWY_INLINE V apply(D d, V x) {
    // x times the distribution function equals max(x, 0) - |x| * tail(|x|), where nothing cancels.
    const V a = min_keep_nan(hn::Abs(x), hn::Set(d, kNormalTailEnd));
    return hn::NegMulAdd(a, normal_tail(d, a), max_keep_nan(x, hn::Zero(d)));
  }
};

template <>
struct Impl<kernels::GeluTanh> {
  template <class D, class V>
  static HWY_INLINE V apply(D d, V x) {
    // (1 + tanh(y / 2)) / 2 = 1 / (1 + exp(-y)), y = sqrt(8/pi) (x + 0.044715 x^3). The bounds of x
    // are where exp(-y) reaches 2^128, which is infinity, and where exp(-y) adds nothing to 1.
    const V above = max_keep_nan(x, hn::Set(d, -10.0609665f));
    const V inside = min_keep_nan(above, hn::Set(d, 9.986397f));
    const V square = hn::Mul(inside, inside);
    const V slope = hn::MulAdd(square, hn::Set(d, -0.10294324f), hn::Set(d, -2.3022082f));
    return hn::Div(above, one_plus_exp2(d, inside, slope));
  }
};

template <>
struct Impl<kernels::Sigmoid> {
  template <class D, class V>
  static HWY_INLINE V apply(D d, V x) {
    return sigmoid(d, x);
  }
};

template <>
struct Impl<kernels::Tanh> {
  template <class D, class V>
  static HWY_INLINE V apply(D d, V x) {
    return tanh(d, x);
  }
};

template <>
struct Impl<kernels::Exp> {
  template <class D, class V>
  static HWY_INLINE V apply(D d, V x) {
    return exp(d, x);
  }
};

template <>
struct Impl<kernels::Erf> {
  template <class D, class V>
  static HWY_INLINE V apply(D d, V x) {
    return erf(d, x);
  }
};

template <class Activation>
struct Impl<kernels::Activate<Activation>> {
  struct Map {
    template <class D, class V>
    HWY_INLINE V operator()(D d, V x) const {
      return activate(Activation{}, d, x);
    }
  };
  static void run(const float* x, float* out, Index n) { map(Map{}, out, n, x); }
};

template <class Activation>
struct Impl<kernels::ActivateGated<Activation>> {
  struct Map {
    template <class D, class V>
    HWY_INLINE V operator()(D d, V gate, V up) const {
      return hn::Mul(activate(Activation{}, d, gate), up);
    }
  };
  static void run(const float* gate, const float* up, float* out, Index n) {
    map(Map{}, out, n, gate, up);
  }
};

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
