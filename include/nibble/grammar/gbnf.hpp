// SPDX-License-Identifier: Apache-2.0
//
// Reads GBNF, the notation of llama.cpp for grammars:
//
//   root  ::= "light." ("on" | "off") level?   # a comment
//   level ::= " " [1-9] [0-9]{0,2}
//
// Literals and sets know the escapes \n \r \t \\ \" \[ \] \xHH \uHHHH \UHHHHHHHH; '.' is any
// character; what follows a part says how often it comes: * + ? {n} {n,} {n,m}. A rule ends with
// its line, unless a bracket is open or an alternative must follow.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/core/utf8.hpp"
#include "nibble/grammar/code_points.hpp"
#include "nibble/grammar/grammar.hpp"
#include "nibble/grammar/rules.hpp"
#include "nibble/io/byte_reader.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace grammar {

struct GrammarText {
  Rules rules;
  RuleId root;
};

class GbnfReader {
 public:
  // Brackets that may be open at once.
  static constexpr int kMaxDepth = 64;
  static constexpr int kMaxRanges = 4096;  // of a set
  static constexpr std::size_t kMaxBytes = std::size_t{1} << 22;

  // Errors: malformed with the line (what the notation does not know, a rule that is used and not
  // defined or defined twice, no rule `root`); limit (open brackets, repetitions, size);
  // unsupported (names of tokens, which llama.cpp writes <name> or <[id]>).
  static Result<GrammarText> read(std::string_view text, std::string_view root = "root") {
    GbnfReader reader(text);
    return reader.all(root);
  }

 private:
  explicit GbnfReader(std::string_view text) noexcept : text_(text) {}

  Result<GrammarText> all(std::string_view root);
  Result<void> rule();
  Result<ExprId> alternatives(int depth);
  Result<ExprId> sequence(int depth);
  Result<ExprId> part(int depth);
  Result<ExprId> repeated(ExprId part, int depth);
  Result<std::uint32_t> number();
  Result<ExprId> literal();
  Result<ExprId> set();
  Result<std::uint32_t> character();
  Result<std::uint32_t> escape();

  bool at_end() const noexcept { return at_ >= text_.size(); }
  char peek() const noexcept { return at_end() ? '\0' : text_[at_]; }
  bool accept(std::string_view token) noexcept {
    if (text_.substr(at_, token.size()) != token) return false;
    at_ += token.size();
    return true;
  }
  static bool is_word(char c) noexcept {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_';
  }
  std::string_view take_name() noexcept {
    const std::size_t begin = at_;
    while (!at_end() && is_word(text_[at_])) ++at_;
    return text_.substr(begin, at_ - begin);
  }
  // White space and comments; ends of lines only if they end nothing.
  void skip_space(bool with_lines) noexcept {
    while (!at_end()) {
      const char c = text_[at_];
      if (c == '#') {
        while (!at_end() && text_[at_] != '\n' && text_[at_] != '\r') ++at_;
      } else if (c == ' ' || c == '\t' || (with_lines && (c == '\n' || c == '\r'))) {
        ++at_;
      } else {
        return;
      }
    }
  }
  // The rule of this name, which may be defined later.
  RuleId find(std::string_view name) {
    const auto [place, is_new] = names_.try_emplace(std::string(name));
    if (is_new) place->second = rules_.add_rule(name);
    return place->second;
  }
  Error error(const std::string& what, Errc code = Errc::malformed) const {
    std::size_t line = 1;
    for (const char c : text_.substr(0, at_)) line += c == '\n';
    return Error{code, "grammar, line " + to_text(line) + ": " + what};
  }

  std::string_view text_;
  std::size_t at_ = 0;
  Rules rules_;
  std::map<std::string, RuleId> names_;
};

inline Result<GrammarText> GbnfReader::all(std::string_view root) {
  if (text_.size() > kMaxBytes) {
    return error("more than " + to_text(kMaxBytes) + " bytes of grammar", Errc::limit);
  }
  skip_space(true);
  while (!at_end()) {
    NIBBLE_CHECK(rule());
    skip_space(true);
  }
  if (rules_.is_too_large()) return error("the grammar is too large", Errc::limit);
  for (std::uint32_t i = 0; i < rules_.n_rules(); ++i) {
    if (rules_.is_defined({i})) continue;
    return error("rule " + io::quoted(rules_.name({i})) + " is used, but not defined");
  }
  const auto found = names_.find(std::string(root));
  if (found == names_.end()) {
    return error("there is no rule " + io::quoted(root) + ", with which the text begins");
  }
  return GrammarText{std::move(rules_), found->second};
}

inline Result<void> GbnfReader::rule() {
  const std::string_view name = take_name();
  if (name.empty()) return error("expected the name of a rule");
  skip_space(false);
  if (!accept("::=")) return error("expected ::= after " + io::quoted(name));
  const RuleId id = find(name);
  if (rules_.is_defined(id)) return error("rule " + io::quoted(name) + " is defined twice");
  skip_space(true);
  NIBBLE_TRY(body, alternatives(0));
  skip_space(false);
  if (!at_end() && peek() != '\n' && peek() != '\r') {
    return error("what begins with " + io::quoted(text_.substr(at_, 1)) +
                 " is no part of the rule " + io::quoted(name));
  }
  rules_.define(id, body);
  return ok();
}

inline Result<ExprId> GbnfReader::alternatives(int depth) {
  std::vector<ExprId> all;
  do {
    skip_space(true);
    NIBBLE_TRY(one, sequence(depth));
    all.push_back(one);
    skip_space(depth > 0);
  } while (accept("|"));
  return all.size() == 1 ? all[0] : rules_.choice(all);
}

inline Result<ExprId> GbnfReader::sequence(int depth) {
  std::vector<ExprId> all;
  for (;;) {
    skip_space(depth > 0);
    const char c = peek();
    const bool goes_on =
        c == '"' || c == '[' || c == '(' || c == '.' || c == '<' || c == '!' || is_word(c);
    if (!goes_on) break;
    NIBBLE_TRY(one, part(depth));
    NIBBLE_TRY(times, repeated(one, depth));
    all.push_back(times);
    if (rules_.is_too_large()) {
      return error("too many repetitions (at most " + to_text(Rules::kMaxRepeat) +
                       ") or too large a grammar",
                   Errc::limit);
    }
  }
  return all.size() == 1 ? all[0] : rules_.sequence(all);
}

inline Result<ExprId> GbnfReader::part(int depth) {
  switch (peek()) {
    case '"': return literal();
    case '[': return set();
    case '.': ++at_; return rules_.set(CodePoints::all());
    case '<':
    case '!':
      return error("names of tokens (<name>, <[id]>) are not supported; write the text",
                   Errc::unsupported);
    case '(': break;
    default: return rules_.call(find(take_name()));
  }
  if (depth >= kMaxDepth) return error("more than 64 brackets are open", Errc::limit);
  ++at_;
  NIBBLE_TRY(inner, alternatives(depth + 1));
  if (!accept(")")) return error("expected )");
  return inner;
}

// The part as often as what follows it says; llama.cpp allows several of these in a row.
inline Result<ExprId> GbnfReader::repeated(ExprId part, int depth) {
  for (int n = 0;; ++n) {
    std::uint32_t min = 0, max = kUnbounded;
    skip_space(depth > 0);
    if (accept("*")) {
    } else if (accept("+")) {
      min = 1;
    } else if (accept("?")) {
      max = 1;
    } else if (accept("{")) {
      NIBBLE_TRY(least, number());
      min = max = least;
      if (accept(",")) {
        skip_space(true);
        max = kUnbounded;
        if (peek() != '}') {
          NIBBLE_TRY(most, number());
          max = most;
        }
      }
      if (!accept("}")) return error("expected } after the number of repetitions");
      if (max < min) return error("at least " + to_text(min) + " and at most " + to_text(max));
    } else {
      return part;
    }
    if (n >= 4) return error("repetitions of repetitions", Errc::limit);
    part = rules_.repeat(part, min, max);
  }
}

// A number of repetitions, and the space around it.
inline Result<std::uint32_t> GbnfReader::number() {
  skip_space(true);
  std::uint32_t value = 0;
  const std::size_t begin = at_;
  for (; !at_end() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
    value = value * 10 + static_cast<std::uint32_t>(text_[at_] - '0');
    if (value <= Rules::kMaxRepeat) continue;
    return error("more than " + to_text(Rules::kMaxRepeat) + " repetitions", Errc::limit);
  }
  if (at_ == begin) return error("expected a number of repetitions");
  skip_space(true);
  return value;
}

inline Result<ExprId> GbnfReader::literal() {
  ++at_;
  std::string bytes;
  while (!accept("\"")) {
    if (at_end()) return error("a literal without end");
    NIBBLE_TRY(c, character());
    append_utf8(bytes, c);
  }
  return rules_.text(bytes);
}

inline Result<ExprId> GbnfReader::set() {
  ++at_;
  const bool is_complement = accept("^");
  CodePoints points;
  for (int n = 0; !accept("]"); ++n) {
    if (at_end()) return error("a set without end");
    if (n >= kMaxRanges) return error("a set of too many ranges", Errc::limit);
    NIBBLE_TRY(first, character());
    std::uint32_t last = first;
    if (peek() == '-' && text_.substr(at_ + 1, 1) != "]") {
      ++at_;
      if (at_end()) return error("a set without end");
      NIBBLE_TRY(end, character());
      if (end < first) return error("a range of a set ends before it begins");
      last = end;
    }
    points.add(first, last);
  }
  return rules_.set(is_complement ? points.complement() : std::move(points));
}

// A character of a literal or a set.
inline Result<std::uint32_t> GbnfReader::character() {
  if (accept("\\")) return escape();
  const std::size_t length = utf8_length(text_.substr(at_, 4));
  if (length == 0) return error("bytes that are no UTF-8");
  std::uint32_t code = static_cast<unsigned char>(text_[at_]);
  if (length > 1) code &= 0x7Fu >> length;
  for (std::size_t i = 1; i < length; ++i) {
    code = code << 6 | (static_cast<unsigned char>(text_[at_ + i]) & 0x3Fu);
  }
  at_ += length;
  return code;
}

// What follows a backslash.
inline Result<std::uint32_t> GbnfReader::escape() {
  const char c = peek();
  if (at_end()) return error("nothing after a backslash");
  ++at_;
  int n_digits = 0;
  switch (c) {
    case 'n': return std::uint32_t{'\n'};
    case 'r': return std::uint32_t{'\r'};
    case 't': return std::uint32_t{'\t'};
    case '\\':
    case '"':
    case '[':
    case ']': return static_cast<std::uint32_t>(c);
    case 'x': n_digits = 2; break;
    case 'u': n_digits = 4; break;
    case 'U': n_digits = 8; break;
    default: return error("an unknown escape");
  }
  std::uint32_t code = 0;
  for (int i = 0; i < n_digits; ++i, ++at_) {
    const char d = peek();
    const int digit = d >= '0' && d <= '9'   ? d - '0'
                      : d >= 'a' && d <= 'f' ? d - 'a' + 10
                      : d >= 'A' && d <= 'F' ? d - 'A' + 10
                                             : -1;
    if (digit < 0) return error("expected " + to_text(n_digits) + " hexadecimal digits");
    code = code << 4 | static_cast<std::uint32_t>(digit);
  }
  if (code > kLastCodePoint || (code >= 0xD800 && code <= 0xDFFF)) {
    return error("an escape that is no character");
  }
  return code;
}

// A grammar from GBNF. Errors: those of GbnfReader::read and Grammar::create.
inline Result<Grammar> from_gbnf(std::string_view text, std::string_view root = "root") {
  return catch_out_of_memory([&]() -> Result<Grammar> {
    NIBBLE_TRY(read, GbnfReader::read(text, root));
    return Grammar::create(read.rules, read.root);
  });
}

}}}  // namespace nibble::NIBBLE_ABI::grammar
