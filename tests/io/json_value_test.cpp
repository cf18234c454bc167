// SPDX-License-Identifier: Apache-2.0
#include "nibble/io/json_value.hpp"

#include <string>
#include <string_view>

#include "doctest/doctest.h"
#include "file_builder.hpp"
#include "why.hpp"

namespace json_value_test {

using namespace nibble;
using io::JsonReader;
using io::JsonValue;
using Kind = io::JsonValue::Kind;

namespace {

std::string error_of(std::string_view text) {
  const auto value = JsonValue::parse(text);
  return value ? "" : value.error().message;
}

}  // namespace

TEST_CASE("a tree has what the text says") {
  const auto value = JsonValue::parse(
      R"( {"a": [1, -2.5e1, "x\u00e9", true, false, null, {}, []], "b": {"c": {"d": 7}}, "a": 3} )");
  REQUIRE_MESSAGE(value, test::why(value));
  CHECK(value->kind() == Kind::object);
  REQUIRE(value->keys().size() == 3);
  CHECK(value->find("a")->number() == 3);  // the last of two
  const auto list = value->elements()[0].elements();
  REQUIRE(list.size() == 8);
  CHECK(list[0].number() == 1);
  CHECK(list[1].number() == -25);
  CHECK(list[2].string() == "x\xc3\xa9");
  CHECK(list[3].boolean());
  CHECK(list[4].kind() == Kind::boolean);
  CHECK_FALSE(list[4].boolean());
  CHECK(list[5].is_null());
  CHECK(list[6].kind() == Kind::object);
  CHECK(list[7].kind() == Kind::array);
  CHECK(value->find("b")->find("c")->find("d")->number() == 7);
  CHECK(value->find("c") == nullptr);
  // What is of another kind has no value.
  CHECK(list[3].number() == 0);
  CHECK(list[0].string().empty());
  CHECK_FALSE(list[0].boolean());
  CHECK(list[0].find("a") == nullptr);
}

TEST_CASE("numbers are the nearest double, as far as there are 15 digits") {
  const auto number = [](std::string_view text) {
    const auto value = JsonValue::parse(text);
    REQUIRE_MESSAGE(value, test::why(value));
    return value->number();
  };
  CHECK(number("0") == 0.0);
  CHECK(number("-0.0") == 0.0);
  CHECK(number("1e-05") == 1e-05);
  CHECK(number("1E+6") == 1e6);
  CHECK(number("0.000001") == 1e-6);
  CHECK(number("10000.0") == 10000.0);
  CHECK(number("0.08838834764831845") == doctest::Approx(0.08838834764831845).epsilon(1e-15));
  CHECK(number("123456789012345") == 123456789012345.0);
  CHECK(number("12345678901234567890123e-3") == doctest::Approx(12345678901234567890.0));
  CHECK(number("1.0299999713897705") == doctest::Approx(1.0299999713897705).epsilon(1e-15));
  CHECK(number("1e22") == 1e22);
  CHECK(number("1e-400") == 0.0);
  CHECK(number("0e99999999999999999999") == 0.0);
  CHECK(number("1e-99999999999999999999") == 0.0);
  CHECK(number("0." + std::string(1000, '0') + "1e1001") == doctest::Approx(1.0));
  CHECK(number("1" + std::string(300, '0')) == doctest::Approx(1e300));
}

TEST_CASE("what is no JSON is an error with its place") {
  CHECK(error_of("").starts_with("JSON at byte 0: expected a number"));
  for (const char* const text :
       {"01",    "+1",    "1.",  ".5",        "1e",  "1e+",      "--1",       "- 1",
        "1.e3",  "nan",   "tru", "truefalse", "nul", "{\"a\":}", "{\"a\" 1}", "[1,]",
        "[1 2]", "{1:2}", "\"a", "[",         "1 2", "'a'"}) {
    CAPTURE(text);
    CHECK_FALSE(error_of(text).empty());
  }
  CHECK(test::contains(error_of("1e999"), "too large"));
  CHECK(test::contains(error_of("1" + std::string(400, '0')), "too large"));
  const std::string open(64, '[');
  CHECK(error_of(open + std::string(64, ']')).empty());
  CHECK(test::contains(error_of("[" + open + std::string(65, ']')), "nested too deeply"));
}

TEST_CASE("skip() passes over what read() reads, and refuses what it refuses") {
  for (const char* const text :
       {R"({"a":[1,{"b":null}],"c":"}"} )", "[]", "-1.5e3", "true", "false", "null", "\"\\\"\""}) {
    CAPTURE(text);
    JsonReader json(text);
    const auto skipped = json.skip();
    CHECK_MESSAGE(skipped, test::why(skipped));
    CHECK(json.at_end());
  }
  const std::string deep(100000, '[');
  for (const std::string& text :
       {std::string("{\"a\":1"), std::string("nope"), std::string("["), deep, "{\"a\":" + deep}) {
    JsonReader json(text);
    CHECK_FALSE(json.skip());
  }
}

}  // namespace json_value_test
