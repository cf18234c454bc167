// SPDX-License-Identifier: Apache-2.0

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_CAUSAL_CONV_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_CAUSAL_CONV_INL_H_
#undef NIBBLE_KERNELS_CAUSAL_CONV_INL_H_
#else
#define NIBBLE_KERNELS_CAUSAL_CONV_INL_H_
#endif

#include "hwy/highway.h"
#include "nibble/kernels/activation-inl.h"
#include "nibble/kernels/causal_conv.hpp"
#include "nibble/kernels/registers-inl.h"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

namespace causal_conv_detail {

using kernels::CausalConvArgs;
using D = PanelTag<float>;
using V = hn::Vec<D>;
inline constexpr Index kLanes = static_cast<Index>(hn::MaxLanes(D()));
static_assert(kernels::kConvPanel % kLanes == 0);

// The first n lanes; kWhole: n is all of them.
template <bool kWhole>
HWY_INLINE V load(const float* p, size_t n) {
  if constexpr (kWhole) {
    return hn::LoadU(D(), p);
  } else {
    return hn::LoadN(D(), p, n);
  }
}
template <bool kWhole>
HWY_INLINE void store(V v, float* p, size_t n) {
  if constexpr (kWhole) {
    hn::StoreU(v, D(), p);
  } else {
    hn::StoreN(v, D(), p, n);
  }
}

template <class Form>
struct Ends;
template <class Activation>
struct Ends<kernels::ConvActivated<Activation>> {
  template <bool kWhole>
  static HWY_INLINE V input(const CausalConvArgs& a, Index at, size_t n) {
    return load<kWhole>(a.x + at, n);
  }
  template <bool kWhole>
  static HWY_INLINE V output(const CausalConvArgs&, Index, size_t, V sum) {
    return activate(Activation{}, D(), sum);
  }
};
template <>
struct Ends<kernels::ConvGated> {
  template <bool kWhole>
  static HWY_INLINE V input(const CausalConvArgs& a, Index at, size_t n) {
    return hn::Mul(load<kWhole>(a.before + at, n), load<kWhole>(a.x + at, n));
  }
  template <bool kWhole>
  static HWY_INLINE V output(const CausalConvArgs& a, Index at, size_t n, V sum) {
    return hn::Mul(load<kWhole>(a.after + at, n), sum);
  }
};

// The n channels from `c` on, whose taps are `panel`: the last rows stay in registers. With fewer
// than four taps, the oldest ones are zeros times zeros.
template <class Form, bool kWhole>
HWY_INLINE void convolve(const CausalConvArgs& a, Index c, size_t n, const float* panel) {
  const D d;
  const auto tap = [&](Index age) NIBBLE_ATTR {
    return age < a.n_taps ? hn::LoadU(d, panel + (a.n_taps - 1 - age) * kernels::kConvPanel)
                          : hn::Zero(d);
  };
  float* const state = a.state + c;
  const auto kept = [&](Index age) NIBBLE_ATTR {
    return age < a.n_taps ? load<kWhole>(state + (a.n_taps - 1 - age) * a.state_stride, n)
                          : hn::Zero(d);
  };
  const V w0 = tap(0), w1 = tap(1), w2 = tap(2), w3 = tap(3);
  const V bias = a.bias == nullptr ? hn::Zero(d) : load<kWhole>(a.bias + c, n);
  V s1 = kept(1), s2 = kept(2), s3 = kept(3);
  for (Index row = 0; row < a.n_rows; ++row) {
    const Index at = row * a.stride + c;
    const V s0 = Ends<Form>::template input<kWhole>(a, at, n);
    const V old = hn::MulAdd(w2, s2, hn::MulAdd(w3, s3, bias));
    const V sum = hn::MulAdd(w0, s0, hn::MulAdd(w1, s1, old));
    store<kWhole>(Ends<Form>::template output<kWhole>(a, at, n, sum),
                  a.out + row * a.out_stride + c, n);
    s3 = s2;
    s2 = s1;
    s1 = s0;
  }
  const auto keep = [&](Index age, V s) NIBBLE_ATTR {
    if (age < a.n_taps) store<kWhole>(s, state + (a.n_taps - 1 - age) * a.state_stride, n);
  };
  keep(1, s1);
  keep(2, s2);
  keep(3, s3);
}

}  // namespace causal_conv_detail

template <class Form>
struct Impl<kernels::CausalConv<Form>> {
  static void run(const kernels::CausalConvArgs& args) {
    using causal_conv_detail::convolve;
    constexpr Index kStep = causal_conv_detail::kLanes;
    for (Index c = 0; c < args.n_channels; c += kStep) {
      const float* const panel = args.taps +
                                 c / kernels::kConvPanel * args.n_taps * kernels::kConvPanel +
                                 c % kernels::kConvPanel;
      if (c + kStep <= args.n_channels) {
        convolve<Form, true>(args, c, 0, panel);
      } else {
        convolve<Form, false>(args, c, static_cast<size_t>(args.n_channels - c), panel);
      }
    }
  }
};

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
