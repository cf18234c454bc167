// SPDX-License-Identifier: Apache-2.0
//
// What a grammar can go on with after a text: a set of stacks of automaton states. Sets get numbers
// when they first occur, and steps from number to number by a byte are remembered: a deterministic
// automaton that grows as it is used.
//
// Stacks share what lies below their tops: a context is the set of places to return to, and each of
// those has a context itself. All calls of a rule after the same text get one context together, as
// in Earley's algorithm and the graph-structured stacks of Tomita; so the work of a step is
// bounded, however ambiguous the grammar is. A call at the end of a rule returns where that rule
// returns: right recursion needs no memory.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "nibble/core/config.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/grammar/automaton.hpp"
#include "nibble/io/byte_reader.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace grammar {

// Number of a set of stacks.
struct StackId {
  std::uint32_t value = 0;
  friend constexpr bool operator==(const StackId&, const StackId&) noexcept = default;
};
NIBBLE_HIDDEN inline constexpr StackId kDead{0};  // no stacks: the text is outside the grammar
NIBBLE_HIDDEN inline constexpr StackId kNoRoom{
    0xFFFFFFFE};  // instead of a number: collect() and begin anew
// Instead of a number: more than kMaxItems stacks at once.
NIBBLE_HIDDEN inline constexpr StackId kTooAmbiguous{0xFFFFFFFD};
constexpr bool is_number(StackId id) noexcept { return id.value < kTooAmbiguous.value; }

// Number of a context.
struct ContextId {
  std::uint32_t value = 0;
  friend constexpr bool operator==(ContextId a, ContextId b) noexcept { return a.value == b.value; }
  friend constexpr bool operator<(ContextId a, ContextId b) noexcept { return a.value < b.value; }
};

// The top of stacks: a state of the automaton, how often its rule has repeated if it counts, and
// what lies below.
struct StackItem {
  StateId state;
  std::uint32_t count = 0;
  ContextId context;
  friend constexpr bool operator==(const StackItem& a, const StackItem& b) noexcept {
    return a.state == b.state && a.count == b.count && a.context == b.context;
  }
  friend constexpr bool operator<(const StackItem& a, const StackItem& b) noexcept {
    if (!(a.state == b.state)) return a.state < b.state;
    return a.count != b.count ? a.count < b.count : a.context < b.context;
  }
};

constexpr bool is_equal(std::span<const StackItem> a, std::span<const StackItem> b) noexcept {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

// All memory is allocated when it is made. Not for several threads at once.
class StackStates {
 public:
  static constexpr std::size_t kMaxItems = 1024;

  // The automaton must outlive it. `n_states`: how many numbers there are, at least 1 024.
  StackStates(const Automaton& automaton, std::size_t n_states);

  // Before the first byte.
  StackId start();
  // A single state on top of what is not known: where the rule of the state ends, `leaves` is true.
  StackId inner(StateId state, std::uint32_t count);
  // The stacks that have this item on top.
  StackId alone(const StackItem& item);
  // Where stacks with this context are when the rule on top of it ends.
  StackId returned(ContextId context);
  // After one byte more.
  StackId next(StackId from, std::uint8_t byte) {
    const StackId known = rows_[row_of(from, byte)];
    return known.value != kUnknown ? known : step(from, byte);
  }

  bool can_end(StackId id) const noexcept { return states_[id.value].can_end; }
  bool leaves(StackId id) const noexcept { return states_[id.value].leaves; }
  // The tops of the stacks, ascending; none of them only returns.
  std::span<const StackItem> items(StackId id) const noexcept {
    return std::span<const StackItem>(items_).subspan(states_[id.value].items,
                                                      states_[id.value].n_items);
  }
  // Numbers are below this one.
  std::size_t n_states() const noexcept { return states_.size(); }
  // The only byte that can come next; −1 if there are several, or none. Errors (below −1): −2 for
  // kNoRoom, −3 for kTooAmbiguous.
  int only_byte(StackId id);
  const Automaton& automaton() const noexcept { return *automaton_; }

  // Forgets all sets but those that are in use: for_each(f) calls f(StackId&) for each of these,
  // and they get new numbers. (It is called twice.)
  template <class ForEach>
  void collect(ForEach for_each);

 private:
  static constexpr std::size_t kFewItems = 16;  // fewer than this are searched one by one
  static constexpr std::uint32_t kUnknown = 0xFFFFFFFF;
  static constexpr ContextId kEnd{0}, kBottom{1};  // below all stacks: the end; what is not known
  // Frames of those two contexts.
  static constexpr StateId kEndMark{0xFFFFFFFF}, kBottomMark{0xFFFFFFFE};

  struct Span {
    std::uint32_t first = 0, n = 0;
  };
  struct State {
    std::uint32_t items = 0, n_items = 0;
    std::uint32_t scans = 0, n_scans = kUnknown;  // items whose states have edges; made by expand()
    bool can_end = false, leaves = false;
  };
  struct Call {
    std::uint32_t rank, rule;
    StackItem frame;
    friend bool operator<(const Call& a, const Call& b) noexcept { return a.rank > b.rank; }
  };
  // Open addressing; the entries are numbers of states or contexts, + 1.
  struct Table {
    std::vector<Scalar<std::uint32_t>> places;
    void clear() { std::fill(places.begin(), places.end(), Scalar<std::uint32_t>{}); }
  };

  std::size_t row_of(StackId id, std::uint8_t byte) const noexcept {
    return id.value * automaton_->n_classes() + automaton_->class_of(byte);
  }
  void clear();
  bool has_room() const noexcept;
  StackId step(StackId from, std::uint8_t byte);
  void begin_set() noexcept;
  void add(const StackItem& item) noexcept;
  bool see(std::size_t i) noexcept;
  void add_frames(ContextId context) noexcept;
  void settle() noexcept;
  StackId number_of_set();
  bool expand(StackId id);
  void push_calls(const StackItem& item) noexcept;
  ContextId number_of_frames(std::span<StackItem> frames);
  template <class Equals>
  std::uint32_t& place_of(Table& table, std::span<const StackItem> items, std::uint32_t flags,
                          Equals equals) noexcept;

  const Automaton* automaton_;
  std::size_t max_states_;
  std::vector<State> states_;
  std::vector<StackId> rows_;  // (states, classes)
  std::vector<StackItem> items_;
  std::vector<Span> contexts_;     // in frames_
  std::vector<StackItem> frames_;  // where to return to
  Table state_table_, context_table_;
  // Of begin_set() to number_of_set(), and of expand().
  std::vector<StackItem> set_;
  std::vector<Call> open_calls_;
  std::vector<Scalar<std::uint32_t>> seen_;  // of more than kFewItems: open addressing, index + 1
  bool can_end_ = false, leaves_ = false, is_too_large_ = false;
  bool is_seen_used_ = false;
  // Of collect(): what is kept, and new numbers.
  std::vector<StackItem> kept_items_, kept_frames_;
  std::vector<State> kept_states_;
  std::vector<Span> kept_contexts_;
  std::vector<ContextId> new_contexts_;
  std::vector<StackId> new_states_;
};

inline StackStates::StackStates(const Automaton& automaton, std::size_t n_states)
    : automaton_(&automaton), max_states_(n_states) {
  states_.reserve(n_states);
  rows_.reserve(n_states * automaton.n_classes());
  items_.reserve(n_states * 8 + 4 * kMaxItems);
  contexts_.reserve(n_states * 2 + 8 * kMaxItems);
  frames_.reserve(n_states * 4 + 8 * kMaxItems);
  state_table_.places.resize(std::bit_ceil(2 * n_states));
  context_table_.places.resize(std::bit_ceil(2 * contexts_.capacity()));
  set_.reserve(kMaxItems);
  open_calls_.reserve(kMaxItems);
  seen_.resize(4 * kMaxItems);
  kept_items_.reserve(items_.capacity());
  kept_frames_.reserve(frames_.capacity());
  kept_states_.reserve(n_states);
  kept_contexts_.reserve(contexts_.capacity());
  new_contexts_.reserve(contexts_.capacity());
  new_states_.reserve(n_states);
  clear();
}

inline void StackStates::clear() {
  states_.clear();
  rows_.clear();
  items_.clear();
  contexts_.clear();
  frames_.clear();
  state_table_.clear();
  context_table_.clear();
  begin_set();
  number_of_set();  // kDead
  StackItem mark{kEndMark, 0, kEnd};
  number_of_frames({&mark, 1});
  mark = {kBottomMark, 0, kEnd};
  number_of_frames({&mark, 1});
}

// Whether there is room for all that one step can add.
inline bool StackStates::has_room() const noexcept {
  return states_.size() + 2 <= max_states_ && items_.capacity() - items_.size() >= 2 * kMaxItems &&
         contexts_.capacity() - contexts_.size() >= 4 * kMaxItems &&
         frames_.capacity() - frames_.size() >= 4 * kMaxItems;
}

inline StackId StackStates::start() {
  if (!has_room()) return kNoRoom;
  begin_set();
  const StateId first = automaton_->rule(Automaton::kRoot).start;
  if (!automaton_->is_end(first)) set_.push_back({first, 0, kEnd});
  can_end_ = automaton_->matches_nothing();
  return number_of_set();
}

inline StackId StackStates::inner(StateId state, std::uint32_t count) {
  // (Not settled: what follows if the rule ends here is not asked for.)
  return alone({state, count, kBottom});
}

inline StackId StackStates::alone(const StackItem& item) {
  if (!has_room()) return kNoRoom;
  begin_set();
  set_.push_back(item);
  return number_of_set();
}

inline StackId StackStates::returned(ContextId context) {
  if (!has_room()) return kNoRoom;
  begin_set();
  add_frames(context);
  settle();
  return number_of_set();
}

inline StackId StackStates::step(StackId from, std::uint8_t byte) {
  if (!has_room()) return kNoRoom;
  if (!expand(from)) return kTooAmbiguous;
  begin_set();
  const State state = states_[from.value];
  std::uint8_t low = 0, high = 0xFF;  // these bytes lead to the same set
  for (std::uint32_t i = 0; i < state.n_scans; ++i) {
    const StackItem item = items_[state.scans + i];
    for (const ByteEdge& edge : automaton_->edges(item.state)) {
      if (edge.last < byte) {
        low = (std::max)(low, static_cast<std::uint8_t>(edge.last + 1));
      } else if (edge.first > byte) {
        high = (std::min)(high, static_cast<std::uint8_t>(edge.first - 1));
      } else {
        low = (std::max)(low, edge.first);
        high = (std::min)(high, edge.last);
        add({edge.target, item.count, item.context});
      }
    }
  }
  settle();
  const StackId id = number_of_set();
  if (!is_number(id)) return id;
  const std::size_t last = row_of(from, high);
  for (std::size_t i = row_of(from, low); i <= last; ++i) rows_[i] = id;
  return id;
}

inline void StackStates::begin_set() noexcept {
  if (std::exchange(is_seen_used_, false)) {
    std::fill(seen_.begin(), seen_.end(), Scalar<std::uint32_t>{});
  }
  set_.clear();
  can_end_ = leaves_ = is_too_large_ = false;
}

namespace detail {
constexpr std::uint64_t mixed(std::uint64_t hash, std::uint64_t value) noexcept {
  hash = (hash ^ value) * 0xD6E8FEB86659FD93u;
  return hash ^ hash >> 32;
}
constexpr std::uint64_t mixed(std::uint64_t hash, const StackItem& item) noexcept {
  hash = mixed(hash, std::uint64_t{item.state.value} << 32 | item.count);
  return mixed(hash, item.context.value);
}
}  // namespace detail

inline void StackStates::add(const StackItem& item) noexcept {
  if (item.state == kEndMark) {
    can_end_ = true;
    return;
  }
  if (item.state == kBottomMark) {
    leaves_ = true;
    return;
  }
  if (set_.size() <= kFewItems) {
    if (std::find(set_.begin(), set_.end(), item) != set_.end()) return;
    set_.push_back(item);
    if (set_.size() > kFewItems) {
      is_seen_used_ = true;
      for (std::size_t i = 0; i < set_.size(); ++i) see(i);
    }
    return;
  }
  if (set_.size() == kMaxItems) {
    is_too_large_ = true;
    return;
  }
  set_.push_back(item);
  if (!see(set_.size() - 1)) set_.pop_back();
}

// Notes item i of the set in the hash table. False: an equal one is there.
inline bool StackStates::see(std::size_t i) noexcept {
  const std::size_t mask = seen_.size() - 1;
  auto at = io::narrow<std::size_t>(detail::mixed(0, set_[i]) & mask);
  for (; seen_[at].value != 0; at = (at + 1) & mask)
    if (set_[seen_[at].value - 1] == set_[i]) return false;
  seen_[at].value = static_cast<std::uint32_t>(i + 1);
  return true;
}

inline void StackStates::add_frames(ContextId context) noexcept {
  const Span frames = contexts_[context.value];
  for (std::uint32_t i = 0; i < frames.n; ++i) add(frames_[frames.first + i]);
}

// Lets rules end: adds where that leads to, and drops what can only end.
inline void StackStates::settle() noexcept {
  for (std::size_t i = 0; i < set_.size(); ++i) {
    const StackItem item = set_[i];
    const Automaton::State& state = automaton_->state(item.state);
    if (!state.is_final) continue;
    const Automaton::Rule& rule = automaton_->rule(state.rule);
    if (!rule.is_counted) {
      add_frames(item.context);
      continue;
    }
    const bool is_bounded = rule.max != kUnbounded;
    const std::uint32_t count = is_bounded ? item.count + 1 : (std::min)(item.count + 1, rule.min);
    if (count >= rule.min) add_frames(item.context);
    if (!is_bounded || count < rule.max) add({rule.start, count, item.context});
  }
  std::erase_if(set_, [&](const StackItem& item) { return automaton_->is_end(item.state); });
}

// Finds or makes the entry for these items.
template <class Equals>
std::uint32_t& StackStates::place_of(Table& table, std::span<const StackItem> items,
                                     std::uint32_t flags, Equals equals) noexcept {
  std::uint64_t hash = detail::mixed(items.size(), flags);
  for (const StackItem& item : items) hash = detail::mixed(hash, item);
  const std::size_t mask = table.places.size() - 1;
  auto at = io::narrow<std::size_t>(hash & mask);
  while (table.places[at].value != 0 && !equals(table.places[at].value - 1)) at = (at + 1) & mask;
  return table.places[at].value;
}

inline StackId StackStates::number_of_set() {
  if (is_too_large_) return kTooAmbiguous;
  std::sort(set_.begin(), set_.end());
  const std::uint32_t flags = (can_end_ ? 1u : 0u) + (leaves_ ? 2u : 0u);
  std::uint32_t& place = place_of(state_table_, set_, flags, [&](std::uint32_t other) {
    return states_[other].can_end == can_end_ && states_[other].leaves == leaves_ &&
           is_equal(items({other}), set_);
  });
  if (place == 0) {
    State state;
    state.items = static_cast<std::uint32_t>(items_.size());
    state.n_items = static_cast<std::uint32_t>(set_.size());
    state.can_end = can_end_;
    state.leaves = leaves_;
    items_.insert(items_.end(), set_.begin(), set_.end());
    states_.push_back(state);
    rows_.insert(rows_.end(), automaton_->n_classes(), StackId{kUnknown});
    place = static_cast<std::uint32_t>(states_.size());
  }
  return {place - 1};
}

// Finds the states from which bytes lead on: those on top, and the beginnings of rules that these
// call. False: there are too many.
inline bool StackStates::expand(StackId id) {
  if (states_[id.value].n_scans != kUnknown) return true;
  const auto first = static_cast<std::uint32_t>(items_.size());
  is_too_large_ = false;
  open_calls_.clear();
  const auto scan = [&](const StackItem& item) {
    if (!automaton_->edges(item.state).empty()) {
      if (items_.size() - first == kMaxItems) {
        is_too_large_ = true;
      } else {
        items_.push_back(item);
      }
    }
    push_calls(item);
  };
  for (std::uint32_t i = 0; i < states_[id.value].n_items; ++i) {
    scan(items_[states_[id.value].items + i]);
  }
  // Rules come in the order of their ranks: when it is a rule's turn, all its calls are known.
  while (!open_calls_.empty() && !is_too_large_) {
    const std::uint32_t rule = open_calls_.front().rule;
    set_.clear();
    while (!open_calls_.empty() && open_calls_.front().rule == rule) {
      set_.push_back(open_calls_.front().frame);
      std::pop_heap(open_calls_.begin(), open_calls_.end());
      open_calls_.pop_back();
    }
    if (frames_.capacity() - frames_.size() < set_.size() ||
        contexts_.size() == contexts_.capacity()) {
      is_too_large_ = true;
      break;
    }
    scan({automaton_->rule(rule).start, 0, number_of_frames(set_)});
  }
  if (is_too_large_) {
    items_.resize(first);
    return false;
  }
  states_[id.value].scans = first;
  states_[id.value].n_scans = static_cast<std::uint32_t>(items_.size()) - first;
  return true;
}

inline int StackStates::only_byte(StackId id) {
  if (!has_room()) return -2;
  if (!expand(id)) return -3;
  int only = -1;
  const State& state = states_[id.value];
  for (std::uint32_t i = 0; i < state.n_scans; ++i) {
    for (const ByteEdge& edge : automaton_->edges(items_[state.scans + i].state)) {
      if (edge.first != edge.last || (only >= 0 && only != edge.first)) return -1;
      only = edge.first;
    }
  }
  return only;
}

inline void StackStates::push_calls(const StackItem& item) noexcept {
  const auto push = [&](std::uint32_t rule, const StackItem& frame) {
    if (open_calls_.size() == kMaxItems) {
      is_too_large_ = true;
      return;
    }
    open_calls_.push_back({automaton_->rule(rule).rank, rule, frame});
    std::push_heap(open_calls_.begin(), open_calls_.end());
  };
  for (const CallEdge& call : automaton_->calls(item.state)) {
    const Automaton::State& target = automaton_->state(call.target);
    const bool only_returns = target.is_final && automaton_->is_end(call.target) &&
                              !automaton_->rule(target.rule).is_counted;
    if (!only_returns) {
      push(call.rule, {call.target, item.count, item.context});
      continue;
    }
    const Span frames = contexts_[item.context.value];
    for (std::uint32_t i = 0; i < frames.n; ++i) push(call.rule, frames_[frames.first + i]);
  }
}

// Sorts the frames. There must be room for them.
inline ContextId StackStates::number_of_frames(std::span<StackItem> frames) {
  std::sort(frames.begin(), frames.end());
  frames = frames.first(
      static_cast<std::size_t>(std::unique(frames.begin(), frames.end()) - frames.begin()));
  std::uint32_t& place = place_of(context_table_, frames, 0, [&](std::uint32_t other) {
    const Span known = contexts_[other];
    return is_equal(std::span<const StackItem>(frames_).subspan(known.first, known.n), frames);
  });
  if (place == 0) {
    contexts_.push_back(
        {static_cast<std::uint32_t>(frames_.size()), static_cast<std::uint32_t>(frames.size())});
    frames_.insert(frames_.end(), frames.begin(), frames.end());
    place = static_cast<std::uint32_t>(contexts_.size());
  }
  return {place - 1};
}

template <class ForEach>
void StackStates::collect(ForEach for_each) {
  // Contexts refer to older ones only: one pass from the newest to the oldest finds all in use.
  constexpr ContextId kUsed{1};
  new_states_.assign(states_.size(), StackId{kUnknown});
  new_contexts_.assign(contexts_.size(), ContextId{0});
  for_each([&](StackId& id) { new_states_[id.value] = kDead; });
  for (std::size_t i = 0; i < states_.size(); ++i) {
    if (new_states_[i].value == kUnknown) continue;
    for (const StackItem& item : items({static_cast<std::uint32_t>(i)}))
      new_contexts_[item.context.value] = kUsed;
  }
  for (std::size_t i = contexts_.size(); i-- > 2;) {
    if (new_contexts_[i] != kUsed) continue;
    for (std::uint32_t k = 0; k < contexts_[i].n; ++k)
      new_contexts_[frames_[contexts_[i].first + k].context.value] = kUsed;
  }
  kept_states_.assign(states_.begin(), states_.end());
  kept_items_.assign(items_.begin(), items_.end());
  kept_contexts_.assign(contexts_.begin(), contexts_.end());
  kept_frames_.assign(frames_.begin(), frames_.end());
  clear();
  const auto renumber = [&](const std::vector<StackItem>& from, Span span) {
    set_.clear();
    for (std::uint32_t k = 0; k < span.n; ++k) {
      StackItem item = from[span.first + k];
      item.context = new_contexts_[item.context.value];
      set_.push_back(item);
    }
  };
  new_contexts_[0] = kEnd;
  new_contexts_[1] = kBottom;
  for (std::size_t i = 2; i < kept_contexts_.size(); ++i) {
    if (new_contexts_[i] != kUsed) continue;
    renumber(kept_frames_, kept_contexts_[i]);
    new_contexts_[i] = number_of_frames(set_);
  }
  for (std::size_t i = 0; i < kept_states_.size(); ++i) {
    if (new_states_[i].value == kUnknown) continue;
    begin_set();
    renumber(kept_items_, {kept_states_[i].items, kept_states_[i].n_items});
    can_end_ = kept_states_[i].can_end;
    leaves_ = kept_states_[i].leaves;
    new_states_[i] = number_of_set();
  }
  for_each([&](StackId& id) { id = new_states_[id.value]; });
}

}}}  // namespace nibble::NIBBLE_ABI::grammar
