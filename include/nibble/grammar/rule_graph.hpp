// SPDX-License-Identifier: Apache-2.0
//
// One rule as a graph over bytes: expressions become edges, and the graph becomes deterministic. An
// internal step of automaton.hpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "nibble/core/config.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/grammar/code_points.hpp"
#include "nibble/grammar/rule_facts.hpp"
#include "nibble/grammar/rules.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace grammar {

// Index of a state of a graph or an automaton.
struct StateId {
  std::uint32_t value = 0;
  friend constexpr bool operator==(StateId a, StateId b) noexcept { return a.value == b.value; }
  friend constexpr bool operator<(StateId a, StateId b) noexcept { return a.value < b.value; }
};

// One of these bytes leads to the target.
struct ByteEdge {
  std::uint8_t first = 0, last = 0;  // both belong to it
  StateId target;
};
// What a rule of the automaton matches, which is at least one byte, leads to the target.
struct CallEdge {
  std::uint32_t rule = 0;
  StateId target;
};

// A state of a deterministic graph: edges of different bytes or rules. (Not deterministic if that
// would be many times as large: then several edges may have a byte.)
struct GraphState {
  std::vector<ByteEdge> edges;
  std::vector<CallEdge> calls;
  bool is_final = false;
};

// Builds the graph of an expression with McNaughton, Yamada and Thompson's construction, and makes
// it deterministic by the subset construction; calls are symbols like bytes. Nothing leads back to
// state 0, where it begins, and that is never final: that an expression matches the empty text is
// known from RuleFacts, and its callers go past it.
class RuleGraph {
 public:
  // Gives the number of the automaton's rule for a rule, or for a repetition that is counted.
  class Callees {
   public:
    virtual std::uint32_t of_rule(RuleId rule) = 0;
    virtual std::uint32_t of_repeat(ExprId id) = 0;

   protected:
    ~Callees() = default;
  };

  RuleGraph(const Rules& rules, const RuleFacts& facts, Callees& callees)
      : rules_(rules), facts_(facts), callees_(callees) {}

  // Graphs with more states than this are not made.
  static constexpr std::size_t kMaxStates = std::size_t{1} << 18;

  // Replaces `states`. False: the graph would be too large.
  bool build(ExprId body, std::vector<GraphState>& states) {
    nodes_.clear();
    set_tails_.clear();
    const StateId first = add_node();
    final_ = add_node();
    add(body, first, final_);
    if (nodes_.size() > kMaxStates) return false;
    if (!determinize(first, states)) keep_nodes(states);
    states[0].is_final = false;
    return true;
  }

 private:
  struct Node {
    std::vector<ByteEdge> edges;
    std::vector<CallEdge> calls;
    std::vector<StateId> free;  // edges without a byte
  };
  struct SetTail {  // a state that has this edge only
    ByteRange bytes;
    StateId target, state;
  };
  using Subset = std::vector<StateId>;  // ascending

  StateId add_node() {
    nodes_.emplace_back();
    return {static_cast<std::uint32_t>(nodes_.size() - 1)};
  }
  Node& node(StateId id) noexcept { return nodes_[id.value]; }

  void add(ExprId id, StateId from, StateId to);
  void add_text(std::string_view bytes, StateId from, StateId to);
  void add_set(const CodePoints& set, StateId from, StateId to);
  void add_repeat(ExprId id, StateId from, StateId to);
  void add_call(std::uint32_t rule, bool is_nullable, StateId from, StateId to) {
    node(from).calls.push_back({rule, to});
    if (is_nullable) node(from).free.push_back(to);
  }

  void close(Subset& subset);
  bool determinize(StateId first, std::vector<GraphState>& states);
  template <class TargetOf>
  void add_byte_edges(const Subset& subset, GraphState& state, TargetOf target_of);
  template <class TargetOf>
  void add_calls(const Subset& subset, GraphState& state, TargetOf target_of);
  void keep_nodes(std::vector<GraphState>& states);

  const Rules& rules_;
  const RuleFacts& facts_;
  Callees& callees_;
  std::vector<Node> nodes_;
  std::vector<SetTail> set_tails_;
  std::vector<Scalar<std::uint32_t>> seen_;  // (nodes) for close()
  std::uint32_t n_closed_ = 0;
  StateId final_;
};

inline void RuleGraph::add(ExprId id, StateId from, StateId to) {
  if (nodes_.size() > kMaxStates || !facts_.matches(id)) return;
  const Expr& e = rules_.expr(id);
  switch (e.kind) {
    case Expr::Kind::text: return add_text(rules_.text_of(e), from, to);
    case Expr::Kind::set: return add_set(rules_.set_of(e), from, to);
    case Expr::Kind::repeat: return add_repeat(id, from, to);
    case Expr::Kind::rule: {
      const RuleId rule{e.first};
      if (facts_.is_inlined(rule)) return add(rules_.body(rule), from, to);
      return add_call(callees_.of_rule(rule), facts_.is_nullable(rules_.body(rule)), from, to);
    }
    case Expr::Kind::choice:
      for (const ExprId part : rules_.parts(e)) add(part, from, to);
      return;
    case Expr::Kind::sequence: break;
  }
  for (std::uint32_t i = 0; i < e.n; ++i) {
    const StateId next = i + 1 == e.n ? to : add_node();
    add(rules_.parts(e)[i], from, next);
    from = next;
  }
  if (e.n == 0) node(from).free.push_back(to);
}

inline void RuleGraph::add_text(std::string_view bytes, StateId from, StateId to) {
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const StateId next = i + 1 == bytes.size() ? to : add_node();
    const auto byte = static_cast<std::uint8_t>(bytes[i]);
    node(from).edges.push_back({byte, byte, next});
    from = next;
  }
  if (bytes.empty()) node(from).free.push_back(to);
}

inline void RuleGraph::add_set(const CodePoints& set, StateId from, StateId to) {
  // The ends of characters are shared, or a set would be several times as large.
  set_tails_.clear();
  for_each_utf8(set, [&](std::span<const ByteRange> bytes) {
    StateId target = to;
    for (std::size_t i = bytes.size(); i-- > 1;) {
      const auto tail = std::find_if(set_tails_.begin(), set_tails_.end(), [&](const SetTail& t) {
        return t.bytes.first == bytes[i].first && t.bytes.last == bytes[i].last &&
               t.target == target;
      });
      if (tail != set_tails_.end()) {
        target = tail->state;
        continue;
      }
      const StateId state = add_node();
      node(state).edges.push_back({bytes[i].first, bytes[i].last, target});
      set_tails_.push_back({bytes[i], target, state});
      target = state;
    }
    node(from).edges.push_back({bytes[0].first, bytes[0].last, target});
  });
}

inline void RuleGraph::add_repeat(ExprId id, StateId from, StateId to) {
  const Expr& e = rules_.expr(id);
  const ExprId part = rules_.parts(e)[0];
  const bool is_nullable = facts_.is_nullable(id);
  if (is_nullable) node(from).free.push_back(to);
  if (e.max == 0 || !facts_.matches(part)) return;
  if (facts_.is_counted(id)) return add_call(callees_.of_repeat(id), false, from, to);
  const std::uint32_t n = e.max == kUnbounded ? e.min : e.max;
  for (std::uint32_t i = 0; i < n; ++i) {
    const StateId next = add_node();
    add(part, from, next);
    if (i + 1 >= e.min) node(next).free.push_back(to);
    from = next;
  }
  if (e.max != kUnbounded) return;
  const StateId again = add_node();
  node(from).free.push_back(again);
  add(part, again, again);
  node(again).free.push_back(to);
}

// Adds what can be reached without a byte.
inline void RuleGraph::close(Subset& subset) {
  if (++n_closed_ == 0 || seen_.size() != nodes_.size()) {
    seen_.assign(nodes_.size(), {});
    n_closed_ = 1;
  }
  std::size_t n = 0;
  for (const StateId id : subset)
    if (std::exchange(seen_[id.value].value, n_closed_) != n_closed_) subset[n++] = id;
  subset.resize(n);
  for (std::size_t i = 0; i < subset.size(); ++i) {
    for (const StateId id : node(subset[i]).free)
      if (std::exchange(seen_[id.value].value, n_closed_) != n_closed_) subset.push_back(id);
  }
  std::sort(subset.begin(), subset.end());
}

// False if the deterministic graph would be much larger.
inline bool RuleGraph::determinize(StateId first, std::vector<GraphState>& states) {
  const std::size_t max_states = 2 * nodes_.size() + 256;
  const std::size_t max_work = 64 * nodes_.size() + (std::size_t{1} << 16);
  std::size_t work = 0;
  std::map<Subset, StateId> ids;
  std::vector<const Subset*> subsets;
  const auto id_of = [&](Subset&& subset) {
    close(subset);
    const auto [place, is_new] = ids.try_emplace(std::move(subset));
    if (is_new) {
      place->second = {static_cast<std::uint32_t>(subsets.size())};
      subsets.push_back(&place->first);
      work += place->first.size();
    }
    return place->second;
  };
  states.clear();
  id_of({first});
  for (std::size_t i = 0; i < subsets.size(); ++i) {
    if (subsets.size() > max_states || work > max_work) return false;
    GraphState state;
    const Subset& subset = *subsets[i];
    state.is_final = std::binary_search(subset.begin(), subset.end(), final_);
    add_byte_edges(subset, state, id_of);
    add_calls(subset, state, id_of);
    states.push_back(std::move(state));
  }
  return true;
}

template <class TargetOf>
void RuleGraph::add_byte_edges(const Subset& subset, GraphState& state, TargetOf target_of) {
  std::vector<ByteEdge> edges;
  for (const StateId id : subset) {
    edges.insert(edges.end(), node(id).edges.begin(), node(id).edges.end());
  }
  std::sort(edges.begin(), edges.end(),
            [](const ByteEdge& a, const ByteEdge& b) { return a.first < b.first; });
  std::vector<ByteEdge> open;  // those that the byte `at` is in
  std::size_t next = 0;
  for (unsigned at = 0; at < 256;) {
    std::erase_if(open, [&](const ByteEdge& e) { return e.last < at; });
    if (open.empty()) {
      if (next == edges.size()) return;
      at = (std::max)(at, unsigned{edges[next].first});
    }
    while (next < edges.size() && edges[next].first <= at) open.push_back(edges[next++]);
    unsigned last = next < edges.size() ? edges[next].first - 1u : 255u;
    Subset targets;
    for (const ByteEdge& e : open) {
      last = (std::min)(last, unsigned{e.last});
      targets.push_back(e.target);
    }
    const StateId target = target_of(std::move(targets));
    if (!state.edges.empty() && state.edges.back().last + 1u == at &&
        state.edges.back().target == target) {
      state.edges.back().last = static_cast<std::uint8_t>(last);
    } else {
      state.edges.push_back(
          {static_cast<std::uint8_t>(at), static_cast<std::uint8_t>(last), target});
    }
    at = last + 1;
  }
}

template <class TargetOf>
void RuleGraph::add_calls(const Subset& subset, GraphState& state, TargetOf target_of) {
  std::vector<CallEdge> calls;
  for (const StateId id : subset) {
    calls.insert(calls.end(), node(id).calls.begin(), node(id).calls.end());
  }
  std::sort(calls.begin(), calls.end(),
            [](const CallEdge& a, const CallEdge& b) { return a.rule < b.rule; });
  for (std::size_t i = 0; i < calls.size();) {
    const std::uint32_t rule = calls[i].rule;
    Subset targets;
    for (; i < calls.size() && calls[i].rule == rule; ++i) targets.push_back(calls[i].target);
    state.calls.push_back({rule, target_of(std::move(targets))});
  }
}

// The graph as it is (node 0 is the first), without free edges: each node has the edges of those
// that it reaches freely.
inline void RuleGraph::keep_nodes(std::vector<GraphState>& states) {
  states.clear();
  states.resize(nodes_.size());
  for (std::uint32_t i = 0; i < nodes_.size(); ++i) {
    Subset subset{StateId{i}};
    close(subset);
    for (const StateId id : subset) {
      const Node& from = node(id);
      states[i].edges.insert(states[i].edges.end(), from.edges.begin(), from.edges.end());
      states[i].calls.insert(states[i].calls.end(), from.calls.begin(), from.calls.end());
      states[i].is_final = states[i].is_final || id == final_;
    }
  }
}

}}}  // namespace nibble::NIBBLE_ABI::grammar
