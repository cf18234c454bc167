// SPDX-License-Identifier: Apache-2.0
//
// Parses the expressions of a template. Nesting is bounded; chains of operators, attributes and
// filters are parsed without recursion.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/chat/jinja_lexer.hpp"
#include "nibble/chat/jinja_program.hpp"
#include "nibble/io/json.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace chat {

// The part of JinjaParser (jinja_parser.hpp) that reads tokens and expressions.
class JinjaExpressionParser {
 public:
  static constexpr int kMaxDepth = 64;  // of statements and expressions in each other

 protected:
  using Kind = Token::Kind;
  using List = std::vector<std::uint32_t>;

  JinjaExpressionParser(Program& program, std::vector<Token> tokens)
      : program_(&program), tokens_(std::move(tokens)) {}

  // ---- Tokens -----------------------------------------------------------------------------------

  const Token& peek(std::size_t ahead = 0) const noexcept {
    const std::size_t last = tokens_.size() - 1;
    return tokens_[at_ + ahead < last ? at_ + ahead : last];
  }
  bool is(Kind kind) const noexcept { return peek().kind == kind; }
  bool is_symbol(std::string_view text, std::size_t ahead = 0) const noexcept {
    return peek(ahead).kind == Kind::symbol && peek(ahead).text == text;
  }
  bool is_name(std::string_view text, std::size_t ahead = 0) const noexcept {
    return peek(ahead).kind == Kind::name && peek(ahead).text == text;
  }
  bool accept(bool is_next) noexcept {
    if (is_next) ++at_;
    return is_next;
  }

  Error error(const std::string& what, Errc code = Errc::malformed) const {
    return Error{code, "line " + to_text(peek().line) + ": " + what};
  }
  Error unexpected(const char* expected) const {
    const Token& token = peek();
    const std::string found = token.kind == Kind::end ? "the end of the template"
                              : token.text.empty()
                                  ? "the end of a tag"
                                  : "'" + printable(token.text.substr(0, 40)) + "'";
    return error(std::string("expected ") + expected + ", found " + found);
  }
  Result<void> expect(bool is_next, const char* expected) {
    if (!accept(is_next)) return unexpected(expected);
    return ok();
  }
  Result<void> expect_symbol(const char* text) { return expect(is_symbol(text), text); }
  Result<void> expect_name(const char* text) { return expect(is_name(text), text); }
  Result<void> expect_statement_end() { return expect(is(Kind::statement_end), "%}"); }

  // ---- Nodes ------------------------------------------------------------------------------------

  NodeId add(NodeKind kind, std::uint32_t line, std::uint32_t a = kNoNode,
             std::uint32_t b = kNoNode, std::uint32_t c = kNoNode) {
    program_->nodes.push_back({kind, line, a, b, c});
    return static_cast<NodeId>(program_->nodes.size() - 1);
  }
  NodeId add_list(const List& elements) {
    auto& lists = program_->lists;
    const auto at = static_cast<NodeId>(lists.size());
    lists.push_back(static_cast<std::uint32_t>(elements.size()));
    lists.insert(lists.end(), elements.begin(), elements.end());
    return at;
  }
  NodeId add_literal(Value value, std::uint32_t line, NodeKind kind = NodeKind::literal) {
    program_->literals.push_back(std::move(value));
    return add(kind, line, static_cast<std::uint32_t>(program_->literals.size() - 1));
  }
  std::uint32_t add_name(std::string_view name) {
    program_->names.push_back(name);
    return static_cast<std::uint32_t>(program_->names.size() - 1);
  }
  Result<std::uint32_t> name() {
    if (!is(Kind::name)) return unexpected("a name");
    return add_name(tokens_[at_++].text);
  }

  Result<void> check_depth() const {
    if (depth_ > kMaxDepth) return error("nested too deeply", Errc::limit);
    return ok();
  }

  // ---- Expressions ------------------------------------------------------------------------------

  bool is_expression_end() const noexcept {
    return is(Kind::print_end) || is(Kind::statement_end) || is_symbol(")");
  }

  // What may be a tuple without brackets. Without `with_condition`, "if" belongs to what is around.
  Result<NodeId> tuple_or_expression(bool with_condition = true) {
    const std::uint32_t line = peek().line;
    NIBBLE_TRY(first, with_condition ? expression() : operators(0));
    if (!is_symbol(",")) return first;
    List elements{first};
    while (accept(is_symbol(",")) && !is_expression_end()) {
      NIBBLE_TRY(next, with_condition ? expression() : operators(0));
      elements.push_back(next);
    }
    return add(NodeKind::tuple, line, add_list(elements));
  }

  // With a condition: a if b else c
  Result<NodeId> expression() {
    const Deeper deeper(depth_);
    NIBBLE_CHECK(check_depth());
    NIBBLE_TRY(value, operators(0));
    // Each further "if" chooses between what was read before and what follows.
    for (int n = 0; is_name("if"); ++n) {
      if (n == kMaxDepth) return error("nested too deeply", Errc::limit);
      const std::uint32_t line = tokens_[at_++].line;
      NIBBLE_TRY(condition, operators(0));
      NodeId otherwise = kNoNode;
      if (accept(is_name("else"))) {
        NIBBLE_TRY(other, expression());
        otherwise = other;
      }
      value = add(NodeKind::condition, line, condition, value, otherwise);
    }
    return value;
  }

  static constexpr int kLevels = 7;

  // Reads an operator of a level, if one comes next.
  bool accept_operator(int level, Operator& op) noexcept {
    const auto accept_one = [&](std::string_view symbol, Operator which) {
      op = which;
      return accept(is_symbol(symbol));
    };
    switch (level) {
      case 0: return accept(is_name("or"));
      case 1: return accept(is_name("and"));
      case 2:
        if (is_name("not") && is_name("in", 1)) {
          op = Operator::not_in;
          at_ += 2;
          return true;
        }
        op = Operator::in;
        return accept(is_name("in")) || accept_one("==", Operator::equal) ||
               accept_one("!=", Operator::not_equal) || accept_one("<=", Operator::less_equal) ||
               accept_one(">=", Operator::greater_equal) || accept_one("<", Operator::less) ||
               accept_one(">", Operator::greater);
      case 3: return accept_one("+", Operator::add) || accept_one("-", Operator::subtract);
      case 4: return accept(is_symbol("~"));
      case 5:
        return accept_one("*", Operator::multiply) || accept_one("/", Operator::divide) ||
               accept_one("//", Operator::floor_divide) || accept_one("%", Operator::modulo);
      default: return accept_one("**", Operator::power);
    }
  }

  // The operators, from those that bind least. A chain of one level is one node.
  Result<NodeId> operators(int level) {
    constexpr NodeKind kKinds[kLevels] = {
        NodeKind::logical_or, NodeKind::logical_and, NodeKind::compare,   NodeKind::arithmetic,
        NodeKind::concat,     NodeKind::arithmetic,  NodeKind::arithmetic};
    if (level == kLevels) return unary(true);
    const std::uint32_t line = peek().line;
    if (level == 2 && accept(is_name("not"))) {
      const Deeper deeper(depth_);
      NIBBLE_CHECK(check_depth());
      NIBBLE_TRY(operand, operators(level));
      return add(NodeKind::logical_not, line, operand);
    }
    NIBBLE_TRY(first, operators(level + 1));
    List chain{first};
    for (Operator op = {}; accept_operator(level, op);) {
      const bool has_operator =
          kKinds[level] == NodeKind::compare || kKinds[level] == NodeKind::arithmetic;
      if (has_operator) chain.push_back(static_cast<std::uint32_t>(op));
      NIBBLE_TRY(next, operators(level + 1));
      chain.push_back(next);
    }
    return chain.size() == 1 ? first : add(kKinds[level], line, add_list(chain));
  }

  Result<NodeId> unary(bool with_filters) {
    const std::uint32_t line = peek().line;
    NodeId value = kNoNode;
    if (is_symbol("-") || is_symbol("+")) {
      const Deeper deeper(depth_);
      NIBBLE_CHECK(check_depth());
      const bool is_minus = tokens_[at_++].text == "-";
      NIBBLE_TRY(operand, unary(false));
      value = add(is_minus ? NodeKind::negate : NodeKind::plus, line, operand);
    } else {
      NIBBLE_TRY(operand, primary());
      value = operand;
    }
    NIBBLE_TRY(accessed, postfix(value));
    if (!with_filters) return accessed;
    value = accessed;
    for (;;) {
      if (is_symbol("|")) {
        NIBBLE_TRY(filtered, filters(value));
        value = filtered;
      } else if (accept(is_name("is"))) {
        NIBBLE_TRY(tested, test(value));
        value = tested;
      } else if (is_symbol("(")) {
        NIBBLE_TRY(called, call(value));
        value = called;
      } else {
        return value;
      }
    }
  }

  Result<NodeId> postfix(NodeId value) {
    for (;;) {
      const std::uint32_t line = peek().line;
      if (accept(is_symbol("."))) {
        if (is(Kind::integer)) {
          NIBBLE_TRY(index, primary());
          value = add(NodeKind::item, line, value, index);
        } else {
          NIBBLE_TRY(attribute, name());
          value = add(NodeKind::attribute, line, value, attribute);
        }
      } else if (accept(is_symbol("["))) {
        NIBBLE_TRY(part, subscript(value, line));
        value = part;
      } else if (is_symbol("(")) {
        NIBBLE_TRY(called, call(value));
        value = called;
      } else {
        return value;
      }
    }
  }

  // [key] or [begin:end:step], behind the bracket.
  Result<NodeId> subscript(NodeId value, std::uint32_t line) {
    List bounds{kNoNode, kNoNode, kNoNode};
    std::size_t n = 0;
    for (;; ++n) {
      if (!is_symbol(":") && !is_symbol("]")) {
        NIBBLE_TRY(bound, expression());
        bounds[n] = bound;
      }
      if (n == 2 || !accept(is_symbol(":"))) break;
    }
    NIBBLE_CHECK(expect_symbol("]"));
    if (n != 0) return add(NodeKind::slice, line, value, add_list(bounds));
    if (bounds[0] == kNoNode) return error("expected an index");
    return add(NodeKind::item, line, value, bounds[0]);
  }

  Result<NodeId> call(NodeId function) {
    const std::uint32_t line = peek().line;
    NIBBLE_TRY(given, arguments());
    return add(NodeKind::call, line, function, given);
  }

  // (value, ..., name = value, ...)
  Result<NodeId> arguments() {
    List all{0};
    bool is_named = false;
    NIBBLE_CHECK(expect_symbol("("));
    while (!is_symbol(")")) {
      if (all.size() > 1) {
        NIBBLE_CHECK(expect_symbol(","));
        if (is_symbol(")")) break;
      }
      if (is_symbol("*") || is_symbol("**"))
        return error("arguments in a list or dict are not supported", Errc::unsupported);
      if (is(Kind::name) && is_symbol("=", 1)) {
        is_named = true;
        NIBBLE_TRY(parameter, name());
        all.push_back(parameter);
        ++at_;
      } else if (is_named) {
        return error("an argument without a name behind one with a name");
      } else {
        ++all[0];
      }
      NIBBLE_TRY(value, expression());
      all.push_back(value);
    }
    ++at_;
    return add_list(all);
  }

  // |name(arguments)|... or, for blocks, the same without the first |.
  Result<NodeId> filters(NodeId input) {
    do {
      ++at_;
      const std::uint32_t line = peek().line;
      NIBBLE_TRY(filter, name());
      NIBBLE_TRY(given, is_symbol("(") ? arguments() : Result<NodeId>(add_list({0})));
      input = add(NodeKind::filter, line, input, filter, given);
    } while (is_symbol("|"));
    return input;
  }

  // name(arguments), name argument, or only the name, behind "is".
  Result<NodeId> test(NodeId input) {
    const std::uint32_t line = peek().line;
    const bool is_negated = accept(is_name("not"));
    NIBBLE_TRY(tested, name());
    NodeId given = kNoNode;
    const bool has_argument = is(Kind::name) || is(Kind::string) || is(Kind::integer) ||
                              is(Kind::number) || is_symbol("[") || is_symbol("{");
    if (is_symbol("(")) {
      NIBBLE_TRY(all, arguments());
      given = all;
    } else if (is_name("is")) {
      return error("tests cannot be chained");
    } else if (has_argument && !is_name("else") && !is_name("or") && !is_name("and") &&
               !is_name("if") && !is_name("not") && !is_name("in")) {
      NIBBLE_TRY(only, primary());
      NIBBLE_TRY(value, postfix(only));
      given = add_list({1, value});
    } else {
      given = add_list({0});
    }
    const NodeId result = add(NodeKind::test, line, input, tested, given);
    return is_negated ? add(NodeKind::logical_not, line, result) : result;
  }

  Result<NodeId> primary() {
    const Token& token = peek();
    switch (token.kind) {
      case Kind::name: {
        ++at_;
        if (token.text == "true" || token.text == "True")
          return add_literal(Value::boolean(true), token.line);
        if (token.text == "false" || token.text == "False")
          return add_literal(Value::boolean(false), token.line);
        if (token.text == "none" || token.text == "None")
          return add_literal(Value::none(), token.line);
        return add(NodeKind::name, token.line, add_name(token.text));
      }
      case Kind::string: {
        std::string text;
        while (is(Kind::string)) NIBBLE_CHECK(unescape(tokens_[at_++].text, text));
        return add_literal(Value::string(text), token.line);
      }
      case Kind::integer:
      case Kind::number: return number();
      case Kind::symbol:
        if (token.text == "(" || token.text == "[" || token.text == "{") break;
        [[fallthrough]];
      default: return unexpected("an expression");
    }
    ++at_;
    if (token.text == "[") return elements(NodeKind::list, "]");
    if (token.text == "{") return elements(NodeKind::dict, "}");
    if (accept(is_symbol(")"))) return add(NodeKind::tuple, token.line, add_list({}));
    NIBBLE_TRY(inner, tuple_or_expression());
    NIBBLE_CHECK(expect_symbol(")"));
    return inner;
  }

  // The elements of a list or dict, behind the bracket.
  Result<NodeId> elements(NodeKind kind, const char* close) {
    const std::uint32_t line = peek().line;
    List all;
    while (!is_symbol(close)) {
      if (!all.empty()) {
        NIBBLE_CHECK(expect_symbol(","));
        if (is_symbol(close)) break;
      }
      NIBBLE_TRY(element, expression());
      all.push_back(element);
      if (kind != NodeKind::dict) continue;
      NIBBLE_CHECK(expect_symbol(":"));
      NIBBLE_TRY(value, expression());
      all.push_back(value);
    }
    ++at_;
    return add(kind, line, add_list(all));
  }

  Result<NodeId> number() {
    const Token& token = tokens_[at_++];
    std::string digits;
    for (const char c : token.text) {
      if (c != '_') digits += c;
    }
    io::JsonReader reader(digits);
    if (token.kind == Kind::integer) {
      const auto value = reader.unsigned_integer();
      if (!value || *value > std::uint64_t{INT64_MAX})
        return error("the number " + digits + " is not supported", Errc::unsupported);
      return add_literal(Value::integer(static_cast<std::int64_t>(*value)), token.line);
    }
    const auto value = reader.number();
    if (!value) return error("the number " + digits + " is not supported", Errc::unsupported);
    return add_literal(Value::number(*value), token.line);
  }

  // Appends what a string in the source stands for. What is no escape stays as it is.
  Result<void> unescape(std::string_view text, std::string& out) const {
    while (!text.empty()) {
      const std::size_t at = text.find('\\');
      out.append(text.substr(0, at));
      if (at == text.npos) break;
      text.remove_prefix(at + 1);
      const char c = text[0];  // the lexer lets no string end with a backslash
      text.remove_prefix(1);
      constexpr std::string_view kFrom = "\\'\"abfnrtv\n";
      constexpr std::string_view kTo = "\\'\"\a\b\f\n\r\t\v";
      if (const std::size_t known = kFrom.find(c); known != kFrom.npos) {
        if (known < kTo.size()) out += kTo[known];
      } else if (c == 'x' || c == 'u' || c == 'U') {
        const std::size_t n = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        NIBBLE_TRY(code, digits(text.substr(0, n), n, 16));
        text.remove_prefix(n);
        append_utf8(out, code);
      } else if (c >= '0' && c <= '7') {
        std::size_t n = 0;
        while (n < 2 && n < text.size() && text[n] >= '0' && text[n] <= '7') ++n;
        NIBBLE_TRY(code, digits(std::string_view(text.data() - 1, n + 1), n + 1, 8));
        text.remove_prefix(n);
        append_utf8(out, code);
      } else {
        out.append({'\\', c});
      }
    }
    return ok();
  }

  Result<std::uint32_t> digits(std::string_view text, std::size_t n, std::uint32_t base) const {
    std::uint32_t value = 0;
    for (const char c : text) {
      const char small_c = lower(c);
      const int digit = is_digit(c)                        ? c - '0'
                        : small_c >= 'a' && small_c <= 'f' ? small_c - 'a' + 10
                                                           : 99;
      if (digit >= static_cast<int>(base) || value > 0x10FFFF)
        value = 0x110000;
      else
        value = value * base + static_cast<std::uint32_t>(digit);
    }
    if (text.size() != n || value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF))
      return error("a string with an escape that is no character");
    return value;
  }

  Program* program_;
  std::vector<Token> tokens_;
  std::size_t at_ = 0;
  int depth_ = 0;
};

}}}  // namespace nibble::NIBBLE_ABI::chat
