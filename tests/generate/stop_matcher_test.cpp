// SPDX-License-Identifier: Apache-2.0
#include "nibble/generate/stop_matcher.hpp"

#include <algorithm>
#include <cstddef>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "allocation_counter.hpp"
#include "doctest/doctest.h"

namespace stop_matcher_test {

using nibble::StopMatcher;
using Strings = std::vector<std::string>;

namespace {

struct Outcome {
  std::string text;
  bool found = false;
  friend bool operator==(const Outcome&, const Outcome&) = default;
};

// By the definition: byte by byte, until the text ends with a stop string; of several, the longest.
Outcome expected(std::string_view text, const Strings& stops) {
  for (std::size_t n = 1; n <= text.size(); ++n) {
    std::size_t longest = 0;
    for (const std::string& stop : stops) {
      if (text.substr(0, n).ends_with(stop)) longest = std::max(longest, stop.size());
    }
    if (longest > 0) return {std::string(text.substr(0, n - longest)), true};
  }
  return {std::string(text), false};
}

// Only the beginning of a stop string at the end of `text` may be held back.
std::size_t held_back(std::string_view text, const Strings& stops) {
  for (std::size_t n = text.size(); n > 0; --n) {
    for (const std::string& stop : stops) {
      if (n < stop.size() && text.ends_with(std::string_view(stop).substr(0, n))) return n;
    }
  }
  return 0;
}

// Bit i of `cuts`: the text is split after byte i.
Outcome in_parts(std::string_view text, std::size_t cuts, const Strings& stops,
                 bool next_between = true) {
  StopMatcher matcher(stops);
  matcher.reset(text.size());
  Outcome outcome;
  std::size_t begin = 0;
  for (std::size_t end = 1; end <= text.size(); ++end) {
    if (end < text.size() && (cuts >> (end - 1) & 1) == 0) continue;
    if (next_between) {
      outcome.text += matcher.text();
      matcher.next();
      CHECK(matcher.text().empty());
    }
    matcher.push(text.substr(begin, end - begin));
    if (!matcher.found()) {
      const std::size_t shown = outcome.text.size() + matcher.text().size();
      CHECK(shown == end - held_back(text.substr(0, end), stops));
    }
    begin = end;
  }
  matcher.flush();
  outcome.text += matcher.text();
  outcome.found = matcher.found();
  return outcome;
}

}  // namespace

TEST_CASE("any cutting of a text gives the text up to the first stop string") {
  const std::vector<Strings> sets = {{},
                                     {"a"},
                                     {"ab"},
                                     {"abab"},
                                     {"aab", "b"},
                                     {"abb", "bb"},
                                     {"abba", "bb"},
                                     {"b", "abab"},
                                     {"aaaa", "aab"},
                                     {"abcab", "cabb", "bca"}};
  std::mt19937 random(5);
  std::size_t n_found = 0;
  for (const Strings& stops : sets) {
    for (int i = 0; i < 20; ++i) {
      std::string text(9, ' ');
      for (char& c : text) c = static_cast<char>('a' + random() % 3);
      const Outcome whole = expected(text, stops);
      n_found += whole.found;
      CAPTURE(text);
      for (std::size_t cuts = 0; cuts < 256; ++cuts) {
        REQUIRE(in_parts(text, cuts, stops) == whole);
        REQUIRE(in_parts(text, cuts, stops, false) == whole);
      }
    }
  }
  CHECK(n_found > 50);
  CHECK(n_found < 150);
}

TEST_CASE("the stop string that is complete first wins, of several the longest") {
  CHECK(in_parts("xabcd", 0, {"abcd", "bc"}) == Outcome{"xa", true});
  CHECK(in_parts("xabcd", 0, {"bcd", "abcd", "cd"}) == Outcome{"x", true});
  CHECK(in_parts("one STOP two END", 0, {"END", "STOP"}) == Outcome{"one ", true});
  CHECK(in_parts("STOP", 0b011, {"STOP"}) == Outcome{"", true});
}

TEST_CASE("what may become a stop string is held back until it cannot or until flush") {
  StopMatcher matcher({"\n\n", "User:"});
  matcher.reset(16);
  matcher.push("hello\n");
  CHECK(matcher.text() == "hello");
  matcher.next();
  matcher.push("Us");
  CHECK(matcher.text() == "\n");
  matcher.next();
  matcher.push("e");
  CHECK(matcher.text() == "");
  matcher.next();
  matcher.push(" it\n");
  CHECK(matcher.text() == "Use it");
  CHECK(!matcher.found());
  matcher.next();
  matcher.flush();
  CHECK(matcher.text() == "\n");
}

TEST_CASE("after a stop string nothing comes; reset begins again") {
  StopMatcher matcher({"##"});
  matcher.reset(8);
  matcher.push("a##b");
  CHECK(matcher.found());
  CHECK(matcher.text() == "a");
  matcher.push("c##");
  matcher.flush();
  CHECK(matcher.text() == "a");
  matcher.next();
  matcher.push("d");
  CHECK(matcher.text() == "");
  matcher.reset(8);
  CHECK(!matcher.found());
  matcher.push("d#");
  CHECK(matcher.text() == "d");
}

TEST_CASE("the time does not grow with the length of the stop strings") {
  // Each byte of the text nearly completes every stop string; comparing them anew for each would
  // take 10^11 steps.
  const std::size_t n = 300000;
  const std::string stop = std::string(n, 'a') + 'b';
  StopMatcher matcher({stop, "x" + stop, stop + "y"});
  matcher.reset(n);
  for (int i = 0; i < 3; ++i) matcher.push(std::string(n, 'a'));
  CHECK(matcher.text().size() == 2 * n);
  matcher.next();
  matcher.push("c");
  CHECK(matcher.text().size() == n + 1);
  matcher.next();
  matcher.push(stop);
  CHECK(matcher.found());
  CHECK(matcher.text().empty());
}

TEST_CASE("no part as long as promised costs an allocation") {
  const std::string stop(100, '=');
  StopMatcher matcher({stop, "end of a long text"});
  matcher.reset(200);
  const std::string part(200, 'x'), nearly(99, '=');
  std::size_t shown = 0;
  const auto before = allocation_count();
  for (int i = 0; i < 100; ++i) {
    for (const std::string_view text : {std::string_view(part), std::string_view(nearly)}) {
      matcher.next();
      matcher.push(text);
      shown += matcher.text().size();
    }
  }
  matcher.next();
  matcher.flush();
  shown += matcher.text().size();
  const auto spent = allocation_count() - before;
  CHECK(spent == 0);
  CHECK(shown == 100 * (200 + 99));
  CHECK(!matcher.found());
}

}  // namespace stop_matcher_test
