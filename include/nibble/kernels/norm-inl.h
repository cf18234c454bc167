// SPDX-License-Identifier: Apache-2.0

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_NORM_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_NORM_INL_H_
#undef NIBBLE_KERNELS_NORM_INL_H_
#else
#define NIBBLE_KERNELS_NORM_INL_H_
#endif

#include <type_traits>

#include "hwy/highway.h"
#include "nibble/core/libm.hpp"
#include "nibble/kernels/activation-inl.h"
#include "nibble/kernels/dropout-inl.h"
#include "nibble/kernels/norm.hpp"
#include "nibble/kernels/prefetch-inl.h"
#include "nibble/kernels/quantize_rows-inl.h"
#include "nibble/kernels/registers-inl.h"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

namespace norm_detail {

using kernels::NormArgs;
using quantize_detail::DF;
using quantize_detail::VF;

HWY_ALIGN NIBBLE_HIDDEN inline constexpr float kOnes[16] = {1, 1, 1, 1, 1, 1, 1, 1,
                                                            1, 1, 1, 1, 1, 1, 1, 1};
HWY_ALIGN NIBBLE_HIDDEN inline constexpr float kZeros[16] = {};

// A row that may be absent. Then a constant is read in its place, with index & 0; that avoids a
// second copy of every kernel.
struct OptionalRow {
  const float* values;
  size_t mask;

  OptionalRow(const float* row, const float* constant)
      : values(row != nullptr ? row : constant), mask(row != nullptr ? ~size_t{0} : 0) {}
  template <class Piece>  // see for_vectors()
  HWY_INLINE VF at(size_t i, Piece piece) const {
    return piece.load(DF(), values + (i & mask));
  }
  HWY_INLINE VF at(size_t i) const { return hn::LoadU(DF(), values + (i & mask)); }
  HWY_INLINE VF at_n(size_t i, size_t n) const { return hn::LoadN(DF(), values + (i & mask), n); }
};

// The row as the first pass reads it. With kAdd, this pass computes the sums and stores them.
template <bool kAdd>
struct Input {
  const float* x;
  const float* addend;
  float* sum;

  explicit Input(const NormArgs& args) : x(args.x), addend(args.addend), sum(args.sum) {}
  // Where to read the row after the first pass.
  const float* row() const { return kAdd ? sum : x; }

  HWY_INLINE void fetch(size_t i) const {
    prefetch(x, i);
    if constexpr (kAdd) prefetch(addend, i);
  }
  HWY_INLINE float value(size_t i) const { return kAdd ? x[i] + addend[i] : x[i]; }
  HWY_INLINE VF at(size_t i) const {
    VF v = hn::LoadU(DF(), x + i);
    if constexpr (kAdd) {
      v = hn::Add(v, hn::LoadU(DF(), addend + i));
      hn::StoreU(v, DF(), sum + i);
    }
    return v;
  }
  HWY_INLINE VF at_n(size_t i, size_t n) const {
    VF v = hn::LoadN(DF(), x + i, n);
    if constexpr (kAdd) {
      v = hn::Add(v, hn::LoadN(DF(), addend + i, n));
      hn::StoreN(v, DF(), sum + i, n);
    }
    return v;
  }
};

struct SquareSum {
  Register<DF> squares;

  // Written out: GCC gives an implicit constructor no target, and then cannot inline into it.
  HWY_INLINE SquareSum() { squares.set(hn::Zero(DF())); }
  HWY_INLINE void add(VF x) { squares.set(hn::MulAdd(x, x, squares.get())); }
  HWY_INLINE void add_n(VF x, size_t) { add(x); }  // lanes from n on are 0
  HWY_INLINE void merge(const SquareSum& other) {
    squares.set(hn::Add(squares.get(), other.squares.get()));
  }
};

// Sums of x - shift and of its square.
struct ShiftedSums {
  Register<DF> shift;
  Register<DF> sum;
  Register<DF> squares;

  HWY_INLINE explicit ShiftedSums(float value) {
    shift.set(hn::Set(DF(), value));
    sum.set(hn::Zero(DF()));
    squares.set(hn::Zero(DF()));
  }
  HWY_INLINE void add_shifted(VF y) {
    sum.set(hn::Add(sum.get(), y));
    squares.set(hn::MulAdd(y, y, squares.get()));
  }
  HWY_INLINE void add(VF x) { add_shifted(hn::Sub(x, shift.get())); }
  HWY_INLINE void add_n(VF x, size_t n) {
    add_shifted(hn::IfThenElseZero(hn::FirstN(DF(), n), hn::Sub(x, shift.get())));
  }
  HWY_INLINE void merge(const ShiftedSums& other) {
    sum.set(hn::Add(sum.get(), other.sum.get()));
    squares.set(hn::Add(squares.get(), other.squares.get()));
  }
};

// Four independent sums hide the latency of the additions, and shorten the chains of roundings.
template <class Sums, bool kAdd>
HWY_INLINE Sums accumulate(const Input<kAdd>& in, size_t k, const Sums& zero) {
  const size_t lanes = hn::Lanes(DF());
  Sums s0 = zero, s1 = zero, s2 = zero, s3 = zero;
  size_t i = 0;
  for (; i + 4 * lanes <= k; i += 4 * lanes) {
    s0.add(in.at(i));
    s1.add(in.at(i + lanes));
    s2.add(in.at(i + 2 * lanes));
    s3.add(in.at(i + 3 * lanes));
  }
  for (; i + lanes <= k; i += lanes) s0.add(in.at(i));
  if (i < k) s1.add_n(in.at_n(i, k - i), k - i);
  s0.merge(s1);
  s2.merge(s3);
  s0.merge(s2);
  return s0;
}

NIBBLE_LAZY HWY_INLINE float rms_factor(const SquareSum& sums, const NormArgs& args) {
  const float mean = hn::ReduceSum(DF(), sums.squares.get()) / static_cast<float>(args.k);
  return 1.0f / libm::sqrt(mean + args.eps);
}

// The normalized row, computed as it is read.
struct RmsNormalized {
  const float* x;
  OptionalRow weight;
  Register<DF> factor;

  HWY_INLINE RmsNormalized(const float* row, OptionalRow row_weight, float row_factor)
      : x(row), weight(row_weight) {
    factor.set(hn::Set(DF(), row_factor));
  }
  HWY_INLINE VF at(size_t i) const {
    return hn::Mul(hn::Mul(hn::LoadU(DF(), x + i), factor.get()), weight.at(i));
  }
  HWY_INLINE VF at_n(size_t i, size_t n) const {
    return hn::Mul(hn::Mul(hn::LoadN(DF(), x + i, n), factor.get()), weight.at_n(i, n));
  }
};

// A Source for quantization: x * weight, which also sums x^2 as it is read. The codes of a block do
// not change if all its values have a common factor, so the factor of RMSNorm can wait until the
// end of the row: the row is read from memory once, and only scales are multiplied.
template <bool kAdd>
struct WeightedRow {
  Input<kAdd> in;
  OptionalRow weight;
  SquareSum sums[4];

  HWY_INLINE explicit WeightedRow(const NormArgs& args) : in(args), weight(args.weight, kOnes) {}
  HWY_INLINE VF first(size_t i, size_t chain) {
    const VF v = in.at(i);
    sums[chain].add(v);
    return hn::Mul(v, weight.at(i));
  }
  HWY_INLINE VF first_n(size_t i, size_t n) {
    const VF v = in.at_n(i, n);
    sums[0].add(v);
    return hn::Mul(v, weight.at_n(i, n));
  }
  HWY_INLINE VF again(size_t i) const {
    return hn::Mul(hn::LoadU(DF(), in.row() + i), weight.at(i));
  }
  HWY_INLINE void fetch(size_t i) const { in.fetch(i); }
};

// z = (x - mean) / sigma, computed as it is read.
struct Standardized {
  const float* x;
  Register<DF> shift;
  Register<DF> factor;  // 1 / sigma
  Register<DF> offset;  // -(mean - shift) / sigma

  HWY_INLINE Standardized(const float* row, float row_shift, float row_factor, float row_offset)
      : x(row) {
    shift.set(hn::Set(DF(), row_shift));
    factor.set(hn::Set(DF(), row_factor));
    offset.set(hn::Set(DF(), row_offset));
  }
  HWY_INLINE VF of(VF v) const {
    return hn::MulAdd(hn::Sub(v, shift.get()), factor.get(), offset.get());
  }
  HWY_INLINE VF at(size_t i) const { return of(hn::LoadU(DF(), x + i)); }
  // Lanes from n on may be anything.
  HWY_INLINE VF at_n(size_t i, size_t n) const { return of(hn::LoadN(DF(), x + i, n)); }
};

struct LayerNormalized {
  Standardized z;
  OptionalRow weight;
  OptionalRow bias;

  HWY_INLINE LayerNormalized(const Standardized& row, const NormArgs& args)
      : z(row), weight(args.weight, kOnes), bias(args.bias, kZeros) {}
  HWY_INLINE VF at(size_t i) const { return hn::MulAdd(z.at(i), weight.at(i), bias.at(i)); }
  HWY_INLINE VF at_n(size_t i, size_t n) const {
    // Lanes from n on become 0, because their weight and bias are loaded as 0.
    return hn::MulAdd(z.at_n(i, n), weight.at_n(i, n), bias.at_n(i, n));
  }
  // The members of a Source for quantization.
  HWY_INLINE VF first(size_t i, size_t) const { return at(i); }
  HWY_INLINE VF first_n(size_t i, size_t n) const { return at_n(i, n); }
  HWY_INLINE VF again(size_t i) const { return at(i); }
  HWY_INLINE void fetch(size_t i) const { prefetch(z.x, i); }
};

// Mean and variance of x - shift.
struct Moments {
  float mean;
  float variance;

  HWY_INLINE Moments(const ShiftedSums& sums, Index k) {
    const auto n = static_cast<float>(k);
    mean = hn::ReduceSum(DF(), sums.sum.get()) / n;
    variance = hn::ReduceSum(DF(), sums.squares.get()) / n - mean * mean;
  }
};

// The first pass over the row; rarely it needs a second one.
template <bool kAdd>
HWY_INLINE Standardized standardized(const NormArgs& args) {
  const Input<kAdd> in(args);
  const auto k = static_cast<size_t>(args.k);
  // The differences are exact for a constant row, whose variance is then exactly 0.
  const float first = in.value(0);
  float shift = first + 0.25f * ((in.value(k / 4) - first) + (in.value(k / 2) - first) +
                                 (in.value(k / 2 + k / 4) - first));
  Moments moments(accumulate(in, k, ShiftedSums(shift)), args.k);
  if (HWY_UNLIKELY(moments.mean * moments.mean > moments.variance)) {
    shift += moments.mean;
    NormArgs again;
    again.x = in.row();
    moments = Moments(accumulate(Input<false>(again), k, ShiftedSums(shift)), args.k);
    if (moments.variance < 0.0f) moments.variance = 0.0f;  // negative only by rounding; a NaN stays
  }
  const float factor = 1.0f / libm::sqrt(moments.variance + args.eps);
  return Standardized(in.row(), shift, factor, -moments.mean * factor);
}

template <bool kAdd>
HWY_INLINE LayerNormalized layer_normalized(const NormArgs& args) {
  return LayerNormalized(standardized<kAdd>(args), args);
}

// Second pass: out = drop(activation(source)). Reads each index before it writes it, so that it may
// work in place.
template <class Activation, bool kDropout, class Source>
HWY_INLINE void store_row(const Source& source, const NormArgs& args, float* out) {
  const DF d;
  const auto k = static_cast<size_t>(args.k);
  const size_t lanes = hn::Lanes(d);
  const kernels::Dropout dropout = args.dropout;
  const Index first_index = args.first_index;
  constexpr bool kComputes = !std::is_same_v<Activation, kernels::Identity>;
  size_t i = 0;
  for (; i + lanes <= k; i += lanes) {
    // This pass is bound by arithmetic: meanwhile it fetches the next row, likely next in memory.
    if constexpr (kComputes) prefetch(args.x, k + i);
    VF v = activate(Activation{}, d, source.at(i));
    if constexpr (kDropout) {
      v = hn::Mul(v, dropout_scale(d, dropout, first_index + static_cast<Index>(i)));
    }
    hn::StoreU(v, d, out + i);
  }
  if (i < k) {
    VF v = activate(Activation{}, d, source.at_n(i, k - i));
    if constexpr (kDropout) {
      v = hn::Mul(v, dropout_scale(d, dropout, first_index + static_cast<Index>(i)));
    }
    hn::StoreN(v, d, out + i, k - i);
  }
}

}  // namespace norm_detail

template <bool kAdd>
struct Impl<kernels::RmsNorm<kAdd>> {
  static void run(const kernels::NormArgs& args, float* out) {
    using namespace norm_detail;
    const Input<kAdd> in(args);
    const float factor = rms_factor(accumulate(in, static_cast<size_t>(args.k), SquareSum()), args);
    const RmsNormalized row(in.row(), OptionalRow(args.weight, kOnes), factor);
    store_row<kernels::Identity, false>(row, args, out);
  }
};

template <class Activation, bool kDropout, bool kAdd>
struct Impl<kernels::LayerNorm<Activation, kDropout, kAdd>> {
  static void run(const kernels::NormArgs& args, float* out) {
    using namespace norm_detail;
    store_row<Activation, kDropout>(layer_normalized<kAdd>(args), args, out);
  }
};

template <int kBlock, bool kAdd>
struct Impl<kernels::RmsNormQuantize<kBlock, kAdd>> {
  static void run(const kernels::NormArgs& args, kernels::QuantizedRow out) {
    using namespace norm_detail;
    const auto k = static_cast<size_t>(args.k);
    WeightedRow<kAdd> row(args);
    quantize_row<kBlock>(row, k, out);
    row.sums[0].merge(row.sums[1]);
    row.sums[2].merge(row.sums[3]);
    row.sums[0].merge(row.sums[2]);
    const float factor = rms_factor(row.sums[0], args);
    const Index n_blocks = kernels::QuantizeRow<kBlock>::n_blocks(args.k);
    for (Index i = 0; i < n_blocks; ++i) out.scales[i] *= factor;
  }
};

template <int kBlock, bool kAdd>
struct Impl<kernels::LayerNormQuantize<kBlock, kAdd>> {
  static void run(const kernels::NormArgs& args, kernels::QuantizedRow out) {
    const auto row = norm_detail::layer_normalized<kAdd>(args);
    quantize_row<kBlock>(row, static_cast<size_t>(args.k), out);
  }
};

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
