// SPDX-License-Identifier: Apache-2.0
//
// Calls of tools: a grammar that a model's answer cannot leave, from the JSON that describes the
// tools, and the calls of an answer as values.
//
//   NIBBLE_TRY(tools, chat::Tools::create(json, chat::ToolCallForm::hermes()));
//   NIBBLE_TRY(constraint, grammar::Constraint::create(tools.grammar(), trie));
//   options.grammar = &constraint;  // GenerateOptions; ChatOptions::tools = json for the prompt
//   ...
//   NIBBLE_TRY(calls, tools.parse(answer));
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/core/text.hpp"
#include "nibble/grammar/grammar.hpp"
#include "nibble/grammar/json_schema.hpp"
#include "nibble/grammar/rules.hpp"
#include "nibble/io/json.hpp"
#include "nibble/io/json_text.hpp"
#include "nibble/io/json_value.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace chat {

// How a model was taught to write calls: {"name": "...", "arguments": {...}}, between marks.
struct ToolCallForm {
  std::string before = "", after = "", between = "\n";
  std::string arguments = "arguments";  // the key
  std::uint32_t max_calls = 1;          // of one answer, which has at least one; at most 64

  // Hermes 2 Pro, Qwen 2.5 and 3, and models trained like them.
  static ToolCallForm hermes() { return {"<tool_call>\n", "\n</tool_call>"}; }
  // Llama 3.1 to 3.3.
  static ToolCallForm llama3() { return {"", "", "; ", "parameters"}; }
};

struct ToolCall {
  std::string name;
  io::JsonValue arguments;         // an object
  std::size_t begin = 0, end = 0;  // its bytes in the answer, for ScoredText
};

// Immutable; threads may share it.
class Tools {
 public:
  static constexpr std::size_t kMaxTools = 1024;

  // `tools`: a JSON array of functions, as in OpenAI's API: {"type": "function", "function":
  // {"name": ..., "parameters": JSON Schema}}, or what is inside of these. A tool without
  // parameters takes {}; one whose parameters nothing can meet is never called. Errors: malformed
  // (not that form; two tools of one name; parameters that are not of the type object), unsupported
  // and limit (those of JsonSchemaReader; the message has the tool's name), invalid_argument (no
  // tools, max_calls).
  static Result<Tools> create(std::string_view tools, const ToolCallForm& style = {});

  const grammar::Grammar& grammar() const noexcept { return grammar_; }

  // The calls of a whole answer. The grammar has seen to it that the arguments fit the schemas; of
  // other texts it is only checked that they are objects, and that the tools exist. Errors:
  // malformed.
  Result<std::vector<ToolCall>> parse(std::string_view text) const;

 private:
  Tools(std::vector<std::string> names, const ToolCallForm& style, grammar::Grammar grammar)
      : names_(std::move(names)), style_(style), grammar_(std::move(grammar)) {}

  std::vector<std::string> names_;
  ToolCallForm style_;
  grammar::Grammar grammar_;
};

namespace detail {

// Adds what the calls of a tool are to `calls`, and its name to `names`.
inline Result<void> add_tool(const io::JsonValue& tool, const ToolCallForm& style,
                             grammar::Rules& rules, std::vector<std::string>& names,
                             std::vector<grammar::ExprId>& calls) {
  using Kind = io::JsonValue::Kind;
  const io::JsonValue* const inner = tool.find("function");
  const io::JsonValue& function = inner != nullptr ? *inner : tool;
  const io::JsonValue* const name = function.find("name");
  if (name == nullptr || name->kind() != Kind::string || name->string().empty()) {
    return Error{Errc::malformed, "tools: one has no name"};
  }
  const std::string shown = "tools: '" + printable(name->string()) + "'";
  if (std::find(names.begin(), names.end(), name->string()) != names.end()) {
    return Error{Errc::malformed, shown + " is there twice"};
  }
  NIBBLE_TRY(none, io::JsonValue::parse(R"({"type": "object", "additionalProperties": false})"));
  const io::JsonValue* parameters = function.find("parameters");
  if (parameters == nullptr || parameters->is_null()) parameters = &none;
  const io::JsonValue* const type = parameters->find("type");
  if (type == nullptr || type->string() != "object") {
    return Error{Errc::malformed, shown + " has parameters that are not of the type object"};
  }
  auto arguments = grammar::JsonSchemaReader(*parameters, {}, rules).read();
  if (!arguments) return std::move(arguments).error().in(shown);
  names.push_back(name->string());
  calls.push_back(
      rules.sequence({rules.text(style.before + "{\"name\": " + io::json_text(name->string()) +
                                 ", " + io::json_text(style.arguments) + ": "),
                      *arguments, rules.text("}" + style.after)}));
  return ok();
}

}  // namespace detail

inline Result<Tools> Tools::create(std::string_view tools, const ToolCallForm& style) {
  return catch_out_of_memory([&]() -> Result<Tools> {
    if (tools.size() > (std::size_t{1} << 20)) {
      return Error{Errc::limit, "tools: more than 1 MiB of text"};
    }
    if (style.max_calls < 1 || style.max_calls > 64) {
      return Error{Errc::invalid_argument, "tools: max_calls must be in [1, 64]"};
    }
    auto read = io::JsonValue::parse(tools);
    if (!read) return std::move(read).error().in("tools");
    if (read->kind() != io::JsonValue::Kind::array) {
      return Error{Errc::malformed, "tools: they are no JSON array"};
    }
    if (read->elements().empty()) return Error{Errc::invalid_argument, "tools: there are none"};
    if (read->elements().size() > kMaxTools) {
      return Error{Errc::limit, "tools: there are more than 1024"};
    }
    grammar::Rules rules;
    const grammar::RuleId root = rules.add_rule("root"), call = rules.add_rule("call");
    std::vector<std::string> names;
    std::vector<grammar::ExprId> calls;
    for (const io::JsonValue& tool : read->elements()) {
      NIBBLE_CHECK(detail::add_tool(tool, style, rules, names, calls));
    }
    rules.define(call, rules.choice(calls));
    const grammar::ExprId one = rules.call(call);
    const grammar::ExprId more = rules.sequence({rules.text(style.between), one});
    rules.define(root, rules.sequence({one, rules.repeat(more, 0, style.max_calls - 1)}));
    auto grammar = grammar::Grammar::create(rules, root, false);
    if (!grammar) return std::move(grammar).error().in("tools");
    return Tools(std::move(names), style, *std::move(grammar));
  });
}

inline Result<std::vector<ToolCall>> Tools::parse(std::string_view text) const {
  return catch_out_of_memory([&]() -> Result<std::vector<ToolCall>> {
    std::vector<ToolCall> calls;
    std::size_t at = 0;
    const auto error = [&](const std::string& what) {
      return Error{Errc::malformed, "tool calls: byte " + to_text(at) + ": " + what};
    };
    const auto accept = [&](std::string_view mark) {
      if (!text.substr(at).starts_with(mark)) return false;
      at += mark.size();
      return true;
    };
    while (calls.empty() || at < text.size()) {
      ToolCall call;
      if (calls.size() == style_.max_calls) return error("more calls than max_calls");
      if (!calls.empty() && !accept(style_.between)) return error("expected another call");
      call.begin = at;
      if (!accept(style_.before)) return error("expected a call");
      io::JsonReader json(text.substr(at));
      auto raw = json.raw();
      if (!raw) return error(raw.error().message);
      NIBBLE_TRY(value, io::JsonValue::parse(*raw));
      const io::JsonValue* const name = value.find("name");
      const io::JsonValue* const arguments = value.find(style_.arguments);
      if (name == nullptr ||
          std::find(names_.begin(), names_.end(), name->string()) == names_.end()) {
        return error("it names no tool");
      }
      if (arguments == nullptr || arguments->kind() != io::JsonValue::Kind::object) {
        return error("there is no object '" + style_.arguments + "'");
      }
      at = static_cast<std::size_t>(raw->data() + raw->size() - text.data());
      if (!accept(style_.after)) return error("expected the end of the call");
      call.name = name->string();
      call.arguments = *arguments;
      call.end = at;
      calls.push_back(std::move(call));
    }
    return calls;
  });
}

}}}  // namespace nibble::NIBBLE_ABI::chat
