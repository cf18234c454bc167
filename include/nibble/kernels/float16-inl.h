// SPDX-License-Identifier: Apache-2.0
//
// 16-bit floats, held as bits in vectors of half the width. Widening them to f32 is exact for every
// value, including infinities, on every target.

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_FLOAT16_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_FLOAT16_INL_H_
#undef NIBBLE_KERNELS_FLOAT16_INL_H_
#else
#define NIBBLE_KERNELS_FLOAT16_INL_H_
#endif

#include "hwy/highway.h"
#include "nibble/core/float16.hpp"
#include "nibble/simd/impl.hpp"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class D, class V16 = hn::Vec<hn::Rebind<uint16_t, D>>>
HWY_INLINE hn::Vec<D> widen(f16, D d, V16 bits) {
#if (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2) || HWY_ARCH_ARM_A64
  return hn::PromoteTo(d, hn::BitCast(hn::Rebind<hwy::float16_t, D>(), bits));
#else
  // Where the target has no instruction for it, Highway 1.3 widens infinity to 65536. Instead: move
  // the fields to their places, which gives a float whose exponent is 112 too small, and multiply.
  // The largest exponent (infinity and NaN) stays the largest.
  const hn::RebindToUnsigned<D> du;
  const auto wide = hn::PromoteTo(du, bits);
  const auto magnitude = hn::ShiftLeft<13>(hn::And(wide, hn::Set(du, 0x7FFFu)));
  const auto sign = hn::ShiftLeft<16>(hn::And(wide, hn::Set(du, 0x8000u)));
  const auto value = hn::Mul(hn::BitCast(d, magnitude), hn::Set(d, 0x1p112f));
  const auto special = hn::VecFromMask(du, hn::Ge(magnitude, hn::Set(du, 31u << 23)));
  const auto exponent = hn::And(special, hn::Set(du, 0x7F800000u));
  return hn::BitCast(d, hn::Or3(hn::BitCast(du, value), sign, exponent));
#endif
}

template <class D, class V16 = hn::Vec<hn::Rebind<uint16_t, D>>>
HWY_INLINE hn::Vec<D> widen(bf16, D d, V16 bits) {
  const hn::RebindToUnsigned<D> du;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, bits)));
}

// The bits of to_bf16: rounded to nearest, ties to even; NaN stays NaN (quiet).
template <class D, class V = hn::Vec<D>>
HWY_INLINE hn::Vec<hn::Rebind<uint16_t, D>> round_to_bf16(D, V v) {
  const hn::RebindToUnsigned<D> du;
  const auto bits = hn::BitCast(du, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7FFFu)));
  const auto quiet = hn::Or(bits, hn::Set(du, 0x400000u));
  const auto result = hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(v)), quiet, rounded);
  return hn::TruncateTo(hn::Rebind<uint16_t, D>(), hn::ShiftRight<16>(result));
}

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
