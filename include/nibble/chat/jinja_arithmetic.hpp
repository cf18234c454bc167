// SPDX-License-Identifier: Apache-2.0
//
// The operators of templates on two values, as Python has them; integers have 64 bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "nibble/chat/jinja_arguments.hpp"
#include "nibble/chat/jinja_numbers.hpp"
#include "nibble/chat/jinja_program.hpp"
#include "nibble/core/libm.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace chat {

namespace detail {

// Whether a + b, a * b fit; then `out` has them.
constexpr bool add_integers(std::int64_t a, std::int64_t b, std::int64_t& out) noexcept {
  if (b > 0 ? a > INT64_MAX - b : a < INT64_MIN - b) return false;
  out = a + b;
  return true;
}
constexpr bool multiply_integers(std::int64_t a, std::int64_t b, std::int64_t& out) noexcept {
  if (a == 0 || b == 0) {
    out = 0;
    return true;
  }
  if (a == INT64_MIN || b == INT64_MIN) return false;
  const std::int64_t limit = INT64_MAX / (b < 0 ? -b : b);
  if (a > limit || a < -limit) return false;
  out = a * b;
  return true;
}

inline Result<Value> power_of_integers(std::int64_t base, std::int64_t exponent) {
  const Error too_large = argument_error("the number is too large");
  if (exponent > 64 && base != 0 && base != 1 && base != -1) return too_large;
  if (exponent > 64) exponent = 2 + exponent % 2;  // of 0, 1 and -1: only odd or even matters
  std::int64_t result = 1;
  for (; exponent > 0; --exponent) {
    if (!multiply_integers(result, base, result)) return too_large;
  }
  return Value::integer(result);
}

inline Result<Value> integer_result(Operator op, std::int64_t a, std::int64_t b) {
  std::int64_t result = 0;
  bool fits = true;
  switch (op) {
    case Operator::add: fits = add_integers(a, b, result); break;
    case Operator::subtract: fits = b != INT64_MIN && add_integers(a, -b, result); break;
    case Operator::multiply: fits = multiply_integers(a, b, result); break;
    case Operator::power: return power_of_integers(a, b);
    default:  // floor_divide, modulo
      if (b == 0) return argument_error("division by zero");
      if (op == Operator::modulo && b == -1) break;  // 0, where the machine's division overflows
      fits = a != INT64_MIN || b != -1;
      if (!fits) break;
      const bool is_below = a % b != 0 && (a < 0) != (b < 0);
      if (op == Operator::floor_divide) {
        result = a / b - is_below;
      } else {
        result = is_below ? a % b + b : a % b;
      }
      break;
  }
  if (!fits) return argument_error("the number is too large");
  return Value::integer(result);
}

inline Result<Value> number_result(Operator op, double a, double b) {
  switch (op) {
    case Operator::add: return Value::number(a + b);
    case Operator::subtract: return Value::number(a - b);
    case Operator::multiply: return Value::number(a * b);
    case Operator::power: return Value::number(libm::pow(a, b));
    default: break;
  }
  if (b == 0) return argument_error("division by zero");
  if (op == Operator::divide) return Value::number(a / b);
  const double quotient = to_whole(a / b, "floor");
  return Value::number(op == Operator::floor_divide ? quotient : a - quotient * b);
}

// A text or list, `count` times.
inline Result<Value> repeated(Budget& budget, const Value& value, std::int64_t count) {
  if (value.is_string()) {
    TextBuilder out(budget);
    for (; count > 0 && out.is_whole() && value.text().size() != 0; --count)
      out.append(value.text());
    return out.finish();
  }
  std::vector<Value> items;
  for (; count > 0 && !value.items().empty(); --count) {
    NIBBLE_CHECK(budget.grow(value.items().size() * sizeof(Value)));
    items.insert(items.end(), value.items().begin(), value.items().end());
  }
  return make_list(budget, std::move(items), value.type());
}

inline Result<Value> joined_lists(Budget& budget, const Value& a, const Value& b) {
  NIBBLE_TRY(items, elements_of(budget, a));
  NIBBLE_CHECK(budget.grow(b.items().size() * sizeof(Value)));
  items.insert(items.end(), b.items().begin(), b.items().end());
  return make_list(budget, std::move(items), a.type());
}

}  // namespace detail

// a op b. Errors: invalid_argument (values without this operator, division by zero, an integer that
// is too large).
inline Result<Value> arithmetic(Budget& budget, Operator op, const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    const bool are_integers = !a.is(Type::number) && !b.is(Type::number);
    if (are_integers && op != Operator::divide && !(op == Operator::power && b.integer() < 0))
      return detail::integer_result(op, a.integer(), b.integer());
    return detail::number_result(op, a.number(), b.number());
  }
  const auto is_sequence = [](const Value& value) {
    return value.is_string() || value.is(Type::list) || value.is(Type::tuple);
  };
  const auto is_count = [](const Value& value) {
    return value.is(Type::integer) || value.is(Type::boolean);
  };
  if (op == Operator::add && is_sequence(a) && a.type() == b.type()) {
    if (!a.is_string()) return detail::joined_lists(budget, a, b);
    TextBuilder out(budget);
    out.append(a.text());
    out.append(b.text());
    return out.finish();
  }
  if (op == Operator::multiply && is_sequence(a) && is_count(b))
    return detail::repeated(budget, a, b.integer());
  if (op == Operator::multiply && is_count(a) && is_sequence(b))
    return detail::repeated(budget, b, a.integer());
  return argument_error(std::string("the operator does not work with ") + to_string(a.type()) +
                        " and " + to_string(b.type()));
}

// value[begin:end:step]; null or None where a bound is left out.
inline Result<Value> slice_of(Budget& budget, const Value& value, const Value* begin,
                              const Value* end, const Value* step) {
  if (!value.is_string() && !value.is(Type::list) && !value.is(Type::tuple))
    return argument_error(std::string("cannot take a slice of ") + to_string(value.type()));
  NIBBLE_TRY(stride, integer_or(step, 1));
  if (stride == 0) return argument_error("the step of a slice is 0");
  NIBBLE_TRY(length, length_of(budget, value));
  const auto n = static_cast<std::int64_t>(length);
  // The bounds as Python's slice.indices gives them.
  const std::int64_t lowest = stride < 0 ? -1 : 0;
  const std::int64_t highest = stride < 0 ? n - 1 : n;
  const auto clamped = [&](std::int64_t at) {
    if (at < 0) at = at < -n ? lowest : at + n;
    return at < lowest ? lowest : at > highest ? highest : at;
  };
  NIBBLE_TRY(first, integer_or(begin, stride < 0 ? INT64_MAX : 0));
  NIBBLE_TRY(last, integer_or(end, INT64_MAX));
  std::int64_t at = clamped(first);
  const bool has_end = end != nullptr && !end->is(Type::none);
  const std::int64_t stop = has_end ? clamped(last) : stride < 0 ? -1 : n;

  if (value.is_string() && stride == 1) {
    const std::string_view text = value.bytes();
    if (at >= stop) return Value::string("");
    const std::size_t from = offset_of_character(text, static_cast<std::size_t>(at));
    const std::size_t size =
        offset_of_character(text.substr(from), static_cast<std::size_t>(stop - at));
    return part_of(budget, value.text(), text.substr(from, size));
  }
  NIBBLE_TRY(items, elements_of(budget, value));
  std::vector<Value> kept;
  while (stride < 0 ? at > stop : at < stop) {
    kept.push_back(items[static_cast<std::size_t>(at)]);
    const std::int64_t left = stride < 0 ? at - stop : stop - at;
    if ((stride < 0 ? -(stride + 1) : stride - 1) >= left) break;
    at += stride;
  }
  if (value.is_string()) return joined(budget, kept, {}, false);
  return make_list(budget, std::move(kept), value.type());
}

}}}  // namespace nibble::NIBBLE_ABI::chat
