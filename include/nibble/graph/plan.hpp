// SPDX-License-Identifier: Apache-2.0
//
// The memory of an expression: where each intermediate result is in one arena. Results that do not
// live at the same time share bytes. A plan is computed by the same walk over the expression that
// runs it (apply.hpp), at compile time if all dimensions are static.
#pragma once

#include <array>
#include <cstddef>

#include "nibble/core/arena.hpp"
#include "nibble/graph/apply.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

// The results of one layer and of what is around the layers; a Repeat's body counts once.
inline constexpr int kMaxValues = 64;

// Small enough that all values together fit in the address space: 32 MiB where pointers have 32
// bits.
inline constexpr Index kMaxValueBytes = kMaxBytes / kMaxValues;

template <int kMax>
struct BasicPlan {
  std::array<std::size_t, static_cast<std::size_t>(kMax)> offsets{};
  int n_values = 0;
  std::size_t bytes = 0;        // of the arena, which must be aligned to kAlignment
  const char* error = nullptr;  // what is wrong with the expression or too large; null: nothing
  Rows rows = Rows::all;        // of the result
  Index width = 0;
  std::size_t factors_at = 0;  // memory for factors of weights: from here to the end of the arena

  constexpr bool is_valid() const noexcept { return error == nullptr; }
};
using Plan = BasicPlan<kMaxValues>;

namespace detail {

// Records when each value is first and last used, then gives each its place in the arena.
template <int kMax>
class BasicPlanner {
 public:
  constexpr explicit BasicPlanner(const Limits& limits) noexcept : limits_(limits) {
    if (limits.max_rows < 1 || limits.max_outputs < 1 || limits.n_positions < 1 ||
        limits.max_workers < 1 || limits.max_segments < 1) {
      fail("a limit is less than 1");
    }
  }

  constexpr const Limits& limits() const noexcept { return limits_; }
  constexpr Index count(Rows rows) const noexcept { return limits_.count(rows); }

  template <Index W>
  constexpr auto resolve(Dim<W> d) noexcept {
    if constexpr (W == kPerLayer) {
      return Dim<>{resolve(d.values)};
    } else {
      return d;
    }
  }
  template <class T>
  constexpr T resolve(const PerLayer<T>& x) noexcept {
    differs_ = differs_ || !x.is_uniform();
    if (!x.has(layer_)) {
      fail(layer_ < 0 ? "a value that differs by layer, outside of the layers"
                      : "a value that differs by layer has fewer values than there are layers");
    }
    return x.at(layer_);
  }

  template <Index W>
  constexpr Value<W> make(Dim<W> width, Rows rows) noexcept {
    if (width < 1) fail("a node gives rows without columns: a width is 0 or less");
    const Index row_bytes = width * Index{sizeof(float)};
    const bool fits = width >= 0 && width <= kMaxValueBytes / Index{sizeof(float)} &&
                      (row_bytes == 0 || count(rows) <= kMaxValueBytes / row_bytes);
    return {define(fits ? count(rows) * row_bytes : kMaxValueBytes), rows, 0, width, width};
  }
  constexpr Scratch scratch(std::size_t bytes) noexcept {
    return {define(static_cast<Index>((std::min)(bytes, std::size_t{kMaxValueBytes})))};
  }

  template <class F, class... Values>
  constexpr void step(F&&, const Values&... used) noexcept {
    (use(used.id), ...);
    ++time_;
  }

  template <auto kSlot>
  constexpr void weight(Index, Index, Index = 1) noexcept {}
  template <auto kSlot>
  constexpr void weight_rows(Index, Index, RowsOf) noexcept {}
  constexpr void cache(Index n_kv_heads, Index head_dim) noexcept {
    if (is_skipped_) return;
    if (layer_ < 0) fail("cache_kv() outside of repeat(): a cache belongs to a layer");
    if (kv_heads_ > 0) fail("two cache_kv() in one layer: the second would overwrite the first");
    kv_heads_ = n_kv_heads;
    kv_dim_ = head_dim;
  }
  constexpr void reads_cache(Index n_kv_heads, Index head_dim, Index /*window*/) noexcept {
    if (kv_heads_ != n_kv_heads || kv_dim_ != head_dim) {
      fail("attention without a cache_kv() of the same heads before it in its layer");
    }
  }
  // (That the other layer stores heads of these sizes is known to a survey.)
  constexpr void shares_cache(Index layer, Index n_kv_heads, Index head_dim) noexcept {
    if (is_skipped_) return;
    if (layer < 0 || layer >= layer_) fail("share_kv(): not of an earlier layer");
    if (kv_heads_ > 0) fail("share_kv() and cache_kv() in one layer");
    kv_heads_ = n_kv_heads;
    kv_dim_ = head_dim;
  }
  constexpr StateAt state(Index n, Index n_chunk = 0) noexcept { return {0, n, 0, n_chunk}; }
  template <auto kFactors>
  constexpr void angles(const RopeAngles&) noexcept {}
  constexpr void both_ways() noexcept {}
  constexpr void max_positions(Index) noexcept {}
  constexpr void factors(Index width) noexcept {
    if (limits_.max_rank < 1) return;
    const Index rows = limits_.largest_count(), n_workers = limits_.max_workers;
    const Index most = FactorMemory::inner_rows(rows, n_workers);
    const auto fits = [&](Index columns) {
      return columns >= 0 && columns <= kMaxValueBytes / Index{sizeof(float)} / most;
    };
    if (!fits(width) || !fits(limits_.max_rank)) {
      return fail("the rows for factors of weights are too large for the address space");
    }
    factor_bytes_ =
        (std::max)(factor_bytes_, FactorMemory::bytes(rows, limits_.max_rank, width, n_workers));
  }
  constexpr Index place() noexcept { return 0; }

  // The body is walked once if all layers are alike, otherwise once for each layer: a value is then
  // as large as in the layer where it is largest.
  template <class AnyValue, class Body>
  NIBBLE_COLD constexpr void repeat(Index n, const AnyValue&, Body&& body) noexcept {
    if (n < 0) fail("repeat(): fewer than 0 layers");
    if (n < 1) return;  // a run makes no values there either
    const int start = time_, first = n_;
    int end = time_;
    for (Index i = 0; i == 0 || (i < n && differs_); ++i) {
      layer_ = n_layers_ + i;
      is_later_round_ = i > 0;
      time_ = start;
      next_ = first;
      kv_heads_ = kv_dim_ = 0;
      body();
      end = (std::max)(end, time_);
    }
    n_layers_ += n;
    layer_ = -1;
    is_later_round_ = false;
    kv_heads_ = kv_dim_ = 0;
    time_ = end;
    // Only the rows that the body changes in place go from one round to the next, and its last step
    // names them. Nothing else needs to outlive a round.
  }
  template <class Body>
  constexpr void when(bool condition, Body&& body) noexcept {
    const bool was_skipped = is_skipped_;
    is_skipped_ = was_skipped || !condition;
    body();  // skipped or not: one layer's memory must do for all
    is_skipped_ = was_skipped;
  }

  constexpr Index layer() const noexcept { return layer_; }
  constexpr const Value<>& beside() const noexcept { return beside_; }
  constexpr void set_beside(const Value<>& value) noexcept { beside_ = value; }
  template <class Body>
  constexpr void in_every_range(Body&& body) noexcept {
    body();
  }

  template <Label kName, class AnyValue>
  constexpr void observe(const AnyValue& value) noexcept {
    use(value.id);
  }

  // What a layer skips need not make sense there.
  constexpr void fail(const char* message) noexcept {
    if (error_ == nullptr && !is_skipped_) error_ = message;
  }

  // The walk has come to its result, which stays until here.
  template <Index W>
  constexpr void finish(const Value<W>& out) noexcept {
    use(out.id);
    rows_ = out.rows;
    width_ = out.width;
  }

  NIBBLE_COLD constexpr BasicPlan<kMax> plan() const noexcept {
    BasicPlan<kMax> plan;
    place_values(plan, order_made());
    return plan;
  }

 protected:
  struct Life {
    std::size_t bytes = 0;
    int first = 0;
    int last = 0;
  };

  using Order = std::array<int, static_cast<std::size_t>(kMax)>;
  static constexpr Order order_made() noexcept {
    Order order{};
    for (int i = 0; i < kMax; ++i) order[static_cast<std::size_t>(i)] = i;
    return order;
  }

  // Gives the values their places, one after the other.
  NIBBLE_COLD constexpr void place_values(BasicPlan<kMax>& plan,
                                          const Order& order) const noexcept {
    plan.n_values = n_;
    plan.error = error_;
    plan.rows = rows_;
    plan.width = width_;
    if (n_ > kMax && error_ == nullptr) plan.error = "the expression has too many results";
    if (!plan.is_valid()) return;
    for (int i = 0; i < n_; ++i) {
      const auto id = static_cast<std::size_t>(order[static_cast<std::size_t>(i)]);
      const std::size_t offset = lowest_free(plan, order, i);
      plan.offsets[id] = offset;
      plan.bytes = (std::max)(plan.bytes, offset + lives_[id].bytes);
    }
    plan.factors_at = plan.bytes;
    plan.bytes += factor_bytes_;
  }

  NIBBLE_COLD constexpr int define(Index bytes) noexcept {
    const int id = next_++;
    n_ = (std::max)(n_, next_);
    if (bytes > kMaxValueBytes - static_cast<Index>(kAlignment)) {
      fail("a result is too large for the address space");
      bytes = 0;  // of a layer that skips it: it has no memory there
    }
    if (id < kMax) {
      Life& life = lives_[static_cast<std::size_t>(id)];
      const std::size_t rounded = align_up(static_cast<std::size_t>(bytes));
      if (is_later_round_) {  // the same value in a later layer
        life.bytes = (std::max)(life.bytes, rounded);
      } else {
        life = {rounded, time_, time_};
      }
    }
    return id;
  }
  NIBBLE_COLD constexpr void use(int id) noexcept {
    if (id >= 0 && id < kMax)
      lives_[static_cast<std::size_t>(id)].last =
          (std::max)(lives_[static_cast<std::size_t>(id)].last, time_);
  }

  // The lowest offset at which the next value, the i-th of the order, overlaps none of those before
  // it that live at the same time.
  constexpr std::size_t lowest_free(const BasicPlan<kMax>& plan, const Order& order,
                                    int i) const noexcept {
    const auto id = static_cast<std::size_t>(order[static_cast<std::size_t>(i)]);
    const Life& life = lives_[id];
    std::size_t offset = 0;
    for (bool moved = true; moved;) {
      moved = false;
      for (int j = 0; j < i; ++j) {
        const auto other_id = static_cast<std::size_t>(order[static_cast<std::size_t>(j)]);
        const Life& other = lives_[other_id];
        const std::size_t begin = plan.offsets[other_id];
        const bool same_time = other.first <= life.last && life.first <= other.last;
        if (same_time && offset < begin + other.bytes && begin < offset + life.bytes) {
          offset = begin + other.bytes;
          moved = true;
        }
      }
    }
    return offset;
  }

  Limits limits_;
  std::array<Life, static_cast<std::size_t>(kMax)> lives_{};
  int n_ = 0;     // values defined
  int next_ = 0;  // id of the next one
  int time_ = 0;
  Index layer_ = -1;
  Index n_layers_ = 0;  // so far
  Value<> beside_;
  Index kv_heads_ = 0;  // what the layer has stored in its cache; 0: nothing
  Index kv_dim_ = 0;
  Rows rows_ = Rows::all;  // of the result
  Index width_ = 0;
  bool is_later_round_ = false;  // of a repeat
  bool is_skipped_ = false;      // this layer leaves out what is being walked
  bool differs_ = false;         // some value differs by layer
  std::size_t factor_bytes_ = 0;
  const char* error_ = nullptr;
};
using Planner = BasicPlanner<kMaxValues>;

}  // namespace detail

// The memory that `expression` needs within `limits`; Plan::error says what is wrong with them.
template <Expr E>
constexpr Plan make_plan(const E& expression, const Limits& limits) noexcept {
  detail::Planner planner(limits);
  const auto out = apply(expression, planner, Start{});
  if constexpr (requires { out.id; }) planner.finish(out);
  return planner.plan();
}

}}}  // namespace nibble::NIBBLE_ABI::graph
