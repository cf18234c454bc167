// SPDX-License-Identifier: Apache-2.0
#include "nibble/chat/jinja.hpp"

#include <chrono>
#include <cstdlib>
#include <string>
#include <string_view>

#include "doctest/doctest.h"
#include "rendering.hpp"
#include "test_data.hpp"

namespace jinja_test {

using nibble::Errc;
using namespace chat_test;

namespace {

// The text with the bytes of others in brackets.
std::string marked(const nibble::Result<MarkedText>& text) {
  REQUIRE_MESSAGE(text, test::why(text));
  std::string out;
  bool is_foreign = false;
  for (std::size_t i = 0; i < text->size(); ++i) {
    if ((text->origin(i) == Origin::foreign) != is_foreign) out += is_foreign ? ']' : '[';
    is_foreign = text->origin(i) == Origin::foreign;
    out += text->bytes()[i];
  }
  return is_foreign ? out + ']' : out;
}

std::string repeated(std::string_view text, int n) {
  std::string out;
  while (n-- > 0) out += text;
  return out;
}

// before + i + after, for n values of i.
std::string many(std::string_view before, std::string_view after, int n) {
  std::string out;
  for (int i = 0; i < n; ++i) out.append(before).append(std::to_string(i)).append(after);
  return out;
}

Errc code_of(const std::string& source, const RenderLimits& limits = {}) {
  const auto text = rendered(source, "{}", limits);
  REQUIRE(!text);
  return text.error().code;
}

}  // namespace

TEST_CASE("what jinja2 makes of the same templates") {
  const std::string path =
      std::string(std::getenv("NIBBLE_PROJECT_DIR")) + "/tests/chat/goldens.json";
  const auto goldens = value_from_json(test::read_text(path), Origin::foreign);
  REQUIRE_MESSAGE(goldens, test::why(goldens));
  const auto variables = variables_from(*goldens->find("variables"));
  int n_texts = 0, n_errors = 0;
  for (const Value& golden : goldens->find("cases")->items()) {
    CAPTURE(std::string(golden.find("name")->bytes()));
    const auto parsed = JinjaTemplate::parse(golden.find("template")->bytes());
    REQUIRE_MESSAGE(parsed, test::why(parsed));
    const auto text = parsed->render(variables, {}, golden_time());
    const Value* const expected = golden.find("text");
    if (expected == nullptr) {
      CHECK(!text);
      ++n_errors;
    } else {
      REQUIRE_MESSAGE(text, test::why(text));
      CHECK(text->bytes() == expected->bytes());
      ++n_texts;
    }
  }
  CHECK(n_texts > 130);
  CHECK(n_errors > 15);
}

TEST_CASE("errors name the line and what is wrong") {
  CHECK(text_of("a\n{{ x.y }}") == "(line 2: 'x' is undefined)");
  CHECK(text_of("{% for m in ms %}\n{{ m.a.b.c }}{% endfor %}", R"({"ms": [{"a": {}}]})") ==
        "(line 2: 'm.a.b' is undefined)");
  CHECK(text_of("\n\n{{ raise_exception('No\x1b') }}") ==
        "(line 3: the template refuses this: No?)");
  CHECK(text_of("{{ 'a' | nope }}") == "(line 1: the filter 'nope' does not exist)");
  CHECK(text_of("{{ 5 | join }}") == "(line 1: the filter 'join': an int cannot be iterated over)");
  CHECK(text_of("{{ 1 is nope(2) }}") ==
        "(line 1: the test 'nope' does not exist, or not with these arguments)");
  CHECK(text_of("{{ n.f() }}", R"({"n": {"f": 1}})") ==
        "(line 1: 'n.f' is an int, not a function)");
  CHECK(text_of("{{ [].append(1) }}") == "(line 1: 'append': lists and dicts cannot be changed)");
  CHECK(text_of("\n{% if x %}\n\n") == "(line 3: {% endif %} is missing for line 2)");
  CHECK(text_of("{% endif %}") == "(line 1: unexpected tag 'endif')");
  CHECK(text_of("\n{{ 1 + }}") == "(line 2: expected an expression, found the end of a tag)");
  CHECK(text_of("{{ (1 }}") == "(line 1: unexpected '}')");
  CHECK(text_of("{{ 'a }}") == "(line 1: a string without end)");
  CHECK(text_of("\n{{ a") == "(line 2: a tag without end)");
  CHECK(text_of("{# a") == "(line 1: a comment without end)");
  CHECK(text_of("{% raw %} {% endra %}") == "(line 1: {% raw %} without {% endraw %})");
  CHECK(text_of("{% break %}") == "(line 1: 'break' outside of a loop)");
  CHECK(text_of("{% for x in [1] %}{% macro m() %}{% break %}{% endmacro %}{% endfor %}") ==
        "(line 1: 'break' outside of a loop)");
  CHECK(text_of("{% include 'x' %}") == "(line 1: the tag 'include' is not supported)");
  CHECK(text_of("{{ f(*x) }}") == "(line 1: arguments in a list or dict are not supported)");
  CHECK(text_of("{{ strftime_now('%U') }}") == "(line 1: the date format '%U' is not supported)");
  CHECK(code_of("{% include 'x' %}") == Errc::unsupported);
  CHECK(code_of("{{") == Errc::malformed);
  CHECK(code_of("{{ x.y }}") == Errc::invalid_argument);
}

TEST_CASE("who wrote which byte survives what a template does with text") {
  const char* const json = R"({"a": "Ab", "xs": ["p", "q"], "d": {"k": "v"}})";
  const auto marks = [&](std::string_view source) { return marked(rendered(source, json)); };
  CHECK(marks("x{{ a }}y") == "x[Ab]y");
  CHECK(marks("{{ 'x' + a + 'y' ~ a }}") == "x[Ab]y[Ab]");
  CHECK(marks("{{ ('<' + a + '>')[1:3] }}") == "[Ab]");
  CHECK(marks("{{ ('<' + a + '>') | upper | replace('B', '-') }}") == "<[A]->");
  CHECK(marks("{{ (' ' + a + ' x').strip().split() }}") == "['[Ab]', 'x']");
  CHECK(marks("{{ xs | join('-') }}|{{ '-'.join(xs) }}") == "[p]-[q]|[p]-[q]");
  CHECK(marks("{{ d | tojson }}{{ d }}") == "{\"[k]\": \"[v]\"}{'[k]': '[v]'}");
  CHECK(marks("{{ [a] | tojson(indent=1) }}") == "[\n \"[Ab]\"\n]");
  CHECK(marks("{% set t %}<{{ a }}>{% endset %}{{ t | indent(1, true) }}") == " <[Ab]>");
  CHECK(marks("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(a) ~ m('a') }}") == "<[Ab]><a>");
  CHECK(marks("{% for c in 'x' ~ a %}{{ c }}{% endfor %}") == "x[Ab]");
  CHECK(marks("{{ a | first ~ 'x' * 2 ~ a * 2 }}") == "[A]xx[AbAb]");
  CHECK(marks("{{ ('x' ~ a) | reverse }}{{ ('x' ~ a)[::-1] }}") == "[bA]x[bA]x");
  CHECK(marks("{{ a.title() | trim('A') }}{{ a | length }}") == "[b]2");
}

TEST_CASE("a text that is no UTF-8 passes through, byte for byte; in JSON it becomes U+FFFD") {
  const std::vector<Variable> variables = {{"x", Value::string("a\xff\xe2\x82", Origin::foreign)}};
  const auto parsed = JinjaTemplate::parse(
      "{{ x }}|{{ x | length }}|{{ x[1] }}|{{ x | tojson }}|{{ x | tojson(ensure_ascii=true) }}");
  REQUIRE(parsed);
  const auto text = parsed->render(variables);
  REQUIRE_MESSAGE(text, test::why(text));
  CHECK(text->bytes() == "a\xff\xe2\x82|4|\xff|\"a\uFFFD\uFFFD\uFFFD\"|\"a\\ufffd\\ufffd\\ufffd\"");
  nibble::chat::Budget budget({});
  const auto json = to_json(budget, variables[0].value);
  REQUIRE_MESSAGE(json, test::why(json));
  const auto again = value_from_json(json->bytes(), Origin::own);
  REQUIRE_MESSAGE(again, test::why(again));
  CHECK(again->bytes() == "a\uFFFD\uFFFD\uFFFD");
  CHECK(json->bytes() == nibble::io::json_text(variables[0].value.bytes()));
}

TEST_CASE("of a key that JSON has twice, the last value counts, at the first one's place") {
  CHECK(
      text_of("{{ d }}", R"({"d": {"b": 1, "a": {"x": null, "x": []}, "b": 2, "c": 3, "b": 4}})") ==
      "{'b': 4, 'a': {'x': []}, 'c': 3}");
  CHECK(text_of("{{ d }}", R"({"d": {}})") == "{}");
}

TEST_CASE("hostile templates: an error each, soon") {
  const auto start = std::chrono::steady_clock::now();
  const std::string ten = "[1,2,3,4,5,6,7,8,9,0]";
  const std::string limited[] = {
      "{{ range(10 ** 9) }}",
      "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
      "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
      // Text and lists that double.
      "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% "
      "endfor %}",
      "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% "
      "endfor %}",
      "{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% "
      "endfor %}",
      "{{ 'a' * 10 ** 12 }}",
      "{{ [1] * 10 ** 12 }}",
      "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
      "{{ ('a' * 99999) | list | join('b' * 99999) }}",
      "{{ ('a\n' * 99999) | indent(99999) }}",
      "{% set x = 'a' * 999999 %}{% for i in range(999) %}{{ x }}{% endfor %}",
      "{% set x = 'a' * 9999999 %}{% for i in range(99999) %}{% set y = x | upper %}{% endfor %}",
      // Small values with very many parts.
      "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% "
      "endfor %}{{ ns.x }}",
      "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% "
      "endfor %}{{ ns.x | tojson }}",
      "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] "
      "%}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
      // Work that no text comes out of.
      "{% set x = 'a' * 99999 %}{% for i in range(99999) %}{% if x ~ 'b' in x ~ x %}{% endif %}{% "
      "endfor %}",
      "{% set x = 'a' * 999999 %}{% for i in range(99999) %}{{ x == x ~ '' }}{% endfor %}",
      "{% set x = 'a' * 999999 %}{% for i in range(99999) %}{% if x.strip('b' * 9999 ~ 'a') %}{% "
      "endif %}{% endfor %}",
      "{% set x = 'a' * 999999 %}{% for i in range(99999) %}{% if x[i] %}{% endif %}{% endfor %}",
      "{{ range(99999) | unique | list | length }}",
      many("{% set a", "=1 %}", 20'000),
      "{% set ns = namespace() %}" + many("{% set ns.a", "=1 %}", 20'000),
      many("{% macro a", "() %}{% endmacro %}", 20'000),
      "{% macro m(" + many("a", "=1,", 20'000) + "b) %}{% endmacro %}{{ m() }}",
      "{% macro m(" + many("a", "=1,", 5'000) + "b) %}{% endmacro %}{{ m(" +
          many("a", "=1,", 5'000) + "b=1) }}",
      // Depth.
      "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
      "{% macro m(x) %}{{ m([x]) }}{% endmacro %}{{ m(1) }}",
      "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
      "{% set ns = namespace(x=1) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}",
      "{% set ns = namespace(x=1) %}{% for i in range(99999) %}{% set ns.x = {'a': ns.x} %}{% "
      "endfor %}",
      "{% set ns = namespace(x=[1]) %}{% for i in range(99999) %}{% for j in [ns.x] %}{% set ns.x "
      "= [loop] %}{% endfor %}{% endfor %}",
      "{{ " + repeated("[", 100'000) + "1" + repeated("]", 100'000) + " }}",
      "{{ " + repeated("{1:", 100'000) + "1" + repeated("}", 100'000) + " }}",
      "{{ " + repeated("(", 100'000) + "1" + repeated(")", 100'000) + " }}",
      "{{ " + repeated("-", 100'000) + "1 }}",
      "{{ " + repeated("not ", 100'000) + "1 }}",
      "{{ " + repeated("1 if 1 else ", 100'000) + "1 }}",
      "{{ 1" + repeated(" if 1", 100'000) + " }}",
      "{{ " + repeated("f(", 100'000) + "1" + repeated(")", 100'000) + " }}",
      "{{ x" + repeated("[x", 100'000) + repeated("]", 100'000) + " }}",
      "{{ x is in " + repeated("(x is in ", 100'000) + "x" + repeated(")", 100'000) + " }}",
      "{{ 'a'" + repeated("|upper", 100'000) + " }}",
      "{{ 'a'|map(" + repeated("'map',", 100'000) + "'upper')|list }}",
      "{{ x" + repeated(".x", 100'000) + " }}",
      repeated("{% if 1 %}", 100'000),
      repeated("{% for x in [] %}", 100'000),
      repeated("{% set x %}", 100'000),
      repeated("{% macro m() %}", 100'000),
      std::string(5'000'000, 'x'),
  };
  // A part of the usual limits: what reaches those takes as many times longer.
  const RenderLimits limits = {.max_steps = RenderLimits{}.max_steps / 16,
                               .max_bytes = RenderLimits{}.max_bytes / 16};
  for (const std::string& source : limited) {
    CAPTURE(source.substr(0, 120));
    CHECK(code_of(source, limits) == Errc::limit);
  }
  CHECK(rendered("{{ " + repeated("1 + ", 100'000) + "1 }}"));  // long is not deep
  CHECK(rendered("{{ " + repeated("'a' ~ ", 1'000) + "1 }}"));
  CHECK(text_of("{{ " + ten + " | sum }}") == "45");
  // Far above what it takes, far below what any of them would.
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(30));
}

TEST_CASE("limits count what they say") {
  const std::string loop = "{% for i in range(100) %}x{% endfor %}";
  CHECK(code_of(loop, {.max_steps = 100}) == Errc::limit);
  CHECK(rendered(loop, "{}", {.max_steps = 1000}));
  CHECK(code_of(loop, {.max_bytes = 1000}) == Errc::limit);
  CHECK(rendered("abc", "{}", {.max_steps = 10, .max_bytes = 1000}));
  CHECK(code_of(std::string(1000, 'x'), {.max_bytes = 1000}) == Errc::limit);
}

TEST_CASE("big numbers are errors, not surprises") {
  for (const char* const source :
       {"{{ 9223372036854775807 + 1 }}", "{{ -9223372036854775807 - 2 }}",
        "{{ 4611686018427387904 * 2 }}", "{{ 10 ** 19 }}", "{{ (-9223372036854775807 - 1) // -1 }}",
        "{{ -(-9223372036854775807 - 1) }}", "{{ (-9223372036854775807 - 1) | abs }}",
        "{{ 1e300 | int }}"}) {
    CAPTURE(source);
    CHECK(code_of(source) == Errc::invalid_argument);
  }
  CHECK(code_of("{{ 9223372036854775808 }}") == Errc::unsupported);
  CHECK(text_of("{{ (-9223372036854775807 - 1) % -1 }}") == "0");
  CHECK(text_of(
            "{{ 9223372036854775807 }},{{ 1e308 * 10 }},{{ (1e308 * 10 - 1e308 * 10) | round }}") ==
        "9223372036854775807,inf,nan");
  CHECK(text_of("{{ range(9223372036854775806, 9223372036854775807) | list }}") ==
        "[9223372036854775806]");
  CHECK(
      text_of(
          "{% set n = -9223372036854775807 - 1 %}{{ 'a,b'.split(',', n) }}"
          "{{ 'a b'.split(none, n) }}{{ 'a,b'.rsplit(',', n) }}{{ 'aa'.replace('a', 'b', n) }}") ==
      "['a', 'b']['a', 'b']['a', 'b']bb");
  CHECK(text_of("{{ [1, 2][::9223372036854775807] }}{{ [1, 2][::-9223372036854775807] }}") ==
        "[1][2]");
  CHECK(text_of("{{ [1, 2][-9223372036854775807:9223372036854775807] }}{{ [1][99999999999] }}") ==
        "[1, 2]");
}

}  // namespace jinja_test
