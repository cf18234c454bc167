// SPDX-License-Identifier: Apache-2.0
#include "nibble/chat/thoughts.hpp"

#include <string>
#include <string_view>

#include "doctest/doctest.h"

namespace thoughts_test {

using nibble::chat::ThoughtSplitter;

namespace {

// What is shown of a text that comes in pieces of `size` bytes; thoughts in brackets.
std::string shown(std::string_view text, std::size_t size, std::string_view prompt = {}) {
  ThoughtSplitter splitter(prompt);
  std::string out;
  bool was_thought = false;
  const auto show = [&](std::string_view part, bool is_thought) {
    CHECK(!part.empty());
    if (is_thought != was_thought) out += is_thought ? '(' : ')';
    was_thought = is_thought;
    out += part;
  };
  for (; !text.empty(); text.remove_prefix(std::min(size, text.size())))
    splitter.push(text.substr(0, size), show);
  splitter.finish(show);
  return was_thought ? out + ')' : out;
}

}  // namespace

TEST_CASE("thoughts and the answer, in pieces of any size") {
  for (std::size_t size = 1; size < 30; ++size) {
    CAPTURE(size);
    CHECK(shown("<think>\nwhy\n</think>\n\nbecause", size) == "(\nwhy\n)\n\nbecause");
    CHECK(shown(" \n<think>a</think>b", size) == " \n(a)b");
    CHECK(shown("[THINK]a</think>[/THINK]b", size) == "(a</think>)b");
    CHECK(shown("<think></think>b", size) == "b");
    CHECK(shown("<think>never ends", size) == "(never ends)");
    CHECK(shown("a</think>b<think>c", size, "...<think>\n") == "(a)b<think>c");
    CHECK(shown("no <think>thoughts</think>", size) == "no <think>thoughts</think>");
    CHECK(shown("<thin", size) == "<thin");
    CHECK(shown("<<think>", size) == "<<think>");
    CHECK(shown("a < b", size) == "a < b");
    CHECK(shown("a</thin", size, "<think>") == "(a</thin)");
  }
}

TEST_CASE("text is shown as soon as it can be no tag") {
  ThoughtSplitter splitter;
  std::string out;
  const auto show = [&](std::string_view part, bool) { out += part; };
  splitter.push("<th", show);
  CHECK(out.empty());
  splitter.push("is", show);
  CHECK(out == "<this");
  splitter.push(" a <", show);
  CHECK(out == "<this a <");
  CHECK(splitter.answer() == "<this a <");
  CHECK(splitter.thoughts().empty());

  ThoughtSplitter thinking("<think>");
  CHECK(thinking.is_thinking());
  thinking.push("\n a b \n</think>\n\nc\n", show);
  CHECK(!thinking.is_thinking());
  CHECK(thinking.thoughts() == "a b");
  CHECK(thinking.answer() == "c");
}

}  // namespace thoughts_test
