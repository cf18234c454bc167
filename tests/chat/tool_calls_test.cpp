// SPDX-License-Identifier: Apache-2.0
#include "nibble/chat/tool_calls.hpp"

#include <string>
#include <string_view>
#include <utility>

#include "doctest/doctest.h"
#include "grammar/matching.hpp"
#include "nibble/grammar/constraint.hpp"
#include "why.hpp"

namespace tool_calls_test {

using nibble::Errc;
using nibble::chat::ToolCallForm;
using nibble::chat::Tools;
using test::why;

namespace {

// The second one has definitions of its own, the third takes nothing.
constexpr const char* kTools = R"([
  {"type": "function", "function": {"name": "get_weather", "description": "The weather.",
   "parameters": {"type": "object", "properties": {"city": {"type": "string"},
     "days": {"type": "integer", "minimum": 1, "maximum": 7}}, "required": ["city"]}}},
  {"type": "function", "function": {"name": "go", "parameters": {"type": "object",
   "$defs": {"way": {"enum": ["left", "right"]}},
   "properties": {"ways": {"type": "array", "items": {"$ref": "#/$defs/way"}}},
   "required": ["ways"]}}},
  {"name": "stop \"now\""}])";

Tools made(const ToolCallForm& form = {}) {
  auto tools = Tools::create(kTools, form);
  REQUIRE_MESSAGE(tools, why(tools));
  return *std::move(tools);
}

}  // namespace

TEST_CASE("calls of tools are read as values") {
  const Tools tools = made();
  const auto calls =
      tools.parse(R"({"name": "get_weather", "arguments": {"city": "Paris", "days": 3}})");
  REQUIRE_MESSAGE(calls, why(calls));
  REQUIRE(calls->size() == 1);
  CHECK((*calls)[0].name == "get_weather");
  CHECK((*calls)[0].arguments.find("city")->string() == "Paris");
  CHECK((*calls)[0].arguments.find("days")->number() == 3);
  CHECK((*calls)[0].begin == 0);
  CHECK((*calls)[0].end == 66);
}

TEST_CASE("the grammar has the calls of the tools, and no others") {
  const Tools tools = made();
  auto matcher = test::matcher_of(tools.grammar());
  for (const char* text : {R"({"name": "get_weather", "arguments": {"city": "Paris"}})",
                           R"({"name": "get_weather", "arguments": {"city": "\"", "days": 7}})",
                           R"({"name": "go", "arguments": {"ways": []}})",
                           R"({"name": "go", "arguments": {"ways": ["left", "right", "left"]}})",
                           R"({"name": "stop \"now\"", "arguments": {}})"}) {
    CAPTURE(text);
    CHECK(test::matches(matcher, text));
    CHECK(tools.parse(text));
  }
  for (const char* text :
       {"", R"({"name": "fly", "arguments": {}})", R"({"name": "go", "arguments": {}})",
        R"({"name": "go", "arguments": {"ways": ["up"]}})",
        R"({"name": "get_weather", "arguments": {"city": "Paris", "days": 8}})",
        R"({"name": "get_weather", "arguments": {"ways": ["left"]}})",
        R"({"name": "stop \"now\"", "arguments": {"x": 1}})",
        R"({"name": "stop \"now\"", "arguments": {}} )", R"([{"name": "go"}])"}) {
    CAPTURE(text);
    CHECK_FALSE(test::matches(matcher, text));
  }
  for (const char* text :
       {"", "{", "[]", "null", R"({"name": "fly", "arguments": {}})", R"({"name": "go"})",
        R"({"name": "go", "arguments": []})", R"({"name": "go", "arguments": {}} x)",
        R"({"name": 7, "arguments": {}})"}) {
    CAPTURE(text);
    const auto calls = tools.parse(text);
    REQUIRE_FALSE(calls);
    CHECK(calls.error().code == Errc::malformed);
  }
}

TEST_CASE("calls as models were taught them") {
  ToolCallForm form = ToolCallForm::hermes();
  form.max_calls = 2;
  const Tools hermes = made(form);
  auto matcher = test::matcher_of(hermes.grammar());
  const std::string call =
      "<tool_call>\n{\"name\": \"go\", \"arguments\": {\"ways\": [\"left\"]}}\n</tool_call>";
  CHECK(test::matches(matcher, call));
  CHECK(test::matches(matcher, call + "\n" + call));
  CHECK_FALSE(test::matches(matcher, call + call));
  CHECK_FALSE(test::matches(matcher, call + "\n" + call + "\n" + call));
  const auto two = hermes.parse(call + "\n" + call);
  REQUIRE_MESSAGE(two, why(two));
  REQUIRE(two->size() == 2);
  CHECK((*two)[1].begin == call.size() + 1);
  CHECK((*two)[1].end == 2 * call.size() + 1);
  CHECK_FALSE(hermes.parse(call + call));
  CHECK_FALSE(hermes.parse(call + "\n"));
  CHECK_FALSE(hermes.parse(call + "\n" + call + "\n" + call));

  const Tools llama = made(ToolCallForm::llama3());
  const char* const text = R"({"name": "go", "parameters": {"ways": []}})";
  auto other = test::matcher_of(llama.grammar());
  CHECK(test::matches(other, text));
  CHECK(llama.parse(text));
}

TEST_CASE("tools that cannot be called are errors") {
  const auto fails = [](std::string_view tools, Errc code, std::string_view what) {
    const auto result = Tools::create(tools);
    REQUIRE_FALSE(result);
    CHECK(result.error().code == code);
    CHECK_MESSAGE(result.error().message.find(what) != std::string::npos, why(result));
  };
  fails("", Errc::malformed, "tools");
  fails("{}", Errc::malformed, "array");
  fails("[]", Errc::invalid_argument, "none");
  fails("[1]", Errc::malformed, "no name");
  fails(R"([{"name": ""}])", Errc::malformed, "no name");
  fails(R"([{"name": "a"}, {"name": "a"}])", Errc::malformed, "'a' is there twice");
  fails(R"([{"name": "a", "parameters": {"type": "string"}}])", Errc::malformed, "type object");
  fails(R"([{"name": "a", "parameters": []}])", Errc::malformed, "type object");
  fails(R"([{"name": "a", "parameters": {"type": "object", "not": {}}}])", Errc::unsupported,
        "'a'");
  fails(R"([{"name": "a", "parameters": {"type": "object", "$ref": "#"}}])", Errc::malformed,
        "'a'");
  fails(R"([{"name": "a", "parameters": {"type": "object", "required": ["x"],
         "properties": {"x": false}}}])",
        Errc::malformed, "tools");
  std::string many = "[";
  for (int i = 0; i < 1025; ++i) many += (i > 0 ? "," : "") + std::string("{}");
  fails(many + "]", Errc::limit, "1024");
  ToolCallForm form;
  form.max_calls = 0;
  CHECK_FALSE(Tools::create(kTools, form));
  form.max_calls = 65;
  CHECK_FALSE(Tools::create(kTools, form));
}

}  // namespace tool_calls_test
