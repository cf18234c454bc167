// SPDX-License-Identifier: Apache-2.0
//
// Grammars from JSON Schema (draft 2020-12, and what older drafts write otherwise): every text of
// the grammar is JSON that the schema accepts. Not the other way round. A model writes
//
//  - the members of an object in the order of the schema: those that `properties` names, then,
//  where
//    additionalProperties is given or there are no properties, others;
//  - only members that are named, where neither says anything about others;
//  - what a schema without `type` has keywords for (with `properties`: objects);
//  - numbers, white space and strings as JsonRules has them.
//
// A keyword that cannot be kept is an error that names it: nothing is left out silently but
// annotations (title, description, default, examples, ...).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/grammar/grammar.hpp"
#include "nibble/grammar/json_leaf.hpp"
#include "nibble/grammar/json_rules.hpp"
#include "nibble/grammar/json_schema_tree.hpp"
#include "nibble/grammar/rules.hpp"
#include "nibble/io/json_value.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace grammar {

struct JsonSchemaOptions {
  JsonSpace space = JsonSpace::single;
};

// Translates a schema into rules. A rule stands for a conjunction: a set of schemas that a value
// must meet together, from `allOf`, `$ref` and what stands beside them.
class JsonSchemaReader {
 public:
  static constexpr std::size_t kMaxRules = 20'000;
  static constexpr std::size_t kMaxBranches = 4096;  // of anyOf and oneOf, multiplied out
  static constexpr std::size_t kMaxWork = std::size_t{1} << 28;

  // Adds to `rules`, which must outlive it, as must the schema.
  JsonSchemaReader(const io::JsonValue& root, const JsonSchemaOptions& options, Rules& rules)
      : tree_(root), rules_(rules), json_(rules_, options.space) {}

  // An expression for the schema's values. Errors: unsupported (a keyword, or a combination),
  // malformed (no schema), limit.
  Result<ExprId> read() {
    NIBBLE_TRY(whole, rule_of({&tree_.root()}));
    for (std::size_t i = 0; i < todo_.size(); ++i) {
      const Todo todo = todo_[i];
      NIBBLE_CHECK(define(todo));
      if (todo_.size() > kMaxRules || rules_.is_too_large()) {
        return Error{Errc::limit, "JSON Schema: it is too large"};
      }
    }
    return whole;
  }

 private:
  struct Todo {
    RuleId rule;
    SchemaSet schemas;
  };

  // A call of the rule for a conjunction.
  Result<ExprId> rule_of(SchemaSet schemas) {
    const auto [place, is_new] = known_.try_emplace(schemas.sorted());
    if (is_new) {
      place->second = rules_.add_rule("schema " + to_text(todo_.size()));
      todo_.push_back({place->second, std::move(schemas)});
    }
    return rules_.call(place->second);
  }

  Result<void> define(const Todo& todo) {
    FlatSchema flat;
    for (const io::JsonValue* schema : todo.schemas.all) NIBBLE_CHECK(tree_.flatten(*schema, flat));
    std::vector<ExprId> ways;
    NIBBLE_CHECK(add_branches(flat, ways));
    rules_.define(todo.rule, ways.size() == 1 ? ways[0] : rules_.choice(ways));
    return ok();
  }

  // Adds an expression for each way to choose one branch of every anyOf and oneOf.
  Result<void> add_branches(const FlatSchema& flat, std::vector<ExprId>& ways) {
    if (flat.is_never) return ok();
    if (flat.choices.empty()) {
      if (ways.size() >= kMaxBranches) {
        return Error{Errc::limit, "JSON Schema: anyOf and oneOf have too many combinations"};
      }
      NIBBLE_CHECK(count_work(flat));
      const auto rule = [&](SchemaSet set) { return rule_of(std::move(set)); };
      NIBBLE_TRY(leaf, JsonLeaf::read(tree_, flat.atoms));
      NIBBLE_TRY(expr, leaf.expression(json_, tree_, rule));
      ways.push_back(expr);
      return ok();
    }
    FlatSchema rest = flat;
    const FlatSchema::Choice choice = rest.choices.back();
    rest.choices.pop_back();
    rest.chosen.push_back(choice.owner);
    if (choice.is_exclusive) NIBBLE_CHECK(check_exclusive(rest, choice));
    for (const io::JsonValue& branch : choice.branches->elements()) {
      FlatSchema with = rest;
      NIBBLE_CHECK(tree_.flatten(branch, with));
      if (with.choices.size() > 16) {
        return Error{Errc::limit, "JSON Schema: anyOf and oneOf are nested too deeply"};
      }
      NIBBLE_CHECK(add_branches(with, ways));
    }
    return ok();
  }

  // Conjunctions are read anew for each choice: bounds the time that takes.
  Result<void> count_work(const FlatSchema& flat) {
    std::size_t n = flat.atoms.size();
    for (const io::JsonValue* atom : flat.atoms)
      if (const io::JsonValue* members = atom->find("properties")) n += members->keys().size();
    work_ += n * n;
    if (work_ <= kMaxWork) return ok();
    return Error{Errc::limit, "JSON Schema: it has too many combinations of members"};
  }

  // That a value never meets two branches of a oneOf, as far as that is easily seen.
  Result<void> check_exclusive(const FlatSchema& rest, const FlatSchema::Choice& choice) {
    std::vector<JsonLeaf> leaves;
    for (const io::JsonValue& branch : choice.branches->elements()) {
      FlatSchema with = rest;
      with.choices.clear();
      NIBBLE_CHECK(tree_.flatten(branch, with));
      if (with.is_never) continue;
      NIBBLE_TRY(leaf, JsonLeaf::read(tree_, with.atoms));
      for (const JsonLeaf& other : leaves) {
        if (leaf.excludes(tree_, other)) continue;
        return tree_.unsupported(*choice.owner, "oneOf",
                                 "with branches that one value may meet together (as far as "
                                 "types, constants and required members tell); use anyOf if both "
                                 "may hold");
      }
      leaves.push_back(std::move(leaf));
      if (leaves.size() > 256) {
        return Error{Errc::limit, "JSON Schema: oneOf has too many branches"};
      }
    }
    return ok();
  }

  SchemaTree tree_;
  Rules& rules_;
  JsonRules json_;
  std::map<SchemaSet, RuleId> known_;
  std::vector<Todo> todo_;
  std::size_t work_ = 0;
};

// A grammar for the JSON that a schema accepts. Errors: those of io::JsonValue::parse,
// JsonSchemaReader::read and Grammar::create.
inline Result<Grammar> from_json_schema(std::string_view schema,
                                        const JsonSchemaOptions& options = {}) {
  return catch_out_of_memory([&]() -> Result<Grammar> {
    if (schema.size() > (std::size_t{1} << 20)) {
      return Error{Errc::limit, "JSON Schema: more than 1 MiB of text"};
    }
    NIBBLE_TRY(root, io::JsonValue::parse(schema));
    Rules rules;
    const RuleId start = rules.add_rule("root");
    NIBBLE_TRY(whole, JsonSchemaReader(root, options, rules).read());
    rules.define(start, whole);
    auto grammar = Grammar::create(rules, start, false);
    if (!grammar && grammar.error().code == Errc::malformed) {
      return Error{Errc::malformed, "JSON Schema: no value can meet it"};
    }
    return grammar;
  });
}

}}}  // namespace nibble::NIBBLE_ABI::grammar
