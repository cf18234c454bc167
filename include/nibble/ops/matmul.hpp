// SPDX-License-Identifier: Apache-2.0
//
// Matrix products, split over workers. A Product is one activation matrix times one packed weight
// matrix, with an epilogue. Several products that share their input (such as Q, K and V) run as one
// parallel step.
#pragma once

#include <algorithm>
#include <span>

#include "nibble/core/executor.hpp"
#include "nibble/kernels/matmul.hpp"
#include "nibble/kernels/matmul_input.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/ops/segment.hpp"
#include "nibble/quant/sparse.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

struct Product {
  kernels::MatmulFunction* kernel = nullptr;
  kernels::MatmulArgs args;
  // The segments of all rows, if weights in a block format have rounded rows beside codes: only
  // rows of prompts are multiplied with these. So a row's result depends on what it is for, never
  // on the rows beside it. Empty: all rows are multiplied alike.
  std::span<const Segment> segments = {};
};

namespace detail {

template <class Format, kernels::ActivationScales kScales>
kernels::MatmulArgs args_of(const kernels::MatmulInput& input,
                            const quant::PackedMatrix<Format>& weights, MatrixView<float> out,
                            const kernels::EpilogueArgs& epilogue) noexcept {
  static_assert(kernels::kHasProducts<Format, kScales>,
                "nibble: activations with one scale for each row are for formats with one scale in "
                "a block, and those with a zero point for I8Channel");
  NIBBLE_ASSERT(out.extent(1) == weights.n && out.stride(1) == 1);
  if constexpr (quant::SuperBlockFormat<Format>) {
    // Products read whole super-blocks; activations in blocks of 32 end before them.
    NIBBLE_ASSERT(weights.k % quant::Packed<Format>::kLength == 0);
  }
  if constexpr (std::is_same_v<Format, quant::I8Channel>) {
    [[maybe_unused]] constexpr Index kLongest = kScales == kernels::ActivationScales::affine
                                                    ? quant::Packed<Format>::kMaxAffineK
                                                    : quant::Packed<Format>::kMaxK;
    NIBBLE_ASSERT(weights.k <= kLongest);
  } else if constexpr (!quant::BlockFormat<Format> && !quant::SparseFormat<Format>) {
    [[maybe_unused]] const bool is_rounded =
        std::is_same_v<Format, quant::BF16> && input.rounded != nullptr;
    NIBBLE_ASSERT(!is_rounded || simd::kernel<kernels::TakesRoundedRows>()());
    NIBBLE_ASSERT(is_rounded || input.x != nullptr || out.extent(0) * weights.k == 0);
  }
  return {.input = input,
          .m = out.extent(0),
          .weights = weights.data,
          .n = weights.n,
          .k = weights.k,
          .end_panel = quant::n_panels(weights.n),
          .out = out.data(),
          .out_stride = out.stride(0),
          .epilogue = epilogue};
}

}  // namespace detail

// out (m, n) = epilogue(input (m, k) · weightsᵀ (n, k)). `input` must have the representation that
// Format needs (see MatmulInput); rows of `out` may be strided. The epilogue's operands are (n) and
// (m, n). kScales is about the scales of the activations; for block formats.
template <class Format, class Epilogue = kernels::Epilogue<>,
          kernels::ActivationScales kScales = kernels::ActivationScales::per_block>
Product product(const kernels::MatmulInput& input, const quant::PackedMatrix<Format>& weights,
                MatrixView<float> out, const kernels::EpilogueArgs& epilogue = {}) noexcept {
  Product p{simd::kernel<kernels::Matmul<Format, kScales>>(),
            detail::args_of<Format, kScales>(input, weights, out, epilogue)};
  p.args.finish = simd::kernel<kernels::FinishTile<Epilogue>>();
  return p;
}

// out (m, n) = Activation(input · gateᵀ) * (input · upᵀ); gate and up have the same shape.
template <class Format, class Activation,
          kernels::ActivationScales kScales = kernels::ActivationScales::per_block>
Product gated_product(const kernels::MatmulInput& input, const quant::PackedMatrix<Format>& gate,
                      const quant::PackedMatrix<Format>& up, MatrixView<float> out) noexcept {
  NIBBLE_ASSERT(gate.n == up.n && gate.k == up.k);
  Product p{simd::kernel<kernels::Matmul<Format, kScales>>(),
            detail::args_of<Format, kScales>(input, up, out, {})};
  p.args.gate = gate.data;
  p.args.finish = simd::kernel<kernels::FinishGatedTile<Activation>>();
  return p;
}

namespace detail {

// How a product is split into tasks: row blocks times runs of panels.
struct Cut {
  Index rows_per_task = 0;
  Index row_blocks = 0;
  Index panels_per_task = 0;
  Index panel_tasks = 0;
  Index n_tasks() const noexcept { return row_blocks * panel_tasks; }
};

// With tiles, as many as these want; but rows of codes with scales for blocks are not for them.
inline Index rows_per_task(const kernels::MatmulArgs& args, const Tuning& tuning) noexcept {
  const bool are_rounded = args.input.rounded != nullptr;
  if (!are_rounded && args.input.row_scales == nullptr) return tuning.rows_per_task;
  const Index row_bytes = args.k * (are_rounded ? Index{sizeof(bf16)} : 1);
  const Index rows = simd::kernel<kernels::TileTaskRows>()(row_bytes);
  return rows > 0 ? rows : tuning.rows_per_task;
}

// A task is an even number of panels because the widest targets process two at a time.
inline Cut cut(const Product& p, Index n_workers, const Tuning& tuning) noexcept {
  NIBBLE_ASSERT(tuning.rows_per_task >= 1 && tuning.tasks_per_worker >= 1);
  Cut c;
  c.rows_per_task = rows_per_task(p.args, tuning);
  c.row_blocks = (p.args.m + c.rows_per_task - 1) / c.rows_per_task;
  if (c.row_blocks == 0) return c;
  const Index panels = p.args.end_panel - p.args.first_panel;
  const Index wanted =
      n_workers == 1 ? 1 : std::max<Index>(1, tuning.tasks_per_worker * n_workers / c.row_blocks);
  c.panels_per_task = std::max<Index>(2, ((panels + wanted - 1) / wanted + 1) / 2 * 2);
  c.panel_tasks = (panels + c.panels_per_task - 1) / c.panels_per_task;
  return c;
}

// The product of rows [row, end).
inline void run_rows(const Product& p, kernels::MatmulArgs args, Index row, Index end) noexcept {
  args.input = args.input.rows_from(row);
  args.m = end - row;
  args.out += row * args.out_stride;
  if (args.epilogue.residual != nullptr) {
    args.epilogue.residual += row * args.epilogue.residual_stride;
  }
  p.kernel(args);
}

// Where the rows end that are of the same kind as `row`, and which that is.
inline Index end_of_kind(std::span<const Segment> segments, Index row, bool& is_prompt) noexcept {
  std::size_t i = 0;
  while (segments[i].first_row + segments[i].n_rows <= row) ++i;
  const SegmentKind kind = segments[i].kind;
  is_prompt = kind == SegmentKind::prompt;
  Index end = row;
  for (; i < segments.size() && segments[i].kind == kind; ++i) {
    end = segments[i].first_row + segments[i].n_rows;
  }
  return end;
}

inline void run_task(const Product& p, const Cut& c, Index task, const Tuning& tuning) noexcept {
  const Index row = task / c.panel_tasks * c.rows_per_task;
  kernels::MatmulArgs args = p.args;
  args.tuning = tuning;
  args.first_panel = p.args.first_panel + task % c.panel_tasks * c.panels_per_task;
  args.end_panel = (std::min)(p.args.end_panel, args.first_panel + c.panels_per_task);
  const Index end = (std::min)(row + c.rows_per_task, p.args.m);
  if (p.segments.empty()) return run_rows(p, args, row, end);
  for (Index first = row; first < end;) {
    bool is_prompt;
    const Index next = (std::min)(end, end_of_kind(p.segments, first, is_prompt));
    args.input.rounded = is_prompt ? p.args.input.rounded : nullptr;
    run_rows(p, args, first, next);
    first = next;
  }
}

}  // namespace detail

// As many as a token has experts, in most models.
inline constexpr std::size_t kMaxProducts = 8;

// Runs up to kMaxProducts products as one parallel step. No product may read what another one
// writes.
inline void run(Executor& executor, std::span<const Product> products,
                const Tuning& tuning = {}) noexcept {
  NIBBLE_ASSERT(products.size() <= kMaxProducts);
  detail::Cut cuts[kMaxProducts];
  Index n_tasks = 0;
  for (std::size_t i = 0; i < products.size(); ++i) {
    cuts[i] = detail::cut(products[i], executor.n_workers(), tuning);
    n_tasks += cuts[i].n_tasks();
  }
  const auto task = [&](Index t, Index) {
    std::size_t i = 0;
    while (t >= cuts[i].n_tasks()) t -= cuts[i++].n_tasks();
    detail::run_task(products[i], cuts[i], t, tuning);
  };
  executor.parallel_for(n_tasks, task);
}

template <class Format, class Epilogue = kernels::Epilogue<>,
          kernels::ActivationScales kScales = kernels::ActivationScales::per_block>
void matmul(Executor& executor, const kernels::MatmulInput& input,
            const quant::PackedMatrix<Format>& weights, MatrixView<float> out,
            const kernels::EpilogueArgs& epilogue = {}, const Tuning& tuning = {}) noexcept {
  const Product p = product<Format, Epilogue, kScales>(input, weights, out, epilogue);
  run(executor, {&p, 1}, tuning);
}

}}}  // namespace nibble::NIBBLE_ABI::ops
