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

}}}  // namespace nibble::NIBBLE_ABI::grammar
