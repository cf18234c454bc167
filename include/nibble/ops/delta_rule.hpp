// SPDX-License-Identifier: Apache-2.0
//
// Linear attention of the rows of a step, each sequence and head with its own state: see
// kernels/delta_rule.hpp.
#pragma once

#include <span>

#include "nibble/core/executor.hpp"
#include "nibble/core/view.hpp"
#include "nibble/kernels/delta_rule.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/ops/rows.hpp"
#include "nibble/ops/segment.hpp"
#include "nibble/ops/unit_rows.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

// queries, keys (m, key_width()), values and out (m, value_width()), decays and betas (m, n_heads);
// the values of a row are contiguous. state_of(segment) and left_of(segment): those of a segment's
// sequence, (n_state_floats()) and (n_left_floats()). Heads are split over the executor's workers,
// which changes no result.
template <bool kSubtracts, class StateOf, class LeftOf>
void delta_rule(Executor& executor, const kernels::DeltaHeads& heads,
                MatrixView<const float> queries, MatrixView<const float> keys,
                MatrixView<const float> values, MatrixView<const float> decays,
                MatrixView<const float> betas, std::span<const Segment> segments,
                const StateOf& state_of, const LeftOf& left_of, MatrixView<float> out) noexcept {
  NIBBLE_ASSERT(queries.stride(0) == keys.stride(0) && decays.stride(0) == betas.stride(0));
  NIBBLE_ASSERT(has_unit_rows(out) && out.extent(1) == heads.value_width());
  const auto run = simd::kernel<kernels::DeltaRule<kSubtracts>>();
  const auto n_segments = static_cast<Index>(segments.size());
  const kernels::DeltaState& shape = heads.state;
  // Neighbouring tasks are one head of all sequences.
  const Index work = out.extent(0) * shape.key_dim * shape.value_dim / n_segments;
  for_rows(executor, heads.n_heads * n_segments, work, [&](Index task) {
    const Index head = task / n_segments;
    const Segment& segment = segments[static_cast<std::size_t>(task % n_segments)];
    const Index row = segment.first_row, key_at = head % heads.n_key_heads * shape.key_dim;
    kernels::DeltaArgs args;
    args.n_rows = segment.n_rows;
    args.first_slot = segment.first_position % kernels::kDeltaChunk;
    args.shape = shape;
    args.queries = &queries(row, key_at);
    args.keys = &keys(row, key_at);
    args.values = &values(row, head * shape.value_dim);
    args.query_stride = queries.stride(0);
    args.value_stride = values.stride(0);
    args.decays = &decays(row, head);
    args.betas = &betas(row, head);
    args.gate_stride = decays.stride(0);
    args.state = state_of(segment) + head * shape.n_floats();
    args.left = left_of(segment) + head * kernels::kDeltaLeft;
    args.out = &out(row, head * shape.value_dim);
    args.out_stride = out.stride(0);
    run(args);
  });
}

}}}  // namespace nibble::NIBBLE_ABI::ops
