// SPDX-License-Identifier: Apache-2.0
//
// Runs an expression: the walk of apply.hpp with data.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "nibble/graph/plan.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

// Sees what passes a Tap: its name, the layer (−1 outside of layers), and the rows.
using Observer = FunctionRef<void(std::string_view name, Index layer, MatrixView<const float>)>;

// Everything a run needs besides the expression. All of it is checked by whoever makes it: tokens
// in range of the embedding, first_position + tokens within the cache, n_outputs ≤ tokens.
struct RunArgs {
  std::span<const std::int32_t> tokens;  // at consecutive positions
  Index first_position = 0;
  Index n_outputs = 1;  // results for this many of the last tokens
  WeightTable weights;
  ops::KvCache cache;
  MatrixView<const float> rope_cos;  // (positions, rope_dim / 2); empty if nothing rotates
  MatrixView<const float> rope_sin;
  std::span<std::byte> arena;  // Plan::bytes, aligned to kAlignment
  Executor* executor = nullptr;
  const Observer* observer = nullptr;
  bool training = false;  // Dropout drops
  std::uint64_t dropout_seed = 0;
};

namespace detail {

template <class Formats>
class Runner {
 public:
  using FormatTypes = Formats;

  Runner(const Plan& plan, const Limits& limits, const RunArgs& args) noexcept
      : plan_(plan), limits_(limits), args_(args) {
    NIBBLE_ASSERT(plan.is_valid() && args.arena.size() >= plan.bytes);
    NIBBLE_ASSERT(n_tokens() >= 1 && n_tokens() <= limits.max_tokens);
    NIBBLE_ASSERT(args.n_outputs >= 1 && args.n_outputs <= n_tokens() &&
                  args.n_outputs <= limits.max_outputs);
  }

  // ---- The pass ----
  const Limits& limits() const noexcept { return limits_; }
  // As the planner's: the most rows there may be, so that sizes agree.
  Index count(Rows rows) const noexcept {
    return rows == Rows::tokens ? limits_.max_tokens : limits_.max_outputs;
  }
  template <Index W>
  Value<W> make(Dim<W> width, Rows rows) noexcept {
    return {next_++, rows, 0, width, width};
  }
  Scratch scratch(std::size_t) noexcept { return {next_++}; }
  template <class F, class... Values>
  void step(F&& f, const Values&...) noexcept {
    f(*this);
  }
  template <class Body>
  void repeat(Index n, Body&& body) noexcept {
    NIBBLE_ASSERT(layer_ == -1);  // not within another one
    const int start = next_;
    for (layer_ = 0; layer_ < n; ++layer_) {
      next_ = start;
      body();
    }
    layer_ = -1;
  }
  template <Label kName, Index W>
  void observe(const Value<W>& value) noexcept {
    if (args_.observer != nullptr) (*args_.observer)(kName.view(), layer_, view(value));
  }

  // ---- What steps use ----
  // The rows of a value: (actual rows, width).
  template <Index W>
  View<float, kDynamic, W> view(const Value<W>& value) const noexcept {
    const Index row = value.last_rows_only ? n_tokens() - args_.n_outputs : 0;
    auto* const base = reinterpret_cast<float*>(args_.arena.data() +
                                                plan_.offsets[static_cast<std::size_t>(value.id)]);
    return View<float, kDynamic, W>(base + row * value.stride + value.column,
                                    {count_of(value), value.width}, {value.stride, 1});
  }
  std::span<std::byte> memory(const Scratch& scratch) const noexcept {
    return args_.arena.subspan(plan_.offsets[static_cast<std::size_t>(scratch.id)]);
  }
  template <Index W>
  Index count_of(const Value<W>& value) const noexcept {
    return value.rows == Rows::tokens ? n_tokens() : args_.n_outputs;
  }
  template <class Slot>
  const Weight& weight(Slot slot) const noexcept {
    return args_.weights.at(slot, layer_);
  }
  // An empty view where a model has no such vector.
  template <class Slot>
  VectorView<const float> vector(Slot slot) const noexcept {
    if constexpr (std::is_same_v<Slot, None>) {
      return {};
    } else {
      const Weight& w = weight(slot);
      return w ? VectorView<const float>(w.vector(), w.k) : VectorView<const float>();
    }
  }
  Executor& executor() const noexcept { return *args_.executor; }
  std::span<const std::int32_t> tokens() const noexcept { return args_.tokens; }
  Index first_position() const noexcept { return args_.first_position; }
  const ops::KvCache& cache() const noexcept { return args_.cache; }
  Index layer() const noexcept { return layer_; }
  bool training() const noexcept { return args_.training; }
  kernels::Dropout dropout(float probability) const noexcept {
    // Each layer and each place draws numbers of its own.
    return {probability, args_.dropout_seed + static_cast<std::uint64_t>(layer_ + 1) * kMaxValues +
                             static_cast<std::uint64_t>(next_)};
  }
  template <class Style>
  void rotate(MatrixView<float> q, MatrixView<float> k, Index head_dim) const noexcept {
    const auto cos = args_.rope_cos.rows(args_.first_position, q.extent(0));
    const auto sin = args_.rope_sin.rows(args_.first_position, q.extent(0));
    ops::rope<Style>(executor(), q, head_dim, cos, sin);
    ops::rope<Style>(executor(), k, head_dim, cos, sin);
  }

 private:
  Index n_tokens() const noexcept { return static_cast<Index>(args_.tokens.size()); }

  const Plan& plan_;
  const Limits& limits_;
  const RunArgs& args_;
  int next_ = 0;
  Index layer_ = -1;
};

}  // namespace detail

// Runs `expression` with the plan that make_plan<Formats> made for it and `limits`. Returns the
// rows of the last node, (n_outputs or tokens, width), which lie in the arena until the next run.
// No allocation.
template <class Formats, Expr E>
auto run(const E& expression, const Plan& plan, const Limits& limits,
         const RunArgs& args) noexcept {
  detail::Runner<Formats> runner(plan, limits, args);
  return runner.view(apply(expression, runner, Start{}));
}

}}}  // namespace nibble::NIBBLE_ABI::graph
