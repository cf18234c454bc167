// SPDX-License-Identifier: Apache-2.0
//
// A program's own per-target code, as it looks without nibble.

#if defined(TESTS_FORMS_OWN_SUM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TESTS_FORMS_OWN_SUM_INL_H_
#undef TESTS_FORMS_OWN_SUM_INL_H_
#else
#define TESTS_FORMS_OWN_SUM_INL_H_
#endif

#include <cstddef>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace own { namespace { namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The sum of x[i], i < n, by whole vectors and a rest.
inline float sum(const float* x, std::size_t n) {
  const hn::ScalableTag<float> d;
  const std::size_t lanes = hn::Lanes(d);
  auto sums = hn::Zero(d);
  std::size_t i = 0;
  for (; i + lanes <= n; i += lanes) sums = hn::Add(sums, hn::LoadU(d, x + i));
  float total = hn::ReduceSum(d, sums);
  for (; i < n; ++i) total += x[i];
  return total;
}

// How many lanes the target that this was compiled for has.
inline std::size_t lanes() { return hn::Lanes(hn::ScalableTag<float>()); }

}}}  // namespace own::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
