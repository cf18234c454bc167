// SPDX-License-Identifier: Apache-2.0
//
// The tests of templates: value is name(argument).
#pragma once

#include <string>
#include <string_view>

#include "nibble/chat/jinja_arguments.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace chat {

namespace detail {

// Tests that need one argument. Nothing if there is none with this name.
inline Result<bool> apply_test_with(Budget& budget, std::string_view name, const Value& value,
                                    const Value& argument, bool& is_known) {
  is_known = true;
  if (name == "equalto" || name == "eq" || name == "==") return equal(budget, value, argument);
  if (name == "ne" || name == "!=") {
    NIBBLE_TRY(is_same, equal(budget, value, argument));
    return !is_same;
  }
  if (name == "sameas") {
    if (value.type() != argument.type()) return false;
    return equal(budget, value, argument);
  }
  if (name == "in") return contains(budget, argument, value);
  if (name == "divisibleby") {
    if (!value.is(Type::integer) || !argument.is(Type::integer) || argument.integer() == 0)
      return argument_error("takes two ints, the second not 0");
    return argument.integer() == -1 || value.integer() % argument.integer() == 0;
  }
  const bool is_less = name == "lt" || name == "lessthan" || name == "<";
  const bool is_greater = name == "gt" || name == "greaterthan" || name == ">";
  const bool is_at_most = name == "le" || name == "<=";
  const bool is_at_least = name == "ge" || name == ">=";
  is_known = is_less || is_greater || is_at_most || is_at_least;
  if (!is_known) return false;
  NIBBLE_TRY(order, compare(budget, value, argument));
  return (is_less && std::is_lt(order)) || (is_greater && std::is_gt(order)) ||
         (is_at_most && std::is_lteq(order)) || (is_at_least && std::is_gteq(order));
}

inline Result<bool> apply_test_without(std::string_view name, const Value& value, bool& is_known) {
  is_known = true;
  const bool is_countable = value.is_string() || value.is(Type::list) || value.is(Type::tuple) ||
                            value.is(Type::dict) || value.is_undefined();
  if (name == "defined") return !value.is_undefined();
  if (name == "undefined") return value.is_undefined();
  if (name == "none") return value.is(Type::none);
  if (name == "string") return value.is_string();
  if (name == "mapping") return value.is(Type::dict);
  if (name == "sequence") return is_countable;
  if (name == "iterable") return is_countable || value.is(Type::lazy) || value.is(Type::loop);
  if (name == "number") return value.is_number();
  if (name == "integer") return value.is(Type::integer);
  if (name == "float") return value.is(Type::number);
  if (name == "boolean") return value.is(Type::boolean);
  if (name == "true") return value.is(Type::boolean) && value.is_true();
  if (name == "false") return value.is(Type::boolean) && !value.is_true();
  if (name == "callable") return value.is(Type::function);
  if (name == "odd" || name == "even") {
    if (!value.is(Type::integer) && !value.is(Type::boolean))
      return argument_error(std::string("takes an int, not ") + to_string(value.type()));
    return (value.integer() % 2 != 0) == (name == "odd");
  }
  if (name == "lower" || name == "upper") {
    bool has_letter = false;
    for (const char c : value.bytes()) {
      if (c != (name == "lower" ? lower(c) : upper(c))) return false;
      has_letter = has_letter || lower(c) != upper(c);
    }
    return has_letter;
  }
  is_known = false;
  return false;
}

}  // namespace detail

inline Result<bool> apply_test(Budget& budget, std::string_view name, const Value& value,
                               const Arguments& arguments) {
  NIBBLE_CHECK(budget.look_at(value.bytes()));
  const auto where = [&] { return "the test '" + printable(name.substr(0, 40)) + "'"; };
  bool is_known = false;
  const auto apply = [&]() -> Result<bool> {
    if (arguments.empty()) return detail::apply_test_without(name, value, is_known);
    NIBBLE_TRY(bound, bind<1>(arguments, {"other"}));
    return detail::apply_test_with(budget, name, value, *bound[0], is_known);
  };
  auto result = apply();
  if (result && !is_known)
    return argument_error(where() + " does not exist, or not with these arguments");
  if (!result) return std::move(result).error().in(where());
  return result;
}

}}}  // namespace nibble::NIBBLE_ABI::chat
