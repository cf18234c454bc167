// SPDX-License-Identifier: Apache-2.0
//
// Runs a parsed template. It walks the tree; how deep is bounded, and so are time and memory
// (RenderLimits): a template comes with a model, from anywhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <ctime>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/chat/date_text.hpp"
#include "nibble/chat/jinja_arithmetic.hpp"
#include "nibble/chat/jinja_filters.hpp"
#include "nibble/chat/jinja_functions.hpp"
#include "nibble/chat/jinja_methods.hpp"
#include "nibble/chat/jinja_program.hpp"
#include "nibble/chat/jinja_scopes.hpp"
#include "nibble/chat/jinja_tests.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace chat {

struct Variable {
  std::string name;
  Value value;
};

class JinjaInterpreter {
 public:
  // All of these must outlive it.
  JinjaInterpreter(const Program& program, const RenderLimits& limits, const std::tm& now)
      : program_(&program), now_(&now), budget_(limits), output_(budget_) {}

  // Errors: invalid_argument (what the template does wrong, or refuses by raise_exception),
  // unsupported, limit; with the line.
  Result<MarkedText> run(std::span<const Variable> variables) {
    scopes_.enter(JinjaScopes::kNone);
    for (const Variable& variable : variables) NIBBLE_CHECK(set(variable.name, variable.value));
    scopes_.enter(scopes_.current());
    auto flow = execute(program_->root);
    if (!flow) return std::move(flow).error().in("line " + to_text(error_line_));
    return output_.take();
  }

 private:
  // Expressions and statements that contain each other, with the functions that they call.
  static constexpr int kMaxDepth = 200;

  enum class Flow : unsigned char { next, broken, continued };
  // What a Value of type function refers to: one of these, or kMacros + its place in macros_.
  enum Builtin : std::int64_t { kMethod, kRange, kDict, kNamespace, kRaise, kNow, kMacros };

  struct Macro {
    NodeId node = kNoNode;  // of kind macro or call_block
    JinjaScopes::Id scope = JinjaScopes::kNone;
  };

  // ---- Variables --------------------------------------------------------------------------------

  Result<Value> value_of(std::string_view name) {
    NIBBLE_TRY(known, scopes_.find(budget_, name));
    if (known != nullptr) return *known;
    const auto builtin = [](Builtin which) { return Value::reference(Type::function, which); };
    if (name == "range") return builtin(kRange);
    if (name == "dict") return builtin(kDict);
    if (name == "namespace") return builtin(kNamespace);
    if (name == "raise_exception") return builtin(kRaise);
    if (name == "strftime_now") return builtin(kNow);
    return Value();
  }

  // Sets a variable of the current scope.
  Result<void> set(std::string_view name, Value value) {
    return scopes_.names().set(budget_, name, std::move(value));
  }

  JinjaNames& names_of(const Value& space) noexcept {
    return spaces_[static_cast<std::size_t>(space.integer())];
  }

  Result<void> assign(NodeId id, Value value) {
    const Node& target = program_->nodes[id];
    if (target.kind == NodeKind::name) return set(program_->names[target.a], std::move(value));
    if (target.kind == NodeKind::attribute) {
      NIBBLE_TRY(space, evaluate(target.a));
      if (!space.is(Type::space))
        return argument_error("only attributes of a namespace can be set, " + described(target.a) +
                              " is " + to_string(space.type()));
      return names_of(space).set(budget_, program_->names[target.b], std::move(value));
    }
    NIBBLE_TRY(items, elements_of(budget_, value));
    if (items.size() != program_->size(target.a))
      return argument_error(to_text(items.size()) + " values for " +
                            to_text(program_->size(target.a)) + " names");
    for (std::size_t i = 0; i < items.size(); ++i)
      NIBBLE_CHECK(assign(program_->element(target.a, i), std::move(items[i])));
    return ok();
  }

  // ---- Statements -------------------------------------------------------------------------------

  // Remembers the line of the innermost node that failed.
  template <class T>
  Result<T> at_line(const Node& node, Result<T> result) {
    if (!result && error_line_ == 0) error_line_ = node.line;
    return result;
  }
  Result<void> enter() {
    if (depth_ > kMaxDepth) return Error{Errc::limit, "the template is nested too deeply"};
    return budget_.step();
  }

  Result<Flow> execute(NodeId id) {
    const Deeper deeper(depth_);
    const Node& node = program_->nodes[id];
    return at_line(node, execute_node(node));
  }

  Result<Flow> execute_node(const Node& node) {
    NIBBLE_CHECK(enter());
    switch (node.kind) {
      case NodeKind::data: output_.append(program_->literals[node.a].text()); break;
      case NodeKind::print: {
        NIBBLE_TRY(value, evaluate(node.a));
        append_text(output_, value);
        break;
      }
      case NodeKind::block: return execute_block(node);
      case NodeKind::branch: return execute_branch(node);
      case NodeKind::loop: return execute_loop(node);
      case NodeKind::set: {
        NIBBLE_TRY(value, evaluate(node.b));
        NIBBLE_CHECK(assign(node.a, std::move(value)));
        break;
      }
      case NodeKind::set_block: {
        NIBBLE_TRY(value, text_of_block(node.c, node.b));
        NIBBLE_CHECK(assign(node.a, std::move(value)));
        break;
      }
      case NodeKind::macro: NIBBLE_CHECK(set(program_->names[node.a], define(node))); break;
      case NodeKind::call_block: {
        const Value caller = define(node);
        NIBBLE_TRY(value, evaluate_call(program_->nodes[node.a], &caller));
        append_text(output_, value);
        break;
      }
      case NodeKind::filter_block: {
        NIBBLE_TRY(value, text_of_block(node.b, node.a));
        append_text(output_, value);
        break;
      }
      case NodeKind::scope: return execute_in_scope(node.a);
      case NodeKind::break_loop: return Flow::broken;
      case NodeKind::continue_loop: return Flow::continued;
      default: break;  // expressions are evaluated
    }
    NIBBLE_CHECK(output_.check_whole());
    return Flow::next;
  }

  Result<Flow> execute_block(const Node& node) {
    for (std::size_t i = 0; i < program_->size(node.a); ++i) {
      NIBBLE_TRY(flow, execute(program_->element(node.a, i)));
      if (flow != Flow::next) return flow;
    }
    return Flow::next;
  }

  Result<Flow> execute_branch(const Node& node) {
    for (std::size_t i = 0; i < program_->size(node.a); i += 2) {
      NIBBLE_TRY(condition, evaluate(program_->element(node.a, i)));
      if (condition.is_true()) return execute(program_->element(node.a, i + 1));
    }
    return node.b == kNoNode ? Result<Flow>(Flow::next) : execute(node.b);
  }

  Result<Flow> execute_in_scope(NodeId block) {
    const JinjaScopes::Id before = scopes_.current();
    scopes_.enter(before);
    NIBBLE_TRY(flow, execute(block));
    scopes_.leave_for(before);
    return flow;
  }

  // What a loop runs over: the elements for which its condition is true.
  Result<Value> loop_items(const Node& node) {
    NIBBLE_TRY(iterated, evaluate(node.b));
    auto read = elements_of(budget_, iterated);
    if (!read) return std::move(read).error().in("the loop over " + described(node.b));
    auto items = *std::move(read);
    const NodeId filter = program_->element(node.c, 0);
    if (filter != kNoNode) {
      std::vector<Value> kept;
      const JinjaScopes::Id before = scopes_.current();
      for (Value& item : items) {
        scopes_.enter(before);
        NIBBLE_CHECK(assign(node.a, item));
        NIBBLE_TRY(condition, evaluate(filter));
        if (condition.is_true()) kept.push_back(std::move(item));
        scopes_.leave_for(before);
      }
      items = std::move(kept);
    }
    return make_list(budget_, std::move(items));
  }

  Result<Flow> execute_loop(const Node& node) {
    NIBBLE_TRY(items, loop_items(node));
    const Value loop = Value::loop(items);
    const JinjaScopes::Id before = scopes_.current();
    bool is_empty = true;  // as Jinja sees it: no iteration went to its end
    for (std::size_t i = 0; i < items.items().size(); ++i) {
      loop.loop_position() = i;
      scopes_.enter(before);
      NIBBLE_CHECK(budget_.grow(JinjaScopes::kBytes));
      NIBBLE_CHECK(set("loop", loop));
      NIBBLE_CHECK(assign(node.a, items.items()[i]));
      NIBBLE_TRY(flow, execute(program_->element(node.c, 1)));
      scopes_.leave_for(before);
      if (flow == Flow::broken) break;
      if (flow == Flow::next) is_empty = false;
    }
    const NodeId otherwise = program_->element(node.c, 2);
    if (is_empty && otherwise != kNoNode) return execute_in_scope(otherwise);
    return Flow::next;
  }

  // The text that a block writes, in a scope of its own; through a filter, if there is one.
  Result<Value> text_of_block(NodeId block, NodeId filter) {
    TextBuilder outside = std::exchange(output_, TextBuilder(budget_));
    NIBBLE_TRY(flow, execute_in_scope(block));
    static_cast<void>(flow);
    NIBBLE_TRY(text, std::exchange(output_, std::move(outside)).finish());
    if (filter == kNoNode) return text;
    block_text_ = std::move(text);
    return evaluate(filter);
  }

  Value define(const Node& node) {
    scopes_.keep_current();
    macros_.push_back({static_cast<NodeId>(&node - program_->nodes.data()), scopes_.current()});
    return Value::reference(Type::function,
                            kMacros + static_cast<std::int64_t>(macros_.size() - 1));
  }

  // ---- Expressions ------------------------------------------------------------------------------

  Result<Value> evaluate(NodeId id) {
    const Deeper deeper(depth_);
    const Node& node = program_->nodes[id];
    return at_line(node, evaluate_node(node));
  }

  Result<Value> evaluate_node(const Node& node) {
    NIBBLE_CHECK(enter());
    switch (node.kind) {
      case NodeKind::literal: return program_->literals[node.a];
      case NodeKind::name: return value_of(program_->names[node.a]);
      case NodeKind::list: return evaluate_list(node.a, Type::list);
      case NodeKind::tuple: return evaluate_list(node.a, Type::tuple);
      case NodeKind::dict: return evaluate_dict(node);
      case NodeKind::attribute: {
        NIBBLE_TRY(object, evaluate(node.a));
        return attribute_of(node, object);
      }
      case NodeKind::item: return evaluate_item(node);
      case NodeKind::slice: return evaluate_slice(node);
      case NodeKind::call: return evaluate_call(node, nullptr);
      case NodeKind::filter: return evaluate_filter(node);
      case NodeKind::test: return evaluate_test(node);
      case NodeKind::negate:
      case NodeKind::plus: return evaluate_sign(node);
      case NodeKind::logical_not: {
        NIBBLE_TRY(operand, evaluate(node.a));
        return Value::boolean(!operand.is_true());
      }
      case NodeKind::logical_or: return evaluate_logical(node.a, true);
      case NodeKind::logical_and: return evaluate_logical(node.a, false);
      case NodeKind::compare: return evaluate_compare(node);
      case NodeKind::arithmetic: return evaluate_arithmetic(node);
      case NodeKind::concat: return evaluate_concat(node);
      case NodeKind::condition: {
        NIBBLE_TRY(condition, evaluate(node.a));
        if (condition.is_true()) return evaluate(node.b);
        return node.c == kNoNode ? Result<Value>(Value()) : evaluate(node.c);
      }
      default: return argument_error("a statement is no expression");
    }
  }

  // A part of the source as messages show it: "message.content", or "the value".
  std::string described(NodeId id) const {
    std::string text;
    const Node* node = &program_->nodes[id];
    for (int i = 0; node->kind == NodeKind::attribute && i < 8; ++i) {
      text = '.' + std::string(program_->names[node->b]) + text;
      node = &program_->nodes[node->a];
    }
    if (node->kind != NodeKind::name) return "the value";
    return "'" + printable(std::string(program_->names[node->a]) + text) + "'";
  }

  Result<std::vector<Value>> evaluate_all(NodeId list) {
    std::vector<Value> values;
    for (std::size_t i = 0; i < program_->size(list); ++i) {
      NIBBLE_TRY(value, evaluate(program_->element(list, i)));
      values.push_back(std::move(value));
    }
    return values;
  }
  Result<Value> evaluate_list(NodeId list, Type type) {
    NIBBLE_TRY(items, evaluate_all(list));
    return make_list(budget_, std::move(items), type);
  }

  Result<Value> evaluate_dict(const Node& node) {
    NIBBLE_TRY(all, evaluate_all(node.a));
    std::vector<Entry> entries;
    for (std::size_t i = 0; i < all.size(); i += 2)
      NIBBLE_CHECK(set_entry(entries, std::move(all[i]), std::move(all[i + 1])));
    NIBBLE_CHECK(budget_.grow((entries.size() + 2) * sizeof(Entry)));
    return Value::dict(std::move(entries));
  }
  Result<void> set_entry(std::vector<Entry>& entries, Value key, Value value) {
    for (Entry& entry : entries) {
      NIBBLE_TRY(is_key, equal(budget_, entry.key, key));
      if (!is_key) continue;
      entry.value = std::move(value);
      return ok();
    }
    entries.push_back({std::move(key), std::move(value)});
    return ok();
  }

  Result<Value> attribute_of(const Node& node, const Value& object) {
    const std::string_view name = program_->names[node.b];
    if (object.is_undefined()) return undefined_error(described(node.a));
    if (object.is(Type::space)) return attribute_of_space(object, name);
    if (object.is(Type::loop)) return attribute_of_loop(object, name);
    if (const auto method = find_method(object, name)) {
      return method == detail::refuse_change ? Value() : Value::reference(Type::function, kMethod);
    }
    if (!object.is(Type::dict)) return Value();
    NIBBLE_CHECK(budget_.step(1 + object.entries().size() / 8));
    const Value* const entry = object.find(name);
    return entry == nullptr ? Value() : *entry;
  }

  Result<Value> attribute_of_space(const Value& space, std::string_view name) {
    NIBBLE_CHECK(budget_.step(names_of(space).cost()));
    const Value* const value = names_of(space).find(name);
    return value == nullptr ? Value() : *value;
  }

  Result<Value> evaluate_item(const Node& node) {
    NIBBLE_TRY(object, evaluate(node.a));
    NIBBLE_TRY(key, evaluate(node.b));
    if (object.is_undefined()) return undefined_error(described(node.a));
    if (object.is(Type::space) && key.is_string()) return attribute_of_space(object, key.bytes());
    return item_of(budget_, object, key);
  }

  Result<Value> evaluate_slice(const Node& node) {
    NIBBLE_TRY(object, evaluate(node.a));
    if (object.is_undefined()) return undefined_error(described(node.a));
    Value bounds[3];
    for (std::size_t i = 0; i < 3; ++i) {
      const NodeId bound = program_->element(node.b, i);
      if (bound == kNoNode) {
        bounds[i] = Value::none();
      } else {
        NIBBLE_TRY(value, evaluate(bound));
        bounds[i] = std::move(value);
      }
    }
    return slice_of(budget_, object, &bounds[0], &bounds[1], &bounds[2]);
  }

  struct OwnArguments {
    std::vector<Value> positional = {};
    std::vector<NamedValue> named = {};

    operator Arguments() const noexcept { return {positional, named}; }
  };

  Result<OwnArguments> evaluate_arguments(NodeId list) {
    OwnArguments arguments;
    const std::size_t n_positional = program_->element(list, 0);
    for (std::size_t i = 1; i <= n_positional; ++i) {
      NIBBLE_TRY(value, evaluate(program_->element(list, i)));
      arguments.positional.push_back(std::move(value));
    }
    for (std::size_t i = n_positional + 1; i < program_->size(list); i += 2) {
      NIBBLE_TRY(value, evaluate(program_->element(list, i + 1)));
      arguments.named.emplace_back(program_->names[program_->element(list, i)], std::move(value));
    }
    return arguments;
  }

  Result<Value> evaluate_filter(const Node& node) {
    NIBBLE_TRY(input, node.a == kNoNode ? Result<Value>(block_text_) : evaluate(node.a));
    NIBBLE_TRY(arguments, evaluate_arguments(node.c));
    return apply_filter(budget_, program_->names[node.b], input, arguments);
  }

  Result<Value> evaluate_test(const Node& node) {
    NIBBLE_TRY(input, evaluate(node.a));
    NIBBLE_TRY(arguments, evaluate_arguments(node.c));
    NIBBLE_TRY(result, apply_test(budget_, program_->names[node.b], input, arguments));
    return Value::boolean(result);
  }

  Result<Value> evaluate_sign(const Node& node) {
    NIBBLE_TRY(operand, evaluate(node.a));
    if (operand.is_undefined()) return undefined_error(described(node.a));
    if (!operand.is_number())
      return argument_error(std::string(to_string(operand.type())) + " has no sign");
    if (node.kind == NodeKind::negate)
      return arithmetic(budget_, Operator::multiply, Value::integer(-1), operand);
    return arithmetic(budget_, Operator::add, Value::integer(0), operand);
  }

  // The first operand whose truth decides, else the last one.
  Result<Value> evaluate_logical(NodeId list, bool deciding) {
    const std::size_t n = program_->size(list);
    for (std::size_t i = 0; i + 1 < n; ++i) {
      NIBBLE_TRY(operand, evaluate(program_->element(list, i)));
      if (operand.is_true() == deciding) return operand;
    }
    return evaluate(program_->element(list, n - 1));
  }

  Result<bool> holds(Operator op, const Value& a, const Value& b) {
    if (op == Operator::in || op == Operator::not_in) {
      NIBBLE_TRY(is_in, contains(budget_, b, a));
      return is_in == (op == Operator::in);
    }
    if (op == Operator::equal || op == Operator::not_equal) {
      NIBBLE_TRY(is_same, equal(budget_, a, b));
      return is_same == (op == Operator::equal);
    }
    NIBBLE_TRY(order, compare(budget_, a, b));
    return op == Operator::less         ? std::is_lt(order)
           : op == Operator::less_equal ? std::is_lteq(order)
           : op == Operator::greater    ? std::is_gt(order)
                                        : std::is_gteq(order);
  }

  // a < b <= c: all of them.
  Result<Value> evaluate_compare(const Node& node) {
    NIBBLE_TRY(left, evaluate(program_->element(node.a, 0)));
    for (std::size_t i = 1; i < program_->size(node.a); i += 2) {
      NIBBLE_TRY(right, evaluate(program_->element(node.a, i + 1)));
      NIBBLE_TRY(result, holds(static_cast<Operator>(program_->element(node.a, i)), left, right));
      if (!result) return Value::boolean(false);
      left = std::move(right);
    }
    return Value::boolean(true);
  }

  Result<Value> evaluate_arithmetic(const Node& node) {
    NIBBLE_TRY(left, evaluate(program_->element(node.a, 0)));
    if (left.is_undefined()) return undefined_error(described(program_->element(node.a, 0)));
    for (std::size_t i = 1; i < program_->size(node.a); i += 2) {
      NIBBLE_TRY(right, evaluate(program_->element(node.a, i + 1)));
      if (right.is_undefined()) return undefined_error(described(program_->element(node.a, i + 1)));
      NIBBLE_TRY(result, arithmetic(budget_, static_cast<Operator>(program_->element(node.a, i)),
                                    left, right));
      left = std::move(result);
    }
    return left;
  }

  Result<Value> evaluate_concat(const Node& node) {
    TextBuilder out(budget_);
    for (std::size_t i = 0; i < program_->size(node.a); ++i) {
      NIBBLE_TRY(operand, evaluate(program_->element(node.a, i)));
      append_text(out, operand);
    }
    return out.finish();
  }

  // ---- Calls ------------------------------------------------------------------------------------

  // `caller`: the block of a call_block, null elsewhere.
  Result<Value> evaluate_call(const Node& node, const Value* caller) {
    const Node& called = program_->nodes[node.a];
    if (called.kind != NodeKind::attribute) {
      NIBBLE_TRY(function, evaluate(node.a));
      NIBBLE_TRY(arguments, evaluate_arguments(node.b));
      return call(node.a, function, arguments, caller);
    }
    NIBBLE_TRY(object, evaluate(called.a));
    NIBBLE_TRY(arguments, evaluate_arguments(node.b));
    const std::string_view name = program_->names[called.b];
    if (object.is(Type::loop) && name == "cycle") return cycled(object, arguments);
    if (const auto method = find_method(object, name)) {
      auto result = method(budget_, object, arguments);
      if (!result) return std::move(result).error().in("'" + std::string(name) + "'");
      return result;
    }
    NIBBLE_TRY(function, attribute_of(called, object));
    return call(node.a, function, arguments, caller);
  }

  Result<Value> call(NodeId id, const Value& function, const Arguments& arguments,
                     const Value* caller) {
    if (function.is_undefined()) return undefined_error(described(id));
    if (!function.is(Type::function))
      return argument_error(described(id) + " is " + to_string(function.type()) +
                            ", not a function");
    if (function.integer() >= kMacros) return call_macro(function, arguments, caller);
    switch (static_cast<Builtin>(function.integer())) {
      case kRange: return range(budget_, arguments);
      case kDict: {
        if (!arguments.positional.empty()) return argument_error("dict() takes names");
        std::vector<Entry> entries;
        for (const auto& [name, value] : arguments.named)
          NIBBLE_CHECK(set_entry(entries, Value::string(name), value));
        return Value::dict(std::move(entries));
      }
      case kNamespace:
        if (!arguments.positional.empty()) return argument_error("namespace() takes names");
        NIBBLE_CHECK(budget_.grow(arguments.named.size() * sizeof(Value) + JinjaScopes::kBytes));
        spaces_.emplace_back(std::vector(arguments.named.begin(), arguments.named.end()));
        return Value::reference(Type::space, static_cast<std::int64_t>(spaces_.size() - 1));
      case kRaise: {
        NIBBLE_TRY(bound, bind<1>(arguments, {"message"}));
        NIBBLE_TRY(text, text_or(bound[0], ""));
        return argument_error("the template refuses this: " + printable(text.bytes()));
      }
      case kNow: {
        NIBBLE_TRY(bound, bind<1>(arguments, {"format"}));
        NIBBLE_TRY(format, text_or(bound[0], ""));
        NIBBLE_CHECK(budget_.grow(16 * format.size()));
        NIBBLE_TRY(text, date_text(format.bytes(), *now_));
        return Value::string(text);
      }
      default: return argument_error("a method must be called where it is named");
    }
  }

  Result<Value> call_macro(const Value& function, const Arguments& arguments, const Value* caller) {
    const Macro macro = macros_[static_cast<std::size_t>(function.integer() - kMacros)];
    const Node& node = program_->nodes[macro.node];
    const JinjaScopes::Id before = scopes_.current();
    scopes_.enter(macro.scope);
    NIBBLE_CHECK(budget_.grow(JinjaScopes::kBytes));
    if (caller != nullptr) NIBBLE_CHECK(set("caller", *caller));
    NIBBLE_CHECK(bind_parameters(node, arguments));
    NIBBLE_TRY(text, text_of_block(node.c, kNoNode));
    scopes_.leave_for(before);
    return text;
  }

  Result<void> bind_parameters(const Node& node, const Arguments& arguments) {
    const std::size_t n = program_->size(node.b) / 2;
    if (arguments.positional.size() > n)
      return argument_error("a macro with " + to_text(n) + " parameters is called with " +
                            to_text(arguments.positional.size()) + " arguments");
    std::size_t n_used = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const std::string_view name = program_->names[program_->element(node.b, 2 * i)];
      const NodeId otherwise = program_->element(node.b, 2 * i + 1);
      NIBBLE_CHECK(budget_.step(1 + arguments.named.size() / 8));
      const Value* value = i < arguments.positional.size() ? &arguments.positional[i] : nullptr;
      for (const auto& [given, named] : arguments.named) {
        if (given != name) continue;
        if (value != nullptr) return argument_error("two values for '" + printable(name) + "'");
        value = &named;
        ++n_used;
      }
      if (value != nullptr) {
        NIBBLE_CHECK(set(name, *value));
      } else if (otherwise != kNoNode) {
        NIBBLE_TRY(computed, evaluate(otherwise));
        NIBBLE_CHECK(set(name, std::move(computed)));
      } else {
        NIBBLE_CHECK(set(name, Value()));
      }
    }
    if (n_used != arguments.named.size())
      return argument_error("a macro is called with an argument that it does not have");
    return ok();
  }

  const Program* program_;
  const std::tm* now_;
  Budget budget_;
  TextBuilder output_;
  JinjaScopes scopes_;
  std::vector<JinjaNames> spaces_;  // the attributes of the namespaces
  std::vector<Macro> macros_;
  Value block_text_;  // the input of a filter_block's or set_block's filter
  int depth_ = 0;
  std::uint32_t error_line_ = 0;
};

}}}  // namespace nibble::NIBBLE_ABI::chat
