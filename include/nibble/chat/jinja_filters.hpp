// SPDX-License-Identifier: Apache-2.0
//
// The filters of templates: value | name(arguments).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/chat/jinja_arguments.hpp"
#include "nibble/chat/jinja_arithmetic.hpp"
#include "nibble/chat/jinja_numbers.hpp"
#include "nibble/chat/jinja_tests.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace chat {

Result<Value> apply_filter(Budget& budget, std::string_view name, const Value& input,
                           const Arguments& arguments);

namespace detail {

// A filter gets its input and its arguments.
using Filter = Result<Value> (*)(Budget&, const Value&, const Arguments&);

// One that takes no arguments.
template <Result<Value> (*kFilter)(Budget&, const Value&)>
Result<Value> alone(Budget& budget, const Value& input, const Arguments& arguments) {
  NIBBLE_CHECK(bind<0>(arguments, {}));
  return kFilter(budget, input);
}

// ---- Text
// ----------------------------------------------------------------------------------------

template <void (*kChange)(MarkedText&)>
Result<Value> changed_text(Budget& budget, const Value& input) {
  TextBuilder out(budget);
  append_text(out, input);
  NIBBLE_TRY(text, out.take());
  kChange(text);
  return Value::string(std::move(text));
}

inline void to_upper(MarkedText& text) { text.transform(upper); }
inline void to_lower(MarkedText& text) { text.transform(lower); }
inline void to_capitalized(MarkedText& text) {
  bool is_first = true;
  text.transform([&](char c) { return std::exchange(is_first, false) ? upper(c) : lower(c); });
}
// `separators`: the characters behind which a word begins; all that are no letters if it is empty.
inline void to_title(MarkedText& text, std::string_view separators) {
  bool begins = true;
  text.transform([&](char c) {
    const char changed = begins ? upper(c) : lower(c);
    begins = separators.empty() ? !is_word(c) || is_digit(c) || c == '_'
                                : separators.find(c) != separators.npos;
    return changed;
  });
}

inline void to_title_by_spaces(MarkedText& text) { to_title(text, " \t\n\v\f\r-([{<"); }

inline Result<Value> trim(Budget& budget, const Value& input, const Arguments& arguments) {
  NIBBLE_TRY(bound, bind<1>(arguments, {"chars"}));
  NIBBLE_TRY(text, to_string_value(budget, input));
  return stripped(budget, text.text(), bound[0], Side::both);
}

inline Result<Value> replace(Budget& budget, const Value& input, const Arguments& arguments) {
  NIBBLE_TRY(bound, bind<3>(arguments, {"old", "new", "count"}));
  if (bound[1] == nullptr || bound[0] == nullptr) return argument_error("takes two strings");
  NIBBLE_TRY(text, to_string_value(budget, input));
  NIBBLE_TRY(from, to_string_value(budget, *bound[0]));
  NIBBLE_TRY(to, to_string_value(budget, *bound[1]));
  NIBBLE_TRY(count, integer_or(bound[2], -1));
  return replaced(budget, text.text(), from.text(), to.text(), count);
}

inline Result<Value> indent(Budget& budget, const Value& input, const Arguments& arguments) {
  NIBBLE_TRY(bound, bind<3>(arguments, {"width", "first", "blank"}));
  NIBBLE_TRY(text, to_string_value(budget, input));
  TextBuilder out(budget);
  std::string spaces;
  if (bound[0] == nullptr || !bound[0]->is_string()) {
    NIBBLE_TRY(width, integer_or(bound[0], 4));
    NIBBLE_CHECK(budget.grow(static_cast<std::size_t>((std::max)(width, std::int64_t{0}))));
    spaces.assign(static_cast<std::size_t>((std::max)(width, std::int64_t{0})), ' ');
  }
  const MarkedText own(spaces, Origin::own);
  const MarkedText& indentation =
      bound[0] != nullptr && bound[0]->is_string() ? bound[0]->text() : own;
  const bool indents_blank = is_true_or(bound[2], false);
  std::string_view rest = text.bytes();
  for (bool is_first = true; out.is_whole(); is_first = false) {
    const std::size_t end = (std::min)(rest.find('\n'), rest.size());
    const bool is_indented = is_first ? is_true_or(bound[1], false) : end != 0 || indents_blank;
    if (is_indented) out.append(indentation);
    out.append(text.text(), rest.substr(0, end));
    if (end == rest.size()) break;
    out.append("\n", Origin::own);
    rest.remove_prefix(end + 1);
  }
  return out.finish();
}

inline Result<Value> join(Budget& budget, const Value& input, const Arguments& arguments) {
  NIBBLE_TRY(bound, bind<2>(arguments, {"d", "attribute"}));
  NIBBLE_TRY(items, elements_of(budget, input));
  for (Value& item : items) {
    NIBBLE_TRY(part, attribute_or_all(budget, item, bound[1]));
    item = std::move(part);
  }
  NIBBLE_TRY(separator,
             to_string_value(budget, bound[0] == nullptr ? Value::string("") : *bound[0]));
  return joined(budget, items, separator.text(), true);
}

inline Result<Value> tojson(Budget& budget, const Value& input, const Arguments& arguments) {
  NIBBLE_TRY(bound, bind<4>(arguments, {"ensure_ascii", "indent", "separators", "sort_keys"}));
  JsonStyle style;
  style.ensure_ascii = is_true_or(bound[0], false);
  style.sort_keys = is_true_or(bound[3], false);
  if (bound[1] != nullptr && !bound[1]->is(Type::none)) {
    style.is_indented = true;
    style.item_separator = MarkedText(",", Origin::own);
    if (bound[1]->is_string()) {
      style.indent = bound[1]->text();
    } else {
      NIBBLE_TRY(width, integer_or(bound[1], 0));
      if (width > 1000) return argument_error("indents by 1000 at most");
      style.indent =
          MarkedText(std::string(static_cast<std::size_t>((std::max)(width, std::int64_t{0})), ' '),
                     Origin::own);
    }
  }
  if (bound[2] != nullptr && !bound[2]->is(Type::none)) {
    if (!bound[2]->is_list() || bound[2]->items().size() != 2)
      return argument_error("takes two separators");
    NIBBLE_TRY(item, text_or(&bound[2]->items()[0], ""));
    NIBBLE_TRY(key, text_or(&bound[2]->items()[1], ""));
    style.item_separator = std::move(item);
    style.key_separator = std::move(key);
  }
  return to_json(budget, input, style);
}

// ---- Lists and dicts
// -----------------------------------------------------------------------------

inline Result<Value> length(Budget& budget, const Value& input) {
  NIBBLE_TRY(n, length_of(budget, input));
  return Value::integer(static_cast<std::int64_t>(n));
}

inline Result<Value> list(Budget& budget, const Value& input) {
  NIBBLE_TRY(items, elements_of(budget, input));
  return make_list(budget, std::move(items));
}

inline Result<Value> first(Budget& budget, const Value& input) {
  NIBBLE_TRY(items, elements_of(budget, input));
  return items.empty() ? Value() : items.front();
}
inline Result<Value> last(Budget& budget, const Value& input) {
  if (input.is(Type::lazy)) return argument_error("takes no generator");
  NIBBLE_TRY(items, elements_of(budget, input));
  return items.empty() ? Value() : items.back();
}

inline Result<Value> reverse(Budget& budget, const Value& input) {
  NIBBLE_TRY(items, elements_of(budget, input));
  std::reverse(items.begin(), items.end());
  if (!input.is_string()) return make_list(budget, std::move(items), Type::lazy);
  return joined(budget, items, {}, false);
}

inline Result<Value> items(Budget& budget, const Value& input) {
  if (!input.is(Type::dict) && !input.is_undefined()) return argument_error("takes a dict");
  std::vector<Value> pairs;
  if (input.is(Type::dict)) {
    for (const Entry& entry : input.entries()) {
      NIBBLE_TRY(pair, make_list(budget, {entry.key, entry.value}, Type::tuple));
      pairs.push_back(std::move(pair));
    }
  }
  return make_list(budget, std::move(pairs), Type::lazy);
}

// Strings are ordered without regard to case, unless it is asked for.
inline Result<Value> sort_key(Budget& budget, const Value& value, bool is_case_sensitive) {
  if (!value.is_string() || is_case_sensitive) return value;
  return changed_text<to_lower>(budget, value);
}

// Sorts `sorted` by their keys, keeping the order of equal ones.
inline Result<void> sort_by(Budget& budget, std::vector<std::pair<Value, Value>>& sorted,
                            bool is_reversed) {
  Result<void> status = ok();
  std::stable_sort(sorted.begin(), sorted.end(), [&](const auto& a, const auto& b) {
    if (!status) return false;
    auto order = compare(budget, a.first, b.first);
    if (!order) {
      status = std::move(order).error();
      return false;
    }
    if (*order == std::partial_ordering::unordered) {
      status = argument_error("nan has no place in an order");
      return false;
    }
    return is_reversed ? std::is_gt(*order) : std::is_lt(*order);
  });
  return status;
}

inline Result<Value> sorted_values(Budget& budget, std::vector<std::pair<Value, Value>> sorted,
                                   bool is_reversed) {
  NIBBLE_CHECK(sort_by(budget, sorted, is_reversed));
  std::vector<Value> values;
  for (auto& [key, value] : sorted) values.push_back(std::move(value));
  return make_list(budget, std::move(values));
}

// What a list is sorted by: an attribute of its elements, or several with commas between them.
inline Result<Value> sort_keys(Budget& budget, const Value& item, const Value* attribute,
                               bool is_case_sensitive) {
  std::vector<Value> keys;
  const bool is_text = attribute != nullptr && attribute->is_string();
  std::string_view rest = is_text ? attribute->bytes() : std::string_view();
  for (bool is_last = false; !is_last;) {
    const std::size_t comma = rest.find(',');
    is_last = comma == rest.npos;
    const Value one = is_text ? Value::string(rest.substr(0, comma)) : Value();
    NIBBLE_TRY(part, attribute_or_all(budget, item, is_text ? &one : attribute));
    NIBBLE_TRY(key, sort_key(budget, part, is_case_sensitive));
    if (is_last && keys.empty()) return key;
    keys.push_back(std::move(key));
    if (!is_last) rest.remove_prefix(comma + 1);
  }
  return make_list(budget, std::move(keys));
}

inline Result<Value> sort(Budget& budget, const Value& input, const Arguments& arguments) {
  NIBBLE_TRY(bound, bind<3>(arguments, {"reverse", "case_sensitive", "attribute"}));
  NIBBLE_TRY(items, elements_of(budget, input));
  std::vector<std::pair<Value, Value>> keyed;
  for (Value& item : items) {
    NIBBLE_TRY(key, sort_keys(budget, item, bound[2], is_true_or(bound[1], false)));
    keyed.emplace_back(std::move(key), std::move(item));
  }
  return sorted_values(budget, std::move(keyed), is_true_or(bound[0], false));
}

inline Result<Value> dictsort(Budget& budget, const Value& input, const Arguments& arguments) {
  NIBBLE_TRY(bound, bind<3>(arguments, {"case_sensitive", "by", "reverse"}));
  if (!input.is(Type::dict)) return argument_error("takes a dict");
  NIBBLE_TRY(by, text_or(bound[1], "key"));
  if (by.bytes() != "key" && by.bytes() != "value")
    return argument_error("sorts by 'key' or 'value'");
  std::vector<std::pair<Value, Value>> keyed;
  for (const Entry& entry : input.entries()) {
    NIBBLE_TRY(key, sort_key(budget, by.bytes() == "key" ? entry.key : entry.value,
                             is_true_or(bound[0], false)));
    NIBBLE_TRY(pair, make_list(budget, {entry.key, entry.value}, Type::tuple));
    keyed.emplace_back(std::move(key), std::move(pair));
  }
  return sorted_values(budget, std::move(keyed), is_true_or(bound[2], false));
}

inline Result<Value> unique(Budget& budget, const Value& input, const Arguments& arguments) {
  NIBBLE_TRY(bound, bind<2>(arguments, {"case_sensitive", "attribute"}));
  NIBBLE_TRY(items, elements_of(budget, input));
  std::vector<Value> keys, kept;
  for (Value& item : items) {
    NIBBLE_TRY(part, attribute_or_all(budget, item, bound[1]));
    NIBBLE_TRY(key, sort_key(budget, part, is_true_or(bound[0], false)));
    bool is_new = true;
    for (std::size_t i = 0; i < keys.size() && is_new; ++i) {
      NIBBLE_TRY(is_same, equal(budget, keys[i], key));
      is_new = !is_same;
    }
    if (!is_new) continue;
    keys.push_back(std::move(key));
    kept.push_back(std::move(item));
  }
  return make_list(budget, std::move(kept), Type::lazy);
}

inline Result<Value> map(Budget& budget, const Value& input, const Arguments& arguments) {
  NIBBLE_TRY(items, elements_of(budget, input));
  if (arguments.positional.empty()) {
    NIBBLE_TRY(bound, bind<2>(arguments, {"attribute", "default"}));
    if (bound[0] == nullptr) return argument_error("takes the name of a filter or an attribute");
    for (Value& item : items) {
      NIBBLE_TRY(part, attribute_or_all(budget, item, bound[0], bound[1]));
      item = std::move(part);
    }
  } else {
    const Arguments rest = arguments.rest(1);
    for (Value& item : items) {
      NIBBLE_TRY(result, apply_filter(budget, arguments.positional[0].bytes(), item, rest));
      item = std::move(result);
    }
  }
  return make_list(budget, std::move(items), Type::lazy);
}

// select, reject, selectattr, rejectattr.
template <bool kWanted, bool kByAttribute>
Result<Value> select(Budget& budget, const Value& input, const Arguments& arguments) {
  constexpr std::size_t kUsed = kByAttribute ? 1 : 0;
  const auto& given = arguments.positional;
  if (given.size() < kUsed) return argument_error("takes the name of an attribute");
  if (!input.is_true()) return make_list(budget, {}, Type::lazy);
  NIBBLE_TRY(items, elements_of(budget, input));
  const Arguments rest = given.size() > kUsed ? arguments.rest(kUsed + 1) : Arguments{};
  std::vector<Value> kept;
  for (Value& item : items) {
    NIBBLE_TRY(part, kByAttribute ? at_path(budget, item, given[0]) : Result<Value>(item));
    NIBBLE_TRY(is_true, given.size() > kUsed ? apply_test(budget, given[kUsed].bytes(), part, rest)
                                             : Result<bool>(part.is_true()));
    if (is_true == kWanted) kept.push_back(std::move(item));
  }
  return make_list(budget, std::move(kept), Type::lazy);
}

inline Result<Value> sum(Budget& budget, const Value& input, const Arguments& arguments) {
  NIBBLE_TRY(bound, bind<2>(arguments, {"attribute", "start"}));
  NIBBLE_TRY(items, elements_of(budget, input));
  Value total = bound[1] == nullptr ? Value::integer(0) : *bound[1];
  if (total.is_string()) return argument_error("does not join strings");
  for (const Value& item : items) {
    NIBBLE_TRY(part, attribute_or_all(budget, item, bound[0]));
    NIBBLE_TRY(next, arithmetic(budget, Operator::add, total, part));
    total = std::move(next);
  }
  return total;
}

template <bool kLargest>
Result<Value> extreme(Budget& budget, const Value& input, const Arguments& arguments) {
  NIBBLE_TRY(bound, bind<2>(arguments, {"case_sensitive", "attribute"}));
  NIBBLE_TRY(items, elements_of(budget, input));
  Value found, found_key;
  bool is_first = true;
  for (const Value& item : items) {
    NIBBLE_TRY(part, attribute_or_all(budget, item, bound[1]));
    NIBBLE_TRY(key, sort_key(budget, part, is_true_or(bound[0], false)));
    if (!std::exchange(is_first, false)) {
      NIBBLE_TRY(order, compare(budget, key, found_key));
      if (kLargest ? !std::is_gt(order) : !std::is_lt(order)) continue;
    }
    found = item;
    found_key = std::move(key);
  }
  return found;
}

inline Result<Value> otherwise(Budget&, const Value& input, const Arguments& arguments) {
  NIBBLE_TRY(bound, bind<2>(arguments, {"default_value", "boolean"}));
  const bool is_missing = input.is_undefined() || (is_true_or(bound[1], false) && !input.is_true());
  if (!is_missing) return input;
  return bound[0] == nullptr ? Value::string("") : *bound[0];
}

struct NamedFilter {
  std::string_view name;
  Filter filter;
};
NIBBLE_HIDDEN inline constexpr NamedFilter kFilters[] = {
    {"abs", absolute},
    {"capitalize", alone<changed_text<to_capitalized>>},
    {"count", alone<length>},
    {"d", otherwise},
    {"default", otherwise},
    {"dictsort", dictsort},
    {"first", alone<first>},
    {"float", to_float},
    {"indent", indent},
    {"int", to_int},
    {"items", alone<items>},
    {"join", join},
    {"last", alone<last>},
    {"length", alone<length>},
    {"list", alone<list>},
    {"lower", alone<changed_text<to_lower>>},
    {"map", map},
    {"max", extreme<true>},
    {"min", extreme<false>},
    {"reject", select<false, false>},
    {"rejectattr", select<false, true>},
    {"replace", replace},
    {"reverse", alone<reverse>},
    {"round", rounded},
    {"safe", alone<to_string_value>},
    {"select", select<true, false>},
    {"selectattr", select<true, true>},
    {"sort", sort},
    {"string", alone<to_string_value>},
    {"sum", sum},
    {"title", alone<changed_text<to_title_by_spaces>>},
    {"tojson", tojson},
    {"trim", trim},
    {"unique", unique},
    {"upper", alone<changed_text<to_upper>>},
};

}  // namespace detail

inline Result<Value> apply_filter(Budget& budget, std::string_view name, const Value& input,
                                  const Arguments& arguments) {
  NIBBLE_CHECK(budget.step());
  constexpr int kMaxDepth = 16;  // of map, whose filter may be map, whose filter ...
  const Deeper deeper(budget.filter_depth());
  if (budget.filter_depth() > kMaxDepth)
    return Error{Errc::limit, "filters that call each other are nested too deeply"};
  const auto where = [&] { return "the filter '" + printable(name.substr(0, 40)) + "'"; };
  for (const auto& [known, filter] : detail::kFilters) {
    if (known != name) continue;
    auto result = filter(budget, input, arguments);
    if (!result) return std::move(result).error().in(where());
    return result;
  }
  return argument_error(where() + " does not exist");
}

}}}  // namespace nibble::NIBBLE_ABI::chat
