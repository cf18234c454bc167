// SPDX-License-Identifier: Apache-2.0

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_NORM_BACK_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_NORM_BACK_INL_H_
#undef NIBBLE_KERNELS_NORM_BACK_INL_H_
#else
#define NIBBLE_KERNELS_NORM_BACK_INL_H_
#endif

#include "hwy/highway.h"
#include "nibble/core/libm.hpp"
#include "nibble/kernels/map-inl.h"
#include "nibble/kernels/norm-inl.h"
#include "nibble/kernels/norm_back.hpp"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

namespace norm_back_detail {

using kernels::Gradient;
using kernels::NormBackArgs;
using norm_detail::DF;
using norm_detail::kOnes;
using norm_detail::OptionalRow;
using norm_detail::Standardized;
using norm_detail::VF;

// Two sums over a row.
struct TwoSums {
  Register<DF> first;
  Register<DF> second;

  HWY_INLINE TwoSums() {
    first.set(hn::Zero(DF()));
    second.set(hn::Zero(DF()));
  }
  HWY_INLINE void merge(const TwoSums& other) {
    first.set(hn::Add(first.get(), other.first.get()));
    second.set(hn::Add(second.get(), other.second.get()));
  }
};

// The squares of x, and the products of x with g.
struct RmsTerms {
  const float* x;
  const float* dy;
  OptionalRow weight;

  HWY_INLINE void add(VF v, VF g, TwoSums& sums) const {
    sums.first.set(hn::MulAdd(v, v, sums.first.get()));
    sums.second.set(hn::MulAdd(v, g, sums.second.get()));
  }
  HWY_INLINE void at(size_t i, TwoSums& sums) const {
    add(hn::LoadU(DF(), x + i), hn::Mul(hn::LoadU(DF(), dy + i), weight.at(i)), sums);
  }
  HWY_INLINE void at_n(size_t i, size_t n, TwoSums& sums) const {
    add(hn::LoadN(DF(), x + i, n), hn::Mul(hn::LoadN(DF(), dy + i, n), weight.at_n(i, n)), sums);
  }
};

// g, and the products of g with z.
struct LayerTerms {
  const Standardized& z;
  const float* dy;
  OptionalRow weight;

  HWY_INLINE void add(VF v, VF g, TwoSums& sums) const {
    sums.first.set(hn::Add(g, sums.first.get()));
    sums.second.set(hn::MulAdd(v, g, sums.second.get()));
  }
  HWY_INLINE void at(size_t i, TwoSums& sums) const {
    add(z.at(i), hn::Mul(hn::LoadU(DF(), dy + i), weight.at(i)), sums);
  }
  HWY_INLINE void at_n(size_t i, size_t n, TwoSums& sums) const {
    // g is 0 from lane n on, so z may be anything there.
    add(z.at_n(i, n), hn::Mul(hn::LoadN(DF(), dy + i, n), weight.at_n(i, n)), sums);
  }
};

// Four independent sums, as in norm_detail::accumulate.
template <class Terms>
HWY_INLINE TwoSums sum_row(const Terms& terms, size_t k) {
  const size_t lanes = hn::Lanes(DF());
  TwoSums s0, s1, s2, s3;
  size_t i = 0;
  for (; i + 4 * lanes <= k; i += 4 * lanes) {
    terms.at(i, s0);
    terms.at(i + lanes, s1);
    terms.at(i + 2 * lanes, s2);
    terms.at(i + 3 * lanes, s3);
  }
  for (; i + lanes <= k; i += lanes) terms.at(i, s0);
  if (i < k) terms.at_n(i, k - i, s1);
  s0.merge(s1);
  s2.merge(s3);
  s0.merge(s2);
  return s0;
}

// The last pass: Rule normalizes x and makes dx of that and of g.
template <Gradient kGradient, class Rule>
struct LastPass {
  const Rule& rule;
  const NormBackArgs& args;
  OptionalRow weight;

  template <class Piece>
  HWY_INLINE void operator()(size_t i, Piece piece) const {
    const DF d;
    const VF v = rule.normalized(piece.load(d, args.x + i));
    const VF dy = piece.load(d, args.dy + i);
    VF dx = rule.dx(v, hn::Mul(dy, weight.at(i, piece)));
    if (args.dweight != nullptr) {
      piece.store(hn::MulAdd(dy, v, piece.load(d, args.dweight + i)), d, args.dweight + i);
    }
    if (args.dbias != nullptr) {
      piece.store(hn::Add(dy, piece.load(d, args.dbias + i)), d, args.dbias + i);
    }
    if constexpr (kGradient == Gradient::add) dx = hn::Add(dx, piece.load(d, args.dx + i));
    piece.store(dx, d, args.dx + i);
  }
};
template <Gradient kGradient, class Rule>
HWY_INLINE void store_row(const Rule& rule, const NormBackArgs& args) {
  const OptionalRow weight(args.weight, kOnes);
  for_vectors(DF(), static_cast<size_t>(args.k), LastPass<kGradient, Rule>{rule, args, weight});
}

// dx = r * (g - (x r) c), c = r mean(g x).
struct RmsRule {
  Register<DF> factor;
  Register<DF> mean;

  HWY_INLINE RmsRule(float r, float c) {
    factor.set(hn::Set(DF(), r));
    mean.set(hn::Set(DF(), c));
  }
  HWY_INLINE VF normalized(VF x) const { return hn::Mul(x, factor.get()); }
  HWY_INLINE VF dx(VF z, VF g) const {
    return hn::Mul(factor.get(), hn::NegMulAdd(z, mean.get(), g));
  }
};

// dx = s * (g - mean(g) - z mean(g z)).
struct LayerRule {
  const Standardized& z;
  Register<DF> mean;
  Register<DF> mean_product;

  HWY_INLINE LayerRule(const Standardized& row, float mean_g, float mean_gz) : z(row) {
    mean.set(hn::Set(DF(), mean_g));
    mean_product.set(hn::Set(DF(), mean_gz));
  }
  HWY_INLINE VF normalized(VF x) const { return z.of(x); }
  HWY_INLINE VF dx(VF v, VF g) const {
    const VF centered = hn::Sub(g, mean.get());
    return hn::Mul(z.factor.get(), hn::NegMulAdd(v, mean_product.get(), centered));
  }
};

}  // namespace norm_back_detail

template <kernels::Gradient kGradient>
struct Impl<kernels::RmsNormBack<kGradient>> {
  static void run(const kernels::NormBackArgs& args) {
    using namespace norm_back_detail;
    const RmsTerms terms{args.x, args.dy, OptionalRow(args.weight, kOnes)};
    const TwoSums sums = sum_row(terms, static_cast<size_t>(args.k));
    const auto k = static_cast<float>(args.k);
    const float mean_square = hn::ReduceSum(DF(), sums.first.get()) / k;
    const float factor = 1.0f / libm::sqrt(mean_square + args.eps);
    const float mean = hn::ReduceSum(DF(), sums.second.get()) / k;
    norm_back_detail::store_row<kGradient>(RmsRule(factor, factor * mean), args);
  }
};

template <kernels::Gradient kGradient>
struct Impl<kernels::LayerNormBack<kGradient>> {
  static void run(const kernels::NormBackArgs& args) {
    using namespace norm_back_detail;
    kernels::NormArgs forward;
    forward.x = args.x;
    forward.k = args.k;
    forward.eps = args.eps;
    const Standardized z = norm_detail::standardized<false>(forward);
    const LayerTerms terms{z, args.dy, OptionalRow(args.weight, kOnes)};
    const TwoSums sums = sum_row(terms, static_cast<size_t>(args.k));
    const auto k = static_cast<float>(args.k);
    const LayerRule rule(z, hn::ReduceSum(DF(), sums.first.get()) / k,
                         hn::ReduceSum(DF(), sums.second.get()) / k);
    norm_back_detail::store_row<kGradient>(rule, args);
  }
};

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
