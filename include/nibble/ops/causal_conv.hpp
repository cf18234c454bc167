// SPDX-License-Identifier: Apache-2.0
//
// Causal convolutions of the rows of a step, each sequence with its own state.
#pragma once

#include <algorithm>
#include <span>

#include "nibble/core/executor.hpp"
#include "nibble/kernels/causal_conv.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/ops/rows.hpp"
#include "nibble/ops/segment.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

// args: the rows of the whole step, without n_rows and state. state_of(segment): the state of a
// segment's sequence, (n_taps - 1, n_channels). Channels are split over the executor's workers,
// which changes no result.
template <class Form, class StateOf>
void causal_conv(Executor& executor, const kernels::CausalConvArgs& args,
                 std::span<const Segment> segments, const StateOf& state_of) noexcept {
  NIBBLE_ASSERT(args.n_taps >= kernels::kMinConvTaps && args.n_taps <= kernels::kMaxConvTaps);
  constexpr Index kPanel = kernels::kConvPanel;
  const auto run = simd::kernel<kernels::CausalConv<Form>>();
  const Index n_panels = (args.n_channels + kPanel - 1) / kPanel;
  const Index n_rows = segments.empty() ? 0 : segments.back().first_row + segments.back().n_rows;
  const Index n_tasks = (std::max)(
      Index{1},
      (std::min)({executor.n_workers(), n_panels, n_rows * args.n_channels / kValuesPerTask}));
  const auto do_task = [&](Index task, Index) {
    const Index first = n_panels * task / n_tasks * kPanel;
    const Index end = (std::min)(args.n_channels, n_panels * (task + 1) / n_tasks * kPanel);
    for (const Segment& segment : segments) {
      kernels::CausalConvArgs part = args;
      const Index at = segment.first_row * args.stride + first;
      part.n_rows = segment.n_rows;
      part.n_channels = end - first;
      part.x += at;
      if (part.before != nullptr) part.before += at;
      if (part.after != nullptr) part.after += at;
      if (part.bias != nullptr) part.bias += first;
      part.taps += first * args.n_taps;
      part.state = state_of(segment) + first;
      part.state_stride = args.n_channels;
      part.out += segment.first_row * args.out_stride + first;
      run(part);
    }
  };
  if (n_tasks == 1) return do_task(0, 0);
  executor.parallel_for(n_tasks, do_task);
}

}}}  // namespace nibble::NIBBLE_ABI::ops
