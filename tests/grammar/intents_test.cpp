// SPDX-License-Identifier: Apache-2.0
#include "nibble/grammar/intents.hpp"

#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "grammar/matching.hpp"
#include "nibble/grammar/constraint.hpp"
#include "why.hpp"

namespace intents_test {

using namespace nibble::grammar;
using nibble::Errc;
using test::why;

namespace {

std::vector<Intent> home() {
  const Slot room{.name = "room", .choices = {"office", "kitchen", "k"}};
  return {
      {"light.set",
       {room,
        {.name = "level", .kind = SlotKind::integer, .min = -5, .max = 100, .is_optional = true},
        {.name = "note", .kind = SlotKind::text, .max_length = 6, .is_optional = true}}},
      {"light", {room}},
      {"list.add", {{.name = "items", .choices = {"milk", "eggs", "tea"}, .max_items = 3}}},
      {"remind", {{.name = "task", .kind = SlotKind::word, .max_length = 20}}},
      {"timer",
       {{.name = "h", .kind = SlotKind::integer, .max = 23, .is_optional = true},
        {.name = "m", .kind = SlotKind::integer, .max = 59, .is_optional = true}}},
      {"none"},
  };
}

Intents made(std::vector<Intent> intents) {
  auto result = Intents::create(std::move(intents));
  REQUIRE_MESSAGE(result, why(result));
  return *std::move(result);
}

IntentValue parsed(const Intents& intents, std::string_view text) {
  auto value = intents.parse(text);
  REQUIRE_MESSAGE(value, why(value));
  return *std::move(value);
}

}  // namespace

TEST_CASE("a call is read as values") {
  const Intents intents = made(home());
  const IntentValue call = parsed(intents, R"(light.set(room=k, level=-5, note="a, \"b\""))");
  CHECK(call.index == 0);
  CHECK(call.name == "light.set");
  REQUIRE(call.slot_values.size() == 3);
  CHECK(call.slot_values[0].text == "k");
  CHECK(call.find("level")->integer == -5);
  CHECK(call.find("note")->text == "a, \"b\"");
  CHECK(call.find("nothing") == nullptr);
  CHECK(parsed(intents, "light.set(room=office, note=\"\")").find("level") == nullptr);
  const IntentValue list = parsed(intents, "list.add(items=[milk, tea])");
  CHECK(list.slot_values[0].items == std::vector<std::string>{"milk", "tea"});
  CHECK(parsed(intents, "timer(m=59)").find("m")->integer == 59);
  CHECK(parsed(intents, "none()").slot_values.empty());
}

TEST_CASE("the parts of a call are all of its bytes, once") {
  const Intents intents = made(home());
  for (const std::string text :
       {"light.set(room=k, level=7, note=\"x\")", "light(room=office)", "list.add(items=[milk])",
        "timer(h=1, m=2)", "timer()", "none()"}) {
    CAPTURE(text);
    const IntentValue call = parsed(intents, text);
    CHECK(call.begin == 0);
    std::size_t end = call.end;
    for (const SlotValue& slot : call.slot_values) {
      CHECK(slot.begin == end);
      CHECK(slot.end > slot.begin);
      end = slot.end;
    }
    CHECK(end == text.size());
  }
  CHECK(parsed(intents, "light(room=office)").end == 6);
}

TEST_CASE("the grammar and the reader take the same calls") {
  const Intents intents = made(home());
  auto matcher = test::matcher_of(intents.grammar());
  const auto both = [&](std::string_view text) {
    CAPTURE(text);
    const bool is_read = intents.parse(text).has_value();
    CHECK(test::matches(matcher, text) == is_read);
    return is_read;
  };
  for (const char* text :
       {"light(room=office)", "light(room=k)", "light.set(room=kitchen)",
        "light.set(room=kitchen, level=0)", "light.set(room=kitchen, level=100)",
        "light.set(room=office, note=\"123456\")", "light.set(room=office, note=\"\\u00e9\")",
        "list.add(items=[tea])", "list.add(items=[tea, tea, tea])", "remind(task=feed_the_cat)",
        "remind(task=\xC3\xA9t\xC3\xA9)", "timer()", "timer(h=0)", "timer(m=7)", "timer(h=23, m=0)",
        "none()"}) {
    CHECK(both(text));
  }
  for (const char* text : {"",
                           "light",
                           "light(",
                           "light()",
                           "light(room=)",
                           "light(room=attic)",
                           "light(room=office",
                           "light(room=office))",
                           "light(room=office) ",
                           " light(room=office)",
                           "light(Room=office)",
                           "light.set(level=5)",
                           "light.set(level=5, room=k)",
                           "light.set(room=k, level=101)",
                           "light.set(room=k, level=-6)",
                           "light.set(room=k, level=05)",
                           "light.set(room=k, level=-0)",
                           "light.set(room=k, level=)",
                           "light.set(room=k, level=1e1)",
                           "light.set(room=k,level=1)",
                           "light.set(room=k, level=99999999999999999999)",
                           "light.set(room=k, level=1, level=1)",
                           "light.set(room=k, note=1)",
                           "light.set(room=k, note=\"1234567\")",
                           "light.set(room=k, note= \"x\")",
                           "light.set(room=k, note=\"\n\")",
                           "list.add(items=[])",
                           "list.add(items=tea)",
                           "list.add(items=[tea, tea, tea, tea])",
                           "list.add(items=[tea,])",
                           "list.add(items=[coffee])",
                           "remind(task=)",
                           "remind(task=feed the cat)",
                           "remind(task=a,b)",
                           "remind(task=123456789012345678901)",
                           "timer(h=24)",
                           "timer(, m=7)",
                           "timer(m=7, h=1)",
                           "timer(h=1, )",
                           "none",
                           "none(x)",
                           "all()"}) {
    CHECK_FALSE(both(text));
  }
}

TEST_CASE("what the grammar writes is read") {
  const Intents intents = made(home());
  auto matcher = test::matcher_of(intents.grammar());
  TokenSet allowed(test::small_trie().n_tokens());
  std::mt19937 random(7);
  int n_read = 0;
  for (int run = 0; run < 200; ++run) {
    REQUIRE(matcher.restart());
    std::string text;
    for (int i = 0; i < 60 && !matcher.is_finished(); ++i) {
      REQUIRE(matcher.tokens(allowed));
      std::vector<std::int32_t> ids;
      allowed.for_each([&](std::int32_t id) { ids.push_back(id); });
      const std::int32_t id = ids[random() % ids.size()];
      REQUIRE(*matcher.accept(id));
      text += test::small_trie().text(id);
    }
    if (!matcher.is_finished()) continue;
    CAPTURE(text);
    const auto value = intents.parse(text);
    CHECK_MESSAGE(value, why(value));
    ++n_read;
  }
  CHECK(n_read > 100);
}

TEST_CASE("intents that no call can say are refused") {
  const auto fails = [](std::vector<Intent> intents, Errc code, std::string_view what) {
    const auto result = Intents::create(std::move(intents));
    REQUIRE_FALSE(result);
    CHECK(result.error().code == code);
    CHECK_MESSAGE(result.error().message.find(what) != std::string::npos, why(result));
  };
  fails({}, Errc::invalid_argument, "none");
  fails({{"a"}, {"a"}}, Errc::invalid_argument, "same name");
  for (const char* name : {"", "a(", "a b ", " a", "a\n", "a=b", "\xFF", "a\"", "a,b"}) {
    fails({{name}}, Errc::invalid_argument, "name");
    fails({{"x", {{.name = name, .choices = {"b"}}}}}, Errc::invalid_argument, "name");
    fails({{"x", {{.name = "s", .choices = {"b", name}}}}}, Errc::invalid_argument, "choice");
  }
  fails({{"x", {{.name = "s"}}}}, Errc::invalid_argument, "nothing to choose");
  const Slot s{.name = "s", .choices = {"b"}};
  fails({{"x", {s, s}}}, Errc::invalid_argument, "two slots");
  const auto slot = [](Slot one) { return std::vector<Intent>{{"x", {std::move(one)}}}; };
  constexpr auto kInteger = SlotKind::integer;
  fails(slot({.name = "s", .kind = kInteger, .min = 2, .max = 1}), Errc::invalid_argument, "above");
  fails(slot({.name = "s", .kind = kInteger, .min = INT64_MIN}), Errc::invalid_argument, "10^15");
  fails(slot({.name = "s", .kind = kInteger, .max_items = 2}), Errc::invalid_argument, "integers");
  fails(slot({.name = "s", .kind = SlotKind::word, .max_length = 0}), Errc::invalid_argument,
        "characters");
  fails(slot({.name = "s", .kind = SlotKind::text, .max_length = 1'000'000'000}),
        Errc::invalid_argument, "characters");
  fails(slot({.name = "s", .choices = {"b"}, .max_items = 1'000'000'000}), Errc::invalid_argument,
        "items");
  fails(std::vector<Intent>(5000, Intent{"a"}), Errc::limit, "4096");
  fails({{"x", std::vector<Slot>(65, s)}}, Errc::limit, "64");
}

}  // namespace intents_test
