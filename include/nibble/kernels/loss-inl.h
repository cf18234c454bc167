// SPDX-License-Identifier: Apache-2.0

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_LOSS_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_LOSS_INL_H_
#undef NIBBLE_KERNELS_LOSS_INL_H_
#else
#define NIBBLE_KERNELS_LOSS_INL_H_
#endif

#include <algorithm>

#include "hwy/highway.h"
#include "nibble/core/libm.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/kernels/elementwise-inl.h"
#include "nibble/kernels/loss.hpp"
#include "nibble/kernels/map-inl.h"
#include "nibble/kernels/softmax-inl.h"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

namespace loss_detail {

using DL = hn::ScalableTag<float>;
using VL = hn::Vec<DL>;

// The last pass over the logits of a student.
struct DistillGradient {
  Powers own, cooled, teacher;
  float own_factor, cooled_factor, teacher_factor;

  template <class D, class V>
  HWY_INLINE V operator()(D d, V x, V t) const {
    V sum = hn::Mul(own.of(d, x), hn::Set(d, own_factor));
    sum = hn::MulAdd(cooled.of(d, x), hn::Set(d, cooled_factor), sum);
    return hn::NegMulAdd(teacher.of(d, t), hn::Set(d, teacher_factor), sum);
  }
};

// Sums over a teacher's logits t and a student's x: of e = exp((t - max_t) / T), and of e times the
// difference (t - max_t) - (x - max_x).
struct TeacherSums {
  double powers = 0;
  double differences = 0;
};

// One vector of them.
HWY_INLINE void add_teacher(const Powers& teacher, float max_x, VL t, VL x, VL& powers,
                            VL& differences) {
  const DL d;
  const VL e = teacher.of(d, t);
  const VL of_t = hn::Sub(t, hn::Set(d, teacher.max)), of_x = hn::Sub(x, hn::Set(d, max_x));
  powers = hn::Add(powers, e);
  // Where the teacher sees no chance, there is no term, however far the student is.
  const VL term = hn::Mul(e, hn::Sub(of_t, of_x));
  differences = hn::Add(differences, hn::IfThenZeroElse(hn::Eq(e, hn::Zero(d)), term));
}

// Blocks in f32 lanes, the rest in double, as in sum_exp().
NIBBLE_LAZY HWY_INLINE TeacherSums sum_teacher(const float* x, float max_x, const float* t,
                                               const Powers& teacher, size_t n) {
  const DL d;
  const size_t lanes = hn::Lanes(d), block = 64 * lanes;
  TeacherSums total;
  for (size_t begin = 0; begin < n; begin += block) {
    const size_t end = (std::min)(n, begin + block);
    VL powers = hn::Zero(d), differences = hn::Zero(d);
    size_t i = begin;
    for (; i + lanes <= end; i += lanes) {
      add_teacher(teacher, max_x, hn::LoadU(d, t + i), hn::LoadU(d, x + i), powers, differences);
    }
    if (i < end) {
      const VL rest = hn::LoadNOr(hn::Set(d, -kInfinity), d, t + i, end - i);
      add_teacher(teacher, max_x, rest, hn::LoadN(d, x + i, end - i), powers, differences);
    }
    total.powers += static_cast<double>(hn::ReduceSum(d, powers));
    total.differences += static_cast<double>(hn::ReduceSum(d, differences));
  }
  return total;
}

}  // namespace loss_detail

template <>
struct Impl<kernels::CrossEntropyBack> {
  NIBBLE_LAZY static double run(float* x, Index n, Index target, float weight) {
    const auto size = static_cast<size_t>(n);
    const float max = row_max(x, size);
    const double below = static_cast<double>(max) - static_cast<double>(x[target]);
    const double sum = sum_exp<true>(x, x, size, {max, 1.0f}, 0);
    // The target's own is softmax - 1, the negative sum of all others: computed in double.
    const double of_target =
        static_cast<double>(weight) * (static_cast<double>(x[target]) / sum - 1.0);
    const auto factor = static_cast<float>(static_cast<double>(weight) / sum);
    Impl<kernels::Scale>::run(x, factor, x, n);
    x[target] = static_cast<float>(of_target);
    return libm::log(sum) + below;
  }
};

template <>
struct Impl<kernels::DistillBack> {
  NIBBLE_LAZY static kernels::DistillLoss run(const kernels::DistillBack::Args& args, float* x) {
    using namespace loss_detail;
    const auto n = static_cast<size_t>(args.n);
    const float inverse = 1.0f / args.temperature;
    const float max_x = row_max(x, n), max_t = row_max(args.teacher, n);
    const Powers own(max_x, 1.0f), cooled(max_x, inverse), teacher(max_t, inverse);
    const bool has_target = args.target >= 0;
    const double sum_own = sum_exp<false>(x, nullptr, n, own, 0);
    const double sum_cooled =
        args.temperature == 1.0f ? sum_own : sum_exp<false>(x, nullptr, n, cooled, 0);
    const TeacherSums sums = sum_teacher(x, max_x, args.teacher, teacher, n);

    kernels::DistillLoss loss;
    loss.divergence = sums.differences / sums.powers / static_cast<double>(args.temperature) +
                      libm::log(sum_cooled / sums.powers);
    if (has_target) {
      loss.cross_entropy =
          libm::log(sum_own) + static_cast<double>(max_x) - static_cast<double>(x[args.target]);
    }
    const double hard = has_target ? static_cast<double>(args.hard) : 0.0;
    const double soft = static_cast<double>(args.soft) * static_cast<double>(args.temperature);
    const DistillGradient gradient{own,
                                   cooled,
                                   teacher,
                                   static_cast<float>(hard / sum_own),
                                   static_cast<float>(soft / sum_cooled),
                                   static_cast<float>(soft / sums.powers)};
    map(gradient, x, args.n, static_cast<const float*>(x), args.teacher);
    if (has_target) x[args.target] -= args.hard;
    return loss;
  }
};

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
