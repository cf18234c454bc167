// SPDX-License-Identifier: Apache-2.0
//
// The way back through attention; see differentiate.hpp. A training step has
// no cache: each segment is a whole sequence, whose queries read the keys and values of its own
// rows. cache_kv() hands (q, k, v) on instead of storing them, and scores >> softmax >>
// attend_values is one step, as fuse() makes of it, that keeps a number for each query and head
// instead of the scores.
#pragma once

#include <tuple>
#include <type_traits>

#include "nibble/graph/apply_attention.hpp"
#include "nibble/graph/gradient.hpp"
#include "nibble/ops/attention_train.hpp"
#include "nibble/ops/norm_back.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

// What cache_kv() hands on in a training step.
template <Index Q, Index K>
struct CachedRows {
  Qkv<Q, K> qkv;
};

namespace detail {

// (q, k, v) for a node that works in place on q and k.
template <class Pass, Index Q, Index K>
constexpr Qkv<Q, K> qk_to_change(Pass& pass, const Qkv<Q, K>& qkv) noexcept {
  return {to_change(pass, std::get<0>(qkv)), to_change(pass, std::get<1>(qkv)), std::get<2>(qkv)};
}

// The gradients of q, k and v where q and k are turned in place: copies of those of q and k, turned
// by turn(run, dq, dk), and that of v.
template <class Pass, class Turn>
constexpr Gradients<3> turn_back(Pass& pass, const Gradients<3>& d, const Turn& turn) noexcept {
  const Gradient dq = make_like(pass, d[0]), dk = make_like(pass, d[1]);
  pass.step(
      [=](auto& run) {
        ops::copy_rows(run.executor(), run.view(d[0]), run.view(dq));
        ops::copy_rows(run.executor(), run.view(d[1]), run.view(dk));
        turn(run, MatrixView<float>(run.view(dq)), MatrixView<float>(run.view(dk)));
      },
      d[0], d[1], dq, dk);
  return {dq, dk, d[2]};
}

}  // namespace detail

template <class Style, auto kFactors, class H, class Pass, Index Q, Index K, class Rest>
constexpr Gradients<3> differentiate(const Rope<Style, kFactors, H>& node, Pass& pass,
                                     const Qkv<Q, K>& qkv, const Rest& rest) noexcept {
  const Gradients<3> d = rest(apply(node, pass, detail::qk_to_change(pass, qkv)));
  const Index head_dim = pass.resolve(node.heads.head_dim);
  const RopeAngles angles = node.angles;
  const Style style = node.style;
  return detail::turn_back(pass, d, [=](auto& run, const auto& dq, const auto& dk) {
    const auto* const table = run.template rope_table<kFactors>(angles);
    if (table == nullptr) return;
    const auto position_of = [&](Index row) { return run.step_args().position_of(row); };
    for (const MatrixView<float>& x : {dq, dk}) {
      with_style(style, [&]<class S>(S) {
        ops::rope<S, true>(run.executor(), x, head_dim, table->cos, table->sin, position_of);
      });
    }
  });
}

template <class Pass, Index Q, Index K, class Rest>
constexpr Gradients<3> differentiate(const TemperQueries& node, Pass& pass, const Qkv<Q, K>& qkv,
                                     const Rest& rest) noexcept {
  const Temperature temperature = node.temperature;
  if (temperature.scale == 0) return rest(qkv);
  const Gradients<3> d = rest(apply(node, pass, detail::qk_to_change(pass, qkv)));
  return detail::turn_back(
      pass, d, [=](auto& run, const auto& dq, const auto&) { temper_rows(run, temperature, dq); });
}

// The norm keeps the heads as they were.
template <auto kQ, auto kK, class H, class Pass, Index Q, Index K, class Rest>
constexpr Gradients<3> differentiate(const HeadNorm<kQ, kK, H>& node, Pass& pass,
                                     const Qkv<Q, K>& qkv, const Rest& rest) noexcept {
  const auto q = std::get<0>(qkv);
  const auto k = std::get<1>(qkv);
  const Qkv<Q, K> normed = {detail::to_change(pass, shared(q)), detail::to_change(pass, shared(k)),
                            std::get<2>(qkv)};
  const Gradients<3> d = rest(apply(node, pass, normed));
  const Index head_dim = pass.resolve(node.heads.head_dim);
  const float eps = node.eps;
  const Gradient dq = detail::make_like(pass, d[0]), dk = detail::make_like(pass, d[1]);
  const Scratch sums = pass.scratch(ops::norm_back_scratch_bytes(pass.count(q.rows), head_dim));
  pass.step(
      [=](auto& run) {
        ops::rms_norm_heads_back(run.executor(), run.view(q), head_dim, run.vector(kQ), eps,
                                 run.view(d[0]), run.view(dq), detail::vector_gradient(run, kQ),
                                 run.memory(sums));
        ops::rms_norm_heads_back(run.executor(), run.view(k), head_dim, run.vector(kK), eps,
                                 run.view(d[1]), run.view(dk), detail::vector_gradient(run, kK),
                                 run.memory(sums));
      },
      q, k, d[0], d[1], dq, dk, sums);
  return {dq, dk, d[2]};
}

template <class H, class Pass, Index Q, Index K, class Rest>
constexpr Gradients<3> differentiate(const CacheKv<H>& node, Pass& pass, const Qkv<Q, K>& qkv,
                                     const Rest& rest) noexcept {
  check_widths(node.heads, qkv, pass);
  return rest(CachedRows<Q, K>{qkv});
}

namespace detail {

constexpr ops::TrainAttentionShape train_shape(const ops::AttentionShape& s) noexcept {
  ops::TrainAttentionShape shape;
  shape.n_heads = s.n_heads;
  shape.n_kv_heads = s.n_kv_heads;
  shape.head_dim = shape.value_dim = s.head_dim;
  shape.scale = s.scale;
  shape.window = s.window;
  shape.ahead = s.ahead;
  return shape;
}
template <class H, class Run>
ops::TrainAttentionShape train_shape(const ops::AttentionShape& s, const H& heads,
                                     const Run& run) noexcept {
  ops::TrainAttentionShape shape = train_shape(s);
  const kernels::ScoreOptions scores = score_options(heads.hook, run);
  shape.soft_cap = scores.soft_cap;
  shape.alibi_slopes = scores.alibi_slopes;
  shape.sink_logits = scores.sink_logits;
  return shape;
}

template <class Hook>
inline constexpr bool kHasBackHook =
    std::is_same_v<Hook, NoHook> || std::is_same_v<Hook, SoftCap> || std::is_same_v<Hook, Alibi>;
template <auto kSlot>
inline constexpr bool kHasBackHook<Sinks<kSlot>> = true;

// The gradients of the weights that a hook reads.
template <class Hook, class Run, class Shape, class Rows, class LogSums>
void hook_back(const Hook&, Run&, const Shape&, const Rows&, const LogSums&,
               const Gradient&) noexcept {}
template <auto kSlot, class Run, class Shape, class Rows, class LogSums>
void hook_back(const Sinks<kSlot>&, Run& run, const Shape& shape, const Rows& out,
               const LogSums& log_sums, const Gradient& d) noexcept {
  const VectorView<float> sinks = vector_gradient(run, kSlot);
  if (sinks.data() == nullptr) return;
  ops::attention_sinks_back(run.executor(), run.view(out), run.view(log_sums), run.view(d), shape,
                            sinks);
}

}  // namespace detail

// Attention of the rows of each sequence to each other.
template <class H, class Pass, Index Q, Index K, class Rest>
constexpr Gradients<3> differentiate(const Attend<H>& node, Pass& pass,
                                     const CachedRows<Q, K>& rows, const Rest& rest) noexcept {
  static_assert(detail::kHasBackHook<typename H::Hook>,
                "nibble: there is no backward rule for attention with this hook (H = ...)");
  const auto q = std::get<0>(rows.qkv);
  const auto k = std::get<1>(rows.qkv);
  const auto v = std::get<2>(rows.qkv);
  const ops::AttentionShape shape = checked_shape(node.heads, pass, q);
  const auto out = shared(pass.make(q.width, q.rows));
  const Value<> log_sums = pass.make(Dim<>{shape.n_heads}, q.rows);
  const Limits& limits = pass.limits();
  const std::size_t bytes =
      heads_error(shape) == nullptr
          ? ops::train_attention_scratch_bytes(detail::train_shape(shape), limits.n_positions,
                                               limits.max_workers)
          : 0;
  const Scratch forward = pass.scratch(bytes);
  pass.step(
      [=](auto& run) {
        ops::train_attention(run.executor(), run.view(q), run.view(k), run.view(v),
                             detail::train_shape(shape, node.heads, run), run.sequence_starts(),
                             run.view(out), run.view(log_sums), run.memory(forward));
      },
      q, k, v, out, log_sums, forward);
  const Gradient d = rest(out);
  const Gradient dq = pass.make(Dim<>{q.width}, q.rows);
  const Gradient dk = pass.make(Dim<>{k.width}, k.rows);
  const Gradient dv = pass.make(Dim<>{v.width}, v.rows);
  const Scratch back = pass.scratch(bytes);
  pass.step(
      [=](auto& run) {
        const ops::TrainAttentionShape with_hook = detail::train_shape(shape, node.heads, run);
        ops::train_attention_back(run.executor(), run.view(q), run.view(k), run.view(v),
                                  run.view(out), run.view(log_sums), run.view(d), with_hook,
                                  run.sequence_starts(), run.view(dq), run.view(dk), run.view(dv),
                                  run.memory(back));
        detail::hook_back(node.heads.hook, run, with_hook, out, log_sums, d);
      },
      q, k, v, out, log_sums, d, dq, dk, dv, back);
  return {dq, dk, dv};
}

// Scores and their softmax hand the rows on to the last step of the three.
template <class H, class Pass, Index Q, Index K, class Rest>
constexpr Gradients<3> differentiate(const Scores<H>&, Pass&, const CachedRows<Q, K>& rows,
                                     const Rest& rest) noexcept {
  return rest(rows);
}
template <class H, class Pass, Index Q, Index K, class Rest>
constexpr Gradients<3> differentiate(const Softmax<H>&, Pass&, const CachedRows<Q, K>& rows,
                                     const Rest& rest) noexcept {
  return rest(rows);
}
template <class H, class Pass, Index Q, Index K, class Rest>
constexpr Gradients<3> differentiate(const AttendValues<H>& node, Pass& pass,
                                     const CachedRows<Q, K>& rows, const Rest& rest) noexcept {
  return differentiate(Attend<H>{{}, node.heads}, pass, rows, rest);
}

}}}  // namespace nibble::NIBBLE_ABI::graph
