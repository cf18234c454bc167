// SPDX-License-Identifier: Apache-2.0
//
// The memory of a training step: an expression forward, its loss, and back (differentiate.hpp), in
// one arena. A result that the way back needs lives until then; nothing else is kept. Results of
// layers that are needed again are kept once for each layer.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "nibble/graph/plan.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

// Results of one layer and of what is around the layers, forward and back.
inline constexpr int kMaxTrainingValues = 384;
// Repeats of an expression.
inline constexpr int kMaxLoops = 4;

// The gradient of rows: (rows, width), never changed after it was handed on.
using Gradient = Value<>;

// Slots of an expression, by number. Slots i and i + 128 are in it together: it says that too much
// is kept, never too little.
struct SlotSet {
  std::array<std::uint64_t, 2> bits{~std::uint64_t{0}, ~std::uint64_t{0}};

  static constexpr SlotSet none() noexcept { return {{0, 0}}; }
  template <class Slot>
  constexpr bool has(Slot slot) const noexcept {
    const auto i = static_cast<std::size_t>(slot) % 128;
    return (bits[i / 64] >> i % 64 & 1) != 0;
  }
  template <class Slot>
  constexpr void add(Slot slot) noexcept {
    const auto i = static_cast<std::size_t>(slot) % 128;
    bits[i / 64] |= std::uint64_t{1} << i % 64;
  }
};

struct TrainingLimits {
  Limits limits;    // max_rows: of a batch; n_positions: of the longest sequence
  SlotSet trained;  // weights that get gradients; rows that only others need are not kept
  SlotSet factored = SlotSet::none();  // weights whose factors get gradients (Limits::max_rank)
  // Share of the elements of the input of factors that are dropped, each time others.
  float factor_dropout = 0;
  // Matrices may be in packed formats: there is memory for one of them as f32.
  bool packed_weights = false;
  // Each layer is computed again on the way back: one layer's results are kept, and the rows
  // between layers.
  bool checkpoints = false;
  // Each result has memory of its own: for tests.
  bool shares_memory = true;
  // What taps show may be changed on the way back: a loss on features.
  bool taps = false;
};

struct TrainingPlan : BasicPlan<kMaxTrainingValues> {
  // Bytes from one layer's copy of a value to the next one's; 0: there is one for all.
  std::array<std::size_t, kMaxTrainingValues> strides{};
  std::array<std::uint8_t, kMaxTrainingValues> loops{};  // which Repeat the copies belong to
};

namespace detail {

class TrainingPlanner : public BasicPlanner<kMaxTrainingValues> {
  using Base = BasicPlanner<kMaxTrainingValues>;

 public:
  constexpr explicit TrainingPlanner(const TrainingLimits& limits) noexcept
      : Base(limits.limits), training_(limits) {}

  constexpr const TrainingLimits& training_limits() const noexcept { return training_; }

  // Whether the walk is in a part that is not computed: nothing is used there or needs memory.
  constexpr bool skips() const noexcept { return is_passed_over_; }
  constexpr void set_skips(bool skips) noexcept { is_passed_over_ = skips; }
  template <Index W>
  constexpr Value<W> make(Dim<W> width, Rows rows) noexcept {
    if (!is_passed_over_) return Base::make(width, rows);
    return {define(0), rows, 0, width, width};
  }
  constexpr Scratch scratch(std::size_t bytes) noexcept {
    return Base::scratch(is_passed_over_ ? 0 : bytes);
  }
  template <class F, class... Values>
  constexpr void step(F&& f, const Values&... used) noexcept {
    if (!is_passed_over_) Base::step(f, used...);
  }
  template <Label kName, class AnyValue>
  constexpr void observe(const AnyValue& value) noexcept {
    if (!is_passed_over_) use(value.id);
  }
  // Where place() goes on counting.
  constexpr Index places() const noexcept { return 0; }
  constexpr void set_places(Index) noexcept {}
  // Attention reads the rows of the step; nothing is stored.
  constexpr void cache(Index, Index) noexcept {}
  constexpr void reads_cache(Index, Index, Index) noexcept {}

  // body(x, rest) for each layer, where rest(y) goes on with the next layer or, behind the last
  // one, with `rest`, and returns the gradient of y. Returns the gradient of x.
  template <Index W, class Body, class Rest>
  NIBBLE_COLD constexpr Gradient scan(Index n, const Value<W>& x, const Body& body,
                                      const Rest& rest) noexcept {
    if (n < 0) fail("repeat(): fewer than 0 layers");
    if (n < 1) return rest(x);
    if (n_loops_ == kMaxLoops) fail("more than four repeat() in an expression");
    const auto loop = static_cast<std::uint8_t>(n_loops_++ % kMaxLoops);
    const int begin = time_, first_outside = next_;
    const Value<W> in = make(x.width, x.rows);  // what each layer is given
    const Gradient back = make(Dim<>{x.width}, x.rows);
    step([](auto&) {}, x, in);
    const int start = time_, first = next_;
    const Index first_layer = n_layers_;
    int after = 0, first_behind = 0, end = time_;
    for (Index i = 0; i == 0 || (i < n && differs_); ++i) {
      layer_ = first_layer + i;
      is_later_round_ = i > 0;
      time_ = start;
      next_ = first;
      const Gradient dx = body(in, [&](const Value<W>& y) {
        step([](auto&) {}, y, in);
        if (i == 0) {
          n_layers_ = first_layer + n;
          layer_ = -1;
          const int first_of_rest = next_;
          const Gradient d = rest(in);
          step([](auto&) {}, d, back);
          after = time_;
          first_behind = next_;
          layer_ = first_layer + i;
          keep_for_layers(first, first_of_rest, n, loop);
        } else {
          time_ = after;
          next_ = first_behind;
        }
        return back;
      });
      step([](auto&) {}, dx, back);
      end = (std::max)(end, time_);
    }
    layer_ = -1;
    is_later_round_ = false;
    time_ = end;
    finish_layers(first_outside, in.id, back.id, loop, n, begin, after, end);
    return back;
  }

  NIBBLE_COLD constexpr TrainingPlan training_plan() const noexcept {
    TrainingPlan plan;
    plan.strides = strides_;
    plan.loops = loops_;
    TrainingPlanner sized(*this);
    for (int i = 0; i < n_ && i < kMaxTrainingValues; ++i) sized.set_final_life(i);
    sized.place_values(plan, sized.order_by_size());
    return plan;
  }

 private:
  // What lives through all layers first, then the large ones: few gaps remain.
  constexpr Order order_by_size() const noexcept {
    Order order = order_made();
    const auto is_before = [&](int a, int b) {
      const auto i = static_cast<std::size_t>(a), j = static_cast<std::size_t>(b);
      if ((strides_[i] != 0) != (strides_[j] != 0)) return strides_[i] != 0;
      return lives_[i].bytes > lives_[j].bytes;
    };
    for (int i = 1; i < n_ && i < kMaxTrainingValues; ++i) {  // insertion: stable, and constexpr
      for (int j = i; j > 0; --j) {
        int &a = order[static_cast<std::size_t>(j - 1)], &b = order[static_cast<std::size_t>(j)];
        if (!is_before(b, a)) break;
        const int swapped = a;
        a = b;
        b = swapped;
      }
    }
    return order;
  }
  // Memory for all copies of a value; memory of its own, if nothing is to be shared.
  constexpr void set_final_life(int id) noexcept {
    const auto at = static_cast<std::size_t>(id);
    Life& life = lives_[at];
    if (strides_[at] != 0) {
      const auto n = static_cast<std::size_t>(copies_[at]);
      if (n > static_cast<std::size_t>(kMaxBytes) / kMaxTrainingValues / life.bytes) {
        fail("what is kept for all layers is too large for the address space");
        life.bytes = 0;
      }
      life.bytes *= n;
    }
    if (!training_.shares_memory) {
      life.first = 0;
      life.last = time_;
    }
  }

  // What a layer makes before the turn may be needed behind it: marked here, decided in
  // finish_layers(), when its last use is known.
  constexpr void keep_for_layers(int first, int end, Index n, std::uint8_t loop) noexcept {
    for (int i = first; i < end && i < kMaxTrainingValues; ++i) {
      const auto at = static_cast<std::size_t>(i);
      copies_[at] = n;
      loops_[at] = loop;
    }
  }
  constexpr void finish_layers(int first_outside, int in, int back, std::uint8_t loop, Index n,
                               int begin, int after, int end) noexcept {
    for (int i = 0; i < n_ && i < kMaxTrainingValues; ++i) {
      const auto at = static_cast<std::size_t>(i);
      Life& life = lives_[at];
      if (i < first_outside) {  // made before the layers: each of them may read it
        if (life.last > begin && life.last < end) life.last = end;
      } else if (i == in || i == back) {
        life.last = end;
        if (i == back) continue;
        copies_[at] = n + 1;
        loops_[at] = loop;
        strides_[at] = life.bytes;
      } else if (copies_[at] != 0 && loops_[at] == loop && life.last >= after) {
        life.first = begin;
        life.last = end;
        strides_[at] = life.bytes;
      }
    }
  }

  TrainingLimits training_;
  std::array<std::size_t, kMaxTrainingValues> strides_{};
  std::array<Index, kMaxTrainingValues> copies_{};
  std::array<std::uint8_t, kMaxTrainingValues> loops_{};
  int n_loops_ = 0;
  bool is_passed_over_ = false;
};

}  // namespace detail

}}}  // namespace nibble::NIBBLE_ABI::graph
