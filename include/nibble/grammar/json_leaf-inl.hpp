// SPDX-License-Identifier: Apache-2.0
//
// Functions of JsonLeaf. Included by json_leaf.hpp.
#pragma once

#include "nibble/grammar/json_formats.hpp"
#include "nibble/grammar/json_leaf.hpp"
#include "nibble/grammar/json_pattern.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace grammar {

inline Result<void> JsonLeaf::add(const SchemaTree& tree, const io::JsonValue& atom) {
  NIBBLE_CHECK(add_types(tree, atom));
  NIBBLE_CHECK(add_values(tree, atom));
  NIBBLE_CHECK(add_numbers(tree, atom));
  NIBBLE_CHECK(add_counts(tree, atom));
  for (const auto& [key, place] : {std::pair{"pattern", &pattern_}, {"format", &format_}}) {
    const io::JsonValue* text = atom.find(key);
    if (text == nullptr) continue;
    if (text->kind() != Kind::string) return tree.malformed(atom, key, "a string");
    if (*place != nullptr && **place != text->string()) {
      return tree.unsupported(atom, key, "twice for one value");
    }
    *place = &text->string();
  }
  if (const io::JsonValue* unique = atom.find("uniqueItems");
      unique != nullptr && unique->boolean()) {
    return tree.unsupported(atom, "uniqueItems");
  }
  hint(atom, {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
       kInteger | kFraction);
  hint(atom, {"minLength", "maxLength", "pattern", "format"}, kString);
  hint(atom, {"items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems"},
       kArray);
  hint(atom,
       {"properties", "required", "additionalProperties", "patternProperties", "propertyNames",
        "minProperties", "maxProperties", "unevaluatedProperties"},
       kObject);
  return ok();
}

inline void JsonLeaf::hint(const io::JsonValue& atom, std::initializer_list<const char*> keys,
                           unsigned types) {
  for (const char* key : keys)
    if (atom.find(key) != nullptr) hinted_ |= types;
}

inline unsigned JsonLeaf::type_of(const io::JsonValue& value) noexcept {
  switch (value.kind()) {
    case Kind::null: return kNull;
    case Kind::boolean: return kBoolean;
    case Kind::string: return kString;
    case Kind::array: return kArray;
    case Kind::object: return kObject;
    case Kind::number: break;
  }
  const double x = value.number();
  const bool is_whole =
      !(x > -9e15 && x < 9e15) || static_cast<double>(static_cast<std::int64_t>(x)) == x;
  return is_whole ? kInteger : kFraction;
}

inline Result<void> JsonLeaf::add_types(const SchemaTree& tree, const io::JsonValue& atom) {
  const io::JsonValue* type = atom.find("type");
  if (type == nullptr) return ok();
  const auto bits_of = [](std::string_view name) -> unsigned {
    if (name == "null") return kNull;
    if (name == "boolean") return kBoolean;
    if (name == "integer") return kInteger;
    if (name == "number") return kInteger | kFraction;
    if (name == "string") return kString;
    if (name == "array") return kArray;
    if (name == "object") return kObject;
    return 0;
  };
  unsigned types = 0;
  const std::span<const io::JsonValue> list =
      type->kind() == Kind::array ? type->elements() : std::span(type, 1);
  for (const io::JsonValue& name : list) {
    const unsigned bits = bits_of(name.string());
    if (bits == 0) return tree.malformed(atom, "type", "the name of a type, or a list of these");
    types |= bits;
  }
  types_ &= types;
  has_type_ = true;
  return ok();
}

inline Result<void> JsonLeaf::add_values(const SchemaTree& tree, const io::JsonValue& atom) {
  const auto restrict_to = [&](std::span<const io::JsonValue> list) {
    std::vector<const io::JsonValue*> kept;
    for (const io::JsonValue& value : list) {
      const std::string text = detail::json_of(value, false);
      const auto equals = [&](const io::JsonValue* v) {
        return detail::json_of(*v, false) == text;
      };
      if (has_values_ && std::none_of(values_.begin(), values_.end(), equals)) continue;
      kept.push_back(&value);
    }
    values_ = std::move(kept);
    has_values_ = true;
  };
  if (const io::JsonValue* list = atom.find("enum"); list != nullptr) {
    if (list->kind() != Kind::array) return tree.malformed(atom, "enum", "a list");
    if (list->elements().size() > kMaxListed || (has_values_ && list->elements().size() > 1000)) {
      return tree.unsupported(atom, "enum", "with so many values");
    }
    restrict_to(list->elements());
  }
  if (const io::JsonValue* value = atom.find("const"); value != nullptr) {
    restrict_to(std::span(value, 1));
  }
  return ok();
}

inline Result<void> JsonLeaf::add_numbers(const SchemaTree& tree, const io::JsonValue& atom) {
  const auto tighten = [](std::optional<Number>& limit, Number other, double sign) {
    const bool is_tighter = !limit || sign * other.value > sign * limit->value ||
                            (other.value == limit->value && other.is_excluded);
    if (is_tighter) limit = other;
  };
  const auto read = [&](const char* key, const char* exclusive_key, std::optional<Number>& limit,
                        double sign) -> Result<void> {
    const io::JsonValue* exclusive = atom.find(exclusive_key);
    const bool is_old = exclusive != nullptr && exclusive->kind() == Kind::boolean;  // draft 4
    if (const io::JsonValue* value = atom.find(key); value != nullptr) {
      if (value->kind() != Kind::number) return tree.malformed(atom, key, "a number");
      tighten(limit, {value->number(), is_old && exclusive->boolean()}, sign);
    }
    if (exclusive == nullptr || is_old) return ok();
    if (exclusive->kind() != Kind::number) return tree.malformed(atom, exclusive_key, "a number");
    tighten(limit, {exclusive->number(), true}, sign);
    return ok();
  };
  NIBBLE_CHECK(read("minimum", "exclusiveMinimum", min_, 1));
  NIBBLE_CHECK(read("maximum", "exclusiveMaximum", max_, -1));
  if (const io::JsonValue* step = atom.find("multipleOf"); step != nullptr) {
    if (step->kind() != Kind::number) return tree.malformed(atom, "multipleOf", "a number");
    if (step->number() != 1) return tree.unsupported(atom, "multipleOf", "other than 1");
    types_ &= ~static_cast<unsigned>(kFraction);
  }
  return ok();
}

inline Result<void> JsonLeaf::add_counts(const SchemaTree& tree, const io::JsonValue& atom) {
  struct Count {
    const char* key;
    std::uint32_t* place;
    bool is_max;
  };
  for (const Count& count : {Count{"minLength", &min_length_, false},
                             {"maxLength", &max_length_, true},
                             {"minItems", &min_items_, false},
                             {"maxItems", &max_items_, true},
                             {"minProperties", &min_members_, false},
                             {"maxProperties", &max_members_, true}}) {
    const io::JsonValue* value = atom.find(count.key);
    if (value == nullptr) continue;
    const double x = value->number();
    if (value->kind() != Kind::number || type_of(*value) != kInteger || x < 0) {
      return tree.malformed(atom, count.key, "a whole number from 0 on");
    }
    if (x > static_cast<double>(Rules::kMaxRepeat)) {
      // A maximum that is out of reach is none; such a minimum never ends.
      if (count.is_max) continue;
      return Error{Errc::limit, "JSON Schema: " + io::quoted(count.key) + " is more than " +
                                    to_text(Rules::kMaxRepeat) + " (in " + tree.path_of(atom) +
                                    ")"};
    }
    const auto n = static_cast<std::uint32_t>(x);
    *count.place = count.is_max ? (std::min)(*count.place, n) : (std::max)(*count.place, n);
  }
  return ok();
}

// Drops values of enum and const that other keywords exclude.
inline Result<void> JsonLeaf::filter_values(const SchemaTree& tree) {
  if (!has_values_) return ok();
  if (!has_type_) types_ = kAnyType;
  std::vector<const io::JsonValue*> kept;
  for (const io::JsonValue* value : values_) {
    if (!detail::has_exact_numbers(*value)) {
      return tree.unsupported(*atoms_[0], atoms_[0]->find("enum") != nullptr ? "enum" : "const",
                              "with numbers of so many digits");
    }
    const unsigned type = type_of(*value);
    if ((types_ & type) == 0) continue;
    if ((type & (kInteger | kFraction)) != 0) {
      const double x = value->number();
      if (min_ && (min_->is_excluded ? x <= min_->value : x < min_->value)) continue;
      if (max_ && (max_->is_excluded ? x >= max_->value : x > max_->value)) continue;
    }
    if (type == kString) {
      const std::size_t n = detail::count_characters(value->string());
      if (n < min_length_ || n > max_length_) continue;
      if (pattern_ != nullptr || format_ != nullptr) {
        return tree.unsupported(*atoms_[0], pattern_ != nullptr ? "pattern" : "format",
                                "with enum or const");
      }
    }
    for (const io::JsonValue* atom : atoms_) {
      for (const std::string& key : atom->keys()) {
        const bool is_of_arrays = key == "items" || key == "prefixItems" || key == "minItems" ||
                                  key == "maxItems" || key == "additionalItems";
        const bool is_of_objects = key == "properties" || key == "required" ||
                                   key == "additionalProperties" || key == "minProperties" ||
                                   key == "maxProperties" || key == "patternProperties" ||
                                   key == "propertyNames" || key == "unevaluatedProperties";
        if ((type == kArray && is_of_arrays) || (type == kObject && is_of_objects)) {
          return tree.unsupported(*atom, key, "with enum or const");
        }
      }
    }
    kept.push_back(value);
  }
  values_ = std::move(kept);
  return ok();
}

inline Result<ExprId> JsonLeaf::expression(JsonRules& json, const SchemaTree& tree,
                                           RuleOf rule_of) const {
  Rules& rules = json.rules();
  std::vector<ExprId> ways;
  if (has_values_) {
    for (const io::JsonValue* value : values_) {
      ways.push_back(rules.text(detail::json_of(*value, json.space() != JsonSpace::none)));
    }
    return rules.choice(ways);
  }
  if ((types_ & kObject) != 0) {
    NIBBLE_TRY(expr, objects(json, tree, rule_of));
    ways.push_back(expr);
  }
  if ((types_ & kArray) != 0) {
    NIBBLE_TRY(expr, arrays(json, tree, rule_of));
    ways.push_back(expr);
  }
  if ((types_ & kString) != 0) {
    NIBBLE_TRY(expr, strings(json, tree));
    ways.push_back(expr);
  }
  if ((types_ & (kInteger | kFraction)) != 0) {
    NIBBLE_TRY(expr, numbers(json, tree));
    ways.push_back(expr);
  }
  if ((types_ & kBoolean) != 0) {
    ways.push_back(rules.text("true"));
    ways.push_back(rules.text("false"));
  }
  if ((types_ & kNull) != 0) ways.push_back(rules.text("null"));
  return ways.size() == 1 ? ways[0] : rules.choice(ways);
}

inline Result<ExprId> JsonLeaf::numbers(JsonRules& json, const SchemaTree& tree) const {
  const bool is_integer = (types_ & kFraction) == 0;
  if (!min_ && !max_) return is_integer ? json.integer() : json.number();
  constexpr double kMost = 1e15;  // beyond it there are too few digits anyway
  const auto whole = [](double x) { return static_cast<std::int64_t>(x); };  // towards 0
  const bool has_min = min_ && min_->value > -kMost, has_max = max_ && max_->value < kMost;
  if ((min_ && min_->value > kMost) || (max_ && max_->value < -kMost)) {
    return tree.unsupported(*atoms_[0], min_ ? "minimum" : "maximum", "beyond 10^15");
  }
  if (is_integer) {
    std::optional<std::int64_t> least, most;
    if (has_min) {
      std::int64_t x = whole(min_->value);
      if (static_cast<double>(x) < min_->value) ++x;
      if (min_->is_excluded && static_cast<double>(x) == min_->value) ++x;
      least = x;
    }
    if (has_max) {
      std::int64_t x = whole(max_->value);
      if (static_cast<double>(x) > max_->value) --x;
      if (max_->is_excluded && static_cast<double>(x) == max_->value) --x;
      most = x;
    }
    return json.integers(least, most);
  }
  std::optional<JsonRules::Limit> least, most;
  for (const bool is_min : {true, false}) {
    const std::optional<Number>& limit = is_min ? min_ : max_;
    if (is_min ? !has_min : !has_max) continue;
    if (static_cast<double>(whole(limit->value)) != limit->value) {
      return tree.unsupported(*atoms_[0], is_min ? "minimum" : "maximum",
                              "of numbers that is no whole number");
    }
    (is_min ? least : most) = JsonRules::Limit{whole(limit->value), limit->is_excluded};
  }
  return json.numbers(least, most);
}

inline Result<ExprId> JsonLeaf::strings(JsonRules& json, const SchemaTree& tree) const {
  const bool has_length = min_length_ > 0 || max_length_ != kUnbounded;
  if (pattern_ == nullptr && format_ == nullptr) {
    if (!has_length) return json.string();
    if (min_length_ > max_length_) return json.rules().never();
    return json.quoted(json.rules().repeat(json.any_character(), min_length_, max_length_));
  }
  if (pattern_ != nullptr && format_ != nullptr) {
    return tree.unsupported(*atoms_[0], "pattern", "together with format");
  }
  std::string_view pattern;
  if (format_ != nullptr) {
    pattern = pattern_of_format(*format_);
    if (pattern.empty()) {
      return tree.unsupported(*atoms_[0], "format", io::quoted(*format_));
    }
  } else {
    pattern = *pattern_;
  }
  auto read = JsonPattern::read(json, pattern);
  if (!read) {
    return Error{read.error().code,
                 "JSON Schema: " + read.error().message + " (in " + tree.path_of(*atoms_[0]) + ")"};
  }
  const bool is_too_long = max_length_ != kUnbounded && read->max > max_length_;
  if (read->min < min_length_ || is_too_long) {
    return tree.unsupported(*atoms_[0], read->min < min_length_ ? "minLength" : "maxLength",
                            "with a pattern or format that does not keep it anyway");
  }
  return json.quoted(read->expr);
}

// What all schemas say about element i.
inline Result<SchemaSet> JsonLeaf::element(const SchemaTree& tree, std::size_t i,
                                           bool& is_never) const {
  SchemaSet set;
  for (const io::JsonValue* atom : atoms_) {
    const io::JsonValue* prefix = atom->find("prefixItems");
    const io::JsonValue* rest = atom->find("items");
    if (rest != nullptr && rest->kind() == Kind::array) {  // before draft 2020-12
      prefix = rest;
      rest = atom->find("additionalItems");
    }
    if (prefix != nullptr && prefix->kind() != Kind::array) {
      return tree.malformed(*atom, "prefixItems", "a list of schemas");
    }
    const io::JsonValue* schema =
        prefix != nullptr && i < prefix->elements().size() ? &prefix->elements()[i] : rest;
    if (schema == nullptr) continue;
    is_never = is_never || (schema->kind() == Kind::boolean && !schema->boolean());
    set.all.push_back(schema);
  }
  return set;
}

inline Result<ExprId> JsonLeaf::arrays(JsonRules& json, const SchemaTree& tree,
                                       RuleOf rule_of) const {
  Rules& rules = json.rules();
  std::size_t n_first = 0;  // elements with a schema of their own
  for (const io::JsonValue* atom : atoms_) {
    for (const char* key : {"prefixItems", "items"}) {
      const io::JsonValue* list = atom->find(key);
      if (list != nullptr && list->kind() == Kind::array) {
        n_first = (std::max)(n_first, list->elements().size());
      }
    }
  }
  if (n_first > kMaxListed) return tree.unsupported(*atoms_[0], "prefixItems", "of that length");
  std::uint32_t max = max_items_;
  std::vector<ExprId> first;
  ExprId rest = json.value();
  for (std::size_t i = 0; i <= n_first; ++i) {
    bool is_never = false;
    NIBBLE_TRY(set, element(tree, i, is_never));
    if (is_never) max = (std::min)(max, static_cast<std::uint32_t>(i));
    if (i >= max) break;
    NIBBLE_TRY(expr, rule_of(set));
    if (i == n_first) {
      rest = expr;
    } else {
      first.push_back(expr);
    }
  }
  if (min_items_ > max) return rules.never();
  const ExprId none = json.empty_brackets("[", "]");
  if (max == 0) return none;
  // From the last to the first: each element, and what may follow it.
  const auto n = static_cast<std::uint32_t>(first.size());
  ExprId tail = rules.empty();
  if (n == n_first && max > n) {
    const std::uint32_t left = max == kUnbounded ? max : max - n;
    const std::uint32_t needed = min_items_ > n ? min_items_ - n : 0;
    if (n == 0) {
      tail = json.list(rest, (std::max)(needed, 1u), left);
    } else {
      tail = rules.repeat(rules.sequence({json.comma(), rest}), needed, left);
    }
  }
  for (std::uint32_t i = n; i-- > 0;) {
    const ExprId one = i == 0 ? first[i] : rules.sequence({json.comma(), first[i]});
    const RuleId rule = rules.add_rule("elements");
    const ExprId all = rules.sequence({one, tail});
    rules.define(rule, i > 0 && i >= min_items_ ? rules.optional(all) : all);
    tail = rules.call(rule);
  }
  const ExprId some = json.in_brackets("[", tail, "]");
  return min_items_ > 0 ? some : rules.choice({none, some});
}

// The members that schemas name, in the order in which they do.
inline Result<std::vector<JsonLeaf::Member>> JsonLeaf::members(const SchemaTree& tree) const {
  std::vector<Member> all;
  const auto member = [&](std::string_view name) -> Member& {
    for (Member& m : all)
      if (m.name == name) return m;
    all.push_back({name, {}, false, false});
    return all.back();
  };
  for (const io::JsonValue* atom : atoms_) {
    if (const io::JsonValue* properties = atom->find("properties"); properties != nullptr) {
      if (properties->kind() != Kind::object || properties->keys().size() > kMaxListed) {
        return tree.malformed(*atom, "properties", "an object of schemas");
      }
      for (const std::string& name : properties->keys()) member(name);
    }
    const io::JsonValue* required = atom->find("required");
    if (required == nullptr || required->kind() == Kind::boolean) continue;  // (of draft 3)
    if (required->kind() != Kind::array || required->elements().size() > kMaxListed) {
      return tree.malformed(*atom, "required", "a list of names");
    }
    for (const io::JsonValue& name : required->elements()) {
      if (name.kind() != Kind::string) return tree.malformed(*atom, "required", "a list of names");
      member(name.string()).is_required = true;
    }
  }
  for (Member& m : all) {
    for (const io::JsonValue* atom : atoms_) {
      const io::JsonValue* properties = atom->find("properties");
      const io::JsonValue* schema = properties != nullptr ? properties->find(m.name) : nullptr;
      if (schema == nullptr) {
        if (atom->find("patternProperties") != nullptr) {
          return tree.unsupported(*atom, "patternProperties", "beside named members");
        }
        schema = atom->find("additionalProperties");
      }
      if (schema == nullptr) continue;
      if (schema->kind() == Kind::boolean && !schema->boolean()) m.is_never = true;
      m.schemas.all.push_back(schema);
    }
  }
  return all;
}

// The names of members that no schema names, as a string.
inline Result<ExprId> JsonLeaf::other_names(JsonRules& json, const SchemaTree& tree,
                                            bool has_members) const {
  const io::JsonValue* names = nullptr;
  const std::string* pattern = nullptr;
  for (const io::JsonValue* atom : atoms_) {
    if (const io::JsonValue* schema = atom->find("propertyNames"); schema != nullptr) {
      if (has_members || names != nullptr) {
        return tree.unsupported(*atom, "propertyNames", "beside named members");
      }
      names = schema;
    }
    if (const io::JsonValue* map = atom->find("patternProperties"); map != nullptr) {
      if (map->kind() != Kind::object) {
        return tree.malformed(*atom, "patternProperties", "an object of schemas");
      }
      const io::JsonValue* others = atom->find("additionalProperties");
      const bool is_only =
          others == nullptr || (others->kind() == Kind::boolean && !others->boolean());
      if (has_members || pattern != nullptr || map->keys().size() != 1 || !is_only) {
        return tree.unsupported(*atom, "patternProperties",
                                "other than one pattern for all members");
      }
      pattern = &map->keys()[0];
    }
  }
  if (names != nullptr) {
    if (pattern != nullptr) {
      return tree.unsupported(*atoms_[0], "propertyNames", "beside patternProperties");
    }
    FlatSchema flat;
    NIBBLE_CHECK(tree.flatten(*names, flat));
    if (flat.is_never) return json.rules().never();
    if (!flat.choices.empty()) return tree.unsupported(*names, "anyOf", "in propertyNames");
    NIBBLE_TRY(leaf, read(tree, flat.atoms));
    leaf.types_ &= kString;
    return leaf.expression(json, tree, [](SchemaSet) -> Result<ExprId> { return ExprId{}; });
  }
  if (pattern == nullptr) return json.string();
  auto characters = JsonPattern::read(json, *pattern);
  if (!characters) return std::move(characters).error();
  return json.quoted(characters->expr);
}

// A member that no schema names; never, if there are to be none.
inline Result<ExprId> JsonLeaf::other_members(JsonRules& json, const SchemaTree& tree,
                                              RuleOf rule_of, bool has_members) const {
  SchemaSet set;
  bool is_open = !has_members, is_never = false;
  for (const io::JsonValue* atom : atoms_) {
    if (const io::JsonValue* map = atom->find("patternProperties");
        map != nullptr && map->elements().size() == 1) {
      set.all.push_back(&map->elements()[0]);
      continue;
    }
    if (const io::JsonValue* rest = atom->find("unevaluatedProperties"); rest != nullptr) {
      if (rest->kind() != Kind::boolean || rest->boolean()) {
        return tree.unsupported(*atom, "unevaluatedProperties", "other than false");
      }
      is_never = true;
    }
    const io::JsonValue* schema = atom->find("additionalProperties");
    if (schema == nullptr) continue;
    is_open = true;
    if (schema->kind() == Kind::boolean && !schema->boolean()) is_never = true;
    set.all.push_back(schema);
  }
  NIBBLE_TRY(name, other_names(json, tree, has_members));
  if (!is_open || is_never) return json.rules().never();
  NIBBLE_TRY(value, rule_of(set));
  return json.rules().sequence({name, json.colon(), value});
}

inline Result<ExprId> JsonLeaf::objects(JsonRules& json, const SchemaTree& tree,
                                        RuleOf rule_of) const {
  Rules& rules = json.rules();
  NIBBLE_TRY(all, members(tree));
  NIBBLE_TRY(other, other_members(json, tree, rule_of, !all.empty()));
  std::uint32_t n_required = 0, n_members = 0;
  for (const Member& m : all) {
    if (m.is_never && m.is_required) return rules.never();
    n_required += m.is_required;
    n_members += !m.is_never;
  }
  const ExprId none = json.empty_brackets("{", "}");
  const Expr& other_expr = rules.expr(other);
  const bool is_closed = other_expr.kind == Expr::Kind::choice && other_expr.n == 0;
  if (n_members == 0) {
    if (min_members_ > max_members_) return rules.never();
    if (is_closed || max_members_ == 0) return min_members_ > 0 ? rules.never() : none;
    const ExprId some =
        json.in_brackets("{", json.list(other, (std::max)(min_members_, 1u), max_members_), "}");
    return min_members_ > 0 ? some : rules.choice({none, some});
  }
  const bool needs_one = min_members_ == 1 && n_required == 0;
  if (min_members_ > n_required && !needs_one) {
    return tree.unsupported(*atoms_[0], "minProperties", "beyond the required members");
  }
  if (max_members_ < n_members || (max_members_ != kUnbounded && !is_closed)) {
    return tree.unsupported(*atoms_[0], "maxProperties", "beside named members");
  }
  // From the last to the first: what may follow if members came before (`behind`, with commas), and
  // if none did (`fresh`).
  ExprId behind = rules.repeat(rules.sequence({json.comma(), other}), 0, kUnbounded);
  ExprId fresh = is_closed ? rules.never() : json.list(other, 1, kUnbounded);
  for (std::size_t i = all.size(); i-- > 0;) {
    const Member& m = all[i];
    if (m.is_never) continue;
    NIBBLE_TRY(value, rule_of(m.schemas));
    const ExprId member = rules.sequence({json.string_of(m.name), json.colon(), value});
    const RuleId next = rules.add_rule("members");
    rules.define(next, behind);
    const ExprId rest = rules.call(next);
    const ExprId with = rules.sequence({member, rest});
    fresh = m.is_required ? with : rules.choice({with, fresh});
    const ExprId follows = rules.sequence({json.comma(), member, rest});
    behind = m.is_required ? follows : rules.choice({follows, rest});
    const RuleId first = rules.add_rule("members");
    rules.define(first, fresh);
    fresh = rules.call(first);
  }
  const ExprId some = json.in_brackets("{", fresh, "}");
  return n_required > 0 || needs_one ? some : rules.choice({none, some});
}

// Whether a member of this name can be in this one's texts.
inline bool JsonLeaf::may_have(std::string_view name) const {
  bool has_named = false;
  for (const io::JsonValue* atom : atoms_) {
    if (atom->find("additionalProperties") != nullptr) return true;
    if (const io::JsonValue* properties = atom->find("properties"); properties != nullptr) {
      has_named = has_named || !properties->keys().empty();
      if (properties->find(name) != nullptr) return true;
    }
    if (const io::JsonValue* required = atom->find("required"); required != nullptr) {
      has_named = has_named || !required->elements().empty();
      for (const io::JsonValue& other : required->elements())
        if (other.string() == name) return true;
    }
  }
  return !has_named;  // then any
}

// Whether this one requires a member that the other one's texts never have.
inline bool JsonLeaf::requires_more_than(const JsonLeaf& other) const {
  for (const io::JsonValue* atom : atoms_) {
    const io::JsonValue* required = atom->find("required");
    if (required == nullptr) continue;
    for (const io::JsonValue& name : required->elements())
      if (!other.may_have(name.string())) return true;
  }
  return false;
}

inline bool JsonLeaf::excludes(const SchemaTree& tree, const JsonLeaf& other) const {
  const auto types_of = [](const JsonLeaf& leaf) {
    unsigned types = leaf.types_;
    if (leaf.has_values_) {
      types = 0;
      for (const io::JsonValue* value : leaf.values_) types |= type_of(*value);
    }
    return types;
  };
  const unsigned common = types_of(*this) & types_of(other);
  if (common == 0) return true;
  if (has_values_ && other.has_values_) {
    if (values_.size() * other.values_.size() > 100'000) return false;
    for (const io::JsonValue* a : values_)
      for (const io::JsonValue* b : other.values_)
        if (detail::json_of(*a, false) == detail::json_of(*b, false)) return false;
    return true;
  }
  if ((common & ~(kInteger | kFraction)) == 0) {
    const auto is_above = [](const JsonLeaf& a, const JsonLeaf& b) {
      return a.min_ && b.max_ &&
             (a.min_->value > b.max_->value ||
              (a.min_->value == b.max_->value && (a.min_->is_excluded || b.max_->is_excluded)));
    };
    return is_above(*this, other) || is_above(other, *this);
  }
  if (common != kObject || has_values_ || other.has_values_) return false;
  if (requires_more_than(other) && other.requires_more_than(*this)) return true;
  // A member that both require, with constants that differ.
  const auto required_member = [&](const JsonLeaf& leaf,
                                   std::string_view name) -> std::optional<JsonLeaf> {
    auto all = leaf.members(tree);
    if (!all) return std::nullopt;
    for (const Member& m : *all) {
      if (m.name != name || !m.is_required) continue;
      FlatSchema flat;
      for (const io::JsonValue* schema : m.schemas.all)
        if (!tree.flatten(*schema, flat)) return std::nullopt;
      if (!flat.choices.empty()) return std::nullopt;
      auto read_leaf = read(tree, flat.atoms);
      if (!read_leaf) return std::nullopt;
      return *std::move(read_leaf);
    }
    return std::nullopt;
  };
  auto all = members(tree);
  if (!all) return false;
  for (const Member& m : *all) {
    if (!m.is_required) continue;
    const auto a = required_member(*this, m.name), b = required_member(other, m.name);
    if (!a || !b) continue;
    if ((types_of(*a) & types_of(*b)) == 0) return true;
    if (a->has_values_ && b->has_values_ && a->excludes(tree, *b)) return true;
  }
  return false;
}

}}}  // namespace nibble::NIBBLE_ABI::grammar
