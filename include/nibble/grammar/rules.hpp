// SPDX-License-Identifier: Apache-2.0
//
// A context-free grammar as rules over expressions: what the readers of GBNF and JSON Schema make,
// and what automaton.hpp compiles.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/grammar/code_points.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace grammar {

// Index of a rule or of an expression.
struct RuleId {
  std::uint32_t value = 0;
};
struct ExprId {
  std::uint32_t value = 0;
};

// No upper limit of a repetition.
inline constexpr std::uint32_t kUnbounded = 0xFFFFFFFF;

struct Expr {
  enum class Kind : std::uint8_t {
    text,      // these bytes
    set,       // one character of a set
    rule,      // what a rule describes
    sequence,  // its parts one after the other; without parts: the empty text
    choice,    // one of its parts; without parts: nothing matches
    repeat     // its part, min to max times
  };
  Kind kind = Kind::sequence;
  std::uint32_t first = 0;  // text: where it begins; set, rule: its index; others: of its parts
  std::uint32_t n = 0;      // bytes or parts
  std::uint32_t min = 0, max = 0;
};

// Expressions are made from the inside out: a part exists before what contains it. Rules may be
// used before they are defined. There are at most kMaxExprs expressions and kMaxRepeat repetitions;
// what goes beyond them sets is_too_large(), and compiling such rules is an error.
class Rules {
 public:
  static constexpr std::size_t kMaxExprs = std::size_t{1} << 18;
  static constexpr std::size_t kMaxBytes = std::size_t{1} << 24;
  static constexpr std::uint32_t kMaxRepeat = 1'000'000;

  RuleId add_rule(std::string_view name) {
    rules_.push_back({std::string(name), {}, false});
    return {static_cast<std::uint32_t>(rules_.size() - 1)};
  }
  // A rule with alternatives that begin with itself (r ::= r "+" x | x) becomes a repetition of
  // what follows in these: x ("+" x)*.
  void define(RuleId rule, ExprId body) {
    rules_[rule.value].body = without_left_recursion(rule, body);
    rules_[rule.value].is_defined = true;
  }
  bool is_defined(RuleId rule) const noexcept { return rules_[rule.value].is_defined; }
  const std::string& name(RuleId rule) const noexcept { return rules_[rule.value].name; }
  ExprId body(RuleId rule) const noexcept { return rules_[rule.value].body; }
  std::size_t n_rules() const noexcept { return rules_.size(); }

  ExprId text(std::string_view bytes) {
    const std::size_t first = bytes_.size();
    if (bytes.size() > kMaxBytes - first) return too_large();
    bytes_.append(bytes);
    return add({Expr::Kind::text, narrow(first), narrow(bytes.size())});
  }
  ExprId set(CodePoints points) {
    sets_.push_back(std::move(points));
    return add({Expr::Kind::set, narrow(sets_.size() - 1)});
  }
  ExprId call(RuleId rule) { return add({Expr::Kind::rule, rule.value}); }
  ExprId sequence(std::span<const ExprId> parts) { return group(Expr::Kind::sequence, parts); }
  ExprId choice(std::span<const ExprId> parts) { return group(Expr::Kind::choice, parts); }
  ExprId sequence(std::initializer_list<ExprId> parts) {
    return sequence(std::span<const ExprId>(parts.begin(), parts.size()));
  }
  ExprId choice(std::initializer_list<ExprId> parts) {
    return choice(std::span<const ExprId>(parts.begin(), parts.size()));
  }
  ExprId empty() { return sequence(std::span<const ExprId>()); }
  ExprId never() { return choice(std::span<const ExprId>()); }
  // min <= max; max is a number up to kMaxRepeat, or kUnbounded.
  ExprId repeat(ExprId part, std::uint32_t min, std::uint32_t max) {
    if (min > kMaxRepeat || (max > kMaxRepeat && max != kUnbounded)) return too_large();
    const ExprId parts[] = {part};
    const ExprId id = group(Expr::Kind::repeat, parts);
    exprs_[id.value].min = min;
    exprs_[id.value].max = max;
    return id;
  }
  ExprId optional(ExprId part) { return repeat(part, 0, 1); }

  const Expr& expr(ExprId id) const noexcept { return exprs_[id.value]; }
  std::size_t n_exprs() const noexcept { return exprs_.size(); }
  std::span<const ExprId> parts(const Expr& e) const noexcept {
    const bool has_parts = e.kind == Expr::Kind::sequence || e.kind == Expr::Kind::choice ||
                           e.kind == Expr::Kind::repeat;
    return std::span<const ExprId>(parts_).subspan(has_parts ? e.first : 0, has_parts ? e.n : 0);
  }
  std::string_view text_of(const Expr& e) const noexcept {
    return std::string_view(bytes_).substr(e.first, e.n);
  }
  const CodePoints& set_of(const Expr& e) const noexcept { return sets_[e.first]; }
  bool is_too_large() const noexcept { return is_too_large_; }

 private:
  struct Rule {
    std::string name;
    ExprId body;
    bool is_defined = false;
  };

  static std::uint32_t narrow(std::size_t n) noexcept { return static_cast<std::uint32_t>(n); }

  ExprId add(const Expr& e) {
    if (exprs_.size() >= kMaxExprs) return too_large();
    exprs_.push_back(e);
    return {narrow(exprs_.size() - 1)};
  }
  ExprId group(Expr::Kind kind, std::span<const ExprId> parts) {
    const std::size_t first = parts_.size();
    if (parts.size() > kMaxExprs * 4 - first) return too_large();
    parts_.insert(parts_.end(), parts.begin(), parts.end());
    return add({kind, narrow(first), narrow(parts.size())});
  }
  ExprId without_left_recursion(RuleId rule, ExprId body) {
    const Expr whole = exprs_[body.value];
    std::vector<ExprId> others, repeated;
    const auto sort_in = [&](ExprId alternative) {
      const Expr e = exprs_[alternative.value];
      const bool is_sequence = e.kind == Expr::Kind::sequence && e.n > 0;
      const Expr& begin = is_sequence ? exprs_[parts_[e.first].value] : e;
      if (begin.kind != Expr::Kind::rule || begin.first != rule.value) {
        others.push_back(alternative);
      } else if (is_sequence) {
        const auto first = parts_.begin() + e.first;
        const std::vector<ExprId> rest(first + 1, first + e.n);
        repeated.push_back(sequence(rest));
      }  // else it says nothing: r ::= r
    };
    if (whole.kind == Expr::Kind::choice) {
      for (std::uint32_t i = 0; i < whole.n; ++i) sort_in(parts_[whole.first + i]);
    } else {
      sort_in(body);
    }
    if (repeated.empty() && !others.empty()) return body;
    return sequence({choice(others), repeat(choice(repeated), 0, kUnbounded)});
  }
  // Some expression, which is not going to be compiled.
  ExprId too_large() {
    is_too_large_ = true;
    if (exprs_.empty()) exprs_.push_back({});
    return {};
  }

  std::vector<Rule> rules_;
  std::vector<Expr> exprs_;
  std::vector<ExprId> parts_;
  std::vector<CodePoints> sets_;
  std::string bytes_;
  bool is_too_large_ = false;
};

}}}  // namespace nibble::NIBBLE_ABI::grammar
