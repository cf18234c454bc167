// SPDX-License-Identifier: Apache-2.0

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_QUANTIZE_STATIC_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_QUANTIZE_STATIC_INL_H_
#undef NIBBLE_KERNELS_QUANTIZE_STATIC_INL_H_
#else
#define NIBBLE_KERNELS_QUANTIZE_STATIC_INL_H_
#endif

#include <cstring>

#include "hwy/highway.h"
#include "nibble/kernels/norm-inl.h"
#include "nibble/kernels/quantize_rows-inl.h"
#include "nibble/kernels/quantize_static.hpp"
#include "nibble/kernels/registers-inl.h"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

namespace static_detail {

using kernels::QuantizedRow;
using quantize_detail::DF;
using quantize_detail::DI;
using quantize_detail::kQuantLanes;
using quantize_detail::VF;
using quantize_detail::VI;

using DI16 = hn::Repartition<std::int16_t, DI>;
using DI8 = hn::Repartition<std::int8_t, DI>;
using VI16 = hn::Vec<DI16>;
using VI8 = hn::Vec<DI8>;

// Makes codes of four vectors at a time.
struct Encoder {
  Register<DF> inverse;
  Register<DI16> zero;
  Register<DI8> low;
  // 0, or NaN from the first value on that is not finite; one for each of the four vectors, so that
  // none waits for another.
  Register<DF> faults[4];
  Register<DI> sum;  // of codes, per lane

  HWY_INLINE explicit Encoder(const quant::StaticScale& s) {
    inverse.set(hn::Set(DF(), 1.0f / s.scale));
    zero.set(hn::Set(DI16(), static_cast<std::int16_t>(s.stored_zero())));
    low.set(hn::Set(DI8(), static_cast<std::int8_t>(s.stored_low())));
    HWY_UNROLL(4) for (int i = 0; i < 4; ++i) { faults[i].set(hn::Zero(DF())); }
    sum.set(hn::Zero(DI()));
  }

  // The nearest multiple of the scale. What is far above the range stays above it, and what is far
  // below it too: x86 makes the least integer of what does not fit one.
  HWY_INLINE VI steps(VF x, Register<DF>& fault) {
    fault.set(hn::MulAdd(x, hn::Zero(DF()), fault.get()));
    return nearest(DF(), hn::Min(hn::Mul(x, inverse.get()), hn::Set(DF(), 32767.0f)));
  }
  // Narrowing to 16 and to 8 bits saturates, as the addition does.
  HWY_INLINE void encode(VF a, VF b, VF c, VF e, std::int8_t* codes) {
    const VI ia = steps(a, faults[0]), ib = steps(b, faults[1]);
    const VI ic = steps(c, faults[2]), ie = steps(e, faults[3]);
#if HWY_ARCH_X86
    const VI16 ab = hn::SaturatedAdd(hn::ReorderDemote2To(DI16(), ia, ib), zero.get());
    const VI16 ce = hn::SaturatedAdd(hn::ReorderDemote2To(DI16(), ic, ie), zero.get());
    const VI8 all = hn::Max(hn::ReorderDemote2To(DI8(), ab, ce), low.get());
    quantize_detail::store_mixed(all, codes);
#else
    const VI16 ab = hn::SaturatedAdd(hn::OrderedDemote2To(DI16(), ia, ib), zero.get());
    const VI16 ce = hn::SaturatedAdd(hn::OrderedDemote2To(DI16(), ic, ie), zero.get());
    const VI8 all = hn::Max(hn::OrderedDemote2To(DI8(), ab, ce), low.get());
    hn::StoreU(all, DI8(), codes);
#endif
    const auto ones = hn::Set(hn::RebindToUnsigned<DI8>(), 1);
    sum.set(hn::SumOfMulQuadAccumulate(DI(), ones, all, sum.get()));
  }
  HWY_INLINE float fault() const {
    const VF first = hn::Add(faults[0].get(), faults[1].get());
    return hn::ReduceSum(DF(), hn::Add(first, hn::Add(faults[2].get(), faults[3].get())));
  }
};

// A row in memory, with the members that rows of norms have: at(i), at_n(i, n).
struct PlainRow {
  const float* x;

  HWY_INLINE VF at(size_t i) const { return hn::LoadU(DF(), x + i); }
  HWY_INLINE VF at_n(size_t i, size_t n) const { return hn::LoadN(DF(), x + i, n); }
};

template <class Source>
HWY_INLINE void quantize_row_static(const Source& source, size_t k, const quant::StaticScale& s,
                                    QuantizedRow out) {
  constexpr size_t kStep = 4 * kQuantLanes;
  const size_t padded = (k + 31) / 32 * 32;  // a step is 64, 32 or 16 values
  Encoder encoder(s);
  size_t i = 0;
  for (; i + kStep <= k; i += kStep) {
    encoder.encode(source.at(i), source.at(i + kQuantLanes), source.at(i + 2 * kQuantLanes),
                   source.at(i + 3 * kQuantLanes), out.codes + i);
  }
  std::int32_t rest_sum = 0;
  float rest_fault = 0.0f;
  if (i < k) {
    // The last, incomplete step. The values beyond k, zeros, get codes too; these are dropped.
    const size_t n = k - i;
    HWY_ALIGN std::int8_t codes[kStep];
    Register<DF> values[4];
    for (size_t v = 0; v < 4; ++v) {
      const size_t first = v * kQuantLanes;
      values[v].set(hn::Zero(DF()));
      if (first + kQuantLanes <= n) {
        values[v].set(source.at(i + first));
      } else if (first < n) {
        values[v].set(source.at_n(i + first, n - first));
      }
    }
    Encoder rest(s);
    rest.encode(values[0].get(), values[1].get(), values[2].get(), values[3].get(), codes);
    for (size_t j = 0; j < n; ++j) rest_sum += codes[j];
    std::memcpy(out.codes + i, codes, n);
    rest_fault = rest.fault();
  }
  if (padded > k) std::memset(out.codes + k, 0, padded - k);
  const float fault = encoder.fault() + rest_fault;
  if (HWY_UNLIKELY(!(fault == 0.0f))) {
    std::memset(out.codes, 0, k);
    *out.code_sums = 0;
    *out.scales = fault;
    return;
  }
  *out.scales = s.scale;
  *out.code_sums = -8 * (hn::ReduceSum(DI(), encoder.sum.get()) + rest_sum);
}

}  // namespace static_detail

template <>
struct Impl<kernels::QuantizeRowStatic> {
  NIBBLE_LAZY static void run(const float* x, Index k, const quant::StaticScale& s,
                              kernels::QuantizedRow out) {
    static_detail::quantize_row_static(static_detail::PlainRow{x}, static_cast<size_t>(k), s, out);
  }
};

template <>
struct Impl<kernels::RmsNormStatic> {
  NIBBLE_LAZY static void run(const kernels::NormArgs& args, const quant::StaticScale& s,
                              kernels::QuantizedRow out) {
    using namespace norm_detail;
    const auto k = static_cast<size_t>(args.k);
    const Input<false> in(args);
    const float factor = rms_factor(accumulate(in, k, SquareSum()), args);
    const RmsNormalized row(in.row(), OptionalRow(args.weight, kOnes), factor);
    static_detail::quantize_row_static(row, k, s, out);
  }
};

template <>
struct Impl<kernels::LayerNormStatic> {
  NIBBLE_LAZY static void run(const kernels::NormArgs& args, const quant::StaticScale& s,
                              kernels::QuantizedRow out) {
    const auto row = norm_detail::layer_normalized<false>(args);
    static_detail::quantize_row_static(row, static_cast<size_t>(args.k), s, out);
  }
};

template <>
struct Impl<kernels::MapCodes> {
  NIBBLE_LAZY static void run(const std::int8_t* HWY_RESTRICT table, const std::int8_t* codes,
                              float scale, Index k, float to, kernels::QuantizedRow out) {
    // One load for each code: a table of 256 bytes is in L1, and processors load two or three bytes
    // per cycle. Lookups in vectors of 16 entries would take 48 operations for each vector.
    std::int32_t sum = 0;
    for (Index i = 0; i < k; ++i) {
      const std::int8_t code = table[static_cast<std::uint8_t>(codes[i])];
      sum += code;
      out.codes[i] = code;
    }
    std::memset(out.codes + k, 0, static_cast<size_t>((k + 31) / 32 * 32 - k));
    *out.scales = to + 0.0f * scale;
    *out.code_sums = -8 * sum;
  }
};

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
