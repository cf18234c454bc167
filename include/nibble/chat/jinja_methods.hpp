// SPDX-License-Identifier: Apache-2.0
//
// The methods of Python's strings, lists and dicts that templates call. Nothing that would change
// a list or dict: templates run with immutable values, as in the programs that they are made for.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/chat/jinja_arguments.hpp"
#include "nibble/chat/jinja_filters.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace chat {

namespace detail {

using Method = Result<Value> (*)(Budget&, const Value&, const Arguments&);

template <Side kSide>
Result<Value> strip(Budget& budget, const Value& self, const Arguments& arguments) {
  NIBBLE_TRY(bound, bind<1>(arguments, {"chars"}));
  return stripped(budget, self.text(), bound[0], kSide);
}

// str.split() without a separator: the words between white space. At most `count` cuts, from the
// left; any number if it is negative.
inline Result<std::vector<Value>> words(Budget& budget, const MarkedText& text,
                                        std::int64_t count) {
  std::vector<Value> parts;
  std::string_view rest = without_leading_space(text.bytes());
  for (; !rest.empty(); rest = without_leading_space(rest)) {
    std::size_t end = 0;
    while (end < rest.size()) {
      const Character c = first_character(rest.substr(end));
      if (is_space(c)) break;
      end += c.size;
    }
    if (count-- == 0) end = rest.size();  // the rest, as it is
    NIBBLE_TRY(part, part_of(budget, text, rest.substr(0, end)));
    parts.push_back(std::move(part));
    rest.remove_prefix(end);
  }
  return parts;
}

template <bool kFromRight>
Result<Value> split(Budget& budget, const Value& self, const Arguments& arguments) {
  NIBBLE_TRY(bound, bind<2>(arguments, {"sep", "maxsplit"}));
  NIBBLE_TRY(most, integer_or(bound[1], -1));
  std::int64_t count = (std::max)(most, std::int64_t{-1});  // cuts; -1: any number
  const MarkedText& text = self.text();
  if (bound[0] == nullptr || bound[0]->is(Type::none)) {
    if (kFromRight && count >= 0) return argument_error("needs a separator");
    NIBBLE_CHECK(budget.look_at(text.bytes()));
    NIBBLE_TRY(parts, words(budget, text, count < 0 ? INT64_MAX : count));
    return make_list(budget, std::move(parts));
  }
  NIBBLE_TRY(separator, text_or(bound[0], ""));
  if (separator.size() == 0) return argument_error("the separator is empty");
  NIBBLE_CHECK(budget.search(text.bytes(), separator.bytes()));
  std::vector<Value> parts;
  std::string_view rest = text.bytes();
  for (bool is_last = false; !is_last; --count) {
    const std::size_t at = count == 0   ? rest.npos
                           : kFromRight ? rest.rfind(separator.bytes())
                                        : rest.find(separator.bytes());
    is_last = at == rest.npos;
    const std::string_view part = is_last      ? rest
                                  : kFromRight ? rest.substr(at + separator.size())
                                               : rest.substr(0, at);
    NIBBLE_TRY(value, part_of(budget, text, part));
    parts.push_back(std::move(value));
    if (!is_last) rest = kFromRight ? rest.substr(0, at) : rest.substr(at + separator.size());
  }
  if (kFromRight) std::reverse(parts.begin(), parts.end());
  return make_list(budget, std::move(parts));
}

inline Result<Value> splitlines(Budget& budget, const Value& self, const Arguments& arguments) {
  NIBBLE_TRY(bound, bind<1>(arguments, {"keepends"}));
  const bool keeps_ends = is_true_or(bound[0], false);
  std::vector<Value> lines;
  std::string_view rest = self.bytes();
  while (!rest.empty()) {
    const std::size_t end = (std::min)(rest.find_first_of("\n\r\v\f"), rest.size());
    std::size_t next = (std::min)(end + 1, rest.size());
    if (rest.substr(end, 2) == "\r\n") ++next;
    NIBBLE_TRY(line, part_of(budget, self.text(), rest.substr(0, keeps_ends ? next : end)));
    lines.push_back(std::move(line));
    rest.remove_prefix(next);
  }
  return make_list(budget, std::move(lines));
}

// startswith, endswith: one text, or a tuple of which one must fit.
template <bool kAtStart>
Result<Value> has_affix(Budget& budget, const Value& self, const Arguments& arguments) {
  NIBBLE_TRY(bound, bind<1>(arguments, {"affix"}));
  if (bound[0] == nullptr) return argument_error("takes a string");
  const std::vector<Value> one{*bound[0]};
  for (const Value& affix : bound[0]->is(Type::tuple) ? bound[0]->items() : one) {
    if (!affix.is_string())
      return argument_error(std::string("takes a string, not ") + to_string(affix.type()));
    NIBBLE_CHECK(budget.look_at(affix.bytes()));
    if (kAtStart ? self.bytes().starts_with(affix.bytes()) : self.bytes().ends_with(affix.bytes()))
      return Value::boolean(true);
  }
  return Value::boolean(false);
}

template <bool kAtStart>
Result<Value> without_affix(Budget& budget, const Value& self, const Arguments& arguments) {
  NIBBLE_TRY(bound, bind<1>(arguments, {"affix"}));
  NIBBLE_TRY(affix, text_or(bound[0], ""));
  NIBBLE_TRY(has, has_affix<kAtStart>(budget, self, arguments));
  if (!has.is_true()) return self;
  const std::string_view text = self.bytes();
  return part_of(budget, self.text(),
                 kAtStart ? text.substr(affix.size()) : text.substr(0, text.size() - affix.size()));
}

inline Result<Value> join_method(Budget& budget, const Value& self, const Arguments& arguments) {
  NIBBLE_TRY(bound, bind<1>(arguments, {"iterable"}));
  if (bound[0] == nullptr) return argument_error("takes a list");
  NIBBLE_TRY(items, elements_of(budget, *bound[0]));
  return joined(budget, items, self.text(), false);
}

// find, rfind, index: the place of a text, counted in characters.
template <bool kFromRight, bool kMustExist>
Result<Value> find(Budget& budget, const Value& self, const Arguments& arguments) {
  NIBBLE_TRY(bound, bind<1>(arguments, {"sub"}));
  if (bound[0] == nullptr) return argument_error("takes a string");
  NIBBLE_TRY(part, text_or(bound[0], ""));
  NIBBLE_CHECK(budget.search(self.bytes(), part.bytes()));
  const std::size_t at =
      kFromRight ? self.bytes().rfind(part.bytes()) : self.bytes().find(part.bytes());
  if (at == std::string_view::npos) {
    if (kMustExist) return argument_error("there is no such text");
    return Value::integer(-1);
  }
  return Value::integer(static_cast<std::int64_t>(count_characters(self.bytes().substr(0, at))));
}

inline Result<Value> count(Budget& budget, const Value& self, const Arguments& arguments) {
  NIBBLE_TRY(bound, bind<1>(arguments, {"value"}));
  if (bound[0] == nullptr) return argument_error("takes a value");
  std::int64_t n = 0;
  if (self.is_string()) {
    NIBBLE_TRY(part, text_or(bound[0], ""));
    NIBBLE_CHECK(budget.search(self.bytes(), part.bytes()));
    if (part.size() == 0)
      return Value::integer(static_cast<std::int64_t>(count_characters(self.bytes())) + 1);
    for (std::size_t at = 0; (at = self.bytes().find(part.bytes(), at)) != std::string_view::npos;
         at += part.size())
      ++n;
    return Value::integer(n);
  }
  for (const Value& item : self.items()) {
    NIBBLE_TRY(is_same, equal(budget, item, *bound[0]));
    n += is_same;
  }
  return Value::integer(n);
}

// isdigit, isalpha, isalnum, isspace: whether all characters are of a kind, and there are some.
template <bool (*kIsKind)(const Character&)>
Result<Value> is_all(Budget& budget, const Value& self) {
  std::string_view rest = self.bytes();
  NIBBLE_CHECK(budget.look_at(rest));
  bool is_kind = !rest.empty();
  while (is_kind && !rest.empty()) {
    const Character c = first_character(rest);
    is_kind = kIsKind(c);
    rest.remove_prefix(c.size);
  }
  return Value::boolean(is_kind);
}
inline bool is_decimal(const Character& c) noexcept { return c.is_in(text::kDigits); }
inline bool is_letter(const Character& c) noexcept { return c.is_in(text::kLetters); }
inline bool is_alphanumeric(const Character& c) noexcept {
  return c.is_in(text::kLetters | text::kNumbers);
}

template <bool kWantsUpper>
Result<Value> is_cased(Budget& budget, const Value& self) {
  NIBBLE_TRY(result, apply_test(budget, kWantsUpper ? "upper" : "lower", self, {}));
  return Value::boolean(result);
}

inline void to_title_by_letters(MarkedText& text) { to_title(text, ""); }

inline Result<Value> get(Budget& budget, const Value& self, const Arguments& arguments) {
  NIBBLE_TRY(bound, bind<2>(arguments, {"key", "default"}));
  if (bound[0] == nullptr) return argument_error("takes a key");
  for (const Entry& entry : self.entries()) {
    NIBBLE_TRY(is_key, equal(budget, entry.key, *bound[0]));
    if (is_key) return entry.value;
  }
  return bound[1] == nullptr ? Value::none() : *bound[1];
}

inline Result<Value> keys(Budget& budget, const Value& self) {
  NIBBLE_TRY(all, elements_of(budget, self));
  return make_list(budget, std::move(all));
}
inline Result<Value> values(Budget& budget, const Value& self) {
  std::vector<Value> all;
  for (const Entry& entry : self.entries()) all.push_back(entry.value);
  return make_list(budget, std::move(all));
}
// Unlike the filter: a list, which is false if it is empty.
inline Result<Value> items_method(Budget& budget, const Value& self) {
  NIBBLE_TRY(all, items(budget, self));
  return list(budget, all);
}

inline Result<Value> refuse_change(Budget&, const Value&, const Arguments&) {
  return Error{Errc::unsupported, "lists and dicts cannot be changed"};
}

struct NamedMethod {
  std::string_view name;
  Method method;
};
NIBBLE_HIDDEN inline constexpr NamedMethod kStringMethods[] = {
    {"capitalize", alone<changed_text<to_capitalized>>},
    {"count", count},
    {"endswith", has_affix<false>},
    {"find", find<false, false>},
    {"index", find<false, true>},
    {"isalnum", alone<is_all<is_alphanumeric>>},
    {"isalpha", alone<is_all<is_letter>>},
    {"isdigit", alone<is_all<is_decimal>>},
    {"islower", alone<is_cased<false>>},
    {"isspace", alone<is_all<is_space>>},
    {"isupper", alone<is_cased<true>>},
    {"join", join_method},
    {"lower", alone<changed_text<to_lower>>},
    {"lstrip", strip<Side::left>},
    {"removeprefix", without_affix<true>},
    {"removesuffix", without_affix<false>},
    {"replace", replace},
    {"rfind", find<true, false>},
    {"rsplit", split<true>},
    {"rstrip", strip<Side::right>},
    {"split", split<false>},
    {"splitlines", splitlines},
    {"startswith", has_affix<true>},
    {"strip", strip<Side::both>},
    {"title", alone<changed_text<to_title_by_letters>>},
    {"upper", alone<changed_text<to_upper>>},
};
NIBBLE_HIDDEN inline constexpr NamedMethod kDictMethods[] = {
    {"get", get},
    {"items", alone<items_method>},
    {"keys", alone<keys>},
    {"values", alone<values>},
    {"pop", refuse_change},
    {"popitem", refuse_change},
    {"update", refuse_change},
    {"setdefault", refuse_change},
    {"clear", refuse_change},
};
NIBBLE_HIDDEN inline constexpr NamedMethod kListMethods[] = {
    {"count", count},           {"append", refuse_change}, {"extend", refuse_change},
    {"insert", refuse_change},  {"pop", refuse_change},    {"remove", refuse_change},
    {"reverse", refuse_change}, {"sort", refuse_change},   {"clear", refuse_change},
};

}  // namespace detail

// The method of a value with this name; null if there is none. A method of a dict hides the entry
// of that name, which value["name"] still finds.
inline detail::Method find_method(const Value& value, std::string_view name) noexcept {
  const auto find_in = [&](const auto& methods) -> detail::Method {
    for (const detail::NamedMethod& known : methods) {
      if (known.name == name) return known.method;
    }
    return nullptr;
  };
  if (value.is_string()) return find_in(detail::kStringMethods);
  if (value.is(Type::dict)) return find_in(detail::kDictMethods);
  if (value.is(Type::list)) return find_in(detail::kListMethods);
  if (value.is(Type::tuple) && name == "count") return detail::count;
  return nullptr;
}

}}}  // namespace nibble::NIBBLE_ABI::chat
