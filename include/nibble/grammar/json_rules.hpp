// SPDX-License-Identifier: Apache-2.0
//
// The parts of JSON (RFC 8259) as expressions of a grammar: strings, numbers, values of any kind.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/core/text.hpp"
#include "nibble/core/utf8.hpp"
#include "nibble/grammar/code_points.hpp"
#include "nibble/grammar/rules.hpp"
#include "nibble/io/json_text.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace grammar {

// Where JSON may have white space.
enum class JsonSpace : std::uint8_t {
  none,     // {"a":1,"b":[2,3]}
  single,   // {"a": 1, "b": [2, 3]}: nothing but a space after ',' and ':', as Python writes it
  flexible  // one space, or a new line and at most 20 spaces and tabs, wherever JSON allows it
};

class JsonRules {
 public:
  JsonRules(Rules& rules, JsonSpace space) : rules_(rules), space_(space) {
    const bool is_flexible = space == JsonSpace::flexible;
    if (is_flexible) {
      const RuleId id = rules.add_rule("space");
      const ExprId indent = rules.repeat(rules.set({{' ', ' '}, {'\t', '\t'}}), 0, 20);
      rules.define(id, rules.choice({rules.empty(), rules.text(" "),
                                     rules.sequence({rules.text("\n"), indent})}));
      around_ = rules.call(id);
    } else {
      around_ = rules.empty();
    }
    const std::string_view after = space == JsonSpace::single ? " " : "";
    comma_ = mark(",", after);
    colon_ = mark(":", after);
    make_strings();
    make_numbers();
    make_value();
  }

  Rules& rules() noexcept { return rules_; }
  JsonSpace space() const noexcept { return space_; }

  // White space inside of brackets.
  ExprId around() const noexcept { return around_; }
  // These and the white space around them.
  ExprId comma() const noexcept { return comma_; }
  ExprId colon() const noexcept { return colon_; }

  // What is between brackets, with them.
  ExprId in_brackets(const char* open, ExprId inner, const char* close) {
    return rules_.sequence({rules_.text(open), around_, inner, around_, rules_.text(close)});
  }
  ExprId empty_brackets(const char* open, const char* close) {
    return rules_.sequence({rules_.text(open), around_, rules_.text(close)});
  }
  // An item min to max times, with commas between.
  ExprId list(ExprId item, std::uint32_t min, std::uint32_t max) {
    if (max == 0) return rules_.empty();
    const ExprId more = rules_.repeat(rules_.sequence({comma_, item}), min > 0 ? min - 1 : 0,
                                      max == kUnbounded ? kUnbounded : max - 1);
    const ExprId all = rules_.sequence({item, more});
    return min == 0 ? rules_.optional(all) : all;
  }

  // ---- Strings ----
  ExprId quoted(ExprId characters) {
    return rules_.sequence({rules_.text("\""), characters, rules_.text("\"")});
  }
  // Exactly this text, which is UTF-8, as a string.
  ExprId string_of(std::string_view text) { return rules_.text(io::json_text(text)); }
  // Any character of a string, in each way in which JSON writes it, without the quotes.
  ExprId any_character() const noexcept { return any_character_; }
  // A character of a set. Those that must be escaped are written in the short form, if they have
  // one; the others as they are.
  ExprId character_of(const CodePoints& set);
  // Any string.
  ExprId string() const noexcept { return string_; }

  // ---- Numbers: at most 16 digits before the point, 16 after it, and 2 in the exponent ----
  ExprId integer() const noexcept { return integer_; }
  ExprId number() const noexcept { return number_; }
  // Integers from min to max; what is not given is no limit. Both are at most 10^15 from 0.
  ExprId integers(std::optional<std::int64_t> min, std::optional<std::int64_t> max);
  // Numbers without an exponent from min to max, or strictly between them.
  struct Limit {
    std::int64_t value = 0;
    bool is_excluded = false;
  };
  ExprId numbers(std::optional<Limit> min, std::optional<Limit> max);

  ExprId value() const noexcept { return value_; }
  ExprId array() const noexcept { return array_; }
  ExprId object() const noexcept { return object_; }

 private:
  static constexpr std::uint64_t kNoMaximum = ~std::uint64_t{0};

  ExprId mark(const char* text, std::string_view after) {
    if (space_ == JsonSpace::flexible) {
      return rules_.sequence({around_, rules_.text(text), around_});
    }
    return rules_.text(std::string(text).append(after));
  }
  ExprId named(const char* name, ExprId body) {
    const RuleId id = rules_.add_rule(name);
    rules_.define(id, body);
    return rules_.call(id);
  }
  ExprId digit(char first, char last) {
    return rules_.set({{static_cast<std::uint32_t>(first), static_cast<std::uint32_t>(last)}});
  }
  ExprId digits(std::uint32_t min, std::uint32_t max) {
    return rules_.repeat(digit('0', '9'), min, max);
  }
  ExprId fraction() { return rules_.sequence({rules_.text("."), digits(1, 16)}); }
  void make_strings();
  void make_numbers();
  void make_value();
  ExprId naturals(std::uint64_t min, std::uint64_t max);
  ExprId same_length(std::string_view min, std::string_view max);
  ExprId magnitudes(Limit min, std::optional<Limit> max);

  Rules& rules_;
  JsonSpace space_;
  ExprId around_, comma_, colon_, any_character_, string_, integer_, number_;
  ExprId value_, array_, object_;
};

inline void JsonRules::make_strings() {
  const CodePoints plain = CodePoints{{0, 0x1F}, {'"', '"'}, {'\\', '\\'}}.complement();
  const CodePoints hex{{'0', '9'}, {'a', 'f'}, {'A', 'F'}};
  const ExprId h = rules_.set(hex);
  const ExprId hh = rules_.sequence({h, h});
  const ExprId d = rules_.set({{'d', 'd'}, {'D', 'D'}});
  CodePoints not_d = hex;
  not_d = not_d.intersect(CodePoints{{'d', 'd'}, {'D', 'D'}}.complement());
  // \u0000 to \uD7FF, \uE000 to \uFFFF; or a high and a low surrogate.
  const ExprId unit = rules_.choice(
      {rules_.sequence({rules_.set(not_d), h, hh}), rules_.sequence({d, digit('0', '7'), hh})});
  const ExprId high = rules_.sequence({d, rules_.set({{'8', '9'}, {'a', 'b'}, {'A', 'B'}}), hh});
  const ExprId low = rules_.sequence({d, rules_.set({{'c', 'f'}, {'C', 'F'}}), hh});
  const ExprId code = rules_.sequence(
      {rules_.text("u"), rules_.choice({unit, rules_.sequence({high, rules_.text("\\u"), low})})});
  CodePoints letters;
  for (const char c : {'"', '\\', '/', 'b', 'f', 'n', 'r', 't'})
    letters.add(static_cast<std::uint32_t>(c));
  const ExprId escape =
      rules_.sequence({rules_.text("\\"), rules_.choice({rules_.set(letters), code})});
  any_character_ = rules_.choice({rules_.set(plain), escape});
  string_ = named("string", quoted(rules_.repeat(any_character_, 0, kUnbounded)));
}

inline ExprId JsonRules::character_of(const CodePoints& set) {
  const CodePoints plain = CodePoints{{0, 0x1F}, {'"', '"'}, {'\\', '\\'}}.complement();
  std::vector<ExprId> ways{rules_.set(set.intersect(plain))};
  for (std::uint32_t c = 0; c <= '\\'; ++c) {
    if (plain.contains(c) || !set.contains(c)) continue;
    ways.push_back(rules_.text(io::json_escape(c)));
  }
  return ways.size() == 1 ? ways[0] : rules_.choice(ways);
}

inline void JsonRules::make_numbers() {
  const ExprId whole =
      rules_.choice({rules_.text("0"), rules_.sequence({digit('1', '9'), digits(0, 15)})});
  const ExprId minus = rules_.optional(rules_.text("-"));
  integer_ = named("integer", rules_.sequence({minus, whole}));
  const ExprId exponent =
      rules_.sequence({rules_.set({{'e', 'e'}, {'E', 'E'}}),
                       rules_.optional(rules_.set({{'+', '+'}, {'-', '-'}})), digits(1, 2)});
  number_ = named("number", rules_.sequence({minus, whole, rules_.optional(fraction()),
                                             rules_.optional(exponent)}));
}

inline void JsonRules::make_value() {
  const RuleId value = rules_.add_rule("value");
  value_ = rules_.call(value);
  array_ = named("array", rules_.choice({empty_brackets("[", "]"),
                                         in_brackets("[", list(value_, 1, kUnbounded), "]")}));
  const ExprId member = rules_.sequence({string_, colon_, value_});
  object_ = named("object", rules_.choice({empty_brackets("{", "}"),
                                           in_brackets("{", list(member, 1, kUnbounded), "}")}));
  rules_.define(value, rules_.choice({object_, array_, string_, number_, rules_.text("true"),
                                      rules_.text("false"), rules_.text("null")}));
}

inline ExprId JsonRules::integers(std::optional<std::int64_t> min,
                                  std::optional<std::int64_t> max) {
  const auto magnitude = [](std::int64_t x) { return static_cast<std::uint64_t>(x < 0 ? -x : x); };
  std::vector<ExprId> ways;
  if (!max || *max >= 0) {
    ways.push_back(
        naturals(min && *min > 0 ? magnitude(*min) : 0, max ? magnitude(*max) : kNoMaximum));
  }
  if (!min || *min < 0) {
    const std::uint64_t least = max && *max < 0 ? magnitude(*max) : 1;
    ways.push_back(
        rules_.sequence({rules_.text("-"), naturals(least, min ? magnitude(*min) : kNoMaximum)}));
  }
  return rules_.choice(ways);
}

// Numbers without a sign, min to max.
inline ExprId JsonRules::naturals(std::uint64_t min, std::uint64_t max) {
  if (min > max) return rules_.never();
  std::vector<ExprId> ways;
  const std::string last = max == kNoMaximum ? std::string() : to_text(max);
  std::string first = to_text(min);
  const std::size_t n_last = max == kNoMaximum ? first.size() : last.size();
  while (first.size() < n_last) {  // all lengths but the last
    ways.push_back(same_length(first, std::string(first.size(), '9')));
    first = "1" + std::string(first.size(), '0');
  }
  ways.push_back(same_length(first, max == kNoMaximum ? std::string(first.size(), '9') : last));
  if (max == kNoMaximum && first.size() < 16) {
    const auto n = static_cast<std::uint32_t>(first.size());
    ways.push_back(rules_.sequence({digit('1', '9'), digits(n, 15)}));
  }
  return rules_.choice(ways);
}

// Decimal numbers of the length of both, from the one to the other.
inline ExprId JsonRules::same_length(std::string_view min, std::string_view max) {
  std::size_t same = 0;
  while (same < min.size() && min[same] == max[same]) ++same;
  if (same == min.size()) return rules_.text(min);
  const ExprId begin = rules_.text(min.substr(0, same));
  std::vector<ExprId> ways;
  // Above min: equal to it up to a digit that is larger; below max likewise; and in between.
  const auto n = static_cast<std::uint32_t>(min.size() - same - 1);
  for (std::size_t i = same + 1; i < min.size(); ++i) {
    const auto left = static_cast<std::uint32_t>(min.size() - i - 1);
    if (min[i] < '9') {
      ways.push_back(
          rules_.sequence({rules_.text(min.substr(same, i - same)),
                           digit(static_cast<char>(min[i] + 1), '9'), digits(left, left)}));
    }
    if (max[i] > '0') {
      ways.push_back(
          rules_.sequence({rules_.text(max.substr(same, i - same)),
                           digit('0', static_cast<char>(max[i] - 1)), digits(left, left)}));
    }
  }
  ways.push_back(rules_.text(min.substr(same)));
  ways.push_back(rules_.text(max.substr(same)));
  if (max[same] - min[same] > 1) {
    ways.push_back(rules_.sequence(
        {digit(static_cast<char>(min[same] + 1), static_cast<char>(max[same] - 1)), digits(n, n)}));
  }
  return rules_.sequence({begin, rules_.choice(ways)});
}

inline ExprId JsonRules::numbers(std::optional<Limit> min, std::optional<Limit> max) {
  std::vector<ExprId> ways;
  const auto negated = [](Limit x) { return Limit{-x.value, x.is_excluded}; };
  if (!max || max->value > 0 || (max->value == 0 && !max->is_excluded)) {
    const bool from_min = min && min->value >= 0;
    ways.push_back(magnitudes(from_min ? *min : Limit{}, max));
  }
  if (!min || min->value < 0) {
    const bool from_max = max && max->value <= 0;
    const ExprId size = magnitudes(from_max ? negated(*max) : Limit{0, true},
                                   min ? std::optional<Limit>(negated(*min)) : std::nullopt);
    ways.push_back(rules_.sequence({rules_.text("-"), size}));
  }
  return rules_.choice(ways);
}

// Numbers without a sign; 0 <= min.
inline ExprId JsonRules::magnitudes(Limit min, std::optional<Limit> max) {
  const auto low = static_cast<std::uint64_t>(min.value);
  if (max && (max->value < min.value ||
              (max->value == min.value && (min.is_excluded || max->is_excluded)))) {
    return rules_.never();
  }
  const ExprId zeros =
      rules_.optional(rules_.sequence({rules_.text("."), rules_.repeat(rules_.text("0"), 1, 16)}));
  if (max && max->value == min.value) return rules_.sequence({rules_.text(to_text(low)), zeros});
  std::vector<ExprId> ways;
  if (min.is_excluded) {
    ways.push_back(rules_.sequence(
        {rules_.text(to_text(low)), rules_.text("."), digits(0, 15), digit('1', '9')}));
  }
  const std::uint64_t high = max ? static_cast<std::uint64_t>(max->value) : kNoMaximum;
  const std::uint64_t from = min.is_excluded ? low + 1 : low;
  if (!max || from < high) {
    ways.push_back(rules_.sequence(
        {naturals(from, max ? high - 1 : kNoMaximum), rules_.optional(fraction())}));
  }
  if (max && !max->is_excluded) {
    ways.push_back(rules_.sequence({rules_.text(to_text(high)), zeros}));
  }
  return rules_.choice(ways);
}

}}}  // namespace nibble::NIBBLE_ABI::grammar
