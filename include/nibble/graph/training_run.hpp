// SPDX-License-Identifier: Apache-2.0
//
// Runs a training step: the walk of differentiate.hpp with data.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include "nibble/core/callback.hpp"
#include "nibble/graph/run.hpp"
#include "nibble/graph/training_plan.hpp"
#include "nibble/ops/rows.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

// Where the gradient of a weight is added up: as many floats as the weight has, in row-major order;
// null if the weight is not trained. Weights that are tied or shared have one gradient. Factors of
// a weight have their own.
struct WeightGradient {
  float* values = nullptr;
  float* factor_a = nullptr;
  float* factor_b = nullptr;
};

// Shows what passes a Tap and its gradient, which may be added to: a loss on features.
using GradientObserver = Callback<void(std::string_view name, Index layer,
                                       MatrixView<const float> rows, MatrixView<float> gradient)>;

// As RunArgs, whose cache is not used. Sequences of the batch are the segments of the step, each
// from position 0 on; matrices of weights are packed, or rows of f32 (kF32Rows). The observer of
// products is shown products that are computed again (TrainingLimits::checkpoints) again.
struct TrainingArgs {
  RunArgs run;
  std::span<const WeightGradient> gradients;  // in the order of the weights of RunArgs::weights
  std::span<const Index> sequence_starts;     // first row of each segment, then the number of rows
  const GradientObserver* gradient_observer = nullptr;
  bool goes_back = true;  // false: the step ends with the loss; gradients do not change
};

namespace detail {

class TrainingRunner : public BasicRunner<kMaxTrainingValues> {
  using Base = BasicRunner<kMaxTrainingValues>;

 public:
  TrainingRunner(const TrainingPlan& plan, const TrainingLimits& limits,
                 const TrainingArgs& args) noexcept
      : Base(plan, limits.limits, args.run), plan_(plan), training_(limits), args_(args) {}

  const TrainingLimits& training_limits() const noexcept { return training_; }
  bool skips() const noexcept { return is_skipped_; }
  void set_skips(bool skips) noexcept { is_skipped_ = skips; }
  template <class F, class... Values>
  void step(F&& f, const Values&...) noexcept {
    if (!is_skipped_) f(*this);
  }
  Index places() const noexcept { return place_; }
  void set_places(Index places) noexcept { place_ = places; }

  template <Index W, class Body, class Rest>
  NIBBLE_COLD Gradient scan(Index n, const Value<W>& x, const Body& body,
                            const Rest& rest) noexcept {
    if (n < 1) return rest(x);
    const auto loop = static_cast<std::size_t>(n_loops_++ % kMaxLoops);
    const Value<W> in = make(x.width, x.rows);
    const Gradient back = make(Dim<>{x.width}, x.rows);
    rounds_[loop] = 0;
    step([&](auto& run) { ops::copy_rows(run.executor(), run.view(x), run.view(in)); }, x, in);
    const Frame frame{loop, next_, place_, n_layers_, n};
    int first_behind = 0;
    layer_of(frame, 0, in, back, body, rest, first_behind);
    layer_ = -1;
    return back;
  }

  // ---- What steps use ----
  template <Index W>
  View<float, kDynamic, W> view(const Value<W>& value) const noexcept {
    auto* const base = reinterpret_cast<float*>(args_.run.arena.data() + offset_of(value.id));
    return View<float, kDynamic, W>(base + value.column, {count_of(value), value.width},
                                    {value.stride, 1});
  }
  std::span<std::byte> memory(const Scratch& scratch) const noexcept {
    return args_.run.arena.subspan(offset_of(scratch.id));
  }
  template <Label kName, Index W>
  void observe(const Value<W>& value) noexcept {
    if (args_.run.observer == nullptr || !*args_.run.observer || is_skipped_) return;
    (*args_.run.observer)(kName.view(), layer_, view(value));
  }
  template <Label kName>
  void observe_gradient(MatrixView<const float> rows, MatrixView<float> gradient) noexcept {
    if (args_.gradient_observer == nullptr || !*args_.gradient_observer) return;
    (*args_.gradient_observer)(kName.view(), layer_, rows, gradient);
  }
  std::span<const Index> sequence_starts() const noexcept { return args_.sequence_starts; }
  // Its pointers are null if the slot has no weights, or they are not trained.
  template <class Slot>
  WeightGradient gradient(Slot slot) const noexcept {
    if constexpr (std::is_same_v<Slot, Nothing>) {
      return {};
    } else {
      const std::size_t n_slots = args_.run.weights.n_slots();
      const std::size_t at = static_cast<std::size_t>(layer_ + 1) * n_slots +
                             static_cast<std::size_t>(enumerator_of(slot));
      return at < args_.gradients.size() ? args_.gradients[at] : WeightGradient{};
    }
  }

 private:
  // One repeat.
  struct Frame {
    std::size_t loop;
    int first;    // id of the first value in the layers
    Index place;  // for Dropout
    Index first_layer;
    Index n;
  };

  // Computes layer i and all that follows, and writes the gradient of its rows to `back`.
  template <Index W, class Body, class Rest>
  NIBBLE_COLD void layer_of(const Frame& frame, Index i, const Value<W>& in, const Gradient& back,
                            const Body& body, const Rest& rest, int& first_behind) noexcept {
    if (i == frame.n) {
      layer_ = -1;
      n_layers_ = frame.first_layer + frame.n;
      const Gradient d = rest(in);
      step([&](auto& run) { ops::copy_rows(run.executor(), run.view(d), run.view(back)); });
      first_behind = next_;
      return;
    }
    start_round(frame, i);
    next_ = frame.first;
    place_ = frame.place;
    const Gradient dx = body(in, [&](const Value<W>& y) {
      step([&](auto& run) {
        const MatrixView<const float> rows = run.view(y);
        rounds_[frame.loop] = i + 1;
        ops::copy_rows(run.executor(), rows, run.view(in));
      });
      rounds_[frame.loop] = i + 1;
      layer_of(frame, i + 1, in, back, body, rest, first_behind);
      start_round(frame, i);
      next_ = first_behind;
      return back;
    });
    step([&](auto& run) { ops::copy_rows(run.executor(), run.view(dx), run.view(back)); });
  }
  void start_round(const Frame& frame, Index i) noexcept {
    layer_ = frame.first_layer + i;
    rounds_[frame.loop] = i;
  }
  std::size_t offset_of(int id) const noexcept {
    const auto at = static_cast<std::size_t>(id);
    return plan_.offsets[at] +
           static_cast<std::size_t>(rounds_[plan_.loops[at]]) * plan_.strides[at];
  }

  const TrainingPlan& plan_;
  const TrainingLimits& training_;
  const TrainingArgs& args_;
  std::array<Index, kMaxLoops> rounds_{};
  int n_loops_ = 0;
};

}  // namespace detail

}}}  // namespace nibble::NIBBLE_ABI::graph
