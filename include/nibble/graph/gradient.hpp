// SPDX-License-Identifier: Apache-2.0
//
// What the rules of differentiate.hpp have in common.
#pragma once

#include <array>
#include <cstddef>
#include <type_traits>

#include "nibble/graph/apply.hpp"
#include "nibble/graph/training_plan.hpp"
#include "nibble/graph/training_run.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

// The gradients of a tuple of rows.
template <std::size_t N>
using Gradients = std::array<Gradient, N>;

template <Index W>
constexpr Gradient as_gradient(const Value<W>& x) noexcept {
  return {x.id, x.rows, x.column, x.stride, Dim<>{x.width}, true};
}

namespace detail {

template <class Pass, Index W>
constexpr Value<W> make_like(Pass& pass, const Value<W>& x) noexcept {
  return pass.make(x.width, x.rows);
}

// Rows for a node that works in place: x itself, or a copy if others need x.
template <class Pass, Index W>
constexpr Value<W> to_change(Pass& pass, const Value<W>& x) noexcept {
  if (!x.is_shared) return x;
  const Value<W> copy = make_like(pass, x);
  pass.step([=](auto& run) { ops::copy_rows(run.executor(), run.view(x), run.view(copy)); }, x,
            copy);
  return copy;
}

template <class Pass>
constexpr Gradient add_gradients(Pass& pass, const Gradient& a, const Gradient& b) noexcept {
  const Gradient sum = make_like(pass, a);
  pass.step([=](auto& run) { ops::add(run.executor(), run.view(a), run.view(b), run.view(sum)); },
            a, b, sum);
  return sum;
}

// An empty view if the vector is not trained.
template <class Run, class Slot>
VectorView<float> vector_gradient(const Run& run, Slot slot) noexcept {
  if constexpr (std::is_same_v<Slot, Nothing>) {
    return {};
  } else {
    float* const values = run.gradient(slot).values;
    return values != nullptr ? VectorView<float>(values, run.weight(slot).k) : VectorView<float>();
  }
}

}  // namespace detail

}}}  // namespace nibble::NIBBLE_ABI::graph
