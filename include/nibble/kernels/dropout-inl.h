// SPDX-License-Identifier: Apache-2.0

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_DROPOUT_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_DROPOUT_INL_H_
#undef NIBBLE_KERNELS_DROPOUT_INL_H_
#else
#define NIBBLE_KERNELS_DROPOUT_INL_H_
#endif

#include "hwy/highway.h"
#include "nibble/kernels/dropout.hpp"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// A bijection of 32 bits in which each input bit flips each output bit with probability 1/2 to
// within 0.2 % ("lowbias32": C. Wellons, Prospecting for Hash Functions, 2018).
template <class DU, class V = hn::Vec<DU>>
HWY_INLINE V mix_bits(DU du, V h) {
  h = hn::Xor(h, hn::ShiftRight<16>(h));
  h = hn::Mul(h, hn::Set(du, 0x7FEB352Du));
  h = hn::Xor(h, hn::ShiftRight<15>(h));
  h = hn::Mul(h, hn::Set(du, 0x846CA68Bu));
  return hn::Xor(h, hn::ShiftRight<16>(h));
}

// The factors (0 or dropout.scale) of elements index, index + 1, ... of a tensor, one per lane:
//   bits(i) = mix(key1 ^ (high32(i) + mix(key0 ^ low32(i)))), dropped if bits < threshold.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V dropout_scale(D d, const kernels::Dropout& dropout, Index index) {
  const hn::RebindToUnsigned<D> du;
  const auto first = static_cast<uint64_t>(index);
  const auto first_low = hn::Set(du, static_cast<uint32_t>(first));
  const auto low = hn::Add(first_low, hn::Iota(du, 0u));
  // Lanes whose low half wrapped around belong to the next high half; true lanes are -1.
  const auto wrapped = hn::VecFromMask(du, hn::Lt(low, first_low));
  const auto high = hn::Sub(hn::Set(du, static_cast<uint32_t>(first >> 32)), wrapped);
  auto bits = mix_bits(du, hn::Xor(low, hn::Set(du, dropout.key0)));
  bits = mix_bits(du, hn::Xor(hn::Add(bits, high), hn::Set(du, dropout.key1)));
  const auto keep = hn::Ge(bits, hn::Set(du, dropout.threshold));
  return hn::IfThenElseZero(hn::RebindMask(d, keep), hn::Set(d, dropout.scale));
}

template <>
struct Impl<kernels::ApplyDropout> {
  NIBBLE_LAZY static void run(const kernels::Dropout& dropout, Index first_index, const float* x,
                              float* out, Index n) {
    const hn::ScalableTag<float> d;
    const auto size = static_cast<size_t>(n);
    const size_t lanes = hn::Lanes(d);
    const kernels::Dropout copy = dropout;  // `out` might alias it, for all the compiler knows
    size_t i = 0;
    for (; i + lanes <= size; i += lanes) {
      const auto scale = dropout_scale(d, copy, first_index + static_cast<Index>(i));
      hn::StoreU(hn::Mul(hn::LoadU(d, x + i), scale), d, out + i);
    }
    if (i < size) {
      const auto scale = dropout_scale(d, copy, first_index + static_cast<Index>(i));
      hn::StoreN(hn::Mul(hn::LoadN(d, x + i, size - i), scale), d, out + i, size - i);
    }
  }
};

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
