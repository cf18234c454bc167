// SPDX-License-Identifier: Apache-2.0
//
// Parses a template. The grammar is Jinja's, without inheritance, imports, recursive loops and
// arguments in lists (*args).
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/chat/jinja_expression_parser.hpp"
#include "nibble/chat/jinja_lexer.hpp"
#include "nibble/chat/jinja_program.hpp"
#include "nibble/core/owned.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace chat {

class JinjaParser : JinjaExpressionParser {
 public:
  static constexpr std::size_t kMaxBytes = std::size_t{1} << 22;  // of a source

  // Errors: malformed, unsupported (what of Jinja is left out), both with the line; limit (a source
  // that is too long, or nested too deeply).
  static Result<Owned<Program>> parse(std::string_view source) {
    if (source.size() > kMaxBytes) return Error{Errc::limit, "the template is longer than 4 MiB"};
    Owned<Program> program(new Program);
    program->source = normalized_source(source);
    NIBBLE_TRY(tokens, JinjaLexer(program->source).tokens());
    JinjaParser parser(*program, std::move(tokens));
    NIBBLE_TRY(root, parser.block({}));
    program->root = root;
    return program;
  }

 private:
  using JinjaExpressionParser::JinjaExpressionParser;

  // Statements up to a tag with one of these names, which is left with only its name read.
  Result<NodeId> block(std::initializer_list<std::string_view> ends) {
    const Deeper deeper(depth_);
    NIBBLE_CHECK(check_depth());
    const std::uint32_t line = at_ == 0 ? 1 : tokens_[at_ - 1].line;  // of the tag before it
    List statements;
    for (;;) {
      const Token& token = peek();
      if (token.kind == Kind::end) {
        if (ends.size() != 0)
          return error("{% " + std::string(*(ends.end() - 1)) + " %} is missing for line " +
                       to_text(line));
        break;
      }
      ++at_;
      if (token.kind == Kind::data) {
        statements.push_back(add_literal(Value::string(token.text), token.line, NodeKind::data));
      } else if (token.kind == Kind::print_begin) {
        NIBBLE_TRY(printed, tuple_or_expression());
        NIBBLE_CHECK(expect(is(Kind::print_end), "}}"));
        statements.push_back(add(NodeKind::print, token.line, printed));
      } else {
        for (const std::string_view end : ends) {
          if (!accept(is_name(end))) continue;
          end_ = end;
          return add(NodeKind::block, line, add_list(statements));
        }
        NIBBLE_TRY(added, statement());
        statements.push_back(added);
      }
    }
    return add(NodeKind::block, line, add_list(statements));
  }

  // A block behind the tag that is being read, up to {% end %}.
  Result<NodeId> body(std::string_view end) {
    NIBBLE_CHECK(expect_statement_end());
    NIBBLE_TRY(statements, block({end}));
    NIBBLE_CHECK(expect_statement_end());
    return statements;
  }

  Result<NodeId> statement() {
    const std::uint32_t line = peek().line;
    if (!is(Kind::name)) return unexpected("the name of a tag");
    const std::string_view tag = tokens_[at_++].text;
    if (tag == "if") return branch(line);
    if (tag == "for") return loop(line);
    if (tag == "set") return set(line);
    if (tag == "macro") {
      NIBBLE_TRY(macro_name, name());
      NIBBLE_TRY(parameters, this->parameters());
      NIBBLE_TRY(statements, loop_free_body("endmacro"));
      return add(NodeKind::macro, line, macro_name, parameters, statements);
    }
    if (tag == "call") {
      NodeId parameters = add_list({});
      if (is_symbol("(")) {
        NIBBLE_TRY(named, this->parameters());
        parameters = named;
      }
      NIBBLE_TRY(called, expression());
      if (program_->nodes[called].kind != NodeKind::call) return error("expected a call");
      NIBBLE_TRY(statements, loop_free_body("endcall"));
      return add(NodeKind::call_block, line, called, parameters, statements);
    }
    if (tag == "filter") {
      --at_;  // in place of the |
      NIBBLE_TRY(filtered, filters(kNoNode));
      NIBBLE_TRY(statements, body("endfilter"));
      return add(NodeKind::filter_block, line, filtered, statements);
    }
    if (tag == "generation") {
      NIBBLE_TRY(statements, body("endgeneration"));
      return add(NodeKind::scope, line, statements);
    }
    if (tag == "break" || tag == "continue") {
      if (n_loops_ == 0) return error("'" + std::string(tag) + "' outside of a loop");
      NIBBLE_CHECK(expect_statement_end());
      return add(tag == "break" ? NodeKind::break_loop : NodeKind::continue_loop, line);
    }
    --at_;
    for (const std::string_view known : {"extends", "block", "include", "import", "from", "with",
                                         "autoescape", "do", "trans", "debug"}) {
      if (tag == known)
        return error("the tag '" + std::string(tag) + "' is not supported", Errc::unsupported);
    }
    return error("unexpected tag '" + printable(tag.substr(0, 40)) + "'");
  }

  // The body of a function: no part of a loop around it.
  Result<NodeId> loop_free_body(std::string_view end) {
    const int n_loops = std::exchange(n_loops_, 0);
    NIBBLE_TRY(statements, body(end));
    n_loops_ = n_loops;
    return statements;
  }

  Result<NodeId> branch(std::uint32_t line) {
    List cases;
    NodeId otherwise = kNoNode;
    do {
      NIBBLE_TRY(condition, tuple_or_expression(false));
      NIBBLE_CHECK(expect_statement_end());
      NIBBLE_TRY(then, block({"elif", "else", "endif"}));
      cases.push_back(condition);
      cases.push_back(then);
    } while (end_ == "elif");
    if (end_ == "else") {
      NIBBLE_TRY(statements, body("endif"));
      otherwise = statements;
    } else {
      NIBBLE_CHECK(expect_statement_end());
    }
    return add(NodeKind::branch, line, add_list(cases), otherwise);
  }

  Result<NodeId> loop(std::uint32_t line) {
    NIBBLE_TRY(assigned, target(false));
    NIBBLE_CHECK(expect_name("in"));
    NIBBLE_TRY(iterated, tuple_or_expression(false));
    NodeId filter = kNoNode, otherwise = kNoNode;
    if (accept(is_name("if"))) {
      NIBBLE_TRY(condition, expression());
      filter = condition;
    }
    if (is_name("recursive")) return error("recursive loops are not supported", Errc::unsupported);
    NIBBLE_CHECK(expect_statement_end());
    ++n_loops_;
    NIBBLE_TRY(statements, block({"else", "endfor"}));
    --n_loops_;
    if (end_ == "else") {
      NIBBLE_TRY(empty, body("endfor"));
      otherwise = empty;
    } else {
      NIBBLE_CHECK(expect_statement_end());
    }
    return add(NodeKind::loop, line, assigned, iterated, add_list({filter, statements, otherwise}));
  }

  Result<NodeId> set(std::uint32_t line) {
    NIBBLE_TRY(assigned, target(true));
    if (accept(is_symbol("="))) {
      NIBBLE_TRY(value, tuple_or_expression());
      NIBBLE_CHECK(expect_statement_end());
      return add(NodeKind::set, line, assigned, value);
    }
    NodeId filter = kNoNode;
    if (is_symbol("|")) {
      NIBBLE_TRY(filtered, filters(kNoNode));
      filter = filtered;
    }
    NIBBLE_TRY(statements, body("endset"));
    return add(NodeKind::set_block, line, assigned, filter, statements);
  }

  // A name, several of them, or an attribute of a namespace.
  Result<NodeId> target(bool may_be_attribute) {
    const std::uint32_t line = peek().line;
    if (may_be_attribute && is_symbol(".", 1)) {
      NIBBLE_TRY(space, name());
      ++at_;
      NIBBLE_TRY(attribute, name());
      return add(NodeKind::attribute, line, add(NodeKind::name, line, space), attribute);
    }
    const bool has_bracket = accept(is_symbol("("));
    List names;
    bool is_tuple = false;
    do {
      if (!names.empty() && !is(Kind::name)) break;
      NIBBLE_TRY(next, name());
      names.push_back(add(NodeKind::name, line, next));
      is_tuple = is_tuple || is_symbol(",");
    } while (accept(is_symbol(",")));
    if (has_bracket) NIBBLE_CHECK(expect_symbol(")"));
    return is_tuple ? add(NodeKind::tuple, line, add_list(names)) : names[0];
  }

  // (name, name = default, ...)
  Result<NodeId> parameters() {
    List all;
    NIBBLE_CHECK(expect_symbol("("));
    while (!is_symbol(")")) {
      if (!all.empty()) NIBBLE_CHECK(expect_symbol(","));
      NIBBLE_TRY(parameter, name());
      NodeId otherwise = kNoNode;
      if (accept(is_symbol("="))) {
        NIBBLE_TRY(value, expression());
        otherwise = value;
      }
      all.push_back(parameter);
      all.push_back(otherwise);
    }
    ++at_;
    return add_list(all);
  }

  int n_loops_ = 0;       // around what is being read
  std::string_view end_;  // the tag that ended the last block
};

}}}  // namespace nibble::NIBBLE_ABI::chat
