// SPDX-License-Identifier: Apache-2.0

#if defined(NIBBLE_KERNELS_ACTIVATION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_ACTIVATION_INL_H_
#undef NIBBLE_KERNELS_ACTIVATION_INL_H_
#else
#define NIBBLE_KERNELS_ACTIVATION_INL_H_
#endif

#include "hwy/highway.h"
#include "nibble/kernels/activation.hpp"
#include "nibble/kernels/map-inl.h"
#include "nibble/kernels/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble::inline NIBBLE_ABI::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The function of an activation's tag, for fused kernels: activate(Activation{}, d, x). A user's
// own activation is a tag with such an Impl, see NIBBLE_USER_KERNELS.
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
    // Below -88 the sigmoid is 0; -inf * 0 would be NaN.
    V denominator;
    const V numerator = sigmoid_fraction(d, x, denominator);
    return hn::Div(hn::Mul(max_keep_nan(x, hn::Set(d, -128.0f)), numerator), denominator);
  }
};

template <>
struct Impl<kernels::GeluErf> {
  template <class D, class V>
  static HWY_INLINE V apply(D d, V x) {
    // From -5.6 on erf is -1 and the result -0, also at -inf.
    const V half = hn::Mul(max_keep_nan(x, hn::Set(d, -8.0f)), hn::Set(d, 0.5f));
    const V e = erf(d, hn::Mul(x, hn::Set(d, 0.707106781f)));
    return hn::MulAdd(half, e, half);
  }
};

template <>
struct Impl<kernels::GeluTanh> {
  template <class D, class V>
  static HWY_INLINE V apply(D d, V x) {
    // (1 + tanh(y / 2)) / 2 = sigmoid(y), y = sqrt(8/pi) (x + 0.044715 x^3).
    const V square = hn::Mul(x, x);
    const V y = hn::Mul(x, hn::MulAdd(square, hn::Set(d, 0.0713548163f), hn::Set(d, 1.59576912f)));
    V denominator;
    const V numerator = sigmoid_fraction(d, y, denominator);
    return hn::Div(hn::Mul(max_keep_nan(x, hn::Set(d, -128.0f)), numerator), denominator);
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

}  // namespace nibble::inline NIBBLE_ABI::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
