// SPDX-License-Identifier: Apache-2.0
//
// Functions of templates that need nothing of the interpreter: range() and what "loop" has.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/chat/jinja_arguments.hpp"
#include "nibble/chat/jinja_arithmetic.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace chat {

// An attribute of "loop"; undefined if there is none of this name.
inline Value attribute_of_loop(const Value& loop, std::string_view name) {
  const auto& items = loop.loop_items();
  const std::size_t at = loop.loop_position();
  const auto integer = [](std::size_t n) { return Value::integer(static_cast<std::int64_t>(n)); };
  if (name == "index") return integer(at + 1);
  if (name == "index0") return integer(at);
  if (name == "revindex") return integer(items.size() - at);
  if (name == "revindex0") return integer(items.size() - at - 1);
  if (name == "first") return Value::boolean(at == 0);
  if (name == "last") return Value::boolean(at + 1 == items.size());
  if (name == "length") return integer(items.size());
  if (name == "depth") return integer(1);
  if (name == "depth0") return integer(0);
  if (name == "previtem") return at == 0 ? Value() : items[at - 1];
  if (name == "nextitem") return at + 1 == items.size() ? Value() : items[at + 1];
  return Value();
}

// loop.cycle(value, ...): one after the other.
inline Result<Value> cycled(const Value& loop, const Arguments& arguments) {
  if (arguments.positional.empty()) return argument_error("cycle() without values");
  return arguments.positional[loop.loop_position() % arguments.positional.size()];
}

// range(stop), range(start, stop, step), as a list.
inline Result<Value> range(Budget& budget, const Arguments& arguments) {
  NIBBLE_TRY(bound, bind<3>(arguments, {"start", "stop", "step"}));
  const bool has_start = bound[1] != nullptr;
  NIBBLE_TRY(start, integer_or(has_start ? bound[0] : nullptr, 0));
  NIBBLE_TRY(stop, integer_or(has_start ? bound[1] : bound[0], 0));
  NIBBLE_TRY(step, integer_or(bound[2], 1));
  if (step == 0) return argument_error("the step of range() is 0");
  constexpr std::size_t kMaxRange = 100'000;  // Jinja's sandbox has the same
  std::vector<Value> items;
  for (std::int64_t i = start; step < 0 ? i > stop : i < stop;) {
    if (items.size() == kMaxRange)
      return Error{Errc::limit, "range() has more than 100000 elements"};
    items.push_back(Value::integer(i));
    if (!detail::add_integers(i, step, i)) break;
  }
  return make_list(budget, std::move(items));
}

}}}  // namespace nibble::NIBBLE_ABI::chat
