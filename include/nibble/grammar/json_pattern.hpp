// SPDX-License-Identifier: Apache-2.0
//
// Regular expressions of JSON Schema (`pattern`, and what `format` means) as expressions over the
// characters of a JSON string.
//
// Known: alternatives, groups ( ) and (?: ), sets, '.', \d \w \s and their complements, escapes,
// * + ? {n} {n,} {n,m} (a '?' behind them changes nothing: only which texts match matters), and ^
// and $ at the ends of the whole or of its alternatives. Not: looking around, back references,
// classes \p, borders \b.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/core/utf8.hpp"
#include "nibble/grammar/code_points.hpp"
#include "nibble/grammar/json_rules.hpp"
#include "nibble/grammar/rules.hpp"
#include "nibble/io/byte_reader.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace grammar {

class JsonPattern {
 public:
  static constexpr int kMaxDepth = 32;  // of groups
  static constexpr std::size_t kMaxBytes = 16384;

  // An expression for the characters of a string, and how many these are.
  struct Characters {
    ExprId expr;
    std::uint64_t min = 0, max = 0;
  };
  // Where no ^ or $ is, anything may stand before or behind. Errors: unsupported (see above),
  // malformed, limit.
  static Result<Characters> read(JsonRules& json, std::string_view pattern) {
    JsonPattern reader(json, pattern);
    return reader.all();
  }

 private:
  static constexpr std::uint64_t kMany = std::uint64_t{1} << 40;  // as good as unlimited

  JsonPattern(JsonRules& json, std::string_view text) noexcept
      : json_(json), rules_(json.rules()), text_(text) {}

  Result<Characters> all();
  Result<Characters> alternatives(int depth);
  Result<Characters> sequence(int depth);
  Result<Characters> part(int depth);
  Result<Characters> repeated(Characters part);
  Result<CodePoints> escape(bool in_set);
  Result<CodePoints> set();
  Result<std::uint32_t> number();

  Characters one_of(const CodePoints& set) { return {json_.character_of(set), 1, 1}; }
  Characters anything() { return {rules_.repeat(json_.any_character(), 0, kUnbounded), 0, kMany}; }
  bool at_end() const noexcept { return at_ >= text_.size(); }
  char peek() const noexcept { return at_end() ? '\0' : text_[at_]; }
  bool accept(std::string_view token) noexcept {
    if (text_.substr(at_, token.size()) != token) return false;
    at_ += token.size();
    return true;
  }
  Error error(const std::string& what, Errc code = Errc::malformed) const {
    return Error{code, "pattern " + io::quoted(text_) + ", byte " + to_text(at_) + ": " + what};
  }
  Error unsupported(const std::string& what) const {
    return error(what + " is not supported", Errc::unsupported);
  }
  Result<std::uint32_t> character();

  JsonRules& json_;
  Rules& rules_;
  std::string_view text_;
  std::size_t at_ = 0;
};

inline Result<JsonPattern::Characters> JsonPattern::all() {
  if (text_.size() > kMaxBytes) return error("too long", Errc::limit);
  NIBBLE_TRY(result, alternatives(0));
  if (!at_end()) return error("a ) without (");
  return result;
}

inline Result<JsonPattern::Characters> JsonPattern::alternatives(int depth) {
  std::vector<ExprId> ways;
  Characters result{{}, kMany, 0};
  do {
    const bool begins = depth == 0 && accept("^");
    NIBBLE_TRY(one, sequence(depth));
    const bool ends = depth == 0 && accept("$");
    if (!at_end() && peek() != '|' && peek() != ')') {
      return unsupported("^ or $ in the middle");
    }
    if (depth == 0 && (!begins || !ends)) {
      const Characters any = anything();
      const ExprId before = begins ? rules_.empty() : any.expr;
      const ExprId behind = ends ? rules_.empty() : any.expr;
      one.expr = rules_.sequence({before, one.expr, behind});
      one.max = kMany;
    }
    ways.push_back(one.expr);
    result.min = (std::min)(result.min, one.min);
    result.max = (std::max)(result.max, one.max);
  } while (accept("|"));
  result.expr = ways.size() == 1 ? ways[0] : rules_.choice(ways);
  return result;
}

inline Result<JsonPattern::Characters> JsonPattern::sequence(int depth) {
  std::vector<ExprId> parts;
  Characters result;
  while (!at_end() && peek() != '|' && peek() != ')' && peek() != '$' && peek() != '^') {
    NIBBLE_TRY(one, part(depth));
    NIBBLE_TRY(times, repeated(one));
    parts.push_back(times.expr);
    result.min = (std::min)(result.min + times.min, kMany);
    result.max = (std::min)(result.max + times.max, kMany);
    if (rules_.is_too_large()) return error("too large", Errc::limit);
  }
  result.expr = parts.size() == 1 ? parts[0] : rules_.sequence(parts);
  return result;
}

inline Result<JsonPattern::Characters> JsonPattern::part(int depth) {
  switch (peek()) {
    case '(': {
      ++at_;
      if (!accept("?:") && peek() == '?') return unsupported("looking around, or a group's name");
      if (depth >= kMaxDepth) return error("too many groups are open", Errc::limit);
      NIBBLE_TRY(inner, alternatives(depth + 1));
      if (!accept(")")) return error("expected )");
      return inner;
    }
    case '[': {
      NIBBLE_TRY(points, set());
      return one_of(points);
    }
    case '.': {
      ++at_;
      return one_of(CodePoints{{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}}.complement());
    }
    case '\\': {
      NIBBLE_TRY(points, escape(false));
      return one_of(points);
    }
    case '*':
    case '+':
    case '?': return error("nothing to repeat");
    default: {
      NIBBLE_TRY(c, character());
      return one_of({{c, c}});
    }
  }
}

inline Result<JsonPattern::Characters> JsonPattern::repeated(Characters part) {
  std::uint32_t min = 0, max = kUnbounded;
  if (accept("*")) {
  } else if (accept("+")) {
    min = 1;
  } else if (accept("?")) {
    max = 1;
  } else if (accept("{")) {
    NIBBLE_TRY(least, number());
    min = max = least;
    if (accept(",")) {
      max = kUnbounded;
      if (peek() != '}') {
        NIBBLE_TRY(most, number());
        max = most;
      }
    }
    if (!accept("}")) return error("expected }");
    if (max < min) return error("a maximum below the minimum");
  } else {
    return part;
  }
  accept("?");  // how much is taken first does not matter
  if (peek() == '*' || peek() == '+' || peek() == '{') return error("a repetition of a repetition");
  Characters result{rules_.repeat(part.expr, min, max), 0, 0};
  result.min = (std::min)(part.min * min, kMany);
  result.max = max == kUnbounded ? (part.max == 0 ? 0 : kMany) : (std::min)(part.max * max, kMany);
  return result;
}

inline Result<std::uint32_t> JsonPattern::number() {
  const std::size_t begin = at_;
  std::uint32_t value = 0;
  for (; !at_end() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
    value = value * 10 + static_cast<std::uint32_t>(text_[at_] - '0');
    if (value > Rules::kMaxRepeat) return error("too many repetitions", Errc::limit);
  }
  if (at_ == begin) return error("expected a number of repetitions");
  return value;
}

// The text is UTF-8: it comes from a JSON string.
inline Result<std::uint32_t> JsonPattern::character() {
  const std::size_t length = utf8_length(text_.substr(at_, 4));
  if (length == 0) return error("expected a character");
  std::uint32_t code = static_cast<unsigned char>(text_[at_]);
  if (length > 1) code &= 0x7Fu >> length;
  for (std::size_t i = 1; i < length; ++i) {
    code = code << 6 | (static_cast<unsigned char>(text_[at_ + i]) & 0x3Fu);
  }
  at_ += length;
  return code;
}

inline Result<CodePoints> JsonPattern::escape(bool in_set) {
  ++at_;
  if (at_end()) return error("nothing after a backslash");
  const CodePoints digits{{'0', '9'}};
  const CodePoints words{{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
  const CodePoints spaces{{'\t', '\r'},     {' ', ' '},       {0xA0, 0xA0},     {0x1680, 0x1680},
                          {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F},
                          {0x3000, 0x3000}, {0xFEFF, 0xFEFF}};
  const auto only = [](std::uint32_t c) { return CodePoints{{c, c}}; };
  const char c = text_[at_++];
  int n_hex = 0;
  switch (c) {
    case 'd': return digits;
    case 'D': return digits.complement();
    case 'w': return words;
    case 'W': return words.complement();
    case 's': return spaces;
    case 'S': return spaces.complement();
    case 'n': return only('\n');
    case 'r': return only('\r');
    case 't': return only('\t');
    case 'f': return only('\f');
    case 'v': return only('\v');
    case '0': return only(0);
    case 'b':
      if (in_set) return only('\b');
      return unsupported("\\b");
    case 'x': n_hex = 2; break;
    case 'u': n_hex = 4; break;
    default: {
      const bool is_word = words.contains(static_cast<unsigned char>(c));
      if (is_word) return unsupported(std::string("\\") + c);
      --at_;
      NIBBLE_TRY(code, character());
      return only(code);
    }
  }
  std::uint32_t code = 0;
  for (int i = 0; i < n_hex; ++i, ++at_) {
    const char d = peek();
    const int digit = d >= '0' && d <= '9'   ? d - '0'
                      : d >= 'a' && d <= 'f' ? d - 'a' + 10
                      : d >= 'A' && d <= 'F' ? d - 'A' + 10
                                             : -1;
    if (digit < 0) return error("expected a hexadecimal digit");
    code = code << 4 | static_cast<std::uint32_t>(digit);
  }
  return only(code);
}

inline Result<CodePoints> JsonPattern::set() {
  ++at_;
  const bool is_complement = accept("^");
  CodePoints points;
  while (!accept("]")) {
    if (at_end()) return error("a set without end");
    const bool is_escape = peek() == '\\';
    std::uint32_t first = 0;
    if (is_escape) {
      NIBBLE_TRY(escaped, escape(true));
      const auto ranges = escaped.ranges();
      const bool is_single = ranges.size() == 1 && ranges[0].first == ranges[0].last;
      if (!is_single) {
        points.add(escaped);
        continue;
      }
      first = ranges[0].first;
    } else {
      NIBBLE_TRY(c, character());
      first = c;
    }
    std::uint32_t last = first;
    if (peek() == '-' && text_.substr(at_ + 1, 1) != "]") {
      ++at_;
      if (peek() == '\\') {
        NIBBLE_TRY(escaped, escape(true));
        const auto ranges = escaped.ranges();
        if (ranges.size() != 1 || ranges[0].first != ranges[0].last) {
          return error("a range of a set that ends with a class");
        }
        last = ranges[0].first;
      } else {
        NIBBLE_TRY(c, character());
        last = c;
      }
      if (last < first) return error("a range of a set ends before it begins");
    }
    points.add(first, last);
  }
  return is_complement ? points.complement() : std::move(points);
}

}}}  // namespace nibble::NIBBLE_ABI::grammar
