// SPDX-License-Identifier: Apache-2.0
//
// Reverse mode over an expression, by continuation: a node computes its rows as inference does
// (apply.hpp), calls `rest` with them, which is everything behind the node, there and back, and
// gets the gradient of its rows; it then adds to the gradients of its weights and returns the
// gradient of what it was given.
//
//   differentiate(node, pass, x, rest) -> gradient of x;   rest(y) -> gradient of y
//
// The outermost `rest` is the loss. What must be kept for the way back needs no notion of its own:
// a step behind the call of `rest` names it, so the plan keeps it; weights that are not trained
// name nothing, and nothing is kept for them. (C. Elliott, "The Simple Essence of Automatic
// Differentiation", 2018; F. Wang et al., "Demystifying Differentiable Programming: Shift/Reset the
// Penultimate Backpropagator", 2019.)
//
// Two rules make every order of nodes right. A node keeps its inputs, not its outputs (if it must,
// it hands them on as shared); a node that works in place in inference does so here only if its
// rows are not shared, and takes a copy otherwise. And a gradient is not changed once it was handed
// on.
//
// The expression is the one that an architecture gives, before fuse(). A node without a rule is a
// compile error that names it; a program's own node has a differentiate() beside its apply().
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "nibble/graph/apply.hpp"
#include "nibble/graph/differentiate_attention.hpp"
#include "nibble/graph/differentiate_products.hpp"
#include "nibble/ops/activation_back.hpp"
#include "nibble/ops/embedding_back.hpp"
#include "nibble/ops/norm_back.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

// ---- Mistakes ----------------------------------------------------------------------------------

template <Expr Node, class Pass, class In, class Rest>
constexpr Gradient differentiate(const Node&, Pass&, const In&, const Rest&) noexcept {
  static_assert(detail::kNever<Node, In>,
                "nibble: there is no backward rule for this node (Node = ...) behind what stands "
                "before it (In = ...); a node of your own needs a differentiate() beside its type. "
                "Expressions are trained as they are written, before fuse()");
  return {};
}

// ---- Composition -------------------------------------------------------------------------------

template <std::size_t kFirst = 0, class Nodes, class Pass, class In, class Rest>
NIBBLE_COLD constexpr auto differentiate_from(const Nodes& nodes, Pass& pass, const In& in,
                                              const Rest& rest) noexcept {
  if constexpr (kFirst == std::tuple_size_v<Nodes>) {
    return rest(in);
  } else {
    return differentiate(std::get<kFirst>(nodes), pass, in, [&](const auto& out) {
      return differentiate_from<kFirst + 1>(nodes, pass, out, rest);
    });
  }
}
template <class... Nodes, class Pass, class In, class Rest>
constexpr auto differentiate(const Seq<Nodes...>& node, Pass& pass, const In& in,
                             const Rest& rest) noexcept {
  return differentiate_from(node.nodes, pass, in, rest);
}

namespace detail {

// Branch kIndex and those behind it. `done`: results of those before. Writes the gradients of
// results and of the input.
template <std::size_t kIndex, class Branches, class Pass, class In, class Done, class Rest,
          std::size_t N>
NIBBLE_COLD constexpr void differentiate_branches(const Branches& branches, Pass& pass,
                                                  const In& in, const Done& done, const Rest& rest,
                                                  Gradients<N>& of_results,
                                                  Gradients<N>& of_input) noexcept {
  if constexpr (kIndex == N) {
    of_results = rest(done);
  } else {
    of_input[kIndex] = differentiate(std::get<kIndex>(branches), pass, in, [&](const auto& y) {
      differentiate_branches<kIndex + 1>(branches, pass, in, std::tuple_cat(done, std::tuple(y)),
                                         rest, of_results, of_input);
      return of_results[kIndex];
    });
  }
}

}  // namespace detail

template <class... Branches, class Pass, class In, class Rest>
constexpr Gradient differentiate(const Fork<Branches...>& node, Pass& pass, const In& x,
                                 const Rest& rest) noexcept {
  Gradients<sizeof...(Branches)> of_results{}, of_input{};
  detail::differentiate_branches<0>(node.branches, pass, shared(x), std::tuple<>{}, rest,
                                    of_results, of_input);
  Gradient sum = of_input[0];
  if constexpr (!std::is_same_v<In, Start>) {
    for (std::size_t i = 1; i < sizeof...(Branches); ++i) {
      sum = detail::add_gradients(pass, sum, of_input[i]);
    }
  }
  return sum;
}

template <class Body, class Pass, Index W, class Rest>
constexpr Gradient differentiate(const Residual<Body>& node, Pass& pass, const Value<W>& x,
                                 const Rest& rest) noexcept {
  Gradient dz;
  const Gradient dx = differentiate(node.body, pass, shared(x), [&](const auto& y) {
    check_residual<W, decltype(y.width)::kStatic>(pass, x, y, y.width);
    const auto to = y.is_shared ? detail::make_like(pass, y) : y;
    const Value<W> z = {to.id, to.rows, to.column, to.stride, x.width, false};
    pass.step([=](auto& run) { ops::add(run.executor(), run.view(x), run.view(y), run.view(z)); },
              x, y, z);
    dz = rest(z);
    return dz;
  });
  return detail::add_gradients(pass, dx, dz);
}

template <class Body, class Pass, Index W, class Rest>
constexpr Gradient differentiate(const InPlace<Body>& node, Pass& pass, const Value<W>& x,
                                 const Rest& rest) noexcept {
  return differentiate(node.body, pass, shared(x), [&](const auto& y) {
    return rest(Value<W>{y.id, y.rows, y.column, y.stride, x.width, y.is_shared});
  });
}

namespace detail {

// Rows that are `chosen` where the condition holds and `others` elsewhere.
template <class Pass, Index W, class AnyValue>
constexpr Value<W> select_rows(Pass& pass, bool condition, const Value<W>& chosen,
                               const AnyValue& others) noexcept {
  const Value<W> out = make_like(pass, chosen);
  pass.step(
      [=](auto& run) {
        const MatrixView<const float> from =
            condition ? MatrixView<const float>(run.view(chosen)) : run.view(others);
        ops::copy_rows(run.executor(), from, run.view(out));
      },
      chosen, others, out);
  return out;
}
template <class Pass, class... V, class Others>
constexpr auto select_rows(Pass& pass, bool condition, const std::tuple<V...>& chosen,
                           const Others& others) noexcept {
  return [&]<std::size_t... Is>(std::index_sequence<Is...>) {
    return std::tuple{select_rows(pass, condition, std::get<Is>(chosen), std::get<Is>(others))...};
  }
  (std::index_sequence_for<V...>{});
}
template <class Pass, std::size_t N>
constexpr Gradients<N> select_rows(Pass& pass, bool condition, const Gradients<N>& chosen,
                                   const Gradients<N>& others) noexcept {
  Gradients<N> out{};
  for (std::size_t i = 0; i < N; ++i) {
    out[i] = select_rows(pass, condition, chosen[i], others[i]);
  }
  return out;
}

}  // namespace detail

template <class Body, class Pass, class In, class Rest>
constexpr auto differentiate(const When<Body>& node, Pass& pass, const In& x,
                             const Rest& rest) noexcept {
  const bool condition = pass.resolve(node.condition);
  if (node.condition.is_uniform()) {
    // `rest` is the same type either way, so it is compiled once.
    return condition ? differentiate(node.body, pass, x, rest) : rest(x);
  }
  using Back = decltype(rest(x));
  Back dz{};
  bool skips = pass.skips();  // outside of this node
  pass.set_skips(skips || !condition);
  const Back dx = differentiate(node.body, pass, shared(x), [&](const auto& y) {
    pass.set_skips(skips);
    dz = rest(detail::select_rows(pass, condition, y, x));
    skips = pass.skips();
    pass.set_skips(skips || !condition);
    return dz;
  });
  pass.set_skips(skips);
  return detail::select_rows(pass, condition, dx, dz);
}

template <class Body, Index N, class Pass, Index W, class Rest>
constexpr Gradient differentiate(const Repeat<Body, N>& node, Pass& pass, const Value<W>& x,
                                 const Rest& rest) noexcept {
  static_assert(!kHasRepeat<Body>, "nibble: a repeat() within a repeat(): layers are one list");
  enum class Way { through, there, back };
  return pass.scan(
      node.n, x,
      [&](const Value<W>& in, const auto& next) {
        Way way = Way::through;
        Value<W> y;
        Gradient dy;
        const auto turn = [&](const auto& out) {
          y = {out.id, out.rows, out.column, out.stride, in.width, out.is_shared};
          if (way == Way::through) return next(y);
          if (way == Way::back) return dy;
          pass.set_skips(true);  // until the body has returned
          return as_gradient(y);
        };
        if (!pass.training_limits().checkpoints) {
          return differentiate(node.body, pass, shared(in), turn);
        }
        const bool skips = pass.skips();
        const auto places = pass.places();
        way = Way::there;
        differentiate(node.body, pass, shared(in), turn);
        pass.set_skips(skips);
        dy = next(y);
        way = Way::back;
        pass.set_places(places);
        return differentiate(node.body, pass, shared(in), turn);
      },
      rest);
}

// ---- Leaves ------------------------------------------------------------------------------------

template <auto kSlot, Index W, class Pass, class Rest>
constexpr Gradient differentiate(const Embedding<kSlot, W>& node, Pass& pass, Start start,
                                 const Rest& rest) noexcept {
  const Gradient dy = rest(apply(node, pass, start));
  const float scale = node.scale;
  pass.step(
      [=](auto& run) {
        float* const table = run.gradient(kSlot).values;
        if (table == nullptr) return;
        const Weight& w = run.weight(kSlot);
        ops::embedding_back(run.executor(), run.step_args().tokens, run.view(dy), scale,
                            MatrixView<float>(table, w.n, w.k));
      },
      dy);
  return {};
}

template <auto kSlot, Index W, class Pass, class Rest>
constexpr Gradient differentiate(const PositionEmbedding<kSlot, W>& node, Pass& pass, Start start,
                                 const Rest& rest) noexcept {
  const Gradient dy = rest(apply(node, pass, start));
  pass.step(
      [=](auto& run) {
        float* const table = run.gradient(kSlot).values;
        if (table == nullptr) return;
        const Weight& w = run.weight(kSlot);
        const MatrixView<const float> rows = run.view(dy);
        for (const Segment& s : run.step_args().segments) {  // position by position
          const MatrixView<float> to(table + s.first_position * w.k, s.n_rows, w.k);
          ops::add(run.executor(), rows.rows(s.first_row, s.n_rows), to, to);
        }
      },
      dy);
  return {};
}

template <class Activation, class Pass, Index W, class Rest>
constexpr Gradient differentiate(const Activate<Activation>& node, Pass& pass, const Value<W>& x,
                                 const Rest& rest) noexcept {
  const Gradient dy = rest(apply(node, pass, x));
  const Gradient dx = detail::make_like(pass, dy);
  pass.step(
      [=](auto& run) {
        ops::activate_back<Activation>(run.executor(), run.view(x), run.view(dy), run.view(dx));
      },
      x, dy, dx);
  return dx;
}

template <class Pass, Index W, class Rest>
constexpr Gradient differentiate(const Scale& node, Pass& pass, const Value<W>& x,
                                 const Rest& rest) noexcept {
  const float factor = pass.resolve(node.factor);
  if (node.factor.is_uniform() && factor == 1) return rest(x);
  const Gradient dy = rest(apply(node, pass, detail::to_change(pass, x)));
  const Gradient dx = detail::make_like(pass, dy);
  pass.step([=](auto& run) { ops::scale(run.executor(), run.view(dy), factor, run.view(dx)); }, dy,
            dx);
  return dx;
}

template <auto kSlot, class Pass, Index W, class Rest>
constexpr Gradient differentiate(const AddRow<kSlot>& node, Pass& pass, const Value<W>& x,
                                 const Rest& rest) noexcept {
  const Gradient dy = rest(apply(node, pass, detail::to_change(pass, x)));
  const Scratch sums = pass.scratch(ops::row_sum_scratch_bytes(pass.count(x.rows), x.width));
  pass.step(
      [=](auto& run) {
        if (float* const row = run.gradient(kSlot).values) {
          ops::bias_back(run.executor(), run.view(dy), VectorView<float>(row, dy.width),
                         run.memory(sums));
        }
      },
      dy, sums);
  return dy;
}

// tanh' is known from its result, which is kept.
template <class Pass, Index W, class Rest>
constexpr Gradient differentiate(const CapRows& node, Pass& pass, const Value<W>& x,
                                 const Rest& rest) noexcept {
  if (node.cap == 0) return rest(x);
  const float cap = node.cap;
  const Value<W> y = shared(apply(node, pass, detail::to_change(pass, x)));
  const Gradient dy = rest(y);
  const Gradient dx = detail::make_like(pass, dy);
  pass.step(
      [=](auto& run) {
        ops::soft_cap_back(run.executor(), run.view(y), cap, run.view(dy), run.view(dx));
      },
      y, dy, dx);
  return dx;
}

template <class Pass, Index W, class Rest>
constexpr Gradient differentiate(const Dropout& node, Pass& pass, const Value<W>& x,
                                 const Rest& rest) noexcept {
  check_probability(pass, node.probability);
  const float probability = node.probability;
  if (probability == 0) return rest(x);
  const Index place = pass.place();
  const Value<W> y = detail::to_change(pass, x);
  pass.step(
      [=](auto& run) {
        if (!run.training()) return;
        ops::dropout(run.executor(), run.view(y), run.dropout(probability, place), run.view(y));
      },
      y);
  const Gradient dy = rest(y);
  const Gradient dx = detail::make_like(pass, dy);
  pass.step(  // the same elements again
      [=](auto& run) {
        ops::dropout(run.executor(), run.view(dy), run.dropout(probability, place), run.view(dx));
      },
      dy, dx);
  return dx;
}

// ---- Pairs -------------------------------------------------------------------------------------

namespace detail {

// compute(executor, first, second, out) of a pair; back(executor, first, second, dy, dfirst,
// dsecond).
template <class Pass, Index V, Index W, class Rest, class Compute, class Back>
constexpr Gradients<2> differentiate_pair(Pass& pass, const std::tuple<Value<V>, Value<W>>& pair,
                                          const Rest& rest, Compute compute, Back back) noexcept {
  static_assert(kMayBeEqual<V, W>, "nibble: multiply() or sum() of results whose widths differ");
  const auto x = std::get<0>(pair);
  const auto y = std::get<1>(pair);
  if (x.width != y.width) pass.fail("multiply() or sum() of results whose widths differ");
  if (x.rows != y.rows) pass.fail("multiply() or sum(): output_rows() in one of the two only");
  const auto z = make_like(pass, x);
  pass.step([=](auto& run) { compute(run.executor(), run.view(x), run.view(y), run.view(z)); }, x,
            y, z);
  const Gradient dz = rest(z);
  const Gradient dx = make_like(pass, dz), dy = make_like(pass, dz);
  pass.step(
      [=](auto& run) {
        back(run.executor(), run.view(x), run.view(y), run.view(dz), run.view(dx), run.view(dy));
      },
      x, y, dz, dx, dy);
  return {dx, dy};
}

}  // namespace detail

template <class Pass, Index V, Index W, class Rest>
constexpr Gradients<2> differentiate(const Multiply&, Pass& pass,
                                     const std::tuple<Value<V>, Value<W>>& pair,
                                     const Rest& rest) noexcept {
  return detail::differentiate_pair(
      pass, pair, rest, [](auto&&... args) { ops::multiply(args...); },
      [](auto&&... args) { ops::multiply_back(args...); });
}
template <class Activation, class Pass, Index V, Index W, class Rest>
constexpr Gradients<2> differentiate(const Gate<Activation>&, Pass& pass,
                                     const std::tuple<Value<V>, Value<W>>& pair,
                                     const Rest& rest) noexcept {
  return detail::differentiate_pair(
      pass, pair, rest, [](auto&&... args) { ops::activate_gated<Activation>(args...); },
      [](auto&&... args) { ops::activate_gated_back<Activation>(args...); });
}
template <class Pass, Index V, Index W, class Rest>
constexpr Gradients<2> differentiate(const Sum& node, Pass& pass,
                                     const std::tuple<Value<V>, Value<W>>& pair,
                                     const Rest& rest) noexcept {
  const auto first = detail::to_change(pass, std::get<0>(pair));
  const Gradient dz = rest(apply(node, pass, std::tuple(first, std::get<1>(pair))));
  return {dz, dz};
}

template <Index... Ws, class Pass, Index W, class Rest>
constexpr Gradient differentiate(const Split<Ws...>& node, Pass& pass, const Value<W>& x,
                                 const Rest& rest) noexcept {
  const auto parts = apply(node, pass, x);
  const Gradients<sizeof...(Ws)> back = rest(parts);
  const Gradient dx = pass.make(Dim<>{x.width}, x.rows);
  Index column = 0;
  for (const Gradient& d : back) {
    const Gradient to = {dx.id, dx.rows, column, dx.stride, d.width};
    pass.step([=](auto& run) { ops::copy_rows(run.executor(), run.view(d), run.view(to)); }, d, dx);
    column += d.width;
  }
  return dx;
}

// ---- Rows and names ----------------------------------------------------------------------------

template <class Pass, Index W, class Rest>
constexpr Gradient differentiate(const OutputRows& node, Pass& pass, const Value<W>& x,
                                 const Rest& rest) noexcept {
  const Gradient dy = rest(apply(node, pass, x));
  if (x.rows == Rows::outputs) return dy;
  const Gradient dx = pass.make(Dim<>{x.width}, x.rows);
  pass.step(
      [=](auto& run) {
        const MatrixView<const float> from = run.view(dy);
        const MatrixView<float> to = run.view(dx);
        const auto& wanted = run.step_args().output_rows;
        ops::for_rows(run.executor(), to.extent(0), to.extent(1), [&](Index i) {
          const auto bytes = static_cast<std::size_t>(to.extent(1)) * sizeof(float);
          const auto at = std::lower_bound(wanted.begin(), wanted.end(), i);
          if (at != wanted.end() && *at == i) {
            std::memcpy(&to(i, 0), &from(at - wanted.begin(), 0), bytes);
          } else {
            std::memset(&to(i, 0), 0, bytes);
          }
        });
      },
      dy, dx);
  return dx;
}

template <class Pass, Index W, class Rest>
constexpr Gradient differentiate(const Pool& node, Pass& pass, const Value<W>& x,
                                 const Rest& rest) noexcept {
  const Gradient dy = rest(apply(node, pass, x));
  const Gradient dx = pass.make(Dim<>{x.width}, x.rows);
  const Pooling pooling = node.pooling;
  pass.step(
      [=](auto& run) {
        const MatrixView<const float> from = run.view(dy);
        const MatrixView<float> to = run.view(dx);
        for (Index i = 0; i < from.extent(0); ++i) {
          const Segment& s = run.step_args().segments[static_cast<std::size_t>(i)];
          const Index only = pooling == Pooling::last ? s.n_rows - 1 : 0;
          const float share = pooling == Pooling::mean ? 1 / static_cast<float>(s.n_rows) : 1;
          for (Index r = 0; r < s.n_rows; ++r) {
            const bool counts = pooling == Pooling::mean || r == only;
            for (Index j = 0; j < to.extent(1); ++j) {
              to(s.first_row + r, j) = counts ? from(i, j) * share : 0;
            }
          }
        }
      },
      dy, dx);
  return dx;
}

namespace detail {

// Shows rows and their gradient, to which an observer may add.
template <Label kName, class Pass, Index W>
constexpr Gradient shown_gradient(Pass& pass, const Value<W>& x, const Gradient& dy) noexcept {
  const Gradient dx = make_like(pass, dy);
  pass.step(
      [=](auto& run) {
        ops::copy_rows(run.executor(), run.view(dy), run.view(dx));
        run.template observe_gradient<kName>(run.view(x), run.view(dx));
      },
      x, dy, dx);
  return dx;
}

}  // namespace detail

template <Label kName, class Pass, Index W, class Rest>
constexpr Gradient differentiate(const Tap<kName>& node, Pass& pass, const Value<W>& x,
                                 const Rest& rest) noexcept {
  if (!pass.training_limits().taps) return rest(apply(node, pass, x));
  return detail::shown_gradient<kName>(pass, x, rest(shared(apply(node, pass, x))));
}
// Between the steps of attention there are no scores to show.
template <Label... kNames, class Pass, Index Q, Index K, class Rest>
constexpr Gradients<3> differentiate(const Tap<kNames...>&, Pass&, const CachedRows<Q, K>& rows,
                                     const Rest& rest) noexcept {
  return rest(rows);
}
template <Label... kNames, class Pass, class... Values, class Rest>
constexpr Gradients<sizeof...(Values)> differentiate(const Tap<kNames...>& node, Pass& pass,
                                                     const std::tuple<Values...>& values,
                                                     const Rest& rest) noexcept {
  if (!pass.training_limits().taps) return rest(apply(node, pass, values));
  const Gradients<sizeof...(Values)> dy = rest(shared(apply(node, pass, values)));
  return [&]<std::size_t... Is>(std::index_sequence<Is...>) {
    return Gradients<sizeof...(Values)>{
        detail::shown_gradient<kNames>(pass, std::get<Is>(values), dy[Is])...};
  }
  (std::index_sequence_for<Values...>{});
}

// ---- A step -----------------------------------------------------------------------------------

// The memory that a training step of `expression` needs within `limits`; its peak is
// TrainingPlan::bytes. TrainingPlan::error says what is wrong with them.
template <Expr E>
constexpr TrainingPlan make_training_plan(const E& expression,
                                          const TrainingLimits& limits) noexcept {
  detail::TrainingPlanner planner(limits);
  differentiate(expression, planner, Start{}, [&](const auto& y) {
    static_assert(
        requires { y.id; }, "nibble: an expression that is trained gives one result");
    const auto rows = detail::to_change(planner, y);  // a node may have kept its result
    planner.step([](auto&) {}, rows);
    planner.finish(rows);
    return as_gradient(rows);
  });
  return planner.training_plan();
}

// One training step: computes the rows of the last node of `expression`, lets loss(rows) turn them,
// in place, into the gradient of what is to be minimized, and adds the gradients of the trained
// weights to args.gradients. No allocation. With a plan that is not valid, or an arena that is too
// small for it, nothing happens and the result is false.
template <Expr E, class Loss>
NIBBLE_COLD bool run_training_step(const E& expression, const TrainingPlan& plan,
                                   const TrainingLimits& limits, const TrainingArgs& args,
                                   const Loss& loss) noexcept {
  if (!plan.is_valid() || args.run.arena.size() < plan.bytes) return false;
  detail::TrainingRunner runner(plan, limits, args);
  differentiate(expression, runner, Start{}, [&](const auto& y) {
    const auto rows = detail::to_change(runner, y);
    loss(MatrixView<float>(runner.view(rows)));
    runner.set_skips(!args.goes_back);
    return as_gradient(rows);
  });
  return true;
}

}}}  // namespace nibble::NIBBLE_ABI::graph
