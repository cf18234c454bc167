// SPDX-License-Identifier: Apache-2.0
//
// A conjunction of JSON Schemas without choices: what its keywords say together about one value.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/executor.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/grammar/json_rules.hpp"
#include "nibble/grammar/json_schema_tree.hpp"
#include "nibble/grammar/rules.hpp"
#include "nibble/io/json_text.hpp"
#include "nibble/io/json_value.hpp"
#include "nibble/io/number_text.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace grammar {

class JsonLeaf {
 public:
  // Types of values, as bits. `number` alone: those that are no integers.
  enum Type : unsigned {
    kNull = 1,
    kBoolean = 2,
    kInteger = 4,
    kFraction = 8,
    kString = 16,
    kArray = 32,
    kObject = 64,
    kAnyType = 127
  };
  using RuleOf = FunctionRef<Result<ExprId>(SchemaSet)>;
  // Names and elements that are listed in one schema.
  static constexpr std::size_t kMaxListed = 2000;

  static Result<JsonLeaf> read(const SchemaTree& tree,
                               std::span<const io::JsonValue* const> atoms) {
    JsonLeaf leaf;
    for (const io::JsonValue* atom : atoms) {
      leaf.atoms_.push_back(atom);
      NIBBLE_CHECK(leaf.add(tree, *atom));
    }
    if (!leaf.has_type_ && leaf.hinted_ != 0) leaf.types_ = leaf.hinted_;
    NIBBLE_CHECK(leaf.filter_values(tree));
    return leaf;
  }

  // An expression for the values. `rule_of` gives those of parts. Errors: those of
  // JsonSchemaReader::read.
  Result<ExprId> expression(JsonRules& json, const SchemaTree& tree, RuleOf rule_of) const;

  // Whether no text of the one's expression is a value of the other, and the other way round, as
  // far as that is easily seen.
  bool excludes(const SchemaTree& tree, const JsonLeaf& other) const;

 private:
  using Kind = io::JsonValue::Kind;
  struct Number {
    double value = 0;
    bool is_excluded = false;
  };
  struct Member {
    std::string_view name;
    SchemaSet schemas;
    bool is_required = false;
    bool is_never = false;
  };

  Result<void> add(const SchemaTree& tree, const io::JsonValue& atom);
  Result<void> add_types(const SchemaTree& tree, const io::JsonValue& atom);
  Result<void> add_numbers(const SchemaTree& tree, const io::JsonValue& atom);
  Result<void> add_counts(const SchemaTree& tree, const io::JsonValue& atom);
  Result<void> add_values(const SchemaTree& tree, const io::JsonValue& atom);
  Result<void> filter_values(const SchemaTree& tree);
  void hint(const io::JsonValue& atom, std::initializer_list<const char*> keys, unsigned types);
  static unsigned type_of(const io::JsonValue& value) noexcept;

  Result<ExprId> numbers(JsonRules& json, const SchemaTree& tree) const;
  Result<ExprId> strings(JsonRules& json, const SchemaTree& tree) const;
  Result<ExprId> arrays(JsonRules& json, const SchemaTree& tree, RuleOf rule_of) const;
  Result<ExprId> objects(JsonRules& json, const SchemaTree& tree, RuleOf rule_of) const;
  Result<SchemaSet> element(const SchemaTree& tree, std::size_t i, bool& is_never) const;
  Result<std::vector<Member>> members(const SchemaTree& tree) const;
  Result<ExprId> other_members(JsonRules& json, const SchemaTree& tree, RuleOf rule_of,
                               bool has_members) const;
  Result<ExprId> other_names(JsonRules& json, const SchemaTree& tree, bool has_members) const;
  bool may_have(std::string_view name) const;
  bool requires_more_than(const JsonLeaf& other) const;

  std::vector<const io::JsonValue*> atoms_;
  unsigned types_ = kAnyType, hinted_ = 0;
  bool has_type_ = false;
  bool has_values_ = false;                   // enum or const
  std::vector<const io::JsonValue*> values_;  // what is left of these
  std::optional<Number> min_, max_;
  std::uint32_t min_length_ = 0, max_length_ = kUnbounded;
  std::uint32_t min_items_ = 0, max_items_ = kUnbounded;
  std::uint32_t min_members_ = 0, max_members_ = kUnbounded;
  const std::string* pattern_ = nullptr;
  const std::string* format_ = nullptr;
};

// ---- JSON values as text ----

namespace detail {

inline std::string json_number(double value) {
  const bool is_whole =
      value > -1e15 && value < 1e15 && static_cast<double>(static_cast<long long>(value)) == value;
  return is_whole ? to_text(static_cast<long long>(value)) : io::number_text(value);
}

// With a space behind ',' and ':', if `spaced`. (A value is nested at most JsonReader::kMaxDepth
// deep.)
inline void append_json(const io::JsonValue& value, bool spaced, std::string& out) {
  using Kind = io::JsonValue::Kind;
  const char* const comma = spaced ? ", " : ",";
  switch (value.kind()) {
    case Kind::null: out += "null"; return;
    case Kind::boolean: out += value.boolean() ? "true" : "false"; return;
    case Kind::number: out += json_number(value.number()); return;
    case Kind::string: out += io::json_text(value.string()); return;
    case Kind::array:
    case Kind::object: break;
  }
  const bool is_object = value.kind() == Kind::object;
  out += is_object ? '{' : '[';
  for (std::size_t i = 0; i < value.elements().size(); ++i) {
    if (i > 0) out += comma;
    if (is_object) {
      out += io::json_text(value.keys()[i]);
      out += spaced ? ": " : ":";
    }
    append_json(value.elements()[i], spaced, out);
  }
  out += is_object ? '}' : ']';
}

inline std::string json_of(const io::JsonValue& value, bool spaced) {
  std::string text;
  append_json(value, spaced, text);
  return text;
}

// Whether all numbers of a value were read as they are written: the reader may give a neighbour of
// others. (A value is nested at most JsonReader::kMaxDepth deep.)
inline bool has_exact_numbers(const io::JsonValue& value) {
  for (const io::JsonValue& element : value.elements())
    if (!has_exact_numbers(element)) return false;
  const double x = value.number() < 0 ? -value.number() : value.number();
  if (x == 0) return true;
  const std::string text = json_number(x);
  std::size_t n_digits = 0;
  for (const char c : text.substr(0, text.find('e'))) n_digits += c >= '0' && c <= '9';
  return x > 1e-6 && x < 1e21 && n_digits <= 15;
}

// Characters of valid UTF-8.
inline std::size_t count_characters(std::string_view text) noexcept {
  std::size_t n = 0;
  for (const char c : text) n += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return n;
}

}  // namespace detail

}}}  // namespace nibble::NIBBLE_ABI::grammar

#include "nibble/grammar/json_leaf-inl.hpp"
#include "nibble/grammar/json_members-inl.hpp"
