// SPDX-License-Identifier: Apache-2.0
//
// The meaning of the nodes of recurrent layers; see pass.hpp.
#pragma once

#include <cstddef>
#include <cstring>
#include <tuple>

#include "nibble/core/arena.hpp"
#include "nibble/core/libm.hpp"
#include "nibble/graph/apply_attention.hpp"
#include "nibble/graph/pass.hpp"
#include "nibble/graph/recurrent.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/ops/activation.hpp"
#include "nibble/ops/causal_conv.hpp"
#include "nibble/ops/delta_rule.hpp"
#include "nibble/ops/elementwise.hpp"
#include "nibble/ops/norm.hpp"
#include "nibble/ops/rows.hpp"
#include "nibble/quant/format.hpp"
#include "nibble/quant/packed_panel.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

// ---- Narrow matrices ---------------------------------------------------------------------------
// Of a few columns, such as the taps of a convolution: files have them as matrices.

// Declares one. Returns memory for it as f32, for files that have it in another format.
template <auto kSlot, class Pass>
constexpr Scratch declare_narrow(Pass& pass, Index n_channels, Index n_columns) noexcept {
  pass.template weight_rows<kSlot>(n_channels, n_columns, RowsOf::nothing);
  constexpr Index kMostChannels = kMaxBytes / kernels::kMaxConvTaps / Index{sizeof(float)} / 2;
  const bool fits = n_channels >= 1 && n_channels < kMostChannels;
  return pass.scratch(fits ? static_cast<std::size_t>(quant::n_panels(n_channels) *
                                                      quant::kPanelRows * kernels::kMaxConvTaps) *
                                 sizeof(float)
                           : 0);
}

// The matrix in panels, as convolutions read it; a column is contiguous.
template <auto kSlot, class Run>
const float* narrow_matrix(const Run& run, const Scratch& scratch) noexcept {
  static_assert(kernels::kConvPanel == quant::kPanelRows);
  const Weight& w = run.weight(kSlot);
  if (w.ops->format == quant::Format::f32) return reinterpret_cast<const float*>(w.data);
  auto* const panels = reinterpret_cast<float*>(run.memory(scratch).data());
  for (Index channel = 0; channel < w.n; ++channel) {
    float row[kernels::kMaxConvTaps];
    w.ops->row(w.data, w.n, w.k, channel, row);
    float* const panel = panels + channel / quant::kPanelRows * w.k * quant::kPanelRows;
    for (Index j = 0; j < w.k; ++j) {
      panel[j * quant::kPanelRows + channel % quant::kPanelRows] = row[j];
    }
  }
  return panels;
}

constexpr bool is_tap_count(Index n) noexcept {
  return n >= kernels::kMinConvTaps && n <= kernels::kMaxConvTaps;
}

// Columns of rows.
template <class T>
MatrixView<T> columns_of(MatrixView<T> rows, Index first, Index n) noexcept {
  return MatrixView<T>(rows.data() + first, {rows.extent(0), n}, {rows.stride(0), 1});
}

// ---- Short convolutions ------------------------------------------------------------------------

template <auto kTaps, Index V, class Pass, Index W>
constexpr auto apply(const ShortConv<kTaps, V>& node, Pass& pass, const Value<W>& x) noexcept {
  const auto width = pass.resolve(node.width);
  const Index n_taps = node.n_taps;
  if (x.width != 3 * width) pass.fail("short_conv(): the input is not three times as wide");
  if (x.rows != Rows::all) pass.fail("short_conv() after output_rows()");
  if (!is_tap_count(n_taps)) pass.fail("short_conv(): a convolution has 2 to 4 taps");
  const Scratch scratch = declare_narrow<kTaps>(pass, width, n_taps);
  const StateAt state = pass.state((n_taps - 1) * width);
  const auto out = pass.make(width, x.rows);
  pass.step(
      [=](auto& run) {
        const MatrixView<float> in = run.view(x), to = run.view(out);
        kernels::CausalConvArgs args;
        args.n_channels = width;
        args.n_taps = n_taps;
        args.before = in.data();
        args.after = in.data() + width;
        args.x = in.data() + 2 * width;
        args.stride = in.stride(0);
        args.taps = narrow_matrix<kTaps>(run, scratch);
        args.out = to.data();
        args.out_stride = to.stride(0);
        ops::causal_conv<kernels::ConvGated>(
            run.executor(), args, run.step_args().segments,
            [&](const Segment& segment) { return run.state_of(segment, state).data(); });
      },
      x, out, scratch);
  return out;
}

// ---- Linear attention --------------------------------------------------------------------------

static_assert(kStateChunk == kernels::kDeltaChunk);

// What is wrong with heads; null: nothing.
constexpr const char* delta_heads_error(const kernels::DeltaHeads& h) noexcept {
  if (h.n_heads < 1 || h.n_key_heads < 1 || h.n_heads % h.n_key_heads != 0 || h.state.key_dim < 1 ||
      h.state.value_dim < 1) {
    return "linear attention: n_heads is not a multiple of n_key_heads, or a size is 0";
  }
  return nullptr;
}

// x becomes the convolution of x, with SiLU, in `out`.
template <auto kTaps, auto kBias, class Run, class In, class Out>
void run_silu_conv(Run& run, const In& x, const Out& out, Index n_taps, const StateAt& state,
                   const Scratch& taps) noexcept {
  const MatrixView<float> from = run.view(x), to = run.view(out);
  kernels::CausalConvArgs args;
  args.n_channels = to.extent(1);
  args.n_taps = n_taps;
  args.x = from.data();
  args.stride = from.stride(0);
  args.taps = narrow_matrix<kTaps>(run, taps);
  args.bias = run.vector(kBias).data();
  args.out = to.data();
  args.out_stride = to.stride(0);
  ops::causal_conv<kernels::ConvActivated<kernels::Silu>>(
      run.executor(), args, run.step_args().segments,
      [&](const Segment& segment) { return run.state_of(segment, state).data(); });
}

// Gives queries and keys length 1, and queries the scale 1 / sqrt(key_dim) besides.
inline void make_unit(Executor& executor, MatrixView<float> rows, Index head_dim,
                      bool are_queries) noexcept {
  constexpr double kEps = 1e-6;  // of the sum of squares
  const auto n = static_cast<double>(head_dim);
  ops::rms_norm_heads(executor, rows, head_dim, {}, static_cast<float>(kEps / n));
  const double scale = are_queries ? 1 / n : 1 / libm::sqrt(n);
  ops::scale(executor, rows, static_cast<float>(scale), rows);
}

// Work of a head of a row, in the units of ops::for_rows().
inline constexpr Index kGateWork = 64;

inline double softplus(double x) noexcept { return x > 30 ? x : libm::log(1 + libm::exp(x)); }

// alpha becomes decays, beta becomes its sigmoid. Both (m, n_heads).
inline void make_gates(Executor& executor, MatrixView<float> alpha, MatrixView<float> beta,
                       const float* a, const float* dt) noexcept {
  ops::for_rows(executor, alpha.extent(0), kGateWork * alpha.extent(1), [&](Index row) {
    for (Index head = 0; head < alpha.extent(1); ++head) {
      const double step =
          softplus(static_cast<double>(alpha(row, head)) + static_cast<double>(dt[head]));
      alpha(row, head) = static_cast<float>(libm::exp(static_cast<double>(a[head]) * step));
      beta(row, head) =
          static_cast<float>(1 / (1 + libm::exp(-static_cast<double>(beta(row, head)))));
    }
  });
}

template <auto kTaps, auto kA, auto kDt, auto kNorm, class Pass, Index A, Index B, Index C, Index D>
constexpr auto apply(const DeltaNet<kTaps, kA, kDt, kNorm>& node, Pass& pass,
                     const std::tuple<Value<A>, Value<B>, Value<C>, Value<D>>& in) noexcept {
  const auto& [qkv, z, alpha, beta] = in;
  const kernels::DeltaHeads heads = node.heads;
  const Index n_taps = node.n_taps;
  const float eps = node.eps;
  if (const char* const error = delta_heads_error(heads)) pass.fail(error);
  if (!is_tap_count(n_taps)) pass.fail("delta_net(): a convolution has 2 to 4 taps");
  const Index key_width = heads.key_width(), width = 2 * key_width + heads.value_width();
  if (qkv.width != width || z.width != heads.value_width() || alpha.width != heads.n_heads ||
      beta.width != heads.n_heads) {
    pass.fail("delta_net(): a width is not that of the heads");
  }
  if (qkv.rows != Rows::all || z.rows != Rows::all || alpha.rows != Rows::all ||
      beta.rows != Rows::all) {
    pass.fail("delta_net() after output_rows()");
  }
  if (alpha.is_shared || beta.is_shared) {
    pass.fail("delta_net() would write to rows that others still need");
  }
  const Scratch scratch = declare_narrow<kTaps>(pass, width, n_taps);
  pass.template weight<kA>(0, heads.n_heads);
  pass.template weight<kDt>(0, heads.n_heads);
  pass.template weight<kNorm>(0, heads.state.value_dim);
  const Index n_conv = (n_taps - 1) * width;
  const StateAt state = pass.state(n_conv + heads.n_left_floats(), heads.n_state_floats());
  const auto mixed = pass.make(Dim<>{width}, qkv.rows);
  pass.step(
      [=, qkv = qkv](auto& run) {
        run_silu_conv<kTaps, kNone>(run, qkv, mixed, n_taps, state, scratch);
      },
      qkv, mixed, scratch);
  const auto out = pass.make(Dim<>{heads.value_width()}, qkv.rows);
  pass.step(
      [=, z = z, alpha = alpha, beta = beta](auto& run) {
        const MatrixView<float> rows = run.view(mixed), to = run.view(out);
        const MatrixView<float> decays = run.view(alpha), betas = run.view(beta);
        const MatrixView<float> queries = columns_of(rows, 0, key_width);
        const MatrixView<float> keys = columns_of(rows, key_width, key_width);
        make_unit(run.executor(), queries, heads.state.key_dim, true);
        make_unit(run.executor(), keys, heads.state.key_dim, false);
        make_gates(run.executor(), decays, betas, run.vector(kA).data(), run.vector(kDt).data());
        ops::delta_rule<true>(
            run.executor(), heads, queries, keys,
            columns_of(rows, 2 * key_width, heads.value_width()), decays, betas,
            run.step_args().segments,
            [&](const Segment& segment) { return run.chunk_state_of(segment, state).data(); },
            [&](const Segment& segment) { return run.state_of(segment, state).data() + n_conv; },
            to);
        ops::rms_norm_heads(run.executor(), to, heads.state.value_dim, run.vector(kNorm), eps);
        ops::activate_gated<kernels::Silu>(run.executor(), run.view(z), to, to);
      },
      mixed, z, alpha, beta, out);
  return out;
}

// betas = softplus(dt + bias), decays = exp(a * betas). All (m, n_heads).
inline void make_steps(Executor& executor, MatrixView<const float> dt, const float* bias,
                       const float* a, MatrixView<float> decays, MatrixView<float> betas) noexcept {
  ops::for_rows(executor, dt.extent(0), kGateWork * dt.extent(1), [&](Index row) {
    for (Index head = 0; head < dt.extent(1); ++head) {
      const double beta =
          softplus(static_cast<double>(dt(row, head)) + static_cast<double>(bias[head]));
      betas(row, head) = static_cast<float>(beta);
      decays(row, head) = static_cast<float>(libm::exp(static_cast<double>(a[head]) * beta));
    }
  });
}

template <auto kTaps, auto kConvBias, auto kA, auto kD, auto kDt, auto kNorm, class Pass, Index A,
          Index B, Index C>
constexpr auto apply(const Mamba2<kTaps, kConvBias, kA, kD, kDt, kNorm>& node, Pass& pass,
                     const std::tuple<Value<A>, Value<B>, Value<C>>& in) noexcept {
  const auto& [z, xbc, dt] = in;
  const kernels::DeltaHeads heads = node.heads;
  const Index n_taps = node.n_taps;
  const float eps = node.eps;
  if (const char* const error = delta_heads_error(heads)) pass.fail(error);
  if (heads.n_key_heads != 1) pass.fail("mamba2(): heads with keys of their own");
  if (!is_tap_count(n_taps)) pass.fail("mamba2(): a convolution has 2 to 4 taps");
  const Index key_dim = heads.state.key_dim, inner = heads.value_width();
  const Index width = inner + 2 * key_dim;
  if (z.width != inner || xbc.width != width || dt.width != heads.n_heads) {
    pass.fail("mamba2(): a width is not that of the heads");
  }
  if (z.rows != Rows::all || xbc.rows != Rows::all || dt.rows != Rows::all) {
    pass.fail("mamba2() after output_rows()");
  }
  const Scratch taps = declare_narrow<kTaps>(pass, width, n_taps);
  pass.template weight<kConvBias>(0, width);
  pass.template weight<kDt>(0, heads.n_heads);
  pass.template weight<kNorm>(0, inner);
  const Index n_conv = (n_taps - 1) * width;
  const StateAt state = pass.state(n_conv + heads.n_left_floats(), heads.n_state_floats());
  const auto mixed = pass.make(Dim<>{width}, xbc.rows);
  pass.step(
      [=, xbc = xbc](auto& run) {
        run_silu_conv<kTaps, kConvBias>(run, xbc, mixed, n_taps, state, taps);
      },
      xbc, mixed, taps);
  const Scratch rates = declare_narrow<kA>(pass, heads.n_heads, 1);
  const Scratch direct = declare_narrow<kD>(pass, heads.n_heads, 1);
  const auto decays = pass.make(Dim<>{heads.n_heads}, xbc.rows);
  const auto betas = pass.make(Dim<>{heads.n_heads}, xbc.rows);
  const auto out = pass.make(Dim<>{inner}, xbc.rows);
  pass.step(
      [=, z = z, dt = dt](auto& run) {
        const MatrixView<float> rows = run.view(mixed), to = run.view(out);
        const MatrixView<float> x = columns_of(rows, 0, inner);
        make_steps(run.executor(), run.view(dt), run.vector(kDt).data(),
                   narrow_matrix<kA>(run, rates), run.view(decays), run.view(betas));
        ops::delta_rule<false>(
            run.executor(), heads, columns_of(rows, inner + key_dim, key_dim),
            columns_of(rows, inner, key_dim), x, run.view(decays), run.view(betas),
            run.step_args().segments,
            [&](const Segment& segment) { return run.chunk_state_of(segment, state).data(); },
            [&](const Segment& segment) { return run.state_of(segment, state).data() + n_conv; },
            to);
        const float* const d = narrow_matrix<kD>(run, direct);
        const auto add = simd::kernel<kernels::AddScaled>();
        ops::for_rows(run.executor(), to.extent(0), inner, [&](Index row) {
          for (Index head = 0; head < heads.n_heads; ++head) {
            const Index at = head * heads.state.value_dim;
            add(&x(row, at), d[head], &to(row, at), heads.state.value_dim);
          }
        });
        ops::activate_gated<kernels::Silu>(run.executor(), run.view(z), to, to);
        ops::rms_norm(run.executor(), MatrixView<const float>(to), run.vector(kNorm), eps, to);
      },
      mixed, z, dt, decays, betas, out, rates, direct);
  return out;
}

// ---- Attention with a gate ---------------------------------------------------------------------

template <class H, class Body, class Pass, Index Q, Index K>
constexpr auto apply(const GatedAttention<H, Body>& node, Pass& pass,
                     const Qkv<Q, K>& qkv) noexcept {
  const auto both = std::get<0>(qkv);
  const Index n_heads = pass.resolve(node.heads.n_heads);
  const Index head_dim = pass.resolve(node.heads.head_dim);
  if (both.width != 2 * n_heads * head_dim) {
    pass.fail("gated_attention(): q and its gate are not two values for each of the heads");
  }
  const auto q = pass.make(Dim<>{n_heads * head_dim}, both.rows);
  const auto gate = pass.make(Dim<>{n_heads * head_dim}, both.rows);
  pass.step(
      [=](auto& run) {
        const MatrixView<float> from = run.view(both), to = run.view(q), to_gate = run.view(gate);
        const auto bytes = static_cast<std::size_t>(head_dim) * sizeof(float);
        ops::for_rows(run.executor(), from.extent(0), from.extent(1), [&](Index row) {
          for (Index head = 0; head < n_heads; ++head) {
            const float* const pair = &from(row, 2 * head * head_dim);
            std::memcpy(&to(row, head * head_dim), pair, bytes);
            std::memcpy(&to_gate(row, head * head_dim), pair + head_dim, bytes);
          }
        });
      },
      both, q, gate, std::get<1>(qkv), std::get<2>(qkv));
  const auto out = apply(node.body, pass, std::tuple{q, std::get<1>(qkv), std::get<2>(qkv)});
  if (out.width != n_heads * head_dim || out.rows != both.rows) {
    pass.fail("gated_attention(): the body does not give rows like q");
  }
  pass.step(
      [=](auto& run) {
        ops::activate<kernels::Sigmoid>(run.executor(), run.view(gate), run.view(gate));
        ops::multiply(run.executor(), run.view(out), run.view(gate), run.view(out));
      },
      gate, out);
  return out;
}

}}}  // namespace nibble::NIBBLE_ABI::graph
