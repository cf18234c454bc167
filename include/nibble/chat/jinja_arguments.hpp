// SPDX-License-Identifier: Apache-2.0
//
// Shared by the filters, tests and methods of templates: arguments, and access to what is in a
// value.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/chat/value.hpp"
#include "nibble/chat/value_text.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace chat {

using NamedValue = std::pair<std::string_view, Value>;

// The arguments of a call; whoever calls keeps them.
struct Arguments {
  std::span<const Value> positional = {};
  std::span<const NamedValue> named = {};

  bool empty() const noexcept { return positional.empty() && named.empty(); }
  // Without the first n, which have a meaning of their own.
  Arguments rest(std::size_t n) const noexcept { return {positional.subspan(n), named}; }
};

inline Error argument_error(const std::string& what) { return Error{Errc::invalid_argument, what}; }

// What Python does with undefined values in most places.
inline Error undefined_error(const std::string& what) {
  return argument_error(what + " is undefined");
}

// The values of parameters with these names, in their order; null where there is no argument.
template <std::size_t N>
Result<std::array<const Value*, N>> bind(const Arguments& arguments,
                                         const std::array<std::string_view, N>& names) {
  std::array<const Value*, N> bound{};
  if (arguments.positional.size() > N)
    return argument_error("takes at most " + to_text(N) + " arguments");
  for (std::size_t i = 0; i < arguments.positional.size(); ++i) bound[i] = &arguments.positional[i];
  for (const auto& [name, value] : arguments.named) {
    std::size_t i = 0;
    while (i < N && names[i] != name) ++i;
    if (i == N) return argument_error("has no argument '" + printable(name) + "'");
    if (bound[i] != nullptr) return argument_error("has two values for '" + printable(name) + "'");
    bound[i] = &value;
  }
  return bound;
}

inline bool is_true_or(const Value* value, bool fallback) noexcept {
  return value == nullptr ? fallback : value->is_true();
}
inline Result<std::int64_t> integer_or(const Value* value, std::int64_t fallback) {
  if (value == nullptr || value->is(Type::none)) return fallback;
  if (!value->is(Type::integer) && !value->is(Type::boolean))
    return argument_error(std::string("takes an int, not ") + to_string(value->type()));
  return value->integer();
}
inline Result<MarkedText> text_or(const Value* value, std::string_view fallback) {
  if (value == nullptr) return MarkedText(fallback, Origin::own);
  if (!value->is_string())
    return argument_error(std::string("takes a string, not ") + to_string(value->type()));
  return value->text();
}

// The elements that a loop over the value has: characters of a string, keys of a dict; none of an
// undefined value.
inline Result<std::vector<Value>> elements_of(Budget& budget, const Value& value) {
  NIBBLE_CHECK(budget.step());
  std::vector<Value> elements;
  if (value.is_list()) {
    NIBBLE_CHECK(budget.grow(value.items().size() * sizeof(Value)));
    elements = value.items();
  } else if (value.is(Type::dict)) {
    NIBBLE_CHECK(budget.grow(value.entries().size() * sizeof(Value)));
    for (const Entry& entry : value.entries()) elements.push_back(entry.key);
  } else if (value.is_string()) {
    std::string_view rest = value.bytes();
    while (!rest.empty()) {
      const std::size_t size = first_size(rest);
      NIBBLE_TRY(character, part_of(budget, value.text(), rest.substr(0, size)));
      elements.push_back(std::move(character));
      rest.remove_prefix(size);
    }
  } else if (!value.is_undefined()) {
    return argument_error(std::string(to_string(value.type())) + " cannot be iterated over");
  }
  return elements;
}

// The place of element `index` of n, which counts from the end if it is negative; n if there is
// none.
constexpr std::size_t place_of(std::int64_t index, std::size_t n) noexcept {
  const auto size = static_cast<std::int64_t>(n);
  if (index >= size || index < -size) return n;
  return static_cast<std::size_t>(index < 0 ? index + size : index);
}

// value[key]; undefined if there is no such element.
inline Result<Value> item_of(Budget& budget, const Value& value, const Value& key) {
  NIBBLE_CHECK(budget.step());
  if (value.is(Type::dict)) {
    for (const Entry& entry : value.entries()) {
      NIBBLE_TRY(is_key, equal(budget, entry.key, key));
      if (is_key) return entry.value;
    }
    return Value();
  }
  if (!key.is(Type::integer) && !key.is(Type::boolean)) return Value();
  if (value.is(Type::list) || value.is(Type::tuple)) {
    const std::size_t at = place_of(key.integer(), value.items().size());
    return at < value.items().size() ? value.items()[at] : Value();
  }
  if (value.is_string()) {
    NIBBLE_CHECK(budget.look_at(value.bytes()));
    const std::size_t n = count_characters(value.bytes());
    const std::size_t at = place_of(key.integer(), n);
    if (at == n) return Value();
    const std::string_view rest = value.bytes().substr(offset_of_character(value.bytes(), at));
    return part_of(budget, value.text(), rest.substr(0, first_size(rest)));
  }
  return Value();
}

// The value at a path like "function.name" or "0.id": what filters take for an attribute.
// `fallback`, if it is not null, is taken for each part that does not exist.
inline Result<Value> at_path(Budget& budget, Value value, const Value& path,
                             const Value* fallback = nullptr) {
  const auto go_to = [&](const Value& part) -> Result<void> {
    if (value.is_undefined()) return undefined_error("what has the attribute");
    NIBBLE_TRY(next, item_of(budget, value, part));
    value = next.is_undefined() && fallback != nullptr ? *fallback : std::move(next);
    return ok();
  };
  if (!path.is_string()) {
    NIBBLE_CHECK(go_to(path));
    return value;
  }
  std::string_view rest = path.bytes();
  for (bool is_last = false; !is_last;) {
    const std::size_t dot = rest.find('.');
    is_last = dot == rest.npos;
    const std::string_view part = rest.substr(0, dot);
    io::JsonReader digits(part);
    const auto index = digits.unsigned_integer();
    const bool is_index = index && digits.at_end() && *index <= std::uint64_t{INT64_MAX};
    NIBBLE_CHECK(
        go_to(is_index ? Value::integer(static_cast<std::int64_t>(*index)) : Value::string(part)));
    if (!is_last) rest.remove_prefix(dot + 1);
  }
  return value;
}

// The same for an attribute that need not be given; without one, the value itself.
inline Result<Value> attribute_or_all(Budget& budget, const Value& value, const Value* attribute,
                                      const Value* fallback = nullptr) {
  if (attribute == nullptr || attribute->is(Type::none)) return value;
  const bool has_fallback = fallback != nullptr && !fallback->is(Type::none);
  return at_path(budget, value, *attribute, has_fallback ? fallback : nullptr);
}

// Whether `value` is in `container`: Python's "in".
inline Result<bool> contains(Budget& budget, const Value& container, const Value& value) {
  NIBBLE_CHECK(budget.step());
  if (container.is_string()) {
    if (!value.is_string())
      return argument_error(std::string("a string is searched for ") + to_string(value.type()));
    NIBBLE_CHECK(budget.search(container.bytes(), value.bytes()));
    return container.bytes().find(value.bytes()) != std::string_view::npos;
  }
  if (container.is(Type::dict)) {
    for (const Entry& entry : container.entries()) {
      NIBBLE_TRY(is_key, equal(budget, entry.key, value));
      if (is_key) return true;
    }
    return false;
  }
  if (container.is_list()) {
    for (const Value& item : container.items()) {
      NIBBLE_TRY(is_item, equal(budget, item, value));
      if (is_item) return true;
    }
    return false;
  }
  if (container.is_undefined()) return false;
  return argument_error(std::string("nothing can be in ") + to_string(container.type()));
}

// The number of elements or characters. Errors: for what Python's len() refuses.
inline Result<std::size_t> length_of(Budget& budget, const Value& value) {
  switch (value.type()) {
    case Type::undefined: return std::size_t{0};
    case Type::string:
      NIBBLE_CHECK(budget.look_at(value.bytes()));
      return count_characters(value.bytes());
    case Type::list:
    case Type::tuple: return value.items().size();
    case Type::dict: return value.entries().size();
    case Type::loop: return value.loop_items().size();
    default: return argument_error(std::string(to_string(value.type())) + " has no length");
  }
}

// ---- Text
// ----------------------------------------------------------------------------------------

enum class Side : unsigned char { both, left, right };

// str.strip and its kin. `removed`: the characters to remove; white space if it is null or None.
inline Result<Value> stripped(Budget& budget, const MarkedText& text, const Value* removed,
                              Side side) {
  NIBBLE_TRY(set, removed == nullptr || removed->is(Type::none) ? Result<MarkedText>(MarkedText())
                                                                : text_or(removed, ""));
  const bool is_space_removed = removed == nullptr || removed->is(Type::none);
  NIBBLE_CHECK(budget.search(text.bytes(), set.bytes()));
  std::string_view rest = text.bytes();
  const auto is_removed = [&](std::size_t at, const Character& c) {
    return is_space_removed ? is_space(c)
                            : set.bytes().find(rest.substr(at, c.size)) != std::string_view::npos;
  };
  while (side != Side::right && !rest.empty()) {
    const Character c = first_character(rest);
    if (!is_removed(0, c)) break;
    rest.remove_prefix(c.size);
  }
  while (side != Side::left && !rest.empty()) {
    const Character c = last_character(rest);
    if (!is_removed(rest.size() - c.size, c)) break;
    rest.remove_suffix(c.size);
  }
  return part_of(budget, text, rest);
}

// str.replace; the first `count` occurrences, all if it is negative.
inline Result<Value> replaced(Budget& budget, const MarkedText& text, const MarkedText& from,
                              const MarkedText& to, std::int64_t count) {
  NIBBLE_CHECK(budget.search(text.bytes(), from.bytes()));
  TextBuilder out(budget);
  const std::string_view bytes = text.bytes();
  std::size_t copied = 0;
  count = (std::max)(count, std::int64_t{-1});
  for (std::size_t at = 0; count != 0 && out.is_whole(); --count) {
    at = bytes.find(from.bytes(), at);
    if (at == bytes.npos) break;
    out.append(text, copied, at - copied);
    out.append(to);
    copied = at + from.size();
    // Between all characters, if what is replaced is empty.
    at = copied;
    if (from.size() == 0) {
      if (at == bytes.size()) break;
      at += first_size(bytes.substr(at));
    }
  }
  out.append(text, copied);
  return out.finish();
}

// separator.join(items): of strings only, unless `converts` others.
inline Result<Value> joined(Budget& budget, const std::vector<Value>& items,
                            const MarkedText& separator, bool converts) {
  TextBuilder out(budget);
  for (std::size_t i = 0; i < items.size() && out.is_whole(); ++i) {
    if (!converts && !items[i].is_string())
      return argument_error(std::string("joins strings, not ") + to_string(items[i].type()));
    if (i != 0) out.append(separator);
    append_text(out, items[i]);
  }
  return out.finish();
}

}}}  // namespace nibble::NIBBLE_ABI::chat
