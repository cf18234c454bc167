// SPDX-License-Identifier: Apache-2.0
//
// The meaning of the nodes of attention; see pass.hpp.
#pragma once

#include <tuple>

#include "nibble/graph/pass.hpp"
#include "nibble/ops/attention.hpp"
#include "nibble/ops/attention_steps.hpp"
#include "nibble/ops/norm.hpp"
#include "nibble/ops/rope.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

// ---- Hooks at the scores -----------------------------------------------------------------------
// score_options(hook, run) returns what a hook does, declare_hook() declares the weights that it
// reads.

template <class Run>
kernels::ScoreOptions score_options(NoHook, const Run&) noexcept {
  return {};
}
template <class Run>
kernels::ScoreOptions score_options(const SoftCap& hook, const Run&) noexcept {
  kernels::ScoreOptions options;
  options.soft_cap = hook.cap;
  return options;
}
template <class Run>
kernels::ScoreOptions score_options(const Alibi& hook, const Run&) noexcept {
  kernels::ScoreOptions options;
  options.alibi_slopes = hook.slopes;
  return options;
}
template <auto kSlot, class Run>
kernels::ScoreOptions score_options(const Sinks<kSlot>&, const Run& run) noexcept {
  kernels::ScoreOptions options;
  options.sink_logits = run.vector(kSlot).data();
  return options;
}

template <class Hook, class Pass>
constexpr void declare_hook(const Hook&, Pass&, Index) noexcept {}
template <auto kSlot, class Pass>
constexpr void declare_hook(const Sinks<kSlot>&, Pass& pass, Index n_heads) noexcept {
  pass.template weight<kSlot>(0, n_heads);
}

// ---- Nodes -------------------------------------------------------------------------------------

template <class H, class Pass>
constexpr ops::AttentionShape shape_of(const H& heads, Pass& pass) noexcept {
  ops::AttentionShape shape;
  shape.n_heads = pass.resolve(heads.n_heads);
  shape.n_kv_heads = pass.resolve(heads.n_kv_heads);
  shape.head_dim = pass.resolve(heads.head_dim);
  shape.scale = pass.resolve(heads.scale);
  shape.window = pass.resolve(heads.window);
  shape.ahead = heads.ahead;
  return shape;
}
template <class H, class Run>
ops::AttentionShape with_scores(ops::AttentionShape shape, const H& heads,
                                const Run& run) noexcept {
  shape.scores = score_options(heads.hook, run);
  return shape;
}

// (q, k, v), the input of the nodes below.
template <Index Q, Index K>
using Qkv = std::tuple<Value<Q>, Value<K>, Value<K>>;

template <class H, Index Q, Index K, class Pass>
constexpr void check_widths(const H& heads, const Qkv<Q, K>& qkv, Pass& pass) noexcept {
  const ops::AttentionShape shape = shape_of(heads, pass);
  if (std::get<0>(qkv).width != shape.n_heads * shape.head_dim ||
      std::get<1>(qkv).width != shape.n_kv_heads * shape.head_dim ||
      std::get<2>(qkv).width != shape.n_kv_heads * shape.head_dim) {
    pass.fail("the widths of q, k and v are not those of the heads");
  }
}

template <auto kQ, auto kK, class H, class Pass, Index Q, Index K>
constexpr auto apply(const HeadNorm<kQ, kK, H>& node, Pass& pass, const Qkv<Q, K>& qkv) noexcept {
  check_widths(node.heads, qkv, pass);
  const Index head_dim = pass.resolve(node.heads.head_dim);
  pass.template weight<kQ>(0, head_dim);
  pass.template weight<kK>(0, head_dim);
  const auto q = std::get<0>(qkv);
  const auto k = std::get<1>(qkv);
  const float eps = node.eps;
  pass.step(
      [=](auto& run) {
        ops::rms_norm_heads(run.executor(), run.view(q), head_dim, run.vector(kQ), eps);
        ops::rms_norm_heads(run.executor(), run.view(k), head_dim, run.vector(kK), eps);
      },
      q, k, std::get<2>(qkv));
  return qkv;
}

template <class Style, auto kFactors, class H, class Pass, Index Q, Index K>
constexpr auto apply(const Rope<Style, kFactors, H>& node, Pass& pass,
                     const Qkv<Q, K>& qkv) noexcept {
  check_widths(node.heads, qkv, pass);
  pass.template angles<kFactors>(node.angles);
  const auto q = std::get<0>(qkv);
  const auto k = std::get<1>(qkv);
  const Index head_dim = pass.resolve(node.heads.head_dim);
  const RopeAngles angles = node.angles;
  pass.step(
      [=](auto& run) {
        const auto* const table = run.template rope_table<kFactors>(angles);
        if (table == nullptr) return;  // nothing rotates in this layer
        const auto position_of = [&](Index row) { return run.step_args().position_of(row); };
        for (const MatrixView<float> x :
             {MatrixView<float>(run.view(q)), MatrixView<float>(run.view(k))}) {
          ops::rope<Style>(run.executor(), x, head_dim, table->cos, table->sin, position_of);
        }
      },
      q, k, std::get<2>(qkv));
  return qkv;
}

template <class H, class Pass, Index Q, Index K>
constexpr auto apply(const CacheKv<H>& node, Pass& pass, const Qkv<Q, K>& qkv) noexcept {
  check_widths(node.heads, qkv, pass);
  pass.cache(pass.resolve(node.heads.n_kv_heads), pass.resolve(node.heads.head_dim));
  const auto k = std::get<1>(qkv);
  const auto v = std::get<2>(qkv);
  pass.step(
      [=](auto& run) {
        run.cache().append(run.executor(), run.layer(), run.step_args().segments, run.view(k),
                           run.view(v));
      },
      std::get<0>(qkv), k, v);
  return std::get<0>(qkv);
}

template <class H, class Pass, Index W>
constexpr auto apply(const Attend<H>& node, Pass& pass, const Value<W>& q) noexcept {
  const ops::AttentionShape shape = shape_of(node.heads, pass);
  if (shape.ahead > 0) pass.both_ways();
  declare_hook(node.heads.hook, pass, shape.n_heads);
  const auto out = pass.make(q.width, q.rows);
  const ops::AttentionLimits limits{.n_workers = pass.limits().max_workers,
                                    .max_rows = pass.limits().max_rows,
                                    .max_segments = pass.limits().max_segments,
                                    .n_positions = pass.limits().n_positions};
  const Scratch scratch = pass.scratch(ops::attention_scratch_bytes(shape, limits));
  pass.step(
      [=](auto& run) {
        const Step& step = run.step_args();
        ops::attention(run.executor(), run.view(q), run.cache(), run.layer(),
                       with_scores(shape, node.heads, run), step.segments, limits, run.view(out),
                       run.memory(scratch), step.policy, run.tuning());
      },
      q, out, scratch);
  return out;
}

template <class H, class Pass, Index W>
constexpr auto apply(const Scores<H>& node, Pass& pass, const Value<W>& q) noexcept {
  const ops::AttentionShape shape = shape_of(node.heads, pass);
  if (shape.ahead > 0) pass.both_ways();
  declare_hook(node.heads.hook, pass, shape.n_heads);
  // (rows, heads * positions): for each head a row of n_positions scores.
  const auto out = pass.make(Dim<>{shape.n_heads * pass.limits().n_positions}, q.rows);
  pass.step(
      [=](auto& run) {
        ops::attention_scores(run.view(q), run.cache(), run.layer(),
                              with_scores(shape, node.heads, run), run.step_args().segments,
                              run.view(out));
      },
      q, out);
  return out;
}
template <class H, class Pass, Index W>
constexpr auto apply(const Softmax<H>& node, Pass& pass, const Value<W>& s) noexcept {
  const ops::AttentionShape shape = shape_of(node.heads, pass);
  pass.step(
      [=](auto& run) { ops::attention_softmax(run.view(s), with_scores(shape, node.heads, run)); },
      s);
  return s;
}
template <class H, class Pass, Index W>
constexpr auto apply(const AttendValues<H>& node, Pass& pass, const Value<W>& s) noexcept {
  const ops::AttentionShape shape = shape_of(node.heads, pass);
  const auto out = pass.make(Dim<>{shape.n_heads * shape.head_dim}, s.rows);
  pass.step(
      [=](auto& run) {
        ops::attention_values(run.view(s), run.cache(), run.layer(), shape,
                              run.step_args().segments, run.view(out));
      },
      s, out);
  return out;
}

}}}  // namespace nibble::NIBBLE_ABI::graph
