// SPDX-License-Identifier: Apache-2.0
//
// A grammar as it is run: for each rule a graph over bytes and calls of other rules, all in a few
// arrays. A repetition with large limits is a rule that counts.
#pragma once

#include <algorithm>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/grammar/rule_facts.hpp"
#include "nibble/grammar/rule_graph.hpp"
#include "nibble/grammar/rules.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace grammar {

struct ByteSet {
  std::uint32_t words[8] = {};

  constexpr bool contains(unsigned byte) const noexcept {
    return (words[byte / 32] >> (byte % 32) & 1) != 0;
  }
  constexpr void add(unsigned first, unsigned last) noexcept {
    for (unsigned b = first; b <= last; ++b) words[b / 32] |= std::uint32_t{1} << (b % 32);
  }
  // Whether anything new came in.
  constexpr bool add(const ByteSet& other) noexcept {
    std::uint32_t fresh = 0;
    for (int i = 0; i < 8; ++i) {
      fresh |= other.words[i] & ~words[i];
      words[i] |= other.words[i];
    }
    return fresh != 0;
  }
};

// Immutable after compile(): threads may share it.
class Automaton {
 public:
  struct State {
    std::uint32_t edges = 0, calls = 0;  // where they begin; they end where the next state's begin
    std::uint32_t rule = 0;
    bool is_final = false;  // the rule may end here
  };
  struct Rule {
    StateId start;
    // A counted rule is a repetition: from its final states it ends, or begins again.
    bool is_counted = false;
    std::uint32_t min = 0, max = 0;
    std::uint32_t rank = 0;  // higher than that of the rules that can begin with a call of it
    ByteSet follow;          // the bytes that may come after it, wherever it is called
  };

  static constexpr std::size_t kMaxStates = std::size_t{1} << 19;

  // `all_match`: as RuleFacts::of. Errors: those of RuleFacts::of; unsupported (a rule can begin
  // with a call of itself through others: left recursion); limit (more than kMaxStates states).
  static Result<Automaton> compile(const Rules& rules, RuleId root, bool all_match) {
    return catch_out_of_memory([&]() -> Result<Automaton> {
      NIBBLE_TRY(facts, RuleFacts::of(rules, root, all_match));
      Automaton automaton;
      automaton.matches_nothing_ = facts.is_nullable(rules.body(root));
      NIBBLE_CHECK(automaton.build(rules, facts, root));
      NIBBLE_CHECK(automaton.rank_rules());
      automaton.find_follows();
      automaton.find_classes();
      return automaton;
    });
  }

  // The rule of the whole text; it is never counted.
  static constexpr std::uint32_t kRoot = 0;

  std::size_t n_states() const noexcept { return states_.size() - 1; }
  const State& state(StateId id) const noexcept { return states_[id.value]; }
  const Rule& rule(std::uint32_t id) const noexcept { return rules_[id]; }
  std::size_t n_rules() const noexcept { return rules_.size(); }
  std::span<const ByteEdge> edges(StateId id) const noexcept {
    return std::span<const ByteEdge>(edges_).subspan(
        states_[id.value].edges, states_[id.value + 1].edges - states_[id.value].edges);
  }
  std::span<const CallEdge> calls(StateId id) const noexcept {
    return std::span<const CallEdge>(calls_).subspan(
        states_[id.value].calls, states_[id.value + 1].calls - states_[id.value].calls);
  }
  // Whether nothing can follow in the rule.
  bool is_end(StateId id) const noexcept { return edges(id).empty() && calls(id).empty(); }
  // Whether the whole text may be empty.
  bool matches_nothing() const noexcept { return matches_nothing_; }

  // Bytes of one class lead to the same states everywhere.
  std::size_t n_classes() const noexcept { return class_bytes_.size(); }
  std::size_t class_of(std::uint8_t byte) const noexcept { return classes_[byte]; }
  std::uint8_t byte_of_class(std::size_t c) const noexcept { return class_bytes_[c].value; }

 private:
  struct Source {  // of a rule
    ExprId body;
    std::uint32_t name = 0;  // of the rule it is, or is in
    bool is_counted = false;
    std::uint32_t min = 0, max = 0;
  };
  class Sources;

  Automaton() = default;
  Result<void> build(const Rules& rules, const RuleFacts& facts, RuleId root);
  Result<void> rank_rules();
  ByteSet begin_of(StateId id) const noexcept;
  void find_follows();
  void find_classes();

  std::vector<State> states_;  // and one more, at which the last one's edges end
  std::vector<ByteEdge> edges_;
  std::vector<CallEdge> calls_;
  std::vector<Rule> rules_;
  std::vector<ByteSet> begins_;     // of rules: the bytes that they can begin with
  std::vector<std::string> names_;  // of rules, for errors
  std::uint8_t classes_[256] = {};
  std::vector<Scalar<std::uint8_t>> class_bytes_;  // one byte of each class
  bool matches_nothing_ = false;
};

// Numbers rules in the order in which they are first called.
class Automaton::Sources final : public RuleGraph::Callees {
 public:
  Sources(const Rules& rules, const RuleFacts& facts)
      : rules_(rules), facts_(facts), of_rules_(rules.n_rules()), of_repeats_(rules.n_exprs()) {}

  std::uint32_t of_rule(RuleId rule) override {
    return number(of_rules_[rule.value].value, {rules_.body(rule), rule.value});
  }
  std::uint32_t of_repeat(ExprId id) override {
    const Expr& e = rules_.expr(id);
    const ExprId part = rules_.parts(e)[0];
    const std::uint32_t min = facts_.is_nullable(part) ? 0 : e.min;
    return number(of_repeats_[id.value].value, {part, current, true, min, e.max});
  }

  std::vector<Source> all;
  std::uint32_t current = 0;  // the name of the rule that calls

 private:
  std::uint32_t number(std::uint32_t& known, const Source& source) {
    if (known == 0) {
      all.push_back(source);
      known = static_cast<std::uint32_t>(all.size());
    }
    return known - 1;
  }

  const Rules& rules_;
  const RuleFacts& facts_;
  std::vector<Scalar<std::uint32_t>> of_rules_, of_repeats_;  // number + 1
};

inline Result<void> Automaton::build(const Rules& rules, const RuleFacts& facts, RuleId root) {
  Sources sources(rules, facts);
  RuleGraph graph(rules, facts, sources);
  sources.of_rule(root);
  std::vector<GraphState> states;
  for (std::size_t i = 0; i < sources.all.size(); ++i) {
    const Source source = sources.all[i];
    sources.current = source.name;
    const bool is_built = graph.build(source.body, states);
    if (!is_built || states_.size() + states.size() > kMaxStates) {
      return Error{Errc::limit, "grammar: more than " + to_text(kMaxStates) +
                                    " states; the limit was reached in the rule " +
                                    io::quoted(rules.name({source.name}))};
    }
    const auto first = static_cast<std::uint32_t>(states_.size());
    Rule rule;
    rule.start = {first};
    rule.is_counted = source.is_counted;
    rule.min = source.min;
    rule.max = source.max;
    rules_.push_back(rule);
    names_.push_back(rules.name({source.name}));
    for (const GraphState& state : states) {
      states_.push_back({static_cast<std::uint32_t>(edges_.size()),
                         static_cast<std::uint32_t>(calls_.size()), static_cast<std::uint32_t>(i),
                         state.is_final});
      for (ByteEdge edge : state.edges) {
        edge.target.value += first;
        edges_.push_back(edge);
      }
      for (CallEdge call : state.calls) {
        call.target.value += first;
        calls_.push_back(call);
      }
    }
  }
  states_.push_back({static_cast<std::uint32_t>(edges_.size()),
                     static_cast<std::uint32_t>(calls_.size()), 0, false});
  return ok();
}

// Sorts rules so that each comes after those that can begin with it.
inline Result<void> Automaton::rank_rules() {
  struct Visit {
    std::uint32_t rule, next;  // the call of its start that comes next
  };
  enum class Mark : std::uint8_t { fresh, open, done };
  struct Marked {
    Mark mark = Mark::fresh;
  };
  std::vector<Marked> marks(rules_.size());
  std::vector<Visit> open;
  auto rank = static_cast<std::uint32_t>(rules_.size());
  for (std::uint32_t root = 0; root < rules_.size(); ++root) {
    if (marks[root].mark != Mark::fresh) continue;
    open.push_back({root, 0});
    marks[root].mark = Mark::open;
    while (!open.empty()) {
      const std::uint32_t rule = open.back().rule;
      const std::span<const CallEdge> begins = calls(rules_[rule].start);
      if (open.back().next == begins.size()) {
        marks[rule].mark = Mark::done;
        rules_[rule].rank = --rank;
        open.pop_back();
        continue;
      }
      const std::uint32_t callee = begins[open.back().next++].rule;
      if (marks[callee].mark == Mark::open) {
        return Error{Errc::unsupported,
                     "grammar: the rule " + io::quoted(names_[callee]) +
                         " can begin with itself (left recursion), through " +
                         io::quoted(names_[rule]) +
                         "; write what comes again as a repetition: r ::= x (\"+\" x)*"};
      }
      if (marks[callee].mark == Mark::done) continue;
      marks[callee].mark = Mark::open;
      open.push_back({callee, 0});
    }
  }
  return ok();
}

// The bytes that may come next in the rule of this state. Needs begins_ of the rules it calls.
inline ByteSet Automaton::begin_of(StateId id) const noexcept {
  ByteSet bytes;
  for (const ByteEdge& edge : edges(id)) bytes.add(edge.first, edge.last);
  for (const CallEdge& call : calls(id)) bytes.add(begins_[call.rule]);
  return bytes;
}

inline void Automaton::find_follows() {
  struct ByRank {
    std::uint32_t rule;
  };
  std::vector<ByRank> order(rules_.size());
  for (std::uint32_t i = 0; i < rules_.size(); ++i) order[rules_[i].rank] = {i};
  begins_.resize(rules_.size());
  for (std::size_t i = order.size(); i-- > 0;) {
    begins_[order[i].rule] = begin_of(rules_[order[i].rule].start);
  }
  // What follows a call follows the rule; where a call may be the end of its rule, so does what
  // follows that one.
  std::vector<std::vector<ByRank>> ends_with(rules_.size());
  for (std::uint32_t i = 0; i < n_states(); ++i) {
    const std::uint32_t rule = states_[i].rule;
    for (const CallEdge& call : calls({i})) {
      rules_[call.rule].follow.add(begin_of(call.target));
      if (!states_[call.target.value].is_final) continue;
      if (rules_[rule].is_counted) rules_[call.rule].follow.add(begins_[rule]);
      ends_with[rule].push_back({call.rule});
    }
  }
  std::vector<ByRank> todo = order;
  while (!todo.empty()) {
    const std::uint32_t rule = todo.back().rule;
    todo.pop_back();
    for (const ByRank callee : ends_with[rule])
      if (rules_[callee.rule].follow.add(rules_[rule].follow)) todo.push_back(callee);
  }
}

inline void Automaton::find_classes() {
  std::bitset<257> begins;
  begins[0] = true;
  for (const ByteEdge& edge : edges_) {
    begins[edge.first] = true;
    begins[edge.last + std::size_t{1}] = true;
  }
  for (std::size_t byte = 0; byte < 256; ++byte) {
    if (begins[byte]) class_bytes_.push_back({static_cast<std::uint8_t>(byte)});
    classes_[byte] = static_cast<std::uint8_t>(class_bytes_.size() - 1);
  }
}

}}}  // namespace nibble::NIBBLE_ABI::grammar
