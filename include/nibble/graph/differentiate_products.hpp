// SPDX-License-Identifier: Apache-2.0
//
// The way back through products and norms; see differentiate.hpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "nibble/graph/apply_products.hpp"
#include "nibble/graph/f32_rows.hpp"
#include "nibble/graph/gradient.hpp"
#include "nibble/ops/gemm.hpp"
#include "nibble/ops/norm_back.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

// ---- Products ----------------------------------------------------------------------------------
// y = x · Wᵀ + bias, so dx = dy · W and dW = dyᵀ · x. Weights that are rows of f32 are multiplied
// as they are. Packed ones (deployed formats, a base that adapters stand beside) run the kernels of
// inference; on the way back their values are read as f32: gradients pass straight through
// rounding, of weights and of inputs; those of inputs beyond a static range (Weight::input) are
// zero, if the weights are trained. Factors, y += scale · A · (B · x), are rows of f32: with u = B
// · x and du = scale · Aᵀ · dy, dA = scale · dyᵀ · u, dB = duᵀ · x and dx += du · B; u is computed
// again on the way back.
// With dropout the factors read x with elements dropped, and the matrix beside them x itself
// (PEFT's lora_dropout).

namespace detail {

// The memory of one product besides its input and output, on its way forward or back.
struct ProductMemory {
  Scratch codes;    // forward: the input as 8-bit codes
  Scratch dense;    // back: a packed matrix as f32
  Scratch inner;    // B · x, and back its gradient, (rows, rank) each
  Scratch dropped;  // x with elements dropped, then the gradient of that
  Scratch gemm;
  Scratch sums;  // back: of a bias
  // Of the elements that are dropped, and where their numbers are drawn.
  float dropout = 0;
  Index place = 0;
};

enum class Way : unsigned char { forward, back };

// For `rows` rows of a product with a matrix (n, k).
template <Way kWay, class Pass>
constexpr ProductMemory product_memory(Pass& pass, Index n, Index k, Rows rows,
                                       Index place) noexcept {
  constexpr bool kIsBack = kWay == Way::back;
  const TrainingLimits& limits = pass.training_limits();
  const Index m = pass.count(rows), rank = limits.limits.max_rank;
  const auto floats = [&](Index a, Index b) -> std::size_t {
    const bool fits = a >= 0 && b >= 0 && (a == 0 || b <= kMaxValueBytes / 4 / a);
    if (!fits) pass.fail("a matrix as f32 is too large for the address space");
    return fits ? static_cast<std::size_t>(a * b) * sizeof(float) : 0;
  };
  ProductMemory memory;
  if (limits.packed_weights) {
    if constexpr (kIsBack) {
      memory.dense = pass.scratch(floats(n, k));
    } else {
      memory.codes = quantized_scratch(pass, k, rows);
    }
  }
  memory.inner = pass.scratch(rank > 0 ? floats(kIsBack ? 2 * m : m, rank) : 0);
  memory.dropout = rank > 0 ? limits.factor_dropout : 0;
  memory.dropped = pass.scratch(memory.dropout > 0 ? floats(m, k) : 0);
  memory.place = place;
  // Whatever the product is: the sides of all of them are among these.
  const Index widest = (std::max)({n, k, rank});
  const auto gemm_bytes = [&](Index of_rows, Index depth) {
    return ops::gemm_scratch_bytes_up_to(of_rows, widest, depth, limits.limits.max_workers);
  };
  memory.gemm = pass.scratch(kIsBack ? (std::max)(gemm_bytes(m, widest), gemm_bytes(widest, m))
                                     : gemm_bytes(m, widest));
  if constexpr (kIsBack) memory.sums = pass.scratch(ops::row_sum_scratch_bytes(m, n));
  return memory;
}

inline MatrixView<const float> f32_rows(const Weight& w) noexcept {
  NIBBLE_ASSERT(is_f32_rows(w));
  return MatrixView<const float>(reinterpret_cast<const float*>(w.data), w.n, w.k);
}

// A matrix as rows of f32: itself, or unpacked.
template <class Run>
MatrixView<const float> as_f32_rows(const Run& run, const Weight& w,
                                    const ProductMemory& memory) noexcept {
  if (is_f32_rows(w)) return f32_rows(w);
  auto* const out = reinterpret_cast<float*>(run.memory(memory.dense).data());
  ops::for_rows(run.executor(), w.n, w.k,
                [&](Index i) { w.ops->row(w.data, w.n, w.k, i, out + i * w.k); });
  return MatrixView<const float>(out, w.n, w.k);
}

// B · x and its gradient.
template <class Run>
MatrixView<float> inner_rows(const Run& run, const ProductMemory& memory, const Factors& f, Index m,
                             Index which) noexcept {
  auto* const rows = reinterpret_cast<float*>(run.memory(memory.inner).data());
  return MatrixView<float>(rows + which * m * f.rank(), m, f.rank());
}

// What factors read: x, or, in a step that learns, x with elements dropped.
template <class Run>
MatrixView<const float> factor_input(const Run& run, const ProductMemory& memory,
                                     MatrixView<const float> x) noexcept {
  if (memory.dropout <= 0 || !run.training()) return x;
  auto* const data = reinterpret_cast<float*>(run.memory(memory.dropped).data());
  const MatrixView<float> dropped(data, x.extent(0), x.extent(1));
  ops::dropout(run.executor(), x, run.dropout(memory.dropout, memory.place), dropped);
  return dropped;
}

// y = x · Wᵀ + bias.
template <class Run, class X, class Y>
void product_forward(Run& run, const Weight& w, const float* bias, const X& x, const Y& y,
                     const ProductMemory& memory) noexcept {
  const MatrixView<const float> in = run.view(x);
  const MatrixView<float> out = run.view(y);
  const auto gemm = [&](const auto&... args) {
    ops::gemm(run.executor(), args..., run.memory(memory.gemm));
  };
  if (w.has_base() && !is_f32_rows(w)) {
    Weight base = w;
    base.factors = nullptr;
    run_alone<kernels::Identity, false>(
        run, base, product_input(run, input_form(base), x, memory.codes), bias, out);
  } else {
    if (w.has_base()) gemm(in, ops::transposed(f32_rows(w)), out, ops::GemmOutput::replace);
    if (bias != nullptr) {
      const bool adds = w.has_base();
      ops::for_rows(run.executor(), out.extent(0), out.extent(1), [&](Index i) {
        float* const row = &out(i, 0);
        for (Index j = 0; j < out.extent(1); ++j) row[j] = (adds ? row[j] : 0) + bias[j];
      });
    }
  }
  if (w.factors == nullptr) return;
  const Factors& f = *w.factors;
  const MatrixView<float> u = inner_rows(run, memory, f, in.extent(0), 0);
  gemm(factor_input(run, memory, in), ops::transposed(f32_rows(f.b)), u, ops::GemmOutput::replace);
  ops::scale(run.executor(), u, f.scale, u);
  const bool is_first = !w.has_base() && bias == nullptr;
  gemm(MatrixView<const float>(u), ops::transposed(f32_rows(f.a)), out,
       is_first ? ops::GemmOutput::replace : ops::GemmOutput::add);
}

// Sets the gradients of inputs to zero that are beyond their range by more than half a step: their
// codes stay the same when they change.
inline void clear_clipped(Executor& executor, const quant::StaticScale& range,
                          MatrixView<const float> x, MatrixView<float> dx) noexcept {
  const auto bound = [&](std::int32_t stored, float half) {
    return range.scale * (static_cast<float>(stored - range.stored_zero()) + half);
  };
  const float low = bound(range.stored_low(), -0.5f), high = bound(range.stored_high(), 0.5f);
  const Index n = dx.extent(1);
  ops::for_rows(executor, dx.extent(0), n, [&](Index i) {
    const float* const in = &x(i, 0);
    float* const out = &dx(i, 0);
    for (Index j = 0; j < n; ++j) out[j] = in[j] < low || in[j] > high ? 0.0f : out[j];
  });
}

// The gradients of what product_forward() read, from those of y.
template <class Run, class X>
void product_back(Run& run, const Weight& w, const WeightGradient& gradient, float* bias_gradient,
                  const X& x, const Gradient& dy, const Gradient& dx,
                  const ProductMemory& memory) noexcept {
  const MatrixView<const float> back = run.view(dy);
  const MatrixView<float> out = run.view(dx);
  const auto gemm = [&](const auto&... args) {
    ops::gemm(run.executor(), args..., run.memory(memory.gemm));
  };
  if (bias_gradient != nullptr) {
    ops::bias_back(run.executor(), back, VectorView<float>(bias_gradient, back.extent(1)),
                   run.memory(memory.sums));
  }
  if (gradient.values != nullptr) {
    gemm(ops::transposed(back), MatrixView<const float>(run.view(x)),
         MatrixView<float>(gradient.values, w.n, w.k), ops::GemmOutput::add);
  }
  if (w.has_base()) {
    gemm(back, as_f32_rows(run, w, memory), out, ops::GemmOutput::replace);
    if (w.input && gradient.values != nullptr) {  // x is kept for trained weights only
      clear_clipped(run.executor(), w.input, MatrixView<const float>(run.view(x)), out);
    }
  }
  if (w.factors == nullptr) return;
  const Factors& f = *w.factors;
  const Index m = back.extent(0);
  const MatrixView<float> u = inner_rows(run, memory, f, m, 0);
  const MatrixView<float> du = inner_rows(run, memory, f, m, 1);
  gemm(back, f32_rows(f.a), du, ops::GemmOutput::replace);
  ops::scale(run.executor(), du, f.scale, du);
  MatrixView<const float> in;  // only what trained factors read is kept
  if (gradient.factor_a != nullptr || gradient.factor_b != nullptr) {
    in = factor_input(run, memory, run.view(x));
  }
  if (gradient.factor_a != nullptr) {
    gemm(in, ops::transposed(f32_rows(f.b)), u, ops::GemmOutput::replace);
    ops::scale(run.executor(), u, f.scale, u);
    gemm(ops::transposed(back), MatrixView<const float>(u),
         MatrixView<float>(gradient.factor_a, w.n, f.rank()), ops::GemmOutput::add);
  }
  if (gradient.factor_b != nullptr) {
    gemm(ops::transposed(MatrixView<const float>(du)), in,
         MatrixView<float>(gradient.factor_b, f.rank(), w.k), ops::GemmOutput::add);
  }
  const auto how = w.has_base() ? ops::GemmOutput::add : ops::GemmOutput::replace;
  if (memory.dropout <= 0) {
    gemm(MatrixView<const float>(du), f32_rows(f.b), out, how);
    return;
  }
  auto* const data = reinterpret_cast<float*>(run.memory(memory.dropped).data());
  const MatrixView<float> dropped(data, m, w.k);
  gemm(MatrixView<const float>(du), f32_rows(f.b), dropped, ops::GemmOutput::replace);
  const kernels::Dropout same = run.dropout(memory.dropout, memory.place);
  if (w.has_base()) {
    ops::dropout(run.executor(), dropped, same, dropped);
    ops::add(run.executor(), out, dropped, out);
  } else {
    ops::dropout(run.executor(), dropped, same, out);
  }
}

// Whether the gradient of some weights in a slot needs the rows that they are multiplied by.
template <auto kSlot, class Pass>
constexpr bool is_trained(const Pass& pass) noexcept {
  const TrainingLimits& limits = pass.training_limits();
  const auto slot = enumerator_of(kSlot);
  bool is = limits.trained.has(slot) || limits.factored.has(slot);
  if constexpr (requires { kSlot.other; }) is = is || limits.trained.has(kSlot.other);
  return is;
}

}  // namespace detail

template <auto kW, auto kB, Index W, class Pass, Index K, class Rest>
constexpr Gradient differentiate(const Linear<kW, kB, W>& node, Pass& pass, const Value<K>& x,
                                 const Rest& rest) noexcept {
  declare_products(node, pass, x.width);
  const auto y = make_outputs(node, pass, x.rows);
  const Index n = y.width, k = x.width;
  const Index place = pass.training_limits().factor_dropout > 0 ? pass.place() : 0;
  const auto forward = detail::product_memory<detail::Way::forward>(pass, n, k, x.rows, place);
  pass.step(
      [=](auto& run) {
        observe_products(node, run, x);
        detail::product_forward(run, run.weight(kW), bias_of<kB>(run), x, y, forward);
      },
      x, y, forward.codes, forward.inner, forward.dropped, forward.gemm);
  const Gradient dy = rest(y);
  const Gradient dx = pass.make(Dim<>{x.width}, x.rows);
  const auto back = detail::product_memory<detail::Way::back>(pass, n, k, x.rows, place);
  // Where nothing is trained, x is not kept.
  const Gradient kept = detail::is_trained<kW>(pass) ? as_gradient(x) : Gradient{};
  pass.step(
      [=](auto& run) {
        detail::product_back(run, run.weight(kW), run.gradient(kW), run.gradient(kB).values, x, dy,
                             dx, back);
      },
      kept, dy, dx, back.dense, back.inner, back.dropped, back.gemm, back.sums);
  return dx;
}

// ---- Norms -------------------------------------------------------------------------------------

namespace detail {

template <class Run, auto kW, class X>
void norm_back(const RmsNorm<kW>& node, Run& run, const X& x, const Gradient& dy,
               const Gradient& dx, std::span<std::byte> sums) noexcept {
  ops::rms_norm_back(run.executor(), run.view(x), run.vector(kW), node.eps, run.view(dy),
                     run.view(dx), vector_gradient(run, kW), sums);
}
template <class Run, auto kW, auto kB, class X>
void norm_back(const LayerNorm<kW, kB>& node, Run& run, const X& x, const Gradient& dy,
               const Gradient& dx, std::span<std::byte> sums) noexcept {
  ops::layer_norm_back(run.executor(), run.view(x), run.vector(kW), node.eps, run.view(dy),
                       run.view(dx), vector_gradient(run, kW), vector_gradient(run, kB), sums);
}

template <class Norm, class Pass, Index W, class Rest>
constexpr Gradient differentiate_norm(const Norm& node, Pass& pass, const Value<W>& x,
                                      const Rest& rest) noexcept {
  const Gradient dy = rest(apply(node, pass, x));
  const Gradient dx = pass.make(Dim<>{x.width}, x.rows);
  const Scratch sums = pass.scratch(ops::norm_back_scratch_bytes(pass.count(x.rows), x.width));
  pass.step([=](auto& run) { norm_back(node, run, x, dy, dx, run.memory(sums)); }, x, dy, dx, sums);
  return dx;
}

}  // namespace detail

template <auto kW, class Pass, Index W, class Rest>
constexpr Gradient differentiate(const RmsNorm<kW>& node, Pass& pass, const Value<W>& x,
                                 const Rest& rest) noexcept {
  return detail::differentiate_norm(node, pass, x, rest);
}
template <auto kW, auto kB, class Pass, Index W, class Rest>
constexpr Gradient differentiate(const LayerNorm<kW, kB>& node, Pass& pass, const Value<W>& x,
                                 const Rest& rest) noexcept {
  return detail::differentiate_norm(node, pass, x, rest);
}

}}}  // namespace nibble::NIBBLE_ABI::graph
