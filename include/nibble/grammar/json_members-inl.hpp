// SPDX-License-Identifier: Apache-2.0
//
// Functions of JsonLeaf about the members of objects, and what tells the branches of a oneOf apart.
// Included by json_leaf.hpp.
#pragma once

#include "nibble/grammar/json_leaf.hpp"
#include "nibble/grammar/json_pattern.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace grammar {

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
