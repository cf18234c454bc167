// SPDX-License-Identifier: Apache-2.0
//
// What is to be known of rules before they become automata: which match anything at all, which
// match nothing, how large they are, and so which are compiled into their callers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/grammar/code_points.hpp"
#include "nibble/grammar/rules.hpp"
#include "nibble/io/byte_reader.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace grammar {

class RuleFacts {
 public:
  // Of a nested expression: limits the recursion of what compiles it.
  static constexpr std::uint32_t kMaxDepth = 400;

  // Errors: malformed if `root` cannot match any text, or, with `all_match`, if one of the rules
  // that it needs cannot; limit (size, depth).
  static Result<RuleFacts> of(const Rules& rules, RuleId root, bool all_match) {
    if (rules.is_too_large()) return Error{Errc::limit, "grammar: it is too large"};
    RuleFacts facts(rules);
    facts.reach(root);
    facts.solve(facts.matches_, [&](const Expr& e) {
      return e.kind == Expr::Kind::text ||
             (e.kind == Expr::Kind::set && !rules.set_of(e).is_empty());
    });
    facts.solve(facts.nullable_, [&](const Expr& e) {  // whether it matches the empty text
      return e.kind == Expr::Kind::text && e.n == 0;
    });
    NIBBLE_CHECK(facts.check_matches(root, all_match));
    facts.measure_all(root);
    for (const ExprId id : facts.reached_) {
      if (facts.depths_[id.value].value <= kMaxDepth) continue;
      return Error{Errc::limit, "grammar: it is nested too deeply"};
    }
    return facts;
  }

  bool matches(ExprId id) const noexcept { return matches_[id.value].value; }
  bool is_nullable(ExprId id) const noexcept { return nullable_[id.value].value; }
  bool is_inlined(RuleId id) const noexcept { return rule_facts_[id.value].is_inlined; }
  // Whether a repetition is counted at run time instead of compiled as so many copies.
  bool is_counted(ExprId id) const noexcept { return counted_[id.value].value; }

 private:
  using Flags = std::vector<Scalar<bool>>;
  using Numbers = std::vector<Scalar<std::uint32_t>>;
  struct OfRule {
    bool is_reached = false, is_inlined = false, is_measured = false;
    std::uint32_t n_calls = 0;         // of it, in rules that are reached
    std::uint32_t n_open = 0;          // calls in it to rules that are not measured
    std::vector<RuleId> callers = {};  // once for each call
    std::vector<ExprId> exprs = {};    // ascending
  };

  static constexpr std::uint32_t kMaxCopies = 64;   // of states, for a repetition
  static constexpr std::uint32_t kMaxInlined = 24;  // states of a rule that has several callers
  static constexpr std::uint32_t kMaxOnceInlined = 2048;  // and of one that has one
  static constexpr std::uint32_t kMaxWeight = std::uint32_t{1} << 20;

  explicit RuleFacts(const Rules& rules)
      : rules_(&rules),
        matches_(rules.n_exprs()),
        nullable_(rules.n_exprs()),
        counted_(rules.n_exprs()),
        weights_(rules.n_exprs()),
        depths_(rules.n_exprs()),
        rule_facts_(rules.n_rules()) {}

  void reach(RuleId root);
  void reach_exprs(RuleId rule, Numbers& stamps);
  template <class IsLeafTrue>
  void solve(Flags& flags, IsLeafTrue is_leaf_true) const;
  Result<void> check_matches(RuleId root, bool all_match) const;
  void measure_all(RuleId root);
  void measure(RuleId rule, bool may_inline);
  void measure_expr(ExprId id);

  const Rules* rules_;
  Flags matches_, nullable_, counted_;
  Numbers weights_;  // about as many states as an expression becomes
  Numbers depths_;
  std::vector<OfRule> rule_facts_;
  std::vector<RuleId> reached_rules_;
  std::vector<ExprId> reached_;
};

// Finds the rules that are needed, their expressions and their calls.
inline void RuleFacts::reach(RuleId root) {
  Numbers stamps(rules_->n_exprs());
  rule_facts_[root.value].is_reached = true;
  reached_rules_.push_back(root);
  for (std::size_t i = 0; i < reached_rules_.size(); ++i) {
    const RuleId rule = reached_rules_[i];
    reach_exprs(rule, stamps);
    for (const ExprId id : rule_facts_[rule.value].exprs) {
      const Expr& e = rules_->expr(id);
      if (e.kind != Expr::Kind::rule) continue;
      OfRule& callee = rule_facts_[e.first];
      ++callee.n_calls;
      callee.callers.push_back(rule);
      ++rule_facts_[rule.value].n_open;
      if (!std::exchange(callee.is_reached, true)) reached_rules_.push_back({e.first});
    }
  }
}

// `stamps` (n_exprs): which rule has seen an expression last, + 1.
inline void RuleFacts::reach_exprs(RuleId rule, Numbers& stamps) {
  std::vector<ExprId>& exprs = rule_facts_[rule.value].exprs;
  const auto see = [&](ExprId id) {
    std::uint32_t& stamp = stamps[id.value].value;
    if (stamp == 0) reached_.push_back(id);
    if (std::exchange(stamp, rule.value + 1) != rule.value + 1) exprs.push_back(id);
  };
  see(rules_->body(rule));
  for (std::size_t i = 0; i < exprs.size(); ++i)
    for (const ExprId part : rules_->parts(rules_->expr(exprs[i]))) see(part);
  std::sort(exprs.begin(), exprs.end(), [](ExprId a, ExprId b) { return a.value < b.value; });
}

// The least solution: an expression is true if it is a leaf for which is_leaf_true() holds, a rule
// whose body is, a sequence of which all parts are, a choice of which one is, a repetition of what
// is or that may come no times. Time: the number of parts.
template <class IsLeafTrue>
void RuleFacts::solve(Flags& flags, IsLeafTrue is_leaf_true) const {
  const std::size_t n = rules_->n_exprs();
  Numbers begins(n + 1), open(n);
  const auto for_each_use = [&](auto&& f) {  // f(expression, the one that contains or calls it)
    for (const ExprId id : reached_) {
      const Expr& e = rules_->expr(id);
      if (e.kind == Expr::Kind::rule) f(rules_->body({e.first}), id);
      for (const ExprId part : rules_->parts(e)) f(part, id);
    }
  };
  for_each_use([&](ExprId part, ExprId) { ++begins[part.value + 1].value; });
  for (std::size_t i = 0; i < n; ++i) begins[i + 1].value += begins[i].value;
  std::vector<ExprId> users(begins[n].value);
  Numbers next = begins;
  for_each_use([&](ExprId part, ExprId user) { users[next[part.value].value++] = user; });

  std::vector<ExprId> todo;
  const auto set = [&](ExprId id) {
    if (!std::exchange(flags[id.value].value, true)) todo.push_back(id);
  };
  for (const ExprId id : reached_) {
    const Expr& e = rules_->expr(id);
    open[id.value].value = e.kind == Expr::Kind::sequence ? e.n : 1;
    const bool may_be_nothing = (e.kind == Expr::Kind::sequence && e.n == 0) ||
                                (e.kind == Expr::Kind::repeat && e.min == 0);
    if (may_be_nothing || is_leaf_true(e)) set(id);
  }
  while (!todo.empty()) {
    const ExprId id = todo.back();
    todo.pop_back();
    for (std::uint32_t i = begins[id.value].value; i < begins[id.value + 1].value; ++i) {
      std::uint32_t& left = open[users[i].value].value;
      if (left > 0 && --left == 0) set(users[i]);
    }
  }
}

inline Result<void> RuleFacts::check_matches(RuleId root, bool all_match) const {
  for (const RuleId rule : reached_rules_) {
    if (matches(rules_->body(rule)) || (rule.value != root.value && !all_match)) continue;
    return Error{
        Errc::malformed,
        "grammar: no text can meet the rule " + io::quoted(rules_->name(rule)) +
            (rule.value == root.value ? ""
                                      : " (it never comes to an end, or it needs a character "
                                        "of an empty set)")};
  }
  return ok();
}

// Rules after those that they call; those in circles, and their callers, last.
inline void RuleFacts::measure_all(RuleId root) {
  std::vector<RuleId> todo;
  for (const RuleId rule : reached_rules_)
    if (rule_facts_[rule.value].n_open == 0) todo.push_back(rule);
  while (!todo.empty()) {
    const RuleId rule = todo.back();
    todo.pop_back();
    measure(rule, rule.value != root.value);
    for (const RuleId caller : rule_facts_[rule.value].callers)
      if (--rule_facts_[caller.value].n_open == 0) todo.push_back(caller);
  }
  for (const RuleId rule : reached_rules_)
    if (!rule_facts_[rule.value].is_measured) measure(rule, false);
}

inline void RuleFacts::measure(RuleId rule, bool may_inline) {
  OfRule& facts = rule_facts_[rule.value];
  facts.is_measured = true;
  for (const ExprId id : facts.exprs) measure_expr(id);
  const ExprId body = rules_->body(rule);
  const std::uint32_t weight = weights_[body.value].value;
  facts.is_inlined = may_inline && depths_[body.value].value <= kMaxDepth / 4 &&
                     weight <= (facts.n_calls == 1 ? kMaxOnceInlined : kMaxInlined);
}

inline void RuleFacts::measure_expr(ExprId id) {
  const Expr& e = rules_->expr(id);
  std::uint32_t weight = 1, depth = 0;
  for (const ExprId part : rules_->parts(e)) {
    weight = (std::min)(weight + weights_[part.value].value, kMaxWeight);
    depth = (std::max)(depth, depths_[part.value].value + 1);
  }
  switch (e.kind) {
    case Expr::Kind::text: weight = (std::min)(e.n, kMaxWeight); break;
    case Expr::Kind::set:
      for_each_utf8(rules_->set_of(e), [&](auto bytes) {
        weight = (std::min)(weight + static_cast<std::uint32_t>(bytes.size()), kMaxWeight);
      });
      break;
    case Expr::Kind::rule:
      if (!rule_facts_[e.first].is_inlined) break;
      weight = weights_[rules_->body({e.first}).value].value;
      depth = depths_[rules_->body({e.first}).value].value + 1;
      break;
    case Expr::Kind::repeat: {
      const std::uint32_t n = e.max != kUnbounded ? e.max : (std::max)(e.min, std::uint32_t{1});
      const bool is_counted = n > 1 && std::uint64_t{n} * weight > kMaxCopies;
      counted_[id.value].value = is_counted;
      weight = is_counted ? 1 : (std::min)(n * weight, kMaxWeight);
      break;
    }
    case Expr::Kind::sequence:
    case Expr::Kind::choice: break;
  }
  weights_[id.value].value = weight;
  depths_[id.value].value = depth;
}

}}}  // namespace nibble::NIBBLE_ABI::grammar
