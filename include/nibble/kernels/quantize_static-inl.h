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

// Makes codes of vectors.
struct Encoder {
  Register<DF> inverse, low, high;
  Register<DI> zero;
  Register<DF> faults;  // 0, or NaN from the first value on that is not finite
  Register<DI> sum;     // of codes, per lane

  HWY_INLINE explicit Encoder(const quant::StaticScale& s) {
    const auto code_of_zero = static_cast<float>(s.stored_zero());
    inverse.set(hn::Set(DF(), 1.0f / s.scale));
    // Bounds that are integers can be applied before the rounding, and before the code of zero is
    // added: ties go to even multiples of the scale, whatever that code is.
    low.set(hn::Set(DF(), static_cast<float>(s.stored_low()) - code_of_zero));
    high.set(hn::Set(DF(), static_cast<float>(s.stored_high()) - code_of_zero));
    zero.set(hn::Set(DI(), s.stored_zero()));
    faults.set(hn::Zero(DF()));
    sum.set(hn::Zero(DI()));
  }

  HWY_INLINE VI encode(VF x) {
    faults.set(hn::MulAdd(x, hn::Zero(DF()), faults.get()));
    const VF steps = hn::Min(hn::Max(hn::Mul(x, inverse.get()), low.get()), high.get());
    const VI code = hn::Add(nearest(DF(), steps), zero.get());
    sum.set(hn::Add(sum.get(), code));
    return code;
  }
  HWY_INLINE bool is_finite() const { return hn::ReduceSum(DF(), faults.get()) == 0.0f; }
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
  const size_t padded = (k + 31) / 32 * 32;
  Encoder encoder(s);
  size_t i = 0;
  for (; i + kStep <= k; i += kStep) {
    const VI a = encoder.encode(source.at(i));
    const VI b = encoder.encode(source.at(i + kQuantLanes));
    const VI c = encoder.encode(source.at(i + 2 * kQuantLanes));
    const VI e = encoder.encode(source.at(i + 3 * kQuantLanes));
    quantize_detail::store_bytes(a, b, c, e, out.codes + i);
  }
  std::int32_t rest_sum = 0;
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
    const VI a = rest.encode(values[0].get()), b = rest.encode(values[1].get());
    const VI c = rest.encode(values[2].get()), e = rest.encode(values[3].get());
    quantize_detail::store_bytes(a, b, c, e, codes);
    for (size_t j = 0; j < n; ++j) rest_sum += codes[j];
    std::memcpy(out.codes + i, codes, n);
    encoder.faults.set(hn::Add(encoder.faults.get(), rest.faults.get()));
  }
  std::memset(out.codes + k, 0, padded - k);
  if (HWY_UNLIKELY(!encoder.is_finite())) {
    std::memset(out.codes, 0, k);
    *out.code_sums = 0;
    *out.scales = hn::ReduceSum(DF(), encoder.faults.get());
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
