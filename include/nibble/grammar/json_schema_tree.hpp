// SPDX-License-Identifier: Apache-2.0
//
// A JSON Schema as it is written: references, conjunctions, choices, and which keywords there are.
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/io/json_value.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace grammar {

// Schemas that a value must meet together, as they are written.
struct SchemaSet {
  std::vector<const io::JsonValue*> all;

  SchemaSet() = default;
  SchemaSet(std::initializer_list<const io::JsonValue*> list) : all(list) {}
  // Without what comes twice, in an order of its own.
  SchemaSet sorted() const {
    SchemaSet set = *this;
    std::sort(set.all.begin(), set.all.end(), std::less<>());
    set.all.erase(std::unique(set.all.begin(), set.all.end()), set.all.end());
    return set;
  }
  friend bool operator<(const SchemaSet& a, const SchemaSet& b) { return a.all < b.all; }
};

// The same with references and allOf resolved.
struct FlatSchema {
  struct Choice {
    const io::JsonValue* owner = nullptr;     // the schema that has the keyword
    const io::JsonValue* branches = nullptr;  // an array
    bool is_exclusive = false;                // oneOf
  };
  std::vector<const io::JsonValue*> atoms;  // objects; of their keywords, those of values count
  std::vector<Choice> choices;
  std::vector<const io::JsonValue*> chosen;  // the owners of choices that are made
  bool is_never = false;                     // the schema `false` is among them
};

class SchemaTree {
 public:
  explicit SchemaTree(const io::JsonValue& root) noexcept : root_(&root) {}

  const io::JsonValue& root() const noexcept { return *root_; }

  // Adds a schema. Errors: unsupported (a keyword that is not known, a reference to elsewhere),
  // not_found (a reference), malformed.
  Result<void> flatten(const io::JsonValue& schema, FlatSchema& out) const {
    std::vector<const io::JsonValue*> open;
    return flatten(schema, out, open);
  }

  // Where a schema is: "#/properties/a".
  std::string path_of(const io::JsonValue& schema) const {
    std::string path = "#";
    find_path(*root_, schema, path, 0);
    return path;
  }
  Error unsupported(const io::JsonValue& schema, std::string_view keyword,
                    const std::string& why = {}) const {
    return Error{Errc::unsupported, "JSON Schema: " + io::quoted(keyword) + " " +
                                        (why.empty() ? why : why + " ") + "is not supported (in " +
                                        path_of(schema) + ")"};
  }
  Error malformed(const io::JsonValue& schema, std::string_view keyword,
                  const std::string& what) const {
    return Error{Errc::malformed, "JSON Schema: " + io::quoted(keyword) + " must be " + what +
                                      " (in " + path_of(schema) + ")"};
  }

 private:
  using Kind = io::JsonValue::Kind;
  static constexpr std::size_t kMaxOpen = 64;  // schemas within schemas, by reference
  static constexpr std::size_t kMaxAtoms = 256;

  Result<void> flatten(const io::JsonValue& schema, FlatSchema& out,
                       std::vector<const io::JsonValue*>& open) const;
  Result<void> add_keyword(const io::JsonValue& schema, std::size_t i, FlatSchema& out,
                           std::vector<const io::JsonValue*>& open) const;
  Result<const io::JsonValue*> resolve(const io::JsonValue& schema,
                                       const std::string& reference) const;
  static bool find_path(const io::JsonValue& from, const io::JsonValue& to, std::string& path,
                        int depth);

  const io::JsonValue* root_;
};

namespace detail {

// Keywords that say nothing about values.
inline bool is_annotation(std::string_view key) noexcept {
  for (const std::string_view known :
       {"title", "description", "default", "examples", "example", "$schema", "$id", "id",
        "$comment", "$defs", "definitions", "deprecated", "readOnly", "writeOnly", "$anchor",
        "$vocabulary"}) {
    if (key == known) return true;
  }
  return false;
}

// Keywords that json_leaf.hpp reads.
inline bool is_of_values(std::string_view key) noexcept {
  for (const std::string_view known : {"type",
                                       "enum",
                                       "const",
                                       "minimum",
                                       "maximum",
                                       "exclusiveMinimum",
                                       "exclusiveMaximum",
                                       "minLength",
                                       "maxLength",
                                       "pattern",
                                       "format",
                                       "items",
                                       "prefixItems",
                                       "additionalItems",
                                       "minItems",
                                       "maxItems",
                                       "properties",
                                       "required",
                                       "additionalProperties",
                                       "patternProperties",
                                       "propertyNames",
                                       "minProperties",
                                       "maxProperties",
                                       "unevaluatedProperties",
                                       "uniqueItems",
                                       "multipleOf"}) {
    if (key == known) return true;
  }
  return false;
}

}  // namespace detail

inline Result<void> SchemaTree::flatten(const io::JsonValue& schema, FlatSchema& out,
                                        std::vector<const io::JsonValue*>& open) const {
  if (schema.kind() == Kind::boolean) {
    out.is_never = out.is_never || !schema.boolean();
    return ok();
  }
  if (schema.kind() != Kind::object) {
    return Error{Errc::malformed, "JSON Schema: a schema must be an object, true or false (" +
                                      path_of(schema) + ")"};
  }
  const auto is_in = [&](const std::vector<const io::JsonValue*>& list) {
    return std::find(list.begin(), list.end(), &schema) != list.end();
  };
  if (is_in(open) || is_in(out.chosen)) {
    return Error{Errc::malformed,
                 "JSON Schema: a $ref leads back to itself (" + path_of(schema) + ")"};
  }
  if (is_in(out.atoms)) return ok();
  if (open.size() >= kMaxOpen || out.atoms.size() >= kMaxAtoms) {
    return Error{Errc::limit,
                 "JSON Schema: allOf and $ref are nested too deeply (" + path_of(schema) + ")"};
  }
  open.push_back(&schema);
  out.atoms.push_back(&schema);
  for (std::size_t i = 0; i < schema.keys().size(); ++i) {
    NIBBLE_CHECK(add_keyword(schema, i, out, open));
  }
  open.pop_back();
  return ok();
}

inline Result<void> SchemaTree::add_keyword(const io::JsonValue& schema, std::size_t i,
                                            FlatSchema& out,
                                            std::vector<const io::JsonValue*>& open) const {
  const std::string& key = schema.keys()[i];
  const io::JsonValue& value = schema.elements()[i];
  if (schema.find(key) != &value) return malformed(schema, key, "there once");
  if (detail::is_annotation(key) || detail::is_of_values(key)) return ok();
  if (key == "$ref") {
    if (value.kind() != Kind::string) return malformed(schema, key, "a string");
    NIBBLE_TRY(target, resolve(schema, value.string()));
    return flatten(*target, out, open);
  }
  if (key != "allOf" && key != "anyOf" && key != "oneOf") return unsupported(schema, key);
  if (value.kind() != Kind::array || value.elements().empty()) {
    return malformed(schema, key, "a list of schemas");
  }
  if (key != "allOf" && value.elements().size() > 1) {
    out.choices.push_back({&schema, &value, key == "oneOf"});
    return ok();
  }
  for (const io::JsonValue& part : value.elements()) NIBBLE_CHECK(flatten(part, out, open));
  return ok();
}

// A JSON Pointer (RFC 6901) as a fragment: "#/$defs/a".
inline Result<const io::JsonValue*> SchemaTree::resolve(const io::JsonValue& schema,
                                                        const std::string& reference) const {
  std::string_view left = reference;
  if (!left.starts_with("#") || (left.size() > 1 && left[1] != '/')) {
    return unsupported(schema, "$ref", "to " + io::quoted(reference) + ", not \"#/...\",");
  }
  const auto not_there = [&] {
    return Error{Errc::not_found, "JSON Schema: $ref " + io::quoted(reference) +
                                      " leads to nothing (in " + path_of(schema) + ")"};
  };
  left.remove_prefix(1);
  const io::JsonValue* at = root_;
  while (!left.empty()) {
    left.remove_prefix(1);
    const std::size_t n = (std::min)(left.find('/'), left.size());
    std::string name;
    for (std::size_t i = 0; i < n; ++i) {
      if (left[i] == '~' && i + 1 < n) {
        name += left[++i] == '1' ? '/' : '~';
      } else if (left[i] == '%') {
        return unsupported(schema, "$ref", "with '%'");
      } else {
        name += left[i];
      }
    }
    left.remove_prefix(n);
    if (at->kind() == Kind::array) {
      std::size_t index = 0;
      for (const char c : name) {
        if (c < '0' || c > '9' || index > 1'000'000) return not_there();
        index = index * 10 + static_cast<std::size_t>(c - '0');
      }
      if (name.empty() || index >= at->elements().size()) return not_there();
      at = &at->elements()[index];
    } else {
      at = at->find(name);
      if (at == nullptr) return not_there();
    }
  }
  return at;
}

// Appends to `path`. (A value is nested at most io::JsonReader::kMaxDepth deep.)
inline bool SchemaTree::find_path(const io::JsonValue& from, const io::JsonValue& to,
                                  std::string& path, int depth) {
  if (&from == &to) return true;
  const std::size_t n = path.size();
  for (std::size_t i = 0; i < from.elements().size(); ++i) {
    path += "/";
    path += i < from.keys().size() ? printable(from.keys()[i]) : to_text(i);
    if (path.size() < 4096 && find_path(from.elements()[i], to, path, depth + 1)) return true;
    path.resize(n);
  }
  return false;
}

}}}  // namespace nibble::NIBBLE_ABI::grammar
