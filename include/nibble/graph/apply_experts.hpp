// SPDX-License-Identifier: Apache-2.0
//
// The meaning of the nodes of mixture-of-experts layers; see pass.hpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <tuple>
#include <type_traits>

#include "nibble/core/arena.hpp"
#include "nibble/core/libm.hpp"
#include "nibble/graph/apply_products.hpp"
#include "nibble/graph/experts.hpp"
#include "nibble/graph/pass.hpp"
#include "nibble/ops/rows.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

namespace detail {

// The working memory of an Experts node. Pairs of a row and one of its experts are in the order of
// experts; a batch of them, all pairs of some experts, is computed at a time.
struct ExpertMemory {
  Index rows = 0;
  Index n_experts = 0;
  Index n_used = 0;
  Index k = 0;
  Index ffn_dim = 0;
  Index width = 0;
  bool has_codes = false;

  // Pairs of a batch: one expert may have all rows.
  constexpr Index batch() const noexcept {
    return (std::max)(rows, static_cast<Index>(ops::kMaxProducts));
  }
  constexpr bool is_sound() const noexcept {
    const Index widest = (std::max)({k, ffn_dim, width, n_experts, Index{1}});
    return k > 0 && ffn_dim > 0 && width > 0 && n_used > 0 && rows > 0 &&
           widest <= kMaxBytes / 64 / batch() && n_used <= kMaxBytes / 64 / rows;
  }
  constexpr std::size_t bytes() const noexcept {
    if (!is_sound()) return static_cast<std::size_t>(kMaxBytes);
    const auto pairs = static_cast<std::size_t>(rows * n_used);
    const auto floats = [&](Index columns) {
      return align_up(static_cast<std::size_t>(batch() * columns) * sizeof(float));
    };
    return align_up(pairs * sizeof(std::int32_t)) + align_up(pairs * sizeof(float)) +
           2 * align_up(pairs * sizeof(Index)) +
           align_up(static_cast<std::size_t>(n_experts + 1) * sizeof(Index)) +
           align_up(static_cast<std::size_t>(n_used) * sizeof(float)) + floats(k) +
           2 * floats(ffn_dim) + floats(width) + codes(k) + codes(ffn_dim);
  }
  constexpr std::size_t codes(Index columns) const noexcept {
    if (!has_codes) return 0;
    return align_up(ops::QuantizedRows<kActivationBlock>::bytes_needed(batch(), columns));
  }
};

// The parts of that memory.
struct ExpertBuffers {
  std::int32_t* experts;  // (rows, n_used), ascending in each row
  float* weights;         // the same
  Index* places;          // the same: where the pair is in the order of experts
  Index* pairs;           // in the order of experts: row * n_used + which of its experts
  Index* starts;          // (n_experts + 1): where the pairs of an expert begin
  float* given;           // (n_used)
  float* input;           // (batch, k)
  float* gate;            // (batch, ffn_dim)
  float* up;              // the same
  float* result;          // (batch, width)
  std::span<std::byte> input_codes;
  std::span<std::byte> inner_codes;

  ExpertBuffers(std::span<std::byte> memory, const ExpertMemory& m) noexcept {
    Arena arena(memory);
    const auto n_pairs = static_cast<std::size_t>(m.rows * m.n_used);
    const auto floats = [&](Index columns) {
      return arena.take<float>(static_cast<std::size_t>(m.batch() * columns));
    };
    experts = arena.take<std::int32_t>(n_pairs);
    weights = arena.take<float>(n_pairs);
    places = arena.take<Index>(n_pairs);
    pairs = arena.take<Index>(n_pairs);
    starts = arena.take<Index>(static_cast<std::size_t>(m.n_experts + 1));
    given = arena.take<float>(static_cast<std::size_t>(m.n_used));
    input = floats(m.k);
    gate = floats(m.ffn_dim);
    up = floats(m.ffn_dim);
    result = floats(m.width);
    input_codes = {arena.take<std::byte>(m.codes(m.k)), m.codes(m.k)};
    inner_codes = {arena.take<std::byte>(m.codes(m.ffn_dim)), m.codes(m.ffn_dim)};
  }
};

// Experts that are computed together: (experts, pairs from `begin` on).
struct ExpertBatch {
  Index expert[ops::kMaxProducts];
  std::size_t n = 0;
  Index begin = 0;
  Index end = 0;
};

// The next experts that have pairs, from `expert` on, which it moves: as many as there is room for.
inline ExpertBatch next_batch(const Index* starts, Index n_experts, Index room,
                              Index& expert) noexcept {
  ExpertBatch batch;
  batch.begin = batch.end = starts[expert];
  for (; expert < n_experts && batch.n < ops::kMaxProducts; ++expert) {
    const Index end = starts[expert + 1];
    if (end == batch.end) continue;
    if (end - batch.begin > room) break;
    batch.expert[batch.n++] = expert;
    batch.end = end;
  }
  return batch;
}

// Where each pair of a row and an expert stands in the order of experts.
inline void sort_pairs(const ExpertBuffers& b, Index n_pairs, Index n_experts) noexcept {
  for (Index e = 0; e <= n_experts; ++e) b.starts[e] = 0;
  for (Index i = 0; i < n_pairs; ++i) ++b.starts[b.experts[i] + 1];
  for (Index e = 0; e < n_experts; ++e) b.starts[e + 1] += b.starts[e];
  for (Index i = 0; i < n_pairs; ++i) {
    const Index place = b.starts[b.experts[i]]++;
    b.places[i] = place;
    b.pairs[place] = i;
  }
  for (Index e = n_experts; e > 0; --e) b.starts[e] = b.starts[e - 1];
  b.starts[0] = 0;
}

}  // namespace detail

// ---- Gates -------------------------------------------------------------------------------------

// gate = Activation(gate) * up.
template <class Activation, class Run>
void gate_rows(const Run& run, MatrixView<float> gate, MatrixView<float> up) noexcept {
  if constexpr (std::is_same_v<Activation, ClampedSwiglu>) {
    constexpr float kSlope = ClampedSwiglu::kSlope, kLimit = ClampedSwiglu::kLimit;
    ops::for_rows(run.executor(), gate.extent(0), gate.extent(1), [&](Index i) {
      float *const g = &gate(i, 0), *const u = &up(i, 0);
      for (Index j = 0; j < gate.extent(1); ++j) {
        g[j] = kSlope * (g[j] > kLimit ? kLimit : g[j]);
        u[j] = ((u[j] > kLimit ? kLimit : u[j] < -kLimit ? -kLimit : u[j]) + 1) / kSlope;
      }
    });
    ops::activate_gated<kernels::Silu>(run.executor(), MatrixView<const float>(gate),
                                       MatrixView<const float>(up), gate);
  } else {
    ops::activate_gated<Activation>(run.executor(), MatrixView<const float>(gate),
                                    MatrixView<const float>(up), gate);
  }
}

// ---- Experts -----------------------------------------------------------------------------------

// The biases of an expert in a slot; null if there are none.
template <auto kSlot, class Run>
const float* expert_bias(const Run& run, [[maybe_unused]] Index expert) noexcept {
  if constexpr (!kIsNone<kSlot>) {
    if (const Weight& bias = run.weight(kSlot)) return bias.expert(expert).vector();
  }
  return nullptr;
}

// Chooses experts for rows [0, m) of `scores`, the router's logits.
template <class Slots, class Run>
void route_rows(const Run& run, const Routing& routing, MatrixView<float> scores,
                const detail::ExpertBuffers& b) noexcept {
  const float* const bias = bias_of<Slots::choice_bias>(run);
  const float* const factors = bias_of<Slots::scale>(run);
  const auto n_used = static_cast<std::size_t>(routing.n_used);
  const auto route = [&](Index row, const float* given) {
    const Index at = row * routing.n_used;
    ops::route_row(routing, {&scores(row, 0), static_cast<std::size_t>(routing.n_experts)}, bias,
                   given, {b.experts + at, n_used}, {b.weights + at, n_used});
    for (Index i = at; factors != nullptr && i < at + routing.n_used; ++i) {
      b.weights[i] *= factors[b.experts[i]];
    }
  };
  bool has_table = false;
  if constexpr (!kIsNone<Slots::of_token>) {
    const Weight& table = run.weight(Slots::of_token);
    has_table = static_cast<bool>(table);
    for (Index row = 0; has_table && row < scores.extent(0); ++row) {
      const Index token = run.step_args().tokens[static_cast<std::size_t>(row)];
      if (token >= 0) table.ops->row(table.data, table.n, table.k, token, b.given);
      route(row, token >= 0 ? b.given : nullptr);
    }
  }
  constexpr Index kWork = 16;  // an exponential takes as long as so many other values
  if (has_table) return;
  ops::for_rows(run.executor(), scores.extent(0), kWork * routing.n_experts,
                [&](Index row) { route(row, nullptr); });
}

// b.gate = Activation(gate · input) * (up · input) for a batch. first: the row of the input that
// belongs to the batch's first pair; all pairs share row 0 with `is_one_row`.
template <class Slots, class Activation, class Run>
void run_gates(const Run& run, const detail::ExpertBatch& batch, const detail::ExpertBuffers& b,
               MatrixView<float> input, bool is_one_row, Index ffn_dim) noexcept {
  const auto make = [&](const InputForm& form) {
    if (form.kind == InputKind::floats) return float_input(input);
    return code_input(form, b.input_codes, input.extent(0), input.extent(1), [&](const auto& rows) {
      ops::quantize_rows(run.executor(), MatrixView<const float>(input), rows);
    });
  };
  ProductInputs inputs(make);
  const Weight &gate = run.weight(Slots::gate), &up = run.weight(Slots::up);
  const Index n_pairs = batch.end - batch.begin;
  const auto for_each = [&](MatrixView<float> out, const auto& append) {
    ProductList list;
    for (std::size_t i = 0; i < batch.n; ++i) {
      const Index e = batch.expert[i];
      const Index at = b.starts[e] - batch.begin, n = b.starts[e + 1] - b.starts[e];
      append(list, e, is_one_row ? 0 : at, out.rows(at, n));
    }
    list.run(run);
  };
  const MatrixView<float> gated(b.gate, n_pairs, ffn_dim), others(b.up, n_pairs, ffn_dim);
  if constexpr (kIsNone<Slots::gate_bias> && kIsNone<Slots::up_bias> &&
                !std::is_same_v<Activation, ClampedSwiglu>) {
    if (gate.ops == up.ops && input_form(gate) == input_form(up)) {
      for_each(gated, [&](ProductList& list, Index e, Index at, MatrixView<float> out) {
        list.append(up.expert(e), inputs.of(up).rows_from(at), out,
                    simd::kernel<kernels::FinishGatedTile<Activation>>(), {});
        list.set_gate(gate.expert(e));
      });
      return;
    }
  }
  const auto append = [&]<auto kBias>(const Weight& weight, MatrixView<float> to) {
    for_each(to, [&](ProductList& list, Index e, Index at, MatrixView<float> out) {
      kernels::EpilogueArgs operands;
      operands.bias = expert_bias<kBias>(run, e);
      list.append(weight.expert(e), inputs.of(weight).rows_from(at), out,
                  operands.bias != nullptr ? finish_of<kernels::Identity, true, false>()
                                           : finish_of<kernels::Identity, false, false>(),
                  operands);
    });
  };
  append.template operator()<Slots::gate_bias>(gate, gated);
  append.template operator()<Slots::up_bias>(up, others);
  gate_rows<Activation>(run, gated, others);
}

// b.result = down · b.gate for a batch.
template <class Slots, class Run>
void run_downs(const Run& run, const detail::ExpertBatch& batch, const detail::ExpertBuffers& b,
               Index ffn_dim, Index width) noexcept {
  const Index n_pairs = batch.end - batch.begin;
  const Weight& down = run.weight(Slots::down);
  const MatrixView<float> inner(b.gate, n_pairs, ffn_dim), result(b.result, n_pairs, width);
  const InputForm form = input_form(down);
  const kernels::MatmulInput input =
      form.kind == InputKind::floats
          ? float_input(inner)
          : code_input(form, b.inner_codes, n_pairs, ffn_dim, [&](const auto& rows) {
              ops::quantize_rows(run.executor(), MatrixView<const float>(inner), rows);
            });
  ProductList list;
  for (std::size_t i = 0; i < batch.n; ++i) {
    const Index e = batch.expert[i];
    const Index at = b.starts[e] - batch.begin, n = b.starts[e + 1] - b.starts[e];
    kernels::EpilogueArgs operands;
    operands.bias = expert_bias<Slots::down_bias>(run, e);
    list.append(down.expert(e), input.rows_from(at), result.rows(at, n),
                operands.bias != nullptr ? finish_of<kernels::Identity, true, false>()
                                         : finish_of<kernels::Identity, false, false>(),
                operands);
  }
  list.run(run);
}

// out = the sum over the experts of each row. scores: the router's logits, which are overwritten.
// The sums of a row are in the order of its experts, whatever other rows there are.
template <class Slots, class Activation, class Run>
void run_experts(const Run& run, const Routing& routing, const detail::ExpertMemory& sizes,
                 std::span<std::byte> memory, MatrixView<float> x, MatrixView<float> scores,
                 MatrixView<float> out) noexcept {
  const detail::ExpertBuffers b(memory, sizes);
  const Index m = x.extent(0), n_used = routing.n_used;
  route_rows<Slots>(run, routing, scores, b);
  detail::sort_pairs(b, m * n_used, routing.n_experts);
  const bool is_one_row = m == 1;  // then it is the input of all its experts
  for (Index expert = 0; expert < routing.n_experts;) {
    const detail::ExpertBatch batch =
        detail::next_batch(b.starts, routing.n_experts, sizes.batch(), expert);
    MatrixView<float> input = x;
    if (!is_one_row) {
      input = MatrixView<float>(b.input, batch.end - batch.begin, x.extent(1));
      ops::for_rows(run.executor(), input.extent(0), x.extent(1), [&](Index i) {
        const Index row = b.pairs[batch.begin + i] / n_used;
        std::memcpy(&input(i, 0), &x(row, 0),
                    static_cast<std::size_t>(x.extent(1)) * sizeof(float));
      });
    }
    if (batch.n > 0) {
      run_gates<Slots, Activation>(run, batch, b, input, is_one_row, sizes.ffn_dim);
      run_downs<Slots>(run, batch, b, sizes.ffn_dim, sizes.width);
    }
    ops::for_rows(run.executor(), m, n_used * sizes.width, [&](Index row) {
      float* const sum = &out(row, 0);
      for (Index i = row * n_used; i < (row + 1) * n_used; ++i) {
        const bool is_first = i == row * n_used;
        if (b.places[i] < batch.begin || b.places[i] >= batch.end) continue;
        const float* const y = b.result + (b.places[i] - batch.begin) * sizes.width;
        const float weight = b.weights[i];
        for (Index j = 0; j < sizes.width; ++j) sum[j] = (is_first ? 0 : sum[j]) + weight * y[j];
      }
    });
  }
}

template <class Slots, class Activation, Index W, class Pass, Index U, Index V>
constexpr auto apply_experts(const Experts<Slots, Activation, W>& node, Pass& pass,
                             const Value<U>& routed, const Value<V>& x) noexcept {
  const Routing routing = node.routing;
  const Index ffn_dim = node.ffn_dim;
  const auto width = pass.resolve(node.width);
  if (const char* const error = ops::routing_error(routing)) pass.fail(error);
  if (ffn_dim < 1) pass.fail("experts: their matrices have no rows");
  const Linear<Slots::router, Slots::router_bias, kDynamic> router{{}, Dim<>{routing.n_experts}};
  if (routed.rows != x.rows) pass.fail("experts: output_rows() in one of a pair only");
  declare_products(router, pass, routed.width);
  pass.template weight<Slots::choice_bias>(0, routing.n_experts);
  pass.template weight<Slots::scale>(0, routing.n_experts);
  pass.template weight<Slots::gate>(ffn_dim, x.width, routing.n_experts);
  pass.template weight<Slots::gate_bias>(0, ffn_dim, routing.n_experts);
  pass.template weight<Slots::up>(ffn_dim, x.width, routing.n_experts);
  pass.template weight<Slots::up_bias>(0, ffn_dim, routing.n_experts);
  pass.template weight<Slots::down>(width, ffn_dim, routing.n_experts);
  pass.template weight<Slots::down_bias>(0, width, routing.n_experts);
  if constexpr (!kIsNone<Slots::of_token>) {
    pass.template weight_rows<Slots::of_token>(node.n_tokens, routing.n_used, RowsOf::tokens);
    if (x.rows != Rows::all) pass.fail("experts by token after output_rows() or pool()");
  }
  const auto scores = make_outputs(router, pass, x.rows);
  const auto out = pass.make(width, x.rows);
  const Scratch codes = quantized_scratch(pass, routed.width, x.rows);
  const detail::ExpertMemory sizes{
      pass.count(x.rows),       routing.n_experts, routing.n_used, x.width, ffn_dim, width,
      pass.limits().code_inputs};
  const Scratch scratch = pass.scratch(sizes.bytes());
  pass.step(
      [=](auto& run) {
        observe_products(router, run, routed);
        const auto make = [&](const InputForm& form) {
          return product_input(run, form, routed, codes);
        };
        ProductInputs inputs(make);
        run_products(router, run, inputs, scores);
        run_experts<Slots, Activation>(run, routing, sizes, run.memory(scratch), run.view(x),
                                       run.view(scores), run.view(out));
      },
      routed, x, scores, codes, scratch, out);
  return out;
}
template <class Slots, class Activation, Index W, class Pass, Index V>
constexpr auto apply(const Experts<Slots, Activation, W>& node, Pass& pass,
                     const Value<V>& x) noexcept {
  return apply_experts(node, pass, x, x);
}
template <class Slots, class Activation, Index W, class Pass, Index U, Index V>
constexpr auto apply(const Experts<Slots, Activation, W>& node, Pass& pass,
                     const std::tuple<Value<U>, Value<V>>& pair) noexcept {
  return apply_experts(node, pass, std::get<0>(pair), std::get<1>(pair));
}

template <class Pass, Index V, Index W>
constexpr auto apply(const SigmoidRows&, Pass& pass,
                     const std::tuple<Value<V>, Value<W>>& pair) noexcept {
  const auto x = std::get<0>(pair);
  const auto s = std::get<1>(pair);
  if (s.width != 1) pass.fail("sigmoid_rows(): more than one number for each row");
  if (x.rows != s.rows) pass.fail("sigmoid_rows(): output_rows() in one of the two only");
  if (x.is_shared) pass.fail("sigmoid_rows() would write to rows that others still need");
  pass.step(
      [=](auto& run) {
        const MatrixView<float> rows = run.view(x), logits = run.view(s);
        for (Index i = 0; i < rows.extent(0); ++i) {
          const double share = 1 / (1 + libm::exp(-static_cast<double>(logits(i, 0))));
          ops::scale(run.executor(), rows.rows(i, 1), static_cast<float>(share), rows.rows(i, 1));
        }
      },
      x, s);
  return x;
}

}}}  // namespace nibble::NIBBLE_ABI::graph
