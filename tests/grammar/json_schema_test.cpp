// SPDX-License-Identifier: Apache-2.0
#include "nibble/grammar/json_schema.hpp"

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "doctest/doctest.h"
#include "grammar/matching.hpp"
#include "grammar/schema_maker.hpp"
#include "nibble/grammar/constraint.hpp"
#include "nibble/io/json_value.hpp"
#include "why.hpp"

namespace json_schema_test {

using namespace nibble::grammar;
using nibble::Errc;
using nibble::io::JsonValue;
using test::matcher_of;
using test::matches;
using test::small_trie;
using test::why;

namespace {

bool matches(const Grammar& grammar, std::string_view text) {
  Matcher matcher = matcher_of(grammar);
  return test::matches(matcher, text);
}

Grammar grammar_of(std::string_view schema, const JsonSchemaOptions& options = {}) {
  auto grammar = from_json_schema(schema, options);
  REQUIRE_MESSAGE(grammar, schema, ": ", why(grammar));
  return *std::move(grammar);
}

// A text that the grammar allows, by random tokens; empty if it did not end.
std::string random_text(Matcher& matcher, std::mt19937& random) {
  REQUIRE(matcher.restart());
  TokenSet allowed(small_trie().n_tokens());
  std::string text;
  for (int i = 0; i < 400; ++i) {
    if (matcher.is_finished() || (matcher.can_end() && random() % 4 == 0)) return text;
    const auto done = matcher.tokens(allowed);
    REQUIRE_MESSAGE(done, text, ": ", why(done));
    std::vector<std::int32_t> ids;
    allowed.for_each([&](std::int32_t id) {
      // Mostly ASCII and closing brackets, or few texts would end.
      const std::string_view t = small_trie().text(id);
      const int n = t.empty() ? 0 : t[0] == '"' || t[0] == '}' || t[0] == ']' ? 8 : t[0] > 31;
      for (int k = 0; k < n; ++k) ids.push_back(id);
    });
    if (ids.empty()) return "";
    const std::int32_t id = ids[random() % ids.size()];
    REQUIRE(*matcher.accept(id));
    text += small_trie().text(id);
  }
  return "";
}

}  // namespace

TEST_CASE("300 schemas accept what is valid, and nothing else") {
  std::size_t n_valid = 0, n_invalid = 0, n_written = 0;
  for (unsigned seed = 0; seed < 300; ++seed) {
    test::SchemaMaker maker(seed);
    const test::MadeSchema made = maker.make();
    CAPTURE(seed);
    CAPTURE(made.schema);
    const auto schema = JsonValue::parse(made.schema);
    REQUIRE_MESSAGE(schema, why(schema));
    Matcher matcher = matcher_of(grammar_of(made.schema));
    for (const std::string& text : made.valid) {
      CAPTURE(text);
      const auto value = JsonValue::parse(text);
      REQUIRE_MESSAGE(value, why(value));
      REQUIRE(test::accepts(*schema, *schema, *value));  // the test itself
      CHECK(matches(matcher, text));
      ++n_valid;
    }
    for (const std::string& text : made.invalid) {
      CAPTURE(text);
      CHECK_FALSE(matches(matcher, text));
      ++n_invalid;
    }
    std::mt19937 random(seed);
    for (int i = 0; i < 6; ++i) {
      const std::string text = random_text(matcher, random);
      if (text.empty()) continue;
      CAPTURE(text);
      const auto value = JsonValue::parse(text);
      REQUIRE_MESSAGE(value, why(value));
      CHECK(test::accepts(*schema, *schema, *value));
      ++n_written;
    }
  }
  MESSAGE(n_valid, " valid values, ", n_invalid, " invalid ones, ", n_written, " written");
  CHECK(n_valid > 600);
  CHECK(n_invalid > 900);
  CHECK(n_written > 900);
}

TEST_CASE("JSON as the layout says") {
  constexpr std::string_view kSchema =
      R"({"properties": {"a": {"type": "integer"}, "b": {"items": {"type": "null"}}}})";
  const Grammar single = grammar_of(kSchema), none = grammar_of(kSchema, {JsonSpace::none}),
                flexible = grammar_of(kSchema, {JsonSpace::flexible});
  CHECK(matches(single, R"({"a": 1, "b": [null, null]})"));
  CHECK_FALSE(matches(single, R"({"a":1})"));
  CHECK(matches(none, R"({"a":1,"b":[null,null]})"));
  CHECK_FALSE(matches(none, R"({"a": 1})"));
  CHECK(matches(flexible, R"({"a":1,"b": [ null,null ]})"));
  CHECK(matches(flexible, "{\n  \"a\": 1,\n  \"b\": []\n}"));
  CHECK_FALSE(matches(flexible, "{\n\n\"a\": 1}"));
  CHECK_FALSE(matches(flexible, "{" + std::string(22, ' ') + "}"));
}

TEST_CASE("keywords in all their forms") {
  struct Case {
    const char* schema;
    std::vector<const char*> valid, invalid;
  };
  const Case cases[] = {
      {"true", {"1", R"({"a": [null, "b"]})", "[]"}, {"tru", "{"}},
      {"{}", {"false", "-0.5e3"}, {"01"}},
      {R"({"type": "object"})", {"{}", R"({"x": {"y": 1}})"}, {"[]", R"({"x"})"}},
      {R"({"properties": {"a": true, "b": false}})", {"{}", R"({"a": 1})"}, {R"({"b": 1})", "1"}},
      {R"({"required": ["x"], "additionalProperties": {"type": "integer"}})",
       {R"({"x": 1})", R"({"x": 1, "y": 2})"},
       {"{}", R"({"y": 2})", R"({"x": "1"})"}},
      {R"({"type": "object", "minProperties": 2, "maxProperties": 3})",
       {R"({"a": 1, "b": 2})"},
       {R"({"a": 1})", R"({"a": 1, "b": 2, "c": 3, "d": 4})"}},
      {R"({"properties": {"a": {"type": "null"}, "b": {"type": "null"}}, "minProperties": 1})",
       {R"({"b": null})"},
       {"{}"}},
      {R"({"patternProperties": {"^x\\d$": {"type": "null"}}, "additionalProperties": false})",
       {"{}", R"({"x1": null, "x2": null})"},
       {R"({"y1": null})", R"({"x1": 1})"}},
      {R"({"propertyNames": {"enum": ["a", "b"]}, "additionalProperties": {"type": "null"}})",
       {R"({"a": null, "b": null})"},
       {R"({"c": null})"}},
      {R"({"items": [{"type": "null"}, {"type": "boolean"}], "additionalItems": false})",
       {"[]", "[null]", "[null, true]"},
       {"[true]", "[null, true, 1]"}},
      {R"({"type": "array", "minItems": 2})", {"[1, 2]", "[1, 2, [3]]"}, {"[]", "[1]"}},
      {R"({"type": "array", "maxItems": 0})", {"[]"}, {"[1]"}},
      {R"({"minimum": 0, "exclusiveMinimum": true, "type": "integer"})", {"1", "10"}, {"0", "-1"}},
      {R"({"type": "integer", "minimum": 0.5, "maximum": 3.5})", {"1", "3"}, {"0", "4"}},
      {R"({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1})",
       {"0.5", "0.001"},
       {"0", "0.0", "1", "1.0", "-0.5"}},
      {R"({"type": "number", "minimum": -90, "maximum": 90})",
       {"-90", "-90.0", "89.99", "0", "-0.5"},
       {"-90.1", "90.5", "91", "-100"}},
      {R"({"type": "integer", "minimum": 100, "maximum": 65535})",
       {"100", "999", "1000", "65535", "59999", "9999"},
       {"99", "65536", "70000", "100000", "0100"}},
      {R"({"type": "integer", "multipleOf": 1, "maximum": -5})", {"-5", "-1234"}, {"-4", "0", "5"}},
      {R"({"enum": ["a", 1, 2, null], "type": ["string", "integer"], "maximum": 1})",
       {"\"a\"", "1"},
       {"2", "null"}},
      {R"({"enum": [1, 2, 3], "allOf": [{"enum": [2, 3, 4]}, {"const": 3}]})",
       {"3"},
       {"1", "2", "4"}},
      {R"({"const": {"a": [1, "b"]}})", {R"({"a": [1, "b"]})"}, {R"({"a": [1]})"}},
      {R"({"const": 0.001})", {"0.001"}, {"0.0010001", "0"}},
      {R"({"anyOf": [{"type": "null"}, {"$ref": "#/definitions/x"}],
           "definitions": {"x": {"type": "array", "items": {"$ref": "#"}}}})",
       {"null", "[]", "[null, [[], null]]"},
       {"[1]", "[null, [1]]"}},
      {R"({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
           "anyOf": [{"properties": {"b": {"type": "null"}}, "required": ["b"]},
                     {"properties": {"c": {"type": "null"}}, "required": ["c"]}]})",
       {R"({"a": 1, "b": null})", R"({"a": 1, "c": null})"},
       {R"({"a": 1})", R"({"b": null})"}},
      {R"({"oneOf": [{"type": "string"}, {"type": "integer", "maximum": 3},
                     {"type": "integer", "minimum": 7}]})",
       {"\"x\"", "3", "7"},
       {"5", "null"}},
      {R"({"oneOf": [{"properties": {"a": {}}, "required": ["a"]},
                     {"properties": {"b": {}}, "required": ["b"]}]})",
       {R"({"a": 1})", R"({"b": 1})"},
       {"{}", R"({"a": 1, "b": 1})"}},
      {R"({"$ref": "#/$defs/a~1b~0c/0", "$defs": {"a/b~c": [{"type": "null"}]}})", {"null"}, {"1"}},
      {R"({"type": "string", "pattern": "^a{2,4}$", "minLength": 1, "maxLength": 5})",
       {"\"aa\""},
       {"\"a\"", "\"aaaaa\""}},
      {R"({"title": "t", "description": "d", "default": 1, "examples": [], "$comment": "c",
           "$schema": "s", "type": "null"})",
       {"null"},
       {"1"}},
  };
  for (const Case& c : cases) {
    CAPTURE(std::string(c.schema));
    Matcher matcher = matcher_of(grammar_of(c.schema));
    for (const char* text : c.valid) CHECK_MESSAGE(test::matches(matcher, text), std::string(text));
    for (const char* text : c.invalid)
      CHECK_MESSAGE(!test::matches(matcher, text), std::string(text));
  }
}

TEST_CASE("what cannot be kept is an error that names it") {
  const auto fails = [](std::string_view schema, Errc code, const char* names) {
    CAPTURE(schema);
    const auto grammar = from_json_schema(schema);
    REQUIRE_FALSE(grammar);
    CAPTURE(grammar.error().message);
    CHECK(grammar.error().code == code);
    CHECK(grammar.error().message.find(names) != std::string::npos);
  };
  fails(R"({"not": {}})", Errc::unsupported, "not");
  fails(R"({"properties": {"a": {"if": {}}}})", Errc::unsupported, "#/properties/a");
  fails(R"({"contains": {}})", Errc::unsupported, "contains");
  fails(R"({"uniqueItems": true})", Errc::unsupported, "uniqueItems");
  fails(R"({"multipleOf": 3})", Errc::unsupported, "multipleOf");
  fails(R"({"minimum": 0.5})", Errc::unsupported, "minimum");
  fails(R"({"dependentRequired": {}})", Errc::unsupported, "dependentRequired");
  fails(R"({"unevaluatedItems": false})", Errc::unsupported, "unevaluatedItems");
  fails(R"({"typo": 1})", Errc::unsupported, "typo");
  fails(R"({"format": "klingon"})", Errc::unsupported, "klingon");
  fails(R"({"pattern": "(?=a)b"})", Errc::unsupported, "looking around");
  fails(R"({"pattern": "(a)\\1"})", Errc::unsupported, "pattern");
  fails(R"({"pattern": "\\bword"})", Errc::unsupported, "\\b");
  fails(R"({"pattern": "a^b"})", Errc::unsupported, "middle");
  fails(R"({"pattern": "(a"})", Errc::malformed, "expected )");
  fails(R"({"pattern": "a", "maxLength": 3})", Errc::unsupported, "maxLength");
  fails(R"({"pattern": "a", "format": "date"})", Errc::unsupported, "format");
  fails(R"({"enum": ["a"], "pattern": "b"})", Errc::unsupported, "pattern");
  fails(R"({"properties": {"a": {}}, "propertyNames": {}})", Errc::unsupported, "propertyNames");
  fails(R"({"properties": {"a": {}}, "minProperties": 2})", Errc::unsupported, "minProperties");
  fails(R"({"oneOf": [{"type": "integer"}, {"type": "number"}]})", Errc::unsupported, "oneOf");
  fails(R"({"oneOf": [{"minLength": 1}, {"maxLength": 5}]})", Errc::unsupported, "oneOf");
  fails(R"({"const": 1e300})", Errc::unsupported, "const");
  fails(R"({"enum": [[0.00000012345]]})", Errc::unsupported, "enum");
  fails(R"({"$ref": "other.json"})", Errc::unsupported, "other.json");
  fails(R"({"$ref": "#/$defs/x"})", Errc::not_found, "#/$defs/x");
  fails(R"({"$ref": "#"})", Errc::malformed, "leads back");
  fails(R"({"anyOf": [{"$ref": "#"}, {"type": "null"}]})", Errc::malformed, "leads back");
  fails(R"({"type": "int"})", Errc::malformed, "type");
  fails(R"({"type": ["integer", 1]})", Errc::malformed, "type");
  fails(R"({"maxLength": -1})", Errc::malformed, "maxLength");
  fails(R"({"required": "a"})", Errc::malformed, "required");
  fails(R"({"minItems": 2000000})", Errc::limit, "minItems");
  fails(R"([])", Errc::malformed, "schema");
  fails(R"({"a": )", Errc::malformed, "JSON");
  // Nothing can meet these.
  fails("false", Errc::malformed, "no value");
  fails(R"({"type": "string", "allOf": [{"type": "integer"}]})", Errc::malformed, "no value");
  fails(R"({"type": "integer", "minimum": 3, "maximum": 2})", Errc::malformed, "no value");
  fails(R"({"enum": []})", Errc::malformed, "no value");
  fails(R"({"properties": {"a": {"$ref": "#"}}, "required": ["a"]})", Errc::malformed, "no value");
  fails(R"({"items": {"$ref": "#"}, "minItems": 1})", Errc::malformed, "no value");
}

TEST_CASE("a member that cannot be is left out, and a branch that cannot be chosen") {
  const Grammar grammar = grammar_of(
      R"({"properties": {"a": {"enum": []}, "b": {"anyOf": [false, {"type": "null"}]}}})");
  CHECK(matches(grammar, R"({"b": null})"));
  CHECK(matches(grammar, "{}"));
  CHECK_FALSE(matches(grammar, R"({"a")"));
}

}  // namespace json_schema_test
