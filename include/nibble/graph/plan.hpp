// SPDX-License-Identifier: Apache-2.0
//
// The memory of an expression: where each intermediate result lies in one arena, so that results
// that do not live at the same time share bytes. A plan is computed by the same walk over the
// expression that runs it (apply.hpp), at compile time when all dimensions are static.
#pragma once

#include <array>
#include <cstddef>

#include "nibble/core/arena.hpp"
#include "nibble/graph/apply.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

// Results of one layer and what stands around it; a Repeat's body counts once.
inline constexpr int kMaxValues = 64;

// So that all together fit in the address space: 32 MiB where pointers have 32 bits.
inline constexpr Index kMaxValueBytes = kMaxBytes / kMaxValues;

// What a plan must be large enough for.
struct Limits {
  Index max_tokens = 1;   // given to one run
  Index max_outputs = 1;  // rows after LastRows
  Index n_positions = 1;  // capacity of the cache
  Index max_workers = 1;  // of the executor
};

struct Plan {
  std::array<std::size_t, kMaxValues> offsets{};
  int n_values = 0;
  std::size_t bytes = 0;  // of the arena, which must be aligned to kAlignment
  bool fits = true;       // false when a result has more than kMaxValueBytes

  // False when the expression has more than kMaxValues results, or one that is too large.
  constexpr bool is_valid() const noexcept { return n_values <= kMaxValues && fits; }
};

namespace detail {

// Records when each value is first and last used, then packs them.
template <class Formats>
class Planner {
 public:
  using FormatTypes = Formats;
  constexpr explicit Planner(const Limits& limits) noexcept : limits_(limits) {}

  constexpr const Limits& limits() const noexcept { return limits_; }
  constexpr Index count(Rows rows) const noexcept {
    return rows == Rows::tokens ? limits_.max_tokens : limits_.max_outputs;
  }

  template <Index W>
  constexpr Value<W> make(Dim<W> width, Rows rows) noexcept {
    const Index bytes = count(rows) * width * Index{sizeof(float)};
    return {define(bytes), rows, 0, width, width};
  }
  constexpr Scratch scratch(std::size_t bytes) noexcept {
    return {define(static_cast<Index>(bytes))};
  }

  template <class F, class... Values>
  constexpr void step(F&&, const Values&... used) noexcept {
    (use(used.id), ...);
    ++time_;
  }

  template <class Body>
  constexpr void repeat(Index n, Body&& body) noexcept {
    if (n < 1) return;  // a run makes no values there either
    const int start = time_;
    body();
    // What was there before and is used by the body must outlive its last round.
    for (int i = 0; i < std::min(n_, kMaxValues); ++i) {
      Life& life = lives_[static_cast<std::size_t>(i)];
      if (life.first < start && life.last >= start) life.last = time_;
    }
    ++time_;
  }

  template <Label kName, class AnyValue>
  constexpr void observe(const AnyValue& value) noexcept {
    use(value.id);
  }

  constexpr Plan plan() const noexcept {
    Plan plan;
    plan.n_values = n_;
    plan.fits = fits_;
    if (!plan.is_valid()) return plan;
    for (int i = 0; i < n_; ++i) {
      const std::size_t offset = lowest_free(plan, i);
      plan.offsets[static_cast<std::size_t>(i)] = offset;
      plan.bytes = std::max(plan.bytes, offset + lives_[static_cast<std::size_t>(i)].bytes);
    }
    return plan;
  }

 private:
  struct Life {
    std::size_t bytes = 0;
    int first = 0;
    int last = 0;
  };

  constexpr int define(Index bytes) noexcept {
    if (bytes > kMaxValueBytes - static_cast<Index>(kAlignment)) {
      fits_ = false;
    } else if (n_ < kMaxValues) {
      const std::size_t rounded = align_up(static_cast<std::size_t>(bytes));
      lives_[static_cast<std::size_t>(n_)] = {rounded, time_, time_};
    }
    return n_++;
  }
  constexpr void use(int id) noexcept {
    if (id >= 0 && id < kMaxValues) lives_[static_cast<std::size_t>(id)].last = time_;
  }

  // The lowest offset at which value i overlaps no earlier value that lives when it does.
  constexpr std::size_t lowest_free(const Plan& plan, int i) const noexcept {
    const Life& life = lives_[static_cast<std::size_t>(i)];
    std::size_t offset = 0;
    for (bool moved = true; moved;) {
      moved = false;
      for (int j = 0; j < i; ++j) {
        const Life& other = lives_[static_cast<std::size_t>(j)];
        const std::size_t begin = plan.offsets[static_cast<std::size_t>(j)];
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
  std::array<Life, kMaxValues> lives_{};
  int n_ = 0;
  int time_ = 0;
  bool fits_ = true;
};

}  // namespace detail

// The memory that `expression` needs within `limits` when its weights are of these formats.
template <class Formats, Expr E>
constexpr Plan make_plan(const E& expression, const Limits& limits) noexcept {
  detail::Planner<Formats> planner(limits);
  apply(expression, planner, Start{});
  return planner.plan();
}

}}}  // namespace nibble::NIBBLE_ABI::graph
