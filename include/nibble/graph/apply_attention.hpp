// SPDX-License-Identifier: Apache-2.0
//
// The meaning of the nodes of attention; see pass.hpp.
#pragma once

#include <tuple>

#include "nibble/core/libm.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/graph/pass.hpp"
#include "nibble/ops/attention.hpp"
#include "nibble/ops/attention_steps.hpp"
#include "nibble/ops/elementwise.hpp"
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
template <class Pass>
constexpr void declare_hook(const Alibi& hook, Pass& pass, Index) noexcept {
  if (hook.slopes == nullptr) pass.fail("alibi without slopes");
}
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
  shape.ahead = pass.resolve(heads.ahead);
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

// What is wrong with heads; null: nothing.
constexpr const char* heads_error(const ops::AttentionShape& s) noexcept {
  if (s.head_dim < 1 || s.n_kv_heads < 1 || s.n_heads < 1 || s.n_heads % s.n_kv_heads != 0) {
    return "heads: n_heads is not a multiple of n_kv_heads, or a size is 0";
  }
  if (s.window < 0 || s.ahead < 0) return "heads: a window of fewer than 0 positions";
  if (s.scale == 0) return "heads: scores times 0";
  return nullptr;
}

// Heads whose queries are `width` wide.
template <class H, class Pass, Index W>
constexpr ops::AttentionShape checked_shape(const H& heads, Pass& pass,
                                            const Value<W>& q) noexcept {
  static_assert(detail::kMayBeEqual<W, H::kWidth>,
                "nibble: the width of q is not that of the heads (n_heads * head_dim)");
  const ops::AttentionShape shape = shape_of(heads, pass);
  if (const char* const error = heads_error(shape)) pass.fail(error);
  if (q.width != shape.n_heads * shape.head_dim) pass.fail("the width of q is not that of heads");
  if (q.rows != Rows::all) pass.fail("attention after output_rows()");
  return shape;
}

template <class H, Index Q, Index K, class Pass>
constexpr void check_widths(const H& heads, const Qkv<Q, K>& qkv, Pass& pass) noexcept {
  static_assert(detail::kMayBeEqual<K, H::kKvWidth>,
                "nibble: the width of k and v is not that of the heads (n_kv_heads * head_dim)");
  const ops::AttentionShape shape = checked_shape(heads, pass, std::get<0>(qkv));
  if (std::get<1>(qkv).width != shape.n_kv_heads * shape.head_dim ||
      std::get<2>(qkv).width != shape.n_kv_heads * shape.head_dim) {
    pass.fail("the width of k or v is not that of the heads");
  }
}
// A q alone, in layers that read the keys and values of another one.
template <class H, Index Q, class Pass>
constexpr void check_in_place(const H& heads, const Value<Q>& q, Pass& pass) noexcept {
  (void)checked_shape(heads, pass, q);
  if (q.is_shared) pass.fail("rope() or head_norm() would write to rows that others still need");
}
// For nodes that change q and k in place.
template <class H, Index Q, Index K, class Pass>
constexpr void check_in_place(const H& heads, const Qkv<Q, K>& qkv, Pass& pass) noexcept {
  check_widths(heads, qkv, pass);
  if (std::get<0>(qkv).is_shared || std::get<1>(qkv).is_shared) {
    pass.fail("rope() or head_norm() would write to rows that others still need");
  }
}

template <auto kQ, auto kK, class H, class Pass, Index Q, Index K>
constexpr auto apply(const HeadNorm<kQ, kK, H>& node, Pass& pass, const Qkv<Q, K>& qkv) noexcept {
  check_in_place(node.heads, qkv, pass);
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

template <auto kQ, auto kK, class H, class Pass, Index Q>
constexpr auto apply(const HeadNorm<kQ, kK, H>& node, Pass& pass, const Value<Q>& q) noexcept {
  check_in_place(node.heads, q, pass);
  const Index head_dim = pass.resolve(node.heads.head_dim);
  pass.template weight<kQ>(0, head_dim);
  const float eps = node.eps;
  pass.step(
      [=](auto& run) {
        ops::rms_norm_heads(run.executor(), run.view(q), head_dim, run.vector(kQ), eps);
      },
      q);
  return q;
}

// Calls f with the style as a type.
template <class Style, class F>
void with_style(Style style, const F& f) noexcept {
  if constexpr (!std::is_same_v<Style, EitherStyle>) {
    f(style);
  } else if (style.is_half_split) {
    f(kernels::HalfSplit{});
  } else {
    f(kernels::AdjacentPairs{});
  }
}

// Rotates the heads of some values, which are the first of `used`.
template <class Style, auto kFactors, class H, class Pass, class... Values>
constexpr void rotate(const Rope<Style, kFactors, H>& node, Pass& pass, std::size_t n_rotated,
                      const Values&... used) noexcept {
  pass.template angles<kFactors>(node.angles);
  const Index head_dim = pass.resolve(node.heads.head_dim);
  const RopeAngles angles = node.angles;
  const Style style = node.style;
  const Index dim = pass.resolve(angles.dim);
  const float theta = pass.resolve(angles.theta);
  const float position_scale = pass.resolve(angles.position_scale);
  const float magnitude = pass.resolve(angles.magnitude);
  if (dim < 0 || dim % 2 != 0 || dim > head_dim) {
    pass.fail("rope(): the rotated dimensions are not an even number of at most head_dim");
  }
  if (dim > 0 && !(theta > 0 && position_scale > 0 && magnitude > 0)) {
    pass.fail("rope(): theta, position_scale and magnitude are not above 0");
  }
  pass.step(
      [=](auto& run) {
        const auto* const table = run.template rope_table<kFactors>(angles);
        if (table == nullptr) return;  // nothing rotates in this layer
        const auto position_of = [&](Index row) { return run.step_args().position_of(row); };
        const MatrixView<float> views[] = {run.view(used)...};
        for (std::size_t i = 0; i < n_rotated; ++i) {
          with_style(style, [&]<class S>(S) {
            ops::rope<S>(run.executor(), views[i], head_dim, table->cos, table->sin, position_of);
          });
        }
      },
      used...);
}
template <class Style, auto kFactors, class H, class Pass, Index Q, Index K>
constexpr auto apply(const Rope<Style, kFactors, H>& node, Pass& pass,
                     const Qkv<Q, K>& qkv) noexcept {
  check_in_place(node.heads, qkv, pass);
  rotate(node, pass, 2, std::get<0>(qkv), std::get<1>(qkv), std::get<2>(qkv));
  return qkv;
}
template <class Style, auto kFactors, class H, class Pass, Index Q>
constexpr auto apply(const Rope<Style, kFactors, H>& node, Pass& pass, const Value<Q>& q) noexcept {
  check_in_place(node.heads, q, pass);
  rotate(node, pass, 1, q);
  return q;
}

// What TemperQueries does to rows.
template <class Run>
void temper_rows(const Run& run, const Temperature& temperature, MatrixView<float> rows) noexcept {
  for (Index i = 0; i < rows.extent(0); ++i) {
    const Index steps = run.step_args().position_of(i) / temperature.step;
    if (steps == 0) continue;
    const double factor =
        1 + static_cast<double>(temperature.scale) * libm::log(static_cast<double>(1 + steps));
    ops::scale(run.executor(), rows.rows(i, 1), static_cast<float>(factor), rows.rows(i, 1));
  }
}

template <class Pass, Index Q, Index K>
constexpr auto apply(const TemperQueries& node, Pass& pass, const Qkv<Q, K>& qkv) noexcept {
  const Temperature temperature = node.temperature;
  if (temperature.step < 1) pass.fail("temper_queries(): a step of fewer than 1 positions");
  const auto q = std::get<0>(qkv);
  if (q.is_shared) pass.fail("temper_queries() would write to rows that others still need");
  pass.step(
      [=](auto& run) {
        if (temperature.scale != 0) temper_rows(run, temperature, run.view(q));
      },
      q, std::get<1>(qkv), std::get<2>(qkv));
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
        run.cache().append(run.executor(), run.cache_layer(), run.cache_segments(), run.view(k),
                           run.view(v));
        run.has_stored_keys();
      },
      std::get<0>(qkv), k, v);
  return std::get<0>(qkv);
}

template <class H, class Pass, Index W>
constexpr ops::AttentionShape declare_attention(const H& heads, Pass& pass,
                                                const Value<W>& q) noexcept {
  const ops::AttentionShape shape = checked_shape(heads, pass, q);
  pass.reads_cache(shape.n_kv_heads, shape.head_dim, shape.window);
  if (shape.ahead > 0) pass.both_ways();
  declare_hook(heads.hook, pass, shape.n_heads);
  return shape;
}

// out (n_heads * head_dim) += gate · softmax(scale · q · keysᵀ) · values, head by head.
inline void add_prompt(const PromptKv& prompt, const ops::AttentionShape& shape, float gate,
                       const float* q, float* out) noexcept {
  const Index head_dim = shape.head_dim, kv_width = shape.n_kv_heads * head_dim;
  for (Index head = 0; head < shape.n_heads; ++head, q += head_dim, out += head_dim) {
    const Index at = head / shape.group() * head_dim;
    double weights[kMaxPromptRows];
    double most = -static_cast<double>(kInfinity), sum = 0;
    for (Index i = 0; i < prompt.n; ++i) {
      const float* const key = prompt.keys + i * kv_width + at;
      double score = 0;
      for (Index j = 0; j < head_dim; ++j) {
        score += static_cast<double>(q[j]) * static_cast<double>(key[j]);
      }
      weights[i] = score * static_cast<double>(shape.scale);
      most = larger(most, weights[i]);
    }
    for (Index i = 0; i < prompt.n; ++i) sum += weights[i] = libm::exp(weights[i] - most);
    for (Index i = 0; i < prompt.n; ++i) {
      const auto weight = static_cast<float>(weights[i] / sum * static_cast<double>(gate));
      const float* const value = prompt.values + i * kv_width + at;
      for (Index j = 0; j < head_dim; ++j) out[j] += weight * value[j];
    }
  }
}

// Adds what attention gives of the prompts of adapters (model/adapter.hpp: AdapterPrompt).
template <class Run>
void add_prompts(const Run& run, const ops::AttentionShape& shape, MatrixView<const float> q,
                 MatrixView<float> out) noexcept {
  for (const RowAdapter& group : run.row_adapters(Rows::all)) {
    if (group.prompts == nullptr || run.layer() < 0) continue;
    const PromptKv& prompt = group.prompts[run.layer()];
    if (prompt.n == 0) continue;
    const auto add = [&](Index i, Index) {
      const Index row = group.first_row + i;
      add_prompt(prompt, shape, group.strength * prompt.gate, &q(row, 0), &out(row, 0));
    };
    run.executor().parallel_for(group.n_rows, add);
  }
}

template <class H, class Pass, Index W>
constexpr auto apply(const Attend<H>& node, Pass& pass, const Value<W>& q) noexcept {
  const ops::AttentionShape shape = declare_attention(node.heads, pass, q);
  const auto out = pass.make(q.width, q.rows);
  const ops::AttentionLimits limits{.n_workers = pass.limits().max_workers,
                                    .max_rows = pass.limits().max_rows,
                                    .max_segments = pass.limits().max_segments,
                                    .n_positions = pass.limits().n_positions};
  const Scratch scratch =
      pass.scratch(heads_error(shape) == nullptr ? ops::attention_scratch_bytes(shape, limits) : 0);
  pass.step(
      [=](auto& run) {
        const Step& step = run.step_args();
        ops::attention(run.executor(), run.view(q), run.cache(), run.cache_layer(),
                       with_scores(shape, node.heads, run), run.cache_segments(), limits,
                       run.view(out), run.memory(scratch), step.policy, run.tuning(), run.layer());
        add_prompts(run, shape, run.view(q), run.view(out));
      },
      q, out, scratch);
  return out;
}

template <class H, class Pass, Index W>
constexpr auto apply(const Scores<H>& node, Pass& pass, const Value<W>& q) noexcept {
  const ops::AttentionShape shape = declare_attention(node.heads, pass, q);
  // (rows, heads * positions): for each head a row of n_positions scores.
  const auto out = pass.make(Dim<>{shape.n_heads * pass.limits().n_positions}, q.rows);
  pass.step(
      [=](auto& run) {
        ops::attention_scores(run.view(q), run.cache(), run.cache_layer(),
                              with_scores(shape, node.heads, run), run.cache_segments(),
                              run.view(out));
      },
      q, out);
  return out;
}
// The heads of a node that reads what scores() made.
template <class H, class Pass, Index W>
constexpr ops::AttentionShape shape_of_scores(const H& heads, Pass& pass,
                                              const Value<W>& s) noexcept {
  const ops::AttentionShape shape = shape_of(heads, pass);
  if (s.width != shape.n_heads * pass.limits().n_positions) {
    pass.fail("softmax() and attend_values() take what scores() of the same heads gives");
  }
  return shape;
}

template <class H, class Pass, Index W>
constexpr auto apply(const Softmax<H>& node, Pass& pass, const Value<W>& s) noexcept {
  const ops::AttentionShape shape = shape_of_scores(node.heads, pass, s);
  pass.step(
      [=](auto& run) { ops::attention_softmax(run.view(s), with_scores(shape, node.heads, run)); },
      s);
  return s;
}
template <class H, class Pass, Index W>
constexpr auto apply(const AttendValues<H>& node, Pass& pass, const Value<W>& s) noexcept {
  const ops::AttentionShape shape = shape_of_scores(node.heads, pass, s);
  pass.reads_cache(shape.n_kv_heads, shape.head_dim, shape.window);
  const auto out = pass.make(Dim<>{shape.n_heads * shape.head_dim}, s.rows);
  pass.step(
      [=](auto& run) {
        ops::attention_values(run.view(s), run.cache(), run.cache_layer(), shape,
                              run.cache_segments(), run.view(out));
      },
      s, out);
  return out;
}

}}}  // namespace nibble::NIBBLE_ABI::graph
